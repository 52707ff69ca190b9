"""Writers of MP4 and Matroska files, GIFs and H.264 headers that say whatever a test wants them to say.

Nothing is checked here: a count may be larger than what follows, a size may be 2**32 - 1, and two thousand samples may
give a false value in the same byte. ``tests/hostile_videos.py`` makes its bombs and lies of these.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

# -- ISO base media ---------------------------------------------------------------------------------------------------

_MATRIX = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
_INNER = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"dinf", b"udta"}


def box(kind: bytes, *parts: bytes) -> bytes:
    """One box with its true size."""
    content = b"".join(parts)
    return struct.pack(">I4s", 8 + len(content), kind) + content


def full(kind: bytes, *parts: bytes, flags: int = 0) -> bytes:
    """A box with version 0 and flags."""
    return box(kind, struct.pack(">I", flags), *parts)


def find_box(content: bytes, *path: bytes) -> tuple[int, int]:
    """Where a box of ``content`` begins and ends, header included, by the names on the way to it."""
    start, end = 0, len(content)
    for depth, wanted in enumerate(path):
        at = start
        while at + 8 <= end:
            size, kind = struct.unpack_from(">I4s", content, at)
            if kind == wanted:
                start, end = (at, at + size) if depth == len(path) - 1 else (at + 8, at + size)
                break
            at += max(size, 8)
        else:
            raise LookupError(f"there is no {wanted!r} on the way {path}")
    return start, end


def track(
    *,
    number: int = 1,
    width: int = 64,
    height: int = 48,
    timescale: int = 10,
    duration: int = 10,
    handler: bytes = b"vide",
    codec: bytes = b"jpeg",
    times: Sequence[tuple[int, int]] = ((1, 1),),
    sizes: Sequence[int] | tuple[int, int] = (0, 0),
    uniform_size: int = 0,
    count: int | None = None,
    chunks: Sequence[tuple[int, int, int]] = ((1, 1, 1),),
    offsets: Sequence[int] = (0,),
    reference: bytes = full(b"url ", flags=1),
) -> bytes:
    """A ``trak``. ``times`` are (count, delta), ``chunks`` (first, samples, description), ``reference`` is the dref."""
    entry = box(
        codec,
        bytes(6),
        struct.pack(">H", 1),
        bytes(16),
        struct.pack(">HH", width & 0xFFFF, height & 0xFFFF),
        struct.pack(">IIIH", 0x480000, 0x480000, 0, 1),
        bytes(32),
        struct.pack(">Hh", 24, -1),
    )
    table = b"" if uniform_size else struct.pack(f">{len(sizes)}I", *sizes)
    stbl = box(
        b"stbl",
        full(b"stsd", struct.pack(">I", 1), entry),
        full(b"stts", struct.pack(">I", len(times)), *(struct.pack(">II", *pair) for pair in times)),
        full(b"stsc", struct.pack(">I", len(chunks)), *(struct.pack(">III", *row) for row in chunks)),
        full(b"stsz", struct.pack(">II", uniform_size, len(sizes) if count is None else count), table),
        full(b"stco", struct.pack(">I", len(offsets)), struct.pack(f">{len(offsets)}I", *offsets)),
    )
    dinf = box(b"dinf", full(b"dref", struct.pack(">I", 1), reference))
    minf = box(b"minf", full(b"vmhd", bytes(8), flags=1), dinf, stbl)
    mdhd = full(b"mdhd", struct.pack(">IIIIHH", 0, 0, timescale, duration, 0x55C4, 0))
    hdlr = full(b"hdlr", bytes(4), handler, bytes(13))
    tkhd = full(
        b"tkhd",
        struct.pack(">IIIII", 0, 0, number, 0, duration),
        bytes(16),
        _MATRIX,
        struct.pack(">II", (width & 0xFFFF) << 16, (height & 0xFFFF) << 16),
        flags=3,
    )
    return box(b"trak", tkhd, box(b"mdia", mdhd, hdlr, minf))


def movie(tracks: Iterable[bytes], *, timescale: int = 10, duration: int = 10) -> bytes:
    """A ``moov`` of some tracks."""
    mvhd = full(
        b"mvhd",
        struct.pack(">IIIIIH", 0, 0, timescale, duration, 0x10000, 0x100),
        bytes(10),
        _MATRIX,
        bytes(24),
        struct.pack(">I", 2),
    )
    return box(b"moov", mvhd, *tracks)


FTYP = box(b"ftyp", b"qt  ", struct.pack(">I", 512), b"qt  ")


def quicktime(sample: bytes, tracks: Sequence[bytes] | None = None, **claims: object) -> bytes:
    """A MOV whose ``mdat`` comes first, so that its one sample is at byte ``len(FTYP) + 8``."""
    head = FTYP + box(b"mdat", sample)
    if tracks is None:
        given = {"sizes": (len(sample),), "offsets": (len(FTYP) + 8,), **claims}
        tracks = [track(**given)]  # type: ignore[arg-type]
    return head + movie(tracks)


# -- Matroska ---------------------------------------------------------------------------------------------------------


def element(identity: int, *parts: bytes, size: int | None = None) -> bytes:
    """One EBML element; ``size`` may be false, and -1 is "unknown"."""
    content = b"".join(parts)
    length = len(content) if size is None else size
    coded = (1 << 56) - 1 if length == -1 else length
    raw = identity.to_bytes((identity.bit_length() + 7) // 8, "big")
    return raw + (coded | 1 << 56).to_bytes(8, "big") + content


def number(identity: int, value: int) -> bytes:
    """An element with an unsigned integer."""
    return element(identity, value.to_bytes(max(1, (value.bit_length() + 7) // 8), "big"))


def video_track(
    codec: bytes, *, width: int = 64, height: int = 48, number_: int = 1, private: bytes = b"", extra: bytes = b""
) -> bytes:
    """A TrackEntry of a video."""
    return element(
        0xAE,
        number(0xD7, number_),
        number(0x73C5, number_),
        number(0x83, 1),
        element(0x86, codec),
        element(0x63A2, private) if private else b"",
        extra,
        element(0xE0, number(0xB0, width), number(0xBA, height)),
    )


def other_track(number_: int, kind: int, codec: bytes) -> bytes:
    """A TrackEntry of another kind: 2 is sound, 17 subtitles."""
    return element(0xAE, number(0xD7, number_), number(0x73C5, number_), number(0x83, kind), element(0x86, codec))


def block(data: bytes, time: int = 0, *, track_number: int = 1, flags: int = 0x80) -> bytes:
    """A SimpleBlock, its time relative to its cluster's."""
    return element(0xA3, bytes([0x80 | track_number]), struct.pack(">hB", time, flags), data)


def cluster(time: int, *blocks: bytes, size: int | None = None) -> bytes:
    """A Cluster."""
    return element(0x1F43B675, number(0xE7, time), *blocks, size=size)


def matroska(
    tracks: Iterable[bytes],
    clusters: Iterable[bytes],
    *,
    duration: float | None = None,
    scale: int = 1_000_000,
    others: bytes = b"",
    size: int | None = -1,
) -> bytes:
    """A whole file; ``others`` (attachments, chapters, tags) come before the clusters."""
    head = element(0x1A45DFA3, number(0x4286, 1), number(0x42F7, 1), element(0x4282, b"matroska"), number(0x4287, 4))
    info = [number(0x2AD7B1, scale)]
    if duration is not None:
        info.append(element(0x4489, struct.pack(">d", duration)))
    parts = [element(0x1549A966, *info), element(0x1654AE6B, *tracks), others, *clusters]
    return head + element(0x18538067, *parts, size=size)


def windows_picture(fourcc: bytes, width: int, height: int) -> bytes:
    """The CodecPrivate of V_MS/VFW/FOURCC: a BITMAPINFOHEADER."""
    return struct.pack("<IiiHH4sIiiII", 40, width, height, 1, 24, fourcc, 0, 0, 0, 0, 0)


# -- H.264 and GIF ----------------------------------------------------------------------------------------------------


def _exp_golomb(value: int) -> str:
    code = f"{value + 1:b}"
    return "0" * (len(code) - 1) + code


def sequence_parameters(width: int, height: int) -> bytes:
    """A sequence parameter set of H.264 baseline that announces frames of so many pixels, in macroblocks of 16."""
    bits = f"{66:08b}{0xC0:08b}{62:08b}"
    bits += _exp_golomb(0) + _exp_golomb(0) + _exp_golomb(2) + _exp_golomb(1) + "0"
    bits += _exp_golomb(width // 16 - 1) + _exp_golomb(height // 16 - 1) + "1100" + "1"
    bits += "0" * (-len(bits) % 8)
    raw = int(bits, 2).to_bytes(len(bits) // 8, "big")
    return b"\x67" + raw.replace(b"\0\0\0", b"\0\0\3\0").replace(b"\0\0\1", b"\0\0\3\1")


def avc_configuration(width: int, height: int) -> bytes:
    """The ``avcC`` for such frames, with a picture parameter set."""
    sps, pps = sequence_parameters(width, height), bytes.fromhex("68ce3c80")
    head = b"\1" + sps[1:4] + b"\xff\xe1"
    return head + struct.pack(">H", len(sps)) + sps + b"\1" + struct.pack(">H", len(pps)) + pps


_ONE_PIXEL = bytes.fromhex("0202440100")  # LZW: clear, 0, end


def gif(canvas: tuple[int, int], frames: int, *, delay: int = 10, frame: tuple[int, int] = (1, 1)) -> bytes:
    """An animation of single pixels on a canvas; ``frame`` is the size that each frame claims."""
    head = b"GIF89a" + struct.pack("<HHBBB", *canvas, 0x80, 0, 0) + bytes(3) + b"\xff" * 3
    control = b"\x21\xf9\x04\x04" + struct.pack("<HBB", delay, 0, 0)
    one = control + b"\x2c" + struct.pack("<HHHHB", 0, 0, *frame, 0) + _ONE_PIXEL
    return head + one * frames + b"\x3b"
