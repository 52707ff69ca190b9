"""Not a video, false headers, damage: decoding fails with a type and a reason, reads no other file, never crashes."""

from __future__ import annotations

import io
import os
import random
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from model.config import SamplingConfig
from model.video.sampling import (
    DecodeLimits,
    NoFrames,
    NotAVideo,
    NoVideoStream,
    OverLimit,
    VideoError,
    decode,
    decode_frame,
    probe,
)

SAMPLING = SamplingConfig(sample_fps=5)
READERS = {
    "probe": lambda source: probe(source),
    "decode": lambda source: decode(source, sampling=SAMPLING),
    "keyframes": lambda source: decode(source, sampling=SamplingConfig(strategy="keyframes")),
    "window": lambda source: decode(source, sampling=SAMPLING, start_seconds=0.8, end_seconds=1.6),
    "decode_frame": lambda source: decode_frame(source, 1.0),
}


@pytest.fixture(params=READERS, scope="module")
def read(request):
    """Each way to open a video; all must fail alike."""
    return READERS[request.param]


def video(container="mp4", codec="libx264", *, size=(96, 64), frames=50, start=0, muxer=None, **options) -> bytes:
    """Two seconds of grey frames that get brighter: frame i has the level 20 + 4 i."""
    file = container if isinstance(container, Path) else io.BytesIO()
    with av.open(file, "w", format=None if isinstance(container, Path) else container, options=muxer or {}) as output:
        stream = output.add_stream(codec, rate=25, options={"g": "10", "bf": "0", **options})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        output.start_encoding()
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((size[1], size[0], 3), 20 + 4 * number, np.uint8))
            frame.pts, frame.time_base = start + number, Fraction(1, 25)
            output.mux(stream.encode(frame))
        if frames:
            output.mux(stream.encode(None))
    return file.read_bytes() if isinstance(file, Path) else file.getvalue()


def audio(container, codec, *, cover=False) -> bytes:
    """A tenth of a second of silence, with or without a cover picture."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=44100, layout="mono")
        picture = output.add_stream("mjpeg", rate=1) if cover else None
        if picture is not None:
            picture.width, picture.height, picture.pix_fmt = 32, 32, "yuvj420p"
            picture.disposition = av.stream.Disposition.attached_pic
            output.mux(picture.encode(av.VideoFrame(32, 32, "yuvj420p")))
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 4410), np.int16), format="s16", layout="mono")
        sound.sample_rate = 44100
        output.mux(stream.encode(sound))
        output.mux(stream.encode(None))
    return file.getvalue()


def picture(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32)).save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def clip() -> bytes:
    return video()


def levels(frames: np.ndarray) -> list[int]:
    """The numbers of the frames of ``video``, from their brightness."""
    return [round((level - 20) / 4) for level in frames.mean(axis=(1, 2, 3))]


# -- no video ---------------------------------------------------------------------------------------------------------


NO_VIDEOS = {
    "empty": b"",
    "one byte": b"\0",
    "text": b"this is not a video\n" * 100,
    "json": b'{"video": "a.mp4"}',
    "garbage": random.Random(0).randbytes(20_000),
    "zeros": bytes(20_000),
    "png": picture("png"),
    "jpeg": picture("jpeg"),
    "webp": picture("webp"),
    "zip": b"PK\3\4" + bytes(100),
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
}


@pytest.mark.parametrize("content", NO_VIDEOS.values(), ids=NO_VIDEOS)
def test_what_is_no_video_is_called_so(read, content, tmp_path):
    (tmp_path / "upload.mp4").write_bytes(content)
    for source in (content, tmp_path / "upload.mp4"):
        with pytest.raises(NotAVideo, match=r"expected|copy"):
            read(source)


SOUNDS = {
    "wav": ("wav", "pcm_s16le", False),
    "flac": ("flac", "flac", False),
    "m4a": ("mp4", "aac", False),
    "mp3": ("mp3", "mp3", False),
    "mp3 with cover": ("mp3", "mp3", True),
    "ogg": ("ogg", "flac", False),
}


@pytest.mark.parametrize("sound", SOUNDS.values(), ids=SOUNDS)
def test_an_audio_file_has_no_video_stream_not_even_its_cover(read, sound):
    container, codec, cover = sound
    with pytest.raises(NoVideoStream, match="no moving pictures"):
        read(audio(container, codec, cover=cover))


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_a_video_of_no_frames_is_called_so(read, container):
    with pytest.raises((NoFrames, NotAVideo, NoVideoStream)):
        read(video(container, frames=0))


def test_a_truncated_mp4_says_that_its_index_is_missing(read, clip):
    with pytest.raises(NotAVideo, match=r"index \(moov\)"):
        read(clip[: len(clip) // 2])


def test_a_folder_and_a_pipe_are_refused_without_waiting(read, tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    for path in (tmp_path, tmp_path / "pipe.mp4"):
        with pytest.raises(NotAVideo, match="not a regular file"):
            read(path)


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:9/a.mp4", "file:///etc/passwd", "concat:a.mp4|b.mp4", "pipe:0", "/dev/zero"]
)
def test_an_address_is_only_ever_a_path(read, address):
    with pytest.raises((FileNotFoundError, NotAVideo)):
        read(address)


# -- reading other files ----------------------------------------------------------------------------------------------


def playlists(target: str) -> dict[str, bytes]:
    return {
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{target}\n#EXT-X-ENDLIST\n".encode(),
        "concat": f"ffconcat version 1.0\nfile '{target}'\n".encode(),
        "dash": (
            '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
            f'mediaPresentationDuration="PT2S"><Period><AdaptationSet><Representation id="1" bandwidth="1">'
            f"<BaseURL>{target}</BaseURL></Representation></AdaptationSet></Period></MPD>"
        ).encode(),
        "sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n",
        "asx": f'<asx version="3.0"><entry><ref href="{target}"/></entry></asx>'.encode(),
        "reference movie": f"[Reference]\nRef1=file://{target}\n".encode(),
    }


@pytest.mark.parametrize("kind", playlists(""))
@pytest.mark.parametrize("name", ["list.mp4", "list.m3u8"])
def test_a_playlist_cannot_make_the_decoder_read_another_file(read, clip, tmp_path, kind, name):
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(clip)
    (tmp_path / name).write_bytes(playlists(str(secret))[kind])
    with pytest.raises(NotAVideo):
        read(tmp_path / name)


# -- limits -----------------------------------------------------------------------------------------------------------


def test_limits_are_checked_before_decoding(clip, tmp_path):
    (tmp_path / "clip.mp4").write_bytes(clip)
    for limits, reason in (
        (DecodeLimits(max_bytes=len(clip) - 1), "bytes"),
        (DecodeLimits(max_seconds=1.5), r"2\.0 s, the limit is 1\.5 s"),
        (DecodeLimits(max_pixels=96 * 64 - 1), "96 x 64 = 6,144 pixels, the limit is 6,143"),
    ):
        for source in (clip, tmp_path / "clip.mp4"):
            with pytest.raises(OverLimit, match=reason):
                probe(source, limits)
            with pytest.raises(OverLimit, match=reason):
                decode(source, sampling=SAMPLING, limits=limits)
            with pytest.raises(OverLimit, match=reason):
                decode_frame(source, 0, limits=limits)


def test_what_is_exactly_at_the_limit_passes(clip):
    limits = DecodeLimits(max_bytes=len(clip), max_seconds=2.0, max_pixels=96 * 64)
    assert len(decode(clip, sampling=SAMPLING, limits=limits)) == 10


@pytest.mark.parametrize("field", ["max_bytes", "max_seconds", "max_pixels"])
def test_a_limit_of_nothing_is_refused(field):
    with pytest.raises(ValueError, match=f"{field} is 0"):
        DecodeLimits(**{field: 0})


def test_a_header_that_claims_small_frames_does_not_get_past_the_limit():
    content = bytearray(video(size=(640, 480)))
    at = content.index(b"avc1", content.index(b"stsd"))
    struct.pack_into(">HH", content, at + 28, 32, 32)
    with pytest.raises(OverLimit, match="pixels"):
        decode(bytes(content), sampling=SAMPLING, limits=DecodeLimits(max_pixels=100_000))


# The larger one is refused by the codec before it is allocated, the other is seen when it comes out.
@pytest.mark.parametrize("size", [(640, 480), (1280, 960)])
@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg2video"])
def test_frames_that_grow_in_mid_stream_do_not_get_past_the_limit(codec, size):
    quiet = {"x265-params": "log-level=none:keyint=10:bframes=0"} if codec == "libx265" else {}
    small = video("mpegts", codec, **quiet)
    large = video("mpegts", codec, size=size, frames=10, start=50, **quiet)
    assert len(decode(small + large, sampling=SAMPLING)) == 12
    with pytest.raises(OverLimit, match="pixels"):
        decode(small + large, sampling=SAMPLING, limits=DecodeLimits(max_pixels=100_000))


# -- damage -----------------------------------------------------------------------------------------------------------


def packets_of(content: bytes) -> list[tuple[int, int]]:
    """Position and size of the video packets in a file."""
    with av.open(io.BytesIO(content)) as container:
        return [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]


def destroy(content: bytes, numbers: range) -> bytes:
    damaged = bytearray(content)
    packets = packets_of(content)
    for number in numbers:
        position, size = packets[number]
        damaged[position + 4 : position + size] = b"\xff" * (size - 4)
    return bytes(damaged)


def test_broken_packets_are_skipped_and_counted(clip):
    # Key frames are 0, 10, 20, 30, 40: without 20, nothing up to 29 can be decoded.
    batch = decode(destroy(clip, range(20, 30)), sampling=SAMPLING)
    assert batch.skipped_packets == 10
    assert levels(batch.frames) == [0, 5, 10, 15, 19, 30, 35, 40, 45]
    assert batch.timestamps_seconds[4] == pytest.approx(19 / 25)


def test_a_broken_beginning_gives_the_first_frame_that_is_whole(clip):
    damaged = destroy(clip, range(10))
    batch = decode(damaged, sampling=SAMPLING)
    assert levels(batch.frames) == [10, 15, 20, 25, 30, 35, 40, 45]
    assert batch.timestamps_seconds[0] == pytest.approx(10 / 25)
    assert levels(decode_frame(damaged, 0)[None]) == [10]
    assert probe(damaged).width == 96


def test_a_window_of_broken_frames_has_no_frames_and_takes_none_from_outside(clip):
    with pytest.raises(NoFrames, match="broken packets"):
        decode(destroy(clip, range(20, 30)), sampling=SAMPLING, start_seconds=20 / 25, end_seconds=30 / 25)


def test_all_packets_broken_is_no_frames(read, clip):
    with pytest.raises(NoFrames, match=r"50 broken packets|no frame"):
        read(destroy(clip, range(50)))


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts", "avi", "flv"])
def test_a_file_that_was_cut_off_gives_what_is_there(container, tmp_path):
    """In an MP4 whose index comes first, the index promises more frames than are there."""
    content = video(container)
    if container == "mp4":
        content = video(tmp_path / "index_first.mp4", muxer={"movflags": "faststart"})
    position, _ = packets_of(content)[31]
    batch = decode(content[:position], sampling=SAMPLING)
    assert levels(batch.frames) == [0, 5, 10, 15, 20, 25, 30]
    assert batch.duration_seconds == pytest.approx(31 / 25, abs=0.05)
    assert probe(content[:position]).duration_seconds == batch.duration_seconds


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts", "avi", "flv"])
def test_mutated_files_raise_video_errors_or_give_frames_and_print_nothing(container, capfd):
    """A seeded handful of flips, cuts and holes; a longer run of the same found no crash and no other error."""
    rng = random.Random(container)
    original = video(container, "mpeg4" if container == "avi" else "libx264")
    outcomes = []
    for _ in range(40):
        content = bytearray(original)
        for _ in range(rng.choice((1, 10, 100))):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        if rng.random() < 0.3:
            del content[rng.randrange(len(content)) :]
        if rng.random() < 0.2:
            del content[: rng.randrange(len(content) + 1) // 2]
        for reader in READERS.values():
            try:
                reader(bytes(content))
                outcomes.append("frames")
            except VideoError as error:
                outcomes.append(str(error))
    assert 10 < outcomes.count("frames") < len(outcomes) - 10
    assert all(outcome == "frames" or len(outcome) > 40 for outcome in outcomes)
    assert capfd.readouterr() == ("", "")


def test_errors_name_the_file_and_never_its_folder(tmp_path):
    (tmp_path / "notes.mp4").write_text("hello")
    with pytest.raises(NotAVideo, match=r"^notes\.mp4 is not a video: it holds text"):
        probe(tmp_path / "notes.mp4")


def test_a_missing_file_is_an_os_error():
    with pytest.raises(FileNotFoundError):
        probe(Path("missing.mp4"))
