"""The service's page in Debian's Chromium: a browser, pages that remember what went wrong, and axe."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

AXE = Path(__file__).parents[1] / "data" / "axe" / "axe.min.js"
PATIENCE_MS = 30_000
WIDE, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}

expect.set_options(timeout=PATIENCE_MS)


@contextmanager
def running_browser() -> Iterator[Browser]:
    """Chromium; the test is skipped where there is none."""
    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    if executable is None:
        pytest.skip("Chromium is not installed; docker/install-test-packages does it")
    with sync_playwright() as started:
        running = started.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield running
        running.close()


@contextmanager
def watched_page(browser: Browser, **options: Any) -> Iterator[Any]:
    """A page of its own session; ``complaints`` holds errors of its console and requests to strangers."""
    context = browser.new_context(**{"viewport": WIDE, **options})
    context.set_default_timeout(PATIENCE_MS)
    page: Any = context.new_page()
    page.complaints = []
    page.on("console", lambda said: said.type in ("error", "warning") and page.complaints.append(said.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("request", lambda asked: "127.0.0.1" in asked.url or page.complaints.append(asked.url))
    yield page
    context.close()


def search(page: Page, text: str) -> None:
    """Type a query and wait for its results."""
    page.fill("#text", text)
    expect(page).to_have_title(f"{text} · EMCL search")
    expect(page.locator("#results")).to_have_attribute("aria-busy", "false")
    expect(page.locator("#results .score").first).to_be_visible()


def open_results(page: Page, url: str, query: str = "?q=a+red+circle") -> None:
    """Go to the results of a query."""
    page.goto(f"{url}/{query}")
    expect(page.locator("#results .score").first).to_be_visible()


def axe_findings(page: Page) -> list[str]:
    """What axe finds wrong with the page as it is: rule, and where."""
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    return [f"{one['id']}: {[node['target'] for node in one['nodes']]}" for one in found["violations"]]


def until_playing(page: Page, selector: str) -> float:
    """Wait until a video has a picture; returns its ``currentTime``."""
    page.wait_for_function("s => document.querySelector(s)?.readyState >= 2", arg=selector)
    return float(page.evaluate("s => document.querySelector(s).currentTime", selector))
