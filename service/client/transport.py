"""How both clients send a request, how long they wait for a busy service, and how they read its answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import IO, Any, TypeVar

import httpx
from pydantic import ValidationError

from service.client.endpoint import Call
from service.client.errors import NoAnswerError, UnexpectedAnswerError, error_of, retry_after_seconds

T = TypeVar("T")

_BUSY = (429, 503)


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How often a busy service is asked again, and how long is waited for it in all."""

    retries: int = 3
    seconds: float = 30.0


class Waits:
    """How long to wait before a request is sent again."""

    def __init__(self, patience: Patience) -> None:
        self._retries_left = patience.retries
        self._seconds_left = patience.seconds

    def after(self, response: httpx.Response) -> float | None:
        """Seconds, or ``None`` if this answer is the last."""
        pause = retry_after_seconds(response) if response.status_code in _BUSY else None
        if pause is None or self._retries_left == 0 or pause > self._seconds_left:
            return None
        self._retries_left -= 1
        self._seconds_left -= pause
        return pause


def connection_of(base_url: str, api_key: str | None, timeout_seconds: float) -> dict[str, Any]:
    """What httpx's clients, of both kinds, are made with."""
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    return {"base_url": base_url, "headers": headers, "timeout": timeout_seconds}


@contextmanager
def readable(call: Call[Any]) -> Iterator[IO[bytes] | None]:
    """The file that a call uploads, from its start, for each time that it is sent."""
    with ExitStack() as stack:
        yield None if call.sent.file is None else stack.enter_context(call.sent.file.open("rb"))


def arguments_of(call: Call[Any], file: IO[bytes] | None) -> dict[str, Any]:
    """What httpx is to send."""
    sent = call.sent
    arguments: dict[str, Any] = {"params": sent.query}
    if sent.json is not None:
        arguments["json"] = sent.json
    if file is not None:
        arguments["files"] = {"file": file}
        arguments["data"] = sent.form
    return arguments


def answer_of(call: Call[T], response: httpx.Response) -> T:
    """What the service answered. Raises ``ClientError``."""
    if not response.is_success:
        raise error_of(response)
    try:
        return call.read(response)
    except ValidationError as error:
        raise UnexpectedAnswerError(
            f"{call.method} {call.path} answered what this client does not know; are both of one version? {error}"
        ) from error


def no_answer(base_url: httpx.URL, error: httpx.TransportError) -> NoAnswerError:
    """The error that says that nothing came back."""
    return NoAnswerError(
        f"no answer from {base_url}: {str(error) or type(error).__name__}; is the service running (`emcl serve`)?"
    )
