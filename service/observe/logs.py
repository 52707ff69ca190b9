"""Log lines of the service: as text for people or as JSON for machines, each with the id of its request.

In: records of ``logging``, uvicorn's among them. Out: one line for each on standard error (text adds the lines of a
traceback, indented). Nothing that a client sends can begin a line of its own: control characters become escapes.
Query texts, bodies, query strings, keys and passwords are never logged by the access line.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from logging.handlers import QueueHandler, QueueListener
from queue import Full, Queue
from threading import Thread
from typing import Any, Literal

from service.observe.request import current

LogFormat = Literal["text", "json"]

access_logger = logging.getLogger("service.access")
"""One line for each request, with the attribute ``fields``."""

_TRACEBACK_INDENT = "    | "
MOST_WAITING = 10_000
CLOSE_SECONDS = 2.0


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
    """Writes to the present ``sys.stderr``."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        return sys.stderr


class _FormatAndQueue(QueueHandler):
    """Formats a record where it is logged, which knows the request, and queues the line; full queues drop it."""

    def __init__(self, formatter: logging.Formatter) -> None:
        self.lines: Queue[logging.LogRecord | None] = Queue(MOST_WAITING)
        super().__init__(self.lines)
        self.setFormatter(formatter)
        self.dropped = 0

    def enqueue(self, record: logging.LogRecord) -> None:
        """Queue a line, or count it as dropped."""
        try:
            self.lines.put_nowait(record)
        except Full:
            self.dropped += 1


class _Writer(QueueListener):
    """Writes queued lines in its own thread: a blocked standard error must not block the event loop."""

    def __init__(self, source: _FormatAndQueue) -> None:
        super().__init__(source.lines, _ToStandardError())
        self._source = source

    def handle(self, record: logging.LogRecord) -> None:
        """Write a line, and how many were dropped before it."""
        super().handle(record)
        if dropped := self._source.dropped:
            self._source.dropped -= dropped
            text = f"{dropped} lines were dropped: they came faster than they could be written"
            warning = logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, None, None)
            super().handle(self._source.prepare(warning))

    def enqueue_sentinel(self) -> None:
        """Mark the end of the queue, once it has room."""
        self._source.lines.put(None)

    def close(self) -> None:
        """Write what is queued for at most ``CLOSE_SECONDS``, then stop."""
        stopping = Thread(target=self.stop, name="stop logging", daemon=True)
        stopping.start()
        stopping.join(CLOSE_SECONDS)


@contextmanager
def logging_to_stderr(log_format: LogFormat, level: str, *, in_thread: bool = True) -> Iterator[None]:
    """All logs of the process in one format while the context lasts; start uvicorn with ``log_config=None``.

    ``level`` is the least severe level shown. The handlers that were set up before are restored afterwards. A process
    that forks writes without a thread (``in_thread``), and waits where standard error is blocked.
    """
    root = logging.getLogger()
    handlers, old_level = root.handlers[:], root.level
    formatter = JsonFormatter() if log_format == "json" else TextFormatter()
    with ExitStack() as stack:
        handler: logging.Handler = _ToStandardError()
        if in_thread:
            handler = queued = _FormatAndQueue(formatter)
            writer = _Writer(queued)
            writer.start()
            stack.callback(writer.close)
        else:
            handler.setFormatter(formatter)
        for other in [other for other in root.handlers if type(other) in (logging.StreamHandler, _ToStandardError)]:
            root.removeHandler(other)  # of another command, or of the process that forked this one: no line twice
        root.addHandler(handler)
        root.setLevel(level.upper())
        for chatty in ("faiss.loader", "httpx"):  # missing processor features; requests to other workers
            logging.getLogger(chatty).setLevel(logging.WARNING)
        try:
            yield
        finally:
            root.handlers[:] = handlers
            root.setLevel(old_level)
