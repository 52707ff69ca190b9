"""Sessions of a browser: a signed cookie stands for a key, because ``<video>`` and ``<img>`` cannot send headers.

A cookie names the key and when the session ends, signed (HMAC-SHA256) with the secret of the keys file, so that every
process that shares the file, also after a restart, knows it. Nothing is stored: each request looks the key up again, so
that a revoked or expired key ends its sessions at once. The key itself is not in the cookie.
"""

from __future__ import annotations

import hmac
import re
import time
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import cookie_parser

from service.access.keys import KeyIdentity, KeyStore
from service.errors import Forbidden

COOKIE = "emcl_session"
CUSTOM_HEADER = "x-requested-with"
_COOKIE_FORM = re.compile(r"([0-9a-f]{12})\.([0-9]{1,12})\.([0-9a-f]{64})")
_READING = frozenset({"GET", "HEAD", "OPTIONS"})


class Sessions:
    """Issues and reads cookies for the keys of ``key_store``; a session lasts ``seconds``."""

    def __init__(self, key_store: KeyStore, seconds: int) -> None:
        self.seconds = seconds
        self._key_store = key_store

    def issue(self, identity: KeyIdentity) -> str:
        """The value of a session cookie for this key."""
        return self._signed(identity.key_id, int(time.time()) + self.seconds)

    def holder(self, headers: Headers) -> KeyIdentity | None:
        """Whose session a request belongs to; ``None`` without a cookie that is whole, in time, and of a valid key."""
        match = _COOKIE_FORM.fullmatch(cookie_parser(headers.get("cookie", "")).get(COOKIE, ""))
        if match is None or not self._key_store.session_secret:
            return None
        key_id, expires, _ = match.groups()
        if not hmac.compare_digest(self._signed(key_id, int(expires)), match[0]) or time.time() >= int(expires):
            return None
        return self._key_store.named(key_id)

    def _signed(self, key_id: str, expires: int) -> str:
        signature = hmac.digest(self._key_store.session_secret, f"session.{key_id}.{expires}".encode(), "sha256")
        return f"{key_id}.{expires}.{signature.hex()}"


def check_same_origin(method: str, headers: Headers) -> None:
    """Raise ``Forbidden`` if a request that a cookie authorises changes something and may come from another page.

    A page of another origin can make a browser send a form with our cookie, but it can neither set a header of its own
    nor hide where it comes from. ``SameSite=Strict`` keeps other sites out already; other ports of the same host are
    the same site.
    """
    if method in _READING or CUSTOM_HEADER in headers:
        return
    origin = headers.get("origin")
    if origin is None or not _names_host(origin, headers):
        raise Forbidden(
            "a session cookie may change something only from this server's own page",
            expected="the header X-Requested-With, or an Origin header that names this host",
            next_step="send X-Requested-With: fetch, or use the key itself as Authorization: Bearer",
        )


def check_own_page(method: str, headers: Headers, origins: Collection[str]) -> None:
    """Raise ``Forbidden`` if a request that needs no credentials comes from a page of another origin.

    Any page can make a browser send a form to a service on loopback, or load a picture from it. What such a request
    changes or computes happens although the page cannot read the answer. Browsers say where it comes from in
    ``Sec-Fetch-Site`` and ``Origin``, and pages cannot change either. Other clients send neither. ``origins`` are pages
    that the operator lets in. Following a link is not a request by the page that has it.
    """
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site in ("same-origin", "none") or (origin is not None and origin in origins):
        return
    reading = method in _READING
    if site is not None:
        foreign = not (reading and headers.get("sec-fetch-mode") == "navigate")
    else:
        foreign = not reading and origin is not None and not _names_host(origin, headers)
    if foreign:
        raise Forbidden(
            f"a page of another origin ({(origin or site or '')[:100]}) may not use this service",
            expected="a request from this server's own page, or of a client that is not a browser",
            next_step="open the page of this server, or start it with --cors-origins and the origin of that page",
        )


def _names_host(origin: str, headers: Headers) -> bool:
    try:
        named = urlsplit(origin).netloc
    except ValueError:  # such as http://[
        return False
    return named.lower() == headers.get("host", "").lower()
