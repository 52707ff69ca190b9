"""Every format of the table is read, and what is not read is called so."""

import re
from pathlib import Path

import av
import numpy as np
import pytest

from model.config import SamplingConfig
from model.video import formats
from model.video.container import open_video
from model.video.sampling import decode, decode_frame, probe
from model.video.types import DecodeLimits, NotAVideo

RATE, FRAMES = 25, 50
# Suffix: muxer, encoder, pixel format, size, options.
WRITERS = {
    ".mp4": ("mp4", "libx264", "yuv420p", (96, 64), {"bf": "2"}),
    ".f4v": ("f4v", "libx264", "yuv420p", (96, 64), {}),
    ".mkv": ("matroska", "libx264", "yuv420p", (96, 64), {}),
    ".avi": ("avi", "mpeg4", "yuv420p", (96, 64), {}),
    ".mod": ("vob", "mpeg2video", "yuv420p", (96, 64), {}),
    ".mts": ("mpegts", "libx264", "yuv420p", (96, 64), {}),
    ".wmv": ("asf", "wmv2", "yuv420p", (96, 64), {}),
    ".flv": ("flv", "flv", "yuv420p", (96, 64), {}),
    ".ogv": ("ogg", "libvpx", "yuv420p", (96, 64), {}),
    ".mxf": ("mxf", "mpeg2video", "yuv420p", (96, 64), {}),
    ".dv": ("dv", "dvvideo", "yuv420p", (720, 576), {}),
    ".y4m": ("yuv4mpegpipe", "wrapped_avframe", "yuv420p", (96, 64), {}),
    ".ivf": ("ivf", "libvpx", "yuv420p", (96, 64), {}),
    ".h264": ("h264", "libx264", "yuv420p", (96, 64), {"bf": "2", "g": "10"}),
    ".avc": ("h264", "libx264", "yuv420p", (96, 64), {"bf": "0", "g": "10"}),
    ".hevc": ("hevc", "libx265", "yuv420p", (96, 64), {"x265-params": "log-level=0:keyint=10"}),
    ".m2v": ("mpeg2video", "mpeg2video", "yuv420p", (96, 64), {}),
    ".mjpeg": ("mjpeg", "mjpeg", "yuvj420p", (96, 64), {}),
    ".gif": ("gif", "gif", "rgb8", (96, 64), {}),
}


def write(path, suffix):
    muxer, encoder, pixels, size, options = WRITERS[suffix]
    if encoder not in av.codecs_available:
        pytest.skip(f"this FFmpeg does not encode {encoder}")
    with av.open(str(path), "w", format=muxer) as out:
        stream = out.add_stream(encoder, rate=RATE, options=options)
        (stream.width, stream.height), stream.pix_fmt = size, pixels
        for number in range(FRAMES):
            picture = np.full((size[1], size[0], 3), 20 + 4 * number, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def test_every_demuxer_of_the_table_is_tried_here():
    tried = {known.demuxer for known in formats.FORMATS if {*known.suffixes, *known.ambiguous} & set(WRITERS)}
    assert tried == set(formats.DEMUXERS)


def test_the_documentation_has_the_table():
    text = (Path(__file__).parents[3] / "docs" / "indexing.md").read_text("utf-8")
    for known in formats.FORMATS:
        cells = [" ".join(f"`{suffix}`" for suffix in suffixes) for suffixes in (known.suffixes, known.ambiguous)]
        assert re.sub(r" +", " ", f"| {known.name} | {cells[0]} | {cells[1]} |") in text


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_format_gives_its_frames_in_order_at_their_times(tmp_path, suffix):
    path = write(tmp_path / f"clip{suffix}", suffix)
    info = probe(path)
    assert info.duration_seconds == pytest.approx(2.0, abs=0.13)
    batch = decode(path, sampling=SamplingConfig(sample_fps=RATE, max_frames=512))
    assert len(batch) >= FRAMES - 2
    greys = batch.frames.mean(axis=(1, 2, 3))
    expected = 20 + 4 * np.round(batch.timestamps_seconds * RATE)
    np.testing.assert_allclose(greys[:-3], expected[:-3], atol=12)  # coarse palettes, limited range
    assert (np.diff(greys) > -3).all()
    part = decode(path, sampling=SamplingConfig(sample_fps=RATE, max_frames=512), start_seconds=1.0, end_seconds=1.5)
    # A packet of a program stream holds several frames; after a seek FFmpeg's times are half a frame off, four greys.
    near = 4.5 if suffix == ".mod" else 1.0
    np.testing.assert_allclose(part.frames.mean(axis=(1, 2, 3)), greys[25 : 25 + len(part)], atol=near)
    assert decode_frame(path, 1.21).mean() == pytest.approx(greys[30], abs=near)


@pytest.mark.parametrize("suffix", [".h264", ".avc", ".hevc"])
def test_raw_streams_are_entered_at_their_key_frames(tmp_path, suffix):
    path = write(tmp_path / f"clip{suffix}", suffix)
    with open_video(path, DecodeLimits()) as video:
        video.rewind(None)
        everything = [video.packet_time(packet) for packet in video.packets()]
        video.rewind(video.time(1.0))
        part = [video.packet_time(packet) for packet in video.packets()]
    assert len(part) < len(everything) - 10
    assert part == everything[-len(part) :]


def test_what_is_not_read_is_called_so(tmp_path):
    (tmp_path / "song.rm").write_bytes(b".RMF\0\0\0\x12\0\1" + bytes(range(256)) * 8)
    with pytest.raises(NotAVideo, match=r"a format that is not read here, or is not a video.*expected one of MP4, MOV"):
        probe(tmp_path / "song.rm")
    (tmp_path / "notes.mp4").write_text("shopping list\n" * 50)
    with pytest.raises(NotAVideo, match="is not a video: it holds text"):
        probe(tmp_path / "notes.mp4")
