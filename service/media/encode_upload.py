"""Encodes an uploaded video for the store: decoded in the sandbox, encoded between searches.

In: an open file with untrusted bytes. Out: an ``EncodedVideo``, cut into the same windows as by ``emcl index``. A few
windows at a time are decoded in a process of their own (``service.media.sandbox``), so that memory and time limits do
not depend on the length of the video.

Legend: B windows of a batch, F frames, S image size, D channels.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from indexer.build.decode import DecodeSettings
from indexer.build.encode import padded
from indexer.sources.transcripts import checked, language_of, plain
from indexer.store.records import TranscriptRow
from indexer.store.writer import EncodedSegment, EncodedVideo
from model.video.recording import Recording, recording_of
from model.video.subtitles import MOST_TRACKS
from service.media.sandbox import KillSwitch, Sandbox

if TYPE_CHECKING:
    from indexer.store.config import Manifest
    from model.encoder import Encoder

_TRANSCRIPT_BYTES = 9 << 20  # a little more than the decoding process may say of subtitle tracks

WINDOWS_AT_ONCE = 8
"""About a hundred frames, the batch that ``indexer.build.encode`` uses."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Window:
    """One window: ``frames_FHWC`` uint8 RGB and the time of each, or the ``reason`` why it could not be read."""

    number: int
    start_seconds: float
    end_seconds: float
    frames_FHWC: NDArray[np.uint8] | None = None
    timestamps_seconds: NDArray[np.float64] | None = None
    skipped_packets: int = 0
    reason: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class WindowBatch:
    """A few of the ``total`` windows of a video, with its facts and ``notes`` on how it is read.

    The first batch has the ``transcripts`` of the file's subtitle tracks.
    """

    duration_seconds: float
    width: int
    height: int
    total: int
    windows: list[Window]
    notes: tuple[str, ...]
    transcripts: tuple[TranscriptRow, ...]
    recording: Recording


def decode_windows(
    sandbox: Sandbox, file: IO[bytes], plan: DecodeSettings, kill_switch: KillSwitch
) -> Iterator[WindowBatch]:
    """All windows of the video in ``file``, in order. Raises as ``Sandbox.decode`` does, at the first window only."""
    first, total = 0, 1
    while first < total:
        file.seek(0)
        batch = _decode(sandbox, file, plan, first, kill_switch)
        yield batch
        first, total = first + WINDOWS_AT_ONCE, batch.total


def _decode(
    sandbox: Sandbox, file: IO[bytes], plan: DecodeSettings, first: int, kill_switch: KillSwitch
) -> WindowBatch:
    asked = {"segment_seconds": plan.segment_seconds, "first": first, "count": WINDOWS_AT_ONCE}
    job = {**sandbox.job(plan.sampling, plan.preprocess), "windows": asked}
    more = 0 if first else _TRANSCRIPT_BYTES
    answer = sandbox.answer(job, file, kill_switch, arrays=WINDOWS_AT_ONCE, more_bytes=more)
    head, _, rest = answer.partition(b"\n")
    header = json.loads(head)
    if "error" in header:
        raise sandbox.refusal(header["error"], header["message"])
    arrays = io.BytesIO(rest)
    windows = [_window(facts, arrays, plan) for facts in header["segments"]]
    size = (int(header["width"]), int(header["height"]))
    return WindowBatch(
        duration_seconds=float(header["duration_seconds"]),
        width=size[0],
        height=size[1],
        total=int(header["windows"]),
        windows=windows,
        notes=tuple(str(note)[:500] for note in header["notes"][:10]),
        transcripts=tuple(_transcript(facts) for facts in header["transcripts"][:MOST_TRACKS]),
        recording=recording_of({str(key): str(text) for key, text in header["metadata"].items()}),
    )


def _transcript(facts: dict[str, object]) -> TranscriptRow:
    """A subtitle track as the decoding process said it, checked anew: that process is not trusted."""
    said = facts["cues"]
    assert isinstance(said, list), type(said)
    cues = checked([(float(start), float(end), plain(str(text))) for start, end, text in said]).cues
    language, source = language_of(str(facts["language"])), str(facts["source"])[:100]
    return TranscriptRow(language=language, origin="track", source=source, version="", cues=cues)


def _window(facts: dict[str, object], arrays: IO[bytes], plan: DecodeSettings) -> Window:
    place = Window(
        number=int(str(facts["number"])),
        start_seconds=float(str(facts["start_seconds"])),
        end_seconds=float(str(facts["end_seconds"])),
    )
    if "reason" in facts:
        return replace(place, reason=str(facts["reason"]))
    frames, times = np.load(arrays, allow_pickle=False), np.load(arrays, allow_pickle=False)
    if (
        frames.dtype != np.uint8
        or frames.shape[1:] != plan.preprocess.shape
        or not 1 <= len(frames) <= plan.sampling.max_frames
        or times.dtype != np.float64
        or times.shape != frames.shape[:1]
    ):
        raise ValueError(f"the decoding process returned frames of shape {frames.shape} and times of {times.shape}")
    return replace(
        place,
        frames_FHWC=frames,
        timestamps_seconds=times,
        skipped_packets=int(str(facts["skipped_packets"])),
    )


T = TypeVar("T")

Floats = NDArray[np.float32]


class QueuedEncoder:
    """An encoder whose calls go through the compute queue; ``when_its_turn`` runs a call there."""

    def __init__(self, encoder: Encoder, when_its_turn: Callable[[Callable[[], Floats]], Floats]) -> None:
        self.preprocess = encoder.preprocess
        self.dim = encoder.dim
        self._encoder = encoder
        self._when_its_turn = when_its_turn

    def encode_videos(self, frames_BFHWC: NDArray[np.uint8], mask_BF: NDArray[np.bool_]) -> Floats:
        """Raw frame features ``(B, F, D)``."""
        return self._when_its_turn(lambda: self._encoder.encode_videos(frames_BFHWC, mask_BF))

    def pool(self, features_BFD: Floats, mask_BF: NDArray[np.bool_]) -> Floats:
        """Raw pooled vectors ``(B, D)``."""
        return self._when_its_turn(lambda: self._encoder.pool(features_BFD, mask_BF))

    def encode_texts(self, texts: Sequence[str]) -> Floats:
        """Raw text features ``(N, D)``; without texts there is nothing to wait for."""
        if not texts:
            return np.zeros((0, self.dim), dtype=np.float32)
        return self._when_its_turn(lambda: self._encoder.encode_texts(texts))


def encode_video(
    video_id: str,
    file: IO[bytes],
    manifest: Manifest,
    sandbox: Sandbox,
    encoder: QueuedEncoder,
    progress: Callable[[int, int], None],
    kill_switch: KillSwitch,
) -> EncodedVideo:
    """Decode and encode all windows of a video, as ``emcl index`` does with a file.

    ``progress`` is called with the number of windows done and in all; what it raises ends the work. Raises as
    ``Sandbox.decode`` does for a file that cannot be used.
    """
    plan = DecodeSettings(
        sampling=manifest.sampling, segment_seconds=manifest.segment_seconds, preprocess=encoder.preprocess
    )
    segments: list[EncodedSegment] = []
    notes: list[str] = []
    skipped = done = 0
    transcripts: tuple[TranscriptRow, ...] = ()
    progress(0, 0)
    for batch in decode_windows(sandbox, file, plan, kill_switch):
        good = [window for window in batch.windows if window.frames_FHWC is not None]
        if good:
            segments += _encode(good, encoder)
        skipped += sum(window.skipped_packets for window in good)
        notes += [
            f"{window.start_seconds:g}-{window.end_seconds:g} s: {window.reason}"
            for window in batch.windows
            if window.frames_FHWC is None
        ]
        transcripts += batch.transcripts
        done += len(batch.windows)
        progress(done, batch.total)
    if skipped:
        notes.append(f"{skipped} damaged packets were skipped")
    notes = [*batch.notes, *notes]
    return EncodedVideo(
        video_id=video_id,
        name=video_id[:12],
        duration_seconds=batch.duration_seconds,
        width=batch.width,
        height=batch.height,
        reason="; ".join(notes) or None,
        segments=segments,
        transcripts=transcripts,
        recording=batch.recording,
    )


def _encode(windows: Sequence[Window], encoder: QueuedEncoder) -> list[EncodedSegment]:
    frames_BFHWC, mask_BF = padded([window.frames_FHWC for window in windows if window.frames_FHWC is not None])
    features_BFD = encoder.encode_videos(frames_BFHWC, mask_BF)
    pooled_BD = encoder.pool(features_BFD, mask_BF)
    return [
        EncodedSegment(
            number=window.number,
            start_seconds=window.start_seconds,
            end_seconds=window.end_seconds,
            timestamps_seconds=np.asarray(window.timestamps_seconds),
            features_FD=features_BFD[row, mask_BF[row]],
            pooled_D=pooled_BD[row],
        )
        for row, window in enumerate(windows)
    ]
