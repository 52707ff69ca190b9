"""Authentication and scopes. A key in a header or a session cookie becomes a ``KeyIdentity``; routes name their scope.

Every request passes the ``Gate`` before its body is read (``service.http.middleware.CheckKeys``): with keys on, only
open paths are answered without a valid key, so that a route whose author forgot it is closed, not open. ``require``
then checks the scope that the route needs.
"""
# Without `from __future__ import annotations`: FastAPI reads the annotations of ``Require.__call__``, of an object.

from collections.abc import Collection
from typing import Any

from fastapi import Request, Security
from fastapi.openapi.models import HTTPBearer as BearerModel
from fastapi.security.base import SecurityBase
from starlette.datastructures import Headers

from service.access.keys import KeyIdentity, KeyStore, Scope, includes
from service.access.rate_limit import RateLimiter
from service.access.sessions import Sessions, check_own_page, check_same_origin
from service.errors import Forbidden, Unauthorised
from service.settings import Settings

SESSION_PATH = "/v1/session"
OPEN_PATHS = frozenset({"/", "/docs", "/openapi.json", SESSION_PATH})
OPEN_FOLDERS = ("/web/", "/health/")
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_HOW = "send it as `Authorization: Bearer emcl_…` (or `X-API-Key: emcl_…`); `emcl keys create` makes one"


class Gate:
    """Checks credentials and rates. Without ``key_store`` no keys are required, and everybody may do everything."""

    def __init__(
        self, key_store: KeyStore | None, limits: RateLimiter, *, session_seconds: int, origins: Collection[str] = ()
    ) -> None:
        self.key_store = key_store
        self.limits = limits
        self.origins = frozenset(origins)
        self.sessions = None if key_store is None else Sessions(key_store, session_seconds)

    @property
    def keys_required(self) -> bool:
        """Whether only requests with a key are answered."""
        return self.key_store is not None

    def identify(self, method: str, path: str, headers: Headers) -> KeyIdentity | None:
        """The identity of a request; ``None`` where it does not matter.

        Raises ``Unauthorised``, or ``Forbidden`` for a request of a session, or one without keys, that may come from
        another page.
        """
        if self.key_store is None or self.sessions is None:
            if method not in _READING or not is_open(path):
                check_own_page(method, headers, self.origins)
            return None
        if is_open(path) and path != SESSION_PATH:
            return None
        token = token_of(headers)
        if token is not None:
            identity = self.key_store.check(token)
            if identity is None:
                raise Unauthorised(
                    "this key is not valid: unknown, expired or revoked", expected="a valid key", next_step=_HOW
                )
            return identity
        identity = self.sessions.holder(headers)
        if identity is not None:
            check_same_origin(method, headers)
        elif not is_open(path):
            raise Unauthorised("this service answers only requests with a key", expected="a key", next_step=_HOW)
        return identity

    async def limit(self, identity: KeyIdentity | None, path: str, client: str, *, upload: bool) -> None:
        """Count a request to its key, or to its client's address if so set. Raises ``RateLimited``."""
        if identity is not None:
            name = f"key {identity.key_id}"
        elif self.key_store is None and self.limits.limit_clients and not is_open(path):
            name = f"client {client}"
        else:
            return
        await self.limits.take(name, self.limits.requests)
        if upload:
            await self.limits.take(name, self.limits.uploads)


def token_of(headers: Headers) -> str | None:
    """The key that a request carries in its headers, valid or not."""
    kind, _, token = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return token.strip()
    return headers.get("x-api-key")


def is_open(path: str) -> bool:
    """Whether a path is answered without a key: pages, the ready check, signing in."""
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDERS)


class Require(SecurityBase):
    """The dependency that ``require`` returns; the OpenAPI document shows it at each route that has it."""

    def __init__(self, scope: Scope) -> None:
        self.scope: Scope = scope
        self.model = BearerModel(description="A key made by `emcl keys create`; a session cookie works as well.")
        self.scheme_name = "key"

    async def __call__(self, request: Request) -> None:
        """Raise ``Forbidden`` if the key's scope is too small."""
        gate: Gate = request.app.state.services.gate
        if not gate.keys_required:
            return
        identity: KeyIdentity | None = request.state.key
        if identity is None:  # the path is open, the route is not
            raise Unauthorised("this route needs a key", expected="a key", next_step=_HOW)
        if not includes(identity.scope, self.scope):
            raise Forbidden(
                f"the key {identity.name!r} has the scope {identity.scope}",
                expected=f"a key of scope {self.scope}",
                next_step=f"use such a key; `emcl keys create --name NAME --scope {self.scope}` makes one",
            )


def sees_paths(request: Request) -> bool:
    """Whether a request may learn where files are: with a key of scope ``admin``, or where no keys are required."""
    gate: Gate = request.app.state.services.gate
    identity: KeyIdentity | None = request.state.key
    return not gate.keys_required if identity is None else identity.scope == "admin"


def require(scope: Scope) -> Any:
    """A FastAPI dependency that lets in only keys of this scope or a higher one: ``search`` < ``write`` < ``admin``.

    ``request.state.key`` is then the ``KeyIdentity``, or ``None`` where no keys are required.
    """
    return Security(Require(scope))


def build_gate(settings: Settings, limits: RateLimiter) -> Gate:
    """The gate of the settings. Raises ``ValueError`` if keys are required and there is none."""
    return Gate(open_keys(settings), limits, session_seconds=settings.session_seconds, origins=settings.cors_origins)


def open_keys(settings: Settings) -> KeyStore | None:
    """The keys that the settings require, if they do. Raises ``ValueError`` if there is no valid one."""
    if not settings.keys_required:
        return None
    key_store = KeyStore(settings.keys_file)
    if not key_store.has_valid():
        why = "" if settings.is_loopback else f"host {settings.host} can be reached from other machines, so "
        raise ValueError(
            f"{why}only requests with a key are answered, but {settings.keys_file} has no valid key; make one with "
            f"`emcl keys create --name NAME --scope search --keys-file {settings.keys_file}`"
            + ("" if settings.is_loopback else ", or use --host 127.0.0.1")
        )
    return key_store
