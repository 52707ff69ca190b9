"""Questions that only ``emcl index verify`` puts to the catalogue."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from indexer.store.catalogue_reader import CatalogueReader
from indexer.store.schema import database_uri
from indexer.store.shards import CAPTIONS, FRAMES, POOLED, Place

_PLACES = {
    FRAMES.name: "SELECT segment_id, shard, row, frames, crc32 FROM segments ORDER BY shard, row",
    POOLED.name: "SELECT segment_id, pooled_shard, pooled_row, 1, pooled_crc32 FROM segments ORDER BY 2, 3",
    CAPTIONS.name: "SELECT caption_id, shard, row, 1, crc32 FROM captions ORDER BY shard, row",
}

_FIRST_VERSIONS = {"titles": 2, "sources": 3}  # of the catalogue; a copy that an earlier one made has no such table

_EQUAL_TABLES = {
    table: f"SELECT EXISTS (SELECT * FROM main.{table} EXCEPT SELECT * FROM copy.{table})"  # noqa: S608
    f" OR EXISTS (SELECT * FROM copy.{table} EXCEPT SELECT * FROM main.{table})"
    for table in ("meta", "shards", "videos", "titles", "locations", "tags", "segments", "captions", "sources")
}

# Without the places in the shards: `emcl index compact` changes them.
_LASTING = {
    "segments": "segment_id, video_id, number, start_seconds, end_seconds, timestamps_seconds, frames, crc32,"
    " pooled_crc32",
    "captions": "caption_id, video_id, text, crc32",
}
_UNCHANGED_ROWS = {
    table: f"SELECT EXISTS (SELECT {lasting} FROM copy.{table} WHERE {key} IN (SELECT {key} FROM main.{table})"  # noqa: S608
    f" EXCEPT SELECT {lasting} FROM main.{table})"
    for (table, lasting), key in zip(_LASTING.items(), ("segment_id", "caption_id"), strict=True)
}


def places(catalogue: CatalogueReader, kind: str) -> Iterator[tuple[str, Place]]:
    """Where each row of one kind of shard lies, with a name for what it is, in the order of the files."""
    for number, shard, row, rows, crc32 in catalogue.connection.execute(_PLACES[kind]):
        what = f"{'caption' if kind == CAPTIONS.name else 'segment'} {number}"
        yield what, Place(shard=shard, row=row, rows=rows, crc32=crc32)


def integrity_errors(catalogue: CatalogueReader) -> list[str]:
    """What SQLite finds wrong with the file and its references."""
    found = [row[0] for row in catalogue.connection.execute("PRAGMA integrity_check") if row[0] != "ok"]
    broken = {row[0] for row in catalogue.connection.execute("PRAGMA foreign_key_check")}
    return found + [f"rows of {table} refer to videos that are not there" for table in sorted(broken)]


def differing_tables(catalogue: CatalogueReader, copy: Path, *, same_revision: bool) -> list[str]:
    """Tables that differ from those in ``copy``, an earlier ``copy_to`` of this catalogue.

    At the same revision nothing may differ; later, the rows of segments and captions that are still there may not.
    """
    catalogue.connection.execute("ATTACH ? AS copy", (database_uri(copy, "mode=ro&immutable=1"),))
    try:
        queries = _EQUAL_TABLES if same_revision else _UNCHANGED_ROWS
        versions = (f"PRAGMA {name}.user_version" for name in ("main", "copy"))
        version = min(catalogue.connection.execute(query).fetchone()[0] for query in versions)
        there = {table: query for table, query in queries.items() if version >= _FIRST_VERSIONS.get(table, 1)}
        return [table for table, query in there.items() if catalogue.connection.execute(query).fetchone()[0]]
    finally:
        catalogue.connection.execute("DETACH copy")
