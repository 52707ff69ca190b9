"""The JSON of signing in and out."""

from __future__ import annotations

from pydantic import Field

from service.access.keys import Scope
from service.schemas.search import Answer


class SessionAnswer(Answer):
    """Who is signed in, and whether anybody needs to be."""

    keys_required: bool = Field(description="Whether the service answers only who has a key.")
    signed_in: bool = Field(description="Whether this request carried a valid key or session.")
    name: str | None = Field(None, description="Name of the key.")
    scope: Scope | None = Field(None, description="What the key may do: `search`, `write` or `admin`.")
    expires_in_seconds: int | None = Field(None, description="How long the session that was just made lasts.")
