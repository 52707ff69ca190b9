"""The benchmark report: failures are reported and lose nothing, targets are judged, a quick run has the right shape."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from benchmarks import harness, report, report_page
from benchmarks.harness import ChildFailedError, interleave, run_child
from benchmarks.report_rows import Report, Row, Target
from benchmarks.report_sections import SECTIONS, Section, quantity

ROOT = Path(report.__file__).parents[1]
MODULE = """
import os, sys, time
from benchmarks.harness import NotHereError
from benchmarks.report_rows import Row

def good(scale):
    print("words that a library prints")
    yield Row(name="threads", unit="", samples=(int(os.environ["OMP_NUM_THREADS"]),))
    yield Row(name="size", unit="", samples=(scale.pick(100, 1),))

def fails(scale):
    yield Row(name="before", samples=(1.0,))
    raise RuntimeError("it broke here")

def dies(scale):
    yield Row(name="before", samples=(1.0,))
    os._exit(7)

def hangs(scale):
    yield Row(name="before", samples=(1.0,))
    time.sleep(600)

def elsewhere(scale):
    raise NotHereError("no such device")
"""


@pytest.fixture
def sections(tmp_path, monkeypatch):
    """Makes sections of functions that behave well and badly."""
    (tmp_path / "some_sections.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def make(name, cap=60):
        run = f"some_sections:{name}"
        return Section(name=name, title=name.title(), run=run, threads=1, cap_seconds=cap, about="")

    return make


@pytest.fixture
def row():
    """Makes a row of 2 ms over a floor of 1 ms."""
    return lambda **changes: Row(
        **{"name": "a", "clock": "wall", "samples": (2e-3,), "floor": "f", "floor_samples": (1e-3,), **changes}
    )


def test_a_section_that_fails_is_told_and_loses_nothing(sections, tmp_path):
    names = ("good", "fails", "dies", "elsewhere")
    printed: list[str] = []
    found = report.run([sections(name) for name in names], quick=True, say=printed.append)
    states = {section.name: section.state for section in found.sections}
    assert states == {"good": "done", "fails": "failed", "dies": "failed", "elsewhere": "skipped"}
    assert found.rows[("good", "size")].value == 1
    assert found.rows[("good", "threads")].value == 1
    assert ("fails", "before") in found.rows
    assert ("dies", "before") in found.rows
    assert "it broke here" in found.sections[1].reason
    assert "ended with 7" in found.sections[2].reason
    assert found.sections[3].reason == "no such device"
    report.write_report(found, tmp_path)
    page = (tmp_path / "report.md").read_text()
    assert "it broke here" in page
    assert "Not measured: no such device" in page
    assert any("good".title() in line for line in printed)


def test_a_section_that_hangs_is_stopped(sections):
    found = report.run([sections("hangs", cap=2), sections("good")], quick=True, say=lambda _: None)
    assert [section.state for section in found.sections] == ["failed", "done"]
    assert "stopped after 2 s" in found.sections[0].reason


def test_a_failed_section_ends_with_1(sections, tmp_path, monkeypatch, capsys):
    for name, code in (("good", 0), ("fails", 1)):
        monkeypatch.setattr(report, "chosen", lambda _, name=name: (sections(name),))
        assert report.main(["--output", str(tmp_path / name), "--quick"]) == code
    assert "FAILED: Fails" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--only", "nothing"], ["--save-baseline", "--quick"]])
def test_wrong_options_are_refused(options, tmp_path, capsys):
    with pytest.raises(SystemExit):
        report.main(["--output", str(tmp_path), *options])
    said = capsys.readouterr().err
    assert "there is no section 'nothing'" in said or "a baseline is a whole run" in said


def test_targets_are_judged_by_ratio_or_value(row):
    assert row(target=Target(bound=2.0)).met is True
    assert row(target=Target(bound=1.9)).met is False
    assert row(target=Target(of="value", sense="at least", bound=1.0)).met is False
    assert row().met is None
    with pytest.raises(ValidationError, match="but no floor"):
        row(floor="", floor_samples=(), target=Target(bound=1.0))


def test_quantities_read_well():
    assert [quantity(value, "s") for value in (2.0, 2e-3, 2e-6)] == ["2 s", "2 ms", "2 µs"]
    assert quantity(123456.0, "B") == "123,456 B"


def test_turns_are_counted_and_a_budget_ends_them():
    calls: list[str] = []
    tasks = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    found = interleave(tasks, rounds=4, warm_up=1)
    assert {name: len(times) for name, times in found.items()} == {"a": 4, "b": 4}
    assert calls == ["b", "a", "a", "b", "b", "a", "a", "b", "b", "a"]
    slow = interleave({"a": lambda: time.sleep(0.01)}, rounds=1000, clock="wall", budget_seconds=0.0)
    assert len(slow["a"]) == harness.LEAST_ROUNDS


def test_a_child_answers_with_its_own_memory(tmp_path, monkeypatch):
    code = "from benchmarks.harness import resident\nx = bytearray(b'1') * (200 << 20)\ndel x\nprint(resident().peak)"
    (tmp_path / "some_child.py").write_text(code)
    (tmp_path / "no_answer.py").write_text("print('not JSON')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert 200 <= run_child("some_child").answer < 400  # not that of this process, which holds PyTorch
    with pytest.raises(ChildFailedError, match="no answer"):
        run_child("no_answer")


def test_every_section_names_a_function_that_is_there():
    from importlib import import_module

    assert len({section.name for section in SECTIONS}) == len(SECTIONS)
    for section in SECTIONS:
        module, _, name = section.run.partition(":")
        assert callable(getattr(import_module(module), name)), section.run
    assert sum(section.cap_seconds for section in SECTIONS) > 0


@pytest.mark.slow
def test_a_quick_run_has_the_shape_of_a_report(tmp_path):
    """The command itself on tiny sizes; which sections, so that it does not take long."""
    only = [part for name in ("machine", "exact search") for part in ("--only", name)]
    command = [sys.executable, "-m", "benchmarks.report", "--output", str(tmp_path), "--quick", *only]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = Report.read(tmp_path / "report.json")
    assert found.kind == "quick"
    assert [section.name for section in found.sections] == ["machine", "exact search"]
    assert all(section.rows for section in found.sections)
    assert found.machine.cores >= 1
    assert {"torch", "numpy"} <= set(found.machine.versions)
    assert found.machine.load_end is not None
    ratios = [row for row in found.rows.values() if row.floor]
    assert ratios
    assert all(len(row.samples) == len(row.floor_samples) >= harness.LEAST_ROUNDS for row in ratios)
    page = (tmp_path / "report.md").read_text()
    assert all(f"| {name} |" in page for _, name in found.rows)
    assert "<svg" in (tmp_path / "ratios.svg").read_text()
    written = json.loads((tmp_path / "report.json").read_text())
    assert all({"value", "ratio", "met"} <= set(row) for part in written["sections"] for row in part["rows"])
    assert report_page.page(found, []).startswith("# Benchmarks")
