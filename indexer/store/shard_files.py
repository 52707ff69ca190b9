"""Shard files that nothing names any more: neither the catalogue nor any generation that is kept.

There are some after ``emcl index compact``, once the last generation from before it has gone. A reader that still has
such a file mapped goes on reading it.
"""

from __future__ import annotations

from pathlib import Path

from indexer.errors import Damaged
from indexer.store import generation
from indexer.store.catalogue_reader import CatalogueReader
from indexer.store.shards import SHARD_KINDS


def unnamed(store: Path, catalogue: CatalogueReader) -> list[Path]:
    """Shards that may be removed; none while a kept generation cannot be read and so nobody knows what it names."""
    named = {kind.file_name(n) for kind in SHARD_KINDS for n in catalogue.shard_rows(kind.name)}
    try:
        folders = generation.kept(store) if (store / generation.CURRENT).exists() else []
        for folder in folders:
            named.update(generation.read_manifest(folder).shards)
    except Damaged:
        return []
    # A shard behind the last one is no former one: it belongs to whatever run is under way.
    last = {kind.name: max(catalogue.shard_rows(kind.name), default=-1) for kind in SHARD_KINDS}
    former = (
        store / generation.FEATURES / kind.file_name(number)
        for kind in SHARD_KINDS
        for number in range(last[kind.name])
    )
    return [path for path in former if path.name not in named and path.exists()]


def remove_unnamed(store: Path, catalogue: CatalogueReader) -> int:
    """Remove them. Returns the bytes that became free."""
    size_bytes = 0
    for path in unnamed(store, catalogue):
        size_bytes += path.stat().st_size
        path.unlink()
    return size_bytes
