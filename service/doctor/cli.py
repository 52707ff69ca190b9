"""``emcl doctor`` on the command line."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from model.cli_options import from_models
from service.settings import given, load_settings

if TYPE_CHECKING:
    from service.doctor.checks import Examination

DoctorSettings = Annotated[
    dict[str, Any],
    given(
        *("store", "model", "pretrained", "device", "runtime", "precision", "exports", "threads", "faiss_threads"),
        *("host", "require_keys"),
        *("faiss_device", "index_mmap"),
        *("keys_file", "redis_url", "upload_folder", "upload_slots", "upload_max_bytes", "jobs_folder"),
    ),
]


@from_models
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    *,
    options: DoctorSettings,
) -> None:
    """Check the installation, the machine, the index and its model, and say what to do. Exit code 1 on a problem.

    Give it the options and environment that the service has. It changes nothing.
    """
    from service.doctor.checks import Check, Context, examine, failed, line_of, problem

    checks: list[Check] = []
    try:
        context = Context(settings=load_settings(options))
    except ValueError as error:
        wrong = problem(str(error), "correct the option or the environment variable, then run this again")
        found = iter([Check(**{**asdict(wrong), "name": "settings"})])
    else:
        found = examine(context, all_examinations())
    for check in found:
        checks.append(check)
        if not as_json:
            typer.echo(line_of(check))
    if as_json:
        report = {"ok": not failed(checks), "checks": [asdict(check) for check in checks]}
        typer.echo(json.dumps(report, indent=2, ensure_ascii=False))
    if failed(checks):
        raise typer.Exit(1)


def all_examinations() -> list[tuple[str, Examination]]:
    """What is examined, in this order."""
    from service.doctor import index_checks, machine_checks

    return [*machine_checks.EXAMINATIONS, *index_checks.EXAMINATIONS]
