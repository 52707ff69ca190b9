"""``emcl worker``: takes jobs from the queue, runs each as a process of its own, and keeps book and queue in step.

Every few seconds the book is gone through: running jobs whose processes are gone become ``lost`` (and are queued again
while ``--job-attempts`` lasts), and queued jobs that the queue does not hold are put in again, so that a queue that
was emptied or restarted loses nothing. Any number of workers may share a book.
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
from service.jobs.queue import JobQueue, QueueUnavailableError, open_queue
from service.jobs.runner import JobRunner
from service.jobs.store import JobBook
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
        self.book = JobBook(settings.jobs_folder)
        self.queue: JobQueue = open_queue(settings.jobs_folder, self.book.name, settings.redis_url)

    def run(self) -> None:
        """Work until ``stop`` is set; jobs that run then are stopped and queued again."""
        runners = [Thread(target=self._run_jobs, name=f"job-{n}") for n in range(self.settings.worker_concurrency)]
        for runner in runners:
            runner.start()
        where = "Redis" if self.settings.redis_url else str(self.settings.jobs_folder)
        logger.info("worker %d takes %d at once of the jobs in %s", os.getpid(), len(runners), where)
        outage = _Outage()
        while not self.stop.is_set():
            try:
                self.reconcile()
                outage.over()
            except (QueueUnavailableError, sqlite3.Error) as error:
                outage.report(error)
            self.stop.wait(RECONCILE_SECONDS)
        for runner in runners:
            runner.join()
        self.queue.close()
        self.book.close()

    def reconcile(self) -> None:
        """Find lost jobs, queue those again that have attempts left, and put into the queue what it lost."""
        for job in self.book.find_lost():
            logger.warning("job %s (%s) is lost: its processes are gone", job.job_id, job.kind)
        for job in self.book.list(state="lost", limit=1000):
            if job.kind in KINDS and job.attempts < self.settings.job_attempts:
                logger.warning("job %s is tried again, attempt %d", job.job_id, job.attempts + 1)
                self.book.resume(job.job_id)
        missing = self.queue.put_missing(job.job_id for job in self.book.queued(KINDS))
        if missing:
            logger.info("put %d jobs of the book into the queue", missing)

    def _run_jobs(self) -> None:
        outage = _Outage()
        while not self.stop.is_set():
            try:
                job_id = self.queue.take()
            except QueueUnavailableError as error:
                self.stop.wait(outage.report(error))
                continue
            outage.over()
            if job_id is not None:
                try:
                    self._run_one(job_id)
                except (sqlite3.Error, OSError) as error:  # the job is still queued in the book
                    self.stop.wait(outage.report(error))
            elif not self.queue.waits:
                self.stop.wait(POLL_SECONDS)

    def _run_one(self, job_id: str) -> None:
        """Run a job if it is ours to run: it may have been cancelled or forgotten, or have come twice."""
        try:
            if self.book.get(job_id).kind not in KINDS:
                return
            job = self.book.claim(job_id, pid=os.getpid(), host=socket.gethostname())
        except NotFound:
            return
        if job is None:
            return
        try:
            JobRunner(self.book, self.settings, self.stop).run(job)
        except Exception:
            # One job must not end the worker. Without its lock the job is found lost, and can be resumed.
            logger.exception("job %s: the worker failed", job_id)
        finally:
            self.book.let_go(job_id)


class _Outage:
    """Tells of an outage once, not every time that it is met."""

    def __init__(self) -> None:
        self._pause = 0.0

    def report(self, error: Exception) -> float:
        """Returns how long to wait before the next try."""
        if not self._pause:
            logger.warning("the queue of jobs cannot be used; trying again until it is back: %s", error)
        self._pause = min(LONGEST_PAUSE_SECONDS, 2 * self._pause or 0.5)
        return self._pause

    def over(self) -> None:
        """It works again, or still."""
        if self._pause:
            logger.info("the queue of jobs works again")
        self._pause = 0.0


def stop_with_stdin(stop: Event) -> None:
    """Set ``stop`` when standard input ends: then the service that started this worker has ended."""

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 1):  # not sys.stdin.read, whose lock a daemon thread keeps at the end
            pass
        stop.set()

    Thread(target=watch, name="stdin", daemon=True).start()
