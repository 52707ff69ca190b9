"""A file or bytes → an open video: the right stream of an allowed container, its packets and their timestamps.

Timestamps are integers in the stream's time base; ``OpenVideo.seconds`` turns them into seconds from the first frame.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np

from model.video import formats
from model.video.clock import ClockMemory, Counter, Retimer, count_packets, find_clock
from model.video.types import CLOCK_NOTE, DecodeLimits, NoFrames, NotAVideo, NoVideoStream, Source

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.stream import Stream
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

    from model.video.clock import Clock

# Opened only to be able to say "this is an audio file".
AUDIO_FORMATS = ("mp3", "wav", "flac", "aac", "aiff", "ac3", "amr", "caf")

READ_BUFFER_BYTES = 256 * 1024
# Packets looked at for the earliest timestamp: deeper than any codec reorders (H.264 and HEVC: 16 frames).
REORDER_PACKETS = 64
# Unreadable places in a row after which the rest of a file is given up.
MAX_READ_ERRORS = 100
_CLOCKS = ClockMemory()


@contextmanager
def open_video(source: Source, limits: DecodeLimits, threads: int = 1) -> Iterator[OpenVideo]:
    """Open a path or bytes. Raises ``NotAVideo``, ``NoVideoStream``, ``NoFrames`` or ``OverLimit``, or ``OSError`` for
    a path that cannot be read. Never opens anything but that one file: a path is a path even if it looks like a URL.
    """
    with _open_file(source, limits) as file:
        video = OpenVideo(file, _label(source), limits, threads, _identity(source, file))
        try:
            yield video
        finally:
            video.close()


@contextmanager
def _open_file(source: Source, limits: DecodeLimits) -> Iterator[BinaryIO]:
    if isinstance(source, bytes):
        size_bytes = len(source)
    else:
        status = Path(source).stat()
        size_bytes = status.st_size
        if not stat.S_ISREG(status.st_mode):
            raise NotAVideo(f"{_label(source)} is not a regular file; expected the path of a video file")
    if size_bytes == 0:
        raise NotAVideo(f"{_label(source)} is empty (0 bytes), expected a video file; copy or upload it again")
    limits.check_bytes(size_bytes)
    with io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as file:
        yield file


def _identity(source: Source, file: BinaryIO) -> tuple[object, ...]:
    """Equal only for files with the same content, as far as the file system says."""
    if isinstance(source, bytes):
        return (len(source), hash(source))
    status = os.fstat(file.fileno())
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def _label(source: Source) -> str:
    """How messages call the input: without its folder, because they may reach people who should not know it."""
    return "the input" if isinstance(source, bytes) else Path(source).name or str(source)


class OpenVideo:
    """A video that is open for reading; made by ``open_video``. Not thread-safe.

    ``origin`` is the timestamp of the first frame that is shown, ``skipped_packets`` the running count of packets
    that could not be read or decoded. ``reordered``: AVI and raw streams store no presentation times, so with B-frames
    they are known only from the order in which the codec gives frames out. Such a frame's time is the decoding time of
    the packet that made it come out; ``delay_packets`` are those that go in before the first one does.

    ``clock`` says how times are made continuous where the clock of the file restarts or jumps; None where it does not.
    Timestamps of packets are continuous everywhere.
    """

    def __init__(
        self, file: BinaryIO, label: str, limits: DecodeLimits, threads: int, identity: tuple[object, ...]
    ) -> None:
        self.label, self.limits = label, limits
        self._file, self._threads = file, threads
        self.skipped_packets = 0
        self.clock: Clock | None = None
        self._open()
        self.clock = self._find_clock(identity)
        unordered = self._is_counted or self.container.format.name == "avi"
        self.reordered = unordered and self.stream.codec_context.has_b_frames
        self.delay_packets = 0
        self.origin = self._first_output_time() if self.reordered else self._first_time()

    def _open(self) -> None:
        import av

        self._file.seek(0)
        options = _allocation_limit(self.limits.max_pixels)
        try:
            self.container: InputContainer = av.open(
                _Nameless(self._file),
                mode="r",
                options=options,
                container_options={"format_whitelist": ",".join(formats.DEMUXERS + AUDIO_FORMATS)},
                metadata_errors="replace",
                buffer_size=READ_BUFFER_BYTES,
                io_open=_refuse_to_open,
            )
        except av.FFmpegError as error:
            raise NotAVideo(self._what_it_is(error.strerror)) from error
        self.stream = self._pick_stream()
        context = self.stream.codec_context
        self.limits.check_pixels(context.width, context.height)
        context.options = options
        context.thread_count = self._threads
        context.thread_type = "AUTO"
        for stream in self.container.streams:
            if stream.index != self.stream.index:
                stream.discard = av.stream.Discard.all

    def _find_clock(self, identity: tuple[object, ...]) -> Clock | None:
        import av

        if self._is_counted:
            counted = count_packets(self.packets(), self.ticks_per_frame)
            self.skipped_packets = 0
            self.rewind(None)
            return counted
        restarts = av.format.Flags.ts_discont in av.format.Flags(self.container.format.flags)
        if not (self.limits.check_clock and restarts):
            return None
        known, clock = _CLOCKS.get(identity)
        if not known:
            clock = find_clock(self.packets(), tick_seconds=self.tick_seconds, ticks_per_frame=self.ticks_per_frame)
            _CLOCKS.put(identity, clock)
            self.skipped_packets = 0
            self.rewind(None)
        return clock

    @property
    def _is_counted(self) -> bool:
        return self.container.format.name in formats.COUNTED

    def notes(self) -> tuple[str, ...]:
        """What a person should know about how this file is read."""
        found = []
        if self.clock is not None and self.clock.breaks:
            times = "once" if self.clock.breaks == 1 else f"{self.clock.breaks} times"
            found.append(f"{CLOCK_NOTE} {times}, as in joined files; its parts follow each other without a gap")
        others = len(self._moving_streams()) - 1
        if others > 0:
            what = "1 more video stream in it is" if others == 1 else f"{others} more video streams in it are"
            found.append(f"{what} not read")
        return tuple(found)

    def _what_it_is(self, error: str | None) -> str:
        self._file.seek(0)
        head = self._file.read(512)
        if head[4:8] == b"ftyp":
            return (
                f"{self.label} starts like an MP4, but its index (moov) cannot be read ({error}): it was cut off or "
                "damaged; expected a complete file, copy or upload it again"
            )
        if head.isascii() and b"\0" not in head:
            found = "is not a video: it holds text"
        else:
            found = "is in a format that is not read here, or is not a video"
        return f"{self.label} {found} ({error}); expected one of {formats.names()}; convert it to MP4"

    def _moving_streams(self) -> list[VideoStream]:
        import av

        still = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
        return [stream for stream in self.container.streams.video if not stream.disposition & still]

    def _pick_stream(self) -> VideoStream:
        moving = self._moving_streams()
        readable = [stream for stream in moving if stream.codec_context is not None]
        if not readable:
            kinds = ", ".join(sorted({stream.type for stream in self.container.streams})) or "no streams"
            found = (
                "a video stream in a codec that has no decoder here" if moving else f"{kinds} and no moving pictures"
            )
            raise NoVideoStream(
                f"{self.label} is a {self.container.format.name} file with {found}; expected a video stream, "
                "pass another file or convert it to H.264"
            )
        best = self.container.streams.best("video")
        return next((stream for stream in readable if best is not None and stream.index == best.index), readable[0])

    def close(self) -> None:
        """Release the decoder and the container."""
        self.container.close()

    @property
    def codec(self) -> str:
        """FFmpeg's name of the codec, whatever library decodes it."""
        return self.stream.codec_context.codec.canonical_name

    @property
    def frame_rate(self) -> float:
        """Average frames per second, 0 if the container does not say."""
        return float(self.stream.average_rate or self.stream.guessed_rate or 0)

    @property
    def ticks_per_frame(self) -> int:
        """The average length of a frame in units of the time base, 0 if unknown."""
        return round(1 / self.frame_rate / self.tick_seconds) if self.frame_rate else 0

    @property
    def tick_seconds(self) -> float:
        """The length of one unit of the stream's time base."""
        assert self.stream.time_base is not None
        return float(self.stream.time_base)

    def seconds(self, time: int) -> float:
        """A timestamp as seconds from the first frame."""
        return (time - self.origin) * self.tick_seconds

    def time(self, seconds: float) -> int:
        """The last timestamp at or before so many seconds from the first frame."""
        return self.origin + int(np.floor(seconds / self.tick_seconds))

    def packets(self) -> Iterator[Packet[VideoStream]]:
        """The stream's packets from the current position, unreadable places skipped; the last may be empty."""
        for packet in self.packets_of(self.stream):
            yield cast("Packet[VideoStream]", packet)

    def packets_of(self, *streams: Stream) -> Iterator[Packet[Stream]]:
        """The same of several streams."""
        import av

        retimer: Retimer | None = None
        if self.clock is not None:
            retimer = Counter(self.clock, self.ticks_per_frame) if self._is_counted else Retimer(self.clock)
        errors_in_a_row = 0
        while errors_in_a_row < MAX_READ_ERRORS:
            try:
                for packet in self.container.demux(*streams):
                    errors_in_a_row = 0
                    if retimer is not None and packet.stream_index == self.stream.index:
                        retimer.video(cast("Packet[VideoStream]", packet))
                    elif retimer is not None:
                        retimer.other(packet, self.tick_seconds)
                    yield packet
                return
            except av.FFmpegError:
                errors_in_a_row += 1
                self.skipped_packets += 1
            except IndexError:  # PyAV 18 at the end of a damaged file in which more streams turned up while reading
                return

    def rewind(self, seek_to: int | None) -> None:
        """Go to about the last key frame at or before ``seek_to``; where that fails, and for ``None``, to the start."""
        import av

        if seek_to is not None and self.clock is not None:
            position = self.clock.key_before(seek_to)
            if position is not None:
                with suppress(av.FFmpegError):
                    self.container.seek(position, stream=self.stream, unsupported_byte_offset=True)
                    return
        elif seek_to is not None:
            with suppress(av.FFmpegError, OSError):  # YUV4MPEG seeks to where its arithmetic leads
                self.container.seek(seek_to, stream=self.stream, backward=True)
                return
        self.container.close()
        self._open()

    def packet_time(self, packet: Packet[VideoStream]) -> int | None:
        """The timestamp of a packet's frame; ``None`` if it has none that is shown."""
        if packet.is_discard or not packet.size:
            return None
        return packet.dts if packet.pts is None or self.reordered else packet.pts

    def frame_time(self, frame: VideoFrame, previous: int) -> int:
        """The timestamp of a decoded frame that comes out after the one at ``previous``."""
        time = frame.dts if frame.pts is None or self.reordered else frame.pts
        return previous + 1 if time is None else time

    def _first_time(self) -> int:
        first: int | None = None
        for number, packet in enumerate(self.packets()):
            time = self.packet_time(packet)
            if time is not None:
                first = time if first is None else min(first, time)
                # No frame can be shown before its packet's decoding time, so nothing earlier can follow.
                if packet.dts is not None and packet.dts >= first:
                    break
            if first is not None and number >= REORDER_PACKETS:
                break
        if first is None:
            raise self.no_frames()
        return first

    def _first_output_time(self) -> int:
        import av

        for packet in self.packets():
            with suppress(av.FFmpegError):
                for frame in self.stream.codec_context.decode(packet if packet.size else None):
                    return self.frame_time(frame, 0)
            self.delay_packets += 1
        raise self.no_frames()

    def no_frames(self) -> NoFrames:
        """The error for a stream of which nothing can be shown."""
        return NoFrames(
            f"no frame of {self.label} can be decoded ({self.codec}, {self.skipped_packets} broken packets); "
            "it is empty or damaged, convert or record it again"
        )


def _allocation_limit(max_pixels: int | None) -> dict[str, str]:
    """FFmpeg's own ``max_pixels``, so that it allocates no frame far over the limit, whatever the header claimed.

    FFmpeg counts pixels that codecs add for alignment (up to 64 columns), so this is wider than the limit, which
    ``DecodeLimits.check_pixels`` holds exactly.
    """
    return {} if max_pixels is None else {"max_pixels": str(max(4 * max_pixels, 2**20))}


class _Nameless:
    """A file without its name: FFmpeg judges the content alone, the same for a path and for bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


def _refuse_to_open(*_: Any) -> Any:
    """FFmpeg's hook for opening a second file, as playlists and external references ask for."""
    raise PermissionError("a video may not make the decoder open other files")
