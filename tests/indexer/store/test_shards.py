"""Shards: what is appended is read back, whatever else follows it."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest

from indexer.errors import Damaged, FeatureError
from indexer.store.shards import CAPTIONS, FRAMES, HEADER_BYTES, POOLED, ShardKind, ShardReader, ShardWriter, to_half

DIM = 6


def writer(folder: Path, kind: ShardKind = FRAMES, rows: dict[int, int] | None = None, **options: int) -> ShardWriter:
    return ShardWriter(folder=folder, kind=kind, dim=DIM, rows=dict(rows or {}), **options)


def block(count: int, start: int = 0) -> np.ndarray:
    return (np.arange(count * DIM).reshape(count, DIM) + start).astype(np.float16)


def test_rows_come_back_and_numpy_reads_the_file(tmp_path: Path) -> None:
    shards = writer(tmp_path)
    first, second = shards.append(block(3)), shards.append(block(2, 100))
    shards.sync()
    shards.close()
    assert (first.shard, first.row, first.rows) == (0, 0, 3)
    assert (second.shard, second.row, second.rows) == (0, 3, 2)
    assert second.crc32 == zlib.crc32(block(2, 100).tobytes())
    expected = np.concatenate([block(3), block(2, 100)])
    np.testing.assert_array_equal(np.load(tmp_path / "000000.npy"), expected)
    reader = ShardReader(tmp_path, FRAMES, DIM, shards.rows)
    np.testing.assert_array_equal(reader.rows(0, 3, 2), block(2, 100))
    reader.close()


def test_a_full_shard_is_closed_and_no_block_is_split(tmp_path: Path) -> None:
    shards = writer(tmp_path, max_bytes=HEADER_BYTES + 5 * DIM * 2)
    places = [shards.append(block(2, 10 * n)) for n in range(5)]
    shards.sync()
    shards.close()
    assert [(p.shard, p.row) for p in places] == [(0, 0), (0, 2), (1, 0), (1, 2), (2, 0)]
    assert shards.rows == {0: 4, 1: 4, 2: 2}
    assert len(np.load(tmp_path / "000001.npy")) == 4


def test_a_block_larger_than_a_shard_gets_one_of_its_own(tmp_path: Path) -> None:
    shards = writer(tmp_path, max_bytes=HEADER_BYTES + DIM * 2)
    assert [shards.append(block(4)).shard for _ in range(2)] == [0, 1]
    shards.close()


def test_kinds_lie_side_by_side(tmp_path: Path) -> None:
    for kind in (FRAMES, POOLED, CAPTIONS):
        shards = writer(tmp_path, kind)
        shards.append(block(1).astype(kind.dtype))
        shards.sync()
        shards.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000000.npy", "captions-000000.npy", "pooled-000000.npy"]


def test_opening_cuts_off_rows_and_shards_that_were_never_committed(tmp_path: Path) -> None:
    shards = writer(tmp_path, max_bytes=HEADER_BYTES + 4 * DIM * 2)
    shards.append(block(2))
    shards.sync()
    committed = dict(shards.rows)
    shards.append(block(2, 50))
    shards.append(block(4, 90))
    shards.sync()
    shards.close()
    assert (tmp_path / "000001.npy").exists()
    again = writer(tmp_path, rows=committed)
    assert not (tmp_path / "000001.npy").exists()
    np.testing.assert_array_equal(np.load(tmp_path / "000000.npy"), block(2))
    assert again.append(block(1, 7)).row == 2
    again.sync()
    again.close()
    np.testing.assert_array_equal(np.load(tmp_path / "000000.npy")[2], block(1, 7)[0])


def test_a_shard_of_a_writer_that_committed_nothing_is_deleted(tmp_path: Path) -> None:
    shards = writer(tmp_path)
    shards.append(block(2))
    shards.close()
    pooled = writer(tmp_path, POOLED)
    assert (tmp_path / "000000.npy").exists(), "other kinds are not touched"
    pooled.close()
    writer(tmp_path).close()
    assert list(tmp_path.iterdir()) == []


def test_a_reader_sees_only_committed_rows(tmp_path: Path) -> None:
    shards = writer(tmp_path)
    shards.append(block(2))
    shards.sync()
    reader = ShardReader(tmp_path, FRAMES, DIM, {0: 2})
    shards.append(block(2, 30))
    shards.sync()
    assert len(reader.rows(0, 0, 99)) == 2
    shards.close()


def test_gathering_pads_with_zeros_and_crosses_shards(tmp_path: Path) -> None:
    shards = writer(tmp_path, max_bytes=HEADER_BYTES + 3 * DIM * 2)
    places = [shards.append(block(n, 10 * n)) for n in (1, 2, 3)]
    shards.sync()
    shards.close()
    reader = ShardReader(tmp_path, FRAMES, DIM, shards.rows)
    order = [2, 0, 1]
    numbers = np.array([[places[i].shard, places[i].row, places[i].rows] for i in order] + [[0, 0, 0]])
    out = reader.gather_blocks(numbers[:, 0], numbers[:, 1], numbers[:, 2], 3)
    assert out.shape == (4, 3, DIM)
    for row, i in enumerate(order):
        n = places[i].rows
        np.testing.assert_array_equal(out[row, :n], block(n, 10 * n))
        assert not out[row, n:].any()
    assert not out[3].any()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "its 2 rows need"),
        (lambda path: path.write_bytes(b"\x00" + path.read_bytes()[1:]), "does not begin with the header"),
        (lambda path: path.write_bytes(path.read_bytes().replace(b"<f2", b"<f4", 1)), "does not begin"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, damage, reason: str) -> None:
    shards = writer(tmp_path)
    shards.append(block(2))
    shards.sync()
    shards.close()
    damage(tmp_path / "000000.npy")
    with pytest.raises(Damaged, match=reason):
        ShardReader(tmp_path, FRAMES, DIM, {0: 2})


def test_a_writer_refuses_a_shard_shorter_than_its_committed_rows(tmp_path: Path) -> None:
    shards = writer(tmp_path)
    shards.append(block(2))
    shards.sync()
    shards.close()
    with pytest.raises(Damaged, match="committed rows need"):
        writer(tmp_path, rows={0: 3})


@pytest.mark.parametrize("value", [70000.0, -70000.0, np.inf, np.nan])
def test_values_beyond_half_precision_name_the_video(value: float) -> None:
    with pytest.raises(FeatureError, match="cat: the largest"):
        to_half(np.array([[1.0, value]], dtype=np.float32), what="cat")


def test_the_largest_half_is_kept() -> None:
    assert to_half(np.array([[65504.0]], dtype=np.float32), what="x")[0, 0] == 65504
