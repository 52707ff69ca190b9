"""How the page is made: accessible in light and dark, small, still, strict about where things come from, typed."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from page_support import PHONE, WIDE, axe_findings, open_results, watched_page
from playwright.sync_api import expect

from service.http.middleware import SECURITY_HEADERS
from service.routes.pages import WEB

MOST_BYTES = 220_000  # with the messages of one language
TYPES = Path(__file__).parents[1] / "page_types"


@pytest.mark.browser
@pytest.mark.parametrize(("size", "scheme"), [(PHONE, "light"), (WIDE, "dark")], ids=["phone-light", "wide-dark"])
def test_axe_and_the_console_have_nothing_to_say(browser, page_server, clip_store, scheme, size):
    with watched_page(browser, color_scheme=scheme, viewport=size, reduced_motion="reduce") as page:
        findings = {}

        def look(name, *, ready):
            expect(page.locator(ready).first).to_be_visible()
            findings[name] = axe_findings(page)

        page.goto(page_server.url)
        look("home", ready="#results .card:not(.skeleton)")
        open_results(
            page, page_server.url, "?q=a+star&tag=even&rerank=none"
        )  # what is not the default opens the drawer
        if size is PHONE:
            page.locator("#filters-toggle").click()
        look("results", ready="#filters")
        page.locator(".cover-link").first.click()
        look("player", ready="#player-strip .frame")
        page.goto(page_server.url + "/?q=a+star&compare=1")
        look("comparison", ready="[data-way=emcl] [data-video]")
        page.set_input_files("#file", clip_store / "clips" / "clip_0.mp4")
        look("video in", ready=".captions li")
        for tab, ready in [
            ("videos", ".video-row"),
            ("captions", ".video-row"),
            ("jobs", ".empty"),
            ("status", ".tile"),
        ]:
            page.goto(f"{page_server.url}/?view=library&tab={tab}")
            look(tab, ready=ready)
        page.goto(page_server.url + "/?view=library")
        page.locator("#add").click()
        look("adding", ready="#adding")
        page.keyboard.press("Escape")
        page.locator(".video-row .small").first.click()
        look("editing", ready="#edit-title")
        page.goto(page_server.url + "/docs")
        look("docs", ready="details")
        assert [f"{name}: {one}" for name, found in findings.items() for one in found] == []
        assert page.complaints == []


@pytest.mark.browser
def test_nothing_jumps_while_it_loads(page, page_server):
    page.add_init_script(
        "window.shifts = [];"
        "new PerformanceObserver((list) => shifts.push(...list.getEntries().map((one) => one.value)))"
        ".observe({ type: 'layout-shift', buffered: true });"
    )
    for path in ("/", "/?q=a+star", "/?view=library"):
        page.goto(page_server.url + path)
        expect(page.locator("img.loaded").first).to_be_visible()
        page.wait_for_timeout(300)
        assert sum(page.evaluate("shifts")) < 0.1, path


OVERFLOWING = """() => [...document.querySelectorAll('.way')].flatMap((way) => {
    const { right } = way.getBoundingClientRect();
    return [...way.querySelectorAll('button, p')].filter((part) => part.getBoundingClientRect().right > right + 0.5);
}).length"""


@pytest.mark.browser
def test_the_columns_of_the_comparison_hold_what_is_in_them_on_a_phone(browser, page_server):
    with watched_page(browser, viewport={**PHONE, "width": 360}) as page:
        page.goto(f"{page_server.url}/?q=a+red+circle&compare=1")
        expect(page.locator(".way .row-hit:not(.skeleton)")).to_have_count(18)
        assert page.evaluate(OVERFLOWING) == 0


@pytest.mark.browser
def test_no_view_is_wider_than_a_phone(browser, page_server):
    with watched_page(browser, viewport=PHONE) as page:
        for path in ("/", "/?q=a+star", "/?q=a+star&compare=1", "/?view=library", "/?view=library&tab=status"):
            page.goto(page_server.url + path)
            expect(page.locator("main li, main .long-row, main .tile").first).to_be_visible()
            assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], path


def test_the_page_is_small_and_brings_no_inline_code():
    html = (WEB / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<script(?![^>]*\bsrc=)|\sstyle=|<style|\son\w+=|javascript:", html)
    assert "unsafe" not in SECURITY_HEADERS["Content-Security-Policy"]
    files = [file for file in WEB.rglob("*") if file.is_file()]
    needed = [file for file in files if file.name not in ("docs.html", "docs.js") and file.suffix != ".json"]
    needed.append(WEB / "languages" / "en.json")
    assert sum(file.stat().st_size for file in needed) < MOST_BYTES
    for file in files:
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://", text), f"{file.name} names something elsewhere"


def test_the_types_of_the_page_are_right():
    compiler = TYPES / "node_modules" / ".bin" / "tsc"
    if not compiler.exists() or shutil.which("node") is None:
        pytest.skip(
            "TypeScript is not installed; `npm ci --prefix tests/page_types` brings the version of the lock file"
        )
    done = subprocess.run([compiler, "--project", TYPES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
