"""The whole query from HTTP in to HTTP out beside the sum of its stages, nothing cached.

    python -m benchmarks.whole_query                  600 queries of one client over the demo's store

The service runs in a process of its own (`emcl serve`, caches off). One client, in another that holds little else (one
with PyTorch in it takes longer to wake up and to read, which is not the service's), keeps one connection open and asks
one text after the other, each only once. For every query: the wall time from before its bytes are sent to after the
last byte of its answer was read, and the stages that the answer itself names (encode, candidates, rerank, answer). Both
are of the same query, so what else runs on the machine slows both; the median of their ratios is the result. Beside it,
the same ratio by the service's own clock (the total of Server-Timing), and the same texts through
`service.search.engine.Engine` in this process.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.load import NO_CACHES, Server, write_queries

WARM_UP = 50
TARGET = 1.3


class Connection:
    """One HTTP/1.1 connection that is kept open; as little between the clock and the socket as there can be."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host = f"{parts.hostname}:{parts.port}".encode()
        self._socket = socket.create_connection((parts.hostname, parts.port), timeout=60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._answer = memoryview(bytearray(1 << 20))  # a new buffer for each would cost page faults

    def search(self, body: bytes) -> tuple[float, bytes, bytes]:
        """Milliseconds until the whole answer was here, its head and its body. Raises ``RuntimeError`` if not 200."""
        request = (
            b"POST /v1/search HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        )
        sent = request % (self._host, len(body)) + body
        size, wanted = 0, 1
        started = time.perf_counter()
        self._socket.sendall(sent)
        while size < wanted:
            size += self._read(size)
            ended = time.perf_counter()  # the clock stops before it is found out that this was all
            wanted = _whole(self._answer[:size])
        head, _, answer = bytes(self._answer[:size]).partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"the service answered {head[:80]!r}: {answer[:300]!r}")
        return 1000 * (ended - started), head, answer

    def _read(self, size: int) -> int:
        read = self._socket.recv_into(self._answer[size:])
        if not read:
            raise RuntimeError("the service closed the connection, or its answer is too long")
        return read

    def close(self) -> None:
        self._socket.close()


def _whole(answer: memoryview) -> int:
    """How many bytes an answer has, of what there is of it; one more than there is if that cannot be said yet."""
    head, end, _ = bytes(answer).partition(b"\r\n\r\n")
    if not end:
        return len(answer) + 1
    return len(head) + len(end) + int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])


@contextmanager
def connected(store: Path) -> Iterator[Connection]:
    """A connection to a service of its own over ``store``."""
    server = Server(store, *NO_CACHES)
    try:
        connection = Connection(server.url)
        try:
            yield connection
        finally:
            connection.close()
    finally:
        server.stop()


def over_http(store: Path, bodies: list[bytes]) -> list[dict[str, float]]:
    """For each query: ``wall``, its stages, and ``timing:`` what the header Server-Timing says; milliseconds."""
    command = [sys.executable, "-m", "benchmarks.whole_query", "--ask", str(store.absolute())]
    root = Path(__file__).parent.parent
    asked = subprocess.run(command, input=b"\n".join(bodies), stdout=subprocess.PIPE, check=True, cwd=root)
    found: list[dict[str, float]] = json.loads(asked.stdout)
    return found


def ask(store: Path, bodies: list[bytes]) -> list[dict[str, float]]:
    """``over_http`` in this process."""
    found = []
    with connected(store) as connection:
        for number, body in enumerate(bodies):
            taken, head, answer = connection.search(body)
            if number < WARM_UP:
                continue
            timing = head.lower().split(b"server-timing:")[1].split(b"\r\n")[0].decode()
            timings = dict(part.strip().split(";dur=") for part in timing.split(","))
            stages = json.loads(answer)["source"]["stage_ms"]
            found.append({"wall": taken, **stages, **{f"timing:{name}": float(ms) for name, ms in timings.items()}})
    return found


def bare(store: Path, texts: list[str]) -> list[dict[str, float]]:
    """For each query: ``wall`` of the engine in this process, and its stages; milliseconds."""
    from service.search.engine import build_engine
    from service.search.values import SearchQuery
    from service.settings import load_settings

    engine = build_engine(load_settings({"store": store, "cache_entries": 0}))
    found = []
    try:
        for number, text in enumerate(texts):
            started = time.perf_counter()
            (result,) = engine.search([SearchQuery(text=text)])
            taken = 1000 * (time.perf_counter() - started)
            if number >= WARM_UP:
                found.append({"wall": taken, **{n: 1000 * s for n, s in result.source.stage_seconds.items()}})
    finally:
        engine.close()
    return found


def measure(store: Path, *, queries: int = 600) -> dict[str, Any]:
    """Medians in milliseconds, and the median ratio of the whole query to the sum of its stages."""
    with tempfile.TemporaryDirectory() as folder:
        lines = write_queries(Path(folder))["cold"].read_text(encoding="utf-8").splitlines()
    bodies = list(dict.fromkeys(lines))[: queries + WARM_UP]
    asked = over_http(store, [body.encode() for body in bodies])
    alone = bare(store, [json.loads(body)["text"] for body in bodies])
    sums = [sum(ms for name, ms in one.items() if name != "wall" and ":" not in name) for one in asked]
    walls = [one["wall"] for one in asked]
    return {
        "queries": len(asked),
        "http_ms": round(statistics.median(walls), 2),
        "http_p95_ms": round(statistics.quantiles(walls, n=20)[-1], 2),
        "sum_of_stages_ms": round(statistics.median(sums), 2),
        "beside_the_stages_ms": round(statistics.median(w - s for w, s in zip(walls, sums, strict=True)), 2),
        "ratio": round(statistics.median(w / s for w, s in zip(walls, sums, strict=True)), 3),
        "ratio_in_the_service": round(
            statistics.median(one["timing:total"] / stages for one, stages in zip(asked, sums, strict=True)), 3
        ),
        "target": TARGET,
        "stages_ms": _medians(asked),
        "bare_engine_ms": _medians(alone),
    }


def _medians(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(statistics.median(row[name] for row in rows), 2) for name in rows[0]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("var/demo"), help="of `emcl demo`")
    parser.add_argument("--queries", type=int, default=600, help="measured, after a warm-up")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--ask", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.ask is not None:
        print(json.dumps(ask(given.ask, sys.stdin.buffer.read().splitlines())))
        return 0
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from service.demo import prepare

    found = measure(prepare(given.folder, 300, say=print), queries=given.queries)
    print(
        f"{found['queries']} queries: HTTP in to HTTP out {found['http_ms']:.2f} ms (p95 {found['http_p95_ms']:.2f}), "
        f"sum of stages {found['sum_of_stages_ms']:.2f} ms, beside them {found['beside_the_stages_ms']:.2f} ms; "
        f"ratio {found['ratio']:.2f} (at most {TARGET} wanted)\n"
        f"by the service's own clock {found['ratio_in_the_service']:.2f}: without reading the request, writing the "
        "answer's head, the sockets and the client\n"
        f"over HTTP: {found['stages_ms']}\nbare engine: {found['bare_engine_ms']}"
    )
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
