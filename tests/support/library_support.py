"""A service over a store that may change, and what people do with its library over HTTP."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import service_support
from fastapi.testclient import TestClient

PATIENCE_SECONDS = 90


def make_app(folder: Path, encoder: object, **options: object):
    """An application over ``folder/store`` that looks for changes of others only when a test says so."""
    return service_support.make_app(folder, encoder, folder, **{"watch_seconds": 0, "rate_limit": 0, **options})


def until(met: Callable[[], object], what: str) -> object:
    """Wait until something is true, and return it."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if found := met():
            return found
        time.sleep(0.02)
    raise AssertionError(f"{what} did not come true within {PATIENCE_SECONDS} s")


def send(client: TestClient, content: bytes, **texts: object):
    """Upload a video under a name that is no file's."""
    return client.post("/v1/videos", files={"file": ("../../etc/passwd.mp4", content)}, data=texts)


def ended(client: TestClient, answer) -> dict[str, object]:
    """The job of an upload, when it has ended."""
    url = answer.json()["job_url"]
    look = lambda: (job := client.get(url).json())["state"] not in ("queued", "running") and job  # noqa: E731
    return until(look, "the end of the job")


def add(client: TestClient, content: bytes, **texts: object) -> str:
    """Upload a video and wait until it is added; its id."""
    answer = send(client, content, **texts)
    assert answer.status_code == 202, answer.text
    assert ended(client, answer)["state"] == "succeeded"
    return answer.json()["video_id"]


def found(client: TestClient, text: str = "a", **more: object) -> set[str]:
    """The videos that a search finds."""
    asked = {"text": text, "k": 50, "candidates": 50, **more}
    return {hit["video_id"] for hit in client.post("/v1/search", json=asked).raise_for_status().json()["hits"]}


def everything(client: TestClient) -> set[str]:
    """All videos that are listed."""
    return {video["video_id"] for video in client.get("/v1/videos?limit=1000&state=any").json()["videos"]}
