"""A library that several use at once: other processes that write, services side by side and one after the other."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from library_support import add, ended, everything, found, make_app, send, until

from indexer.store.verify import verify
from indexer.store.writer import StoreWriter


@pytest.fixture
def folder(clip_store: Path, tmp_path: Path) -> Path:
    shutil.copytree(clip_store / "store", tmp_path / "store")
    return tmp_path


@pytest.fixture
def client(folder: Path, tiny_encoder):
    with TestClient(make_app(folder, tiny_encoder)) as made:
        yield made


WRITER = """
import sys
from indexer.store.writer import StoreWriter
with StoreWriter.open(sys.argv[1]) as writer:
    print("open", flush=True)
    for line in sys.stdin:
        writer.edit_video(line.split()[0], tags=line.split()[1:])
        print("done", flush=True)
"""


def other_writer(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(folder / "store")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "open\n"
    return process


def test_while_another_process_writes_changes_are_refused_and_additions_wait(client, folder, clips):
    video_id = client.get("/v1/videos").json()["videos"][0]["video_id"]
    other = other_writer(folder)
    try:
        for answer in (
            client.delete(f"/v1/videos/{video_id}"),
            client.patch(f"/v1/videos/{video_id}", json={"tags": ["x"]}),
            client.post("/v1/captions", json={"captions": [{"text": "x"}]}),
        ):
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) > 0
            assert f"process {other.pid} on" in answer.json()["detail"]
        sent = [send(client, content) for content in clips[:3]]
        waits = lambda: f"process {other.pid}" in str(client.get(sent[0].json()["job_url"]).json()["progress"])  # noqa: E731
        until(waits, "the job says for whom it waits")
        assert len(found(client)) == 6
        # One that waits can be taken back meanwhile, one that is worked on too, and a job can be cancelled.
        assert client.delete(f"/v1/videos/{sent[1].json()['video_id']}").status_code == 204
        assert client.post(f"{sent[2].json()['job_url']}/cancel").status_code == 202
    finally:
        other.communicate()
    assert ended(client, sent[0])["state"] == "succeeded"
    assert [ended(client, answer)["state"] for answer in sent[1:]] == ["cancelled", "cancelled"]
    assert everything(client) & {answer.json()["video_id"] for answer in sent} == {sent[0].json()["video_id"]}
    gone = lambda: len(list((folder / "store" / "media").iterdir())) == 1  # noqa: E731
    until(gone, "nothing is left of those that were taken back")


def test_what_another_process_commits_appears_by_itself(folder, tiny_encoder):
    with TestClient(make_app(folder, tiny_encoder, watch_seconds=0.05)) as client:
        video_id = client.get("/v1/videos").json()["videos"][0]["video_id"]
        with other_writer(folder) as other:
            print(video_id, "seen", file=other.stdin, flush=True)
            assert other.stdout.readline() == "done\n"
            until(lambda: found(client, filter={"tags": ["seen"]}) == {video_id}, "the tag")
        with StoreWriter.open(folder / "store") as writer:
            published = writer.publish(tiny_encoder).generation
        until(lambda: client.get("/v1/index").json()["generation"] == published, "the new generation")


def test_a_grown_overlay_is_published_in_the_background(folder, tiny_encoder, clips):
    with TestClient(make_app(folder, tiny_encoder, overlay_max_rows=2)) as client:
        before = client.get("/v1/index").json()["generation"]
        videos = [add(client, content, captions=["one", "two"]) for content in clips[:2]]
        look = lambda: (index := client.get("/v1/index").json())["generation"] != before and index  # noqa: E731
        index = until(look, "a new generation")
        until(lambda: not client.get("/v1/index").json()["overlay"]["publishing"], "the end of the publication")
        assert index["counts"]["videos"] == 8
        assert found(client) >= set(videos)
    assert verify(folder / "store").problems == []


def test_no_query_fails_while_everything_changes(folder, tiny_encoder, clips):
    """Searches from several clients while videos come and go, generations are published and the index is reloaded."""
    app = make_app(folder, tiny_encoder, overlay_max_rows=3, watch_seconds=0.05, upload_slots=8)

    async def run() -> list[str]:
        wrong: list[str] = []
        stop = asyncio.Event()
        removed: set[str] = set()
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://testserver", timeout=60) as client,
        ):

            async def search(number: int) -> None:
                while not stop.is_set():
                    await asyncio.sleep(0.03)  # clients in this process must not keep its other threads from their turn
                    gone = set(removed)
                    body = {"text": f"query {number}", "k": 20, "filter": {"tags": ["even"] if number % 2 else []}}
                    answer = await client.post("/v1/search", json=body)
                    if answer.status_code != 200:
                        wrong.append(answer.text)
                        return
                    back = gone & {hit["video_id"] for hit in answer.json()["hits"]}
                    if back:
                        wrong.append(f"{back} came back")

            async def change() -> None:
                for content in clips:
                    answer = await client.post("/v1/videos", files={"file": content}, data={"tags": "even"})
                    while (job := (await client.get(answer.json()["job_url"])).json())["state"] != "succeeded":
                        assert job["state"] in ("queued", "running"), job
                        await asyncio.sleep(0.01)
                    video_id = answer.json()["video_id"]
                    captions = {"captions": [{"text": f"of {video_id}", "video_id": video_id}]}
                    assert (await client.post("/v1/captions", json=captions)).status_code == 201
                    assert (await client.post("/v1/index/reload")).status_code == 200
                    assert (await client.delete(f"/v1/videos/{video_id}")).status_code == 204
                    removed.add(video_id)

            searching = [asyncio.ensure_future(search(number)) for number in range(4)]
            try:
                await change()
            finally:
                stop.set()
                await asyncio.gather(*searching)
        return wrong

    assert asyncio.run(run()) == []
    assert verify(folder / "store").problems == []
    assert list((folder / "store" / "media").iterdir()) == []


def test_what_was_accepted_is_finished_by_the_next_service(folder, tiny_encoder, clips):
    other = other_writer(folder)  # so that nothing can be committed
    try:
        with TestClient(make_app(folder, tiny_encoder)) as client:
            sent = [send(client, content, title="kept", tags="t").json() for content in clips[:2]]
            waits = lambda: "waiting" in str(client.get(sent[0]["job_url"]).json()["progress"])  # noqa: E731
            until(waits, "the first one is decoded and waits")
            assert client.get("/v1/index").json()["overlay"]["waiting"] == 2
            states = [client.get(f"/v1/videos/{answer['video_id']}").json()["state"] for answer in sent]
            assert states == ["pending", "pending"]
            edit = client.patch(f"/v1/videos/{sent[0]['video_id']}", json={"title": "x"})
            assert edit.status_code in (409, 503)
    finally:
        other.communicate()
    cut_short = folder / "store" / "media" / ".tmp-upload"
    orphan = folder / "store" / "media" / f"{'0' * 64}.mp4"
    for path in (cut_short, orphan):
        path.write_bytes(b"x")
    with TestClient(make_app(folder, tiny_encoder)) as client:
        for answer in sent:
            done = lambda url=answer["job_url"]: client.get(url).json()["state"] == "succeeded"  # noqa: E731
            until(done, "the job of the former service")
            video = client.get(answer["video_url"]).json()
            assert (video["state"], video["title"], video["tags"]) == ("indexed", "kept", ["t"])
        until(lambda: not cut_short.exists() and not orphan.exists(), "leftovers are gone")
    assert verify(folder / "store").problems == []


def test_one_service_changes_a_store_and_others_only_search_it(folder, tiny_encoder, clips):
    with TestClient(make_app(folder, tiny_encoder)) as first:
        video_id = add(first, clips[0])
        with TestClient(make_app(folder, tiny_encoder, watch_seconds=0.05)) as second:
            refused = send(second, clips[1])
            assert refused.status_code == 503
            assert "another service" in refused.json()["detail"]
            until(lambda: video_id in found(second), "what the first one added")
            assert first.delete(f"/v1/videos/{video_id}").status_code == 204
            until(lambda: video_id not in found(second), "what the first one deleted")
    with TestClient(make_app(folder, tiny_encoder)) as third:
        assert send(third, clips[1]).status_code == 202
