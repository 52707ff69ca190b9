"""Reader, encoder, writer: decoded segments are encoded in batches, and finished videos committed to the store.

A video is committed as soon as its last segment is encoded; what is lost when the process is killed is what was in
flight at that moment.

Legend: B segments of a batch, F frames, S image side, D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from indexer.decode import DecodedSegment, OpenedVideo
from indexer.generation import RowMapper
from indexer.reader import Reader, ReaderSettings, ReadResult
from indexer.rows import Location
from indexer.writer import EncodedSegment, EncodedVideo, StoreWriter

SEGMENT_BATCH = 8
"""Segments encoded together: about a hundred frames, enough to fill a GPU, 15 MB of pixels at 224 x 224."""

CAPTION_BATCH = 1024
"""Captions encoded and committed together."""

OnVideo = Callable[[Location, str | None, str | None], None]
"""Told of each video that is done: where it lies, why it failed, and what of it could not be read; None where all is
well."""


class FeatureEncoder(RowMapper, Protocol):
    """The part of ``model.encoder.Encoder`` that indexing needs; see there for shapes."""

    @property
    def dim(self) -> int:
        """Channels of every feature."""
        ...

    @property
    def image_size(self) -> int:
        """Side of the frames in pixels."""
        ...

    @property
    def fingerprint(self) -> str:
        """Identity of the weights."""
        ...

    def encode_videos(
        self, frames_BFSSC: npt.NDArray[np.uint8], mask_BF: npt.NDArray[np.bool_], /
    ) -> npt.NDArray[np.float32]:
        """Raw frame features ``(B, F, D)``."""
        ...

    def pool(self, features_BFD: npt.NDArray[Any], mask_BF: npt.NDArray[np.bool_], /) -> npt.NDArray[np.float32]:
        """Raw pooled vectors ``(B, D)``."""
        ...

    def encode_texts(self, texts: Sequence[str], /) -> npt.NDArray[np.float32]:
        """Raw text features ``(N, D)``."""
        ...


@dataclass(kw_only=True, eq=False)
class _Assembly:
    """A video of which some segments are still to come."""

    location: Location
    opened: OpenedVideo
    done: list[EncodedSegment] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    skipped_packets: int = 0

    @property
    def complete(self) -> bool:
        return len(self.done) + len(self.unreadable) == len(self.opened.windows)

    def finish(self) -> EncodedVideo:
        notes = list(self.unreadable)
        if self.skipped_packets:
            notes.append(f"{self.skipped_packets} damaged packets were skipped")
        return EncodedVideo(
            video_id=self.location.video_id,
            name=self.location.path,
            duration_seconds=self.opened.duration_seconds,
            width=self.opened.width,
            height=self.opened.height,
            reason="; ".join(notes) or None,
            segments=sorted(self.done, key=lambda segment: segment.number),
        )


class VideoEncoding:
    """Collects decoded segments into batches, and encoded segments into videos."""

    def __init__(self, encoder: FeatureEncoder, writer: StoreWriter, on_video: OnVideo) -> None:
        self._encoder = encoder
        self._writer = writer
        self._on_video = on_video
        self._open: dict[str, _Assembly] = {}
        self._batch: list[tuple[_Assembly, DecodedSegment]] = []

    def run(self, locations: Iterable[Location], settings: ReaderSettings) -> None:
        """Decode, encode and commit videos."""
        with Reader(settings) as reader:
            for result in reader.read(locations):
                self._take(result)
                if len(self._batch) >= SEGMENT_BATCH:
                    self._flush()
        self._flush()
        assert not self._open, f"{len(self._open)} videos were left unfinished"

    def _take(self, result: ReadResult) -> None:
        video_id = result.location.video_id
        if result.opened is None:
            assert result.reason is not None
            self._writer.fail_video(video_id, result.reason)
            self._on_video(result.location, result.reason, None)
            return
        video = self._open.setdefault(video_id, _Assembly(location=result.location, opened=result.opened))
        if result.segment is not None:
            video.skipped_packets += result.segment.skipped_packets
            self._batch.append((video, result.segment))
            return
        start, end = result.opened.windows[result.number]
        video.unreadable.append(f"{start:g}-{end:g} s: {result.reason}")
        self._commit([video])

    def _flush(self) -> None:
        if not self._batch:
            return
        frames_BFSSC, mask_BF = padded([segment.frames_FSSC for _, segment in self._batch])
        features_BFD = self._encoder.encode_videos(frames_BFSSC, mask_BF)
        pooled_BD = self._encoder.pool(features_BFD, mask_BF)
        for row, (video, segment) in enumerate(self._batch):
            video.done.append(
                EncodedSegment(
                    number=segment.number,
                    start_seconds=segment.start_seconds,
                    end_seconds=segment.end_seconds,
                    timestamps_seconds=segment.timestamps_seconds,
                    features_FD=features_BFD[row, mask_BF[row]],
                    pooled_D=pooled_BD[row],
                )
            )
        videos = {id(video): video for video, _ in self._batch}
        self._batch = []
        self._commit(videos.values())

    def _commit(self, videos: Iterable[_Assembly]) -> None:
        complete = [video for video in videos if video.complete]
        if not complete:
            return
        encoded = [video.finish() for video in complete]
        failures = self._writer.add_videos(encoded)
        for video, stored in zip(complete, encoded, strict=True):
            del self._open[stored.video_id]
            self._on_video(video.location, failures.get(stored.video_id), stored.reason)


def encode_captions(
    captions: Sequence[tuple[str | None, str]],
    encoder: FeatureEncoder,
    writer: StoreWriter,
    on_done: Callable[[int], None],
) -> None:
    """Encode and commit captions, given as (video id or None, text). ``on_done`` is told how many at a time."""
    for start in range(0, len(captions), CAPTION_BATCH):
        part = captions[start : start + CAPTION_BATCH]
        writer.add_captions(part, encoder.encode_texts([text for _, text in part]))
        on_done(len(part))


def padded(frames: Sequence[npt.NDArray[np.uint8]]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Stack ``(F, S, S, 3)`` arrays of different F to ``(B, longest F, S, S, 3)`` with a mask of the real frames."""
    longest = max(len(part) for part in frames)
    padded = np.zeros((len(frames), longest, *frames[0].shape[1:]), dtype=np.uint8)
    for row, part in enumerate(frames):
        padded[row, : len(part)] = part
    return padded, np.arange(longest) < np.array([len(part) for part in frames])[:, None]
