"""The library over HTTP: videos uploaded, edited and removed, and their captions, all searchable at once."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import av
import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from library_support import add, ended, everything, found, make_app, send, until
from subtitle_support import write_with_subtitles

from indexer.store.catalogue import Catalogue
from indexer.store.reader import StoreReader
from indexer.store.verify import verify
from indexer.store.writer import StoreWriter
from model.demo.corpus import write_clip
from model.demo.scene import make_scene


@pytest.fixture
def folder(clip_store: Path, tmp_path: Path) -> Path:
    shutil.copytree(clip_store / "store", tmp_path / "store")
    return tmp_path


@pytest.fixture
def client(folder: Path, tiny_encoder):
    with TestClient(make_app(folder, tiny_encoder)) as made:
        yield made


def test_an_uploaded_video_is_searchable_when_its_job_is_done(client, folder, clips):
    before, index = found(client), client.get("/v1/index").json()
    answer = send(client, clips[0], title="Harbour", tags=["sea", "even"], captions=["a boat", "a boat", "gulls"])
    assert answer.status_code == 202
    video_id = hashlib.sha256(clips[0]).hexdigest()
    assert answer.json() == {
        "video_id": video_id,
        "state": "pending",
        "job_id": answer.json()["job_id"],
        "video_url": f"/v1/videos/{video_id}",
        "job_url": answer.headers["location"],
    }
    job = ended(client, answer)
    assert (job["state"], job["kind"], job["result"]) == ("succeeded", "add-video", {"video_id": video_id})
    assert found(client) == before | {video_id}
    assert video_id in found(client, filter={"tags": ["sea", "even"]})
    video = client.get(f"/v1/videos/{video_id}").json()
    assert (video["title"], video["tags"], video["state"]) == ("Harbour", ["even", "sea"], "indexed")
    assert video["captions"] == ["a boat", "gulls"]
    assert client.get(video["stream_url"]).content == clips[0]
    assert client.get(video["thumbnail_url"]).status_code == 200
    own = client.post("/v1/search/video?k=50&candidates=50", files={"file": clips[0]}).json()
    assert {"a boat", "gulls"} <= {caption["text"] for caption in own["captions"]}
    assert own["hits"][0]["video_id"] == video_id

    after = client.get("/v1/index").json()
    assert after["generation"] == index["generation"]
    assert after["version"] != index["version"]
    assert after["revision"] > index["revision"]
    assert after["counts"]["videos"] == index["counts"]["videos"] + 1
    assert after["overlay"] == {"rows": 3, "publishing": False, "waiting": 0}
    assert [path.name for path in (folder / "store" / "media").iterdir()] == [f"{video_id}.mp4"]


def test_the_subtitles_of_an_uploaded_video_are_searched(client, tmp_path):
    said = ((1.2, 1.8, "a giant octopus"),)
    path = write_with_subtitles(tmp_path / "a.mkv", [("subrip", "eng", said), ("subrip", None, ((0, 1, "x" * 3000),))])
    video_id = add(client, path.read_bytes())
    (hit,) = client.post("/v1/search", json={"text": "giant octopus", "fusion": "text"}).json()["hits"]
    assert (hit["video_id"], hit["passage"], hit["moment"]) == (video_id, {"start": 1.2, "end": 1.8}, 1.2)
    video = client.get(f"/v1/videos/{video_id}").json()
    assert [(one["language"], one["origin"]) for one in video["transcripts"]] == [("en", "track")]
    assert "subtitle track 2 cannot be used" in video["reason"]


def repeat_clip(clip, target, *, times):
    """The clip's packets, not encoded again, one copy after the other."""
    with av.open(str(target), "w") as joined:
        stream, offset = None, 0
        for _ in range(times):
            with av.open(str(clip)) as source:
                video = source.streams.video[0]
                stream = stream or joined.add_stream_from_template(video)
                for packet in source.demux(video):
                    if packet.size == 0:
                        continue
                    packet.pts, packet.dts, packet.stream = packet.pts + offset, packet.dts + offset, stream
                    joined.mux(packet)
                offset += video.duration


def test_segments_are_those_that_the_indexer_would_make(folder, tiny_encoder, tmp_path):
    """A long video is cut and sampled over HTTP as by ``emcl index``."""
    from indexer.build.options import BuildRequest
    from indexer.build.progress import Progress
    from indexer.build.run import build
    from indexer.store.config import StoreSettings

    long = tmp_path / "long.mp4"
    write_clip(make_scene(1, "test", 9), long)
    repeat_clip(long, tmp_path / "x.mp4", times=31)
    content = (tmp_path / "x.mp4").read_bytes()
    with StoreReader.open(folder / "store") as reader:
        manifest = reader.manifest
    settings = StoreSettings(
        model_spec=manifest.model_spec, fingerprint=manifest.fingerprint, dim=manifest.dim, sampling=manifest.sampling
    )
    with StoreWriter.open(tmp_path / "other", settings=settings) as writer:
        build(writer, tiny_encoder, BuildRequest(paths=[str(tmp_path / "x.mp4")]), Progress())
    with TestClient(make_app(folder, tiny_encoder)) as client:
        video_id = add(client, content)
    with StoreReader.open(folder / "store") as over, StoreReader.open(tmp_path / "other") as built:
        left, right = over.video(video_id), built.video(video_id)
        assert len(right.segments) > 1
        assert (left.duration_seconds, left.width, left.height) == (right.duration_seconds, right.width, right.height)
        for one, other in zip(left.segments, right.segments, strict=True):
            assert (one.start_seconds, one.end_seconds) == (other.start_seconds, other.end_seconds)
            assert one.timestamps_seconds.tolist() == other.timestamps_seconds.tolist()
        ids = [[segment.segment_id for segment in video.segments] for video in (left, right)]
        np.testing.assert_array_equal(over.segment_embeddings(ids[0]), built.segment_embeddings(ids[1]))


def test_the_same_bytes_are_one_video_however_often_they_come(client, clips):
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: send(client, clips[1]), range(4)))
    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 202]
    assert len({answer.json()["job_id"] for answer in answers}) == 1
    assert ended(client, answers[0])["state"] == "succeeded"
    again = send(client, clips[1], title="other")
    assert (again.status_code, again.json()["state"], again.json()["job_id"]) == (200, "indexed", None)
    assert again.headers["location"] == again.json()["video_url"]
    assert client.get("/v1/jobs?kind=add-video").json()["total"] == 1
    known = client.get("/v1/videos").json()["videos"][0]["video_id"]  # one that the indexer brought
    content = client.get(f"/v1/videos/{known}/stream").content
    assert send(client, content).json() == {**again.json(), "video_id": known, "video_url": f"/v1/videos/{known}"}


@pytest.mark.parametrize("content", [b"this is no video", b"\x00\x00\x00\x20ftypisom" + b"\x00" * 500])
def test_what_is_no_video_fails_its_job_and_leaves_nothing(client, folder, content):
    before = everything(client)
    answer = send(client, content)
    job = ended(client, answer)
    assert job["state"] == "failed"
    assert len(job["error"]) > 10
    assert everything(client) == before
    assert list((folder / "store" / "media").iterdir()) == []
    assert send(client, content).status_code == 202  # it may be tried again


@pytest.mark.parametrize(
    ("texts", "status"),
    [
        ({"tags": ["x" * 101]}, 422),
        ({"tags": [" "]}, 422),
        ({"title": "x" * 501}, 422),
        ({"title": ["a", "b"]}, 422),
        ({"captions": [" "]}, 422),
        ({"nonsense": "x"}, 422),
        ({"title": "x" * 70_000}, 413),
    ],
)
def test_what_cannot_be_kept_with_a_video_is_refused_before_anything_is(client, folder, clips, texts, status):
    answer = send(client, clips[0], **texts)
    assert answer.status_code == status, answer.text
    assert answer.json()["next_step"]
    assert not (folder / "jobs").exists()
    media = folder / "store" / "media"
    assert not media.exists() or list(media.iterdir()) == []


def test_a_removed_video_is_gone_at_once_and_only_our_copy_of_it(client, folder, clip_store, clips):
    video_id = add(client, clips[2], captions=["only mine"])
    assert client.get(f"/v1/videos/{video_id}/sprite").status_code == 200
    assert len(list((folder / "previews" / "sprites").glob(f"{video_id}*"))) == 1
    assert client.delete(f"/v1/videos/{video_id}").status_code == 204
    assert list((folder / "previews" / "sprites").glob(f"{video_id}*")) == []
    assert video_id not in found(client)
    assert client.get(f"/v1/videos/{video_id}").status_code == 404
    assert "only mine" not in str(client.get("/v1/captions").json())
    assert list((folder / "store" / "media").iterdir()) == []
    assert client.delete(f"/v1/videos/{video_id}").status_code == 404

    users = next(iter(found(client)))
    path = Path(next(v["path"] for v in paths(folder) if v["video_id"] == users))
    assert client.delete(f"/v1/videos/{users}").status_code == 204
    assert path.is_file(), "a user's own file is never touched"
    with StoreReader.open(folder / "store") as reader:  # as a service that starts after a crash
        assert reader.video(users) is None
    assert add(client, path.read_bytes()) == users, "the same bytes may come back"
    assert users in found(client)


def paths(folder: Path) -> list[dict[str, str]]:
    with closing(Catalogue.open_readonly(folder / "store" / "catalogue.db")) as catalogue:
        return [{"video_id": place.video_id, "path": place.path} for place in catalogue.locations()]


def test_tags_and_titles_are_edited_and_filtered_by_at_once(client):
    video_id = client.get("/v1/videos").json()["videos"][3]["video_id"]
    edited = client.patch(f"/v1/videos/{video_id}", json={"tags": ["new", " new "], "title": "Ärger im HAFEN"}).json()
    assert (edited["tags"], edited["title"]) == (["new"], "Ärger im HAFEN")
    assert found(client, filter={"tags": ["new"]}) == {video_id}
    assert client.get("/v1/videos?title=ärger im hafen&tag=new").json()["total"] == 1
    assert client.get("/v1/videos?title=ärger&tag=old").json() == {"videos": [], "total": 0, "offset": 0, "limit": 100}
    hits = client.post("/v1/search", json={"text": "a", "k": 6}).json()["hits"]
    assert {hit["title"] for hit in hits if hit["video_id"] == video_id} == {"Ärger im HAFEN"}
    assert client.patch(f"/v1/videos/{video_id}", json={"title": ""}).json()["title"].startswith("clip_")
    assert client.patch(f"/v1/videos/{video_id}", json={}).json()["tags"] == ["new"]
    for body in ({"tags": ["x" * 101]}, {"colour": 1}, {"tags": [""]}, {"title": "\x00"}):
        assert client.patch(f"/v1/videos/{video_id}", json=body).status_code == 422, body
    assert client.patch(f"/v1/videos/{'0' * 64}", json={"tags": []}).status_code == 404


def test_captions_are_added_listed_and_removed(client, clips):
    video_id = client.get("/v1/videos").json()["videos"][0]["video_id"]
    total = client.get("/v1/captions").json()["total"]
    body = {"captions": [{"text": "a lonely text"}, {"text": " of a video ", "video_id": video_id}]}
    added = client.post("/v1/captions", json=body)
    assert added.status_code == 201
    free, owned = added.json()["captions"]
    assert (free["text"], free["video_id"], owned["text"], owned["video_id"]) == (
        *("a lonely text", None),
        *("of a video", video_id),
    )
    assert client.post("/v1/captions", json=body).json() == added.json(), "the same again is the same"
    assert client.get("/v1/captions").json()["total"] == total + 2
    assert owned in client.get(f"/v1/captions?video_id={video_id}").json()["captions"]
    assert client.get("/v1/captions?offset=1&limit=1").json()["captions"][0]["caption_id"] > 0
    upload = lambda: client.post("/v1/search/video?k=50&candidates=50", files={"file": clips[0]}).json()  # noqa: E731
    assert free["caption_id"] in {caption["caption_id"] for caption in upload()["captions"]}
    assert client.delete(f"/v1/captions/{free['caption_id']}").status_code == 204
    assert free["caption_id"] not in {caption["caption_id"] for caption in upload()["captions"]}
    assert client.delete(f"/v1/captions/{free['caption_id']}").status_code == 404
    for wrong, status in (({"text": "x", "video_id": "0" * 64}, 404), ({"text": "  "}, 422)):
        both = {"captions": [{"text": "never stored"}, wrong]}
        assert client.post("/v1/captions", json=both).status_code == status
    assert "never stored" not in str(client.get("/v1/captions?limit=1000").json())


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
