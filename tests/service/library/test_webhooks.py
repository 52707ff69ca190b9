"""Webhooks: signed as receivers' libraries check it, sent at least once, to no address but those that were named."""

import json
import shutil
import threading
import time
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import numpy as np
import pytest
from service_support import emcl_command, random_video, serving
from standardwebhooks import Webhook, WebhookVerificationError

from indexer.locations import Location
from indexer.store.reader import StoreReader
from indexer.store.writer import StoreWriter
from service.jobs.store import JobStore
from service.library import webhooks
from service.library.webhooks import KEPT_SECONDS, Outbox, Webhooks, signed_headers
from service.search.live_index import LiveIndex
from service.settings import load_settings, webhook_key

SECRET = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
URL, OTHER = "http://127.0.0.1:9/hook?token=hidden", "http://127.0.0.1:9/other"


class Target:
    """Answers requests with a status, and checks their signatures with the standard's own library."""

    def __init__(self):
        self.status = 204
        self.events, self.ids, self.urls = [], [], []

    def __call__(self, request):
        self.events.append(Webhook(SECRET).verify(request.content, dict(request.headers)))
        self.ids.append(request.headers["webhook-id"])
        self.urls.append(str(request.url))
        if self.status is None:
            raise httpx.ConnectError("nobody there")
        return httpx.Response(self.status, headers={"Location": "http://elsewhere/"})

    def of(self, kind):
        return [event["data"] for event in self.events if event["type"] == kind]


@pytest.fixture
def store(clip_store, tmp_path):
    shutil.copytree(clip_store / "store", tmp_path / "store")
    return tmp_path / "store"


class Setting:
    """Everything around one sender, with a clock that the test sets."""

    def __init__(self, store, folder, urls=(URL,)):
        settings = {"store": store, "jobs_folder": folder, "webhooks": urls, "webhook_secret": SECRET}
        self.now = time.time()
        self.target = Target()
        self.job_store = JobStore(folder)
        self.live = LiveIndex(lambda: StoreReader.open(store))
        self.sender = Webhooks(
            load_settings(settings),
            self.job_store,
            self.live,
            clock=lambda: self.now,
            transport=httpx.MockTransport(self.target),
        )
        self.path = folder / "webhooks.db"

    def step(self, times=1):
        with closing(Outbox(self.path)) as outbox:
            outbox.forget_others(self.sender.urls)
            for _ in range(times):
                self.sender.step(outbox)
            return outbox.waiting()

    def end_job(self, state="succeeded", job_id=None):
        job_id = job_id or self.job_store.create("index", {"paths": ["/secret"]}, resumable=True).job_id
        self.job_store.claim(job_id, pid=1, host="here")
        if state == "succeeded":
            self.job_store.succeed(job_id, {})
        else:
            self.job_store.fail(job_id, "why it failed")
        return job_id

    def close(self):
        self.sender.close()
        self.job_store.close()
        self.live.close()


@pytest.fixture
def setting(store, tmp_path):
    made = Setting(store, tmp_path / "jobs")
    yield made
    made.close()


def add(store, encoder, number):
    """Add a video of random features with this number as its id."""
    video = random_video(np.random.default_rng(number), encoder, number)
    with StoreWriter.open(store) as writer:
        writer.add_locations(
            [Location(path=f"/videos/new {number}.mp4", video_id=video.video_id, size_bytes=1, modified_ns=1)]
        )
        writer.add_videos([video])


def test_signatures_are_those_of_the_standards_own_library():
    body = json.dumps({"type": "x", "data": "ü"}, ensure_ascii=False)
    headers = signed_headers("msg_1", int(time.time()), body, webhook_key(SECRET))
    assert Webhook(SECRET).verify(body, headers) == {"type": "x", "data": "ü"}
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(body + " ", headers)


def test_jobs_that_end_are_sent_once_and_those_of_before_are_not(setting):
    setting.end_job()
    setting.step(3)
    assert setting.target.events == []
    good, bad = setting.end_job(), setting.end_job("failed")
    setting.step(3)
    jobs = setting.target.of("job.finished")
    assert [(job["job_id"], job["state"], job["error"]) for job in jobs] == [
        (good, "succeeded", None),
        (bad, "failed", "why it failed"),
    ]
    assert "/secret" not in json.dumps(setting.target.events)
    setting.job_store.resume(bad)
    setting.step()
    setting.end_job(job_id=bad)
    setting.step()
    assert [job["state"] for job in setting.target.of("job.finished")[2:]] == ["succeeded"]
    assert len(set(setting.target.ids)) == 3


def test_videos_that_can_be_found_are_sent_also_those_that_came_while_no_service_ran(
    setting, store, tiny_encoder, tmp_path, monkeypatch
):
    monkeypatch.setattr(webhooks, "VIDEOS_AT_ONCE", 2)
    setting.step()
    for number in (1, 2, 3):
        add(store, tiny_encoder, number)
    setting.live.refresh()
    setting.step(3)
    named = [[video["video_id"] for video in data["videos"]] for data in setting.target.of("videos.added")]
    assert named == [[f"{1:064x}", f"{2:064x}"], [f"{3:064x}"]]
    add(store, tiny_encoder, 4)
    later = Setting(store, tmp_path / "jobs")
    later.step(2)
    [data] = later.target.of("videos.added")
    assert data["videos"] == [{"video_id": f"{4:064x}", "title": "new 4", "duration_seconds": 20.0, "tags": []}]
    later.close()


@pytest.mark.parametrize("status", [500, 302, 410, None])
def test_what_was_not_taken_is_tried_again_with_growing_pauses_under_the_same_id(setting, status):
    setting.step()
    setting.target.status = status
    setting.end_job()
    assert setting.step(3) == 1
    assert len(setting.target.events) == 1, "the pause has not passed"
    for pause in (5, 10, 20):
        setting.now += pause - 0.1
        setting.step()
        seen = len(setting.target.events)
        setting.now += 0.2
        setting.step()
        assert len(setting.target.events) == seen + 1
    assert set(setting.target.urls) == {URL}, "redirects lead nowhere"
    setting.target.status = 200
    setting.now += 40
    assert setting.step() == 0
    assert len(set(setting.target.ids)) == 1
    assert setting.sender.outcomes == {"delivered": 1, "failed": 4, "dropped": 0}


def test_order_is_kept_and_a_dead_address_holds_up_no_other(store, tmp_path):
    setting = Setting(store, tmp_path / "jobs", (URL, OTHER))
    setting.step()
    answered = httpx.MockTransport(lambda request: httpx.Response(500 if "hook" in str(request.url) else 200))
    setting.sender.http = httpx.Client(transport=answered)
    setting.end_job()
    setting.end_job()
    assert setting.step() == 2, "both for the dead one"
    assert setting.sender.outcomes["delivered"] == 2
    setting.close()
    without = Setting(store, tmp_path / "jobs", (OTHER,))
    assert without.step() == 0, "what was for an address that is no longer named is dropped"
    without.close()


def test_after_days_an_event_is_dropped_with_a_word(setting, caplog):
    setting.step()
    setting.target.status = 500
    setting.end_job()
    setting.step()
    setting.now += KEPT_SECONDS + 10
    assert setting.step() == 0
    assert setting.sender.outcomes["dropped"] == 1
    assert "dropped after 2 attempts" in caplog.text
    assert "hidden" not in caplog.text, "an address may hold a secret"


def test_an_event_outlives_the_service_that_could_not_send_it(setting, store, tmp_path):
    setting.step()
    setting.target.status = None
    job_id = setting.end_job()
    setting.step()
    later = Setting(store, tmp_path / "jobs")
    later.now += 6
    later.step()
    assert [job["job_id"] for job in later.target.of("job.finished")] == [job_id]
    assert later.target.ids == setting.target.ids[:1]
    later.close()


def test_a_real_service_sends_to_a_real_server(clip_store, tiny_encoder, store, tmp_path):
    received, came = [], threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append(Webhook(SECRET).verify(body, dict(self.headers.items())))
            self.send_response(204)
            self.end_headers()
            came.set()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_address[1]}/"
    options = {"store": store, "webhooks": url, "webhook_secret": SECRET}
    clip = (clip_store / "clips" / "clip_0.mp4").read_bytes() + b"\0" * 8
    try:
        with serving(clip_store, tiny_encoder, tmp_path, **options) as client:
            until = time.monotonic() + 60
            while "emcl_webhooks_waiting" not in client.get("/metrics").text or not (tmp_path / "jobs").exists():
                assert time.monotonic() < until
            time.sleep(0.5)
            client.post("/v1/videos", files={"file": clip})
            while {"job.finished", "videos.added"} - {event["type"] for event in received}:
                assert time.monotonic() < until, received
                time.sleep(0.05)
            assert 'emcl_webhooks_total{outcome="delivered"}' in client.get("/metrics").text
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert [event["data"]["state"] for event in received if event["type"] == "job.finished"] == ["succeeded"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--webhooks", "https://a.example/x"], "needs --webhook-secret"),
        (["--webhooks", "ftp://a.example", "--webhook-secret", SECRET], "https://"),
        (["--webhooks", "https://a.example", "--webhook-secret", "whsec_short"], "24 to 64 random bytes"),
        (["--webhooks", "https://a.example", "--webhook-secret", SECRET[6:]], "whsec_"),
    ],
)
def test_settings_that_cannot_work_are_refused_without_showing_secrets(monkeypatch, capsys, options, complaint):
    code, _, err = emcl_command(monkeypatch, capsys, "serve")(*options)
    assert code == 1
    assert complaint in err
    assert SECRET[6:] not in err
