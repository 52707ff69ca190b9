"""``emcl worker``: polls the job store, runs each queued job as a process of its own, and finds lost jobs.

Claiming a job is one transaction under the job's lock, so that of several workers one gets it. Every few seconds,
running jobs whose processes are gone become ``lost`` (and are queued again while ``--job-attempts`` lasts).
"""

from __future__ import annotations

import logging
import os
import socket
import sqlite3
import sys
from threading import Event, Thread

from service.errors import NotFound
from service.jobs.kinds import KINDS
from service.jobs.record import Job
from service.jobs.runner import JobRunner
from service.jobs.store import JobStore
from service.settings import Settings

logger = logging.getLogger(__name__)

RECONCILE_SECONDS = 2.0
POLL_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 10.0


class Worker:
    """Runs up to ``settings.worker_concurrency`` jobs at once until ``stop`` is set."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.stop = Event()
        self.job_store = JobStore(settings.jobs_folder)

    def run(self) -> None:
        """Work until ``stop`` is set; jobs that run then are stopped and queued again."""
        runners = [Thread(target=self._run_jobs, name=f"job-{n}") for n in range(self.settings.worker_concurrency)]
        for runner in runners:
            runner.start()
        logger.info("worker %d runs %d at once of the jobs in %s", os.getpid(), len(runners), self.settings.jobs_folder)
        outage = _Outage()
        while not self.stop.is_set():
            try:
                self.reconcile()
                outage.over()
            except sqlite3.Error as error:
                outage.report(error)
            self.stop.wait(RECONCILE_SECONDS)
        for runner in runners:
            runner.join()
        self.job_store.close()

    def reconcile(self) -> None:
        """Find lost jobs, and queue those again that have attempts left."""
        for job in self.job_store.find_lost():
            logger.warning("job %s (%s) is lost: its processes are gone", job.job_id, job.kind)
        for job in self.job_store.list(state="lost", limit=1000):
            if job.kind in KINDS and job.attempts < self.settings.job_attempts:
                logger.warning("job %s is tried again, attempt %d", job.job_id, job.attempts + 1)
                self.job_store.resume(job.job_id)

    def run_next(self) -> bool:
        """Run the oldest queued job that this worker can claim; returns whether there was one."""
        for queued in self.job_store.queued(KINDS):
            try:
                job = self.job_store.claim(queued.job_id, pid=os.getpid(), host=socket.gethostname())
            except NotFound:  # forgotten in the meantime
                continue
            if job is not None:
                self._run(job)
                return True
        return False

    def _run_jobs(self) -> None:
        outage = _Outage()
        while not self.stop.is_set():
            try:
                has_run = self.run_next()
            except (sqlite3.Error, OSError) as error:  # the job is still queued in the job store
                self.stop.wait(outage.report(error))
                continue
            outage.over()
            if not has_run:
                self.stop.wait(POLL_SECONDS)

    def _run(self, job: Job) -> None:
        try:
            JobRunner(self.job_store, self.settings, self.stop).run(job)
        except Exception:
            # One job must not end the worker. Without its lock the job is found lost, and can be resumed.
            logger.exception("job %s: the worker failed", job.job_id)
        finally:
            self.job_store.let_go(job.job_id)


class _Outage:
    """Logs an outage once, not on every attempt."""

    def __init__(self) -> None:
        self._pause = 0.0

    def report(self, error: Exception) -> float:
        """Log the first error; returns the seconds to wait before the next attempt."""
        if not self._pause:
            logger.warning("the job store cannot be used; trying again until it can: %s", error)
        self._pause = min(LONGEST_PAUSE_SECONDS, 2 * self._pause or 0.5)
        return self._pause

    def over(self) -> None:
        """Log the end of an outage, if there was one."""
        if self._pause:
            logger.info("the job store works again")
        self._pause = 0.0


def stop_with_stdin(stop: Event) -> None:
    """Set ``stop`` when standard input ends: then the service that started this worker has ended."""

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 1):  # not sys.stdin.read, whose lock a daemon thread keeps at the end
            pass
        stop.set()

    Thread(target=watch, name="stdin", daemon=True).start()
