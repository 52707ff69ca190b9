"""Log lines of the service: as text for people or as JSON for machines, each with the id of its request.

In: records of ``logging``, uvicorn's among them. Out: one line for each on standard error (text adds the lines of a
traceback, indented). Nothing that a client sends can begin a line of its own: control characters become escapes.
Query texts, bodies, query strings, keys and passwords are never logged by the access line.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from service.observe.request import current

LogFormat = Literal["text", "json"]

logger = logging.getLogger(__name__)
access_logger = logging.getLogger("service.access")
"""One line for each request, with the attribute ``fields``."""

_TRACEBACK_INDENT = "    | "
_WRITTEN_EVERY_SECONDS = 0.05
_MOST_WAITING = 10_000
_CLOSE_SECONDS = 2.0


class TextFormatter(logging.Formatter):
    """``2026-01-31 12:00:00,000 INFO service.access: … [request-id]``."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and indented lines for a traceback."""
        request_id = _request_id(record)
        mark = f" [{request_id}]" if request_id else ""
        line = f"{self.formatTime(record)} {record.levelname} {record.name}: {escape(record.getMessage())}{mark}"
        trace = _trace(self, record)
        return "\n".join([line, *(_TRACEBACK_INDENT + escape(part) for part in trace.splitlines())])


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time``, ``level``, ``logger``, ``message``, ``request_id``, the record's ``fields``."""

    def format(self, record: logging.LogRecord) -> str:
        """One line; everything outside of ASCII is escaped."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := _request_id(record):
            entry["request_id"] = request_id
        entry.update(getattr(record, "fields", {}))
        if trace := _trace(self, record):
            entry["exception"] = trace
        return json.dumps(entry, default=str)


def escape(text: str) -> str:
    """The text with everything that is not printable (line ends, control, direction marks, surrogates) as escapes."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _request_id(record: logging.LogRecord) -> str | None:
    observation = current()
    named: str | None = getattr(record, "request_id", None)
    return named or (observation.request_id if observation else None)


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    parts = [formatter.formatException(record.exc_info)] if record.exc_info else []
    if record.stack_info:
        parts.append(formatter.formatStack(record.stack_info))
    return "\n".join(parts)


class _ToStandardError(logging.StreamHandler[Any]):
    """Writes to what ``sys.stderr`` is at that moment."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        return sys.stderr


@contextmanager
def logging_to_stderr(log_format: LogFormat, level: str) -> Iterator[None]:
    """All logs of the process in one format while the context lasts; uvicorn must be started with ``log_config=None``.

    ``level`` is the least severe level shown. What had been set up before is back afterwards.
    """
    root = logging.getLogger()
    handlers, old_level = root.handlers[:], root.level
    handler = _ToStandardError()
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    for other in [other for other in root.handlers if type(other) is logging.StreamHandler]:
        root.removeHandler(other)  # what `logging.basicConfig` of another command left would write each line again
    root.addHandler(handler)
    root.setLevel(level.upper())
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(old_level)


@dataclass(kw_only=True, slots=True)
class Access:
    """A request that was answered, and how. ``stages`` maps stages to their seconds."""

    request_id: str
    method: str
    path: str
    route: str
    status: int
    seconds: float
    sent_bytes: int
    key: str
    client: str | None
    problem: str | None
    stages: dict[str, float]
    ended: float = field(default_factory=time.time)

    @property
    def fields(self) -> dict[str, Any]:
        """What the line says, by name."""
        return {
            "method": self.method,
            "path": self.path,
            "route": self.route,
            "status": self.status,
            "duration_ms": round(self.seconds * 1000, 3),
            "bytes": self.sent_bytes,
            "key": self.key,
            "client": self.client,
            "problem": self.problem,
            "stage_ms": {stage: round(seconds * 1000, 3) for stage, seconds in self.stages.items()},
        }


class AccessLog:
    """Logs one line for each request, in a thread of its own and some twenty times a second.

    So no request waits for the lines of those before it, nor the event loop for a standard error that takes none. Over
    ``_MOST_WAITING`` lines the newest are dropped, and how many is logged.
    """

    def __init__(self) -> None:
        self._waiting: deque[Access] = deque()
        self._dropped = 0
        self._arrived = threading.Event()
        self._closing = threading.Event()
        self._writing = threading.Lock()
        self._writer: threading.Thread | None = None

    def start(self) -> None:
        """Begin to write; again after ``close``."""
        self._closing.clear()
        self._writer = threading.Thread(target=self._work, name="access log", daemon=True)
        self._writer.start()

    def close(self) -> None:
        """Write what waits, as far as it can be written soon, and end."""
        self._closing.set()
        self._arrived.set()
        if self._writer is not None:
            self._writer.join(_CLOSE_SECONDS)

    def add(self, access: Access) -> None:
        """Log a request before long."""
        if len(self._waiting) >= _MOST_WAITING:
            self._dropped += 1
            return
        self._waiting.append(access)
        if not self._arrived.is_set():
            self._arrived.set()

    def flush(self) -> None:
        """Return when everything that was added is written."""
        with self._writing:
            while self._waiting:
                try:
                    _log(self._waiting.popleft())
                except Exception:
                    logger.exception("a line of the access log could not be written")
            if dropped := self._dropped:
                self._dropped -= dropped
                access_logger.warning("%d lines were dropped: they came faster than they could be written", dropped)

    def _work(self) -> None:
        while not self._closing.is_set():
            self._arrived.wait()
            self._closing.wait(_WRITTEN_EVERY_SECONDS)  # waking for each line would cost the next request more
            self._arrived.clear()
            self.flush()
        self.flush()


def _log(access: Access) -> None:
    if access_logger.isEnabledFor(logging.INFO):
        line, fields = "%(method)s %(path)s %(status)s %(duration_ms).1f ms %(bytes)d bytes key=%(key)s", access.fields
        extra = {"fields": fields, "request_id": access.request_id}
        record = access_logger.makeRecord(
            access_logger.name, logging.INFO, __file__, 0, line, (fields,), None, extra=extra
        )
        record.created = access.ended
        record.msecs = access.ended % 1 * 1000
        access_logger.handle(record)
