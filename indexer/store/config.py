"""The settings that a store was built with, and the manifest of a published generation.

Both are JSON on disk. Unknown keys fail, so that a file of another version is never read in part.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ByteSize, Field, model_validator

from indexer.ann.choose import AUTO, DEFAULT_MEMORY, DEFAULT_RECALL
from indexer.errors import Damaged, NewerFormat, SettingsConflict
from model.config import Config, MaxFrames, SampleFps, SamplingConfig, Strategy

STORE_FORMAT = 2
"""Version of everything outside the catalogue (shards, generations). The catalogue numbers its own migrations.

Format 1 had the ids of its vectors inside the FAISS indexes; it is read as before."""

DEFAULT_SEGMENT_SECONDS = 30.0
DEFAULT_FACTORY = AUTO

FROZEN_MAP_ROWS = 20_000
"""Most rows (videos and captions together) that the frozen EMCL map is fitted on: 40 MB at 512 channels, and far
more rows than channels, so that a larger sample no longer moves the map."""

KEPT_GENERATIONS = 2
"""Published generations that stay on disk, so that a reader that opened the previous one keeps working."""


SegmentSeconds = Annotated[float, Field(ge=0.1)]
IndexRecall = Annotated[float, Field(ge=0.01, le=1)]


class ModelSpec(Config):
    """How the encoder was named: ``demo``, a checkpoint's path, an open_clip name with its pretrained tag, or None."""

    model: str | None = None
    pretrained: str | None = None


class StoreSettings(Config):
    """Settings of all vectors of a store, fixed when the store is created.

    ``factory`` and ``options``, the kind of FAISS index and its search parameters, may be changed by
    ``emcl index rebuild``. With the factory ``auto`` the kind is chosen at each publication, such that both indexes
    take at most ``index_memory`` bytes and find ``index_recall`` of the 100 nearest.
    """

    model_spec: ModelSpec
    fingerprint: str = Field(min_length=1)
    dim: int = Field(ge=1)
    sampling: SamplingConfig
    segment_seconds: SegmentSeconds = DEFAULT_SEGMENT_SECONDS
    factory: str = DEFAULT_FACTORY
    options: str = ""
    index_memory: int = Field(DEFAULT_MEMORY, ge=1)
    index_recall: IndexRecall = DEFAULT_RECALL

    @model_validator(mode="after")
    def _options_belong_to_a_factory(self) -> StoreSettings:
        if self.factory == AUTO and self.options:
            raise ValueError(f"the search options {self.options!r} need an index of a named kind; auto chooses its own")
        return self


class Wishes(Config):
    """Requested settings, each an option of the commands; None leaves the choice to the store or its defaults. Where a
    setting has another name in ``StoreSettings`` or ``SamplingConfig``, it is the alias.
    """

    SAMPLING: ClassVar = ("sample_fps", "max_frames", "sampling")
    INDEX: ClassVar = ("index", "index_options", "index_memory", "index_recall")

    segment_seconds: SegmentSeconds | None = Field(
        None, description="Longer videos are cut into segments of this many seconds. Default: 30."
    )
    sample_fps: SampleFps | None = Field(None, description="Frames taken per second. Default: the model's.")
    max_frames: MaxFrames | None = Field(
        None, description="Maximum number of frames per segment. Default: the model's."
    )
    sampling: Strategy | None = Field(
        None,
        serialization_alias="strategy",
        description="keyframes takes the nearest key frames: many times faster, but different frames.",
    )
    index: str | None = Field(
        None,
        serialization_alias="factory",
        description="auto (chosen by size, memory and recall; the default of a new store), or a FAISS factory string: "
        "Flat (exact), HNSW32, 'IVF256,SQ8', … or CAGRA (on a GPU).",
    )
    index_options: str | None = Field(
        None,
        serialization_alias="options",
        description="FAISS search parameters of a named kind, such as nprobe=32 or efSearch=64, and refine=4: rescore "
        "four times as many exactly.",
    )
    index_memory: ByteSize | None = Field(
        None, description="For auto: memory that the indexes may take, such as 512MiB. Default: 4GiB."
    )
    index_recall: IndexRecall | None = Field(
        None,
        description="For auto: share of the 100 nearest that must be found, measured on queries. Default: 0.98.",
    )

    def for_sampling(self) -> dict[str, Any]:
        """What is asked of frames, as fields of ``SamplingConfig``."""
        return self._given(set(Wishes.SAMPLING))

    def for_index(self) -> dict[str, Any]:
        """What is asked of the FAISS index, as fields of ``StoreSettings``."""
        return self._given(set(Wishes.INDEX))

    def for_store(self) -> dict[str, Any]:
        """All but what is asked of frames, as fields of ``StoreSettings``."""
        return self._given({"segment_seconds", *Wishes.INDEX})

    def _given(self, names: set[str]) -> dict[str, Any]:
        return self.model_dump(include=names, by_alias=True, exclude_none=True)


def refuse_differences(store: Path, recorded: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Raise ``SettingsConflict`` that names every setting of ``asked`` that ``store`` was not built with."""
    different = [
        f"{name} is {recorded[name]}, asked for {value}" for name, value in asked.items() if recorded[name] != value
    ]
    if different:
        raise SettingsConflict(
            f"{store} was built with other settings: {'; '.join(different)}. Leave those options out to use the "
            "store's, change the FAISS index with `emcl index rebuild --index`, or build another store"
        )


class Counts(Config):
    """How much a generation holds. ``failed`` counts videos that could not be read."""

    videos: int
    segments: int
    captions: int
    failed: int


class FileCheck(Config):
    """Size and SHA-256 of a file of a generation."""

    size_bytes: int
    sha256: str


class IndexReport(Config):
    """What one FAISS index is, and what it finds.

    ``options`` are FAISS's search parameters, and ``refine``, the factor by which a shortlist is longer than what is
    wanted from it. ``recall`` is the share of the exact ``depth`` nearest that was found for ``queries`` queries that
    came from ``source``; 1 for an exact index, which needs none. ``mapped``: it is more than fits in the memory that it
    may take, and is read from its file as searches need it.
    """

    factory: str
    options: str
    auto: bool
    mapped: bool
    vectors: int
    bytes_per_vector: float
    recall: float
    depth: int
    queries: int
    source: str


class Manifest(Config):
    """Everything about one immutable generation.

    ``shards`` maps the name of each shard that the generation reads to the number of its committed rows;
    ``files`` maps each file beside the manifest to its size and checksum; ``revision`` is the catalogue's change
    counter at the moment of the snapshot. ``indexes`` has ``videos`` and ``captions``; generations of format 1
    have none. ``checksum`` covers the manifest itself.
    """

    format: int = STORE_FORMAT
    generation: str
    created: str
    fingerprint: str
    model_spec: ModelSpec
    dim: int
    sampling: SamplingConfig
    segment_seconds: float
    factory: str
    options: str
    indexes: dict[str, IndexReport] = Field(default_factory=dict)
    revision: int
    counts: Counts
    frozen_map_rows: int
    shards: dict[str, int]
    files: dict[str, FileCheck]

    def to_json(self) -> str:
        """The manifest as JSON with a checksum over all the rest."""
        body = self.model_dump(mode="json")
        return json.dumps({**body, "checksum": _checksum(body)}, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str, *, where: str) -> Manifest:
        """Parse and check ``text``; ``where`` names the file in errors. Raises ``Damaged`` or ``NewerFormat``."""
        try:
            body = json.loads(text)
            recorded, version = body.pop("checksum"), body["format"]
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise Damaged(f"{where} is not a readable manifest ({error!r}); run `emcl index rebuild`") from error
        if recorded != _checksum(body):
            raise Damaged(f"{where} does not match its own checksum; publish again with `emcl index rebuild`")
        if version > STORE_FORMAT:
            raise NewerFormat(
                f"{where} has format {version}, this program reads up to {STORE_FORMAT}; "
                "use the version of the program that wrote it, or a newer one"
            )
        return cls(**body)


def _checksum(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
