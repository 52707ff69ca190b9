"""Moving the pointer over a card or the player's timeline shows the moment that it is at, out of one file."""

from __future__ import annotations

import re

import pytest
from page_support import open_results
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

# How far a canvas is from the thumbnails of some times, in levels of grey: the nearest is the moment that it shows.
DISTANCES = """async ([selector, id, times]) => {
    const canvas = document.querySelector(selector), { width, height } = canvas;
    const pixels = (image) => {
        const made = Object.assign(document.createElement('canvas'), { width, height });
        const context = made.getContext('2d', { willReadFrequently: true });
        context.drawImage(image, 0, 0, width, height);
        return context.getImageData(0, 0, width, height).data;
    };
    const shown = pixels(canvas);
    return Promise.all(times.map(async (time) => {
        const image = new Image();
        image.src = `/v1/videos/${id}/thumbnail?t=${time}`;
        await image.decode();
        return pixels(image).reduce((sum, level, place) => sum + Math.abs(level - shown[place]), 0) / shown.length;
    }));
}"""


def shows(page, selector, video_id, times, number):
    """Whether the canvas shows the moment with this number: no other is nearer, and some are clearly farther."""
    distances = page.evaluate(DISTANCES, [selector, video_id, list(times)])
    return distances[number] <= min(distances) + SAME and max(distances) > min(distances) + OTHER


SAME, OTHER = 0.25, 1.0  # levels of grey on average: of frames that are alike, and of frames that are not


def asked_for(page):
    """The pictures that the page asks for from now on: kind and address."""
    urls = []
    page.on(
        "request", lambda request: re.search("/thumbnail|/sprite|/stream", request.url) and urls.append(request.url)
    )
    return urls


def moving_video(page, server):
    """A video in which something moves."""
    videos = page.request.get(f"{server.url}/v1/videos").json()["videos"]
    return next(video for video in videos if any("moves" in caption for caption in video["captions"]))


def hits_of(page, server, query):
    return page.request.post(f"{server.url}/v1/search", data={"text": query, "k": 24}).json()["hits"]


def test_the_strip_of_a_hit_shows_the_right_frame_without_a_further_request(page, page_server):
    urls = asked_for(page)
    open_results(page, page_server.url)
    expect(page.locator("#results .frames canvas.loaded")).to_have_count(36)
    assert sum("/sprite?segment=0" in url for url in urls) == len({url for url in urls if "/sprite" in url}) == 6
    assert sum("/thumbnail" in url for url in urls) == 6  # the large pictures; formerly 36 more for the strips
    card = page.locator("#results .card").nth(1)
    hit = hits_of(page, page_server, "a red circle")[1]
    times = [frame["time"] for frame in hit["frame_weights"]]
    assert len(times) == 6
    box = card.locator(".strip").bounding_box()
    label = card.locator(".badge").inner_text()
    before = len(urls)
    for number in (0, 3, 5):
        page.mouse.move(box["x"] + (number + 0.5) / 6 * box["width"], box["y"] + box["height"] / 2)
        expect(card.locator(".scrub.loaded")).to_be_visible()
        assert card.locator(".badge").inner_text() == f"▶ 0:{times[number]:04.1f}"
        assert shows(page, ".card:hover .scrub", hit["video_id"], times, number)
    assert [url for url in urls[before:] if "/thumbnail" not in url] == []  # thumbnails are what the test compares with
    page.mouse.click(box["x"] + 5.5 / 6 * box["width"], box["y"] + box["height"] / 2)
    assert float(re.search(r"[?&]t=([\d.]+)", page.url)[1]) == pytest.approx(times[5], abs=0.001)
    page.locator("#player-close").click()
    page.mouse.move(2, 2)
    expect(card.locator(".scrub")).to_be_hidden()
    assert card.locator(".badge").inner_text() == label
    assert page.complaints == []


def test_the_picture_of_a_library_card_is_a_timeline_of_the_whole_video(page, page_server):
    urls = asked_for(page)
    video = moving_video(page, page_server)
    page.goto(page_server.url)
    card = page.locator("#results .card", has_text=video["title"])
    expect(card.locator(".front.loaded")).to_be_visible()
    video_id, duration = video["video_id"], video["duration_seconds"]
    assert not any("/sprite" in url for url in urls)
    box = card.locator(".screen").bounding_box()
    times = [(number + 0.5) / 24 * duration for number in range(24)]
    for number in (2, 12, 21):
        page.mouse.move(box["x"] + (number + 0.5) / 24 * box["width"], box["y"] + 0.9 * box["height"])
        expect(card.locator(".scrub.loaded")).to_be_visible()
        assert shows(page, ".card:hover .scrub", video_id, times, number)
    assert sum("/sprite" in url for url in urls) == 1
    assert not any("/stream" in url for url in urls)  # the moving preview gives way
    assert page.complaints == []


def test_the_player_has_a_timeline_that_jumps(page, page_server):
    urls = asked_for(page)
    video = moving_video(page, page_server)
    open_results(page, page_server.url)
    page.locator("#results .card", has_text=video["title"]).locator(".cover-link").click()
    tiles = page.locator("#player-timeline span")
    expect(page.locator("#player-timeline canvas.loaded")).to_have_count(12)
    expect(page.locator("#player-strip canvas.loaded")).to_have_count(6)
    of_player = [url for url in urls if "/sprite" in url and "segment" not in url]
    assert len(of_player) == 1
    page.locator("#player video").evaluate("video => video.pause()")
    tiles.nth(9).click()
    video_id, duration = video["video_id"], video["duration_seconds"]
    at = (19.5 / 24) * duration
    page.wait_for_function("at => document.querySelector('#player video').currentTime >= at - 0.01", arg=at)
    times = [(number + 0.5) / 24 * duration for number in range(1, 24, 2)]
    assert shows(page, "#player-timeline span:nth-child(10) canvas", video_id, times, 9)
    assert page.complaints == []


def test_pictures_of_a_sprite_fill_their_places(page, page_server):
    page.goto(page_server.url + "/?q=a+red+circle")
    page.locator("#results .cover-link").first.click()
    expect(page.locator("#player-strip .frame").first).to_be_visible()
    expect(page.locator("#player-timeline canvas").first).to_be_visible()
    for places in ("#results .frames > canvas", "#player-strip .frame > canvas", "#player-timeline canvas"):
        inside = page.locator(places).first.evaluate(
            "one => [getComputedStyle(one).padding, getComputedStyle(one).borderTopWidth]"
        )
        assert inside == ["0px", "0px"], places


def test_single_pictures_stand_in_where_a_sprite_cannot_be_made(page, page_server):
    page.route("**/sprite**", lambda route: route.fulfill(status=422, json={}))
    open_results(page, page_server.url)
    expect(page.locator("#results .card").first.locator(".frames img.loaded")).to_have_count(6)
