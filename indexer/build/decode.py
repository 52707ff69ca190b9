"""A decode worker: a file or a window of it in, frames of the encoder's size out. Without PyTorch.

Runs in its own process (``indexer.build.decode_pool`` starts it), so that a file that crashes or hangs the decoder
costs only itself. A long video is decoded window by window, each its own task, so that no task and no message is large.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from indexer.errors import SourceError, TranscriptError
from indexer.locations import Location
from indexer.sources.transcripts import checked, language_of, plain
from indexer.store.records import TranscriptRow
from model.clip.preprocess import Preprocess
from model.config import SamplingConfig
from model.video.recording import UNKNOWN_RECORDING, Recording
from model.video.types import ROUNDING_SECONDS, DecodeLimits, VideoInfo

SHORTEST_TAIL = 0.25
"""A last piece shorter than this share of a segment joins the one before it: it is often just a fade-out."""


@dataclass(frozen=True, kw_only=True)
class DecodeSettings:
    """How every video of a store is cut and sampled; ``preprocess`` makes the model's pictures of frames."""

    sampling: SamplingConfig
    segment_seconds: float
    preprocess: Preprocess


@dataclass(frozen=True, kw_only=True)
class Window:
    """A part of a video that becomes a segment; the one that reaches to the video's end ``is_last``."""

    number: int
    start_seconds: float
    end_seconds: float
    is_last: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class DecodedSegment:
    """Frames ``(F, H, W, 3)`` uint8 RGB of window ``number``, with their times from the video's first frame."""

    number: int
    start_seconds: float
    end_seconds: float
    timestamps_seconds: npt.NDArray[np.float64]
    frames_FHWC: npt.NDArray[np.uint8]
    skipped_packets: int


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenedVideo:
    """What the first task of a video finds: its facts, the windows that it is cut into, and the first of them.

    ``notes`` are for users: how it was read; ``transcripts`` are the subtitle tracks of the file, ``recording`` says
    when, where and with what it was recorded.
    """

    duration_seconds: float
    width: int
    height: int
    windows: list[Window]
    first: DecodedSegment
    notes: tuple[str, ...] = ()
    transcripts: tuple[TranscriptRow, ...] = ()
    recording: Recording = UNKNOWN_RECORDING


def windows_of(duration_seconds: float, segment_seconds: float, times: npt.NDArray[np.float64]) -> list[Window]:
    """Cut ``[0, duration)`` into segments; the last is the rest, joined to its predecessor if that is short.

    Only windows in which a frame begins are among them, and the first: ``times`` ``(N,)`` are those of all frames. A
    picture that stands still for a year is one segment, whatever duration the file claims.
    """
    whole, rest = divmod(duration_seconds, segment_seconds)
    last = max(1, int(whole) + (rest >= SHORTEST_TAIL * segment_seconds)) - 1
    with_frames = np.floor((times + ROUNDING_SECONDS) / segment_seconds).astype(np.int64)
    numbers = np.unique(np.clip(np.append(with_frames, 0), 0, last))
    return [
        Window(
            number=int(number),
            start_seconds=int(number) * segment_seconds,
            end_seconds=duration_seconds if number == last else (int(number) + 1) * segment_seconds,
            is_last=bool(number == last),
        )
        for number in numbers
    ]


def cut(source: str | bytes, info: VideoInfo, segment_seconds: float, limits: DecodeLimits) -> list[Window]:
    """The windows of a video; its packets are read only if it is longer than one. Raises ``VideoError``."""
    from model.video.sampling import frame_times

    if len(windows_of(info.duration_seconds, segment_seconds, np.array([info.duration_seconds]))) == 1:
        return windows_of(info.duration_seconds, segment_seconds, np.zeros(1))
    return windows_of(info.duration_seconds, segment_seconds, frame_times(source, limits))


def open_video(location: Location, settings: DecodeSettings) -> OpenedVideo:
    """Probe a video and decode its first segment. Raises ``SourceError`` or ``VideoError``."""
    from model.video.sampling import probe

    check_unchanged(location)
    source = location.file or location.path
    info = probe(source)
    windows = cut(source, info, settings.segment_seconds, DecodeLimits())
    first = decode_segment(location, settings, windows[0])
    transcripts, notes = tracks_of(source, DecodeLimits())
    return OpenedVideo(
        duration_seconds=info.duration_seconds,
        width=info.width,
        height=info.height,
        windows=windows,
        first=first,
        notes=(*info.notes, *notes),
        transcripts=transcripts,
        recording=info.recording,
    )


def tracks_of(source: str | bytes, limits: DecodeLimits) -> tuple[tuple[TranscriptRow, ...], tuple[str, ...]]:
    """The subtitle tracks of a video as transcripts, one for each language, and notes on those that cannot be used.

    A track of forced subtitles, which translate signs, counts only in a language without another.
    """
    from model.video.subtitles import subtitle_tracks
    from model.video.types import VideoError

    rows: dict[str, TranscriptRow] = {}
    notes = []
    try:
        tracks = subtitle_tracks(source, limits)
    except (VideoError, OSError) as error:
        return (), (f"its subtitle tracks cannot be read ({error})",)
    for track in sorted(tracks, key=lambda track: track.is_forced):
        language = language_of(track.language)
        if track.cut_seconds is not None:
            notes.append(f"subtitle track {track.number} was read up to {track.cut_seconds:.0f} s only")
        try:
            cues = checked([(start, end, plain(text)) for start, end, text in track.passages]).cues
        except TranscriptError as error:
            notes.append(f"subtitle track {track.number} cannot be used: {error}")
            continue
        if cues and language not in rows:
            rows[language] = TranscriptRow(
                language=language, origin="track", source=f"track {track.number}", version="", cues=cues
            )
    return tuple(rows.values()), tuple(notes)


def decode_segment(location: Location, settings: DecodeSettings, window: Window) -> DecodedSegment:
    """Decode one window; the last reaches to wherever the frames end. Raises ``SourceError`` or ``VideoError``."""
    from model.video.sampling import decode

    check_unchanged(location)
    batch = decode(
        location.file or location.path,
        sampling=settings.sampling,
        start_seconds=window.start_seconds,
        end_seconds=None if window.is_last else window.end_seconds,
    )
    return DecodedSegment(
        number=window.number,
        start_seconds=window.start_seconds,
        end_seconds=window.end_seconds,
        timestamps_seconds=batch.timestamps_seconds,
        frames_FHWC=settings.preprocess(batch.frames),
        skipped_packets=batch.skipped_packets,
    )


def check_unchanged(location: Location) -> None:
    """Raise ``SourceError`` if the file is not the one that was hashed. A copy of our own does not change."""
    if location.file is not None:
        return
    try:
        found = os.stat(location.path)  # noqa: PTH116 - a plain string came with the task
    except OSError as error:
        raise SourceError(f"the file cannot be read any more: {error.strerror}") from error
    if not location.is_still(found):
        raise SourceError("the file changed after it was hashed; run again when it is complete")


def start_worker() -> None:
    """Prepare a worker process: the parent handles Ctrl-C, and the worker ends with the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
