"""Comparing two benchmark reports: it finds what became slower, and is silent about noise and busy machines."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import compare, gpu, stages
from benchmarks.harness import Scale, interleave
from benchmarks.report import write_json
from benchmarks.report_rows import Machine, Report, Row, SectionResult, Target

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


def plain(name, *values, unit="s", better="less", **more):
    return Row(name=name, unit=unit, samples=values, better=better, **more)


def report(*rows, kind="full", machine=MACHINE, state="done", reason=""):
    section = SectionResult(name="a", title="A", state=state, reason=reason, rows=rows)
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


@pytest.mark.parametrize(
    ("unit", "before", "now", "verdict"),
    [
        ("share", 0.986, 0.80, ("less", True)),
        ("share", 0.986, 0.97, ("less", True)),
        ("share", 0.986, 0.976, ("within noise", False)),
        ("share", 0.05, 0.06, ("within noise", False)),
        ("share", 0.80, 0.986, ("more", False)),
        ("%", 90.0, 72.0, ("less", True)),
        ("%", 90.0, 85.0, ("within noise", False)),
        ("%", 90.0, 83.3, ("less", True)),
        ("%", 72.0, 90.0, ("more", False)),
    ],
)
def test_shares_are_compared_by_their_difference(unit, before, now, verdict):
    old, new = (report(plain("found", value, unit=unit, better="more")) for value in (before, now))
    assert verdicts(old, new, tolerance=0.5, same_machine=False) == {"found": verdict}


@pytest.mark.parametrize("unit", ["MiB", "B/vector"])
def test_sizes_are_held_to_the_tolerance_itself(unit, tmp_path, capsys):
    old = report(plain("size", 3000.0, unit=unit))
    assert verdicts(old, report(plain("size", 3000.0 * 1.14, unit=unit))) == {"size": ("within noise", False)}
    assert verdicts(old, report(plain("size", 3000.0 * 1.29, unit=unit))) == {"size": ("more", True)}
    assert verdicts(report(plain("time", 1.0)), report(plain("time", 1.29))) == {"time": ("within noise", False)}
    assert run(tmp_path, old, report(plain("size", 3000.0 * 1.29, unit=unit))) == 1
    assert "**more**" in capsys.readouterr().out


def test_a_target_that_was_met_and_is_missed_counts(tmp_path, capsys):
    enough, limit = Target(of="value", sense="at least", bound=0.98), Target(of="value", bound=4096.0)

    def measured(recall, memory):
        recall = plain("recall", recall, unit="share", better="more", target=enough)
        return report(recall, plain("memory", memory, unit="MiB", target=limit))

    assert run(tmp_path, measured(0.985, 4000.0), measured(0.979, 4000.0)) == 1
    assert "**within noise, misses its target now**" in capsys.readouterr().out
    assert verdicts(measured(0.985, 4000.0), measured(0.985, 4100.0))["memory"] == ("within noise", True)
    assert run(tmp_path, measured(0.979, 4100.0), measured(0.979, 4100.0)) == 0  # missed before as well
    assert run(tmp_path, measured(0.979, 4100.0), measured(0.985, 4000.0)) == 0


def test_a_time_that_misses_its_target_counts_beyond_noise_only():
    def near(seed, **options):
        return report(Row(**{**noisy(seed, **options).model_dump(), "target": Target(bound=bound)}))

    one, another = noisy(1).ratio, noisy(2).ratio
    bound = (one + another) / 2  # the same program on either side of it
    old, new = (near(1), near(2)) if one < another else (near(2), near(1))
    assert new.rows[("a", "search")].met is False
    assert verdicts(old, new) == {"search": ("within noise", False)}
    bound = 2.2
    old, slower = near(1, count=60), near(2, count=60, scale=1.2)
    assert verdicts(old, slower, tolerance=0.5) == {"search": ("slower", True)}
    bound = 5.0
    old, slower = near(1, count=60), near(2, count=60, scale=1.2)
    assert verdicts(old, slower, tolerance=0.5) == {"search": ("slower", False)}


def test_a_target_that_was_moved_is_no_slower_program():
    old = report(plain("memory", 100.0, unit="MiB", target=Target(of="value", bound=200.0)))
    new = report(plain("memory", 100.0, unit="MiB", target=Target(of="value", bound=50.0)))
    assert verdicts(old, new) == {"memory": ("within noise", False)}


def test_a_slower_machine_is_not_a_slower_program(tmp_path, capsys):
    rows = [*stages.machine(Scale(quick=True)), *gpu.rates(Scale(quick=True), "cpu")]
    assert rows
    assert not any(row.ours for row in rows)
    steady = [Row(**{**row.model_dump(), "samples": (100.0,) * 15}) for row in rows]
    slower = [Row(**{**row.model_dump(), "samples": (70.0,) * 15}) for row in rows]
    assert run(tmp_path, report(*steady), report(*slower)) == 0
    assert capsys.readouterr().out.count("| less |") == len(rows)
    before = [Row(**{**row.model_dump(), "ours": True}) for row in steady]  # as reports had it formerly
    assert run(tmp_path, report(*before), report(*slower)) == 0


def test_sections_that_were_not_measured_are_told(tmp_path, capsys):
    old, skipped = report(noisy(1)), report(state="skipped", reason="there is no CUDA device")
    assert run(tmp_path, old, skipped) == 0
    assert "not measured: there is no CUDA device |" in capsys.readouterr().out
    assert run(tmp_path, old, skipped.model_copy(update={"sections": ()})) == 0
    assert "| a | the whole section |  |  |  |  | not measured: left out" in capsys.readouterr().out
    assert run(tmp_path, old, old) == 0
    assert "not measured: 0" in capsys.readouterr().out


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
