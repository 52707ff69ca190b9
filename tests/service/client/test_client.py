"""The Python client: every route, typed answers, typed errors, and patience with a busy service."""

import asyncio
import inspect
import subprocess
import sys

import av
import httpx
import pytest
from service_support import make_app, make_keys

from service.client import AsyncClient, Client, Patience
from service.client.calls import Endpoint
from service.client.transport import (
    BusyError,
    ClientError,
    ForbiddenError,
    JobFailedError,
    NoAnswerError,
    NotFoundError,
    ProblemError,
    ServiceFailedError,
    UnauthorisedError,
    UnexpectedAnswerError,
    UnprocessableError,
    UnsupportedMediaError,
)
from service.schemas.search import SearchAnswer

WITHOUT_A_METHOD = {
    ("GET", "/v1/jobs/{job_id}/events"): "server-sent events for pages; wait_for_job polls state and log",
    ("POST", "/v1/session"): "makes a cookie for a browser; a client sends its key",
    ("DELETE", "/v1/session"): "removes that cookie",
}


@pytest.fixture(scope="module")
def client(url):
    with Client(url) as made:
        yield made


def answering(*answers, seen=None):
    """A client whose service gives these (status, headers, body) one after another, the last one for ever."""
    left = list(answers)

    def handle(request):
        if seen is not None:
            seen.append(request)
        status, headers, body = left.pop(0) if len(left) > 1 else left[0]
        return httpx.Response(status, headers=headers, json=body)

    return handle


def mocked(*answers, seen=None, **options):
    """A client of such a service."""
    return Client("http://x", transport=httpx.MockTransport(answering(*answers, seen=seen)), **options)


def problem(status, slug="overloaded"):
    return {
        "type": f"/docs#problem-{slug}",
        "title": "t",
        "status": status,
        "detail": "what was wrong",
        "expected": "what is right",
        "next_step": "what to do",
        "request_id": "abc",
        "added_later": 1,
    }


def test_importing_the_client_loads_no_model():
    heavy = "{'torch', 'open_clip', 'faiss', 'av', 'fastapi', 'torchvision', 'uvicorn'}"
    code = f"import sys, service.client; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_every_route_has_a_method_or_a_reason(clip_store, tiny_encoder, tmp_path):
    document = make_app(clip_store, tiny_encoder, tmp_path).openapi()
    routes = {
        (method.upper(), path) for path, item in document["paths"].items() for method in item if path.startswith("/v1/")
    }
    for kind in (Client, AsyncClient):
        known = {(found.method, found.route) for _, found in inspect.getmembers(kind) if isinstance(found, Endpoint)}
        assert routes - known - set(WITHOUT_A_METHOD) == set()
        assert {(method, path) for method, path in known if path.startswith("/v1/")} - routes == set()
    assert set(WITHOUT_A_METHOD) <= routes


def test_searching(client, clip_store, tmp_path):
    answer = client.search("a red circle", k=3, tags=["even"])
    assert isinstance(answer, SearchAnswer)
    assert len(answer.hits) == 3
    assert all("even" in hit.tags for hit in answer.hits)
    with av.open(clip_store / "clips" / "clip_4.mp4") as video:
        next(video.decode(video=0)).to_image().save(tmp_path / "frame.png")
    assert client.search_image(tmp_path / "frame.png", k=1).hits[0].title == "clip_4"
    exported = client.export_search("a red circle", format="edl", k=3, tags=["even"])
    assert exported.count("FROM CLIP NAME") == 3
    many = client.search_many(["a red circle", "a blue square"], k=2)
    assert [len(result.hits) for result in many.results] == [2, 2]
    assert len(client.search(video_id=answer.hits[0].video_id).hits) == 5
    found = client.search_video(clip_store / "clips" / "clip_4.mp4", k=2, rerank="frozen")
    assert found.hits[0].title == "clip_4"
    assert len(found.captions) == 2
    ranked = client.rerank("a red circle", [(hit.video_id, hit.segment) for hit in answer.hits])
    assert {hit.video_id for hit in ranked.hits} == {hit.video_id for hit in answer.hits}
    assert len(client.embeddings(["a", "b"]).embeddings) == 2
    labels = ["a red circle", "a blue star"]
    stored = client.classify(found.hits[0].video_id, labels, prompt="{}")
    uploaded = client.classify_video(clip_store / "clips" / "clip_4.mp4", labels, prompt="{}")
    assert [item.label for item in stored.labels] == [item.label for item in uploaded.labels]
    assert uploaded.upload is not None


def test_videos_the_index_and_health(client, clip_store):
    page = client.videos(limit=4)
    assert (len(page.videos), page.total) == (4, 6)
    video = client.video(page.videos[0].video_id)
    content = (clip_store / "clips" / f"{video.title}.mp4").read_bytes()
    assert client.video_bytes(video.video_id) == content
    assert client.thumbnail(video.video_id, seconds=0.5).startswith(b"\xff\xd8")
    assert client.sprite(video.video_id).startswith(b"\xff\xd8")
    assert client.sprite(video.video_id, segment=0) != client.sprite(video.video_id)
    assert client.clip(video.video_id, 0.2, 0.8)[4:8] == b"ftyp"
    assert client.captions(video_id=video.video_id).total == 2
    assert client.index().generation == client.reload().generation
    assert client.live().live
    assert client.ready().ready
    assert "emcl_stage_seconds_bucket" in client.metrics()
    assert client.session().keys_required is False
    assert client.jobs().total == 0


def test_everything_that_changes_something(start_server, clip_store, tiny_checkpoint, tmp_path):
    import shutil

    shutil.copytree(clip_store / "store", tmp_path / "store")
    clip = tmp_path / "new.mp4"
    clip.write_bytes((clip_store / "clips" / "clip_0.mp4").read_bytes() + b"\0" * 8)  # other bytes, the same frames
    _, keys = make_keys(tmp_path)
    server = start_server(
        *("--store", tmp_path / "store", "--model", tiny_checkpoint, "--jobs-folder", tmp_path / "jobs"),
        *("--keys-file", tmp_path / "keys.json", "--require-keys"),
    )
    with Client(server.url, api_key=keys["admin"]) as client:
        assert client.session().name == "adminer"
        added = client.add_video(clip, title="mine", tags=["new", "other"], captions=["a clip of mine"])
        said = []
        job = client.wait_for_job(added.job_id, timeout_seconds=120, poll_seconds=0.05, on_log=said.append)
        assert job.state == "succeeded"
        assert client.add_video(clip).job_id is None
        assert client.video(added.video_id).tags == ["new", "other"]
        assert [hit.video_id for hit in client.search("a", tags=["new"]).hits] == [added.video_id]
        assert client.videos(tags=["new"], title="min").total == 1
        assert client.edit_video(added.video_id, tags=["old"]).title == "mine"
        (caption,) = client.add_captions(["another text"], video_id=added.video_id).captions
        assert client.captions(video_id=added.video_id).total == 2
        client.delete_caption(caption.caption_id)
        said_there = "WEBVTT\n\n00:00.500 --> 00:01.000\na walrus\n"
        assert client.put_transcript(added.video_id, said_there, language="en").cues == 1
        assert "a walrus" in client.transcript(added.video_id)
        assert client.search("walrus", fusion="text").hits[0].passage.start == 0.5
        client.delete_transcript(added.video_id, language="en")
        assert client.search("walrus", fusion="text").hits == []
        client.delete_video(added.video_id)
        with pytest.raises(NotFoundError):
            client.video(added.video_id)
        assert client.jobs(kind="add-video", state="succeeded").total == 1
        assert client.job_metrics(job.job_id).metrics == []
        with pytest.raises(ProblemError) as ended:
            client.cancel_job(job.job_id)
        assert ended.value.status == 409
        with pytest.raises(ProblemError):
            client.resume_job(job.job_id)
        client.forget_job(job.job_id)
        with pytest.raises(UnprocessableError, match="paths"):
            client.submit_job("index", paths=["/nowhere/allowed"])
    with Client(server.url, api_key=keys["search"]) as reader, pytest.raises(ForbiddenError):
        reader.delete_video("0" * 64)
    with Client(server.url) as stranger, pytest.raises(UnauthorisedError):
        stranger.search("a")


def test_errors_say_what_the_service_said(client, tmp_path):
    with pytest.raises(UnprocessableError) as wrong:
        client.search("a", k=0)
    assert wrong.value.slug == "unprocessable"
    assert wrong.value.status == 422
    assert "k=0" in wrong.value.detail
    assert wrong.value.next_step in str(wrong.value)
    assert wrong.value.request_id
    with pytest.raises(NotFoundError):
        client.video("0" * 64)
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(UnsupportedMediaError):
        client.search_video(tmp_path / "text.mp4")


def test_no_service_and_another_service_are_told_apart():
    with Client("http://127.0.0.1:1") as nobody, pytest.raises(NoAnswerError, match="is the service running"):
        nobody.live()
    for answer in ((502, {}, "bad gateway"), (200, {}, {"hello": "world"})):
        with mocked(answer) as other, pytest.raises(UnexpectedAnswerError):
            other.live()


def test_a_busy_service_is_asked_again_after_the_time_it_names(tmp_path):
    seen = []
    busy, fine = (503, {"Retry-After": "0"}, problem(503)), (200, {}, {"live": True, "added_later": 1})
    (tmp_path / "clip.mp4").write_bytes(b"film")
    with mocked(busy, busy, fine, seen=seen) as client:
        assert client.live().live
    assert len(seen) == 3
    uploads = []
    last = (415, {}, problem(415, "unsupported-media"))
    with mocked(busy, last, seen=uploads) as client, pytest.raises(UnsupportedMediaError):
        client.search_video(tmp_path / "clip.mp4")
    assert [b"film" in request.read() for request in uploads] == [True, True]


@pytest.mark.parametrize(
    ("patience", "headers", "asked"),
    [
        (Patience(retries=2), {"Retry-After": "0"}, 3),
        (Patience(retries=0), {"Retry-After": "0"}, 1),
        (Patience(retries=9, seconds=5), {"Retry-After": "6"}, 1),
        (Patience(retries=9), {}, 1),
        (Patience(retries=9), {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, 1),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_patience_ends(patience, headers, asked, status):
    seen = []
    busy = (status, headers, problem(status))
    with mocked(busy, seen=seen, patience=patience) as client, pytest.raises(BusyError):
        client.live()
    assert len(seen) == asked


def test_faults_are_not_sent_again():
    seen = []
    fault = (500, {"Retry-After": "0"}, problem(500, "internal"))
    with mocked(fault, seen=seen) as client, pytest.raises(ServiceFailedError):
        client.live()
    assert len(seen) == 1


def test_the_key_goes_in_a_header_and_into_no_error():
    seen = []
    refusal = (401, {}, problem(401, "unauthorised"))
    with mocked(refusal, seen=seen, api_key="emcl_secret") as client, pytest.raises(UnauthorisedError) as refused:
        client.search("a")
    assert seen[0].headers["authorization"] == "Bearer emcl_secret"
    assert "secret" not in str(refused.value)


def job(state):
    return {
        **{"job_id": "0" * 16, "kind": "train", "state": state, "stopping": False, "resumable": False},
        **{"parameters": {}, "progress": {"done": 0, "total": 0, "note": ""}, "attempts": 1},
        **{"created": "2026-01-01T00:00:00Z", "started": None, "ended": None, "result": None},
        **{"error": "out of memory" if state == "failed" else None, "key_name": None},
    }


def test_waiting_for_a_job_that_fails_or_takes_too_long():
    fails = ((200, {}, job("running")), (200, {}, job("failed")))
    with mocked(*fails) as client, pytest.raises(JobFailedError, match="out of memory") as failed:
        client.wait_for_job("0" * 16, poll_seconds=0)
    assert failed.value.job.state == "failed"
    with mocked((200, {}, job("queued"))) as client, pytest.raises(TimeoutError, match="still queued"):
        client.wait_for_job("0" * 16, poll_seconds=0, timeout_seconds=0)


def test_a_log_is_followed_without_cutting_characters():
    log, said, offsets = "loss 0.5 → 0.25 ✓".encode(), [], []

    def handle(request):
        if not request.url.path.endswith("/log"):
            return httpx.Response(200, json=job("running" if len(offsets) < len(log) - 1 else "succeeded"))
        offsets.append(int(request.url.params["offset"]))
        return httpx.Response(200, content=log[offsets[-1] : offsets[-1] + 1])  # a byte at a time

    with Client("http://x", transport=httpx.MockTransport(handle)) as client:
        client.wait_for_job("0" * 16, poll_seconds=0, on_log=said.append)
    assert "".join(said).encode() == log
    assert offsets == list(range(len(log)))


def test_the_async_client_does_the_same(url, clip_store):
    async def run():
        async with AsyncClient(url) as client:
            first, second = await asyncio.gather(client.search("a red circle"), client.embeddings(["a"]))
            found = await client.search_video(clip_store / "clips" / "clip_4.mp4", rerank="frozen")
            with pytest.raises(NotFoundError):
                await client.video("0" * 64)
            return first, second, found

    first, second, found = asyncio.run(run())
    assert len(first.hits) == 6
    assert second.dim == 32
    assert found.hits[0].title == "clip_4"


def test_the_async_client_waits_too():
    async def run(handle, call):
        async with AsyncClient("http://x", transport=httpx.MockTransport(handle)) as client:
            return await call(client)

    busy, done = (429, {"Retry-After": "0"}, problem(429)), (200, {}, job("succeeded"))
    assert asyncio.run(run(answering(busy, done), lambda client: client.wait_for_job("0" * 16))).state == "succeeded"
    with pytest.raises(JobFailedError):
        asyncio.run(run(answering((200, {}, job("lost"))), lambda client: client.wait_for_job("0" * 16)))
    with pytest.raises(ClientError):
        asyncio.run(run(answering((404, {}, problem(404, "not-found"))), lambda client: client.live()))
