"""PyAV backend: an open video and the timestamps of wanted frames → those frames, upright RGB.

Decodes only what the wanted frames need: starts at the last key frame before each, skips H.264 frames that nothing
refers to, converts only wanted frames to RGB, stops after the last. What comes out is what decoding everything gives;
where it does not come out (damage, key frames that are none), everything is decoded after all.

Timestamps are integers in the stream's time base.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from math import inf
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from model.video.container import OpenVideo
from model.video.timeline import PacketTable
from model.video.types import OverLimit

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream
    from numpy.typing import NDArray

# Codecs in which skipping the frames that FFmpeg calls "non-reference" can change no other frame (nal_ref_idc is 0).
SKIPPABLE_CODECS = frozenset({"h264"})
# Decoding everything starts this long before the window, for streams that refresh the picture bit by bit.
THOROUGH_LEAD_SECONDS = 12.0
# A display matrix: stored axes to shown ones, as signs (x to x, x to y, y to x, y to y); y points down.
Matrix: TypeAlias = "tuple[int, int, int, int]"
TimedFrames: TypeAlias = "tuple[NDArray[np.uint8], list[int]]"
IDENTITY: Matrix = (1, 0, 0, 1)


def fetch(
    video: OpenVideo, table: PacketTable, wanted: list[int], end: int | None, side: int | None = None
) -> TimedFrames:
    """Decode the frames at the timestamps ``wanted`` (sorted, distinct, from ``table.times``).

    Gives ``(F, H, W, 3)`` uint8 RGB and the F timestamps. A frame that cannot be decoded is replaced by the last one
    before it that can, not before ``wanted[0]``; or, where there is none, by the first one after it that lies before
    ``end``. So fewer frames than wanted may come out, each once. ``side`` scales frames that are wider or higher down
    to as many pixels. Raises ``NoFrames`` if none does, ``OverLimit`` for a frame with too many pixels.
    """
    taken = RgbFrames(video, len(wanted), side)
    if not video.reordered:
        video.skipped_packets = 0
        video.rewind(table.seek_to)
        _fetch_directly(video, taken, _runs(table.keys, wanted), frozenset(wanted))
    if sorted(taken.times) != wanted:
        taken = RgbFrames(video, len(wanted), side)
        video.skipped_packets = 0
        _fetch_thoroughly(video, taken, table.seek_to, wanted, end)
    if not taken.times:
        raise video.no_frames()
    return taken.in_order()


def _runs(keys: NDArray[np.int64], wanted: list[int]) -> dict[int | None, set[int]]:
    """Wanted frames by the key frame that decoding must start at; ``None`` is the first packet of all."""
    sorted_keys = keys.tolist()
    runs: dict[int | None, set[int]] = {}
    for time in wanted:
        position = bisect_right(sorted_keys, time)
        runs.setdefault(sorted_keys[position - 1] if position else None, set()).add(time)
    return runs


def _fetch_directly(
    video: OpenVideo, taken: RgbFrames, runs: dict[int | None, set[int]], wanted: frozenset[int]
) -> None:
    """Decode only from each run's key frame to its last wanted packet; takes frames whose timestamp is wanted."""
    decoder = Decoder(video)
    to_feed = set(runs.pop(None, ()))
    for packet in video.packets():
        time = video.packet_time(packet)
        if packet.is_keyframe and time in runs:
            to_feed |= runs.pop(time)
        if not to_feed:
            continue
        frames = decoder.feed(packet, needed=time in wanted)
        if time is not None:
            to_feed.discard(time)
        if not to_feed:
            frames = [*frames, *decoder.drain()]
        for frame_time, frame in frames:
            if frame_time in wanted and frame_time not in taken.times:
                taken.add(frame_time, frame)
        if not to_feed and not runs:
            return


def _fetch_thoroughly(
    video: OpenVideo, taken: RgbFrames, seek_to: int | None, wanted: list[int], end: int | None
) -> None:
    """Decode everything from well before the window; takes the nearest frames by the rule of ``fetch``."""
    waiting = list(reversed(wanted))
    last: tuple[int, VideoFrame] | None = None
    for time, frame in _all_frames(video, seek_to):
        if end is not None and time >= end:
            break
        if time < wanted[0]:
            continue
        while waiting and waiting[-1] < time:
            taken.add_once(*(last or (time, frame)))
            waiting.pop()
        if not waiting:
            return
        last = (time, frame)
    if last:
        taken.add_once(*last)


def _all_frames(video: OpenVideo, seek_to: int | None) -> Iterator[tuple[int, VideoFrame]]:
    start = None if seek_to is None else seek_to - int(THOROUGH_LEAD_SECONDS / video.tick_seconds)
    video.rewind(start if start is not None and start > video.origin else None)
    decoder = Decoder(video)
    for packet in video.packets():
        yield from decoder.feed(packet, needed=True)
    yield from decoder.drain()


class Decoder:
    """The codec of an open video: packets in, ``(timestamp, frame)`` out; counts packets that it refuses."""

    def __init__(self, video: OpenVideo) -> None:
        self._video = video
        self._context = video.stream.codec_context
        self._skippable = video.codec in SKIPPABLE_CODECS
        self._last_time = video.origin - 1

    def feed(self, packet: Packet[VideoStream], *, needed: bool) -> list[tuple[int, VideoFrame]]:
        """Decode a packet; if it is not ``needed`` and no other frame refers to it, it may be passed over."""
        if not packet.size:  # the last one, which would only empty the codec: drain does that
            return []
        self._context.skip_frame = "DEFAULT" if needed or not self._skippable else "NONREF"
        return self._decode(packet)

    def drain(self) -> list[tuple[int, VideoFrame]]:
        """The frames that the codec still holds back for reordering; it then starts over at the next packet."""
        frames = self._decode(None)
        self._context.flush_buffers()
        return frames

    def _decode(self, packet: Packet[VideoStream] | None) -> list[tuple[int, VideoFrame]]:
        import av

        try:
            frames = self._context.decode(packet)
        except av.FFmpegError as error:
            self._check_refused_size(too_large=isinstance(error, av.error.OverflowError))
            self._video.skipped_packets += 1
            return []
        return [(self._time_of(frame), frame) for frame in frames]

    def _check_refused_size(self, *, too_large: bool) -> None:
        """Was the packet refused for ``max_pixels``, after the header had promised less? Codecs report it differently:
        the new size is in the context, or the context's size is gone, or it is a number out of range.
        """
        limits, context = self._video.limits, self._context
        if limits.max_pixels is None:
            return
        limits.check_pixels(context.width, context.height)
        if too_large or not context.width:
            raise OverLimit(
                f"{self._video.label} has a frame larger than its header says and than the limit of "
                f"{limits.max_pixels:,} pixels; scale the video down"
            )

    def _time_of(self, frame: VideoFrame) -> int:
        self._last_time = self._video.frame_time(frame, self._last_time)
        return self._last_time


class RgbFrames:
    """Decoded frames collected as upright RGB: at most ``capacity`` of them.

    Colours are converted by the matrix and range the frame is tagged with (untagged: BT.601, as FFmpeg and decord do);
    deeper colours are reduced to 8 bits; an alpha channel is dropped; the sample aspect ratio is not applied, as the
    reference does not. A frame of another size than the first, after a change in mid-stream, is scaled to the first.
    ``side``: frames are scaled down, by averages of areas, to at most so many pixels either way.
    """

    def __init__(self, video: OpenVideo, capacity: int, side: int | None = None) -> None:
        from av.video.reformatter import VideoReformatter

        self.times: list[int] = []
        self._limits = video.limits
        self._capacity = capacity
        self._side = side
        self._reformatter = VideoReformatter()
        self._stored_size: tuple[int, int] | None = None
        self._frames: NDArray[np.uint8] | None = None

    def add_once(self, time: int, frame: VideoFrame) -> None:
        """Add a frame unless it is there."""
        if time not in self.times:
            self.add(time, frame)

    def add(self, time: int, frame: VideoFrame) -> None:
        """Convert and keep a frame. Raises ``OverLimit`` if it has too many pixels."""
        self._limits.check_pixels(frame.width, frame.height)
        self._stored_size = self._stored_size or self._size_of(frame)
        width, height = self._stored_size
        rgb = self._reformatter.reformat(
            frame,
            width=width,
            height=height,
            format="rgb24",
            interpolation=None if self._side is None else "AREA",
            threads=1,
        ).to_ndarray()
        upright = make_upright(np.asarray(rgb, np.uint8), display_matrix(frame))
        if self._frames is None:
            self._frames = np.empty((self._capacity, *upright.shape), np.uint8)
        self._frames[len(self.times)] = upright
        self.times.append(time)

    def _size_of(self, frame: VideoFrame) -> tuple[int, int]:
        scale = min(1.0, (self._side or inf) / max(frame.width, frame.height))
        return max(1, round(frame.width * scale)), max(1, round(frame.height * scale))

    def in_order(self) -> TimedFrames:
        """Frames ``(F, H, W, 3)`` and their timestamps, in order of time."""
        assert self._frames is not None, "fetch gives at least one frame or raises"
        frames, times = self._frames[: len(self.times)], self.times
        if times != sorted(times):  # damaged files
            frames, times = frames[np.argsort(times)], sorted(times)
        return frames, times


def first_orientation(video: OpenVideo) -> tuple[Matrix, int, int]:
    """Display matrix, upright width and height of the first frame that can be decoded, else ``NoFrames``."""
    for _, frame in _all_frames(video, None):
        video.limits.check_pixels(frame.width, frame.height)
        matrix = display_matrix(frame)
        width, height = (frame.height, frame.width) if matrix[1] else (frame.width, frame.height)
        return matrix, width, height
    raise video.no_frames()


def display_matrix(frame: VideoFrame) -> Matrix:
    """How a frame is to be turned and mirrored; the identity if it is not tagged.

    Angles between multiples of 90 degrees, which no camera writes, are taken as the nearest multiple.
    """
    side_data: Any = frame.side_data.get("DISPLAYMATRIX")  # PyAV's stub has another type for it
    if side_data is None:
        return IDENTITY
    xx, xy, _, yx, yy = np.frombuffer(bytes(side_data), np.int32)[:5].astype(np.int64).tolist()
    if abs(xx) + abs(yy) >= abs(xy) + abs(yx):
        return (-1 if xx < 0 else 1, 0, 0, -1 if yy < 0 else 1)
    return (0, -1 if xy < 0 else 1, -1 if yx < 0 else 1, 0)


def make_upright(image: NDArray[np.uint8], matrix: Matrix) -> NDArray[np.uint8]:
    """Turn and mirror a stored ``(H, W, 3)`` image as its display matrix says."""
    xx, xy, yx, yy = matrix
    if xy:
        image = image.transpose(1, 0, 2)
    return image[:: yy + xy, :: xx + yx]


def rotation_degrees(matrix: Matrix) -> int:
    """The clockwise turn of a display matrix: 0, 90, 180 or 270."""
    return {(1, 0): 0, (0, 1): 90, (-1, 0): 180, (0, -1): 270}[matrix[:2]]
