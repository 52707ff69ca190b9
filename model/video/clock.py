"""Videos whose clock restarts or jumps → one time for all of them, in the order in which frames are stored.

MPEG streams have no index, only clocks. Joined files (``cat a.ts b.ts``), recordings of several programmes and dumps of
live streams begin again at another time in mid-file; read by their timestamps, parts of them cannot be told apart, or
are hours from each other. So packets are known by their position in the file. It is cut into pieces wherever the
decoding time goes back, or forward by more than a pause; each piece is moved to begin where the one before it ends.

A file without such places is read as if this module did not exist. Timestamps are integers in the stream's time base.

Legend: P packets of a piece, K key frames.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from av.packet import Packet
    from av.stream import Stream
    from av.video.stream import VideoStream
    from numpy.typing import NDArray

# The rules of FFmpeg's own command line for these formats (-dts_delta_threshold, and a tenth of a second back).
PAUSE_SECONDS = 10.0
BACK_SECONDS = 0.1
# Without decoding times, frames that are shown earlier may be stored later by this much.
REORDER_SECONDS = 2.0
_REMEMBERED = 64


@dataclass(frozen=True, eq=False)
class Clock:
    """How the times of a file are made continuous.

    Piece ``i`` begins at byte ``positions[i]``; ``offsets[i]`` is added to its timestamps. ``keys`` ``(K,)`` are the
    continuous times of key frames that begin a packet of their own in the file, ascending, ``key_positions`` where.
    """

    positions: tuple[int, ...]
    offsets: tuple[int, ...]
    keys: NDArray[np.int64]
    key_positions: NDArray[np.int64]

    @property
    def breaks(self) -> int:
        """How many times the clock restarts or jumps."""
        return len(self.positions) - 1

    def offset_at(self, position: int) -> int:
        """What to add to the timestamps of a packet of the video stream."""
        return self.offsets[max(0, bisect_right(self.positions, position) - 1)]

    def key_at(self, position: int) -> int | None:
        """The time of the key frame at a byte; None if there is none."""
        found = np.flatnonzero(self.key_positions == position)
        return int(self.keys[found[0]]) if len(found) else None

    def key_before(self, time: int) -> int | None:
        """The byte at which the last key frame not after a continuous time begins; None if there is none."""
        found = int(np.searchsorted(self.keys, time, side="right")) - 1
        return None if found < 0 else int(self.key_positions[found])


class Retimer:
    """Moves packets of an open file to the continuous time, as they are read from some place on."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._position = 0

    def video(self, packet: Packet[VideoStream]) -> None:
        """Move a packet of the video stream; packets are to come in the order of the file."""
        if packet.pos is not None and packet.pos >= 0:
            self._position = packet.pos
        _move(packet, self._clock.offset_at(self._position))

    def other(self, packet: Packet[Stream], tick_seconds: float) -> None:
        """Move a packet of another stream, whose piece may begin some packets before or after that of the pictures.

        ``tick_seconds`` is the length of one unit of the video stream's time base.
        """
        time = packet.dts if packet.dts is not None else packet.pts
        if time is None or packet.time_base is None:
            return
        position = packet.pos if packet.pos is not None and packet.pos >= 0 else self._position
        clock = self._clock
        piece = max(0, bisect_right(clock.positions, position) - 1)
        ratio = tick_seconds / float(packet.time_base)
        near = {clock.offsets[i] for i in (piece - 1, piece, piece + 1) if 0 <= i < len(clock.offsets)}
        here = clock.keys[max(0, int(np.searchsorted(clock.key_positions, position, side="right")) - 1)] * ratio
        _move(packet, min((round(offset * ratio) for offset in near), key=lambda offset: abs(time + offset - here)))


class Counter(Retimer):
    """Gives packets of a raw stream, which has no clock, their number as time."""

    def __init__(self, clock: Clock, ticks_per_frame: int) -> None:
        super().__init__(clock)
        self._ticks = ticks_per_frame
        self._next: int | None = None

    def video(self, packet: Packet[VideoStream]) -> None:
        """Number a packet; the first is a key frame, or that of the file."""
        if not packet.size:
            return
        if self._next is None:
            self._next = self._clock.key_at(packet.pos or 0) or 0
        packet.dts, packet.pts = self._next, None
        self._next += self._ticks


def _move(packet: Packet[Stream] | Packet[VideoStream], offset: int) -> None:
    if packet.pts is not None:
        packet.pts += offset
    if packet.dts is not None:
        packet.dts += offset


def count_packets(packets: Iterable[Packet[VideoStream]], ticks_per_frame: int) -> Clock:
    """The key frames of a raw stream by number and position, read from the beginning."""
    keys = [
        (number * ticks_per_frame, packet.pos or 0)
        for number, packet in enumerate(packet for packet in packets if packet.size)
        if packet.is_keyframe
    ]
    times, positions = zip(*keys, strict=True) if keys else ((), ())
    return Clock((0,), (0,), np.array(times, np.int64), np.array(positions, np.int64))


def find_clock(packets: Iterable[Packet[VideoStream]], *, tick_seconds: float, ticks_per_frame: int) -> Clock | None:
    """Read all packets of a stream from the beginning; None if its clock neither restarts nor jumps."""
    pieces: list[_Piece] = []
    latest: int | None = None
    position = 0
    for packet in packets:
        if not packet.size:
            continue
        if packet.pos is not None and packet.pos >= 0:
            position = packet.pos
        decoded = packet.dts if packet.dts is not None else packet.pts
        if decoded is None:
            continue
        back = BACK_SECONDS if packet.dts is not None else REORDER_SECONDS
        step = 0.0 if latest is None else (decoded - latest) * tick_seconds
        if latest is None or step > PAUSE_SECONDS or step < -back:
            pieces.append(_Piece(position))
            latest = decoded
        latest = max(latest, decoded)
        shown = packet.pts if packet.pts is not None else decoded
        pieces[-1].add(shown, packet.duration or ticks_per_frame, position if packet.is_keyframe else None)
    return None if len(pieces) < 2 else _joined(pieces)


class _Piece:
    def __init__(self, position: int) -> None:
        self.position = position
        self.first: int | None = None
        self.end = 0
        self.keys: list[tuple[int, int]] = []

    def add(self, shown: int, duration: int, key_position: int | None) -> None:
        self.end = shown + duration if self.first is None else max(self.end, shown + duration)
        self.first = shown if self.first is None else min(self.first, shown)
        if key_position is not None:
            self.keys.append((shown, key_position))


def _joined(pieces: list[_Piece]) -> Clock:
    """Each piece begins where the one before it ends; the first keeps its times."""
    offsets, keys = [0], [*pieces[0].keys]
    end = pieces[0].end
    for piece in pieces[1:]:
        assert piece.first is not None, "a piece is made for a packet, which is added to it"
        offset = end - piece.first
        offsets.append(offset)
        keys += [(time + offset, position) for time, position in piece.keys]
        end = piece.end + offset
    keys.sort()
    return Clock(
        positions=tuple(piece.position for piece in pieces),
        offsets=tuple(offsets),
        keys=np.array([time for time, _ in keys], np.int64),
        key_positions=np.array([position for _, position in keys], np.int64),
    )


class ClockMemory:
    """The clocks of the files that this process read last: a long video is opened once for each of its windows."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[object, ...], Clock | None] = OrderedDict()

    def get(self, identity: tuple[object, ...]) -> tuple[bool, Clock | None]:
        """Whether a file is known, and its clock."""
        return identity in self._known, self._known.get(identity)

    def put(self, identity: tuple[object, ...], clock: Clock | None) -> None:
        """Remember a file's clock."""
        self._known[identity] = clock
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
