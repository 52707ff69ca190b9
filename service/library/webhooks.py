"""Webhooks: events are sent to addresses that the operator named, and to no others.

    jobs that ended, videos that can be found ──► webhooks.db, one row for each event and address ──► POST, signed

An event is in the outbox before anything is sent, so a service that is killed sends it when it is started again: each
arrives at least once, and its id identifies repetitions. What happens while no service runs is noticed by the next one.
Requests are signed as https://www.standardwebhooks.com says, so that receivers can use its libraries.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import httpx
from filelock import FileLock, Timeout

from service.background import Background
from service.settings import webhook_key

if TYPE_CHECKING:
    from indexer.store.records import Video
    from service.jobs.record import Job
    from service.jobs.store import JobStore
    from service.search.live_index import LiveIndex
    from service.settings import Settings

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
VIDEOS_AT_ONCE = 100
"""Most videos that one event names."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 5.0, 3600.0
KEPT_SECONDS = 3 * 86_400.0
"""How long an event is tried again before it is dropped."""
ANSWER_SECONDS = 10.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    number INTEGER PRIMARY KEY AUTOINCREMENT, event_id TEXT NOT NULL, url TEXT NOT NULL, body TEXT NOT NULL,
    created REAL NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, due REAL NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE IF NOT EXISTS jobs (job_id TEXT PRIMARY KEY, ended REAL) STRICT;
CREATE TABLE IF NOT EXISTS stores (path TEXT PRIMARY KEY, segment_id INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS begun (at REAL NOT NULL) STRICT;
"""


def signed_headers(event_id: str, timestamp: int, body: str, key: bytes) -> dict[str, str]:
    """The headers that prove who sent ``body`` and when (seconds since 1970)."""
    digest = hmac.digest(key, f"{event_id}.{timestamp}.{body}".encode(), hashlib.sha256)
    return {
        "Content-Type": "application/json",
        "webhook-id": event_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }


class Outbox:
    """Events that are to be sent, in a SQLite file; what was noticed and what is to be sent are committed together."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.executescript(_SCHEMA)
        self._ended_mark: tuple[int, float] | None = None

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def notice(self, job_store: JobStore, store: Path, live: LiveIndex, urls: Iterable[str]) -> int:
        """Put new events into the outbox; returns how many.

        What was there when webhooks were turned on, or when a store was seen for the first time, is not new.
        """
        database, urls = self._database, tuple(urls)
        bodies: list[str] = []
        with self._transaction():
            first_time = database.execute("SELECT count(*) FROM begun").fetchone()[0] == 0
            if first_time:
                database.execute("INSERT INTO begun VALUES (?)", (time.time(),))
            for job in self._ended_jobs(job_store):
                database.execute("INSERT OR REPLACE INTO jobs VALUES (?, ?)", (job.job_id, job.ended))
                bodies.append(_body("job.finished", _job_facts(job)))
            if first_time:
                bodies.clear()
            bodies += self._new_videos(str(store.resolve()), live)
            rows = [(f"msg_{secrets.token_hex(12)}", url, body, time.time()) for body in bodies for url in urls]
            query = "INSERT INTO events (event_id, url, body, created) VALUES (?, ?, ?, ?)"
            database.executemany(query, rows)
        return len(rows)

    def _ended_jobs(self, job_store: JobStore) -> list[Job]:
        """Jobs that have ended since the last look, also those that were resumed and ended again."""
        job_store.find_lost()
        mark = job_store.ended_mark()
        if mark == self._ended_mark:
            return []
        known = dict(self._database.execute("SELECT job_id, ended FROM jobs").fetchall())
        ended = [job for job in job_store.ended() if known.get(job.job_id) != job.ended]
        self._ended_mark = mark
        return ended

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            self._ended_mark = None  # what was noticed is noticed again
            if self._database.in_transaction:  # a full disk has ended it already
                self._database.execute("ROLLBACK")
            raise

    def _new_videos(self, store: str, live: LiveIndex) -> list[str]:
        query = "SELECT segment_id FROM stores WHERE path = ?"
        known = self._database.execute(query, (store,)).fetchone()
        with live.lease() as generation:
            reader = generation.reader
            if known is None:
                newest = reader.newest_addition()
                self._database.execute("INSERT INTO stores VALUES (?, ?)", (store, newest))
                return []
            found = reader.videos_added_after(known[0], VIDEOS_AT_ONCE)
            if not found:
                return []
            self._database.execute("UPDATE stores SET segment_id = ? WHERE path = ?", (found[-1][0], store))
            videos = [video for _, video_id in found if (video := reader.video(video_id)) is not None]
        return [_body("videos.added", {"videos": [_video_facts(video) for video in videos]})]

    def due(self, url: str, now: float) -> tuple[int, str, str, int, float] | None:
        """The oldest event for an address as (number, id, body, attempts, created), unless its time has not come."""
        query = (
            "SELECT number, event_id, body, attempts, created, due FROM events WHERE url = ? ORDER BY number LIMIT 1"
        )
        found = self._database.execute(query, (url,)).fetchone()
        return None if found is None or found[5] > now else found[:5]

    def done(self, number: int) -> None:
        """Forget an event."""
        self._database.execute("DELETE FROM events WHERE number = ?", (number,))

    def postpone(self, number: int, due: float) -> None:
        """Try an event again at a time."""
        self._database.execute("UPDATE events SET attempts = attempts + 1, due = ? WHERE number = ?", (due, number))

    def waiting(self) -> int:
        """Events that are to be sent."""
        return int(self._database.execute("SELECT count(*) FROM events").fetchone()[0])

    def forget_others(self, urls: Iterable[str]) -> None:
        """Drop events for addresses that the operator no longer names."""
        kept = set(urls)
        for (url,) in self._database.execute("SELECT DISTINCT url FROM events").fetchall():
            if url not in kept:
                self._database.execute("DELETE FROM events WHERE url = ?", (url,))


class Webhooks:
    """A thread that notices what has happened and sends it, if the operator named addresses.

    Of several services with one jobs folder, one sends. ``outcomes`` counts attempts: ``delivered``, ``failed`` (it is
    tried again) and ``dropped``. ``background`` says how the thread is doing.
    """

    def __init__(
        self,
        settings: Settings,
        job_store: JobStore,
        live: LiveIndex,
        *,
        clock: Callable[[], float] = time.time,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.background = Background("webhooks")
        self.outcomes = dict.fromkeys(("delivered", "failed", "dropped"), 0)
        self.waiting = 0
        self.urls = settings.webhooks
        self._key = webhook_key(settings.webhook_secret) if settings.webhook_secret is not None else b""
        self._folder, self._store = settings.jobs_folder, settings.store
        self._job_store, self._live = job_store, live
        self._clock = clock
        self.http = httpx.Client(
            timeout=ANSWER_SECONDS, follow_redirects=False, trust_env=False, transport=transport
        )  # an address that redirects could lead anywhere
        self._stop = Event()
        self._thread = Thread(target=self._run, name="webhooks", daemon=True)

    def start(self) -> None:
        """Begin, if there are addresses."""
        if self.urls:
            self._thread.start()

    def close(self) -> None:
        """Stop, after the request under way."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        self.http.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            self.background.attempt(self._serve, self._stop.wait)

    def _serve(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._folder / "webhooks.lock", thread_local=False)
        while not self._stop.is_set():
            try:
                lock.acquire(blocking=False)
            except Timeout:
                self._stop.wait(LOOK_SECONDS)  # another service sends
                continue
            with lock, closing(Outbox(self._folder / "webhooks.db")) as outbox:
                outbox.forget_others(self.urls)
                while not self._stop.is_set():
                    self.step(outbox)
                    self.background.succeeded()
                    self._stop.wait(LOOK_SECONDS)

    def step(self, outbox: Outbox) -> None:
        """Notice what is new, and send what is due."""
        outbox.notice(self._job_store, self._store, self._live, self.urls)
        for url in self.urls:
            while not self._stop.is_set() and self._send_next(outbox, url):
                pass
        self.waiting = outbox.waiting()

    def _send_next(self, outbox: Outbox, url: str) -> bool:
        """Send the oldest event for an address; returns whether the next one may follow at once."""
        now = self._clock()
        event = outbox.due(url, now)
        if event is None:
            return False
        number, event_id, body, attempts, created = event
        why = self._post(url, event_id, body)
        if why is None:
            outbox.done(number)
            self.outcomes["delivered"] += 1
            return True
        if now - created > KEPT_SECONDS:
            logger.error(
                "webhook %s: event %s is dropped after %d attempts: %s", _host(url), event_id, attempts + 1, why
            )
            outbox.done(number)
            self.outcomes["dropped"] += 1
            return True
        pause = min(FIRST_PAUSE_SECONDS * 2.0 ** min(attempts, 20), LONGEST_PAUSE_SECONDS)
        logger.warning("webhook %s: %s; trying again in %.0f s", _host(url), why, pause)
        outbox.postpone(number, now + pause)
        self.outcomes["failed"] += 1
        return False

    def _post(self, url: str, event_id: str, body: str) -> str | None:
        """Send one event; returns why it was not accepted, or None. Only the status of the answer is read."""
        try:
            headers = signed_headers(event_id, int(time.time()), body, self._key)
            with self.http.stream("POST", url, content=body, headers=headers) as answer:
                return None if answer.is_success else f"it answered {answer.status_code}"
        except httpx.HTTPError as error:
            return f"{type(error).__name__}: {error}"


def _host(url: str) -> str:
    """An address without its secret parts: user, path and query."""
    return httpx.URL(url).host


def _body(kind: str, data: dict[str, Any]) -> str:
    moment = datetime.now(UTC).isoformat(timespec="milliseconds")
    return json.dumps({"type": kind, "timestamp": moment, "data": data}, ensure_ascii=False)


def _job_facts(job: Job) -> dict[str, Any]:
    """What receivers learn about a job, without its parameters and paths."""
    times = {
        name: None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
        for name, seconds in (("created", job.created), ("started", job.started), ("ended", job.ended))
    }
    return {"job_id": job.job_id, "kind": job.kind, "state": job.state, "error": job.error, **times}


def _video_facts(video: Video) -> dict[str, Any]:
    return {
        "video_id": video.video_id,
        "title": video.title,
        "duration_seconds": video.duration_seconds,
        "tags": list(video.tags),
    }
