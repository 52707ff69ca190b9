"""The documentation cannot rot: generated parts are compared, links followed, commands and settings checked."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def command_reference() -> str:
    """What ``make docs`` writes to ``docs/cli.md``."""
    command = [sys.executable, "-m", "typer", "service.cli", "utils", "docs", "--name", "emcl"]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def test_command_reference_is_current():
    written = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert written.strip() == command_reference().strip(), "run `make docs`"


def test_settings_page_holds_the_table_of_settings():
    command = [sys.executable, "-m", "service.settings"]
    table = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert table.strip() in (ROOT / "docs" / "settings.md").read_text(encoding="utf-8"), (
        "run `python -m service.settings`"
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://", "mailto:", "#")):
            continue
        assert (page.parent / target.split("#")[0]).exists(), f"{page.name} links to {target}, which is not there"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page):
    if page.name == "CHANGELOG.md":
        return  # it names files of earlier releases
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:model|indexer|service|tests|benchmarks|configs|docker)/[\w/.-]+\.\w+)`", text):
        assert (ROOT / name).exists(), f"{page.name} names {name}, which is not there"


def slugs(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_anchors_are_headings(page):
    for path, anchor in re.findall(r"\]\((?!https?:)([^)\s#]*)#([^)\s]+)\)", page.read_text(encoding="utf-8")):
        target = page if not path else page.parent / path
        if target.suffix == ".md":
            assert anchor in slugs(target), f"{page.name} links to {path}#{anchor}, which is not a heading"


def test_the_ways_of_the_data_name_files_that_exist_and_each_once():
    """A name without a folder is in the folder of the file before it."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    ways = re.split(r"^\*\*An? ", text.split("## The ways of the data")[1].split("\n## ")[0], flags=re.M)[1:]
    assert len(ways) == 5
    for way in ways:
        listed, folder = [], None
        for name in re.findall(r"`([\w/]+\.py)`", "\n".join(re.findall(r"^\d+\. .+$", way, re.M))):
            path = ROOT / name if "/" in name else folder / name
            assert path.is_file(), f"{name}: there is no {path}"
            listed.append(path)
            folder = path.parent
        assert len(set(listed)) == len(listed)


def documented_commands() -> list[tuple[str, str]]:
    """Every ``emcl …`` line of every code block, continuation lines joined."""
    lines = []
    for page in PAGES:
        if page.name == "cli.md":
            continue
        for block in re.findall(r"^```(?:sh|console|bash)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("emcl "):
                    lines.append((page.name, line))
    return lines


@pytest.mark.parametrize(("page", "line"), documented_commands())
def test_documented_commands_exist(page, line):
    words = shlex.split(line, comments=True)[1:]
    reference = command_reference_sections()
    name = " ".join(words[:2]) if " ".join(words[:2]) in reference else words[0]
    assert name in reference, f"{page}: there is no command `emcl {name}`"
    for option in (word.split("=")[0] for word in words if word.startswith("--")):
        assert f"`{option}" in reference[name] or f" {option}" in reference[name], f"{page}: {name} has no {option}"


def command_reference_sections() -> dict[str, str]:
    """Command name (``index build``) to its part of ``docs/cli.md``."""
    parts = re.split(r"^#+ `emcl ?([^`]*)`$", (ROOT / "docs" / "cli.md").read_text(encoding="utf-8"), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_there_are_documented_commands():
    assert len(documented_commands()) >= 5
