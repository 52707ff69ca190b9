"""Transcripts of videos that have none, by speech recognition: faster-whisper, the extra `speech`.

Each is written as soon as it is made, beside its video or into the store, and a video that has one is passed over: a
run that was interrupted is continued by the same command.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from indexer.build.progress import Progress
from indexer.errors import StoreError, TranscriptError
from indexer.sources.transcripts import UNKNOWN, Cue, TranscriptFolders, checked, language_of, plain, webvtt_of
from indexer.store import generation
from indexer.store.catalogue import CatalogueReader
from indexer.store.records import TranscriptRow
from indexer.store.writer import StoreWriter
from model.durable import write_atomically
from model.video.sound import decode_sound
from model.video.types import VideoError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MODEL_FILES = ("model.bin", "config.json", "tokenizer.json")


@dataclass(kw_only=True)
class Transcribed:
    """What a run did: transcripts written, videos without speech, those that had one already, and failures."""

    written: int = 0
    silent: int = 0
    known: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)


class Recogniser:
    """A Whisper model. ``model`` is a size such as ``small``, a name on the hub, or a folder in CTranslate2's format.

    ``language`` is recognised where it is None; with ``vad``, passages without a voice are passed over, in which
    Whisper tends to invent words. Raises ``StoreError`` if the extra is missing or the model cannot be loaded.
    """

    def __init__(self, model: str, *, device: str = "auto", language: str | None = None, vad: bool = True) -> None:
        try:
            from faster_whisper import WhisperModel
        except ImportError as error:
            raise StoreError(
                "speech recognition needs faster-whisper; install the extra: pip install 'emcl-search[speech]'"
            ) from error
        folder = Path(model).expanduser()
        if folder.is_dir():
            missing = [name for name in MODEL_FILES if not (folder / name).is_file()]
            if missing:
                raise StoreError(
                    f"{folder} is not a Whisper model of faster-whisper: {', '.join(missing)} is missing; convert one "
                    "with ct2-transformers-converter, or download one from the hub"
                )
            model = str(folder)
        try:
            self._model: Any = WhisperModel(model, device=device)
        except Exception as error:  # of the hub, of CTranslate2 or of the tokenizer: they share no type
            raise StoreError(
                f"the speech model {model!r} cannot be loaded ({error}); give tiny, base, small, medium, large-v3, "
                "turbo, the name of a faster-whisper model on the hub, or a folder with one"
            ) from error
        self._language, self._vad = language, vad

    def transcript(self, path: Path) -> tuple[str, tuple[Cue, ...]] | None:
        """Language and cues of a video; None without sound. Raises ``VideoError``, ``TranscriptError``, ``OSError``."""
        sound = decode_sound(str(path))
        if sound is None:
            return None
        samples, start = sound
        return self._recognised(samples, start)

    def _recognised(self, samples: NDArray[Any], start: float) -> tuple[str, tuple[Cue, ...]]:
        segments, info = self._model.transcribe(samples, language=self._language, vad_filter=self._vad)
        said = [(max(0.0, one.start + start), max(0.0, one.end + start), plain(one.text)) for one in segments]
        return language_of(info.language), checked(said).cues


def transcribe_files(videos: Iterable[Path], recogniser: Recogniser, progress: Progress) -> Transcribed:
    """Write ``NAME.LANG.vtt`` beside each video without a transcript."""
    folders, report = TranscriptFolders(), Transcribed()
    missing = []
    for video in videos:
        if folders.of(video):
            report.known += 1
        else:
            missing.append(video)
    for video, language, cues in _each(missing, recogniser, progress, report):
        if cues:
            write_atomically(video.with_name(f"{video.stem}.{language}.vtt"), webvtt_of(cues).encode())
    return report


def transcribe_store(store: Path, recogniser: Recogniser, progress: Progress) -> Transcribed:
    """Give each video of a store without a transcript one. Its next search finds the words.

    Videos in which nothing is said are remembered, and passed over from then on. Another process may write between two
    videos; raises ``StoreLocked`` while one does.
    """
    report, missing = Transcribed(), {}
    catalogue = CatalogueReader.open_readonly(store / generation.CATALOGUE)
    try:
        for video_id, state in catalogue.states().items():
            if state != "indexed":
                continue
            if catalogue.transcript_sources(video_id):
                report.known += 1
                continue
            files = [Path(path) for path in catalogue.paths(video_id) if Path(path).is_file()]
            if files:
                missing[files[0]] = video_id
            else:
                report.failed.append((video_id, "its file is not on this machine"))
    finally:
        catalogue.close()
    for video, language, cues in _each(missing, recogniser, progress, report):
        spoken = language if cues else UNKNOWN
        row = TranscriptRow(language=spoken, origin="speech", source=str(video), version="", cues=cues)
        with StoreWriter.open(store) as writer:
            if writer.catalogue.state(missing[video]) == "indexed":
                writer.set_transcripts({missing[video]: [row]})
    return report


def _each(
    videos: Iterable[Path], recogniser: Recogniser, progress: Progress, report: Transcribed
) -> Iterator[tuple[Path, str, tuple[Cue, ...]]]:
    """Each video with what was recognised; no cues if nothing is said. Failures go into the report."""
    videos = list(videos)
    with progress.phase("transcribe", len(videos), "video") as bar:
        for video in videos:
            try:
                found = recogniser.transcript(video)
            except (VideoError, TranscriptError, OSError) as error:
                report.failed.append((str(video), str(error)))
                bar.advance()
                continue
            language, cues = found or (UNKNOWN, ())
            report.written += bool(cues)
            report.silent += not cues
            yield video, language, cues
            bar.advance()
