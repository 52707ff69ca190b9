"""Comparing two benchmark reports: it finds what became slower, and is silent about noise and busy machines."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import compare
from benchmarks.harness import interleave
from benchmarks.report import write_json
from benchmarks.report_rows import Machine, Report, Row, SectionResult

MACHINE = Machine(
    processor="a processor",
    cores=2,
    instructions=("avx2",),
    memory_gib=8.0,
    versions={"torch": "1"},
    commit="0" * 12,
    load_start=(0.1, 0.1, 0.1),
)


def noisy(seed, *, scale=1.0, busy=1.0, count=30, better="less", name="search"):
    """A row with a floor of 1 ms and a time of 2 ms; ``busy`` slows both, ``scale`` the thing alone."""
    rng = np.random.default_rng(seed)
    floors = 1e-3 * busy * rng.lognormal(0, 0.1, count)
    times = 2e-3 * scale * busy * rng.lognormal(0, 0.1, count)
    return Row(name=name, clock="wall", samples=tuple(times), floor="floor", floor_samples=tuple(floors), better=better)


def plain(name, *values, unit="s", better="less"):
    return Row(name=name, unit=unit, samples=values, better=better)


def report(*rows, kind="full", machine=MACHINE, state="done"):
    section = SectionResult(name="a", title="A", state=state, rows=rows)
    return Report(kind=kind, started="2026-01-01T00:00:00+00:00", seconds=1.0, machine=machine, sections=(section,))


def verdicts(old, new, **options):
    return {change.name: (change.verdict, change.bad) for change in compare.compare(old, new, **options)}


def run(tmp_path, old, new, *options):
    for name, one in (("old.json", old), ("new.json", new)):
        write_json(one, tmp_path / name)
    return compare.main([str(tmp_path / "old.json"), str(tmp_path / "new.json"), *options])


def test_identical_runs_raise_no_alarm(tmp_path, capsys):
    one = report(*(noisy(seed, name=f"row {seed}") for seed in range(20)))
    assert run(tmp_path, one, one) == 0
    assert capsys.readouterr().out.count("within noise") == 20


def test_runs_of_the_same_program_raise_no_alarm():
    """Twenty comparisons of forty rows each, of which only the noise differs."""
    for seed in range(20):
        old = report(*(noisy((seed, n, 0), name=str(n)) for n in range(40)))
        new = report(*(noisy((seed, n, 1), name=str(n)) for n in range(40)))
        assert not [change for change in compare.compare(old, new) if change.bad]


def test_what_became_slower_is_found_and_named(tmp_path, capsys):
    old = report(*(noisy((1, n), name=f"row {n}") for n in range(10)))
    new = report(*(noisy((2, n), name=f"row {n}", scale=1.5 if n == 3 else 1.0) for n in range(10)))
    assert run(tmp_path, old, new) == 1
    said = capsys.readouterr().out
    assert said.count("**slower**") == 1
    assert "row 3" in next(line for line in said.splitlines() if "**slower**" in line)


def test_what_became_faster_is_said_and_no_failure(tmp_path, capsys):
    assert run(tmp_path, report(noisy(1)), report(noisy(2, scale=0.6))) == 0
    assert "faster" in capsys.readouterr().out


def test_a_busy_machine_is_not_a_slower_program():
    assert verdicts(report(noisy(1)), report(noisy(2, busy=3.0))) == {"search": ("within noise", False)}


def test_a_slowdown_within_the_tolerance_passes():
    old, new = report(noisy(1, count=60)), report(noisy(2, count=60, scale=1.2))
    assert verdicts(old, new)["search"] == ("slower", True)
    assert verdicts(old, new, tolerance=0.5)["search"] == ("slower", False)


def test_less_is_worse_where_more_is_better():
    old = report(plain("recall", 0.99, unit="share", better="more"), plain("memory", 100.0, unit="MiB"))
    new = report(plain("recall", 0.5, unit="share", better="more"), plain("memory", 200.0, unit="MiB"))
    assert verdicts(old, new) == {"recall": ("less", True), "memory": ("more", True)}
    assert verdicts(new, old) == {"recall": ("more", False), "memory": ("less", False)}


def test_a_single_measurement_needs_a_larger_change():
    assert verdicts(report(plain("once", 1.0)), report(plain("once", 1.2))) == {"once": ("within noise", False)}
    assert verdicts(report(plain("once", 1.0)), report(plain("once", 2.0))) == {"once": ("slower", True)}


def test_rows_that_a_failed_section_no_longer_has_are_a_failure():
    old, new = report(noisy(1), plain("other", 1.0)), report(noisy(1), state="failed")
    assert verdicts(old, new)["other"] == ("missing", True)
    assert verdicts(new, old)["other"] == ("new", False)


def test_other_machines_and_kinds_are_refused_unless_anyway(tmp_path, capsys):
    other = MACHINE.model_copy(update={"processor": "another", "cores": 64})
    old, new = report(noisy(1), plain("time", 1.0)), report(noisy(2), plain("time", 9.0), machine=other)
    assert run(tmp_path, old, new) == 2
    refused = capsys.readouterr().err
    assert "a processor and another" in refused
    assert "2 and 64" in refused
    assert run(tmp_path, old, new, "--anyway") == 0  # a time without a floor says nothing there
    assert "not compared" in capsys.readouterr().out
    assert run(tmp_path, old, report(noisy(1), kind="quick")) == 2
    assert "full and quick" in capsys.readouterr().err


def test_what_is_no_report_is_refused(tmp_path, capsys):
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    write_json(report(noisy(1)), good)
    bad.write_text(json.dumps({**json.loads(good.read_text()), "surprise": 1}))
    assert compare.main([str(good), str(bad)]) == 2
    assert "surprise" in capsys.readouterr().err
    assert compare.main([str(good), str(tmp_path / "none.json")]) == 2
    assert "benchmarks.report" in capsys.readouterr().err


def test_a_report_survives_the_way_through_its_file(tmp_path):
    one = report(noisy(1), plain("memory", 1.5, unit="MiB"))
    write_json(one, tmp_path / "report.json")
    read = Report.read(tmp_path / "report.json")
    assert set(read.rows) == set(one.rows)
    assert read.rows[("a", "search")].ratio == pytest.approx(one.rows[("a", "search")].ratio, rel=1e-3)


def test_a_real_slowdown_is_found_by_measuring():
    """The same work measured twice, and once with four times as much of it: on this machine, now."""
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal((160, 160)) for _ in range(2))

    def work(times):
        for _ in range(times):
            np.einsum("ij,jk->ik", left, right)

    def measured(times):
        found = interleave({"ours": lambda: work(times), "floor": lambda: work(1)}, rounds=25)
        row = Row(name="work", clock="thread", samples=found["ours"], floor="once", floor_samples=found["floor"])
        return report(row)

    once, again, slower = measured(1), measured(1), measured(4)
    assert verdicts(once, again, tolerance=1.0)["work"][1] is False
    assert verdicts(once, slower, tolerance=1.0)["work"] == ("slower", True)
