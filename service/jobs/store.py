"""The job store: a SQLite file of all jobs, and a folder for each job with its log and outputs.

    FOLDER/jobs.db        every job with its state
    FOLDER/<job id>/      log.txt, alive (the lock that proves it runs), and what the job writes

Safe for several threads and processes. What ``create`` returned is on the disk. The process that starts a job holds its
lock (``AliveLock``) until it ends; a running job whose lock is free is lost, whatever the clocks say.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any

from indexer.store import sql
from model.durable import write_atomically
from service.errors import Conflict, NotFound
from service.jobs.record import JOB_ID, STATES, Job, JobProgress, JobState

_ATTEMPTS = 200
_PAUSE_SECONDS = 0.025  # a process that only looks holds the lock for microseconds; together 5 s

_BUSY_SECONDS = 30.0
_FORMAT = 1
_SCHEMA = """
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    job_id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    state TEXT NOT NULL,
    parameters TEXT NOT NULL,
    done INTEGER NOT NULL DEFAULT 0,
    total INTEGER NOT NULL DEFAULT 0,
    note TEXT NOT NULL DEFAULT '',
    attempts INTEGER NOT NULL DEFAULT 0,
    created REAL NOT NULL,
    started REAL,
    ended REAL,
    result TEXT,
    error TEXT,
    resumable INTEGER NOT NULL,
    stopping INTEGER NOT NULL DEFAULT 0,
    key_name TEXT,
    pid INTEGER,
    host TEXT
);
CREATE INDEX jobs_by_state ON jobs (state, kind)
"""
LOST = "the processes of this job ended without a result; its worker was probably killed"


class AliveLock:
    """The lock of one job, held until ``release`` or the end of all processes that have it: evidence of work.

    The kernel releases it, so it does not depend on clocks, process numbers or reboots: a lock that can be taken means
    that every process that held it has ended, even in another container on the same volume. The runner's child
    processes inherit it, so that a job counts as alive until the last of them is gone.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    @classmethod
    def take(cls, path: Path, *, while_: Callable[[], bool]) -> AliveLock | None:
        """Take the lock, as long as ``while_`` is true; ``None`` if a process works on the job."""
        for _ in range(_ATTEMPTS):
            if not while_():
                return None
            lock = cls.look(path)
            if lock is not None:
                return lock
            time.sleep(_PAUSE_SECONDS)
        return None

    @classmethod
    def look(cls, path: Path) -> AliveLock | None:
        """Take the lock without waiting; ``None`` if it is held."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return cls(descriptor)

    def release(self) -> None:
        """Release it, also for the processes that inherited it."""
        fcntl.flock(self.descriptor, fcntl.LOCK_UN)
        os.close(self.descriptor)


def open_database(path: Path) -> sqlite3.Connection:
    """Open the job store in ``path``, made if need be. Raises ``ValueError`` if a newer program wrote it."""
    database = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    database.row_factory = sqlite3.Row
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")  # what was acknowledged outlives a power cut
    database.execute("BEGIN IMMEDIATE")
    found = int(database.execute("PRAGMA user_version").fetchone()[0])
    if found == 0:
        for statement in _SCHEMA.split(";"):
            database.execute(statement)
        database.execute(f"PRAGMA user_version = {_FORMAT}")
    database.execute("COMMIT")
    if found > _FORMAT:
        database.close()
        raise ValueError(
            f"{path} has format {found}, this program knows {_FORMAT}; use the newer program, or another --jobs-folder"
        )
    return database


def job_of(row: sqlite3.Row) -> Job:
    """The job that a row describes."""
    ended_badly = row["state"] in ("failed", "cancelled", "lost")
    return Job(
        job_id=row["job_id"],
        kind=row["kind"],
        state=row["state"],
        parameters=json.loads(row["parameters"]),
        progress=JobProgress(done=row["done"], total=row["total"], note=row["note"]),
        attempts=row["attempts"],
        created=row["created"],
        started=row["started"],
        ended=row["ended"],
        result=None if row["result"] is None else json.loads(row["result"]),
        error=row["error"],
        resumable=bool(row["resumable"]) and ended_badly,
        stopping=bool(row["stopping"]),
        key_name=row["key_name"],
        pid=row["pid"],
        host=row["host"],
    )


class JobStore:
    """All jobs. Nothing is made on the disk before the first job is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = RLock()
        self._connection: sqlite3.Connection | None = None
        self._held: dict[str, AliveLock] = {}

    @property
    def exists(self) -> bool:
        """Whether there ever was a job."""
        return (self.folder / "jobs.db").exists()

    def create(
        self,
        kind: str,
        parameters: Mapping[str, Any],
        *,
        key_name: str | None = None,
        resumable: bool = False,
        files: Mapping[str, bytes] | None = None,
    ) -> Job:
        """Store a new job, queued, with ``files`` in its folder.

        ``resumable`` ones can be run again after they failed, were cancelled or lost.
        """
        job_id = secrets.token_hex(8)
        folder = self.job_folder(job_id)
        try:
            with self._transaction() as database:
                folder.mkdir()
                for name, content in (files or {}).items():
                    write_atomically(folder / name, content)
                database.execute(
                    "INSERT INTO jobs (job_id, kind, state, parameters, created, resumable, key_name)"
                    " VALUES (?, ?, 'queued', ?, ?, ?, ?)",
                    (job_id, kind, json.dumps(dict(parameters)), time.time(), resumable, key_name),
                )
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return self.get(job_id)

    def get(self, job_id: str) -> Job:
        """One job. Raises ``NotFound``."""
        found = self._select("job_id = ?", (job_id,)) if self.exists and re.fullmatch(JOB_ID, job_id) else []
        if not found:
            raise NotFound(
                f"there is no job {job_id[:80]!r}",
                expected="the id of a job, as POST /v1/jobs answered it",
                next_step="list the jobs with GET /v1/jobs",
            )
        return found[0]

    def list(
        self, *, state: JobState | None = None, kind: str | None = None, offset: int = 0, limit: int = 100
    ) -> Sequence[Job]:
        """A page of the jobs, newest first."""
        where, values = _filter(state, kind)
        return self._select(f"{where} ORDER BY number DESC LIMIT ? OFFSET ?", (*values, limit, offset))

    def count(self, *, state: JobState | None = None, kind: str | None = None) -> int:
        """How many jobs there are."""
        where, values = _filter(state, kind)
        rows = self._query(sql.select("count(*)", "jobs", where), values)
        return int(rows[0][0]) if rows else 0

    def counts(self) -> dict[str, int]:
        """Jobs by state, also those of which there are none."""
        rows = self._query("SELECT state, count(*) FROM jobs GROUP BY state", ())
        return dict.fromkeys(STATES, 0) | {str(state): int(number) for state, number in rows}

    def queued(self, kinds: Sequence[str]) -> Sequence[Job]:
        """All queued jobs of these kinds, oldest first."""
        marks = ", ".join("?" * len(kinds))
        return self._select(f"state = 'queued' AND kind IN ({marks}) ORDER BY number", tuple(kinds))

    def unfinished(self, kinds: Sequence[str]) -> bool:
        """Whether a job of these kinds is queued, or counts as running."""
        marks = ", ".join("?" * len(kinds))
        return bool(self._select(f"state IN ('queued', 'running') AND kind IN ({marks}) LIMIT 1", tuple(kinds)))

    def ended(self) -> Sequence[Job]:
        """All jobs that have ended, oldest first."""
        return self._select("ended IS NOT NULL ORDER BY number", ())

    def ended_mark(self) -> tuple[int, float]:
        """Changes whenever a job ends, and is cheap."""
        rows = self._query("SELECT count(ended), total(ended) FROM jobs", ())
        return (int(rows[0][0]), float(rows[0][1])) if rows else (0, 0.0)

    # A job's life.

    def claim(self, job_id: str, *, pid: int, host: str) -> Job | None:
        """Start a queued job, unless it is not queued (any more): of several callers one gets it."""
        lock = AliveLock.take(self._alive(job_id), while_=lambda: self.get(job_id).state == "queued")
        if lock is None:
            return None
        try:
            claimed = self._change(
                job_id,
                "state = 'running', attempts = attempts + 1, started = ?, ended = NULL, error = NULL, result = NULL,"
                " pid = ?, host = ?, done = 0, total = 0, note = ''",
                (time.time(), pid, host),
                only="state = 'queued'",
            )
        except BaseException:
            lock.release()  # it is still queued, and may be claimed again
            raise
        if not claimed:
            lock.release()
            return None
        self._held[job_id] = lock
        return self.get(job_id)

    def start(self, job_id: str, *, pid: int, host: str) -> Job:
        """Start a queued job in this process. Raises ``Conflict`` if it is not queued."""
        job = self.claim(job_id, pid=pid, host=host)
        if job is None:
            raise _conflict(self.get(job_id), "started", "queued")
        return job

    def alive_descriptor(self, job_id: str) -> int:
        """The lock of a job that this process started, for a child process to inherit."""
        return self._held[job_id].descriptor

    def progress(self, job_id: str, done: int, total: int, note: str = "") -> None:
        """Store the progress of a running job."""
        self._change(job_id, "done = ?, total = ?, note = ?", (done, total, note[:500]), only="state = 'running'")

    def succeed(self, job_id: str, result: Mapping[str, Any]) -> None:
        """End a job well."""
        self._end(job_id, "succeeded", result=result)

    def fail(self, job_id: str, error: str) -> None:
        """End a job, saying why it failed."""
        self._end(job_id, "failed", error=error)

    def end_cancelled(self, job_id: str) -> None:
        """End a running job because its cancellation was requested."""
        self._end(job_id, "cancelled", error="cancelled on request")

    def requeue(self, job_id: str) -> None:
        """Queue a running job again, because its worker is being stopped."""
        self._change(job_id, "state = 'queued', pid = NULL, host = NULL", (), only="state = 'running'")
        self.let_go(job_id)

    def cancel(self, job_id: str) -> Job:
        """Cancel a queued job at once; ask the worker of a running one to stop it. Raises ``Conflict`` if it ended."""
        self._change(
            job_id,
            "state = 'cancelled', ended = ?, error = 'cancelled before it started'",
            (time.time(),),
            only="state = 'queued'",
        )
        self._change(job_id, "stopping = 1", (), only="state = 'running'")
        job = self.get(job_id)
        if job.finished and job.state != "cancelled":
            raise _conflict(job, "cancelled", "queued or running")
        return job

    def resume(self, job_id: str) -> Job:
        """Queue a failed, cancelled or lost job again. Raises ``Conflict`` if it is none of these."""
        changed = self._change(
            job_id,
            "state = 'queued', stopping = 0, ended = NULL, error = NULL, pid = NULL, host = NULL",
            (),
            only="resumable AND state IN ('failed', 'cancelled', 'lost')",
        )
        job = self.get(job_id)
        if not changed:
            raise _conflict(job, "resumed", "failed, cancelled or lost, and of a kind that can be continued")
        return job

    def referring(self, job_id: str) -> Sequence[Job]:
        """Jobs whose parameters name this one: they use what it made."""
        return self._select("job_id != ? AND instr(parameters, ?) ORDER BY number", (job_id, json.dumps(job_id)))

    def forget(self, job_id: str) -> None:
        """Remove a finished job with its folder. Raises ``Conflict`` if it has not ended."""
        job = self.get(job_id)
        with self._transaction() as database:
            done = database.execute(
                "DELETE FROM jobs WHERE job_id = ? AND state NOT IN ('queued', 'running')", (job_id,)
            )
            if done.rowcount == 0:
                raise _conflict(job, "forgotten", "ended")
        shutil.rmtree(self.job_folder(job_id), ignore_errors=True)

    def find_lost(self) -> Sequence[Job]:
        """Mark every running job as lost that no process works on, and return those."""
        lost = []
        for job in self._select("state = 'running'", ()):
            if not self.job_folder(job.job_id).is_dir():
                lock = None
            elif (lock := AliveLock.look(self._alive(job.job_id))) is None:
                continue
            changed = self._change(
                job.job_id,
                "state = 'lost', ended = ?, error = ?, stopping = 0",
                (time.time(), LOST),
                only="state = 'running'",
            )
            if lock is not None:
                lock.release()
            if changed:
                lost.append(self.get(job.job_id))
        return lost

    def let_go(self, job_id: str) -> None:
        """Stop proving that this process works on a job: if it still counts as running, it is lost."""
        with self._lock:
            lock = self._held.pop(job_id, None)
        if lock is not None:
            lock.release()

    # Files.

    def job_folder(self, job_id: str) -> Path:
        """The folder of a job."""
        assert re.fullmatch(JOB_ID, job_id), "an id that is not ours is never made a path"
        return self.folder / job_id

    def log_path(self, job_id: str) -> Path:
        """The log of a job. Raises ``NotFound``; the file may not be there yet."""
        return self.job_folder(self.get(job_id).job_id) / "log.txt"

    def append_log(self, job_id: str, line: str) -> None:
        """Add a line to a job's log."""
        with self.log_path(job_id).open("a", encoding="utf-8") as file:
            file.write(line.rstrip("\n") + "\n")

    def close(self) -> None:
        """Close the job store; jobs that this process started and did not end are lost from now on."""
        with self._lock:
            for job_id in tuple(self._held):
                self.let_go(job_id)
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _alive(self, job_id: str) -> Path:
        return self.job_folder(job_id) / "alive"

    def _end(
        self, job_id: str, state: JobState, *, result: Mapping[str, Any] | None = None, error: str | None = None
    ) -> None:
        changed = self._change(
            job_id,
            "state = ?, ended = ?, result = ?, error = ?, stopping = 0",
            (state, time.time(), None if result is None else json.dumps(dict(result)), error),
            only="state = 'running'",
        )
        self.let_go(job_id)
        if not changed:
            raise _conflict(self.get(job_id), "ended", "running")

    def _change(self, job_id: str, changes: str, values: tuple[Any, ...], *, only: str) -> bool:
        if not self.exists:
            return False
        with self._transaction() as database:
            statement = sql.update("jobs", changes, f"job_id = ? AND {only}")
            return database.execute(statement, (*values, job_id)).rowcount == 1

    def _select(self, where: str, values: tuple[Any, ...]) -> Sequence[Job]:
        return [job_of(row) for row in self._query(sql.select("*", "jobs", where), values)]

    def _query(self, statement: str, values: tuple[Any, ...]) -> Sequence[sqlite3.Row]:
        if not self.exists:
            return []
        with self._lock:
            return self.database().execute(statement, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            database = self.database()
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
                database.execute("COMMIT")
            except BaseException:
                if database.in_transaction:  # a full disk has ended it already
                    database.execute("ROLLBACK")
                raise

    def database(self) -> sqlite3.Connection:
        """The connection, which is opened at the first use. Hold the lock."""
        if self._connection is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._connection = open_database(self.folder / "jobs.db")
        return self._connection


def _filter(state: JobState | None, kind: str | None) -> tuple[str, tuple[str, ...]]:
    given = {"state": state, "kind": kind}
    chosen = {name: value for name, value in given.items() if value is not None}
    return sql.all_of(f"{name} = ?" for name in chosen), tuple(chosen.values())


def _conflict(job: Job, action: str, wanted: str) -> Conflict:
    return Conflict(
        f"job {job.job_id} is {job.state} and cannot be {action}",
        expected=f"a job that is {wanted}",
        next_step=f"look at it with GET /v1/jobs/{job.job_id}",
    )
