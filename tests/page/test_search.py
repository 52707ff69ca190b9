"""The search view in a real browser: results while typing, moments that play, filters, addresses, keys, comparison."""

import re

import pytest
from page_support import PHONE, open_results, search, until_playing, watched_page
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
    first = cards(page).first
    expect(first.locator(".why mark").first).to_be_visible()  # its caption has words of the query
    unread = page.locator("#results .card:not(:has(.why)) .score")
    scores = [float(text) for text in unread.all_inner_texts()]
    assert scores == sorted(scores, reverse=True)
    assert re.fullmatch(r"\d:\d\d\.\d – \d:\d\d\.\d", first.locator(".facts span").first.inner_text())
    assert re.fullmatch(r"▶ \d:\d\d\.\d", first.locator(".badge").inner_text())
    assert re.fullmatch(r"6 videos( · Nothing fits well)? · [\d.]+ ms", page.locator("#status").inner_text())
    assert first.locator(".weights rect").count() == 6
    assert first.locator(".weights rect.best").count() >= 1
    expect(first.locator(".frames canvas.loaded")).to_have_count(6)
    assert page.url.endswith("?q=a+red+circle")
    page.wait_for_function("() => performance.getEntriesByName('answer to paint').length > 0")
    assert page.complaints == []


def changed(route, change):
    """Let the server answer, and change what it says."""
    answer = route.fetch()
    content = answer.json()
    change(content)
    route.fulfill(response=answer, json=content)


def test_a_hit_shows_its_other_moments(page, page_server):
    def several(answer):
        hit = answer["hits"][0]
        part = hit["duration_seconds"] / 4
        hit["moments"] = [{"start": n * part, "end": (n + 1) * part, "score": 0.5} for n in (0, 1, 3)]

    page.route("**/v1/search", lambda route: changed(route, several))
    open_results(page, page_server.url)
    expect(cards(page).first.locator(".marks span")).to_have_count(3)
    expect(cards(page).first.locator(".facts")).to_contain_text("+2 moments")
    expect(cards(page).first.locator(".marks")).to_have_attribute("aria-label", re.compile(r"moments at 0:00\.0, "))
    expect(cards(page).nth(1).locator(".marks")).to_have_count(0)
    assert page.complaints == []


def test_weak_hits_are_faded_and_it_says_when_nothing_fits(page, page_server):
    confidences = [0.99, 0.97, 0.5, 0.2, 0.1, 0.0]

    def fitting(answer):
        answer["nothing_fits"] = False
        for hit, confidence in zip(answer["hits"], confidences, strict=True):
            hit["confidence"] = confidence

    def misfit(answer):
        answer["nothing_fits"] = True
        for hit in answer["hits"]:
            hit["confidence"] = 0.5

    def answer_search(route):
        text = route.request.post_data_json["text"]
        changed(route, fitting if text == "fitting" else misfit)

    page.route("**/v1/search", answer_search)
    page.goto(page_server.url)
    expect(page.locator("#facts")).to_contain_text("6 videos")
    search(page, "fitting")
    expect(page.locator("#results .card.weak")).to_have_count(4)
    expect(page.locator("#status")).not_to_contain_text("Nothing fits well")
    search(page, "misfit")
    expect(page.locator("#results .card.weak")).to_have_count(6)
    expect(page.locator("#status")).to_contain_text("Nothing fits well")
    assert page.complaints == []


def test_the_banner_says_what_the_demo_model_is(page, page_server):
    page.goto(page_server.url)
    expect(page.locator("#facts")).to_contain_text("6 videos")
    expect(page.locator("#banner")).to_be_hidden()
    page.route("**/v1/index", lambda route: changed(route, lambda index: index.update(demo_notice="only `shapes`")))
    page.reload()
    expect(page.locator("#banner")).to_have_text("Note: only shapes")


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
    minutes, seconds = moment.removeprefix("▶ ").split(":")
    cards(page).first.locator(".screen").hover(force=True)  # its link lies over it
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
    cards(page).first.locator(".screen").hover(force=True)
    page.wait_for_timeout(400)
    assert page.locator("#results video").count() == 0
    assert page.complaints == []


def test_results_are_saved_as_files_of_other_programs(page, page_server):
    open_results(page, page_server.url)
    for choice, ending, start in [("Playlist", ".m3u8", "#EXTM3U"), ("Edit list", ".edl", "TITLE: a red circle")]:
        page.locator("#save summary").click()
        with page.expect_download() as download:
            page.locator("#save button", has_text=choice).click()
        assert download.value.suggested_filename == "a red circle" + ending
        assert download.value.path().read_text("utf-8").startswith(start)
        expect(page.locator("#save .menu")).to_be_hidden()
    page.locator("#save summary").click()
    with page.expect_download() as download:
        page.locator("#save button", has_text="Page with pictures").click()
    alone = download.value.path().rename(download.value.path().with_suffix(".html"))
    page.goto(f"file://{alone}")
    expect(page.locator("li")).to_have_count(6)
    assert page.locator("img").evaluate_all("all => all.every((one) => one.complete && one.naturalWidth > 0)")
    page.goto(page_server.url)
    expect(page.locator("#save")).to_be_hidden()


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
    with page.expect_download() as download:
        page.locator("#player-clip").click()
    assert download.value.suggested_filename.startswith(titles(page)[0])
    assert download.value.path().read_bytes()[4:8] == b"ftyp"
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
        page.wait_for_function("history.state?.draft !== true")  # from now on the entry stays
        expect(page.locator("#results")).to_have_attribute("aria-busy", "false")
    cards(page).first.locator(".cover-link").click()
    expect(page.locator("#player")).to_be_visible()
    page.go_back()
    expect(page.locator("#player")).not_to_be_visible()
    expect(page.locator("#text")).to_have_value("second")
    page.go_back()
    expect(page.locator("#text")).to_have_value("first")
    page.go_forward()
    expect(page.locator("#text")).to_have_value("second")
    page.go_back()
    expect(page.locator("#text")).to_have_value("first")  # one step after the other
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


def test_a_library_shows_lengths_and_results_show_moments(page, page_server):
    page.goto(page_server.url)
    badge = cards(page).first.locator(".badge")
    expect(badge).to_have_text(re.compile(r"^\d:\d\d\.\d$"))
    length = badge.inner_text()
    search(page, "a red circle")
    assert cards(page).first.locator(".badge").inner_text() == f"▶ {moment_of(page)}"
    videos = page.request.get(page_server.url + "/v1/videos").json()["videos"]
    assert length in {f"0:0{video['duration_seconds']:.1f}" for video in videos}


def moment_of(page):
    seconds = float(re.search(r"[?&]t=([\d.]+)", cards(page).first.locator(".cover-link").get_attribute("href"))[1])
    return page.evaluate("seconds => import('/web/format.js').then(({ clock }) => clock(seconds))", seconds)


def test_rankings_and_stages_are_in_the_drawer(page, page_server):
    open_results(page, page_server.url, "?q=what+no+other+test+asks")  # a repeated query comes from the cache
    expect(page.locator("#rankings")).not_to_be_visible()
    page.get_by_text("Advanced").click()
    expect(page.locator("#rankings")).to_be_visible()
    stages = dict(zip(*(page.locator(f"#stages {part}").all_inner_texts() for part in ("dt", "dd")), strict=True))
    assert all(re.fullmatch(r"[\d.,]+ ms", took) for took in stages.values()), stages
    assert {"reading the query", "searching the index", "ranking the candidates"} <= stages.keys()
    page.get_by_label("Stage 1 the index alone").check()
    expect(page).to_have_url(re.compile("rerank=frozen"))
    page.reload()
    expect(page.locator("#rankings")).to_be_visible()  # what differs from the usual is not hidden


def test_the_player_shows_the_score_of_the_results(page, page_server):
    hit = page.request.post(page_server.url + "/v1/search", data={"text": "a red circle"}).json()["hits"][0]
    video = page.request.get(f"{page_server.url}/v1/videos/{hit['video_id']}").json()
    video["segments"] = [{"segment": n, "start": float(n), "end": n + 1.0} for n in range(3)]
    asked = []

    def of_segments(scores):
        return {"hits": [dict(hit, segment=n, score=score) for n, score in scores.items()], "source": {"stage_ms": {}}}

    def ranked(route):
        asked.append(route.request.post_data_json)
        route.fulfill(json=of_segments({2: 0.5, 0: 0.3}))

    page.route(f"**/v1/videos/{hit['video_id']}", lambda route: route.fulfill(json=video))
    page.route("**/v1/search", ranked)
    page.route("**/v1/rerank", lambda route: route.fulfill(json=of_segments({0: 0.9, 1: 0.8, 2: 0.7})))
    page.goto(f"{page_server.url}/?q=a+red+circle&tag=even&rerank=none&play={hit['video_id']}&part=0")
    moments = page.locator(".moment")
    expect(moments).to_have_count(3)
    assert [m.locator(".score").all_inner_texts() for m in moments.all()] == [["0.500"], ["0.300"], []]
    assert page.locator(".moment .weights").count() == 3  # also of the one that the query did not rank
    within = next(one for one in asked if one.get("group") == "segment")
    assert (within["text"], within["rerank"], within["filter"]) == ("a red circle", "none", {"tags": ["even"]})


def test_all_that_was_looked_at_is_said_to_be_all(page, page_server):
    def few_of_many(route):
        answer = route.fetch().json()
        answer["query_limits"]["default_candidates"] = 5
        route.fulfill(json=answer)

    page.route("**/v1/index", few_of_many)
    page.goto(page_server.url)
    expect(page.locator("#facts")).not_to_be_empty()
    search(page, "a red circle")
    expect(page.locator("#more")).to_contain_text("5 results: that is all that was looked at")
    page.fill("#tags", "odd")
    page.press("#tags", "Enter")
    expect(page.locator("#results .score")).to_have_count(3)
    assert page.locator("#more").inner_text() == ""  # a filter: these are all


def test_a_link_to_what_was_removed_says_so(page, page_server):
    gone = "0" * 64
    page.goto(f"{page_server.url}/?play={gone}&t=1")
    expect(page.locator("#player")).to_contain_text("That video is no longer in the library")
    expect(page.locator("#player video")).not_to_be_visible()
    page.locator("#player").get_by_role("button", name="Close", exact=True).last.click()
    expect(page.locator("#player")).not_to_be_visible()
    page.goto(f"{page_server.url}/?like={gone}")
    expect(page.locator("#more .empty")).to_contain_text("no longer in the library")
    page.get_by_role("button", name="Start a new search").click()
    expect(page.locator(".chip").first).to_be_visible()


def test_a_link_that_was_cut_off_says_what_was_left_out(page, page_server):
    page.goto(f"{page_server.url}/?q=a+star&play=0123&min=x&sort=title")
    expect(page.locator("#toasts")).to_contain_text("Part of this link could not be read and was left out: play, min.")
    expect(page.locator("#results .score")).to_have_count(6)
    page.goto(f"{page_server.url}/?q=a+star&compare=1&t=1.50")
    expect(page.locator("[data-way=emcl] [data-video]").first).to_be_visible()
    assert page.locator("#toasts p").count() == 0


def test_a_wrong_address_is_a_page(page, page_server):
    assert page.goto(page_server.url + "/no/such/page").status == 404
    expect(page.locator("h1")).to_have_text("Page not found")
    page.complaints.clear()  # the console names the 404
    page.get_by_role("link", name="Search videos").click()
    expect(page.locator(".chip").first).to_be_visible()
    assert page.complaints == []


def test_the_box_stays_while_scrolling_and_a_phone_shows_two_columns(browser, page_server):
    with watched_page(browser, viewport={"width": PHONE["width"], "height": 420}) as page:
        open_results(page, page_server.url)
        columns = "getComputedStyle(document.querySelector('#results')).gridTemplateColumns.split(' ').length"
        assert page.evaluate(columns) == 2
        page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
        page.wait_for_function("() => scrollY > 100")
        assert 0 < page.locator("#text").bounding_box()["y"] < 100
        assert page.complaints == []


def test_no_tile_is_black_while_its_picture_loads(page, page_server):
    page.route(re.compile("/thumbnail|/sprite"), lambda route: None)  # never answered
    open_results(page, page_server.url)
    colours = page.evaluate("""() => ['.screen', '#player video'].map((place) =>
        getComputedStyle(document.querySelector(place)).backgroundColor)""")
    assert all(min(map(int, re.findall(r"\d+", colour)[:3])) > 200 for colour in colours), colours


def test_weights_have_a_picture_each_and_are_softened(page, page_server):
    page.goto(page_server.url)
    seen = page.evaluate("""() => import('/web/strip.js').then(async ({ strip }) => {
        const weights = Array.from({ length: 13 }, (_, number) => (number === 7 ? 0.76 : 0.02));
        const frames = weights.map((weight, time) => ({ time, weight }));
        const made = strip('a'.repeat(64), 3, frames);
        document.body.replaceChildren(made); // tiles are drawn when they come into view
        const bars = [...made.querySelectorAll('rect')];
        const tiles = [...made.querySelectorAll('canvas')];
        while (!tiles.every((tile) => tile.dataset.tile)) await new Promise((done) => setTimeout(done, 50));
        return { sprites: tiles.map((tile) => tile.dataset.sprite), tiles: tiles.map((tile) => +tile.dataset.tile),
            heights: bars.map((bar) => +bar.getAttribute('height')),
            best: bars.findIndex((bar) => bar.matches('.best')) };
    })""")
    assert len(seen["tiles"]) == len(seen["heights"]) == 6
    assert set(seen["sprites"]) == {f"/v1/videos/{'a' * 64}/sprite?segment=3"}
    assert seen["tiles"][seen["best"]] == 7  # the heaviest frame is never left out
    assert seen["heights"][seen["best"]] == 20
    assert min(seen["heights"]) == pytest.approx(20 * (0.02 / 0.76) ** (1 / 3))


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
    expect(page.locator(".empty")).to_contain_text("No matches")
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
    assert re.search(r"Pooling moves \d+ of 6, EMCL \d+", page.locator("body").inner_text())
    places = {
        way: [row.get_attribute("data-video") for row in page.locator(f"[data-way={way}] [data-video]").all()]
        for way in ("frozen", "none", "emcl")
    }
    for before, way in (("frozen", "none"), ("none", "emcl")):
        arrows = page.locator(f"[data-way={way}] .change").all_inner_texts()
        for place, (video, arrow) in enumerate(zip(places[way], arrows, strict=True)):
            up = places[before].index(video) - place
            assert arrow == ("" if up == 0 else f"▲ {up}" if up > 0 else f"▼ {-up}")
    assert page.locator("[data-way=emcl] header p").inner_text() == "channel, strength 0.1"
    row = page.locator("[data-way=frozen] [data-video]").first
    row.hover()
    expect(page.locator(".joins path.lit")).to_have_count(2)
    page.set_viewport_size({"width": 390, "height": 844})
    expect(page.locator(".way:visible")).to_have_count(3)
    expect(page.locator(".joins path")).to_have_count(12)
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


def test_recordings_filter_and_stay_in_the_address(page, page_server):
    open_results(page, page_server.url)
    page.fill("#after", "2024-02-01")
    expect(page.locator("#results .score")).to_have_count(5)
    page.fill("#before", "2024-04-30")
    expect(page.locator("#results .score")).to_have_count(3)
    page.fill("#camera", "canon")
    expect(page.locator("#results .score")).to_have_count(1)
    expect(page.locator("#filters-set")).to_have_text("3")
    assert "after=2024-02-01&before=2024-04-30&camera=canon" in page.url
    page.reload()
    expect(page.locator("#results .score")).to_have_count(1)
    expect(page.locator("#camera")).to_have_value("canon")
    cards(page).first.click()
    expect(page.locator("#player-facts")).to_contain_text("Canon EOS R5")
    page.keyboard.press("Escape")
    page.select_option("#height", "2160")
    page.get_by_role("button", name="Remove the filters").click()
    expect(page.locator("#results .score")).to_have_count(6)
    expect(page.locator("#after")).to_have_value("")
    assert page.complaints == []
