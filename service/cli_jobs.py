"""``emcl worker`` and ``emcl jobs``: run, list and manage the jobs of a service, without the service itself."""

from __future__ import annotations

import json
import signal
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from model.cli_options import from_models
from service.settings import given, load_settings

if TYPE_CHECKING:
    from service.jobs.record import Job
    from service.jobs.store import JobStore

app = typer.Typer(help="Jobs of the service: list, show, follow, cancel, resume.", no_args_is_help=True)

WorkerSettings = Annotated[
    dict[str, Any],
    given(
        *("jobs_folder", "worker_concurrency", "job_timeout_seconds", "job_attempts", "job_grace_seconds"),
        *("job_memory_bytes", "job_nice", "store", "model", "pretrained", "log_level", "log_format"),
    ),
]
JobsFolder = Annotated[dict[str, Any], given("jobs_folder")]
_FOLLOW_SECONDS = 0.5

JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job's id.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@from_models
def worker(
    embedded: Annotated[bool, typer.Option("--embedded", hidden=True, help="End when standard input ends.")] = False,
    *,
    options: WorkerSettings,
) -> None:
    """Run the jobs of a service, each in a process of its own. Needs the service's jobs folder."""
    from service.jobs.worker import Worker, stop_with_stdin
    from service.observe.logs import logging_to_stderr

    settings = load_settings(options)
    with logging_to_stderr(settings.log_format, settings.log_level):
        running = Worker(settings)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: running.stop.set())
        if embedded:
            stop_with_stdin(running.stop)
        running.run()


@app.command("list")
@from_models
def list_jobs(
    state: Annotated[
        Literal["queued", "running", "succeeded", "failed", "cancelled", "lost"] | None,
        typer.Option(help="Only jobs in this state."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most jobs.")] = 50,
    as_json: Json = False,
    *,
    options: JobsFolder,
) -> None:
    """List jobs, newest first."""
    job_store = _job_store(options)
    jobs = job_store.list(state=state, limit=limit)
    if as_json:
        typer.echo(json.dumps([_shape(job) for job in jobs], indent=2))
        return
    for job in jobs:
        far = f"{job.progress.done}/{job.progress.total}" if job.progress.total else ""
        typer.echo(f"{job.job_id}  {job.kind:<10} {job.state:<10} {_when(job.created)}  {far:>12}  {job.progress.note}")


@app.command()
@from_models
def show(job: JobId, *, options: JobsFolder) -> None:
    """Show a job as JSON: its parameters, state, result or error."""
    typer.echo(json.dumps(_shape(_job_store(options).get(job)), indent=2))


@app.command()
@from_models
def log(
    job: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Continue until the job has ended.")] = False,
    *,
    options: JobsFolder,
) -> None:
    """Print the log of a job."""
    job_store = _job_store(options)
    path, offset = job_store.log_path(job), 0
    while True:
        finished = job_store.get(job).finished
        if path.exists():
            with path.open("rb") as file:
                file.seek(offset)
                content = file.read()
            offset += len(content)
            typer.echo(content.decode("utf-8", "replace"), nl=False)
        if finished or not follow:
            return
        time.sleep(_FOLLOW_SECONDS)


@app.command()
@from_models
def cancel(job: JobId, *, options: JobsFolder) -> None:
    """Cancel a waiting or running job."""
    cancelled = _job_store(options).cancel(job)
    typer.echo(f"job {job} is {'being stopped' if cancelled.stopping else cancelled.state}")


@app.command()
@from_models
def resume(job: JobId, *, options: JobsFolder) -> None:
    """Queue a failed, cancelled or lost job again."""
    typer.echo(f"job {job} is {_job_store(options).resume(job).state}")


def _job_store(options: dict[str, Any]) -> JobStore:
    from service.jobs.store import JobStore

    job_store = JobStore(load_settings(options).jobs_folder)
    job_store.find_lost()
    return job_store


def _shape(job: Job) -> dict[str, Any]:
    from service.schemas.jobs import JobOut

    return JobOut.of(job).model_dump(mode="json")


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
