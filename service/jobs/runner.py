"""Runs one claimed job as a process group of its own, and records the outcome in the job store.

    started ─┬─ ended by itself ── succeeded, failed, or queued again if the system killed it and attempts are left
             ├─ cancelled, timed out, or the worker is stopping: SIGINT, then SIGTERM, then SIGKILL to the group
             └─ this worker is killed: the group dies with it (service.jobs.launch), and the job is found lost

Time is measured by the monotonic clock: setting the wall clock changes nothing.
"""

from __future__ import annotations

import logging
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Literal

from service.jobs import launch
from service.jobs.commands import Command, command_of, result_of
from service.jobs.record import Job
from service.jobs.store import JobStore
from service.settings import Settings, environment_of_jobs

logger = logging.getLogger(__name__)

Reason = Literal["cancelled", "timeout", "worker stopped"]

POLL_SECONDS = 0.1
STORE_SECONDS = 0.5  # how often progress is stored and requests to stop are checked
_TAIL_BYTES = 4000


class JobRunner:
    """Runs jobs one after the other; ``stop`` set means that the worker wants to end."""

    def __init__(self, job_store: JobStore, settings: Settings, stop: Event) -> None:
        self.job_store = job_store
        self.settings = settings
        self.stop = stop

    def run(self, job: Job) -> None:
        """Run a job that this process has claimed, to its end."""
        self._say(job, f"--- attempt {job.attempts}, worker {job.pid} on {job.host}")
        try:
            command = command_of(job, self.job_store, self.settings)
            process, pipe = self._start(job, command)
        except (ValueError, OSError) as error:
            message = f"could not be started: {error}"
            self._insist(lambda: self.job_store.fail(job.job_id, message))
            return
        try:
            reason = self._watch(job, command, process)
        finally:
            os.close(pipe)  # whatever is left of the group dies
        self._end(job, command, process.wait(), reason)

    def _start(self, job: Job, command: Command) -> tuple[subprocess.Popen[bytes], int]:
        for path in command.stale:
            path.unlink(missing_ok=True)
        self._say(job, "--- emcl " + " ".join(command.arguments))
        with self.job_store.log_path(job.job_id).open("ab") as log:
            return launch.start(
                [*command.program, *command.arguments],
                nice=self.settings.job_nice,
                memory_bytes=int(self.settings.job_memory_bytes or 0),
                stdout=log,
                pass_fds=(self.job_store.alive_descriptor(job.job_id),),
                env=environment_of_jobs(),
            )

    def _watch(self, job: Job, command: Command, process: subprocess.Popen[bytes]) -> Reason | None:
        """Wait for the end of the process; returns why it was stopped, ``None`` if it ended by itself."""
        asked = job.parameters.get("timeout_seconds") or self.settings.job_timeout_seconds
        deadline = time.monotonic() + min(asked, self.settings.job_timeout_seconds)
        next_look = 0.0
        while process.poll() is None:
            reason: Reason | None = None
            if time.monotonic() >= next_look:
                next_look = time.monotonic() + STORE_SECONDS
                reason = "cancelled" if self._look(job, command) else None
            if self.stop.is_set():
                reason = "worker stopped"
            elif time.monotonic() > deadline:
                reason = "timeout"
            if reason is not None:
                self._say(job, f"--- stopping: {reason}")
                _stop_group(process, self.settings.job_grace_seconds)
                return reason
            time.sleep(POLL_SECONDS)
        return None

    def _look(self, job: Job, command: Command) -> bool:
        """Store the progress; returns whether the job is to be cancelled."""
        try:
            if (progress := command.progress.latest()) is not None:
                self.job_store.progress(job.job_id, progress.done, progress.total, progress.note)
            return self.job_store.get(job.job_id).stopping
        except (sqlite3.Error, OSError) as error:  # a full disk must not end what is running
            logger.warning("job %s: its progress could not be written: %s", job.job_id, error)
            return False

    def _end(self, job: Job, command: Command, code: int, reason: Reason | None) -> None:
        name = job.job_id
        if code in command.good_exits:  # also if it was asked to stop a moment too late
            self._finish(job, command, code)
        elif reason == "cancelled":
            self._insist(lambda: self.job_store.end_cancelled(name))
        elif reason == "worker stopped":
            self._insist(lambda: self.job_store.requeue(name))
        elif reason == "timeout":
            limit = job.parameters.get("timeout_seconds") or self.settings.job_timeout_seconds
            self._insist(lambda: self.job_store.fail(name, f"stopped after {limit:g} s, the time that it may take"))
        elif code < 0 and job.attempts < self.settings.job_attempts:
            self._say(job, f"--- killed by signal {-code}; it will be tried again")
            self._insist(lambda: self.job_store.requeue(name))
        else:
            self._insist(lambda: self.job_store.fail(name, _why(code, self.job_store.log_path(name))))
        logger.info("job %s (%s) is %s", name, job.kind, self.job_store.get(name).state)

    def _finish(self, job: Job, command: Command, code: int) -> None:
        self._look(job, command)
        try:
            result = result_of(job, self.job_store, self.settings, code)
        except (ValueError, KeyError, OSError) as error:
            message = f"its command succeeded, but its result cannot be read: {error}"
            self._insist(lambda: self.job_store.fail(job.job_id, message))
            return
        self._insist(lambda: self.job_store.succeed(job.job_id, result))

    def _say(self, job: Job, line: str) -> None:
        logger.info("job %s: %s", job.job_id, line.removeprefix("--- "))
        try:
            self.job_store.append_log(job.job_id, line)
        except OSError as error:
            logger.warning("job %s: its log cannot be written: %s", job.job_id, error)

    def _insist(self, write: Callable[[], None]) -> None:
        """Record the end of a job, and wait while the disk is full: otherwise the job would count as lost."""
        pause = 0.5
        while True:
            try:
                write()
            except sqlite3.Error as error:
                logger.error("the job store cannot be written, trying again in %.0f s: %s", pause, error)
                if self.stop.wait(pause):
                    raise
                pause = min(30.0, 2 * pause)
            else:
                return


def _stop_group(process: subprocess.Popen[bytes], grace_seconds: float) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        os.killpg(process.pid, number)  # we have not waited for it yet, so the number is still its own
        try:
            process.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            continue
        return
    process.wait()


def _why(code: int, log: Path) -> str:
    """The last message of a failed command."""
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return f"killed by the system with {name}{hint}"
    lines = [line for line in _tail(log) if not line.startswith("--- ")]
    errors = [line for line in lines if line.startswith("error: ")]
    said = (errors or lines or ["nothing in its log"])[-1].removeprefix("error: ")
    return f"{said} (exit code {code})"


def _tail(log: Path) -> list[str]:
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL_BYTES))
            return [line for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    except OSError:
        return []
