"""Signing in and out of a browser: a key in a header becomes a cookie that pictures and videos are loaded with."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service.access.gate import require, token_of
from service.access.keys import KeyIdentity
from service.access.sessions import COOKIE
from service.errors import Conflict, Unauthorised
from service.schemas.index import SessionAnswer
from service.services import ServicesDep

router = APIRouter(prefix="/v1/session", tags=["session"])


@router.get("", summary="Who is signed in?")
async def describe_session(request: Request, services: ServicesDep) -> SessionAnswer:
    """Answered without a key, so that a page can find out whether one is needed."""
    return _describe(request, services.gate.keys_required)


@router.post("", summary="Sign in", dependencies=[require("search")])
async def sign_in(request: Request, response: Response, services: ServicesDep) -> SessionAnswer:
    """Exchange the key in the `Authorization` header for a session cookie.

    The cookie is `HttpOnly` and `SameSite=Strict`. Requests with it that change something must also carry
    `X-Requested-With` (or come from the server's own origin). It ends with the time in the answer, when the browser is
    closed, or when the key is revoked.
    """
    sessions = services.gate.sessions
    if sessions is None:
        raise Conflict(
            "this service requires no keys", expected="no session", next_step="ask without a key or a session"
        )
    if token_of(request.headers) is None:  # a session cannot renew itself
        raise Unauthorised(
            "signing in needs the key itself",
            expected="Authorization: Bearer emcl_…",
            next_step="send the key in the Authorization header",
        )
    identity: KeyIdentity = request.state.key
    response.set_cookie(
        COOKIE,
        sessions.issue(identity),
        path="/",
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    answer = _describe(request, keys_required=True)
    return answer.model_copy(update={"expires_in_seconds": sessions.seconds})


@router.delete("", summary="Sign out", status_code=204, response_class=Response)
async def sign_out() -> Response:
    """Remove the cookie from this browser; without one, do nothing."""
    response = Response(status_code=204)
    response.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
    return response


def _describe(request: Request, keys_required: bool) -> SessionAnswer:
    identity: KeyIdentity | None = request.state.key
    if identity is None:
        return SessionAnswer(keys_required=keys_required, signed_in=False)
    return SessionAnswer(keys_required=keys_required, signed_in=True, name=identity.name, scope=identity.scope)
