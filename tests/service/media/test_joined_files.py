"""A joined file whose clock restarts: all of it is indexed, and its times lead to the right place."""

import io
import shutil
import time

import av
import pytest
from joined_support import joined
from PIL import Image
from service_support import serving

from indexer.build.options import BuildRequest
from indexer.build.progress import Progress
from indexer.build.run import build
from indexer.store.config import StoreSettings
from indexer.store.reader import StoreReader
from indexer.store.writer import StoreWriter
from model.video.types import CLOCK_NOTE


def settings_like(store, **changes):
    with StoreReader.open(store) as reader:
        manifest = reader.manifest
    return StoreSettings(
        model_spec=manifest.model_spec,
        fingerprint=manifest.fingerprint,
        dim=manifest.dim,
        sampling=manifest.sampling,
        **changes,
    )


@pytest.fixture
def film(tmp_path):
    """6 seconds in three parts, the clock of each at 0 again; and what each of the 60 frames shows."""
    folder = tmp_path / "parts"
    folder.mkdir()
    return joined(folder, 0.0, 0.0, 0.0)


def test_all_of_it_is_indexed_and_shown_at_its_place(film, clip_store, tiny_encoder, tmp_path):
    path, greys = film
    store = tmp_path / "made" / "store"
    store.parent.mkdir()
    settings = settings_like(clip_store / "store", segment_seconds=1.0)
    with StoreWriter.open(store, settings=settings) as writer:
        report = build(writer, tiny_encoder, BuildRequest(paths=[str(path)], workers=1), Progress())
    assert report.failed == []
    with serving(clip_store, tiny_encoder, tmp_path, store=store) as client:
        [video] = client.get("/v1/videos").json()["videos"]
        assert video["reason"].startswith(f"{CLOCK_NOTE} 2 times")
        assert video["duration_seconds"] == pytest.approx(6.0, abs=0.11)
        assert [segment["start"] for segment in video["segments"]] == [0, 1, 2, 3, 4, 5]
        url = f"/v1/videos/{video['video_id']}"
        for number in (5, 25, 45):
            picture = Image.open(io.BytesIO(client.get(f"{url}/thumbnail", params={"t": number / 10 + 0.05}).content))
            assert picture.convert("L").getpixel((40, 30)) == pytest.approx(greys[number], abs=4)
        with av.open(io.BytesIO(client.get(f"{url}/preview").content)) as preview:
            shown = [(frame.time, frame.to_ndarray(format="rgb24").mean()) for frame in preview.decode(video=0)]
        assert len(shown) == 60
        assert shown[45] == (pytest.approx(4.5, abs=0.01), pytest.approx(greys[45], abs=5))
        with av.open(io.BytesIO(client.get(f"{url}/clip", params={"from": 4, "to": 5}).content)) as clip:
            kept = [frame.to_ndarray(format="rgb24").mean() for frame in clip.decode(video=0) if frame.time >= -1e-3]
        assert kept[5] == pytest.approx(greys[45], abs=5)


def test_an_upload_of_it_is_indexed_as_the_file_is(film, clip_store, tiny_encoder, tmp_path):
    path, _ = film
    shutil.copytree(clip_store / "store", tmp_path / "store")
    with serving(clip_store, tiny_encoder, tmp_path, store=tmp_path / "store") as client:
        added = client.post("/v1/videos", files={"file": path.read_bytes()}).json()
        deadline = time.monotonic() + 60
        while (video := client.get(added["video_url"]).json())["state"] == "pending":
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert video["reason"].startswith(f"{CLOCK_NOTE} 2 times")
    assert video["duration_seconds"] == pytest.approx(6.0, abs=0.11)
