"""A service killed while it adds and deletes videos: what it acknowledged is there, or gone, when the next one runs."""

from __future__ import annotations

import random
import shutil
import threading
import time
from pathlib import Path

import httpx
import pytest

from indexer.store.verify import verify
from model.demo.corpus import write_clip
from model.demo.scene import make_scene

KILLS, STEPS = 5, 12
SEED = 12
PATIENCE_SECONDS = 120


class Client(threading.Thread):
    """Adds, captions and deletes videos until the service dies under it, and remembers what was acknowledged."""

    def __init__(self, url: str, clip: bytes, number: int, kept: set[str], deleted: set[str]) -> None:
        super().__init__(daemon=True)
        self._http = httpx.Client(base_url=url, timeout=30)
        self._clip, self._number = clip, number
        self.kept, self.deleted = kept, deleted
        self.steps = 0  # what it has done

    def run(self) -> None:
        try:
            for step in range(STEPS):
                # Other bytes, the same pictures: a free box with a number in it.
                content = self._clip + b"\0\0\0\x10free" + bytes(7) + bytes([16 * self._number + step])
                answer = self._http.post("/v1/videos", files={"file": content}, data={"tags": "live"})
                if answer.status_code == 202:
                    self.kept.add(answer.json()["video_id"])
                if step % 3 == 2 and self.kept:
                    self._take_back(random.Random(step).choice(sorted(self.kept)))
                self.steps = step + 1
        except httpx.TransportError:
            pass  # killed
        finally:
            self._http.close()

    def _take_back(self, video_id: str) -> None:
        self.kept.discard(video_id)  # from now on it may be there or not, until that is acknowledged
        if self._http.delete(f"/v1/videos/{video_id}").status_code == 204:
            self.deleted.add(video_id)


@pytest.mark.slow
def test_a_killed_service_loses_nothing_that_it_acknowledged(clip_store, tiny_checkpoint, tmp_path: Path, start_server):
    store = tmp_path / "store"
    shutil.copytree(clip_store / "store", store)
    write_clip(make_scene(1, "test", 0), tmp_path / "clip.mp4")
    clip = (tmp_path / "clip.mp4").read_bytes()
    options = ("--store", store, "--model", tiny_checkpoint, "--jobs-folder", tmp_path / "jobs", "--rate-limit", 0)
    options += ("--embedded-worker", "off", "--overlay-max-rows", 5, "--upload-rate-per-minute", 0)
    chance = random.Random(SEED)
    kept: set[str] = set()
    deleted: set[str] = set()
    for number in range(KILLS):
        server = start_server(*options)
        client = Client(server.url, clip, number, kept, deleted)
        client.start()
        wanted, deadline = chance.randint(3, STEPS), time.monotonic() + PATIENCE_SECONDS
        while client.steps < wanted and client.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.5))  # in which some of it is committed
        server.kill()
        client.join(60)
        assert not client.is_alive()
        assert client.steps >= wanted
    assert kept
    assert deleted
    server = start_server(*options)
    with httpx.Client(base_url=server.url, timeout=60) as http:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while http.get("/v1/index").json()["overlay"]["waiting"] and time.monotonic() < deadline:
            time.sleep(0.1)
        videos = http.get("/v1/videos", params={"tag": "live", "limit": 1000}).json()["videos"]
        listed = {video["video_id"] for video in videos}
        assert kept <= listed
        assert not deleted & listed
        found = http.post("/v1/search", json={"text": "a", "k": 1000, "candidates": 1000}).json()["hits"]
        assert kept <= {hit["video_id"] for hit in found}
        assert not deleted & {hit["video_id"] for hit in found}
        assert all(http.head(video["stream_url"]).status_code == 200 for video in videos)
    server.stop()
    assert verify(store).problems == []
    files = {path.name[:64] for path in (store / "media").iterdir()}
    assert files == listed


@pytest.mark.slow
def test_words_put_over_http_are_found_after_a_kill(clip_store, tiny_checkpoint, tmp_path: Path, start_server):
    """Captions, titles and transcripts that were answered, added, changed and removed."""
    store = tmp_path / "store"
    shutil.copytree(clip_store / "store", store)
    options = ("--store", store, "--model", tiny_checkpoint, "--jobs-folder", tmp_path / "jobs", "--rate-limit", 0)
    options += ("--embedded-worker", "off", "--watch-seconds", 0)

    def find(http: httpx.Client, text: str) -> list[tuple[str, list[str]]]:
        answer = http.post("/v1/search", json={"text": text, "fusion": "text"}).raise_for_status()
        return [(hit["video_id"], hit["matched"]) for hit in answer.json()["hits"]]

    server = start_server(*options)
    with httpx.Client(base_url=server.url, timeout=60) as http:
        one, two = (video["video_id"] for video in http.get("/v1/videos?limit=2").json()["videos"])
        added = http.post("/v1/captions", json={"captions": [{"text": "an armadillo", "video_id": one}]})
        gone = http.post("/v1/captions", json={"captions": [{"text": "a narwhal", "video_id": one}]})
        number = gone.raise_for_status().json()["captions"][0]["caption_id"]
        http.delete(f"/v1/captions/{number}").raise_for_status()
        http.patch(f"/v1/videos/{two}", json={"title": "Walrus"}).raise_for_status()
        http.patch(f"/v1/videos/{two}", json={"title": "Zeppelin"}).raise_for_status()
        for text in ("a platypus", "a kangaroo"):
            cues = f"WEBVTT\n\n00:00.250 --> 00:00.750\n{text}\n"
            http.put(f"/v1/videos/{two}/transcript", content=cues).raise_for_status()
        added.raise_for_status()
    server.kill()
    server = start_server(*options)
    with httpx.Client(base_url=server.url, timeout=60) as http:
        assert find(http, "armadillo") == [(one, ["caption"])]
        assert find(http, "zeppelin") == [(two, ["title"])]
        assert find(http, "kangaroo") == [(two, ["transcript"])]
        assert [find(http, text) for text in ("narwhal", "walrus", "platypus")] == [[], [], []]
    assert verify(store).problems == []
