"""The JSON of what is served: the index, its limits, and whether it answers.

The JSON of signing in and out.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from service.access.keys import Scope
from service.schemas.search import Answer, SourceOut


class UploadLimitsOut(Answer):
    """How large an uploaded video may be."""

    max_bytes: int
    max_seconds: float
    max_pixels: int


class OverlayOut(Answer):
    """Changes since the generation was published; they are searchable too."""

    rows: int = Field(description="Segments and captions that were added or deleted.")
    publishing: bool = Field(description="Whether a generation with all of it is being published.")
    waiting: int = Field(description="Uploaded videos that are not searchable yet.")


class IndexOut(Answer):
    """A FAISS index and its measured recall."""

    factory: str = Field(description="Kind, as a FAISS factory string; `Flat` is exact.")
    options: str = Field(description="FAISS's search parameters, and `refine`: how many times as many are scored.")
    auto: bool = Field(description="Whether it was chosen by size, memory and recall.")
    mapped: bool = Field(description="Whether it is more than fits in the memory that it may take.")
    vectors: int
    bytes_per_vector: float
    recall: float = Field(description="Share of the `depth` nearest that was found when it was built; 1 if exact.")
    depth: int
    queries: int = Field(description="Queries that this was measured on; 0 if exact.")
    source: str = Field(description="Where those came from.")


class EMCLOut(Answer):
    """The correction that `rerank: emcl` applies."""

    mode: str = Field(description="`off` or the mode, such as `channel`.")
    strength: float = Field(description="Its strength; 0 if it is off.")
    text: str = Field(description="The same in words: what is active, and why.")


class IndexAnswer(Answer):
    """What is being served."""

    generation: str
    version: str = Field(description="Changes whenever search results can change.")
    revision: int = Field(description="Changes of the store that are served, counted from its beginning.")
    overlay: OverlayOut
    created: str
    fingerprint: str
    model: str
    runtime: str = Field(description="What computes the model's towers, with its precision, such as `onnx int8`.")
    runtime_reason: str = Field(description="Why that runtime.")
    dim: int
    factory: str
    indexes: dict[str, IndexOut] = Field(
        description="`videos` and `captions`; empty for a generation of an earlier version."
    )
    segment_seconds: float
    counts: dict[str, int]
    sampling: dict[str, Any]
    emcl: dict[str, Any]
    confidence_line: float | None = Field(
        None, description="Hits whose confidence is below it count as weak; null if the index knows no confidence."
    )
    heads: list[str] = Field(
        description="What the model has beside search: `caption` for `/v1/caption`, `answer` for `/v1/answer`."
    )
    demo_notice: str | None = Field(
        None, description="A warning where the demo model serves anything but its own clips: its answers mean nothing."
    )
    correction: EMCLOut = Field(description="What EMCL does to searches of this index with this model.")
    watched_folders: int = Field(0, description="Folders that the service keeps indexed (`--watch`).")
    upload_limits: UploadLimitsOut
    query_limits: dict[str, int]


class ReadyAnswer(Answer):
    """A query has just gone through every stage."""

    ready: bool
    hits: int = Field(description="Hits of that query: 0 only if the index is empty.")
    redis: str = Field(description="`ok`, `unavailable` (search works without it) or `off` (not configured).")
    trouble: list[str] = Field(
        default_factory=list, description="Background work that failed and is tried again; the log says why."
    )
    source: SourceOut


class LiveAnswer(Answer):
    """The process answers."""

    live: bool


class SessionAnswer(Answer):
    """Who is signed in, and whether keys are required."""

    keys_required: bool = Field(description="Whether the service requires a key.")
    signed_in: bool = Field(description="Whether this request carried a valid key or session.")
    name: str | None = Field(None, description="Name of the key.")
    scope: Scope | None = Field(None, description="What the key may do: `search`, `write` or `admin`.")
    expires_in_seconds: int | None = Field(None, description="How long the session that was just made lasts.")
