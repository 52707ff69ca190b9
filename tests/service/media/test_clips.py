"""Clips: a moment as a file, copied or encoded again, with the right frames, sound and limits."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest
from service_support import serving

from model.video.sampling import DecodeLimits, NoFrames, OverLimit
from service.errors import TooLarge, Unprocessable
from service.media.clips import Clip, write_clip
from service.media.previews import PreviewLimits, Previews, Wanted

RATE, SECONDS, SOUND_RATE = 10, 6, 16_000
LIMITS = DecodeLimits()


def write_film(path, codec="libx264", audio="aac", *, key_every=20, start_pts=0):
    """Each frame is grey, brighter by 4 than the one before; the sound is a tone that grows louder."""
    options = {"g": str(key_every), "bf": "2"} if codec == "libx264" else {"g": str(key_every)}
    with av.open(path, "w") as out:
        stream = out.add_stream(codec, rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        sound = out.add_stream(audio, rate=SOUND_RATE, layout="mono") if audio else None
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=SOUND_RATE, frame_size=1024)
        for number in range(RATE * SECONDS):
            frame = av.VideoFrame.from_ndarray(np.full((64, 96, 3), 4 * number, np.uint8), format="rgb24")
            frame.pts = start_pts + number
            out.mux(stream.encode(frame))
            if sound is not None:
                times = (np.arange(SOUND_RATE // RATE) + number * SOUND_RATE // RATE) / SOUND_RATE
                tone = (np.sin(2 * np.pi * 440 * times) * times / SECONDS).astype(np.float32)[None]
                piece = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
                piece.rate, piece.time_base = SOUND_RATE, Fraction(1, SOUND_RATE)
                piece.pts = start_pts * SOUND_RATE // RATE + number * SOUND_RATE // RATE
                for part in resampler.resample(piece):
                    out.mux(sound.encode(part))
        out.mux(stream.encode(None))
        if sound is not None:
            out.mux(sound.encode(None))
    return path


def cut(path, start, end, *, encode=False, limits=LIMITS):
    target = io.BytesIO()
    write_clip(path, target, Clip(start=start, end=end, encode=encode), limits)
    target.seek(0)
    return target


def frames_of(made):
    """The seconds and the number of each frame that a player shows."""
    made.seek(0)
    with av.open(made) as clip:
        assert clip.streams.video[0].codec_context.name == "h264"
        shown = [(frame.time, frame.to_ndarray(format="rgb24").mean() / 4) for frame in clip.decode(video=0)]
    return [time for time, _ in shown], [number for _, number in shown]


@pytest.mark.parametrize("start_pts", [0, 50])
@pytest.mark.parametrize("encode", [False, True])
@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts"])
def test_a_clip_shows_the_frames_of_its_time_from_the_first_frame_on(tmp_path, ending, encode, start_pts):
    film = write_film(tmp_path / f"film.{ending}", start_pts=start_pts)
    times, numbers = frames_of(cut(film, 2.5, 4.0, encode=encode))
    assert times[0] == pytest.approx(0, abs=0.002)
    assert numbers[0] == pytest.approx(25, abs=0.8)
    assert numbers[:15] == pytest.approx(np.arange(25, 40), abs=0.8)
    assert len(numbers) <= 15 + (0 if encode else 3)  # a copy ends at the end of a group of reordered frames


def test_copying_loses_nothing(tmp_path):
    film = write_film(tmp_path / "film.mp4")
    with av.open(film) as source:
        packets = {bytes(packet) for packet in source.demux(video=0)}
    with av.open(cut(film, 1.0, 3.0)) as clip:
        assert {bytes(packet) for packet in clip.demux(video=0)} <= packets


@pytest.mark.parametrize("encode", [False, True])
def test_sound_comes_along_and_in_time(tmp_path, encode):
    film = write_film(tmp_path / "film.mp4")
    with av.open(cut(film, 3.0, 5.0, encode=encode)) as clip:
        tone = np.concatenate([frame.to_ndarray()[0] for frame in clip.decode(audio=0)])
    assert len(tone) / SOUND_RATE == pytest.approx(2.0, abs=0.15)
    loudness = np.abs(tone[SOUND_RATE // 2 : SOUND_RATE]).max()  # 3.5 to 4 s of the film
    assert loudness == pytest.approx(4 / SECONDS, abs=0.1)


def test_what_mp4_cannot_hold_is_encoded_again_as_h264_and_aac(tmp_path):
    film = write_film(tmp_path / "film.avi", "ffv1", "pcm_s16le")
    made = cut(film, 1.0, 2.0)
    with av.open(made) as clip:
        assert [stream.codec_context.name for stream in clip.streams] == ["h264", "aac"]
    times, numbers = frames_of(made)
    assert times == pytest.approx(np.arange(10) / RATE, abs=0.002)
    assert numbers == pytest.approx(np.arange(10, 20), abs=0.8)


def test_between_two_frames_the_one_on_screen_comes_first(tmp_path):
    times, numbers = frames_of(cut(write_film(tmp_path / "film.mp4", audio=None), 2.55, 2.85, encode=True))
    assert numbers == pytest.approx([25, 26, 27, 28], abs=0.8)
    assert times == pytest.approx([0, 0.05, 0.15, 0.25], abs=0.002)


def test_time_without_a_frame_and_frames_too_large_are_errors(tmp_path):
    film = write_film(tmp_path / "film.mp4")
    with pytest.raises(OverLimit):
        cut(film, 0, 1, encode=True, limits=DecodeLimits(max_pixels=1000))
    (tmp_path / "empty.mp4").write_bytes(film.read_bytes()[:500])
    with pytest.raises(ValueError, match="cannot be read"):
        cut(tmp_path / "empty.mp4", 0, 1)
    assert issubclass(NoFrames, ValueError)


def test_clips_are_kept_beside_previews_and_go_with_their_video(tmp_path):
    film = write_film(tmp_path / "film.mp4")
    limits = PreviewLimits(cache_bytes=10**7, seconds=60, memory_bytes=2 * 2**30, max_seconds=60, max_pixels=10**6)
    previews = Previews(tmp_path / "previews", limits)
    spans = [Clip(start=0, end=1), Clip(start=0, end=1, encode=True), Clip(start=1, end=2)]
    made = [previews.make(Wanted(video_id="a" * 64, path=film, clip=clip)) for clip in spans]
    assert len(set(made)) == 3
    assert previews.make(Wanted(video_id="a" * 64, path=film, clip=spans[0])) == made[0]
    assert previews.made == 3
    previews.forget("a" * 64)
    assert list(previews.folder.iterdir()) == []


def test_over_http_with_its_name_and_its_limits(clip_store, tiny_encoder, tmp_path):
    with serving(
        clip_store, tiny_encoder, tmp_path, preview_folder=tmp_path / "previews", clip_max_seconds=1.0
    ) as client:
        video = client.get("/v1/videos").json()["videos"][0]
        place = f"/v1/videos/{video['video_id']}/clip"
        answer = client.get(place, params={"from": 0.2, "to": 0.7})
        assert (answer.status_code, answer.headers["content-type"]) == (200, "video/mp4")
        assert f"{video['title']} 0.2-0.7.mp4" in answer.headers["content-disposition"]
        assert len(frames_of(io.BytesIO(answer.content))[0]) > 0
        tag = answer.headers["etag"]
        assert client.get(place, params={"from": 0.2, "to": 0.7}, headers={"If-None-Match": tag}).status_code == 304
        for start, end in ((0.7, 0.2), (0.5, 0.5), (1e6, 1e6 + 0.5)):
            refused = client.get(place, params={"from": start, "to": end})
            assert refused.status_code == Unprocessable.status
            assert "before the end of the video" in refused.text
        assert client.get(place, params={"from": 0, "to": 1.5}).status_code == TooLarge.status
        assert client.get(place, params={"from": -1, "to": 1}).status_code == Unprocessable.status
        assert client.get(f"/v1/videos/{'0' * 64}/clip", params={"from": 0, "to": 1}).status_code == 404
