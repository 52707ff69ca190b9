"""Previews: made once in a sandbox, with the times of the video, and bounded on the disk."""

import os

import av
import numpy as np
import pytest
from service_support import serving

from service.errors import NotFound, TooLarge, Unprocessable
from service.media.previews import PreviewLimits, Previews, Wanted

SECONDS, RATE = 3, 10


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Three MPEG-4 part 2 clips, which no browser plays: a square that moves to the right, each of another height."""
    folder = tmp_path_factory.mktemp("mpeg4")
    for number in range(3):
        write(folder / f"clip_{number}.avi", "mpeg4", 120 + 16 * number)
    return folder


def write(path, codec, height):
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    with av.open(path, "w") as out:
        stream = out.add_stream(codec, rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = 160, height, "yuv420p"
        for step in range(SECONDS * RATE):
            pixels = np.full((stream.height, 160, 3), 200, np.uint8)
            pixels[40:80, 4 * step : 4 * step + 40] = (200, 0, 0)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(stream.encode(None))


def make_previews(folder, **changes):
    limits = {
        "cache_bytes": 10**7, "seconds": 60.0, "memory_bytes": 2 * 2**30, "max_seconds": 60.0, "max_pixels": 10**6
    }  # fmt: skip
    return Previews(folder / "previews", PreviewLimits(**{**limits, **changes}))


def wanted(clips, number):
    return Wanted(video_id=f"{number:064x}", path=clips / f"clip_{number}.avi")


def test_a_preview_is_h264_with_the_times_and_pictures_of_the_video(clips, tmp_path):
    previews = make_previews(tmp_path)
    path = previews.make(wanted(clips, 0))
    with av.open(path) as made:
        assert made.streams.video[0].codec_context.name == "h264"
        frames = list(made.decode(video=0))
    times = [frame.time for frame in frames]
    assert times == pytest.approx(np.arange(SECONDS * RATE) / RATE, abs=0.002)
    last = frames[-1].to_ndarray(format="rgb24").astype(int)
    assert last.shape == (120, 160, 3)
    assert last[60, 150, 0] - last[60, 150, 1] > 100  # the square has arrived at the right
    assert abs(last[60, 10, 0] - last[60, 10, 1]) < 60
    assert previews.make(wanted(clips, 0)) == path
    assert previews.made == 1
    assert [file.name for file in previews.folder.iterdir()] == [path.name]


def test_hevc_has_a_preview_too(tmp_path):
    write(tmp_path / "hevc.mp4", "libx265", 120)
    made = make_previews(tmp_path).make(Wanted(video_id="5" * 64, path=tmp_path / "hevc.mp4"))
    with av.open(made) as preview:
        assert preview.streams.video[0].codec_context.name == "h264"
        assert len(list(preview.decode(video=0))) == SECONDS * RATE


def test_those_that_were_not_watched_for_longest_make_room(clips, tmp_path):
    sizes = [make_previews(tmp_path).make(wanted(clips, number)).stat().st_size for number in (0, 1, 2)]
    # Two fit and three do not, although an encoder that runs on several threads varies in size by a little.
    previews = make_previews(tmp_path / "small", cache_bytes=sum(sizes) - min(sizes) // 2)
    made = [previews.make(wanted(clips, number)) for number in (0, 1)]
    os.utime(made[1], ns=(1, 1))
    previews.make(wanted(clips, 0))  # watched again
    newest = previews.make(wanted(clips, 2))
    assert {file.name for file in previews.folder.iterdir()} == {made[0].name, newest.name}
    previews.forget(f"{0:064x}")
    assert [file.name for file in previews.folder.iterdir()] == [newest.name]


@pytest.mark.parametrize(
    ("changes", "error"),
    [({"cache_bytes": 1000}, TooLarge), ({"max_seconds": 1.0}, TooLarge), ({"max_pixels": 100}, TooLarge)],
)
def test_what_takes_too_much_is_given_up_and_leaves_nothing(clips, tmp_path, changes, error):
    previews = make_previews(tmp_path, **changes)
    with pytest.raises(error):
        previews.make(wanted(clips, 0))
    assert list(previews.folder.iterdir()) == []


def test_what_is_no_video_has_no_preview(tmp_path):
    (tmp_path / "notes.avi").write_text("no video at all, but long enough to be looked at " * 20)
    with pytest.raises(Unprocessable, match="no preview or clip can be made"):
        make_previews(tmp_path).make(Wanted(video_id="0" * 64, path=tmp_path / "notes.avi"))


def test_previews_come_over_http_in_ranges_and_can_be_switched_off(clip_store, tiny_encoder, tmp_path):
    with serving(clip_store, tiny_encoder, tmp_path, preview_folder=tmp_path / "previews") as client:
        video_id = client.get("/v1/videos").json()["videos"][0]["video_id"]
        whole = client.get(f"/v1/videos/{video_id}/preview")
        assert whole.status_code == 200
        assert whole.headers["content-type"] == "video/mp4"
        part = client.get(f"/v1/videos/{video_id}/preview", headers={"Range": "bytes=4-7"})
        assert (part.status_code, part.content) == (206, b"ftyp")
        assert client.get(f"/v1/videos/{video_id}/preview", headers={"Range": "bytes=9999999-"}).status_code == 416
        assert client.get(f"/v1/videos/{'0' * 64}/preview").status_code == 404
    with serving(clip_store, tiny_encoder, tmp_path, preview_cache_bytes=0) as client:
        answer = client.get(f"/v1/videos/{video_id}/preview")
        assert answer.status_code == NotFound.status
        assert "makes no previews" in answer.json()["detail"]
