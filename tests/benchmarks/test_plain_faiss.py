"""What is measured as "FAISS with defaults" has FAISS's defaults."""

import subprocess
import sys

import faiss
import numpy as np
import pytest

from benchmarks.naive_server import faiss_defaults
from benchmarks.plain_faiss import PlainIndex, shipped_threshold
from indexer.ann import flat

CHANGED = 1


@pytest.fixture(autouse=True)
def _an_index_was_made():
    flat.always_multiply()


def test_the_indexer_changes_what_faiss_ships():
    assert faiss.cvar.distance_compute_blas_threshold == CHANGED
    assert shipped_threshold() != CHANGED


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_plain_index_is_searched_with_the_shipped_switch_and_leaves_the_other(monkeypatch, wrapped):
    seen = []
    straight = faiss.IndexFlatIP.search

    def search(self, *arguments):
        seen.append(faiss.cvar.distance_compute_blas_threshold)
        return straight(self, *arguments)

    monkeypatch.setattr(faiss.IndexFlatIP, "search", search)
    rows_ND = np.eye(4, dtype=np.float32)
    if wrapped:
        index = faiss.IndexFlatIP(4)
        index.add(rows_ND)
        _, found_Qk = PlainIndex(index).search(rows_ND[2:3], 1)
        assert found_Qk[0, 0] == 2
    else:
        assert faiss_defaults(rows_ND)(rows_ND[2], 1)[1][0] == 2
    assert seen == [shipped_threshold()]
    assert faiss.cvar.distance_compute_blas_threshold == CHANGED


def test_the_server_of_the_alternative_has_them_too(tmp_path):
    program = (
        "import faiss, sys; from benchmarks import naive_server as n; "
        "import indexer.store.generation as g; g.load_correction = lambda folder: None; "
        "import numpy as np; np.save(sys.argv[1] + '/vectors.npy', np.eye(128, dtype='f4')); "
        "from pathlib import Path; n.make_app('faiss', Path(sys.argv[1])); "
        "print(faiss.cvar.distance_compute_blas_threshold)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, check=True, text=True)
    assert int(done.stdout) == shipped_threshold()
