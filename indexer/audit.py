"""Questions that only ``emcl index verify`` puts to the catalogue."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from indexer.catalogue import Catalogue
from indexer.features import CAPTIONS, FRAMES, POOLED, Place
from indexer.schema import database_uri

_PLACES = {
    FRAMES.name: "SELECT segment_id, shard, row, frames, crc32 FROM segments ORDER BY shard, row",
    POOLED.name: "SELECT segment_id, pooled_shard, pooled_row, 1, pooled_crc32 FROM segments ORDER BY 2, 3",
    CAPTIONS.name: "SELECT caption_id, shard, row, 1, crc32 FROM captions ORDER BY shard, row",
}

_FIRST_WITH_TITLES = 2  # version of the catalogue; a copy that an earlier one made has no titles

_EQUAL_TABLES = {
    table: f"SELECT EXISTS (SELECT * FROM main.{table} EXCEPT SELECT * FROM copy.{table})"  # noqa: S608
    f" OR EXISTS (SELECT * FROM copy.{table} EXCEPT SELECT * FROM main.{table})"
    for table in ("meta", "shards", "videos", "titles", "locations", "tags", "segments", "captions")
}

_UNCHANGED_ROWS = {
    table: f"SELECT EXISTS (SELECT * FROM copy.{table} WHERE {key} IN (SELECT {key} FROM main.{table})"  # noqa: S608
    f" EXCEPT SELECT * FROM main.{table})"
    for table, key in (("segments", "segment_id"), ("captions", "caption_id"))
}


def places(catalogue: Catalogue, kind: str) -> Iterator[tuple[str, Place]]:
    """Where each row of one kind of shard lies, with a name for what it is, in the order of the files."""
    for number, shard, row, rows, crc32 in catalogue.connection.execute(_PLACES[kind]):
        what = f"{'caption' if kind == CAPTIONS.name else 'segment'} {number}"
        yield what, Place(shard=shard, row=row, rows=rows, crc32=crc32)


def integrity_errors(catalogue: Catalogue) -> list[str]:
    """What SQLite finds wrong with the file and its references."""
    found = [row[0] for row in catalogue.connection.execute("PRAGMA integrity_check") if row[0] != "ok"]
    broken = {row[0] for row in catalogue.connection.execute("PRAGMA foreign_key_check")}
    return found + [f"rows of {table} refer to videos that are not there" for table in sorted(broken)]


def differing_tables(catalogue: Catalogue, copy: Path, *, same_revision: bool) -> list[str]:
    """Tables that differ from those in ``copy``, an earlier ``copy_to`` of this catalogue.

    At the same revision nothing may differ; later, the rows of segments and captions that are still there may not.
    """
    catalogue.connection.execute("ATTACH ? AS copy", (database_uri(copy, "mode=ro&immutable=1"),))
    try:
        queries = _EQUAL_TABLES if same_revision else _UNCHANGED_ROWS
        versions = (f"PRAGMA {name}.user_version" for name in ("main", "copy"))
        if any(catalogue.connection.execute(query).fetchone()[0] < _FIRST_WITH_TITLES for query in versions):
            queries = {table: query for table, query in queries.items() if table != "titles"}
        return [table for table, query in queries.items() if catalogue.connection.execute(query).fetchone()[0]]
    finally:
        catalogue.connection.execute("DETACH copy")
