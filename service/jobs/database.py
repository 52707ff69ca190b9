"""The SQLite file of the book of jobs: its format, how it is opened, and how a row becomes a ``Job``."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

from service.jobs.record import Job, JobProgress

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
CREATE INDEX jobs_by_state ON jobs (state, kind);
CREATE TABLE book (name TEXT NOT NULL);
INSERT INTO book VALUES (lower(hex(randomblob(8))))
"""


def open_database(path: Path) -> sqlite3.Connection:
    """Open the book in ``path``, made if need be. Raises ``ValueError`` if a newer program wrote it."""
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
