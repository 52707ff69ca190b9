"""A moment of a video as a file of its own: MP4 with picture and sound.

Packets are copied where MP4 can hold them and the container has presentation times: nothing is lost and it takes as
long as reading. The copy has to begin at a key frame; an edit list tells players to start at the moment itself.
Everything else is encoded again as H.264 and AAC, as is any clip on request.

Runs in the process of ``service.media.preview_worker``; never call it on an untrusted file elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import IO, TYPE_CHECKING, cast

import numpy as np

from model.video.container import open_video
from model.video.pyav import THOROUGH_LEAD_SECONDS, Decoder, display_matrix, make_upright
from model.video.sampling import NoFrames

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from av.audio.frame import AudioFrame
    from av.audio.resampler import AudioResampler
    from av.audio.stream import AudioStream
    from av.container import OutputContainer
    from av.packet import Packet
    from av.stream import Stream
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

    from model.video.container import OpenVideo
    from model.video.sampling import DecodeLimits

# What MP4 holds and common players read there.
_VIDEO_CODECS = frozenset({"h264", "hevc", "av1", "vp9", "mpeg4"})
_AUDIO_CODECS = frozenset({"aac", "mp3", "opus", "ac3", "eac3", "flac", "alac"})
# FFmpeg's names of containers whose packets carry presentation times.
_TIMED_FORMATS = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "mpegts", "flv"})
_TICK = Fraction(1, 90_000)
_OPTIONS = {"preset": "veryfast", "crf": "20", "threads": "1"}
_AAC_FRAME = 1024  # samples


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Which part of a video is wanted: seconds from the first frame; ``encode`` never copies."""

    start: float
    end: float
    encode: bool = False

    @property
    def name(self) -> str:
        """Part of a file name that distinguishes clips of one video."""
        kind = "encoded" if self.encode else "clip"
        return f"{round(self.start * 1000)}-{round(self.end * 1000)}-{kind}"


def write_clip(source: Path, target: IO[bytes], clip: Clip, limits: DecodeLimits) -> None:
    """Write ``clip`` of the video at ``source`` as MP4; time 0 of the clip is ``clip.start``.

    Raises ``VideoError``: ``NoFrames`` if the video shows nothing in that time, ``OverLimit`` for frames that are too
    large.
    """
    with open_video(source, limits) as video:
        sound = _sound_of(video)
        writer = _Copy if _can_copy(video, sound) and not clip.encode else _Encoding
        writer(video, sound, clip, limits).write(target)


def _sound_of(video: OpenVideo) -> AudioStream | None:
    import av

    streams = [stream for stream in video.container.streams.audio if stream.codec_context is not None]
    if not streams:
        return None
    streams[0].discard = av.stream.Discard.default
    return streams[0]


def _can_copy(video: OpenVideo, sound: AudioStream | None) -> bool:
    if sound is not None and sound.codec_context.codec.canonical_name not in _AUDIO_CODECS:
        return False
    return video.container.format.name in _TIMED_FORMATS and video.codec in _VIDEO_CODECS


class _Part:
    """What copying and encoding share: the packets of the wanted time, and times within the clip."""

    def __init__(self, video: OpenVideo, sound: AudioStream | None, clip: Clip, limits: DecodeLimits) -> None:
        self.video, self.sound, self.clip, self.limits = video, sound, clip, limits
        self.origin_seconds = video.origin * video.tick_seconds

    def packets(self) -> Iterator[Packet[Stream]]:
        """From the last key frame at or before the start until both streams have passed the end."""
        self.video.rewind(self._seek_to())
        self.sound = _sound_of(self.video)  # the container may have been opened again
        streams: list[Stream] = [self.video.stream, *([self.sound] if self.sound is not None else [])]
        open_streams = {stream.index for stream in streams}
        for packet in self.video.packets_of(*streams):
            if not open_streams:
                return
            time = packet.dts if packet.dts is not None else packet.pts
            if time is None or packet.time_base is None or not packet.size:
                continue
            if float(time * packet.time_base) - self.origin_seconds >= self.clip.end:
                open_streams.discard(packet.stream_index)
            elif packet.stream_index in open_streams:
                yield packet

    def _seek_to(self) -> int | None:
        """Where to seek so that a key frame at or before the start comes first; ``None``: the beginning.

        Containers without an index (MPEG-TS) may land behind it.
        """
        start = self.video.time(self.clip.start)
        for lead_seconds in (0.0, THOROUGH_LEAD_SECONDS):
            target = start - round(lead_seconds / self.video.tick_seconds)
            if target <= self.video.origin:
                return None
            self.video.rewind(target)
            keys = (self.video.packet_time(packet) for packet in self.video.packets() if packet.is_keyframe)
            first = next(keys, None)
            if first is not None and first <= start:
                return target
        return None

    def no_frames(self) -> NoFrames:
        """The error for a time in which nothing is shown."""
        return NoFrames(
            f"{self.video.label} shows no frame between {self.clip.start:g} and {self.clip.end:g} s; "
            "ask for a time before its end"
        )


class _Copy(_Part):
    """Copies packets. Those before the start have negative times, which become an edit list."""

    def write(self, target: IO[bytes]) -> None:
        import av

        self._latest: dict[int, int] = {}
        with av.open(target, "w", format="mp4", container_options={"avoid_negative_ts": "disabled"}) as out:
            copies: dict[int, Stream] = {self.video.stream.index: out.add_stream_from_template(self.video.stream)}
            if self.sound is not None:
                copies[self.sound.index] = out.add_stream_from_template(self.sound)
            begun = False
            shown = False
            waiting: list[Packet[Stream]] = []
            for packet in self.packets():
                picture = packet.stream_index == self.video.stream.index
                if picture and not begun:
                    begun = packet.is_keyframe
                if picture and not begun:
                    continue
                if not picture and self._seconds(packet) < self.clip.start:
                    continue  # sound needs no key frame: it begins with the moment
                shown = shown or picture
                self._shift(packet)
                if self.video.clock is not None and not self._goes_on(packet):
                    continue  # the sound of joined parts may overlap
                packet.stream = copies[packet.stream_index]
                if picture and waiting:
                    out.mux(waiting)
                    waiting = []
                if begun:
                    out.mux(packet)
                else:
                    waiting.append(packet)
            if not shown:
                raise self.no_frames()

    def _goes_on(self, packet: Packet[Stream]) -> bool:
        """Whether a packet follows those of its stream before it."""
        time = packet.dts if packet.dts is not None else packet.pts
        assert time is not None
        if time <= self._latest.get(packet.stream_index, time - 1):
            return False
        self._latest[packet.stream_index] = time
        return True

    def _seconds(self, packet: Packet[Stream]) -> float:
        time = packet.pts if packet.pts is not None else packet.dts
        assert time is not None
        assert packet.time_base is not None
        return float(time * packet.time_base) - self.origin_seconds

    def _shift(self, packet: Packet[Stream]) -> None:
        assert packet.time_base is not None
        back = round((self.origin_seconds + self.clip.start) / packet.time_base)
        if packet.pts is not None:
            packet.pts -= back
        if packet.dts is not None:
            packet.dts -= back


class _Encoding(_Part):
    """Decodes and encodes again: begins with the frame that is on screen at the start."""

    def write(self, target: IO[bytes]) -> None:
        import av

        with av.open(target, "w", format="mp4") as out:
            pictures = _PictureEncoder(out)
            sound = None if self.sound is None else _SoundEncoder(out, self.sound)
            decoder = Decoder(self.video)
            before: VideoFrame | None = None
            for packet in self.packets():
                if packet.stream_index != self.video.stream.index:
                    if sound is not None:
                        self._add_sound(sound, cast("Packet[AudioStream]", packet))
                        sound.write(begin=pictures.begun)
                    continue
                for time, frame in decoder.feed(cast("Packet[VideoStream]", packet), needed=True):
                    before = self._add_picture(pictures, self.video.seconds(time), frame, before)
            for time, frame in decoder.drain():
                before = self._add_picture(pictures, self.video.seconds(time), frame, before)
            if before is not None:
                pictures.add(0.0, before)  # the last frame stays on screen
            if not pictures.finish():
                raise self.no_frames()
            if sound is not None:
                sound.finish()
                sound.write(begin=True)

    def _add_picture(
        self, pictures: _PictureEncoder, seconds: float, frame: VideoFrame, before: VideoFrame | None
    ) -> VideoFrame | None:
        """Returns the frame to begin with, as long as the start has not come."""
        self.limits.check_pixels(frame.width, frame.height)
        if seconds >= self.clip.end:
            return before
        if seconds < self.clip.start:
            return frame
        if before is not None and seconds > self.clip.start:
            pictures.add(0.0, before)
        pictures.add(seconds - self.clip.start, frame)
        return None

    def _add_sound(self, sound: _SoundEncoder, packet: Packet[AudioStream]) -> None:
        import av

        try:
            frames = packet.decode()
        except av.FFmpegError:
            return  # a damaged piece of sound is silent
        for frame in frames:
            if frame.time is None:
                continue
            seconds = frame.time - self.origin_seconds
            if self.clip.start <= seconds < self.clip.end:
                sound.add(seconds - self.clip.start, frame)


class _PictureEncoder:
    """Upright H.264 with even sides, of which the stream is made by the first frame."""

    def __init__(self, out: OutputContainer) -> None:
        self._out = out
        self._stream = out.add_stream("libx264", rate=30, options=_OPTIONS)
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = _TICK
        self._last = -1

    def add(self, seconds: float, frame: VideoFrame) -> None:
        import av

        ticks = round(seconds / _TICK)
        if ticks <= self._last:
            return  # damaged files repeat times
        pixels = make_upright(np.asarray(frame.to_ndarray(format="rgb24"), np.uint8), display_matrix(frame))
        if self._last < 0:
            self._stream.height, self._stream.width = (max(2, side // 2 * 2) for side in pixels.shape[:2])
        self._last = ticks
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24").reformat(
            width=self._stream.width, height=self._stream.height, format="yuv420p"
        )
        picture.pts, picture.time_base = ticks, _TICK
        self._out.mux(self._stream.encode(picture))

    @property
    def begun(self) -> bool:
        """Whether there was a frame, so that the size of the stream is known."""
        return self._last >= 0

    def finish(self) -> bool:
        """Write what the encoder still holds; whether there was a frame at all."""
        if self._last < 0:
            return False
        self._out.mux(self._stream.encode(None))
        return True


class _SoundEncoder:
    """AAC at the rate of the source, at most in stereo.

    Packets wait until the picture has begun, because the first packet that is written opens both codecs.
    """

    def __init__(self, out: OutputContainer, source: AudioStream) -> None:
        import av

        self._out = out
        self._rate = source.rate
        layout = "mono" if source.channels == 1 else "stereo"
        self._stream = out.add_stream("aac", rate=self._rate, layout=layout)
        self._resampler: AudioResampler = av.AudioResampler(
            format="fltp", layout=layout, rate=self._rate, frame_size=_AAC_FRAME
        )
        self._waiting: list[Packet[AudioStream]] = []
        self._end = 0

    def add(self, seconds: float, frame: AudioFrame) -> None:
        begin = round(seconds * self._rate)
        if begin < self._end - frame.samples // 2:
            return  # joined and damaged files say the same time twice
        self._end = begin + frame.samples
        frame.pts, frame.time_base = begin, Fraction(1, self._rate)
        for piece in self._resampler.resample(frame):
            self._waiting += self._stream.encode(piece)

    def finish(self) -> None:
        for piece in self._resampler.resample(None):
            self._waiting += self._stream.encode(piece)
        self._waiting += self._stream.encode(None)

    def write(self, *, begin: bool) -> None:
        """Write waiting packets, once the picture has begun."""
        if begin:
            self._out.mux(self._waiting)
            self._waiting = []
