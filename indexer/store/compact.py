"""Reclaiming the space of removed videos and captions: shards are rewritten without their rows.

Only shards with unused rows are touched. Their remaining rows are appended to new shards, brought to the disk, and then
one transaction of the catalogue names the new places and forgets the old shards: before it nothing has changed, after
it only publishing remains. Ids stay the same. The old files stay as long as a generation that is kept names them, so
readers of that generation are not affected; a run that is killed leaves new files that the next writer removes.
"""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

from indexer.errors import Damaged, StoreError
from indexer.store import generation
from indexer.store.catalogue import PLACES, Catalogue, CatalogueReader
from indexer.store.shards import CAPTIONS, FRAMES, HEADER_BYTES, POOLED, SHARD_KINDS, ShardKind, ShardReader
from indexer.store.writer import StoreWriter

_LIVE_ROWS = {
    FRAMES.name: "SELECT shard, sum(frames) FROM segments GROUP BY shard",
    POOLED.name: "SELECT pooled_shard, count(*) FROM segments GROUP BY pooled_shard",
    CAPTIONS.name: "SELECT shard, count(*) FROM captions GROUP BY shard",
}
_NEW_PLACES = {
    FRAMES.name: "UPDATE segments SET shard = m.shard, row = m.row"
    " FROM temp.moved m WHERE m.kind = 'frames' AND m.id = segments.segment_id",
    POOLED.name: "UPDATE segments SET pooled_shard = m.shard, pooled_row = m.row"
    " FROM temp.moved m WHERE m.kind = 'pooled' AND m.id = segments.segment_id",
    CAPTIONS.name: "UPDATE captions SET shard = m.shard, row = m.row"
    " FROM temp.moved m WHERE m.kind = 'captions' AND m.id = captions.caption_id",
}
_MOVED = """
CREATE TEMP TABLE moved (kind TEXT, id INTEGER, shard INTEGER, row INTEGER, PRIMARY KEY (kind, id)) WITHOUT ROWID
"""

_MOVED_AT_ONCE = 4096


@dataclass(frozen=True, kw_only=True)
class Compaction:
    """What was done: shards written anew, and bytes that their files had and that what remains of them has."""

    shards: int
    before_bytes: int
    after_bytes: int


def compact(writer: StoreWriter, on_row: Callable[[], None] = lambda: None) -> Compaction:
    """Rewrite every shard with unused rows, and commit; publishing is left to the caller.

    ``on_row`` is called for each segment's or caption's rows that are copied. Raises ``StoreError`` if there is not
    enough space, and ``Damaged`` for rows that are not what was written; the store is then as it was.
    """
    loose = {kind.name: loose_shards(writer.catalogue, kind) for kind in SHARD_KINDS}
    row_bytes = {kind.name: kind.row_bytes(writer.settings.dim) for kind in SHARD_KINDS}
    needed = sum(live * row_bytes[kind] for kind, shards in loose.items() for _, live in shards.values())
    free = shutil.disk_usage(writer.path).free
    if needed > free:
        raise StoreError(f"{_no_space(writer)}: {needed} bytes are needed, {free} are free")
    before = {kind.name: writer.catalogue.shard_rows(kind.name) for kind in SHARD_KINDS}
    with _undone(writer, before):
        writer.catalogue.connection.execute("DROP TABLE IF EXISTS temp.moved")
        writer.catalogue.connection.execute(_MOVED)
        for kind in SHARD_KINDS:
            if loose[kind.name]:
                _copy(writer, kind, set(loose[kind.name]), on_row)
        if any(loose.values()):
            _commit(writer, {kind: set(shards) for kind, shards in loose.items() if shards})
    after = {kind.name: writer.catalogue.shard_rows(kind.name) for kind in SHARD_KINDS}
    return Compaction(
        shards=sum(map(len, loose.values())),
        before_bytes=_difference_bytes(writer, before, after),
        after_bytes=_difference_bytes(writer, after, before),
    )


def drop_former(writer: StoreWriter) -> None:
    """Remove all generations but the current one, and the shards that only they named.

    A reader that has one open goes on; one that is just opening it takes the current one instead.
    """
    current = generation.current_name(writer.path)
    for folder in generation.kept(writer.path):
        if folder.name != current:
            shutil.rmtree(folder)
    writer.tidy()


def waiting_bytes(writer: StoreWriter) -> int:
    """Bytes of shards that only former generations name, and that go with them."""
    kinds = {kind.name: writer.catalogue.shard_rows(kind.name) for kind in SHARD_KINDS}
    named = {kind.file_name(n) for kind in SHARD_KINDS for n in kinds[kind.name]}
    folder = writer.path / generation.FEATURES
    return sum(path.stat().st_size for path in folder.glob("*.npy") if path.name not in named)


def loose_shards(catalogue: CatalogueReader, kind: ShardKind) -> dict[int, tuple[int, int]]:
    """Shards with rows that nothing names: committed rows, and those of them that something names."""
    live = dict(catalogue.connection.execute(_LIVE_ROWS[kind.name]).fetchall())
    committed = catalogue.shard_rows(kind.name)
    return {n: (rows, live.get(n, 0)) for n, rows in committed.items() if rows > live.get(n, 0)}


def _copy(writer: StoreWriter, kind: ShardKind, shards: set[int], on_row: Callable[[], None]) -> None:
    """Append the rows in use to new shards, and record their new places in a temporary table."""
    database, target = writer.catalogue.connection, writer.shards[kind.name]
    target.begin_new_shard()
    committed = {n: rows for n, rows in writer.catalogue.shard_rows(kind.name).items() if n in shards}
    moved: list[tuple[str, int, int, int]] = []
    insert = "INSERT INTO temp.moved VALUES (?, ?, ?, ?)"
    with closing(ShardReader(writer.path / generation.FEATURES, kind, writer.settings.dim, committed)) as reader:
        for number, shard, row, rows, crc32 in database.execute(PLACES[kind.name]):
            if shard not in shards:
                continue
            block = reader.rows(shard, row, rows)
            if len(block) != rows or zlib.crc32(block.tobytes()) != crc32:
                what = "caption" if kind == CAPTIONS else "segment"
                raise Damaged(
                    f"{what} {number}: its features in {kind.file_name(shard)} are not what "
                    "was written, so nothing was compacted; `emcl index verify` says how to repair it"
                )
            place = target.append(block)
            moved.append((kind.name, number, place.shard, place.row))
            if len(moved) >= _MOVED_AT_ONCE:
                database.executemany(insert, moved)
                moved = []
            on_row()
    database.executemany(insert, moved)
    target.sync()


def _commit(writer: StoreWriter, loose: dict[str, set[int]]) -> None:
    """Name the new places in one transaction. Nothing that a reader can see changes, so nothing of it is logged."""
    catalogue, database = writer.catalogue, writer.catalogue.connection
    with catalogue.transaction(), _unlogged(catalogue):
        for kind, shards in loose.items():
            database.execute(_NEW_PLACES[kind])
            catalogue.forget_shards(kind, shards)
            for shard in shards:
                del writer.shards[kind].rows[shard]
            catalogue.set_shard_rows({kind: writer.shards[kind].rows})
    database.execute("DROP TABLE temp.moved")


@contextmanager
def _unlogged(catalogue: Catalogue) -> Iterator[None]:
    """Without the triggers that log changes, for what is done inside one transaction."""
    found = "SELECT name, sql FROM main.sqlite_schema WHERE type = 'trigger' AND name LIKE 'log\\_%' ESCAPE '\\'"
    triggers = catalogue.connection.execute(found).fetchall()
    for name, _ in triggers:
        catalogue.connection.execute(f"DROP TRIGGER {name}")
    yield
    for _, sql in triggers:
        catalogue.connection.execute(sql)


@contextmanager
def _undone(writer: StoreWriter, before: dict[str, dict[int, int]]) -> Iterator[None]:
    """Remove the new shards if anything fails before the commit; a full disk becomes a ``StoreError``."""
    try:
        yield
    except BaseException as error:
        for kind in SHARD_KINDS:
            if writer.catalogue.shard_rows(kind.name) == before[kind.name]:
                writer.shards[kind.name].go_back_to(before[kind.name])
        if isinstance(error, OSError):
            raise StoreError(f"{_no_space(writer)}: {error}") from error
        raise


def _no_space(writer: StoreWriter) -> str:
    return (
        f"{writer.path} was not compacted and is unchanged; rows in use are copied before the old files can be deleted"
    )


def _difference_bytes(writer: StoreWriter, these: dict[str, dict[int, int]], others: dict[str, dict[int, int]]) -> int:
    """Bytes of the shards that are in ``these`` alone, which are rows by kind and shard."""
    return sum(
        HEADER_BYTES + rows * kind.row_bytes(writer.settings.dim)
        for kind in SHARD_KINDS
        for shard, rows in these[kind.name].items()
        if shard not in others[kind.name]
    )
