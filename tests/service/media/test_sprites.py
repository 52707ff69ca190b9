"""Sprites: the frames of a segment, or of a whole video, as tiles of one file that is kept on the disk."""

from __future__ import annotations

import asyncio
import io
import os
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from service_support import assert_problem, bearer, make_keys, serving

from model.demo.corpus import write_clip
from model.demo.scene import make_scene
from model.video.sampling import decode_frame, decode_frames
from service.errors import Unprocessable
from service.media.pictures import SPRITE_COLUMNS, sprite_of
from service.media.sandbox import Sandbox, SandboxLimits
from service.media.sprites import Sprites, WantedSprite

MEBIBYTE = 1 << 20
LIMITS = {
    "wall_seconds": 60.0,
    "cpu_seconds": 60,
    "memory_bytes": 2048 * MEBIBYTE,
    "max_bytes": 1 << 40,
    "max_seconds": float("inf"),
    "max_pixels": 8192 * 4352,
}


def film(path: Path, seconds: int, *, rate: int = 5, gop: int = 20, size: tuple[int, int] = (64, 48)) -> None:
    """A film whose frame n is grey of level 5 n modulo 250."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=rate, options={"preset": "ultrafast", "sc_threshold": "0"})
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = gop
        for number in range(seconds * rate):
            pixels = np.full((size[1], size[0], 3), 5 * number % 250, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(stream.encode(None))


def tiles(sprite: bytes, count: int) -> list[np.ndarray]:
    """The tiles of a sprite, as arrays of pixels."""
    pixels = np.asarray(Image.open(io.BytesIO(sprite)), np.int16)
    height, width = pixels.shape[0] // -(-count // SPRITE_COLUMNS), pixels.shape[1] // SPRITE_COLUMNS
    places = [divmod(number, SPRITE_COLUMNS) for number in range(count)]
    return [pixels[row * height : (row + 1) * height, column * width : (column + 1) * width] for row, column in places]


@pytest.mark.parametrize("times", [[0.0, 0.41, 3.3, 3.3, 1.0], [50.0, 0.2, 29.9, 1e6, 12.0, 11.9], [7.77]])
def test_frames_of_one_pass_are_those_of_single_ones(tmp_path, times):
    film(tmp_path / "a.mp4", 60)  # with gaps of more than ten seconds, which are sought
    frames = decode_frames(tmp_path / "a.mp4", times)
    for frame, at_seconds in zip(frames, times, strict=True):
        np.testing.assert_array_equal(frame, decode_frame(tmp_path / "a.mp4", at_seconds))


def test_a_tile_for_each_time_in_rows_scaled_down(tmp_path):
    film(tmp_path / "a.mp4", 8, size=(64, 128))
    times = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    cut = tiles(sprite_of(tmp_path / "a.mp4", times, 32), 8)
    assert {tile.shape for tile in cut} == {(32, 16, 3)}  # portrait stays portrait
    for tile, at_seconds in zip(cut, times, strict=True):
        assert abs(tile.mean() - 25 * at_seconds) < 5, at_seconds


def test_frames_that_do_not_decode_show_the_one_before(tmp_path):
    write_clip(make_scene(0, "test", 0), tmp_path / "a.mp4")
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    start = content.index(b"mdat") + 4
    middle = start + (len(content) - start) // 2
    content[middle : middle + 200] = bytes(200)
    (tmp_path / "b.mp4").write_bytes(content)
    assert len(decode_frames(tmp_path / "b.mp4", [0.1 * number for number in range(20)])) == 20


def sprites_in(folder: Path, **changes: object) -> Sprites:
    cache_bytes = changes.pop("cache_bytes", 10**6)
    sandbox = Sandbox(SandboxLimits(**{**LIMITS, **changes}))
    return Sprites(folder, side=32, cache_bytes=cache_bytes, max_queue=8, sandbox=sandbox)


def make(sprites: Sprites, *wanted: WantedSprite) -> list[object]:
    async def scenario() -> list[object]:
        sprites.start()
        try:
            return [*await asyncio.gather(*map(sprites.picture, wanted), return_exceptions=True)]
        finally:
            await sprites.close()

    return asyncio.run(scenario())


def wanted(path: Path, *times: float, video_id: str = "v") -> WantedSprite:
    return WantedSprite(video_id=video_id, path=path, at_seconds=times, side=32)


def test_what_was_made_is_kept_and_found_by_the_next_service(tmp_path):
    film(tmp_path / "a.mp4", 4)
    one, other = wanted(tmp_path / "a.mp4", 0, 1, 2), wanted(tmp_path / "a.mp4", 0, 1, 3)
    assert one.name != other.name
    first = sprites_in(tmp_path / "kept")
    pictures = make(first, one, other)
    assert first.made == 2
    (tmp_path / "a.mp4").unlink()
    second = sprites_in(tmp_path / "kept")
    assert [second.kept(one), second.kept(other)] == pictures
    assert make(second, one) == pictures[:1]
    assert second.made == 0
    second.forget("v")
    assert second.kept(one) is None


def test_the_folder_stays_within_its_bound_and_drops_what_was_not_used_for_longest(tmp_path):
    film(tmp_path / "a.mp4", 4)
    size = len(sprite_of(tmp_path / "a.mp4", [0.0, 1.0], 32))
    bound = round(4.5 * size)
    sprites = sprites_in(tmp_path / "kept", cache_bytes=bound)
    (tmp_path / "kept").mkdir()
    torn = tmp_path / "kept" / "torn.part"  # of a service that was killed
    torn.write_bytes(bytes(size))
    os.utime(torn, (0, 0))

    async def scenario() -> None:
        sprites.start()
        for number in range(8):
            await sprites.picture(wanted(tmp_path / "a.mp4", number / 10, 1.0))
            assert sprites.kept(wanted(tmp_path / "a.mp4", 0.0, 1.0)), "used again and again"
            assert sum(path.stat().st_size for path in (tmp_path / "kept").iterdir()) <= bound
        await sprites.close()

    asyncio.run(scenario())
    assert not torn.exists()
    assert sprites.kept(wanted(tmp_path / "a.mp4", 0.7, 1.0))
    assert sprites.kept(wanted(tmp_path / "a.mp4", 0.1, 1.0)) is None


def test_a_cache_of_nothing_and_a_folder_that_cannot_be_written_still_give_pictures(tmp_path):
    film(tmp_path / "a.mp4", 2)
    (picture,) = make(sprites_in(tmp_path / "none", cache_bytes=0), wanted(tmp_path / "a.mp4", 0, 1))
    assert not (tmp_path / "none").exists()
    (tmp_path / "file").write_bytes(b"")
    assert make(sprites_in(tmp_path / "file" / "kept"), wanted(tmp_path / "a.mp4", 0, 1)) == [picture]


def test_limits_hold_and_one_bad_file_costs_the_others_nothing(tmp_path):
    film(tmp_path / "a.mp4", 2)
    good, gone = wanted(tmp_path / "a.mp4", 0, 1), wanted(tmp_path / "gone.mp4", 0, 1)
    picture, refusal = make(sprites_in(tmp_path / "kept"), good, gone)
    assert picture[:2] == b"\xff\xd8"
    assert isinstance(refusal, Unprocessable)
    for limit in ({"max_pixels": 64}, {"wall_seconds": 0.001}, {"max_bytes": 10}):
        (refusal,) = make(sprites_in(tmp_path / "other", **limit), good)
        assert isinstance(refusal, Unprocessable), limit
        assert "no sprite can be made" in str(refusal)


def test_the_route_serves_segments_and_whole_videos_and_not_twice_to_a_client_that_has_them(client, video_id):
    url = f"/v1/videos/{video_id}/sprite"
    frames = len(client.post("/v1/search", json={"text": "a red circle"}).json()["hits"][0]["frame_weights"])
    whole, segment = client.get(url), client.get(url, params={"segment": 0})
    for answer, count in ((whole, 24), (segment, frames)):
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg")
        assert len({tile.tobytes() for tile in tiles(answer.content, count)}) > count / 3
        again = client.get(answer.url, headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert "private" in answer.headers["cache-control"]
    assert whole.headers["etag"] != segment.headers["etag"]
    assert_problem(client.get(url, params={"segment": 7}), 404, mentions="no segment 7")
    assert_problem(client.get(url, params={"segment": -1}), 422)
    assert_problem(client.get(f"/v1/videos/{'0' * 64}/sprite"), 404, slug="not-found")


def test_a_sprite_needs_a_key_where_videos_do(clip_store, tiny_encoder, tmp_path):
    header = bearer(make_keys(tmp_path)[1]["search"])
    with serving(clip_store, tiny_encoder, tmp_path, require_keys=True) as client:
        video = client.get("/v1/videos", headers=header).json()["videos"][0]
        url = f"/v1/videos/{video['video_id']}/sprite"
        assert_problem(client.get(url), 401)
        assert client.get(url, headers=header).status_code == 200
        assert_problem(client.get(url), 401)  # also when it is kept
