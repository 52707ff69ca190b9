"""A full disk: nothing that was acknowledged is lost, refusals say what to do, and with space again all goes on."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from service_support import serving
from training_support import TINY

from indexer.errors import StoreLocked
from indexer.store.verify import verify
from indexer.store.writer import StoreWriter
from model.demo.corpus import write_clip
from model.demo.scene import make_scene

PATIENCE_SECONDS = 90
SIZE = "8m"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few megabytes."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here (it takes root): {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture
def clip(tmp_path: Path) -> bytes:
    write_clip(make_scene(1, "test", 0), tmp_path / "clip.mp4")
    return (tmp_path / "clip.mp4").read_bytes()


def variant(clip: bytes, number: int) -> bytes:
    """Other bytes, the same pictures: a free box with a number in it."""
    return clip + b"\0\0\0\x10free" + number.to_bytes(8, "big")


def fill(place: Path) -> Path:
    """Take all the space that there is, to the last page."""
    ballast = place / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
    assert shutil.disk_usage(place).free == 0
    return ballast


def until(met: Callable[[], object], what: str) -> object:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := met()):
        assert time.monotonic() < deadline, f"{what} did not come true"
        time.sleep(0.02)
    return found


def ended(client, answer):
    """The job of an upload, when it has ended."""
    look = lambda: (job := client.get(answer.json()["job_url"]).json())["state"] not in ("queued", "running") and job  # noqa: E731
    return until(look, "the end of the job")


def send(client, content: bytes):
    return client.post("/v1/videos", files={"file": content})


def assert_refused(answer) -> None:
    """It says that there is no space, and what to do."""
    assert answer.status_code == 503, f"{answer.status_code} {answer.text}"
    assert any(word in answer.json()["next_step"] for word in ("made space", "made room"))
    assert int(answer.headers["retry-after"]) >= 1


def found(client) -> set[str]:
    asked = {"text": "a", "k": 100, "candidates": 100}
    return {hit["video_id"] for hit in client.post("/v1/search", json=asked).raise_for_status().json()["hits"]}


@pytest.fixture
def options(clip_store, small_disk):
    """Store, media, jobs and uploads are all on the small disk."""
    shutil.copytree(clip_store / "store", small_disk / "store")
    return {"store": small_disk / "store", "rate_limit": 0, "upload_rate_per_minute": 0, "watch_seconds": 0.1}


@contextmanager
def writing(store: Path) -> Iterator[None]:
    """Another process writes to the store, as soon as the service lets go of it."""
    while True:
        try:
            writer = StoreWriter.open(store)
        except StoreLocked:
            time.sleep(0.02)
        else:
            with writer:
                yield
            return


def test_a_full_disk_refuses_and_loses_nothing(clip_store, tiny_encoder, small_disk, clip, options):
    with serving(clip_store, tiny_encoder, small_disk, **options) as client:
        first = send(client, variant(clip, 0))
        assert ended(client, first)["state"] == "succeeded"
        kept = {first.json()["video_id"]}
        before = found(client)
        ballast = fill(small_disk)
        assert_refused(send(client, variant(clip, 1)))
        captions = [{"text": f"caption {number}"} for number in range(100)]
        assert_refused(client.post("/v1/captions", json={"captions": captions}))
        assert found(client) == before
        assert client.get("/health/ready").status_code == 200
        ballast.unlink()
        second = send(client, variant(clip, 1))
        assert second.status_code == 202
        assert ended(client, second)["state"] == "succeeded"
        kept.add(second.json()["video_id"])
        assert found(client) == before | kept
        assert client.post("/v1/captions", json={"captions": captions}).status_code == 201
    with serving(clip_store, tiny_encoder, small_disk, **options) as client:
        assert found(client) == before | kept
    report = verify(small_disk / "store")
    assert report.problems == []
    assert report.recall["videos"] == 1.0
    assert {path.name[:64] for path in (small_disk / "store" / "media").iterdir()} == kept


def test_a_video_accepted_before_the_disk_was_full_waits_for_space(clip_store, tiny_encoder, small_disk, clip, options):
    with serving(clip_store, tiny_encoder, small_disk, **options) as client:
        assert ended(client, send(client, variant(clip, 0)))["state"] == "succeeded"
        with writing(options["store"]):
            accepted = send(client, variant(clip, 1))
            assert accepted.status_code == 202
            job = accepted.json()["job_url"]
            until(lambda: client.get(job).json()["progress"]["note"].startswith("waiting"), "waiting for the store")
            ballast = fill(small_disk)
        time.sleep(3)  # a turn or two without space
        assert client.get(job).json()["state"] in ("running", "queued")
        assert client.get("/health/ready").status_code == 200
        ballast.unlink()
        assert ended(client, accepted)["state"] == "succeeded"
        assert accepted.json()["video_id"] in found(client)
        after = send(client, variant(clip, 2))
        assert ended(client, after)["state"] == "succeeded"
    assert verify(options["store"]).problems == []


def test_an_upload_to_search_with_on_a_full_disk(clip_store, tiny_encoder, small_disk, clip, options):
    with serving(clip_store, tiny_encoder, small_disk, **options, upload_folder=small_disk) as client:
        ballast = fill(small_disk)
        assert_refused(client.post("/v1/search/video", files={"file": clip}))
        ballast.unlink()
        assert client.post("/v1/search/video", files={"file": clip}).status_code == 200


def test_a_job_that_cannot_be_written_down_is_refused(clip_store, tiny_encoder, small_disk, options, tmp_path):
    with serving(clip_store, tiny_encoder, small_disk, **options) as client:
        asked = {"kind": "train", "config": TINY, "device": "cpu"}
        answers = [client.post("/v1/jobs", json=asked) for _ in range(2)]
        assert answers[0].status_code == 202, answers[0].text
        ballast = fill(small_disk)
        refused = None
        for _ in range(50):
            answer = client.post("/v1/jobs", json=asked)
            if answer.status_code != 202:
                refused = answer
                break
            answers.append(answer)
        assert refused is not None
        assert_refused(refused)
        ballast.unlink()
        listed = {job["job_id"] for job in client.get("/v1/jobs?limit=1000").json()["jobs"]}
        assert listed == {answer.json()["job_id"] for answer in answers}
        assert client.post("/v1/jobs", json=asked).status_code == 202
