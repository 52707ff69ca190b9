"""Transport streams joined in one file, each of whose clocks begins where it likes."""

from fractions import Fraction

import av
import numpy as np

RATE = 10


def film(path, greys, *, start=0.0, codec="libx264", container=None, options=None, sound=False):
    """One frame of each grey, ``RATE`` a second; the clock begins at ``start`` seconds."""
    options = {"g": "5", "bf": "2", **(options or {})} if codec == "libx264" else {"g": "5"}
    with av.open(path, "w", format=container) as out:
        stream = out.add_stream(codec, rate=25 if codec == "mpeg2video" else RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        rate = 25 if codec == "mpeg2video" else RATE
        tone = out.add_stream("aac", rate=16_000, layout="mono") if sound else None
        for number, grey in enumerate(greys):
            frame = av.VideoFrame.from_ndarray(np.full((64, 96, 3), grey, np.uint8), format="rgb24")
            frame.pts = round(start * rate) + number
            out.mux(stream.encode(frame))
            if tone is not None:
                samples = np.zeros((1, 16_000 // RATE), np.float32)
                piece = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
                piece.rate, piece.pts = 16_000, round(start * 16_000) + number * 1600
                piece.time_base = Fraction(1, 16_000)
                out.mux(tone.encode(piece))
        out.mux(stream.encode(None))
        if tone is not None:
            out.mux(tone.encode(None))
    return path.read_bytes()


FIRST, SECOND, THIRD = (list(range(begin, begin + 80, 4)) for begin in (20, 100, 170))  # 20 frames, 2 s each


def joined(tmp_path, *starts, **options):
    """Three films after each other whose clocks begin at ``starts``, and what all their frames show."""
    parts = [
        film(tmp_path / f"{number}.ts", greys, start=start, container="mpegts", **options)
        for number, (greys, start) in enumerate(zip((FIRST, SECOND, THIRD), starts, strict=False))
    ]
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(parts))
    return path, (FIRST + SECOND + THIRD)[: 20 * len(starts)]
