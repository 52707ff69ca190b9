"""Searching with a picture: videos like it, captions for it, and files that are no pictures."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from service_support import assert_problem, emcl_command, serving

from model.video.sampling import decode_frame

URL = "/v1/search/image"


def encoded(picture, kind="PNG", **options):
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


@pytest.fixture(scope="module")
def frame(clip_store):
    """A frame of an indexed clip, as a picture."""
    return Image.fromarray(decode_frame(clip_store / "clips" / "clip_3.mp4", 0.0))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_a_frame_of_a_video_finds_that_video(client, frame, kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    answer = client.post(URL, files={"file": encoded(frame, kind, **options)})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["hits"][0]["title"] == "clip_3"
    assert found["upload"] == {"duration_seconds": 0.0, "frames": 1}
    assert len(found["captions"]) == 10
    stages = {part.split(";")[0].strip() for part in answer.headers["server-timing"].split(",")}
    assert {"receive", "decode", "encode"} <= stages


def test_it_is_turned_as_its_camera_says_and_its_alpha_is_dropped(client, frame):
    turned = frame.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    plain = client.post(URL, files={"file": encoded(frame)}).json()["hits"]
    assert client.post(URL, files={"file": encoded(turned, exif=exif)}).json()["hits"] == plain
    clear = frame.convert("RGBA")
    clear.putalpha(7)
    assert client.post(URL, files={"file": encoded(clear)}).json()["hits"] == plain


def png_of(width, height):
    """A PNG that claims a size and has no pixels."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "status", "mentions"),
    [
        (b"shopping list", 415, "picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", 415, "picture"),
        (png_of(60_000, 60_000), 413, "pixels"),
        (png_of(64, 64), 415, "picture"),
        (b"\x89PNG\r\n\x1a\n", 415, "picture"),
    ],
    ids=["text", "PostScript", "3.6 gigapixels", "no pixels", "torn"],
)
def test_what_is_no_picture_is_refused_with_what_to_do(client, content, status, mentions):
    assert_problem(client.post(URL, files={"file": content}), status, mentions=mentions)


def test_a_video_is_no_picture_and_limits_are_those_of_uploads(client, clip_store, tiny_encoder, tmp_path, frame):
    assert_problem(client.post(URL, files={"file": (clip_store / "clips" / "clip_0.mp4").read_bytes()}), 415)
    assert_problem(client.post(URL, files={"file": encoded(frame)}, params={"k": 0}), 422)
    with serving(clip_store, tiny_encoder, tmp_path, upload_max_bytes="1KiB") as small:
        noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
        assert_problem(small.post(URL, files={"file": encoded(noise)}), 413)


def test_the_command_takes_a_picture(monkeypatch, capsys, clip_store, tiny_checkpoint, tmp_path, frame):
    options = ["--store", str(clip_store / "store"), "--model", str(tiny_checkpoint)]
    run = emcl_command(monkeypatch, capsys, "search", *options)
    (tmp_path / "frame.png").write_bytes(encoded(frame))
    code, out, err = run("--image", tmp_path / "frame.png", "--json")
    assert code == 0, err
    assert json.loads(out)["hits"][0]["title"] == "clip_3"
    (tmp_path / "no.png").write_text("text")
    code, _, err = run("--image", tmp_path / "no.png")
    assert (code, "cannot be read as a picture" in err) == (1, True)
    assert run("words", "--image", tmp_path / "frame.png")[0] == 2
