"""How fast 12 frames come out of a 60 s 720p clip: every way to decode, side by side in one run.

    python -m benchmarks.decode [--seconds 60] [--rounds 3] [--json]

The clip is made in a temporary folder. Ways take turns in every round, on one codec thread, so that a busy machine
slows them alike; the least time of each counts, and the ratios are what to look at.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from bisect import bisect_right
from collections.abc import Callable
from functools import partial
from pathlib import Path

import av
import numpy as np

from model.clip.preprocess import Preprocess
from model.config import SamplingConfig
from model.video.sampling import decode


def needed_packets(path: Path, sampling: SamplingConfig) -> dict[int, bool]:
    """Numbers of the packets, in the file's order, that the sampled frames need; True for the frames' own."""
    seconds = decode(path, sampling=sampling).timestamps_seconds
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.time_base is not None
        packets = [(packet.pts, packet.is_keyframe) for packet in container.demux(stream) if packet.pts is not None]
        tick = float(stream.time_base)
    origin = min(time for time, _ in packets)
    wanted = {round(second / tick) + origin for second in seconds}
    keys = [number for number, (_, key) in enumerate(packets) if key]
    needed: dict[int, bool] = {}
    for number, (ticks, _) in enumerate(packets):
        if ticks in wanted:
            start = keys[bisect_right(keys, number) - 1]
            needed.update({between: needed.get(between, False) for between in range(start, number)})
            needed[number] = True
    assert sum(needed.values()) == len(wanted), "every sampled frame has a packet of its own"
    return needed


def codec_alone(path: Path, needed: dict[int, bool]) -> int:
    """Decode those packets on one thread; returns how many frames came out."""
    frames = 0
    last = max(needed)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        context.thread_count = 1
        for number, packet in enumerate(container.demux(stream)):
            if number in needed:
                context.skip_frame = "DEFAULT" if needed[number] else "NONREF"
                frames += len(context.decode(packet))
            if number == last:
                break
        return frames + len(context.decode(None))


WIDTH, HEIGHT, FPS = 1280, 720, 30
BASELINE = "every frame, PyAV"


def write_clip(path: Path, seconds: int, gop: int) -> None:
    """A pan over a textured picture with a moving object and film grain: about 3 Mbit/s, a key frame every ``gop``."""
    rng = np.random.default_rng(0)
    grey = rng.normal(size=(HEIGHT + 200, WIDTH + 400)).cumsum(0).cumsum(1)
    grey = (grey - grey.min()) / np.ptp(grey) * 200 + 20
    texture = np.stack([grey, np.roll(grey, 40, 1), np.roll(grey, 40, 0)], axis=2).astype(np.uint8)
    grain = rng.integers(0, 6, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    options = {"preset": "veryfast", "crf": "23", "g": str(gop), "bf": "3", "sc_threshold": "0"}
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(seconds * FPS):
            x, y = int(200 + 199 * np.sin(number / 90)), int(100 + 99 * np.cos(number / 70))
            picture = texture[y : y + HEIGHT, x : x + WIDTH] + np.roll(grain, number * 7, axis=1)
            left = number * 5 % (WIDTH - 120)
            picture[300:420, left : left + 120] = (200, 40, 40)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        output.mux(stream.encode(None))


def every_frame(path: Path) -> np.ndarray:
    """The straightforward way: decode everything, keep one frame in so many."""
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        total = container.streams.video[0].frames
        keep = set(np.linspace(0, total - 1, 12).astype(int).tolist())
        return np.stack(
            [f.to_ndarray(format="rgb24") for number, f in enumerate(container.decode(video=0)) if number in keep]
        )


def decord_batch(path: Path) -> np.ndarray:
    """decord as its manual says: open, ``get_batch``."""
    import decord

    reader = decord.VideoReader(str(path), num_threads=1)
    return reader.get_batch(np.linspace(0, len(reader) - 1, 12).astype(int)).asnumpy()


def sampled(path: Path, **options: str) -> np.ndarray:
    backend = options.pop("backend", "pyav")
    return decode(path, sampling=SamplingConfig(**options), backend=backend).frames


def ways(path: Path) -> dict[str, Callable[[], np.ndarray]]:
    """Name → function that gives 12 frames."""
    table = {
        BASELINE: partial(every_frame, path),
        "model.video.sampling, PyAV": partial(sampled, path),
        "model.video.sampling, keyframes": partial(sampled, path, strategy="keyframes"),
    }
    if importlib.util.find_spec("decord"):
        table["decord get_batch"] = partial(decord_batch, path)
        table["model.video.sampling, decord"] = partial(sampled, path, backend="decord")
    return table


def measure(path: Path, rounds: int) -> dict[str, float]:
    """Least milliseconds of each way, with the resize to 224 pixels that all need."""
    functions = ways(path)
    least = dict.fromkeys(functions, float("inf"))
    for _ in range(rounds):
        for name, function in functions.items():
            begin = time.perf_counter()
            Preprocess.square(224)(function())
            least[name] = min(least[name], 1000 * (time.perf_counter() - begin))
    return least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60, help="length of the clip")
    parser.add_argument("--rounds", type=int, default=3, help="how often each way is timed")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for gop in (250, 60):
            path = Path(folder) / f"gop_{gop}.mp4"
            print(f"making {options.seconds} s of video, then {options.rounds} rounds …", file=sys.stderr)
            write_clip(path, options.seconds, gop)
            results[f"key frame every {gop} frames"] = measure(path, options.rounds)
    if options.json:
        print(json.dumps(results, indent=2))
        return
    for title, least in results.items():
        print(f"\n{options.seconds} s of {WIDTH}x{HEIGHT} at {FPS} fps, {title}")
        for name, milliseconds in least.items():
            print(
                f"  {name:24} {milliseconds:8.0f} ms   {least[BASELINE] / milliseconds:6.2f} x the speed of the first"
            )


if __name__ == "__main__":
    main()
