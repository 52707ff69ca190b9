"""What the model says of a video itself, in a real browser: labels, questions, and a caption beside those found."""

import copy

import pytest
import torch
from playwright.sync_api import expect

from model.checkpoint import save_checkpoint
from model.config import CaptionConfig, QaConfig

pytestmark = pytest.mark.browser

CAPTION = CaptionConfig(words=("a", "red", "circle"), dim=32, heads=2, inner=64, length=8)
QA = QaConfig(answers=("red", "blue", "two"), layers=1, projected=16, hidden=32)


@pytest.fixture(scope="module")
def server(start_server, tiny_encoder, clip_store, tmp_path_factory):
    """A server whose model has both heads, untrained."""
    folder, net = tmp_path_factory.mktemp("heads"), copy.deepcopy(tiny_encoder.net)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net.attach_captioner(CAPTION)
        net.attach_answerer(QA)
    model = save_checkpoint(net.eval(), folder / "heads.safetensors")
    options = ["--jobs-folder", folder / "jobs", "--embedded-worker", "off"]
    return start_server("--store", clip_store / "store", "--model", model, *options)


def open_player(page, url):
    page.goto(f"{url}/?q=a+red+circle")
    page.locator("#results .cover-link").first.click()
    expect(page.locator("#ask-labels")).to_be_visible()


def test_the_player_takes_labels_and_questions_and_shows_a_written_caption(page, server):
    open_player(page, server.url)
    page.fill("#ask-labels", "a red circle, a star ,, a star")
    page.press("#ask-labels", "Enter")
    rows = page.locator("#player-asking form").first.locator(".guesses li")
    expect(rows).to_have_count(2)
    shares = [int(text.removesuffix(" %")) for text in page.locator(".guesses .score").all_inner_texts()]
    assert shares == sorted(shares, reverse=True)
    assert 99 <= sum(shares) <= 101
    page.fill("#ask-question", "what color is it?")
    page.locator("#player-asking form").nth(1).get_by_role("button", name="Ask").click()
    answers = page.locator("#player-asking form").nth(1).locator(".guesses li span:first-child")
    expect(answers).to_have_count(3)
    assert set(answers.all_inner_texts()) == set(QA.answers)
    expect(page.locator("#player-captions .written .tag")).to_have_text("written")
    assert set(page.locator("#player-captions .written span").nth(1).inner_text().split()) <= {
        *CAPTION.words,
        "(no",
        "words)",
    }
    expect(page.locator("#player-captions .quotes li").first).to_be_visible()  # found, beside written
    assert page.complaints == []


def test_a_video_in_gets_a_written_caption_above_those_found(page, server, clip_store):
    page.goto(server.url)
    expect(page.locator("#facts")).not_to_be_empty()
    page.set_input_files("#file", clip_store / "clips" / "clip_0.mp4")
    expect(page.locator("#written .tag")).to_have_text("written")
    expect(page.locator(".captions li")).to_have_count(12)
    assert page.complaints == []


def test_a_model_without_heads_offers_labels_alone(page, page_server):
    open_player(page, page_server.url)
    expect(page.locator("#player-asking form")).to_have_count(1)
    expect(page.locator("#player-captions .quotes li").first).to_be_visible()
    expect(page.locator(".written")).to_have_count(0)
    page.fill("#ask-labels", "a, " + "b" * 201)
    page.press("#ask-labels", "Enter")
    expect(page.locator("#player-asking [role=status]")).to_contain_text("at most 200")
    page.complaints.clear()  # the console names the refused request
