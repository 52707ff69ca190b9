"""Files whose clock restarts or jumps: every frame is found, in the order of the file, at a time that goes on."""

import io

import av
import numpy as np
import pytest
from joined_support import FIRST, RATE, SECOND, film, joined

from model.config import SamplingConfig
from model.video.container import open_video
from model.video.pyav import Decoder
from model.video.sampling import decode, decode_frame, probe
from model.video.timeline import measure_end
from model.video.types import CLOCK_NOTE, DecodeLimits
from service.media.clips import Clip, write_clip

TRUSTING = DecodeLimits(check_clock=False)


def shown(source, **window):
    batch = decode(source, sampling=SamplingConfig(sample_fps=RATE, max_frames=512), **window)
    return batch.timestamps_seconds, batch.frames.mean(axis=(1, 2, 3))


STARTS = [
    pytest.param((0.0, 0.0, 0.0), id="restarts"),
    pytest.param((100.0, 0.0, 50.0), id="before and after"),
    pytest.param((0.0, 40_000.0, 0.0), id="jumps far and back"),
    pytest.param((0.0, 1.0, 1.5), id="overlaps"),
    pytest.param((90_000.0, 0.0, 50.0), id="FFmpeg takes it for a wrap of 33 bits"),
]


@pytest.mark.parametrize("starts", STARTS)
def test_every_frame_of_joined_files_is_shown_in_order(tmp_path, starts):
    path, greys = joined(tmp_path, *starts)
    info = probe(path)
    assert info.duration_seconds == pytest.approx(6.0, abs=0.11)
    assert [note.split(" 2 times")[0] for note in info.notes] == [CLOCK_NOTE]
    times, values = shown(path)
    np.testing.assert_allclose(times, np.arange(60) / RATE, atol=1e-3)
    np.testing.assert_allclose(values, greys, atol=3)  # lossy


@pytest.mark.parametrize("starts", STARTS)
def test_windows_and_single_frames_agree_with_the_whole(tmp_path, starts):
    path, greys = joined(tmp_path, *starts)
    for begin, end in [(0.0, 2.0), (1.55, 2.45), (2.0, 4.0), (3.0, 5.0), (5.5, None)]:
        times, values = shown(path, start_seconds=begin, end_seconds=end)
        first, count = int(begin * RATE + 0.01), int(np.ceil(((end or 6.0) - begin) * RATE - 0.01))
        last = first + count
        assert len(times) == count
        np.testing.assert_allclose(values, greys[first:last], atol=3)
    for number in (0, 19, 20, 21, 39, 40, 59):
        assert decode_frame(path, number / RATE + 0.02).mean() == pytest.approx(greys[number], abs=3)


def test_bytes_are_read_as_files_are(tmp_path):
    path, _ = joined(tmp_path, 0.0, 0.0)
    np.testing.assert_array_equal(shown(path.read_bytes())[1], shown(path)[1])


@pytest.mark.parametrize(("suffix", "codec"), [("mpg", "mpeg2video"), ("vob", "mpeg2video")])
def test_program_streams_are_joined_too(tmp_path, suffix, codec):
    greys = [*range(20, 120, 2)]  # 50 frames at 25 a second
    one = film(tmp_path / f"one.{suffix}", greys, codec=codec)
    two = film(tmp_path / f"two.{suffix}", greys[::-1], codec=codec)
    path = tmp_path / f"both.{suffix}"
    path.write_bytes(one + two)
    info = probe(path)
    assert info.notes
    assert info.duration_seconds == pytest.approx(4.0, abs=0.2)
    _, values = shown(path)
    assert abs(values[0] - 20) < 4
    assert max(values) > 110
    assert abs(values[-1] - 20) < 6, "the end of the second part is there"


def test_a_file_in_one_piece_is_read_exactly_as_without_looking(tmp_path):
    film(tmp_path / "plain.ts", FIRST + SECOND, start=7.0, container="mpegts")
    for limits in (DecodeLimits(), TRUSTING):
        with open_video(tmp_path / "plain.ts", limits) as video:
            assert video.clock is None
    assert probe(tmp_path / "plain.ts").notes == ()
    for window in ({}, {"start_seconds": 1.0, "end_seconds": 2.5}):
        looked, trusted = (
            shown(tmp_path / "plain.ts", **window),
            shown(tmp_path / "plain.ts", limits=TRUSTING, **window),
        )
        np.testing.assert_array_equal(looked[0], trusted[0])
        np.testing.assert_array_equal(looked[1], trusted[1])


def test_a_pause_of_some_seconds_stays_a_pause(tmp_path):
    path, _ = joined(tmp_path, 0.0, 8.0)
    assert probe(path).notes == ()
    assert probe(path).duration_seconds == pytest.approx(10.0, abs=0.21)


def test_without_looking_half_of_the_frames_are_lost(tmp_path):
    """The reason for all of this; if it fails, FFmpeg does the work and ours can go."""
    path, greys = joined(tmp_path, 0.0, 0.0)
    assert len(shown(path, limits=TRUSTING)[0]) < len(greys)


def test_a_clip_across_the_joint_has_the_right_pictures_and_sound(tmp_path):
    path, greys = joined(tmp_path, 50.0, 0.0, 1000.0, sound=True)
    for encode in (False, True):
        target = io.BytesIO()
        write_clip(path, target, Clip(start=1.0, end=5.0, encode=encode), DecodeLimits())
        target.seek(0)
        with av.open(target) as clip:
            pictures = [(frame.time, frame.to_ndarray(format="rgb24").mean()) for frame in clip.decode(video=0)]
        values = [value for time, value in pictures if time >= -1e-3]
        assert len(values) == pytest.approx(40, abs=2)
        np.testing.assert_allclose(values[1:-1], greys[11 : 11 + len(values) - 2], atol=5)
        target.seek(0)
        with av.open(target) as clip:
            spoken = sum(frame.samples for frame in clip.decode(audio=0)) / 16_000
        assert spoken == pytest.approx(4.0, abs=0.4)


def test_reading_on_from_a_place_gives_the_times_of_reading_all(tmp_path):
    path, _ = joined(tmp_path, 100.0, 0.0, 40_000.0)
    with open_video(path, DecodeLimits()) as video:
        end = measure_end(video)
        video.rewind(None)
        everything = [video.packet_time(packet) for packet in video.packets()]
        for start in (video.time(0.4), video.time(2.3), video.time(4.9), end):
            video.rewind(start)
            part = [video.packet_time(packet) for packet in video.packets()]
            assert part == everything[-len(part) :]
            assert min(time for time in part if time is not None) <= start
        decoder = Decoder(video)
        video.rewind(video.time(3.0))
        frames = [time for packet in video.packets() for time, _ in decoder.feed(packet, needed=True)]
        assert frames == sorted(frames)


def test_a_second_picture_in_the_file_is_named(tmp_path):
    path = tmp_path / "two.mkv"
    with av.open(path, "w") as out:
        streams = [out.add_stream("libx264", rate=RATE) for _ in range(2)]
        for stream in streams:
            stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for stream in streams:
            for number in range(5):
                frame = av.VideoFrame.from_ndarray(np.zeros((64, 96, 3), np.uint8), format="rgb24")
                frame.pts = number
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
    assert probe(path).notes == ("1 more video stream in it is not read",)
