"""The search view in a real browser: results while typing, moments that play, filters, addresses, keys, comparison."""

import re

import pytest
from page_support import open_results, search, until_playing
from playwright.sync_api import expect

pytestmark = pytest.mark.browser


def cards(page):
    return page.locator("#results .card:not(.skeleton)")


def titles(page):
    return page.locator("#results .title").all_inner_texts()


def test_words_find_videos_while_they_are_typed(page, page_server):
    page.goto(page_server.url)
    expect(page.locator("#facts")).to_contain_text("6 videos")
    expect(page.locator(".chip").first).to_be_visible()
    page.type("#text", "a red circle", delay=20)
    expect(page.locator("#results .score")).to_have_count(6)
    scores = [float(text) for text in page.locator("#results .score").all_inner_texts()]
    assert scores == sorted(scores, reverse=True)
    first = cards(page).first
    assert re.fullmatch(r"\d:\d\d\.\d – \d:\d\d\.\d", first.locator(".facts span").first.inner_text())
    assert first.locator(".weights rect").count() == 6
    assert first.locator(".weights rect.best").count() >= 1
    expect(first.locator(".frames img.loaded")).to_have_count(6)
    assert page.url.endswith("?q=a+red+circle")
    page.wait_for_function("() => performance.getEntriesByName('answer to paint').length > 0")
    assert page.complaints == []


def test_an_answer_that_nobody_waits_for_is_not_waited_for(page, page_server):
    held = []
    page.add_init_script(
        "const real = fetch; window.asked = [];"
        "window.fetch = (path, how) => { asked.push([path, how]); return real(path, how); };"
    )
    page.route(
        "**/v1/search",
        lambda route: held.append(route) if route.request.post_data_json["text"] == "first" else route.continue_(),
    )
    page.goto(page_server.url)
    page.fill("#text", "first")
    expect(page.locator("#status")).to_contain_text("Searching")
    expect(page.locator(".card.skeleton").first).to_be_visible()
    expect(page.locator("#status")).to_contain_text("the server is slow")
    search(page, "second")
    searches = "asked.filter(([path]) => path === '/v1/search')"
    of_each = "([, how]) => [JSON.parse(how.body).text, how.signal.aborted]"
    assert page.evaluate(f"{searches}.map({of_each})") == [["first", True], ["second", False]]
    assert len(held) == 1


def test_a_card_plays_its_moment_when_it_is_pointed_at_and_not_where_motion_is_unwanted(page, page_server):
    open_results(page, page_server.url)
    moment = page.locator("#results .at").first.inner_text()
    minutes, seconds = moment.split(":")
    cards(page).first.hover()
    until_playing(page, "#results video.playing")
    source = page.locator("#results video").first.get_attribute("src")
    assert float(source.split("#t=")[1]) == pytest.approx(int(minutes) * 60 + float(seconds), abs=0.051)
    page.mouse.move(2, 2)
    expect(page.locator("#results video")).to_have_count(0)
    page.locator("#results .cover-link").nth(1).focus()
    expect(page.locator("#results video")).to_have_count(1)
    page.emulate_media(reduced_motion="reduce")
    page.locator("#text").focus()
    expect(page.locator("#results video")).to_have_count(0)
    cards(page).first.hover()
    page.wait_for_timeout(400)
    assert page.locator("#results video").count() == 0
    assert page.complaints == []


def test_the_player_starts_at_the_moment_and_finds_more_like_it(page, page_server):
    open_results(page, page_server.url)
    cards(page).first.locator(".cover-link").click()
    asked = float(re.search(r"[?&]t=([\d.]+)", page.url)[1])
    assert until_playing(page, "#player video") >= asked - 0.01
    expect(page.locator("#player-title")).to_have_text(titles(page)[0])
    frames = page.locator("#player-strip .frame")
    expect(frames).to_have_count(6)
    expect(page.locator("#player-captions li")).to_have_count(2)
    page.locator("#player video").evaluate("video => video.pause()")
    frames.nth(2).click()
    page.wait_for_function("() => document.querySelector('#player video').currentTime >= 0.9")
    page.locator("#player-alike").click()
    expect(page.locator("#player")).not_to_be_visible()
    expect(page.locator("#results .score")).to_have_count(5)
    assert "like=" in page.url
    assert page.complaints == []


def test_the_address_holds_the_query_and_back_and_forward_work(page, page_server):
    page.goto(page_server.url)
    for text in ("first", "second"):
        search(page, text)
        page.press("#text", "Enter")
        expect(page).to_have_title(f"{text} · EMCL search")
    cards(page).first.locator(".cover-link").click()
    expect(page.locator("#player")).to_be_visible()
    page.go_back()
    expect(page.locator("#player")).not_to_be_visible()
    page.go_back()
    expect(page.locator("#text")).to_have_value("first")
    page.go_forward()
    expect(page.locator("#text")).to_have_value("second")
    page.go_back()
    page.go_back()
    expect(page.locator(".chip").first).to_be_visible()
    assert page.input_value("#text") == ""
    assert page.complaints == []


def test_a_link_shows_what_was_looked_at(page, page_server):
    open_results(page, page_server.url, "?q=a+star&tag=even&rerank=frozen&sort=title")
    assert page.input_value("#text") == "a star"
    assert page.locator("input[name=rerank]:checked").get_attribute("value") == "frozen"
    assert titles(page) == ["clip_0", "clip_2", "clip_4"]
    link = cards(page).first.locator(".cover-link").get_attribute("href")
    page.goto(page_server.url + link)
    assert until_playing(page, "#player video") >= 0
    expect(page.locator("#player-title")).to_have_text("clip_0")
    page.keyboard.press("Escape")
    expect(page.locator("#player")).not_to_be_visible()
    assert "play=" not in page.url
    page.goto(page_server.url + "/?q=x&min=bad&rerank=bad&play=../../etc&tab=bad&view=bad")
    expect(page.locator("#results .score")).to_have_count(6)
    assert page.complaints == []


def test_filters_narrow_down_and_can_be_taken_back(page, page_server):
    open_results(page, page_server.url)
    page.fill("#tags", "odd")
    page.press("#tags", "Enter")
    expect(page.locator("#results .score")).to_have_count(3)
    page.locator("#results .tag", has_text="number-3").click()
    expect(page.locator("#results .score")).to_have_count(1)
    assert "tag=odd&tag=number-3" in page.url
    page.get_by_role("button", name="Remove the tag number-3").click()
    expect(page.locator("#results .score")).to_have_count(3)
    page.fill("#min", "900")
    expect(page.locator(".empty")).to_contain_text("Nothing fits these filters")
    page.get_by_role("button", name="Remove the filters").click()
    expect(page.locator("#results .score")).to_have_count(6)
    page.select_option("#sort", "title")
    expect(page.locator("#results .title").first).to_have_text("clip_0")
    assert titles(page) == sorted(titles(page))
    assert page.complaints == []


def test_the_keyboard_is_enough(page, page_server):
    page.goto(page_server.url)
    expect(page.locator(".chip").first).to_be_visible()
    page.locator("#help-open").focus()
    page.keyboard.press("/")
    page.keyboard.type("a blue square")
    page.keyboard.press("Enter")
    expect(page.locator("#results .score")).to_have_count(6)

    def focused():
        return page.evaluate("[...document.querySelectorAll('#results .cover-link')].indexOf(document.activeElement)")

    columns = page.evaluate(
        "getComputedStyle(document.querySelector('#results')).gridTemplateColumns.split(' ').length"
    )
    for key, place in [("ArrowDown", 0), ("ArrowRight", 1), ("ArrowDown", 1 + columns), ("ArrowUp", 1), ("End", 5)]:
        page.keyboard.press(key)
        assert focused() == min(place, 5), key
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    expect(page.locator("#player")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#player")).not_to_be_visible()
    assert focused() == 0
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "text"
    page.keyboard.press("Tab")
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()
    assert page.complaints == []


def test_with_and_without_stand_side_by_side(page, page_server):
    open_results(page, page_server.url)
    page.locator("#compare").click()
    expect(page.locator(".way")).to_have_count(3)
    expect(page.locator("[data-way=emcl] [data-video]")).to_have_count(6)
    assert "compare=1" in page.url
    expect(page.locator(".joins path")).to_have_count(12)  # drawn with the next frame
    joined = {path.get_attribute("data-video") for path in page.locator(".joins path").all()}
    assert len(joined) == 6
    for way in ("frozen", "none", "emcl"):
        assert re.search(r"\d ms", page.locator(f"[data-way={way}] .stages").inner_text())
    row = page.locator("[data-way=frozen] [data-video]").first
    row.hover()
    expect(page.locator(".joins path.lit")).to_have_count(2)
    page.set_viewport_size({"width": 390, "height": 844})
    expect(page.locator(".joins path")).to_have_count(6)
    row.locator("button").click()
    expect(page.locator("#player")).to_be_visible()
    assert page.complaints == []


def test_the_docs_are_drawn_and_can_be_tried(page, page_server):
    page.goto(page_server.url + "/docs#problem-overloaded")
    page.wait_for_selector("details")
    assert page.locator("details").count() >= 12
    assert page.locator("#problem-overloaded").is_visible()
    page.locator("summary").first.click()
    page.get_by_role("button", name="Send").first.click()
    page.wait_for_selector("pre:visible")
    assert page.locator("pre:visible").first.inner_text().startswith("200")
    assert page.complaints == []
