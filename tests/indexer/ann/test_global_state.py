"""FAISS's switch to matrix products: imports leave it alone, whatever makes or searches an index sets it first."""

import subprocess
import sys
from types import SimpleNamespace

import faiss
import numpy as np
import pytest

from indexer.ann import index as ann

SHIPPED = 128_000
ROWS_ND = np.eye(64, dtype=np.float32)


@pytest.fixture
def _as_shipped():
    before = faiss.cvar.distance_compute_blas_threshold
    faiss.cvar.distance_compute_blas_threshold = SHIPPED
    yield
    faiss.cvar.distance_compute_blas_threshold = before


def test_an_import_changes_nothing_of_faiss():
    read = "faiss.cvar.distance_compute_blas_threshold"
    program = f"import faiss; before = {read}; import indexer.store.reader, indexer.build.run, service.app; " + (
        f"print(before == {read})"
    )
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True, text=True)
    assert done.stdout.strip() == "True"


@pytest.mark.usefixtures("_as_shipped")
@pytest.mark.parametrize("factory", ["Flat", "IVF4,Flat", "HNSW8", "PCA32,Flat"])
def test_building_and_loading_an_index_set_the_switch(tmp_path, factory):
    recipe = SimpleNamespace(factory=factory, options="")
    built = ann.build(recipe, 64, np.arange(64), [ROWS_ND], train_rows=np.tile(ROWS_ND, (4, 1)))
    assert faiss.cvar.distance_compute_blas_threshold == 1
    built.save(tmp_path / "index.faiss")

    faiss.cvar.distance_compute_blas_threshold = SHIPPED
    ann.load(tmp_path / "index.faiss", np.arange(64))
    assert faiss.cvar.distance_compute_blas_threshold == 1
