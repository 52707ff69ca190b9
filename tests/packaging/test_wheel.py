"""What the wheel holds besides Python: the page with the messages of its languages."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_wheel_holds_the_page_and_its_languages() -> None:
    wheel = pytest.importorskip("hatchling.builders.wheel", reason="hatchling builds the wheel")
    packed = {file.distribution_path for file in wheel.WheelBuilder(str(ROOT)).recurse_included_files()}
    wanted = {str(file.relative_to(ROOT)) for file in (ROOT / "service" / "web").rglob("*") if file.is_file()}
    assert {"service/web/languages/en.json", "service/web/languages/de.json"} <= wanted
    wanted |= {str(file.relative_to(ROOT)) for file in (ROOT / "service" / "languages").glob("*.json")}
    assert "service/languages/de.json" in wanted
    assert wanted <= packed
