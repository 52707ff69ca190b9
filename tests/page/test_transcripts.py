"""What is said, on the page: the card says why it is a hit, and the player shows captions from the moment on."""

from __future__ import annotations

import shutil

import pytest
from page_support import open_results
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

VTT = "WEBVTT\n\n00:00.500 --> 00:01.500\nthe tentacles of a giant squid\n"
SHOWN = """() => {
    const [track] = document.querySelector("#player video").textTracks;
    return [track.mode, track.cues[0].text, track.cues[0].startTime];
}"""


@pytest.fixture
def server(clip_store, tiny_checkpoint, tmp_path, start_server):
    shutil.copytree(clip_store / "store", tmp_path / "store")
    options = ("--store", tmp_path / "store", "--model", tiny_checkpoint, "--jobs-folder", tmp_path / "jobs")
    return start_server(*options, "--embedded-worker", "off", "--rate-limit", 0)


def test_a_hit_by_what_is_said_plays_from_there_with_captions(page, server):
    videos = page.request.get(f"{server.url}/v1/videos").json()["videos"]
    url = f"{server.url}/v1/videos/{videos[2]['video_id']}/transcript"
    assert page.request.put(f"{url}?language=en", data=VTT).ok
    assert page.request.put(f"{url}?language=und", data=VTT.replace("giant", "large")).ok
    open_results(page, server.url, "?q=giant+squid+tentacles")
    card = page.locator("#results .card").first
    expect(card.locator(".why mark")).to_have_text(["tentacles", "giant", "squid"])
    expect(card.locator(".why")).to_have_attribute("title", "these words match: transcript")
    card.locator(".cover-link").click()
    tracks = page.locator("#player video track")
    expect(tracks).to_have_count(2)
    assert [tracks.nth(n).get_attribute("kind") for n in range(2)] == ["captions", "captions"]
    assert [tracks.nth(n).get_attribute("label") for n in range(2)] == ["English", "Captions"]
    assert "t=0.5" in page.url
    page.wait_for_function("() => document.querySelector('#player video').textTracks[0].cues?.length === 1")
    assert page.evaluate(SHOWN) == ["showing", "the tentacles of a giant squid", 0.5]
    page.locator("#player-close").click()
    expect(tracks).to_have_count(0)
    assert page.complaints == []


def test_a_video_without_transcripts_has_no_captions_in_the_player(page, server):
    open_results(page, server.url)
    page.locator("#results .card").first.locator(".cover-link").click()
    expect(page.locator("#player-facts span").first).to_be_visible()
    expect(page.locator("#player video track")).to_have_count(0)
