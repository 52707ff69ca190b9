"""How a route of the service becomes a typed method of both clients. Nothing here sends anything.

An ``Endpoint`` is one route. As an attribute of ``service.client.client.Client`` it is a method that returns the
answer, of ``AsyncClient`` one that is awaited; both share all that is written in ``service.client.calls``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, overload

import httpx

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Sent:
    """What goes with a request. ``file`` is uploaded as the form's part ``file``; ``form`` are its other parts."""

    path: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, Any] = field(default_factory=dict)
    json: Any = None
    file: Path | None = None
    form: Mapping[str, str | list[str]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Call(Generic[T]):
    """One request, and how its answer is read."""

    method: str
    path: str
    sent: Sent
    read: Callable[[httpx.Response], T]


class Runs(Protocol):
    """A client that sends calls and returns their answers."""

    def run(self, call: Call[T]) -> T:
        """Send a call."""
        ...


class RunsLater(Protocol):
    """A client whose answers are awaited."""

    async def run_later(self, call: Call[T]) -> T:
        """Send a call."""
        ...


class Endpoint(Generic[P, T]):
    """A route with a typed builder of its requests; a method of the clients that it is an attribute of."""

    def __init__(
        self,
        method: str,
        route: str,
        read: Callable[[httpx.Response], T],
        build: Callable[P, Sent],
        summary: str | None = None,
    ) -> None:
        self.method = method
        self.route = route
        self._read = read
        self._build = build
        self.__doc__ = summary or build.__doc__

    def call(self, *args: P.args, **kwargs: P.kwargs) -> Call[T]:
        """The request for these arguments."""
        sent = self._build(*args, **kwargs)
        return Call(method=self.method, path=self.route.format(**sent.path), sent=sent, read=self._read)

    @overload
    def __get__(self, client: None, owner: type) -> Endpoint[P, T]: ...
    @overload
    def __get__(self, client: Runs, owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: RunsLater, owner: type) -> Callable[P, Awaitable[T]]: ...
    def __get__(self, client: Any, owner: type) -> Any:
        if client is None:
            return self
        run = client.run if hasattr(client, "run") else client.run_later
        return lambda *args, **kwargs: run(self.call(*args, **kwargs))


def endpoint(
    method: str, route: str, read: Callable[[httpx.Response], T]
) -> Callable[[Callable[P, Sent]], Endpoint[P, T]]:
    """Make an endpoint of the function that says what its requests hold."""
    return partial(Endpoint, method, route, read)
