"""What one would otherwise write, beside this program: the same queries over the same vectors, in the same run.

Two comparisons, because they answer two questions:

* *Stage 1 alone*, in one process: a query's vector in, its nearest segments out. This is all that the alternatives do.
* *The whole query over HTTP*: a text in, hits out. Here this program also reranks every candidate by its frames and
  names the moment; the alternatives do not, and a line with reranking off shows what that costs.

Servers are real ones in processes of their own; one client at a time, and several. All caches are off. Agreement says
how many of the exact search's first hits each finds: for the reranked line it is low on purpose, because reranking
changes the order.

Legend: Q queries, N vectors, D channels, k neighbours.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.corpus import captions, write_demo_store
from benchmarks.harness import Scale, Task, environment, interleave, reading
from benchmarks.naive_server import MAKERS
from benchmarks.report_rows import Row
from benchmarks.vectors import Floats, recall, same_first

NEIGHBOURS, HITS = 100, 10
CLIENTS = 16
READY_SECONDS = 120.0
OURS, OURS_STAGE_1 = "this program: search, rerank, moments", "this program, reranking off"
PLAIN = {"faiss": "FAISS with defaults", "torch": "brute force in PyTorch", "numpy": "exact search in NumPy"}
NO_CACHES = ("--cache-entries", "0", "--result-cache-bytes", "0")


def measure(scale: Scale) -> Iterator[Row]:
    """The section of the report."""
    from indexer.store import generation
    from indexer.store.reader import StoreReader
    from model.encoder import load_encoder

    encoder = load_encoder("demo", device="cpu")
    texts = captions(scale.pick(1200, 60))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = write_demo_store(folder / "store", encoder, count=scale.pick(100_000, 1000))
        with StoreReader.open(store) as reader:
            ids_N = reader.segment_ids()
            vectors_ND = reader.correction.items(reader.segment_embeddings(ids_N), "videos")
            queries_QD = reader.correction.queries(encoder.encode_texts(texts[:200]), "text", "videos")
            yield from _stage_1(reader, ids_N, vectors_ND, queries_QD, scale)
        np.save(folder / "vectors.npy", vectors_ND)
        manifest = generation.read_current(store)
        shutil.copy(store / generation.GENERATIONS / manifest.generation / generation.FROZEN_MAP, folder)
        size = len(vectors_ND)
        del vectors_ND
        with ExitStack() as servers:
            asks = _servers(servers, folder, store)
            yield from _whole(asks, texts, size, scale)


def _stage_1(
    reader: Any, ids_N: npt.NDArray[np.int64], vectors_ND: Floats, queries_QD: Floats, scale: Scale
) -> Iterator[Row]:
    """The alternatives' whole job: row numbers of the nearest vectors."""
    searches: dict[str, Callable[[Floats], npt.NDArray[np.int64]]] = {
        "this program": lambda query_D: np.searchsorted(ids_N, reader.search_videos(query_D[None], NEIGHBOURS)[1][0])
    }
    for name, title in PLAIN.items():
        search = MAKERS[name](vectors_ND)
        searches[title] = partial(lambda search, query_D: search(query_D, NEIGHBOURS)[1], search)
    found = {title: np.stack([search(query_D) for query_D in queries_QD]) for title, search in searches.items()}
    turns = {title: _turning(search, queries_QD) for title, search in searches.items()}
    times = interleave(
        {**turns, "floor": reading(vectors_ND)}, rounds=scale.pick(100, 6), clock="wall", budget_seconds=40
    )
    true_Qk = found[PLAIN["numpy"]]
    for title in searches:
        yield Row(
            name=f"stage 1: {title}",
            clock="wall",
            samples=times[title],
            floor="reading the vectors once",
            floor_samples=times["floor"],
            note=f"{len(vectors_ND):,} x {vectors_ND.shape[1]}, k = {NEIGHBOURS}",
            ours=title == "this program",
            facts={
                "group": "Stage 1 alone, in one process",
                "label": title,
                f"recall@{NEIGHBOURS}": recall(found[title], true_Qk),
                "same first hit": same_first(found[title], true_Qk),
            },
        )


def _turning(search: Callable[[Floats], object], queries_QD: Floats) -> Task:
    """Another query every time."""
    numbers = count()
    return lambda: search(queries_QD[next(numbers) % len(queries_QD)])


Ask = Callable[[str], list[str]]


def _servers(servers: ExitStack, folder: Path, store: Path) -> dict[str, Callable[[], Ask]]:
    """Start them all; for each, what makes a client of it: text in, names of the hits out."""
    serve = [sys.executable, "-m", "service.cli", "serve", "--store", str(store), "--port", "0"]
    ours = servers.enter_context(_serving([*serve, *NO_CACHES, "--log-level", "info"]))
    visual = {"k": HITS, "fusion": "visual"}  # the naive service knows no words either
    clients: dict[str, Callable[[], Ask]] = {
        OURS: partial(_client, servers, f"{ours}/v1/search", visual, _hits),
        OURS_STAGE_1: partial(_client, servers, f"{ours}/v1/search", visual | {"rerank": "frozen"}, _hits),
    }
    names = _video_names(store)
    for engine, title in PLAIN.items():
        url = servers.enter_context(_serving([sys.executable, "-m", "benchmarks.naive_server", engine, str(folder)]))
        titles = partial(_rows, names)
        clients[f"{title} behind a FastAPI route"] = partial(_client, servers, f"{url}/search", {"k": HITS}, titles)
    return clients


def _client(servers: ExitStack, url: str, options: dict[str, Any], read_titles: Callable[[Any], list[str]]) -> Ask:
    import httpx

    client = servers.enter_context(httpx.Client(timeout=60))

    def ask(text: str) -> list[str]:
        answer = client.post(url, json={"text": text, **options})
        answer.raise_for_status()
        return read_titles(answer.json())

    return ask


def _hits(answer: Any) -> list[str]:
    return [hit["video_id"] for hit in answer["hits"]]


def _rows(names: list[str], answer: Any) -> list[str]:
    return [names[row] for row in answer["rows"]]


def _video_names(store: Path) -> list[str]:
    """The video of each row of the vectors; every video of this store has one segment."""
    from indexer.store.reader import StoreReader

    with StoreReader.open(store) as reader:
        return [segment.video_id for segment in reader.segments(reader.segment_ids())]


def _whole(clients: dict[str, Callable[[], Ask]], texts: list[str], size: int, scale: Scale) -> Iterator[Row]:
    asks = {title: make() for title, make in clients.items()}
    exact = f"{PLAIN['numpy']} behind a FastAPI route"
    found = {title: [ask(text) for text in texts[: scale.pick(100, 10)]] for title, ask in asks.items()}
    turns = {title: _asking(ask, texts) for title, ask in asks.items()}
    times = interleave(turns, rounds=scale.pick(150, 6), clock="wall", warm_up=5, budget_seconds=60)
    crowd = {title: _crowd([make() for _ in range(CLIENTS)], texts) for title, make in clients.items()}
    with ThreadPoolExecutor(CLIENTS) as pool:
        tasks = {title: partial(task, pool) for title, task in crowd.items()}
        crowded = interleave(tasks, rounds=scale.pick(25, 2), clock="wall", warm_up=1, budget_seconds=60)
    for group, taken in (("one client", times), (f"{CLIENTS} clients, per query", crowded)):
        share = CLIENTS if taken is crowded else 1
        for title in asks:
            yield Row(
                name=f"HTTP, {group}: {title}",
                clock="wall",
                samples=tuple(seconds / share for seconds in taken[title]),
                floor=f"FAISS with defaults behind a FastAPI route, {group}",
                floor_samples=tuple(seconds / share for seconds in taken[f"{PLAIN['faiss']} behind a FastAPI route"]),
                note=f"{size:,} segments, {HITS} hits, another text every time, no caches",
                ours=title in (OURS, OURS_STAGE_1),
                facts={
                    "group": f"Whole query over HTTP, {group}",
                    "label": title,
                    "reranks, gives moments": title == OURS,
                    f"exact first {HITS} found": _overlap(found[title], found[exact]),
                },
            )


def _asking(ask: Ask, texts: list[str]) -> Task:
    numbers = count()
    return lambda: ask(texts[next(numbers) % len(texts)])


def _crowd(asks: list[Ask], texts: list[str]) -> Callable[[ThreadPoolExecutor], object]:
    """One query from each of many clients at once; done when all are answered."""
    numbers = count()

    def run(pool: ThreadPoolExecutor) -> object:
        waiting = [pool.submit(ask, texts[next(numbers) % len(texts)]) for ask in asks]
        return [one.result() for one in waiting]

    return run


def _overlap(found: list[list[str]], exact: list[list[str]]) -> float:
    shares = [len(set(mine) & set(true)) / len(true) for mine, true in zip(found, exact, strict=True)]
    return float(np.mean(shares))


@contextmanager
def _serving(command: list[str]) -> Iterator[str]:
    """A server in a process of its own, ready; gives its address. Raises ``RuntimeError`` with its log otherwise."""
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, env=environment(cores))
        try:
            yield _address(process, log)
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    import httpx

    until = time.monotonic() + READY_SECONDS
    while time.monotonic() < until and process.poll() is None:
        match = re.search(r"running on (http://[0-9.:]+)", log.read_text(encoding="utf-8"))
        if match:
            try:
                if httpx.get(f"{match[1]}/health/ready", timeout=10).status_code == 200:
                    return match[1]
            except httpx.HTTPError:
                pass  # not yet
        time.sleep(0.1)
    raise RuntimeError(f"{' '.join(command_of(process))} did not get ready:\n{log.read_text(encoding='utf-8')[-2000:]}")


def command_of(process: subprocess.Popen[bytes]) -> list[str]:
    """What a process was started with."""
    return [str(part) for part in process.args] if isinstance(process.args, list) else [str(process.args)]


def main() -> None:
    """Measure and print."""
    for row in measure(Scale(quick="--quick" in sys.argv)):
        print(json.dumps(row.to_json()))


if __name__ == "__main__":
    main()
