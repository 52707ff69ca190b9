"""The embedded store keeps the contract of ``indexer.library.Library``, published or with changes over it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from index_support import DIM, FakeEncoder, fill, settings
from library_contract import check_library

from indexer.library import EVERYTHING, Wanted
from indexer.store.reader import StoreReader
from indexer.store.writer import StoreWriter

TEXTS = np.random.default_rng(0).standard_normal((4, DIM)).astype(np.float32)


@pytest.mark.parametrize("later", [False, True])
def test_the_embedded_store_answers_as_an_exhaustive_search(tmp_path: Path, later: bool) -> None:
    with StoreWriter.open(tmp_path / "s", settings=settings()) as writer:
        fill(writer, range(12))
        writer.publish(FakeEncoder())
        if later:
            fill(writer, range(12, 15))
            writer.remove_videos([f"{5:064x}"])
    with StoreReader.open(tmp_path / "s") as view:
        check_library(view, view, TEXTS, ks=(1, 3, 50))


def test_exceptions_add_up_and_keep_their_order() -> None:
    once = Wanted(tags=("a",)).leaving_out(videos=["v2"], segments=[3])
    twice = once.leaving_out(videos=["v1", "v2"], segments=[1])
    assert twice == Wanted(tags=("a",), without_videos=("v1", "v2"), without_segments=(1, 3))
    assert twice.without_exceptions == Wanted(tags=("a",))
    assert EVERYTHING.is_everything
    assert not EVERYTHING.leaving_out(segments=[1]).is_everything
