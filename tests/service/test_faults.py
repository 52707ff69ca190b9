"""Damage, clocks that jump, workers that are killed: nothing acknowledged is lost, and what was served is served on."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jobs_support as support
import pytest
from jobs_support import ask, begun, until
from service_support import bearer, make_app, make_keys, serving
from training_support import TINY

from indexer.store.verify import verify
from indexer.store.writer import StoreWriter
from model.demo.corpus import write_clip
from model.demo.scene import make_scene
from service.jobs.store import JobStore

ENDED = ("succeeded", "failed", "cancelled", "lost")
TEN_YEARS = 10 * 365.25 * 86_400
KILLS = 6


def hits(client, **headers) -> list[tuple[str, float]]:
    """What a query finds, computed anew."""
    client.app.state.services.shared.results.clear()
    asked = {"text": "a red circle", "k": 50, "candidates": 50}
    found = client.post("/v1/search", json=asked, headers=headers).raise_for_status().json()["hits"]
    return [(hit["video_id"], hit["score"]) for hit in found]


@pytest.fixture
def folder(clip_store, tmp_path: Path) -> Path:
    shutil.copytree(clip_store / "store", tmp_path / "store")
    return tmp_path


# Damage.


def damages(store: Path) -> Iterator[tuple[Path, bytes]]:
    """Each file that a service reads of the store, with what is to stand there instead."""
    current = store / "generations" / (store / "CURRENT").read_text().strip()
    for path in (store / "CURRENT", *sorted(current.iterdir())):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0x10
        yield path, bytes(content)
        yield path, bytes(content[: len(content) // 3])
    for path in sorted((store / "features").iterdir()):
        yield path, path.read_bytes()[:-1]
    yield store / "catalogue.db", (store / "catalogue.db").read_bytes()[:4096] + b"\xff" * 8192


def put(path: Path, content: bytes) -> None:
    """Another file in its place, as a copy that went wrong leaves it; processes that have the old one open keep it."""
    (path.parent / "put").write_bytes(content)
    (path.parent / "put").replace(path)


def test_whatever_is_damaged_is_found_and_refused_and_the_present_is_served_on(clip_store, tiny_encoder, folder):
    store = folder / "store"
    options = {"store": store, "watch_seconds": 0, "rate_limit": 0}
    with serving(clip_store, tiny_encoder, folder, **options) as client:
        before = hits(client)
        with StoreWriter.open(store) as writer:
            writer.publish(tiny_encoder)
        seen = set()
        for path, damaged in damages(store):
            whole = path.read_bytes()
            put(path, damaged)
            seen.add(path.name.split(".")[-1])
            assert verify(store).problems, f"{path.name} is not found to be damaged"
            refused = client.post("/v1/index/reload")
            assert refused.status_code == 409, f"{path.name}: {refused.text}"
            assert refused.json()["next_step"]
            assert hits(client) == before
            with pytest.raises(ValueError, match=r"\w"):
                make_app(clip_store, tiny_encoder, folder, **options)
            put(path, whole)
        assert {"CURRENT", "json", "db", "npy"} <= seen
        assert client.post("/v1/index/reload").status_code == 200
        assert hits(client) == before
    assert verify(store).problems == []


# Clocks.


class Clock:
    """``time.time`` that can be set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real, self.jump = time.time, 0.0
        monkeypatch.setattr(time, "time", lambda: real() + self.jump)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_clocks_that_jump_lose_nothing(clip_store, tiny_encoder, folder, clock):
    _, tokens = make_keys(folder)
    admin = bearer(tokens["admin"])
    write_clip(make_scene(1, "test", 0), folder / "clip.mp4")
    clip = (folder / "clip.mp4").read_bytes()
    options = {"store": folder / "store", "require_keys": True, "upload_rate_per_minute": 0, "rate_limit": 1000}
    added, jobs = [], []
    with serving(clip_store, tiny_encoder, folder, **options) as client:
        before = hits(client, **admin)
        for number, jump in enumerate((0, TEN_YEARS, -TEN_YEARS, 0)):
            clock.jump = jump
            content = clip + b"\0\0\0\x09free" + bytes([number])
            answer = client.post("/v1/videos", files={"file": content}, headers=admin)
            assert answer.status_code == 202, answer.text
            url = answer.json()["job_url"]
            until(lambda: client.get(url, headers=admin).json()["state"] in ENDED)  # noqa: B023 - used up at once
            assert client.get(url, headers=admin).json()["state"] == "succeeded"
            added.append(answer.json()["video_id"])
            job = client.post("/v1/jobs", json={"kind": "train", "config": TINY, "device": "cpu"}, headers=admin)
            jobs.append(job.json()["job_id"])
            found = {video for video, _ in hits(client, **admin)}
            assert found == {video for video, _ in before} | set(added)
        listed = client.get("/v1/jobs?state=queued&limit=1000", headers=admin).json()["jobs"]
        assert [job["job_id"] for job in listed] == jobs[::-1]
    with serving(clip_store, tiny_encoder, folder, **options) as client:
        assert {video for video, _ in hits(client, **admin)} == {video for video, _ in before} | set(added)
        states = {job["state"] for job in client.get("/v1/jobs", headers=admin).json()["jobs"]}
        assert states == {"queued", "succeeded"}
    assert verify(folder / "store").problems == []


def test_a_jump_neither_gives_nor_takes_what_a_key_may_ask(clip_store, tiny_encoder, folder, clock):
    options = {"rate_limit": 0.001, "rate_burst": 3, "limit_clients": True}
    with serving(clip_store, tiny_encoder, folder, store=folder / "store", **options) as client:
        statuses = []
        for jump in (0, TEN_YEARS, -TEN_YEARS, 0, TEN_YEARS):
            clock.jump = jump
            statuses.append(client.get("/v1/videos").status_code)
    assert statuses == [200, 200, 200, 429, 429]


def test_a_session_ends_when_the_clock_says_so_and_never_becomes_another(clip_store, tiny_encoder, folder, clock):
    _, tokens = make_keys(folder)
    options = {"store": folder / "store", "require_keys": True}
    with serving(clip_store, tiny_encoder, folder, **options) as client:
        assert client.post("/v1/session", headers=bearer(tokens["search"])).status_code < 300
        for jump, status in ((0, 200), (TEN_YEARS, 401), (0, 200), (-TEN_YEARS, 200)):
            clock.jump = jump
            assert client.get("/v1/videos").status_code == status
            assert client.delete(f"/v1/videos/{'0' * 64}").status_code in (401, 403)


def test_times_of_files_mean_nothing(clip_store, tiny_encoder, folder):
    store = folder / "store"
    with serving(clip_store, tiny_encoder, folder, store=store, watch_seconds=0) as client:
        before = hits(client)
        for moment in (0, 4_000_000_000):
            for path in store.rglob("*"):
                os.utime(path, (moment, moment))
            assert client.post("/v1/index/reload").status_code == 200
            assert hits(client) == before
    assert verify(store).problems == []


# Workers that are killed.


@contextmanager
def worker_on(job_store: JobStore) -> Iterator[subprocess.Popen[bytes]]:
    """A worker process, killed at the end of it."""
    with support.start_worker(job_store.folder) as worker:
        try:
            yield worker
        finally:
            worker.kill()


def test_a_worker_killed_again_and_again_loses_no_job(tmp_path: Path):
    job_store = JobStore(tmp_path / "jobs")
    chance = random.Random(5)
    jobs = [ask(job_store, "quick") for _ in range(3)]
    for _ in range(KILLS):
        jobs.append(
            ask(job_store, "quick")
        )  # however many the worker before managed, there is something to do for this one
        finished = job_store.counts()["succeeded"]
        with worker_on(job_store):
            until(lambda: job_store.counts()["running"] or job_store.counts()["succeeded"] > finished)  # noqa: B023 - used up at once
            time.sleep(chance.uniform(0, 0.2))
        job_store.find_lost()
        assert len(job_store.list(limit=100)) == len(jobs)

    def all_done() -> bool:
        job_store.find_lost()
        for job in job_store.list(limit=100):
            if job.state in ("lost", "failed"):
                assert job.error
                job_store.resume(job.job_id)
        return job_store.counts()["succeeded"] == len(jobs)

    with worker_on(job_store):
        until(all_done)
    assert all(begun(job_store.job_folder(job)) >= 1 for job in jobs)
    job_store.close()
