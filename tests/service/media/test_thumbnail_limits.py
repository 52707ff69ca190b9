"""Thumbnails of indexed files are decoded in a process of their own, with limits."""

from __future__ import annotations

import asyncio
import os
import resource
import struct
import threading
import time
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from service.errors import TooLarge, Unprocessable
from service.media.files import Moment, Thumbnails
from service.media.sandbox import Sandbox, SandboxLimits

MEBIBYTE = 1 << 20


def limits(**changes: object) -> SandboxLimits:
    generous = {
        "wall_seconds": 60.0,
        "cpu_seconds": 60,
        "memory_bytes": 2048 * MEBIBYTE,
        "max_bytes": 1 << 40,
        "max_seconds": float("inf"),
        "max_pixels": 8192 * 4352,
    }
    return SandboxLimits(**{**generous, **changes})


def make(path: Path, milliseconds: int = 0, **changes: object) -> bytes:
    thumbnails = Thumbnails(width=64, cache_bytes=0, max_queue=4, sandbox=Sandbox(limits(**changes)))
    return thumbnails.make(Moment(video_id="v", path=path, milliseconds=milliseconds))


def huge_film(path: Path, side: int) -> None:
    """A film of one black PNG of ``side`` × ``side`` pixels: less than a megabyte, and gigabytes when decoded."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(bytes(1 + 3 * side)) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    picture = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    with av.open(str(path), "w", format="mov") as out:
        stream = out.add_stream("png", rate=1)
        stream.width = stream.height = side
        stream.pix_fmt = "rgb24"
        packet = av.Packet(picture)
        packet.stream, packet.pts, packet.dts, packet.is_keyframe = stream, 0, 0, True
        packet.time_base = Fraction(1, 1000)
        out.mux(packet)


def film(path: Path, frames: int, *, gop: int) -> None:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=30, options={"preset": "ultrafast", "sc_threshold": "0"})
        stream.width = stream.height = 64
        stream.codec_context.gop_size = gop
        for number in range(frames):
            pixels = np.full((64, 64, 3), number % 256, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(stream.encode(None))


def test_a_picture_of_gigabytes_costs_the_service_nothing(tmp_path):
    huge_film(tmp_path / "huge.mov", 8_000)
    assert (tmp_path / "huge.mov").stat().st_size < 2 * MEBIBYTE
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Unprocessable, match="pixels"):
        make(tmp_path / "huge.mov")
    with pytest.raises(
        Unprocessable, match=r"memory|cannot be decoded|allocate|larger than"
    ):  # also where its size is allowed, but not its memory
        make(tmp_path / "huge.mov", max_pixels=1 << 27, memory_bytes=512 * MEBIBYTE)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # kibibytes


def test_a_thumbnail_that_takes_too_long_is_given_up(tmp_path):
    film(tmp_path / "a.mp4", 60, gop=1000)
    start = time.monotonic()
    with pytest.raises(Unprocessable, match="decoding took longer than"):
        make(tmp_path / "a.mp4", 1900, wall_seconds=0.001)
    assert time.monotonic() - start < 30


def test_indexed_files_may_be_larger_than_what_memory_holds(tmp_path):
    film(tmp_path / "a.mp4", 60, gop=30)
    with (tmp_path / "a.mp4").open("ab") as file:  # a free box of 3 GiB, all hole
        file.write(struct.pack(">I4sQ", 1, b"free", 3 << 30))
        file.truncate(file.tell() + (3 << 30) - 16)
    picture = make(tmp_path / "a.mp4", 1000)
    assert picture.startswith(b"\xff\xd8")


def test_a_file_that_vanished_has_no_picture(tmp_path):
    with pytest.raises(Unprocessable, match="no picture can be made"):
        make(tmp_path / "gone.mp4")
    film(tmp_path / "a.mp4", 2, gop=1)
    with (tmp_path / "a.mp4").open("rb") as file, pytest.raises(TooLarge):
        Sandbox(limits(max_bytes=10)).picture(file, at_seconds=0, width=64)


def test_pictures_are_made_at_the_same_time_and_one_bad_file_costs_the_others_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    film(tmp_path / "a.mp4", 30, gop=10)
    together = threading.Barrier(2, timeout=60)  # broken, and the test with it, unless two are made at once
    made = []

    class Counting(Sandbox):
        def picture(self, file, **options):
            made.append(options["at_seconds"])
            together.wait()
            return super().picture(file, **options)

    async def scenario():
        thumbnails = Thumbnails(width=64, cache_bytes=10**6, max_queue=8, sandbox=Counting(limits()))
        wanted = [
            Moment(video_id="a", path=tmp_path / "a.mp4", milliseconds=0),
            Moment(video_id="gone", path=tmp_path / "gone.mp4", milliseconds=0),
            Moment(video_id="a", path=tmp_path / "a.mp4", milliseconds=500),
        ]
        pending = [asyncio.create_task(thumbnails.picture(moment)) for moment in wanted]
        await asyncio.sleep(0)  # all wait in the queue before the first batch is taken
        thumbnails.start()
        try:
            return await asyncio.gather(*pending, return_exceptions=True)
        finally:
            await thumbnails.close()

    first, gone, second = asyncio.run(scenario())
    assert first[:2] == second[:2] == b"\xff\xd8"
    assert isinstance(gone, Unprocessable)
    assert sorted(made) == [0, 0.5]
