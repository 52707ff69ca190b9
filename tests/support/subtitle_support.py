"""Videos with subtitle tracks, made by PyAV."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.subtitles.subtitle import SubtitleSet

_HEADER = b"""[Script Info]
ScriptType: v4.00+

[V4+ Styles]
Format: Name, Fontname, Fontsize, PrimaryColour, SecondaryColour, OutlineColour, BackColour, Bold, Italic, Underline, \
StrikeOut, ScaleX, ScaleY, Spacing, Angle, BorderStyle, Outline, Shadow, Alignment, MarginL, MarginR, MarginV, Encoding
Style: Default,Arial,16,&Hffffff,&Hffffff,&H0,&H0,0,0,0,0,100,100,0,0,1,1,0,2,10,10,10,0

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
"""
Said = Sequence[tuple[float, float, str]]


def write_with_subtitles(
    path: Path,
    tracks: Sequence[tuple[str, str | None, Said]],
    *,
    seconds: float = 3.0,
    seed: int = 0,
    late: float = 0.0,
) -> Path:
    """A video with tracks given as (codec, language, what is said); its first frame is ``late`` by so many seconds."""
    milliseconds = Fraction(1, 1000)
    rng = np.random.default_rng(seed)
    with av.open(str(path), "w") as output:
        video = output.add_stream("libx264", rate=10)
        video.width = video.height = 32
        video.pix_fmt = "yuv420p"
        streams = []
        for codec, language, _ in tracks:
            stream = output.add_stream(codec)
            stream.codec_context.subtitle_header = _HEADER
            stream.codec_context.time_base = milliseconds
            if language is not None:
                stream.metadata["language"] = language
            streams.append(stream)
        for number in range(round(seconds * 10)):
            frame = av.VideoFrame.from_ndarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8), format="rgb24")
            frame.pts = number + round(late * 10)
            output.mux(video.encode(frame))
        output.mux(video.encode())
        for stream, (_, _, said) in zip(streams, tracks, strict=True):
            for number, (start, end, text) in enumerate(said):
                event = f"{number},0,Default,,0,0,0,,{text}".encode()
                shown = SubtitleSet.create(text=event, start=0, end=round((end - start) * 1000), pts=round(start * 1e6))
                packet = stream.codec_context.encode_subtitle(shown)
                packet.stream = stream
                packet.time_base = milliseconds
                packet.pts = packet.dts = round((start + late) * 1000)
                packet.duration = round((end - start) * 1000)
                output.mux(packet)
    return path
