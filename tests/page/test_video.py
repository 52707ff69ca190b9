"""A video in, words out, in a real browser: upload, drop, what is refused, similar videos."""

import base64
import re

import av
import pytest
from page_support import until_playing
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

DROP = """([name, content]) => {
  const bytes = Uint8Array.from(atob(content), (one) => one.charCodeAt(0));
  const files = new DataTransfer();
  files.items.add(new File([bytes], name, { type: "video/mp4" }));
  for (const kind of ["dragenter", "dragover", "drop"])
    document.body.dispatchEvent(new DragEvent(kind, { dataTransfer: files, bubbles: true, cancelable: true }));
}"""


def expect_words(page):
    expect(page.locator(".captions li")).to_have_count(12)
    scores = [float(text) for text in page.locator(".captions .score").all_inner_texts()]
    assert scores == sorted(scores, reverse=True)
    assert re.search(
        r"\d+ frames of .* looked at in [\d.,]+ ms \(receiving [\d.,]+ ms · decoding [\d.,]+ ms · .*encoding .*\)"
        r" · nothing of it was kept",
        page.locator("#video-view .status").inner_text(),
    )


def test_a_video_finds_its_words_with_the_frame_that_each_points_to(page, page_server, clip_store):
    page.goto(page_server.url)
    expect(page.locator("#facts")).not_to_be_empty()
    page.set_input_files("#file", clip_store / "clips" / "clip_0.mp4")
    expect_words(page)
    page.wait_for_function("""() => [...document.querySelectorAll('.still')].every(
        (still) => {
            const copy = new OffscreenCanvas(still.width, still.height).getContext('2d', {willReadFrequently: true});
            copy.drawImage(still, 0, 0);
            return copy.getImageData(5, 5, 1, 1).data[3] === 255;
        })""")
    row = page.locator(".captions li").nth(3)
    minutes, seconds = row.locator(".row-facts .quiet").inner_text().removeprefix("at ").split(":")
    row.locator("button").click()
    until_playing(page, ".own video")
    assert (
        page.evaluate("document.querySelector('.own video').currentTime") >= int(minutes) * 60 + float(seconds) - 0.06
    )
    expect(page.locator("#video-view .cards .card")).to_have_count(6)
    page.locator("#video-view .cover-link").first.click()
    expect(page.locator("#player-title")).to_have_text("clip_0")
    page.keyboard.press("Escape")
    expect(page.locator("#player")).not_to_be_visible()
    assert page.locator(".captions li").count() == 12
    page.reload()
    expect(page.locator("#video-view .empty")).to_contain_text("not kept")
    assert page.complaints == []


def test_a_video_may_be_dropped_anywhere(page, page_server, clip_store):
    page.goto(page_server.url + "/?q=a+star")
    expect(page.locator("#results .score").first).to_be_visible()
    content = base64.b64encode((clip_store / "clips" / "clip_1.mp4").read_bytes()).decode()
    page.evaluate(DROP, ["holiday.mp4", content])
    expect(page.locator(".view-title")).to_have_text("holiday.mp4")
    expect_words(page)
    page.go_back()
    expect(page.locator("#results .score").first).to_be_visible()
    assert page.complaints == []


def test_a_real_recording_finds_words(page, page_server, real_clips):
    page.goto(page_server.url)
    page.set_input_files("#file", real_clips / "cockatoo.mp4")
    expect(page.locator("#video-view .cards .card").or_(page.locator("#video-view .problem"))).not_to_have_count(0)
    assert page.locator("#video-view .problem").count() == 0, page.locator("#video-view .problem").inner_text()
    expect_words(page)


def test_what_is_refused_says_why_and_what_to_do(page, page_server, tmp_path):
    page.goto(page_server.url)
    expect(page.locator("#facts")).not_to_be_empty()
    (tmp_path / "notes.txt").write_text("no video at all")
    page.set_input_files("#file", tmp_path / "notes.txt")
    expect(page.locator("#video-view .problem")).to_contain_text("is not a video")
    expect(page.locator("#video-view .problem")).to_contain_text("Upload another file")
    page.complaints.clear()  # the console names the refused request
    (tmp_path / "large.mp4").write_bytes(bytes(2 * 1024**2))
    page.set_input_files("#file", tmp_path / "large.mp4")
    expect(page.locator("#video-view .problem")).to_contain_text("At most 1 MiB")
    assert page.complaints == []


def test_a_picture_finds_videos_that_look_like_it(page, page_server, clip_store, tmp_path):
    with av.open(clip_store / "clips" / "clip_2.mp4") as video:
        next(video.decode(video=0)).to_image().save(tmp_path / "frame.png")
    page.goto(page_server.url)
    page.set_input_files("#file", tmp_path / "frame.png")
    expect(page.locator("#video-view .cards .card .title").first).to_have_text("clip_2")
    expect(page.locator(".own-picture")).to_be_visible()
    chip = page.locator("#video-view .chip").first
    words = chip.inner_text()
    chip.click()
    expect(page.locator("#text")).to_have_value(words)
    expect(page.locator("#results .score").first).to_be_visible()
    assert page.complaints == []
