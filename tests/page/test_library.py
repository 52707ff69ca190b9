"""The library view in a real browser: sign in, add, edit, remove, jobs, state; long lists; a server that is gone."""

import json
import re

import av
import numpy as np
import pytest
from page_support import search, until_playing
from playwright.sync_api import expect

from indexer.store.config import ModelSpec, StoreSettings
from indexer.store.writer import StoreWriter
from model.emcl.em import FrozenMap
from service.access.keys import KeyStore
from service.jobs.commands import RUN
from service.jobs.store import JobStore

pytestmark = pytest.mark.browser

STEPS = [{"step": step, "loss": 4 / step} for step in range(1, 40)]
WAYS = ("text_to_video", "video_to_text")
CHECKS = [
    {"step": step, "validation": {way: {"R@1": step, "R@5": 2.0 * step, "R@10": 2.5 * step} for way in WAYS}}
    for step in (10, 20, 30)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_encoder):
    """An empty store, keys, and a training job with a log and curves."""
    made = tmp_path_factory.mktemp("page_library")
    settings = StoreSettings(
        model_spec=ModelSpec(),
        fingerprint=tiny_encoder.fingerprint,
        dim=tiny_encoder.dim,
        sampling=tiny_encoder.config.sampling,
    )
    with StoreWriter.open(made / "store", settings=settings) as writer:
        writer.publish(tiny_encoder, empty_map=FrozenMap.neutral(tiny_encoder.dim))
    job_store = JobStore(made / "jobs")
    job = job_store.create("train", {"config_file": "shapes.yaml"})
    job_store.append_log(job.job_id, "reading clips\n")
    run = job_store.job_folder(job.job_id) / RUN
    run.mkdir(parents=True)
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*STEPS, *CHECKS]))
    (made / "job").write_text(job.job_id)
    return made


@pytest.fixture(scope="module")
def keys(folder):
    job_store = KeyStore(folder / "keys.json")
    return {scope: job_store.create(scope, scope)[1] for scope in ("search", "admin")}


@pytest.fixture(scope="module")
def server(start_server, folder, keys, tiny_checkpoint):
    options = ["--require-keys", "--keys-file", folder / "keys.json", "--jobs-folder", folder / "jobs"]
    options += ["--preview-folder", folder / "previews"]
    return start_server("--store", folder / "store", "--model", tiny_checkpoint, "--embedded-worker", "off", *options)


def sign_in(page, server, key, path="/"):
    page.goto(server.url + path)
    expect(page.locator("#sign-in")).to_be_visible()
    page.fill("#key", key)
    page.press("#key", "Enter")
    expect(page.locator("#sign-in")).not_to_be_visible()
    page.complaints.clear()


def test_signing_in_keeps_the_key_nowhere(page, server, keys):
    page.goto(server.url)
    expect(page.locator("#sign-in")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#sign-in")).to_be_visible()
    page.fill("#key", "emcl_wrong")
    page.press("#key", "Enter")
    expect(page.locator("#sign-in-error")).to_contain_text("That key does not work")
    expect(page.locator("#sign-in-error")).to_contain_text("ask for a new one")
    sign_in(page, server, keys["search"])
    expect(page.locator("#who")).to_have_text("search (search)")
    kept = page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie, location.href])")
    assert keys["search"] not in kept
    assert kept.startswith('[{},{},""')
    assert keys["search"] not in page.content()
    cookie = page.context.cookies()[0]
    assert cookie["httpOnly"]
    assert cookie["expires"] == -1  # of the session
    page.goto(server.url + "/?view=library&tab=jobs")
    expect(page.locator(".panel")).to_contain_text("needs a key of scope “admin”: sign out")
    assert page.locator("#add").count() == 0
    page.locator("#sign-out").click()
    expect(page.locator("#sign-in")).to_be_visible()


def test_a_session_that_has_ended_asks_for_the_key_again(page, server, keys):
    sign_in(page, server, keys["search"])
    expect(page.locator("#who")).to_have_text("search (search)")
    page.context.clear_cookies()
    page.fill("#text", "anything")
    expect(page.locator("#sign-in")).to_be_visible()
    expect(page.locator("#sign-in")).to_contain_text("Your session has ended")


def test_an_empty_library_is_filled_searched_edited_and_emptied(page, server, keys, clip_store):
    sign_in(page, server, keys["admin"])
    expect(page.locator(".empty")).to_contain_text("The library is empty")
    page.get_by_role("button", name="Add videos").click()
    expect(page.locator("#library-view .empty")).to_contain_text("The library is empty")
    page.locator("#add").click()
    page.set_input_files("#add-files", clip_store / "clips" / "clip_2.mp4")
    page.fill("#add-title", "By the sea")
    page.fill("#add-tags-input", "sea, summer")
    page.fill("#add-captions", "waves roll in\na gull flies by")
    page.locator("#adding button[type=submit]").click()
    expect(page.locator(".tray-item")).to_contain_text("you can search it now")
    row = page.locator(".video-row")
    expect(row).to_have_count(1)
    expect(row).to_contain_text("By the sea")
    expect(row).to_contain_text("2 captions")
    row.get_by_role("button", name="Edit").click()
    page.fill("#edit-title", "At the lake")
    page.fill("#edit-tags", "lake")
    page.press("#edit-tags", "Enter")
    page.get_by_role("button", name="Remove the tag sea").click()
    page.locator("#editor button[type=submit]").first.click()
    expect(page.locator(".video-row .tag")).to_have_text(["lake", "summer"])
    page.locator("nav a[data-view=search]").click()
    search(page, "waves")
    expect(page.locator("#results .title")).to_have_text(["At the lake"])
    page.goto(server.url + "/?view=library&tab=captions")
    expect(page.locator(".video-row")).to_have_count(2)
    page.get_by_role("button", name="Remove the caption: waves roll in").click()
    expect(page.locator(".video-row")).to_have_count(1)
    page.goto(server.url + "/?view=library")
    page.locator(".video-row").get_by_role("button", name="Edit").click()
    page.locator("#remove-video").click()
    page.locator("#remove-video").click()
    expect(page.locator("#library-view .empty")).to_contain_text("The library is empty")
    assert page.complaints == []


def test_a_video_that_cannot_be_added_says_why(page, server, keys, tmp_path):
    sign_in(page, server, keys["admin"], "/?view=library")
    (tmp_path / "broken.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(500))
    page.locator("#add").click()
    page.set_input_files("#add-files", tmp_path / "broken.mp4")
    page.locator("#adding button[type=submit]").click()
    expect(page.locator(".tray-item.bad")).to_be_visible()
    assert len(page.locator(".tray-item.bad .quiet").inner_text()) > 20


def test_what_browsers_do_not_play_is_shown_as_a_preview(page, server, keys, folder):
    with av.open(folder / "old.avi", "w") as out:
        stream = out.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for step in range(40):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), 5 * step, np.uint8), format="rgb24")))
        out.mux(stream.encode(None))
    sign_in(page, server, keys["admin"], "/?view=library")
    page.locator("#add").click()
    page.set_input_files("#add-files", folder / "old.avi")
    page.locator("#adding button[type=submit]").click()
    expect(page.locator(".tray-item.good")).to_be_visible()
    page.get_by_role("button", name="Play old").click()
    until_playing(page, "#player video")
    assert "/preview" in page.locator("#player video").get_attribute("src")
    page.locator("#player video").evaluate("video => { video.pause(); video.currentTime = 2.5; }")
    page.wait_for_function("() => document.querySelector('#player video').readyState >= 2")
    assert page.evaluate("document.querySelector('#player video').duration") == pytest.approx(4, abs=0.2)


def test_a_job_shows_its_log_as_it_is_written_and_its_curves(page, server, keys, folder):
    sign_in(page, server, keys["admin"], "/?view=library&tab=jobs")
    page.get_by_role("link", name="train: shapes.yaml").click()
    expect(page.locator(".log")).to_contain_text("reading clips")
    expect(page.locator(".chart")).to_have_count(3)
    expect(page.locator(".chart svg").first).to_have_attribute("aria-label", "Loss over steps; at the end loss 0.103")
    expect(page.locator(".chart").nth(1)).to_contain_text("R@1 30 %")
    job = (folder / "job").read_text()
    JobStore(folder / "jobs").append_log(job, "a line that was just written\n")
    expect(page.locator(".log")).to_contain_text("a line that was just written")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator(".job-head .state")).to_have_text("cancelled")
    page.locator(".tabs a", has_text="Status").click()
    expect(page.locator(".health")).to_have_text(
        re.compile(r"can be searched\. Everything is up to date|works; the library")
    )
    expect(page.locator(".tile", has_text="A query looks at")).to_contain_text("tiny")
    expect(page.locator(".tile", has_text="Caches")).not_to_be_visible()
    page.get_by_text("Technical details").click()
    expect(page.locator(".tile", has_text="Caches")).to_contain_text("thumbnails")
    expect(page.locator(".tile", has_text="Generation")).to_contain_text("dimensions")
    assert page.complaints == []


def test_ten_thousand_videos_stay_light(page, page_server):
    asked = []

    def videos(route):
        query = dict(part.split("=") for part in route.request.url.split("?")[1].split("&"))
        first, limit = int(query["offset"]), int(query["limit"])
        asked.append(first)
        rows = [fake_video(number) for number in range(first, min(10_000, first + limit))]
        route.fulfill(json={"videos": rows, "total": 10_000, "offset": first, "limit": limit})

    page.route("**/v1/videos?**", videos)
    page.route(
        "**/thumbnail**", lambda route: route.fulfill(path=str(page_server_icon()), content_type="image/svg+xml")
    )
    page.goto(page_server.url + "/?view=library")
    expect(page.locator(".panel .status")).to_have_text("10,000 videos")
    expect(page.locator("[aria-posinset='1'] .title")).to_have_text("video 0")
    for place in (5000, 9999):
        page.evaluate("place => scrollTo(0, place * 92)", place)
        expect(page.locator(f"[aria-posinset='{place + 1}'] .title")).to_have_text(f"video {place}")
        assert page.locator(".long-row").count() < 60
    assert page.locator("[aria-posinset='10000']").get_attribute("aria-setsize") == "10000"
    assert len(asked) <= 8
    assert page.complaints == []


def fake_video(number):
    video_id = f"{number:064x}"
    return {
        "video_id": video_id, "title": f"video {number}", "duration_seconds": 3.0, "width": 64, "height": 64,
        "size_bytes": 1000, "tags": ["made up"], "state": "indexed", "reason": None, "captions": [],
        "segments": [{"segment": 0, "start": 0.0, "end": 3.0}],
        "thumbnail_url": f"/v1/videos/{video_id}/thumbnail", "stream_url": f"/v1/videos/{video_id}/stream",
    }  # fmt: skip


def page_server_icon():
    from service.routes.pages import WEB

    return WEB / "icon.svg"


def test_a_server_that_is_gone_is_said_and_can_be_tried_again(page, server, keys):  # the last of this server
    sign_in(page, server, keys["admin"])
    expect(page.locator("#facts")).not_to_be_empty()
    server.stop()
    page.fill("#text", "anybody there")
    expect(page.locator("#search-body .problem")).to_contain_text("The server cannot be reached")
    expect(page.locator("#search-body .problem")).to_contain_text("Check that it is running")
    page.route("**/v1/search", lambda route: route.fulfill(json={"hits": [], "source": {"stage_ms": {}}}))
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#search-body .empty")).to_be_visible()
