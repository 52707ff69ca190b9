"""The formats that are read, in one place: FFmpeg's demuxers that may open a file, and the suffixes of such files."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """A container. Files with one of ``suffixes`` are looked for in folders.

    Those with one of ``ambiguous`` mostly hold something else (TypeScript, pictures, music) and are read if they are
    named.
    """

    name: str
    demuxer: str
    suffixes: tuple[str, ...]
    ambiguous: tuple[str, ...] = ()


# In order of preference where a data set has a video in several formats.
FORMATS = (
    Format("MP4, MOV", "mov", (".mp4", ".mov", ".m4v", ".3gp", ".3g2", ".f4v", ".lrv", ".insv", ".qt")),
    Format("Matroska, WebM", "matroska", (".webm", ".mkv", ".mk3d")),
    Format("AVI", "avi", (".avi", ".divx")),
    Format("MPEG program stream", "mpeg", (".mpg", ".mpeg", ".mpe", ".vob", ".mod", ".m2p"), (".mp2",)),
    Format("MPEG transport stream", "mpegts", (".mts", ".m2ts", ".m2t", ".tod"), (".ts",)),
    Format("WMV, ASF", "asf", (".wmv", ".asf")),
    Format("Flash Video", "flv", (".flv",)),
    Format("Ogg", "ogg", (".ogv", ".ogm"), (".ogg",)),
    Format("MXF", "mxf", (".mxf",)),
    Format("DV", "dv", (".dv",)),
    Format("YUV4MPEG", "yuv4mpegpipe", (".y4m",)),
    Format("IVF", "ivf", (".ivf",)),
    Format("raw H.264", "h264", (".h264", ".264", ".avc")),
    Format("raw HEVC", "hevc", (".h265", ".265", ".hevc")),
    Format("raw MPEG video", "mpegvideo", (".m2v", ".m1v")),
    Format("Motion JPEG", "mjpeg", (".mjpeg", ".mjpg")),
    Format("GIF", "gif", (), (".gif",)),
)

# The demuxers that may read an input. Every other one that FFmpeg has is refused, above all those that make it open
# other files or addresses (HLS and DASH playlists, concat scripts, SDP, image sequences).
DEMUXERS = tuple(known.demuxer for known in FORMATS)
SUFFIXES = frozenset(suffix for known in FORMATS for suffix in known.suffixes)
"""Suffixes that mean a video, in lower case."""
ALL_SUFFIXES = tuple(suffix for known in FORMATS for suffix in (*known.suffixes, *known.ambiguous))
"""These, and those that mean one where a video is expected, in order of preference."""
COUNTED = frozenset({"h264", "hevc"})
"""Demuxers without any clock: the time of a frame is its number."""


def names() -> str:
    """What is read, for people."""
    return ", ".join(known.name for known in FORMATS)
