"""What a store records of the collections that are derived from it: ``engine.json`` in its folder.

While it exists, publications keep the correction (map and bases) that the collections were filled with, because the
rows in the engine are mapped by it (``indexer.store.generation``).
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import filelock

from indexer.errors import Damaged, EngineBusy, EngineError
from indexer.store.generation import ENGINE_STATE
from model.durable import write_atomically

LOCK = "engine.lock"


@dataclass(frozen=True, kw_only=True)
class CollectionState:
    """One pair of collections. ``applied_revision``: every change up to it is visible in them; None until filled.

    While it is being filled, everything up to the ids ``filled_segments`` and ``filled_captions`` is there as of the
    catalogue's ``fill_revision`` or later.
    """

    map_digest: str
    index: str
    applied_revision: int | None = None
    fill_revision: int = 0
    filled_segments: int = 0
    filled_captions: int = 0


@dataclass(frozen=True, kw_only=True)
class EngineState:
    """``prefix`` names the collections; ``current`` is what searches use, None if there is nothing to use yet."""

    prefix: str
    current: str | None = None
    collections: dict[str, CollectionState] = field(default_factory=dict)

    def of(self, name: str) -> CollectionState:
        """The record of one. Raises ``EngineError``."""
        if name not in self.collections:
            known = ", ".join(self.collections) or "none"
            raise EngineError(f"there is no {name}; expected one of: {known}. `emcl engine create` makes one")
        return self.collections[name]

    def next_name(self) -> str:
        """A name that none has."""
        return f"g{max((int(name[1:]) for name in self.collections), default=0) + 1}"

    def videos(self, name: str) -> str:
        """The engine's name of the collection of segments; of the alias, for the name ``current``."""
        return f"{self.prefix}_videos_{name}"

    def captions(self, name: str) -> str:
        """The engine's name of the collection of captions."""
        return f"{self.prefix}_captions_{name}"

    def changed(self, name: str, **values: object) -> EngineState:
        """The same with other values in one record."""
        record = replace(self.of(name), **values)  # type: ignore[arg-type]
        return replace(self, collections={**self.collections, name: record})

    def write(self, store: Path) -> EngineState:
        """Store it durably; without collections, remove it."""
        if self.collections:
            write_atomically(store / ENGINE_STATE, json.dumps(asdict(self), indent=1).encode())
        else:
            (store / ENGINE_STATE).unlink(missing_ok=True)
        return self


def read_state(store: Path) -> EngineState | None:
    """What is recorded; None if nothing is. Raises ``Damaged``."""
    path = store / ENGINE_STATE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        records = {name: CollectionState(**record) for name, record in found.pop("collections").items()}
        return EngineState(**found, collections=records)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Damaged(f"{path} cannot be read ({error}); delete it and run `emcl engine create`") from error


def need_state(store: Path) -> EngineState:
    """What is recorded. Raises ``EngineError`` if nothing is."""
    state = read_state(store)
    if state is None:
        raise EngineError(f"{store} has no collections in an engine; run `emcl engine create` and `emcl engine fill`")
    return state


def check_prefix(prefix: str) -> str:
    """A prefix that every engine takes as part of a name. Raises ``EngineError``."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,99}", prefix):
        raise EngineError(f"{prefix!r} cannot name collections; expected letters, digits and _, a letter first")
    return prefix


def lock(store: Path) -> filelock.BaseFileLock:
    """Become the only process that changes the collections of a store. Raises ``EngineBusy`` if another process is."""
    taken = filelock.FileLock(store / LOCK, blocking=False)
    try:
        taken.acquire()
    except filelock.Timeout as error:
        raise EngineBusy(f"another process is changing the collections of {store}; wait until it has ended") from error
    return taken
