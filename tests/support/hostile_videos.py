"""More than two hundred files that mean no good, the same for the same seed: what strangers might upload as a video.

``corpus`` gives them by group. Whole, small clips in every container are made first (``bases``); most files are one of
these with something flipped, cut off or made false, the others are written byte by byte (``hostile_containers``) or
are no videos at all. ``outcome`` says what is known of the answer: "accepted" files are whole, "refused" ones hold no
video, and of the others a decoder may make something or not.
"""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

from hostile_clips import bases, clip, jpeg
from hostile_containers import (
    FTYP,
    avc_configuration,
    block,
    box,
    cluster,
    element,
    find_box,
    gif,
    matroska,
    number,
    other_track,
    quicktime,
    track,
    video_track,
    windows_picture,
)
from hostile_files import Bait, others, pointers, polyglots, strangers

SEED = 7
Outcome = Literal["accepted", "refused", "either"]


@dataclass(frozen=True, kw_only=True)
class Hostile:
    """One file. ``name`` is its group and what is wrong with it."""

    name: str
    content: bytes
    outcome: Outcome = "either"

    @property
    def group(self) -> str:
        """The first word of its name."""
        return self.name.split()[0]


def corpus(bait: Bait, seed: int = SEED) -> list[Hostile]:
    """All of them, in groups."""
    found = [Hostile(name=f"whole {name}", content=content, outcome="accepted") for name, content in bases().items()]
    for make in (flips, truncations, lies, headers, bombs, timestamps, streams, others):
        found += [Hostile(name=f"{make.__name__} {name}", content=content) for name, content in make(seed)]
    found += [Hostile(name=f"pointers {name}", content=made, outcome="refused") for name, made in pointers(bait)]
    found += [Hostile(name=f"strangers {name}", content=made, outcome="refused") for name, made in strangers(seed)]
    found += [Hostile(name=f"polyglots {name}", content=made) for name, made in polyglots()]
    return found


# -- damage -----------------------------------------------------------------------------------------------------------


def flips(seed: int) -> Iterator[tuple[str, bytes]]:
    """Bits turned over, few and many, in headers, in the index and in the pictures."""
    rng = random.Random(seed)
    for name, content in bases().items():
        regions = {"anywhere": (0, len(content)), "header": (0, min(300, len(content)))}
        if name in ("mp4", "faststart", "mov"):
            regions |= {kind: find_box(content, kind.encode()) for kind in ("moov", "mdat")}
        for region, (start, end) in regions.items():
            for count in (1, 12, max(20, (end - start) // 20)):
                damaged = bytearray(content)
                for _ in range(count):
                    damaged[rng.randrange(start, end)] ^= 1 << rng.randrange(8)
                yield f"{name} {count} in {region}", bytes(damaged)


def truncations(seed: int) -> Iterator[tuple[str, bytes]]:
    """Cut off at the end or the beginning, with a hole, or with a part twice."""
    rng = random.Random(seed)
    for name, content in bases().items():
        half = len(content) // 2
        for share in (0.02, 0.4, 0.9):
            yield f"{name} to {share:g}", content[: int(len(content) * share)]
        hole = rng.randrange(half)
        yield f"{name} with a hole", content[:hole] + content[hole + rng.randrange(1, half) :]
    whole = bases()["mp4"]
    yield "mp4 without its last byte", whole[:-1]
    yield "mp4 without its beginning", whole[100:]
    yield "mp4 twice", whole * 2
    yield "ts joined to another of other size", bases()["ts"] + clip("mpegts", "mpeg2video", rate=25, size=(640, 480))


# -- false headers ----------------------------------------------------------------------------------------------------

_STBL = (b"moov", b"trak", b"mdia", b"minf", b"stbl")
_MOST = 2**32 - 1
# name, path of the box, byte behind its header, format, values
_CLAIMS = (
    ("mvhd timescale", (b"moov", b"mvhd"), 12, ">I", (0, 1, _MOST)),
    ("mvhd duration", (b"moov", b"mvhd"), 16, ">I", (0, _MOST)),
    ("tkhd size", (b"moov", b"trak", b"tkhd"), 76, ">II", ((0, 0), (_MOST, _MOST))),
    ("mdhd timescale", (b"moov", b"trak", b"mdia", b"mdhd"), 12, ">I", (0, 1, _MOST)),
    ("mdhd duration", (b"moov", b"trak", b"mdia", b"mdhd"), 16, ">I", (0, 2**31)),
    ("stsd size", (*_STBL, b"stsd"), 40, ">HH", ((0, 0), (1, 1), (65535, 65535), (16384, 16384))),
    ("stsd count", (*_STBL, b"stsd"), 4, ">I", (0, 1000, _MOST)),
    ("stts count", (*_STBL, b"stts"), 8, ">I", (0, 1, _MOST)),
    ("stts delta", (*_STBL, b"stts"), 12, ">I", (0, 2**31 - 1, _MOST)),
    ("stts entries", (*_STBL, b"stts"), 4, ">I", (0, _MOST)),
    ("stsz size", (*_STBL, b"stsz"), 4, ">I", (1, _MOST)),
    ("stsz count", (*_STBL, b"stsz"), 8, ">I", (0, 2**27, _MOST)),
    ("stsz first", (*_STBL, b"stsz"), 12, ">I", (0, _MOST)),
    ("stco offset", (*_STBL, b"stco"), 8, ">I", (0, 2**31, _MOST)),
    ("stco count", (*_STBL, b"stco"), 4, ">I", (0, _MOST)),
    ("stsc row", (*_STBL, b"stsc"), 8, ">III", ((0, 0, 0), (1, _MOST, 1), (_MOST, 1, 9))),
    ("elst start", (b"moov", b"trak", b"edts", b"elst"), 12, ">i", (-1, -(2**31), 2**31 - 1)),
    ("elst duration", (b"moov", b"trak", b"edts", b"elst"), 8, ">I", (0, _MOST)),
)


def lies(seed: int) -> Iterator[tuple[str, bytes]]:
    """An MP4 that is whole but for one number in its index, or the size of one box."""
    content = bases()["mp4"]
    for name, path, at, form, values in _CLAIMS:
        start, _ = find_box(content, *path)
        for value in values:
            claimed = bytearray(content)
            struct.pack_into(form, claimed, start + 8 + at, *(value if isinstance(value, tuple) else (value,)))
            yield f"{name} {value}", bytes(claimed)
    for path in ((b"ftyp",), (b"moov",), (b"mdat",), (b"moov", b"trak"), _STBL, (*_STBL, b"stsd")):
        start, _ = find_box(content, *path)
        for size in (0, 1, 7, _MOST):
            claimed = bytearray(content)
            struct.pack_into(">I", claimed, start, size)
            yield f"size {size} of {path[-1].decode()}", bytes(claimed)


def headers(seed: int) -> Iterator[tuple[str, bytes]]:
    """Matroska, FLV and AVI that claim what cannot be."""
    shown = [cluster(0, block(jpeg()))]
    for claim in (0.0, -1.0, 1e300, float("inf"), float("nan")):
        yield f"mkv of duration {claim}", matroska([video_track(b"V_MJPEG")], shown, duration=claim)
    for width, height in ((0, 0), (1, 2**31), (2**40, 2**40), (16384, 16384)):
        made = matroska([video_track(b"V_MJPEG", width=width, height=height)], shown)
        yield f"mkv of {width} x {height}", made
    for scale in (0, 1, 2**63):
        yield f"mkv of scale {scale}", matroska([video_track(b"V_MJPEG")], shown, scale=scale)
    for size in (0, 5, 2**56 - 2):
        yield f"mkv segment of {size}", matroska([video_track(b"V_MJPEG")], shown, size=size)
        yield f"mkv cluster of {size}", matroska([video_track(b"V_MJPEG")], [cluster(0, block(jpeg()), size=size)])
    yield "mkv nested 2000 deep", matroska([video_track(b"V_MJPEG")], shown, others=_nested(2000))
    avi = bases()["avi"]
    for name, at, form, value in (
        ("rate", 132, "<II", (0, 0)),
        ("fps", 132, "<II", (1, _MOST)),
        ("size", 64, "<II", (_MOST, _MOST)),
    ):
        claimed = bytearray(avi)
        struct.pack_into(form, claimed, at, *value)
        yield f"avi {name} {value}", bytes(claimed)


def _nested(depth: int) -> bytes:
    made = b""
    for _ in range(depth):
        made = element(0x45B9, made) if len(made) < 60_000 else made  # EditionEntry in EditionEntry in …
    return element(0x1043A770, made)


# -- bombs ------------------------------------------------------------------------------------------------------------


def bombs(seed: int) -> Iterator[tuple[str, bytes]]:
    """Little that becomes much: in pixels, frames, seconds or bytes."""
    for width, height in ((1, 1), (1, 16384), (16384, 1), (65535, 1), (16384, 16384), (65535, 65535), (4096, 2176)):
        yield f"gif of {width} x {height}", gif((width, height), 3, frame=(width, height))
        yield f"gif of pixels on {width} x {height}", gif((width, height), 3)
    yield "gif of 20000 frames", gif((1, 1), 20_000)
    yield "gif of 3000 frames on 4096 x 2176", gif((4096, 2176), 3_000)
    yield "gif of 6553 seconds", gif((2, 2), 10, delay=65535)
    for width, height in ((16384, 16384), (65500, 65500), (0, 0)):
        sized = bytearray(jpeg())
        struct.pack_into(">HH", sized, sized.index(b"\xff\xc0") + 5, height, width)
        yield f"mov of a jpeg of {width} x {height}", quicktime(bytes(sized))
        yield (
            f"mkv of a jpeg of {width} x {height}",
            matroska([video_track(b"V_MJPEG")], [cluster(0, block(bytes(sized)))]),
        )
    vp8 = bytearray(bases()["webm"])
    struct.pack_into("<HH", vp8, vp8.index(b"\x9d\x01\x2a") + 3, 16383, 16383)
    yield "webm of a VP8 frame of 16383 x 16383", bytes(vp8)
    for side in (16, 16384, 65536):
        made = [video_track(b"V_MPEG4/ISO/AVC", private=avc_configuration(side, side))]
        yield f"mkv of an H.264 header of {side} x {side}", matroska(made, [cluster(0, block(bytes(200) + b"\x65"))])
    yield "mov of 200000 samples in one byte range", _repeated(200_000)
    yield "mov of 2**32 - 1 empty samples", quicktime(jpeg(), sizes=(), count=_MOST, times=((_MOST, 1),))
    yield (
        "mov of 2**30 samples of one byte",
        quicktime(jpeg(), sizes=(), uniform_size=1, count=2**30, times=((2**30, 1),), chunks=((1, 2**30, 1),)),
    )
    yield "mov of one frame for ten years", quicktime(jpeg(), times=((1, 2**31),), timescale=7)
    yield "mov of four thousand million frames a second", quicktime(jpeg(), times=((1, 1),), timescale=_MOST)
    yield "mov of a packed index of gigabytes", FTYP + box(b"mdat", jpeg()) + _packed_index(64 << 20)
    packed = element(0x6D80, element(0x6240, element(0x5034, number(0x4254, 0))))
    data = zlib.compress(bytes(32 << 20), 9)
    yield "mkv of packed frames", matroska([video_track(b"V_MJPEG", extra=packed)], [cluster(0, block(data))])
    picture = windows_picture(b"MPNG", 4096, 2176)
    frame = block(_png(4096, 2176))
    made = [video_track(b"V_MS/VFW/FOURCC", width=4096, height=2176, private=picture)]
    yield "mkv of pngs at the limit", matroska(made, [cluster(second * 1000, frame) for second in range(8)])
    picture = windows_picture(b"MPNG", 30000, 30000)
    made = [video_track(b"V_MS/VFW/FOURCC", private=picture)]
    yield "mkv of a png of 30000 x 3", matroska(made, [cluster(0, block(_png(30000, 3)))])


def _repeated(count: int) -> bytes:
    claims = {"sizes": (), "uniform_size": len(jpeg()), "count": count, "times": ((count, 1),), "timescale": 1000}
    return quicktime(jpeg(), offsets=(len(FTYP) + 8,) * count, **claims)


def _packed_index(size: int) -> bytes:
    data = zlib.compress(bytes(size), 9)
    cmvd = box(b"cmvd", struct.pack(">I", size), data)
    return box(b"moov", box(b"cmov", box(b"dcom", b"zlib"), cmvd))


@cache
def _png(width: int, height: int) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    return file.getvalue()


def timestamps(seed: int) -> Iterator[tuple[str, bytes]]:
    """Times that jump, run backwards, stand still, are negative or beyond all bounds."""
    rng = random.Random(seed)
    made = [video_track(b"V_MJPEG")]
    series = {
        "backwards": [5000, 4000, 3000, 0],
        "standing still": [1000] * 6,
        "years apart": [0, 10**11, 2 * 10**11],
        "beyond 64 bits": [0, 2**62, 2**63 - 1, 2**64 - 1],
        "random": [rng.randrange(2**40) for _ in range(8)],
        "begins late": [10**9, 10**9 + 500],
    }
    for name, times in series.items():
        yield f"mkv {name}", matroska(made, [cluster(time, block(jpeg())) for time in times])
    yield "mkv negative", matroska(made, [cluster(0, block(jpeg(), -32768), block(jpeg(), 0), block(jpeg(), 32767))])
    for start in (-5, 2**31, 10**12):
        yield f"mp4 from frame {start}", clip("mp4", "libx264", start=start)
    yield "ts with a jump of a day", bases()["ts"] + clip("mpegts", "mpeg2video", rate=25, start=86_400 * 25)
    yield "ts of 40 bits", clip("mpegts", "mpeg2video", rate=25, start=2**40)
    flv = bytearray(bases()["flv"])
    for at in range(13, len(flv) - 11, 97):
        flv[at] = rng.randrange(256)
    yield "flv random", bytes(flv)


# -- streams and other media ------------------------------------------------------------------------------------------


def streams(seed: int) -> Iterator[tuple[str, bytes]]:
    """Too many of them, or a picture among many others."""
    shown = [cluster(0, block(jpeg()))]
    yield "a thousand videos in mkv", matroska([video_track(b"V_MJPEG", number_=n + 1) for n in range(1000)], shown)
    subtitles = [other_track(n + 2, 17, b"S_TEXT/UTF8") for n in range(999)]
    yield "a thousand subtitles in mkv", matroska([video_track(b"V_MJPEG"), *subtitles], shown)
    yield "a thousand videos in mov", quicktime(jpeg(), [_track_of_jpeg(n + 1) for n in range(1000)])
    yield "five thousand videos in mov", quicktime(jpeg(), [_track_of_jpeg(n + 1) for n in range(5000)])
    yield "the same number twice in mkv", matroska([video_track(b"V_MJPEG")] * 2, shown)
    yield "no streams in mkv", matroska([], shown)
    yield "no tracks in mov", quicktime(jpeg(), [])
    yield "an unknown codec in mkv", matroska([video_track(b"V_NO/SUCH/CODEC")], shown)
    yield "an unknown codec in mov", quicktime(jpeg(), codec=b"zzzz")
    yield "a frame in the wrong codec", matroska([video_track(b"V_VP9")], shown)


def _track_of_jpeg(number_: int) -> bytes:
    return track(number=number_, sizes=(len(jpeg()),), offsets=(len(FTYP) + 8,))
