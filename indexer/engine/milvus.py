"""Milvus behind ``VectorEngine``: a server of version 2.3.5 or later, or ``milvus-lite`` in this process for tests.

Legend: Q queries, w width of the shortlist, M coordinates.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import numpy as np

from indexer.engine.vector_engine import CollectionSpec, EngineFacts, EngineRow, Floats, Ids
from indexer.errors import EngineError, EngineUnavailable
from indexer.library import Wanted

T = TypeVar("T")

INDEXES: dict[str, dict[str, int]] = {
    "HNSW": {"M": 16, "efConstruction": 200},
    "IVF_SQ8": {"nlist": 1024},
    "IVF_FLAT": {"nlist": 1024},
    "FLAT": {},
}
DEFAULT_INDEX = "HNSW"
PROBES = 64
"""Lists that an IVF index looks at."""
LONGEST_LIST = 1000
"""Ids or names in one expression; longer ones take the server long to parse."""
STALENESS_SECONDS = 5.0
"""How old a bounded read may be: the server's ``common.gracefulTime``."""
MAX_TAGS, MAX_TAG_BYTES = 4096, 4096
_MAP = "emcl.map"


class MilvusEngine:
    """One connection. Safe for use by several threads."""

    widest = 16_384
    """Milvus answers no more than this to one query."""

    def __init__(self, url: str, *, timeout_seconds: float = 1.0) -> None:
        """Connect to ``milvus://[user:password@]host:port[/database]`` or ``milvus-lite:///path/file.db``."""
        try:
            from pymilvus import MilvusClient
        except ImportError as error:
            raise EngineError("Milvus needs pymilvus: `pip install 'emcl-search[milvus]'`") from error
        parts = urlsplit(url)
        self.is_lite = parts.scheme == "milvus-lite"
        self._timeout = timeout_seconds
        self._slow = max(60.0, timeout_seconds)  # for writes and administration
        options: dict[str, Any] = {}
        if self.is_lite:
            if not parts.path.endswith(".db"):
                raise EngineError(f"{url} names no file: expected milvus-lite:///path/to/file.db")
            self.url = url
            Path(parts.path).parent.mkdir(parents=True, exist_ok=True)
            options["uri"] = parts.path
        elif parts.scheme == "milvus" and parts.hostname:
            self.url = f"milvus://{parts.hostname}:{parts.port or 19530}{parts.path}"  # without the password
            options |= {"uri": f"http://{parts.hostname}:{parts.port or 19530}", "timeout": self._slow}
            options |= {"user": unquote(parts.username or ""), "password": unquote(parts.password or "")}
            options["db_name"] = parts.path.strip("/")
        else:
            raise EngineError(
                f"{parts.scheme or url!r} is not an engine: expected milvus://host:19530 or milvus-lite:///path/file.db"
            )
        self._client: Any = self._asked("connecting", lambda: MilvusClient(**options), attempts=1)

    def close(self) -> None:
        """See ``VectorEngine``."""
        self._client.close()

    def expression(self, wanted: Wanted) -> str | None:
        """See ``VectorEngine``."""
        known = Wanted(
            tags=wanted.tags,
            min_seconds=wanted.min_seconds,
            max_seconds=wanted.max_seconds,
            video_ids=wanted.video_ids,
            without_videos=wanted.without_videos,
            without_segments=wanted.without_segments,
        )
        lists = (wanted.video_ids or (), wanted.without_videos, wanted.without_segments, wanted.tags)
        if known != wanted or any(len(values) > LONGEST_LIST for values in lists):
            return None
        parts = [f"array_contains(tags, {_quoted(tag)})" for tag in wanted.tags]
        if wanted.min_seconds is not None:
            parts.append(f"seconds >= {float(wanted.min_seconds)!r}")
        if wanted.max_seconds is not None:
            parts.append(f"seconds <= {float(wanted.max_seconds)!r}")
        if wanted.video_ids is not None:
            parts.append(f"video_id in [{', '.join(map(_quoted, wanted.video_ids))}]")
        if wanted.without_videos:
            parts.append(f"video_id not in [{', '.join(map(_quoted, wanted.without_videos))}]")
        if wanted.without_segments:
            parts.append(f"id not in {list(wanted.without_segments)}")
        return " and ".join(parts)

    def create(self, spec: CollectionSpec) -> None:
        """See ``VectorEngine``."""
        from pymilvus import DataType

        index = DEFAULT_INDEX if spec.index == "auto" else spec.index
        if index not in INDEXES:
            raise EngineError(f"unknown index {index!r}; expected auto or one of {', '.join(INDEXES)}")
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("video_id", DataType.VARCHAR, max_length=256)
        schema.add_field("seconds", DataType.DOUBLE)  # as the catalogue's: a bound of 30.1 must not fall between
        schema.add_field(
            "tags",
            DataType.ARRAY,
            element_type=DataType.VARCHAR,
            max_capacity=MAX_TAGS,
            max_length=MAX_TAG_BYTES,
        )
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=spec.dim)
        indexes = self._client.prepare_index_params()
        indexes.add_index("vector", index_type=index, metric_type="IP", params=INDEXES[index])

        def make() -> None:
            self._client.create_collection(
                spec.name,
                schema=schema,
                index_params=indexes,
                consistency_level="Bounded",
                properties={_MAP: spec.map_digest},
                timeout=self._slow,
            )
            self._client.load_collection(spec.name, timeout=self._slow)

        self._asked(f"creating {spec.name}", make, attempts=1)

    def drop(self, name: str) -> None:
        """See ``VectorEngine``."""

        def remove() -> None:
            for alias in self._aliases(name):
                self._client.drop_alias(alias, timeout=self._slow)
            self._client.drop_collection(name, timeout=self._slow)

        if name in self.collections():
            self._asked(f"dropping {name}", remove, attempts=1)

    def upsert(self, name: str, rows: Sequence[EngineRow]) -> None:
        """See ``VectorEngine``."""
        for row in rows:
            if len(row.tags) > MAX_TAGS or any(len(tag.encode()) > MAX_TAG_BYTES for tag in row.tags):
                raise EngineError(
                    f"video {row.video_id} has {len(row.tags)} tags; the engine takes at most {MAX_TAGS}, "
                    f"each of at most {MAX_TAG_BYTES} bytes: shorten them"
                )
        data = [
            {
                "id": row.id,
                "video_id": row.video_id,
                "seconds": row.seconds,
                "tags": list(row.tags),
                "vector": row.vector_M,
            }
            for row in rows
        ]
        if data:
            self._asked(f"writing to {name}", lambda: self._client.upsert(name, data, timeout=self._slow))

    def delete(self, name: str, ids: Sequence[int]) -> None:
        """See ``VectorEngine``."""
        for start in range(0, len(ids), LONGEST_LIST):
            part = [int(number) for number in ids[start : start + LONGEST_LIST]]
            delete = partial(self._client.delete, name, ids=part, timeout=self._slow)
            self._asked(f"deleting from {name}", delete)

    def ids_of_videos(self, name: str, video_ids: Sequence[str]) -> list[int]:
        """See ``VectorEngine``."""
        found: list[int] = []
        for start in range(0, len(video_ids), 50):  # few at a time: an answer holds at most ``widest`` rows
            names = ", ".join(map(_quoted, video_ids[start : start + 50]))
            last = -1
            while True:
                rows = self._query(name, f"video_id in [{names}] and id > {last}", ["id"], limit=self.widest)
                found += [int(row["id"]) for row in rows]
                if len(rows) < self.widest:
                    break
                last = max(found)
        return found

    def settle(self, name: str) -> None:
        """See ``VectorEngine``."""
        self.facts(name)
        if not self.is_lite:
            time.sleep(STALENESS_SECONDS + 0.5)

    def shortlist(self, name: str, queries_QM: Floats, width: int, expression: str) -> Ids:
        """See ``VectorEngine``. Each query is a call of its own, so that none depends on its batch."""
        ids_Qw = np.full((len(queries_QM), width), -1, dtype=np.int64)
        for q in range(len(queries_QM)):
            search = partial(
                self._client.search,
                name,
                data=queries_QM[q : q + 1],
                limit=width,
                filter=expression,
                search_params={"metric_type": "IP", "params": {"ef": max(width, 64), "nprobe": PROBES}},
                consistency_level="Strong" if self.is_lite else "Bounded",
                timeout=self._timeout,
            )
            found = self._asked("searching", search)[0]
            ids_Qw[q, : len(found)] = [hit["id"] for hit in found]
        return ids_Qw

    def vectors(self, name: str, ids: Sequence[int]) -> dict[int, Floats]:
        """See ``VectorEngine``."""
        found: dict[int, Floats] = {}
        for start in range(0, len(ids), LONGEST_LIST):
            part = [int(number) for number in ids[start : start + LONGEST_LIST]]
            for row in self._query(name, f"id in {part}", ["id", "vector"], limit=len(part)):
                found[int(row["id"])] = np.asarray(row["vector"], dtype=np.float32)
        return found

    def switch(self, alias: str, name: str) -> None:
        """See ``VectorEngine``."""

        def change() -> None:
            if any(alias in self._aliases(other) for other in self.collections()):
                self._client.alter_alias(name, alias, timeout=self._slow)
            else:
                self._client.create_alias(name, alias, timeout=self._slow)

        self._asked(f"switching {alias}", change, attempts=1)

    def collections(self) -> list[str]:
        """See ``VectorEngine``."""
        return sorted(self._asked("listing", lambda: self._client.list_collections(timeout=self._slow)))

    def facts(self, name: str) -> EngineFacts:
        """See ``VectorEngine``."""
        rows = int(self._query(name, "", ["count(*)"])[0]["count(*)"])
        described = self._asked("describing", lambda: self._client.describe_collection(name, timeout=self._slow))
        index = self._asked("describing", lambda: self._client.describe_index(name, "vector", timeout=self._slow))
        dim = next(field["params"]["dim"] for field in described["fields"] if field["name"] == "vector")
        properties = described.get("properties") or {}
        return EngineFacts(
            rows=rows,
            index=str((index or {}).get("index_type", "")),
            dim=int(dim),
            map_digest=str(properties.get(_MAP, "")),
        )

    def _aliases(self, name: str) -> list[str]:
        return list(self._client.list_aliases(name, timeout=self._slow).get("aliases", []))

    def _query(self, name: str, expression: str, fields: list[str], limit: int | None = None) -> list[dict[str, Any]]:
        """Rows as of all acknowledged writes."""
        options = {} if limit is None else {"limit": limit}
        return list(
            self._asked(
                f"reading {name}",
                lambda: self._client.query(
                    name,
                    filter=expression,
                    output_fields=fields,
                    consistency_level="Strong",
                    timeout=self._slow,
                    **options,
                ),
            )
        )

    def _asked(self, what: str, call: Callable[[], T], *, attempts: int = 2) -> T:
        """The answer to a call that may be repeated, at the second attempt if need be."""
        from grpc import RpcError
        from pymilvus import MilvusException

        for attempt in range(attempts):
            try:
                return call()
            except (MilvusException, RpcError) as error:
                if attempt == attempts - 1:
                    raise EngineUnavailable(
                        f"the engine at {self.url} failed while {what}: {str(error)[:300]}; "
                        "see `emcl engine status` and the engine's own log"
                    ) from error
        raise AssertionError


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
