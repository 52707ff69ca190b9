"""Reader, encoder and writer run concurrently: the slowest of the three sets the pace.

Processes decode, one thread encodes batches of segments (of one video or of several), and the thread that called
commits finished videos, hands over what is ready, and waits. An idle encoder takes what is ready; one that is slower
than decoding has a whole batch in reserve, and decoding continues until a further batch waits. So neither stops while a
commit is written to disk, and memory is bounded, whatever the number and length of the videos.

A video is committed as soon as its last segment is encoded; a kill loses only what was in progress at that moment.

Legend: B segments of a batch, F frames, S image side, D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from indexer.build.decode import DecodedSegment, OpenedVideo
from indexer.build.decode_pool import Feed, Reader, ReaderSettings, ReadResult
from indexer.locations import Location
from indexer.store.generation import RowMapper
from indexer.store.writer import EncodedSegment, EncodedVideo, StoreWriter
from model.clip.preprocess import Preprocess

SEGMENT_BATCH = 8
"""Most segments encoded together: about a hundred frames, enough to fill a GPU, 15 MB of pixels at 224 x 224."""

BATCHES_UNDER_WAY = 2
"""One that is being encoded, and one in reserve."""

CAPTION_BATCH = 1024
"""Captions encoded and committed together."""

OnVideo = Callable[[Location, str | None, str | None], None]
"""Called for each finished video with its location, the reason if it failed, and which parts could not be read (None if
all could)."""


class FeatureEncoder(RowMapper, Protocol):
    """The part of ``model.encoder.Encoder`` that indexing needs; see there for shapes."""

    @property
    def dim(self) -> int:
        """Channels of every feature."""
        ...

    @property
    def preprocess(self) -> Preprocess:
        """How frames become the pictures that the model takes."""
        ...

    @property
    def fingerprint(self) -> str:
        """Identity of the weights."""
        ...

    def truncates(self, text: str) -> bool:
        """Whether the model reads only the beginning of ``text``."""
        ...

    def former_fingerprints(self) -> frozenset[str]:
        """Fingerprints of the same weights from releases that prepared frames differently."""
        ...

    def encode_videos(
        self, frames_BFHWC: npt.NDArray[np.uint8], mask_BF: npt.NDArray[np.bool_], /
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
        notes = [*self.opened.notes, *self.unreadable]
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
            transcripts=self.opened.transcripts,
            recording=self.opened.recording,
        )


_Batch = list[tuple[_Assembly, DecodedSegment]]
_Encoded = list[tuple[_Assembly, EncodedSegment]]


class VideoEncoding:
    """Collects decoded segments into batches, and encoded segments into videos.

    The encoder is used by one thread alone, the writer by the one that calls ``run``.
    """

    def __init__(self, encoder: FeatureEncoder, writer: StoreWriter, on_video: OnVideo) -> None:
        self._encoder = encoder
        self._writer = writer
        self._on_video = on_video
        self._open: dict[str, _Assembly] = {}
        self._decoded: _Batch = []
        self._encoding: set[Future[_Encoded]] = set()

    def run(
        self,
        locations: Iterable[Location],
        settings: ReaderSettings,
        admit: Callable[[Location], bool] = lambda _: True,
    ) -> None:
        """Decode, encode and commit videos. ``locations`` may take its time; it is drawn from by a thread.

        ``admit`` is asked about each video when its turn comes, in the thread that called.
        """
        most_decoded = SEGMENT_BATCH + 2 * settings.workers
        with Reader(settings) as reader, Feed(locations) as feed, _one_thread() as thread:
            while True:
                if room := len(self._decoded) < most_decoded:
                    reader.fill(lambda: feed.take(admit))
                self._hand_over(thread)
                coming = feed.drawing if room and not reader.full else []
                waiting: set[Future[Any]] = {*reader.running, *coming, *self._encoding}
                if not waiting:
                    break
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    if future in reader.running:
                        self._take(reader.collect(future))
                    elif future in self._encoding:
                        self._encoding.remove(future)
                        self._collect(future.result())
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
            self._decoded.append((video, result.segment))
            return
        window = result.window or result.opened.windows[0]
        video.unreadable.append(f"{window.start_seconds:g}-{window.end_seconds:g} s: {result.reason}")
        self._commit([video])

    def _hand_over(self, thread: ThreadPoolExecutor) -> None:
        """Keep the encoder busy: what is ready if it is idle, else a whole batch in reserve."""
        while self._decoded and len(self._encoding) < BATCHES_UNDER_WAY:
            if self._encoding and len(self._decoded) < SEGMENT_BATCH:
                return
            batch, self._decoded = self._decoded[:SEGMENT_BATCH], self._decoded[SEGMENT_BATCH:]
            self._encoding.add(thread.submit(self._encode, batch))

    def _encode(self, batch: _Batch) -> _Encoded:
        """In the encoder's thread."""
        frames_BFHWC, mask_BF = padded([segment.frames_FHWC for _, segment in batch])
        features_BFD = self._encoder.encode_videos(frames_BFHWC, mask_BF)
        pooled_BD = self._encoder.pool(features_BFD, mask_BF)
        encoded = []
        for row, (video, segment) in enumerate(batch):
            part = EncodedSegment(
                number=segment.number,
                start_seconds=segment.start_seconds,
                end_seconds=segment.end_seconds,
                timestamps_seconds=segment.timestamps_seconds,
                features_FD=features_BFD[row, mask_BF[row]],
                pooled_D=pooled_BD[row],
            )
            encoded.append((video, part))
        return encoded

    def _collect(self, encoded: _Encoded) -> None:
        for video, segment in encoded:
            video.done.append(segment)
        self._commit({id(video): video for video, _ in encoded}.values())

    def _commit(self, videos: Iterable[_Assembly]) -> None:
        complete = [video for video in videos if video.complete]
        if not complete:
            return
        encoded = [video.finish() for video in complete]
        failures = self._writer.add_videos(encoded)
        for video, stored in zip(complete, encoded, strict=True):
            del self._open[stored.video_id]
            self._on_video(video.location, failures.get(stored.video_id), stored.reason)


@contextmanager
def _one_thread() -> Iterator[ThreadPoolExecutor]:
    """A thread that ends after its current batch, not after the waiting ones."""
    thread = ThreadPoolExecutor(1, thread_name_prefix="encoder")
    try:
        yield thread
    finally:
        thread.shutdown(wait=True, cancel_futures=True)


def encode_captions(
    captions: Sequence[tuple[str | None, str]],
    encoder: FeatureEncoder,
    writer: StoreWriter,
    on_done: Callable[[int], None],
) -> None:
    """Encode and commit captions, given as (video id or None, text). ``on_done`` receives the number of each batch."""
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
