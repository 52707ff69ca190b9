"""The decoder takes the right frames: every frame of the files made here shows its own number.

The expected numbers come from the sampling rule applied to all frames, written down once more in ``on_screen``.
"""

from __future__ import annotations

import io
import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from model.config import SamplingConfig
from model.video import pyav as video_pyav
from model.video.sampling import BackendUnavailable, FrameBatch, NoFrames, decode, decode_frame, probe

BITS = 10
WIDTH, HEIGHT = 16 * BITS, 64
X265_QUIET = {"x265-params": "log-level=none:keyint=12:bframes=3"}
B_FRAMES = {"bf": "3", "sc_threshold": "0"}
NO_B_FRAMES = {"bf": "0"}


def picture(number: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """A frame of vertical bars that spell ``number`` in binary."""
    bits = np.array([number >> bit & 1 for bit in range(BITS)], np.uint8)
    row = np.where(bits[np.arange(width) * BITS // width], 220, 30).astype(np.uint8)
    return np.broadcast_to(row[None, :, None], (height, width, 3))


def numbers(frames: np.ndarray) -> list[int]:
    """The numbers that frames show."""
    columns = np.array_split(frames.mean(axis=(1, 3)), BITS, axis=1)
    return [int(sum((c[i].mean() > 128) << bit for bit, c in enumerate(columns))) for i in range(len(frames))]


def write(
    file, codec="libx264", *, format=None, count=50, fps=25, gop=12, pix_fmt="yuv420p", size=(WIDTH, HEIGHT),
    times=None, options=None, turn=None, container_options=None, first=0,
):  # fmt: skip
    """Write ``count`` numbered frames; ``times`` are frame times in units of 1/1000 s instead of a constant rate."""
    file = str(file) if isinstance(file, Path) else file
    with av.open(file, "w", format=format, options=container_options or {}) as output:
        stream = output.add_stream(codec, rate=fps, options=options or {})
        stream.width, stream.height = size
        stream.pix_fmt, stream.codec_context.gop_size = pix_fmt, gop
        if turn:
            turn(stream)
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture(number + first, *size)), format="rgb24")
            frame.pts = number if times is None else times[number]
            frame.time_base = Fraction(1, fps) if times is None else Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file


def on_screen(times: np.ndarray, sampling: SamplingConfig, start: float, end: float) -> list[int]:
    """The sampling rule, spelt out: indices of the frames at ``times`` (seconds) that belong to the targets."""
    targets = []
    while not targets or start + len(targets) / sampling.sample_fps < end - 1e-9:
        targets.append(start + len(targets) / sampling.sample_fps)
    if len(targets) > sampling.max_frames:
        keep = np.linspace(0, len(targets) - 1, sampling.max_frames).astype(int)
        targets = [targets[i] for i in keep]
    return sorted({max(i for i, time in enumerate(times) if time <= target + 0.0006) for target in targets})


FORMATS = {
    "h264.mp4": {"options": B_FRAMES},
    "h264.mkv": {"options": B_FRAMES},
    "h264.ts": {"options": B_FRAMES},
    "h264.flv": {"options": B_FRAMES},
    "h264.avi": {"options": B_FRAMES},
    "open_gop.mp4": {"options": {"x264-params": "open-gop=1:keyint=12:scenecut=0:bframes=3"}},
    "fragmented.mp4": {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "yuv444.mp4": {"pix_fmt": "yuv444p"},
    "hevc.mp4": {"codec": "libx265", "options": X265_QUIET},
    "hevc_10_bit.mkv": {"codec": "libx265", "options": X265_QUIET, "pix_fmt": "yuv420p10le"},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}},
    "vp9_alpha.webm": {"codec": "libvpx-vp9", "options": {"cpu-used": "8"}, "pix_fmt": "yuva420p"},
    "av1.mp4": {"codec": "libsvtav1", "options": {"preset": "12"}},
    "mpeg4.mp4": {"codec": "mpeg4", "options": B_FRAMES},
    "mpeg4.avi": {"codec": "mpeg4", "options": B_FRAMES},
    "mjpeg.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "mpeg2.mpg": {"codec": "mpeg2video", "options": {"bf": "2"}},
    "prores.mov": {"codec": "prores_ks", "pix_fmt": "yuv422p10le"},
    "animated.gif": {"codec": "gif", "pix_fmt": "rgb8"},
    "odd_size.mkv": {"pix_fmt": "yuv444p", "size": (WIDTH + 1, HEIGHT + 1)},
}


@pytest.fixture(scope="module")
def formats(tmp_path_factory, monkeypatch_module):
    """Folder with one file of 50 numbered frames at 25 fps per entry of ``FORMATS``, made when first asked for."""
    folder = tmp_path_factory.mktemp("formats")

    def make(name: str) -> Path:
        if not (folder / name).exists():
            write(folder / name, **FORMATS[name])
        return folder / name

    return make


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SVT_LOG", "0")  # SVT-AV1 announces itself on stderr
        yield patch


@pytest.fixture(scope="module")
def clip(formats) -> Path:
    """The plain case: 2 s of H.264 with B-frames at 25 fps in MP4, a key frame every 12 frames."""
    return formats("h264.mp4")


# -- which frames -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_frames_on_screen(formats, name):
    path = formats(name)
    assert probe(path).duration_seconds == pytest.approx(2.0, abs=0.002)
    for sampling in (SamplingConfig(sample_fps=4), SamplingConfig(sample_fps=25, max_frames=64)):
        batch = decode(path, sampling=sampling)
        expected = on_screen(np.arange(50) / 25, sampling, 0, 2)
        assert numbers(batch.frames) == expected
        assert batch.timestamps_seconds == pytest.approx([number / 25 for number in expected], abs=0.0011)
        assert (batch.height, batch.width, batch.skipped_packets) == (*batch.frames.shape[1:3], 0)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("window", [(0.5, 1.5), (0.97, 1.31), (1.99, None), (1.0, 99.0)])
def test_a_window_gives_the_frames_that_decoding_from_the_beginning_gives(formats, name, window):
    start, end = window
    sampling = SamplingConfig(sample_fps=7, max_frames=5)
    everything = decode(formats(name), sampling=SamplingConfig(sample_fps=25, max_frames=64))
    batch = decode(formats(name), sampling=sampling, start_seconds=start, end_seconds=end)
    expected = on_screen(everything.timestamps_seconds, sampling, start, min(end or 2, 2))
    assert np.array_equal(batch.frames, everything.frames[expected])
    assert batch.timestamps_seconds == pytest.approx(np.maximum(everything.timestamps_seconds[expected], start))
    assert batch.duration_seconds == pytest.approx(everything.duration_seconds)


def test_too_many_targets_are_thinned_as_the_reference_thins_them(clip):
    batch = decode(clip, sampling=SamplingConfig(sample_fps=25, max_frames=12))
    assert numbers(batch.frames) == np.linspace(0, 49, 12).astype(int).tolist()


def test_sampling_faster_than_the_frames_come_takes_each_frame_once(clip):
    batch = decode(clip, sampling=SamplingConfig(sample_fps=240, max_frames=512))
    assert numbers(batch.frames) == list(range(50))


def test_a_variable_frame_rate_goes_by_time_and_not_by_number(tmp_path):
    times = np.cumsum([0, *([40] * 10), 1500, *([200] * 5), 3000, 40, 40, 700]).tolist()
    for name in ("vfr.mp4", "vfr.mkv"):
        write(tmp_path / name, count=len(times), times=times, options=B_FRAMES)
        sampling = SamplingConfig(sample_fps=2, max_frames=64)
        batch = decode(tmp_path / name, sampling=sampling)
        expected = on_screen(np.array(times) / 1000, sampling, 0, batch.duration_seconds)
        assert numbers(batch.frames) == expected
        assert batch.timestamps_seconds == pytest.approx(np.array(times)[expected] / 1000, abs=0.0011)


@pytest.mark.parametrize("name", ["late.mp4", "late.mkv", "late.ts"])
def test_time_counts_from_the_first_frame(tmp_path, name):
    write(tmp_path / name, times=[7000 + 40 * i for i in range(50)], options=B_FRAMES)
    batch = decode(tmp_path / name, sampling=SamplingConfig(sample_fps=5))
    assert numbers(batch.frames) == list(range(0, 50, 5))
    assert batch.timestamps_seconds == pytest.approx(np.arange(10) / 5, abs=0.0011)
    assert batch.duration_seconds == pytest.approx(2.0, abs=0.01)


@pytest.mark.parametrize("name", ["one.mp4", "one.mkv", "one.gif", "one.avi"])
def test_one_frame_is_a_video(tmp_path, name):
    codec, pix_fmt = {"one.gif": ("gif", "rgb8"), "one.avi": ("mpeg4", "yuv420p")}.get(name, ("libx264", "yuv420p"))
    write(tmp_path / name, codec, count=1, first=5, pix_fmt=pix_fmt)
    batch = decode(tmp_path / name, sampling=SamplingConfig())
    assert numbers(batch.frames) == [5]
    assert batch.timestamps_seconds.tolist() == [0.0]
    assert 0 <= batch.duration_seconds < 0.2


def test_duration_is_measured_where_the_header_has_none():
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    recording = Pipe()
    write(recording, format="matroska")
    info = probe(recording.getvalue())
    assert info.duration_seconds == pytest.approx(2.0, abs=0.002)


def test_duration_is_measured_where_the_header_lies(clip):
    content = bytearray(clip.read_bytes())
    for box, scale_offset in ((b"mvhd", 16), (b"mdhd", 16)):
        at = content.index(box)
        struct.pack_into(">I", content, at + scale_offset + 4, 10_000_000)
    assert probe(bytes(content)).duration_seconds == pytest.approx(2.0)


# -- key frames -------------------------------------------------------------------------------------------------------


def test_keyframes_takes_the_nearest_key_frames_each_once(clip):
    # 2 s with a key frame at 0, 12, 24, 36 and 48; targets at 0, 5, 10, … of 25 frames per second
    batch = decode(clip, sampling=SamplingConfig(sample_fps=5, strategy="keyframes"))
    assert numbers(batch.frames) == [0, 12, 24, 36, 48]
    batch = decode(clip, sampling=SamplingConfig(sample_fps=1, strategy="keyframes"))
    assert numbers(batch.frames) == [0, 24]


def test_keyframes_stay_inside_the_window(clip):
    sampling = SamplingConfig(sample_fps=25, max_frames=64, strategy="keyframes")
    inside = decode(clip, sampling=sampling, start_seconds=12 / 25, end_seconds=36 / 25)
    assert numbers(inside.frames) == [12, 24]
    none_inside = decode(clip, sampling=sampling, start_seconds=13 / 25, end_seconds=23 / 25)
    assert numbers(none_inside.frames) == [13]


@pytest.mark.parametrize("name", ["h264.mkv", "hevc.mp4", "vp9.webm", "open_gop.mp4", "mpeg4.mp4", "mpeg2.mpg"])
def test_key_frames_decoded_alone_are_the_same_pictures(formats, name):
    keys = decode(formats(name), sampling=SamplingConfig(sample_fps=25, max_frames=64, strategy="keyframes"))
    everything = decode(formats(name), sampling=SamplingConfig(sample_fps=25, max_frames=64))
    positions = np.searchsorted(everything.timestamps_seconds, keys.timestamps_seconds)
    assert np.array_equal(keys.frames, everything.frames[positions])


# -- only what is needed ----------------------------------------------------------------------------------------------


def test_only_wanted_frames_are_converted_and_little_else_is_decoded(clip, monkeypatch):
    fed, converted = [], []
    feed, add = video_pyav.Decoder.feed, video_pyav.RgbFrames.add
    monkeypatch.setattr(video_pyav.Decoder, "feed", lambda *args, **kw: fed.append(1) or feed(*args, **kw))
    monkeypatch.setattr(video_pyav.RgbFrames, "add", lambda *args: converted.append(1) or add(*args))
    # Frame 25 is the second after the key frame 24.
    assert numbers(decode(clip, sampling=SamplingConfig(sample_fps=1)).frames) == [0, 25]
    assert len(converted) == 2
    assert len(fed) < 10


def test_a_stream_without_true_key_frames_gives_the_same_frames_after_all(tmp_path):
    options = {"x264-params": "intra-refresh=1:keyint=15"}
    write(tmp_path / "refresh.mkv", options=options, count=100)
    batch = decode(tmp_path / "refresh.mkv", sampling=SamplingConfig(sample_fps=3))
    assert numbers(batch.frames) == on_screen(np.arange(100) / 25, SamplingConfig(sample_fps=3), 0, 4)


def test_codec_threads_change_nothing(clip):
    sampling = SamplingConfig(sample_fps=10, max_frames=64)
    one, two = (decode(clip, sampling=sampling, threads=threads) for threads in (1, 2))
    assert np.array_equal(one.frames, two.frames)


# -- pictures ---------------------------------------------------------------------------------------------------------

# Degrees counterclockwise and mirroring as the file says → the function that makes the stored picture upright.
TURNS = {
    (90, False): lambda image: np.rot90(image, 1),
    (180, False): lambda image: np.rot90(image, 2),
    (270, False): lambda image: np.rot90(image, 3),
    (0, True): lambda image: image[:, ::-1],
}


@pytest.mark.parametrize(("turn", "upright"), TURNS.items(), ids=[f"{turn}-{flipped}" for turn, flipped in TURNS])
def test_frames_are_upright(tmp_path, turn, upright):
    degrees, mirrored = turn
    path = tmp_path / "turned.mp4"
    write(path, count=3, turn=lambda stream: stream.set_display_rotation(degrees, hflip=mirrored))
    write(tmp_path / "stored.mp4", count=3)
    stored = decode(tmp_path / "stored.mp4", sampling=SamplingConfig()).frames[0]
    batch = decode(path, sampling=SamplingConfig())
    assert np.array_equal(batch.frames[0], upright(stored))
    info = probe(path)
    assert (info.height, info.width) == (batch.height, batch.width) == upright(stored).shape[:2]
    assert info.rotation_degrees == -degrees % 360 if not mirrored else True


def test_colours_come_in_the_order_red_green_blue(tmp_path):
    with av.open(str(tmp_path / "red.mp4"), "w") as output:
        stream = output.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        red = np.zeros((64, 64, 3), np.uint8)
        red[..., 0] = 200
        output.mux(stream.encode(av.VideoFrame.from_ndarray(red)))
        output.mux(stream.encode(None))
    assert decode_frame(tmp_path / "red.mp4", 0).mean(axis=(0, 1)) == pytest.approx([200, 0, 0], abs=6)


def test_a_change_of_size_is_scaled_to_the_first_frames(tmp_path):
    write(tmp_path / "small.ts", count=25, options=NO_B_FRAMES)
    write(
        tmp_path / "large.ts",
        count=25,
        first=25,
        options=NO_B_FRAMES,
        size=(2 * WIDTH, 2 * HEIGHT),
        times=[1000 + 40 * i for i in range(25)],
    )
    both = (tmp_path / "small.ts").read_bytes() + (tmp_path / "large.ts").read_bytes()
    batch = decode(both, sampling=SamplingConfig(sample_fps=5))
    assert numbers(batch.frames) == list(range(0, 50, 5))
    assert batch.frames.shape[1:3] == (HEIGHT, WIDTH)


def test_decode_frame_gives_the_frame_on_screen_and_the_last_one_behind_the_end(clip):
    shown = [numbers(decode_frame(clip, at)[None]) for at in (0, 0.039, 0.04, 1.3, 1.99, 2, 1e9)]
    assert shown == [[0], [0], [1], [32], [49], [49], [49]]


def test_a_path_a_string_and_bytes_are_the_same(clip):
    batches = [decode(source, sampling=SamplingConfig()) for source in (clip, str(clip), clip.read_bytes())]
    assert all(np.array_equal(batch.frames, batches[0].frames) for batch in batches)


def test_probe_names_codec_and_rate(formats):
    for name, codec in (("h264.mkv", "h264"), ("hevc.mp4", "hevc"), ("vp9.webm", "vp9"), ("av1.mp4", "av1")):
        info = probe(formats(name))
        assert (info.codec, info.frame_rate, info.rotation_degrees) == (codec, pytest.approx(25), 0)
        assert (info.width, info.height) == (WIDTH, HEIGHT)


# -- windows and values that are none ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("start", "end"), [(-1, None), (float("nan"), None), (1, 1), (1, 0.5), (0, float("nan"))])
def test_a_window_that_is_none_is_refused(clip, start, end):
    with pytest.raises(ValueError, match="window"):
        decode(clip, sampling=SamplingConfig(), start_seconds=start, end_seconds=end)


def test_a_window_behind_the_end_says_how_long_the_video_is(clip):
    with pytest.raises(NoFrames, match=r"starts at 2 s, but h264.mp4 lasts 2.000 s"):
        decode(clip, sampling=SamplingConfig(), start_seconds=2)


def test_frame_batch_refuses_what_contradicts_itself():
    frames = np.zeros((2, 4, 6, 3), np.uint8)
    good = {"frames": frames, "timestamps_seconds": np.array([0.0, 1.0]), "width": 6, "height": 4}
    assert len(FrameBatch(**good, duration_seconds=2, skipped_packets=0)) == 2
    for wrong in ({"width": 4}, {"timestamps_seconds": np.array([1.0, 1.0])}, {"frames": frames.astype(float)}):
        with pytest.raises(ValueError, match=r"expected|increase"):
            FrameBatch(**{**good, **wrong}, duration_seconds=2, skipped_packets=0)


def test_importing_the_decoder_loads_nothing_heavy():
    code = (
        "import sys, model.video.sampling, model.clip.preprocess; "
        "print(*{'torch', 'av', 'decord', 'pydantic'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout.split() == []


# -- decord -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def needs_decord():
    pytest.importorskip("decord", reason="decord is an extra that is not installed")


DECORD_READS = [
    "h264.mp4",
    "h264.mkv",
    "h264.flv",
    "open_gop.mp4",
    "yuv444.mp4",
    "hevc.mp4",
    "vp9.webm",
    "odd_size.mkv",
]


@pytest.mark.usefixtures("needs_decord")
@pytest.mark.parametrize("name", [*DECORD_READS, "mpeg4.mp4"])
@pytest.mark.parametrize("strategy", ["uniform", "keyframes"])
def test_both_backends_give_the_same_frames(formats, name, strategy):
    sampling = SamplingConfig(sample_fps=6, strategy=strategy)
    for start, end in ((0, None), (0.7, 1.7)):
        pyav, decord = (
            decode(formats(name), sampling=sampling, start_seconds=start, end_seconds=end, backend=backend)
            for backend in ("pyav", "decord")
        )
        assert pyav.timestamps_seconds.tolist() == decord.timestamps_seconds.tolist()
        # FFmpeg's inverse transform of MPEG-4 has changed since decord's; all others are exact.
        tolerance = 2 if name == "mpeg4.mp4" else 0
        assert np.abs(pyav.frames.astype(int) - decord.frames).max() <= tolerance


@pytest.mark.usefixtures("needs_decord")
@pytest.mark.parametrize("name", ["av1.mp4", "hevc_10_bit.mkv", "h264.ts", "mpeg4.avi"])
def test_decord_by_name_is_refused_where_it_gives_other_frames(formats, name):
    with pytest.raises(BackendUnavailable, match=r"decord cannot be used .* its (codec|pixels|container)"):
        decode(formats(name), sampling=SamplingConfig(), backend="decord")


def test_decord_by_name_is_never_given_bytes(clip):
    with pytest.raises(BackendUnavailable, match="pass a path"):
        decode(clip.read_bytes(), sampling=SamplingConfig(), backend="decord")


@pytest.mark.usefixtures("needs_decord")
def test_decord_by_name_is_refused_for_turned_videos(tmp_path):
    write(tmp_path / "turned.mp4", turn=lambda stream: stream.set_display_rotation(90))
    with pytest.raises(BackendUnavailable, match="turned"):
        decode(tmp_path / "turned.mp4", sampling=SamplingConfig(), backend="decord")


def test_decord_by_name_says_how_to_install_it(clip, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match="pip install decord"):
        decode(clip, sampling=SamplingConfig(), backend="decord")


@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_real_clips_decode(real_clips, backend, request):
    if backend == "decord":
        request.getfixturevalue("needs_decord")
    clips = sorted(path for path in real_clips.iterdir() if path.suffix in (".mp4", ".mkv"))
    assert len(clips) == 15
    for path in clips:
        batch = decode(path, sampling=SamplingConfig(), backend=backend)
        assert np.array_equal(batch.frames, decode(path, sampling=SamplingConfig()).frames), path.name
        assert (batch.width, batch.height, batch.skipped_packets) == (probe(path).width, probe(path).height, 0)
