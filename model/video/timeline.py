"""An open video → what its packets say about time: its end, and a window's frame and key-frame timestamps.

Nothing is decoded: reading all packets of a minute of video takes milliseconds. So times, key frames and the duration
are measured; headers of recordings, streams and cut files often claim something else.

Timestamps are integers in the stream's time base.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.stream import VideoStream
    from numpy.typing import NDArray

    from model.video.container import OpenVideo

# How long after a packet another may come that is shown before it, where a container has no decoding timestamps.
REORDER_SECONDS = 2.0
# How far before a window to look for a key frame, step by step; after the last step, from the beginning.
SEEK_LEADS_SECONDS = (0.0, 2.0, 10.0, 60.0)
# How far before the last packet found by seeking to read again: seeking in MPEG streams is approximate.
TAIL_SECONDS = 5.0
BEYOND_THE_END = 2**60


@dataclass(frozen=True, eq=False)
class PacketTable:
    """What the packets say about a window: sorted distinct timestamps of the frames, and of those that are key frames.

    ``seek_to`` is where reading started; ``None`` is the beginning.
    """

    times: NDArray[np.int64]
    keys: NDArray[np.int64]
    seek_to: int | None


def measure_end(video: OpenVideo) -> int:
    """Where the last frame ends, found by seeking to the tail; by reading everything where there is no seeking."""
    end = _largest_end_from(video, BEYOND_THE_END)
    if end is not None:
        end = _largest_end_from(video, max(end - int(TAIL_SECONDS / video.tick_seconds), video.origin))
    if end is None:
        end = _largest_end_from(video, None)
    return video.origin if end is None else max(end + video.ticks_per_frame * video.delay_packets, video.origin)


def _largest_end_from(video: OpenVideo, seek_to: int | None) -> int | None:
    video.rewind(seek_to)
    ends = (
        time + (packet.duration or video.ticks_per_frame)
        for packet in video.packets()
        if (time := video.packet_time(packet)) is not None
    )
    return max(ends, default=None)


def scan(video: OpenVideo, start: int, end: int | None) -> PacketTable:
    """Read the packets of the frames on screen in ``[start, end)``, from a key frame at or before ``start``.

    More packets than those may be in the table; ``None`` reads to the end of the video.
    """
    for lead in SEEK_LEADS_SECONDS:
        seek_to = start - int(lead / video.tick_seconds)
        if seek_to <= video.origin:
            break
        table = _scan_from(video, seek_to, start, end)
        if table is not None:
            return table
    table = _scan_from(video, None, start, end)
    assert table is not None, "reading from the beginning always gives a table"
    return table


def _scan_from(video: OpenVideo, seek_to: int | None, start: int, end: int | None) -> PacketTable | None:
    """``None`` if there is no key frame between ``seek_to`` and ``start``."""
    times: list[int] = []
    keys: list[int] = []
    video.rewind(seek_to)
    for packet in video.packets():
        time = video.packet_time(packet)
        if time is None:
            continue
        if packet.is_keyframe:
            keys.append(time)
        if seek_to is not None and (not keys or keys[0] > start):
            if keys or time > start:
                return None
            continue
        times.append(time)
        if end is not None and _later_packets_from(video, packet, time) >= end:
            break
    if not times:
        return None
    return PacketTable(_sorted(_output_times(video, times)), _sorted(keys), seek_to)


def _later_packets_from(video: OpenVideo, packet: Packet[VideoStream], time: int) -> int:
    """A timestamp that no packet after this one undercuts."""
    return time - int(REORDER_SECONDS / video.tick_seconds) if packet.dts is None else packet.dts


def _output_times(video: OpenVideo, times: list[int]) -> list[int]:
    """In a reordered AVI, what goes in before the first frame comes out only comes out after the last packet."""
    if not video.delay_packets:
        return times
    return [time for time in times if time >= video.origin] + [times[-1] + 1 + n for n in range(video.delay_packets)]


def _sorted(times: list[int]) -> NDArray[np.int64]:
    return np.unique(np.array(times, dtype=np.int64))
