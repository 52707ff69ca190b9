"""The page in a real browser: search, play from the moment, more like this, upload, refusals, a clean console."""

import shutil

import pytest
from playwright.sync_api import expect, sync_playwright

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser():
    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    if executable is None:
        pytest.skip("Chromium is not installed; docker/install-test-packages does it")
    with sync_playwright() as started:
        running = started.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def server(start_server, clip_store, tiny_checkpoint):
    return start_server("--store", clip_store / "store", "--model", tiny_checkpoint, "--upload-max-bytes", "1MiB")


@pytest.fixture
def page(browser):
    made = browser.new_page()
    made.complaints = []
    made.on("console", lambda message: message.type == "error" and made.complaints.append(message.text))
    made.on("pageerror", lambda error: made.complaints.append(str(error)))
    made.on("request", lambda request: made.complaints.append(request.url) if "127.0.0.1" not in request.url else None)
    yield made
    made.close()


def search(page, server, text="a red circle"):
    page.goto(server.url)
    page.fill("#text", text)
    page.press("#text", "Enter")
    page.wait_for_selector(".card")


def test_words_find_videos_that_play_from_their_moment(page, server):
    search(page, server)
    assert page.locator(".card").count() == 6
    assert page.url.endswith("?q=a+red+circle")
    assert page.locator("#facts").inner_text().startswith("6 videos")
    moment = page.locator(".card .at").first.inner_text()
    page.locator(".card").first.click()
    page.locator("#player video").evaluate(
        "video => video.readyState >= 2 || new Promise(done => video.addEventListener('canplay', done))"
    )
    minutes, seconds = moment.split(":")
    started = page.evaluate("document.querySelector('#player video').currentTime")
    assert started >= int(minutes) * 60 + float(seconds) - 0.01
    page.locator("#alike").click()
    expect(page.locator(".card")).to_have_count(5)
    assert page.complaints == []


def test_the_address_holds_the_query(page, server):
    search(page, server, "first")
    page.fill("#text", "second")
    page.press("#text", "Enter")
    expect(page.locator("#videos-title")).to_have_text("“second”")
    page.go_back()
    expect(page.locator("#videos-title")).to_have_text("“first”")
    page.goto(server.url + "/?q=third&rerank=frozen")
    page.wait_for_selector(".card")
    assert page.input_value("#text") == "third"
    assert page.input_value("#rerank") == "frozen"
    assert page.complaints == []


def test_a_video_finds_captions(page, server, clip_store):
    page.goto(server.url)
    page.set_input_files("#file", clip_store / "clips" / "clip_0.mp4")
    page.wait_for_selector("#captions li")
    assert page.locator("#captions li").count() == 10
    assert "12 captions" in page.locator("#status").inner_text()
    assert page.complaints == []


def test_what_is_refused_says_why(page, server, tmp_path):
    page.goto(server.url)
    expect(page.locator("#facts")).not_to_be_empty()
    (tmp_path / "notes.txt").write_text("no video at all")
    page.set_input_files("#file", tmp_path / "notes.txt")
    page.wait_for_selector("#status.bad")
    assert "is not a video" in page.locator("#status").inner_text()
    (tmp_path / "large.mp4").write_bytes(bytes(2 * 1024**2))
    page.set_input_files("#file", tmp_path / "large.mp4")
    expect(page.locator("#status")).to_contain_text("at most 1 MiB")


def test_the_docs_are_drawn_and_can_be_tried(page, server):
    page.goto(server.url + "/docs#problem-overloaded")
    page.wait_for_selector("details")
    assert page.locator("details").count() >= 12
    assert page.locator("#problem-overloaded").is_visible()
    page.locator("summary").first.click()
    page.get_by_role("button", name="Send").first.click()
    page.wait_for_selector("pre:visible")
    assert page.locator("pre:visible").first.inner_text().startswith("200")
    assert page.complaints == []
