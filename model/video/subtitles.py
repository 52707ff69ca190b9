"""Subtitle tracks inside a video: what their packets say and when, counted from the video's first frame.

Only codecs that store text (SubRip, WebVTT, SubStation Alpha, MP4's timed text, …) are read; pictures of text are not.
FFmpeg's decoders turn all of them into SubStation Alpha, whose formatting is left in the text.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from model.video.container import OpenVideo, open_video
from model.video.types import DecodeLimits, Source

if TYPE_CHECKING:
    from av.packet import Packet
    from av.stream import Stream

READ_SECONDS = 60.0
"""After this time of reading a file for its subtitles, the rest of them is left out."""

_NO_LIMITS = DecodeLimits()

MOST_TRACKS = 32
MOST_CHARS = 4_000_000
"""Characters of a track after which the rest of it is left out."""


@dataclass(kw_only=True)
class SubtitleTrack:
    """A track of text: its number among the streams of the file, its language as the file says it (None if it does
    not), and ``passages`` of start and end in seconds and text. ``cut_seconds``: where reading it ended early.
    """

    number: int
    language: str | None
    is_forced: bool
    passages: list[tuple[float, float, str]] = field(default_factory=list)
    cut_seconds: float | None = None


def subtitle_tracks(
    source: Source, limits: DecodeLimits = _NO_LIMITS, *, read_seconds: float = READ_SECONDS
) -> list[SubtitleTrack]:
    """The tracks of text in a video, at most ``MOST_TRACKS``; damaged packets are passed over.

    Raises the errors of ``model.video.types``.
    """
    import av

    with open_video(source, limits) as video:
        streams = [
            stream
            for stream in video.container.streams.subtitles
            if stream.codec_context is not None and stream.codec_context.codec.text_sub
        ][:MOST_TRACKS]
        if not streams:
            return []
        forced = av.stream.Disposition.forced
        tracks = {
            stream.index: SubtitleTrack(
                number=stream.index, language=stream.language, is_forced=bool(stream.disposition & forced)
            )
            for stream in streams
        }
        _read(video, [stream.index for stream in streams], tracks, read_seconds)
        return list(tracks.values())


def _read(video: OpenVideo, numbers: list[int], tracks: dict[int, SubtitleTrack], read_seconds: float) -> None:
    video.rewind(None)  # opens the file anew, so streams are known by their numbers
    import av

    wanted = [video.container.streams[number] for number in numbers]
    for stream in wanted:
        stream.discard = av.stream.Discard.default
    # Formats that must be read as a whole to find subtitles also give the packets of the pictures, so that the time is
    # looked at between them; in the others only the subtitles are read.
    whole = "mp4" not in video.container.format.name
    if not whole:
        video.stream.discard = av.stream.Discard.all
    deadline = time.monotonic() + read_seconds
    characters = dict.fromkeys(tracks, 0)
    seconds = 0.0
    for packet in video.packets_of(*([video.stream, *wanted] if whole else wanted)):
        if time.monotonic() > deadline:
            for unfinished in tracks.values():
                unfinished.cut_seconds = seconds
            return
        if packet.pts is None or packet.time_base is None:
            continue
        start = float(packet.pts * packet.time_base) - video.origin * video.tick_seconds
        seconds = max(seconds, start)
        track = tracks.get(packet.stream_index)
        if track is None or track.cut_seconds is not None or not packet.size:
            continue
        end = start + float((packet.duration or 0) * packet.time_base)
        for text in _texts(packet):
            characters[track.number] += len(text)
            if end >= 0:
                track.passages.append((max(0.0, start), end, text))
        if characters[track.number] > MOST_CHARS:
            track.cut_seconds = start


def _texts(packet: Packet[Stream]) -> Iterator[str]:
    import av

    with suppress(av.FFmpegError):
        for part in packet.decode():
            text = getattr(part, "dialogue", b"")
            if text:
                yield text.decode("utf-8", "replace")
