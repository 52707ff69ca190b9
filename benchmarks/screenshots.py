"""Pictures of every view of the page, light and dark, for a phone and a wide screen, to be looked at.

    python -m benchmarks.screenshots --clip holiday.mp4 --job 5b0c2f1d9e7a4c33 var/screenshots

Asks a running service; ``--clip`` and ``--job`` add the views of an upload and of a job. The pictures are reduced to
256 colours, so that they are small enough for the documentation.
"""

from __future__ import annotations

import argparse
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SIZES = {"wide": {"width": 1440, "height": 940}, "phone": {"width": 390, "height": 844}}
SCHEMES = ("light", "dark")
SETTLE_MS = 1500
PATIENCE_MS = 60_000


def main() -> None:
    """Take the pictures."""
    arguments = _arguments()
    from playwright.sync_api import sync_playwright

    arguments.folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for size in SIZES:
            for scheme in SCHEMES:
                for name, picture in _pictures(browser, size, scheme, arguments):
                    path = arguments.folder / f"{name}-{size}-{scheme}.png"
                    _save(picture, path)
                    print(path, path.stat().st_size)
        browser.close()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Pictures of every view of the page of a running service.")
    parser.add_argument("folder", type=Path, help="where the pictures go")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="where the service answers")
    parser.add_argument(
        "--query",
        default="a big red heart circles around over a brown checkerboard background",
        help="what is searched",
    )
    parser.add_argument("--clip", type=Path, help="a video to look up")
    parser.add_argument("--job", help="id of a job to show")
    return parser.parse_args()


def _pictures(browser: Browser, size: str, scheme: str, asked: argparse.Namespace) -> Iterator[tuple[str, bytes]]:
    context = browser.new_context(viewport=SIZES[size], color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    query = "q=" + asked.query.replace(" ", "+")

    def take(path: str, ready: str) -> bytes:
        if path:
            page.goto(asked.url + path)
        page.wait_for_selector(ready)
        return _settled(page)

    yield "home", take("/", "#results .card:not(.skeleton)")
    yield "results", take(f"/?{query}", "#results .score")
    page.locator(".cover-link").first.click()
    page.locator("#player video").evaluate("video => video.pause()")
    yield "player", take("", "#player-strip .frame")
    yield "comparison", take(f"/?{query}&compare=1", "[data-way=emcl] [data-video]")
    for tab, ready in (("videos", ".video-row"), ("captions", ".video-row"), ("status", ".tile")):
        yield tab, take(f"/?view=library&tab={tab}", ready)
    if asked.job:
        yield "job", take(f"/?view=library&tab=jobs&job={asked.job}", ".job-head h2")
    if asked.clip:
        page.set_input_files("#file", asked.clip)
        yield "video", take("", ".captions li")
    yield "docs", take("/docs", "details")
    context.close()


def _settled(page: Page) -> bytes:
    """The screen when its pictures are there."""
    page.wait_for_function("""() => [...document.querySelectorAll('img[data-url]')].every((image) => {
        const box = image.getBoundingClientRect();
        return image.classList.contains('loaded') || box.top > innerHeight || box.bottom < 0 || !image.offsetParent;
    })""")
    page.wait_for_timeout(SETTLE_MS)
    return page.screenshot()


def _save(picture: bytes, path: Path) -> None:
    with Image.open(io.BytesIO(picture)) as image:
        image.convert("RGB").quantize(256).save(path, optimize=True)


if __name__ == "__main__":
    main()
