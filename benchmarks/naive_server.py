"""What one would write without this program: a text tower, vectors, and one route. Deliberately plain.

    python -m benchmarks.naive_server faiss|torch|numpy FOLDER

``FOLDER`` holds ``vectors.npy`` (unit rows, the same that the program's own index holds) and ``emcl_map.npz`` (so that
queries meet the same vectors). The text tower is the shipped model's, in PyTorch, as it comes. There is no reranking,
no moment, no paging, no filter, no limit on anything, and no batching.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

Floats = npt.NDArray[np.float32]
Search = Callable[[Floats, int], tuple[Floats, npt.NDArray[np.int64]]]
ENGINES = ("faiss", "torch", "numpy")


class Asked(BaseModel):
    """A query."""

    text: str
    k: int = 10


def faiss_defaults(vectors_ND: Floats) -> Search:
    """FAISS's flat index as its tutorial makes it, and with the defaults that it has there."""
    import faiss

    from benchmarks.plain_faiss import PlainIndex

    index = faiss.IndexFlatIP(vectors_ND.shape[1])
    index.add(vectors_ND)
    plain = PlainIndex(index)

    def search(query_D: Floats, k: int) -> tuple[Floats, npt.NDArray[np.int64]]:
        scores, ids = plain.search(query_D[None], k)
        return scores[0], ids[0]

    return search


def torch_brute_force(vectors_ND: Floats) -> Search:
    """A matrix product and ``topk``."""
    import torch

    rows_ND = torch.from_numpy(vectors_ND)

    def search(query_D: Floats, k: int) -> tuple[Floats, npt.NDArray[np.int64]]:
        with torch.inference_mode():
            best = torch.topk(rows_ND @ torch.from_numpy(query_D), k)
        return best.values.numpy(), best.indices.numpy()

    return search


def numpy_exact(vectors_ND: Floats) -> Search:
    """A matrix product, ``argpartition``, and a sort of what it leaves."""

    def search(query_D: Floats, k: int) -> tuple[Floats, npt.NDArray[np.int64]]:
        scores_N = vectors_ND @ query_D
        best = np.argpartition(scores_N, -k)[-k:]
        best = best[np.argsort(-scores_N[best], kind="stable")]
        return scores_N[best], best

    return search


MAKERS: dict[str, Callable[[Floats], Search]] = {
    "faiss": faiss_defaults,
    "torch": torch_brute_force,
    "numpy": numpy_exact,
}


def make_app(engine: str, folder: Path) -> Any:
    """The application: ``POST /search`` with a text gives scores and row numbers."""
    from fastapi import FastAPI

    from benchmarks.plain_faiss import restore_defaults
    from indexer.store.generation import load_correction
    from model.encoder import load_encoder

    restore_defaults()  # importing the indexer has changed them
    search = MAKERS[engine](np.load(folder / "vectors.npy"))
    encoder = load_encoder("demo", device="cpu")
    correction = load_correction(folder)
    app = FastAPI()

    @app.get("/health/ready")
    def ready() -> str:
        return "yes"

    @app.post("/search")
    def answer(asked: Asked) -> dict[str, list[float] | list[int]]:
        query_D = correction.queries(encoder.encode_texts([asked.text]), "text", "videos")[0]
        scores, rows = search(query_D, asked.k)
        return {"scores": scores.tolist(), "rows": rows.tolist()}

    return app


def main() -> None:
    """Serve on a free port; uvicorn says which."""
    import uvicorn

    engine, folder = sys.argv[1:]
    uvicorn.run(make_app(engine, Path(folder)), host="127.0.0.1", port=0)


if __name__ == "__main__":
    main()
