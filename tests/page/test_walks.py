"""Ten walks through the page as people take them, from one purpose to its end, in a real browser."""

import re
import shutil

import pytest
from page_support import PHONE, search, until_playing, watched_page
from playwright.sync_api import expect

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def server(start_server, clip_store, tiny_checkpoint, tmp_path_factory):
    """A server over a copy of the small store, which the walks change one after the other."""
    folder = tmp_path_factory.mktemp("walks")
    shutil.copytree(clip_store / "store", folder / "store")
    options = ["--jobs-folder", folder / "jobs", "--preview-folder", folder / "previews", "--embedded-worker", "off"]
    return start_server("--store", folder / "store", "--model", tiny_checkpoint, *options)


def cards(page):
    return page.locator("#results .card:not(.skeleton)")


def results(page):
    expect(page.locator("#results")).to_have_attribute("aria-busy", "false")
    expect(page.locator("#results .score").first).to_be_visible()
    return page.locator("#results .title").all_inner_texts()


def test_a_first_visit_tries_an_example_and_watches_its_best_hit(page, server):
    page.goto(server.url)
    chip = page.locator(".chip").first
    text = chip.inner_text()
    chip.click()
    best = results(page)[0]
    assert page.input_value("#text") == text
    expect(cards(page).first.locator(".why mark").first).to_be_visible()  # the clip has this caption
    cards(page).first.locator(".cover-link").click()
    expect(page.locator("#player-title")).to_have_text(best)
    until_playing(page, "#player video")
    expect(page.locator("#player-captions")).to_contain_text(text)
    page.locator("#player-close").click()
    expect(page.locator("#player")).not_to_be_visible()
    assert results(page)[0] == best
    page.locator(".brand").click()
    expect(page.locator(".chip").first).to_be_visible()
    assert page.complaints == []


def test_on_a_phone_one_searches_scrolls_watches_and_goes_back(browser, server):
    with watched_page(browser, viewport=PHONE, has_touch=True) as page:
        page.goto(server.url)
        expect(page.locator(".chip").first).to_be_visible()
        search(page, "a red circle")
        last = cards(page).last
        last.scroll_into_view_if_needed()
        expect(page.locator("#text")).to_be_in_viewport()  # the box stays
        title = last.locator(".title").inner_text()
        last.locator(".cover-link").tap()
        expect(page.locator("#player-title")).to_have_text(title)
        until_playing(page, "#player video")
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        page.go_back()
        expect(page.locator("#player")).not_to_be_visible()
        expect(last).to_be_in_viewport()  # where one was
        assert page.complaints == []


def test_a_link_to_a_moment_opens_there_for_somebody_else(browser, page, server):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(server.url)
    search(page, "a blue square")
    cards(page).nth(1).locator(".cover-link").click()
    title = page.locator("#player-title").inner_text()
    until_playing(page, "#player video")
    page.locator("#player video").evaluate("video => { video.pause(); video.currentTime = 1.25; }")
    page.locator("#player-link").click()
    expect(page.locator("#toasts")).to_contain_text("copied")
    link = page.evaluate("navigator.clipboard.readText()")
    with watched_page(browser) as other:
        other.goto(link)
        expect(other.locator("#player-title")).to_have_text(title)
        assert until_playing(other, "#player video") >= 1.2  # it goes on, however long this test is kept waiting
        assert re.search(r"#t=1\.250$", other.locator("#player video").get_attribute("src"))
        assert re.search(r"[?&]t=1\.25", other.url)
        other.locator("#player-alike").click()
        assert title not in results(other)
        assert other.complaints == []
    assert page.complaints == []


def test_a_video_is_added_found_renamed_and_found_by_its_new_name(page, server, clips):
    page.goto(server.url + "/?view=library")
    page.locator("#add").click()
    page.set_input_files("#add-files", {"name": "holiday.mp4", "mimeType": "video/mp4", "buffer": clips[0]})
    page.fill("#add-captions", "a walrus plays the accordion")
    page.locator("#adding button[type=submit]").click()
    expect(page.locator(".tray-item")).to_contain_text("you can search it now")
    page.locator("nav a[data-view=search]").click()
    search(page, "walrus accordion")
    assert results(page)[0] == "holiday"
    page.locator("nav a[data-view=library]").click()
    page.locator(".video-row", has_text="holiday").get_by_role("button", name="Edit").click()
    page.fill("#edit-title", "Concert in Bergen")
    page.locator("#editor button[type=submit]").first.click()
    expect(page.locator(".video-row", has_text="Concert in Bergen")).to_be_visible()
    page.goto(server.url)
    search(page, "bergen")
    assert results(page)[0] == "Concert in Bergen"
    expect(cards(page).first.locator(".why mark")).to_have_text("Bergen")
    assert page.complaints == []


def test_a_file_is_looked_up_and_its_words_become_a_search(page, server, clip_store):
    page.goto(server.url)
    page.set_input_files("#file", clip_store / "clips" / "clip_3.mp4")
    expect(page.locator(".captions li").first).to_be_visible()
    expect(page.locator("#video-view .cards .card .title").first).to_have_text("clip_3")  # it is in the library
    words = page.locator(".captions li .title, .captions li strong, .captions li b").first
    text = words.inner_text() if words.count() else page.locator(".captions li").first.inner_text().split("\n")[0]
    page.locator(".brand").click()
    search(page, text[:80])
    results(page)
    page.go_back()
    page.go_back()
    assert page.complaints == []


def test_a_broad_search_is_narrowed_by_tag_and_length_and_widened_again(page, server):
    page.goto(server.url)
    search(page, "a circle")
    everything = results(page)
    cards(page).first.locator(".tag").first.click()
    expect(page.locator("#results")).to_have_attribute("aria-busy", "false")
    narrowed = results(page)
    assert 0 < len(narrowed) < len(everything)
    expect(page.locator("#filters-set")).to_have_text("1")
    page.fill("#min", "100000")
    expect(page.locator(".empty")).to_contain_text("No matches")
    page.get_by_role("button", name="Remove the filters").click()
    expect(page.locator("#results .score")).to_have_count(len(everything))
    page.select_option("#sort", "title")
    expect(page.locator("#results .title").first).to_have_text(sorted(everything, key=str.casefold)[0])
    assert page.complaints == []


def test_a_search_is_saved_for_others_and_a_moment_for_oneself(page, server):
    page.goto(server.url)
    search(page, "a star")
    best = results(page)[0]
    page.locator("#save summary").click()
    with page.expect_download() as saved:
        page.locator("#save button", has_text="Page with pictures").click()
    text = saved.value.path().read_text("utf-8")
    assert best in text
    assert text.count("data:image/jpeg") == len(results(page))
    cards(page).first.locator(".cover-link").click()
    with page.expect_download() as moment:
        page.locator("#player-clip").click()
    assert moment.value.suggested_filename.endswith(".mp4")
    with page.expect_download() as whole:
        page.locator("#player-file").click()
    assert whole.value.path().stat().st_size > 1000
    assert page.complaints == []


def test_one_who_doubts_emcl_compares_and_goes_on_with_the_ranking_of_their_choice(page, server):
    page.goto(server.url)
    search(page, "a red circle")
    page.locator("#compare").click()
    expect(page.locator("[data-way=emcl] [data-video]").first).to_be_visible()
    expect(page.locator("body")).to_contain_text("Pooling moves")
    page.locator("#compare").click()
    results(page)
    page.locator("#advanced summary").click()
    page.locator("input[name=rerank][value=none]").check()
    expect(page.locator("#results")).to_have_attribute("aria-busy", "false")
    assert "rerank=none" in page.url
    page.reload()
    results(page)
    assert page.locator("input[name=rerank]:checked").get_attribute("value") == "none"
    assert page.complaints == []


def test_the_library_is_tidied_a_video_goes_and_no_search_finds_it(page, server):
    page.goto(server.url + "/?view=library")
    rows = page.locator(".video-row")
    expect(rows.first).to_be_visible()
    before = rows.count()
    title = "clip_5"
    page.locator(".video-row", has_text=title).get_by_role("button", name="Edit").click()
    page.locator("#remove-video").click()
    expect(page.locator("#remove-video")).to_contain_text("for good?")  # asked before it is gone
    page.locator("#remove-video").click()
    expect(rows).to_have_count(before - 1)
    page.goto(server.url)
    search(page, "a red circle")
    assert title not in results(page)
    assert page.complaints == []


def test_one_who_runs_it_looks_whether_it_is_well_and_tries_the_api(page, server):
    page.goto(server.url + "/?view=library&tab=status")
    expect(page.locator(".health")).to_contain_text("can be searched")
    page.locator(".technical summary").click()
    expect(page.locator(".technical")).to_contain_text("Generation")
    page.locator("nav a[href='/docs']").click()
    expect(page.locator("details").first).to_be_visible()
    assert page.locator("body").inner_text().count("/v1/search") >= 1
    page.go_back()
    expect(page.locator(".health")).to_be_visible()
    assert page.complaints == []
