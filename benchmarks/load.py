"""What the service answers under load, beside what the bare model and index take for the same queries.

    python -m benchmarks.load                        1, 10, 50 and 200 clients, without and with caches, 20 s each
    python -m benchmarks.load --soak 600             50 clients for ten minutes: errors, and memory over time
    python -m benchmarks.load --refusals 20          100 clients that never give up, a queue of 32: who waits how long
    python -m benchmarks.load --workers 2            one process and several on the same store, 16 clients, in turns
    python -m benchmarks.load --workers 2 --model ViT-B-32-quickgelu --pretrained FILE    with a model of real size

Load comes from wrk (Debian's package), another process; the service is `emcl serve` over the demo's store. Every
request is a full search (100 candidates, EM pass, 10 hits). Queries are captions that the generator writes, thousands
of different ones without caches, 200 with them. "Bare" calls `service.search.engine.Engine.search` in this process with
the same queries, one by one and 32 at a time; its text cache is off.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

CLIENTS = (1, 10, 50, 200)
COLD, WARM = 20_000, 200
BATCH = 32
FEW_CLIENTS = 16
LUA, REFUSALS_LUA = Path(__file__).with_name("load.lua"), Path(__file__).with_name("refusals.lua")
HAMMERING, SHORT_QUEUE = 100, 32
REFUSAL_TARGET_MS = 50
NO_CACHES = ("--cache-entries", "0", "--result-cache-bytes", "0")


def write_queries(folder: Path) -> dict[str, Path]:
    """Files of request bodies, one a line: many different texts, and few."""
    from model.demo.captions import captions_of
    from model.demo.scene import make_scene

    texts = [captions_of(make_scene(1, "test", index), 1, index)[0] for index in range(COLD)]
    files = {}
    for name, some in (("cold", texts), ("warm", texts[:WARM])):
        files[name] = folder / f"{name}.jsonl"
        files[name].write_text("".join(json.dumps({"text": text}) + "\n" for text in some), encoding="utf-8")
    return files


class Server:
    """`emcl serve` in a process of its own."""

    def __init__(self, store: Path, *options: str) -> None:
        command = [sys.executable, "-m", "service.cli", "serve", "--store", str(store), "--port", "0", *options]
        self._log = tempfile.NamedTemporaryFile("w+", suffix=".log")  # noqa: SIM115 - it lives as long as the server
        self.process = subprocess.Popen([*command, "--log-level", "info"], stdout=self._log, stderr=self._log)
        self.url = self._wait()

    def _wait(self) -> str:
        for _ in range(1200):
            text = Path(self._log.name).read_text(encoding="utf-8")
            found = re.search(r"running on (http://[0-9.:]+)", text)
            if found and _answers(f"{found[1]}/health/ready"):
                return found[1]
            if self.process.poll() is not None:
                raise SystemExit(f"the service ended:\n{text}")
            time.sleep(0.1)
        raise SystemExit(f"the service did not get ready:\n{text}")

    def memory_mib(self) -> float:
        """Resident memory of the serving process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def wrk(url: str, queries: Path, clients: int, seconds: float) -> dict[str, Any]:
    """Load from wrk's own process; its latencies count from before the request is sent."""
    threads = min(2, clients)
    command = ["wrk", f"-t{threads}", f"-c{clients}", f"-d{int(seconds)}s", "--timeout", "30s", "-s", str(LUA), url]
    output = subprocess.run([*command, "--", str(queries)], check=True, capture_output=True, text=True).stdout
    found = json.loads(output.splitlines()[-1])
    return {"clients": clients, "per_second": round(found["requests"] / found["seconds"], 1), **found}


def bare(store: Path, queries: Path, seconds: float) -> dict[str, float]:
    """Milliseconds a query of the engine alone: one by one, and in batches."""
    from service.search.engine import build_engine
    from service.search.values import Ranking, SearchQuery
    from service.settings import load_settings

    texts = [json.loads(line)["text"] for line in queries.read_text(encoding="utf-8").splitlines()]
    engine = build_engine(load_settings({"store": store, "cache_entries": 0}))
    try:
        found = {}
        for name, size in (("one", 1), ("batch", BATCH)):
            taken, at, end = [], 0, time.monotonic() + seconds
            while time.monotonic() < end:
                batch = [SearchQuery(text=texts[(at + n) % len(texts)], ranking=Ranking()) for n in range(size)]
                at += size
                started = time.perf_counter()
                engine.search(batch)
                taken.append((time.perf_counter() - started) * 1000 / size)
            found[name] = round(statistics.median(taken), 2)
        return found
    finally:
        engine.close()


def ladder(store: Path, files: dict[str, Path], seconds: float) -> dict[str, Any]:
    """Every number of clients, without caches and with warm ones."""
    rows = []
    for caches, options in (("off", NO_CACHES), ("on", ())):
        server = Server(store, *options)
        try:
            queries = files["cold" if caches == "off" else "warm"]
            wrk(server.url, queries, 10, 5)  # warm up
            for clients in CLIENTS:
                row = {"caches": caches, **wrk(server.url, queries, clients, seconds)}
                rows.append({**row, "memory_mib": round(server.memory_mib())})
                print(json.dumps(rows[-1]), flush=True)
        finally:
            server.stop()
    return {"bare_ms_per_query": bare(store, files["cold"], seconds / 2), "rows": rows}


def soak(store: Path, files: dict[str, Path], seconds: float, clients: int) -> dict[str, Any]:
    """One load for long, in ten parts; memory after each."""
    server = Server(store, *NO_CACHES)
    try:
        wrk(server.url, files["cold"], clients, 10)
        parts = []
        for _ in range(10):
            part = wrk(server.url, files["cold"], clients, seconds / 10)
            parts.append({**part, "memory_mib": round(server.memory_mib())})
            print(json.dumps(parts[-1]), flush=True)
        return {"soak": parts}
    finally:
        server.stop()


def refusals(store: Path, files: dict[str, Path], seconds: float) -> dict[str, Any]:
    """Clients that ask again as soon as they are answered, far over capacity: latencies of answers and refusals.

    Client and server share this machine, and all that the clients do beside it counts too.
    """
    queue = ("--max-queue", str(SHORT_QUEUE), "--max-texts", "8")
    server = Server(store, *NO_CACHES, *queue)
    command = ["wrk", f"-t{HAMMERING}", f"-c{HAMMERING}", "--timeout", "30s", "-s", str(REFUSALS_LUA)]
    try:
        wrk(server.url, files["cold"], 10, 3)  # warm up
        run = [*command, f"-d{max(1, int(seconds))}s", server.url, "--", str(files["cold"])]
        output = subprocess.run(run, check=True, capture_output=True, text=True).stdout
        memory_mib = round(server.memory_mib())
    finally:
        server.stop()
    found = json.loads(output.splitlines()[-1])
    answered, refused = _latencies(found.pop("latencies"))
    return {
        "clients": HAMMERING,
        "max_queue": SHORT_QUEUE,
        "answered": _spread(answered, found["seconds"]),
        "refused": {**_spread(refused, found["seconds"]), "target_p95_ms": REFUSAL_TARGET_MS},
        "memory_mib": memory_mib,
        **found,
    }


def workers(store: Path, files: dict[str, Path], seconds: float, count: int, *, rounds: int = 5) -> dict[str, Any]:
    """One process and ``count`` of them over one store, up at the same time and asked in turns; what a worker costs.

    wrk takes a part of the cores too, the same for both.
    """
    single = Server(store, *NO_CACHES, "--workers", "1")
    several = Server(store, *NO_CACHES, "--workers", str(count))
    try:
        for server in (single, several):
            wrk(server.url, files["cold"], FEW_CLIENTS, 5)  # warm up
        pairs = []
        for number in range(rounds):
            order = (single, several) if number % 2 else (several, single)
            found = {id(server): wrk(server.url, files["cold"], FEW_CLIENTS, seconds / rounds) for server in order}
            pairs.append((found[id(single)], found[id(several)]))
            print(json.dumps({"one": pairs[-1][0]["per_second"], "several": pairs[-1][1]["per_second"]}), flush=True)
        ratios = [more["per_second"] / one["per_second"] for one, more in pairs]
        errors = sum(
            row[name] for pair in pairs for row in pair for name in ("status_errors", "timeouts", "socket_errors")
        )
        processes = _processes(several.process.pid)
        return {
            "workers": count,
            "clients": FEW_CLIENTS,
            "one_per_second": round(statistics.median(one["per_second"] for one, _ in pairs), 1),
            "several_per_second": round(statistics.median(more["per_second"] for _, more in pairs), 1),
            "one_p50_ms": round(statistics.median(one["p50_ms"] for one, _ in pairs), 1),
            "several_p50_ms": round(statistics.median(more["p50_ms"] for _, more in pairs), 1),
            "ratio": [round(part, 2) for part in (statistics.median(ratios), min(ratios), max(ratios))],
            "errors": errors,
            "one_pss_mib": round(_pss_mib(single.process.pid)),
            "several_pss_mib": [round(_pss_mib(pid)) for pid in processes],
        }
    finally:
        single.stop()
        several.stop()


def _processes(pid: int) -> list[int]:
    """A process and all that descend from it."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    return [pid, *(found for child in children for found in _processes(int(child)))]


def _pss_mib(pid: int) -> float:
    """A process's share of memory: its own pages, and its part of those that it shares."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8")
    return int(re.search(r"^Pss:\s+(\d+)", rollup, re.M)[1]) / 1024


def store_of(folder: Path, segments: int, model: str | None, pretrained: str | None) -> Path:
    """The demo's store, or one of drawn segments for another model."""
    from service.demo import prepare

    if model is None:
        return prepare(folder, 300, say=print)
    from benchmarks.corpus import write_demo_store
    from indexer.store.config import ModelSpec
    from model.encoder import load_encoder

    store = folder / f"store-{segments}"
    if not (store / "CURRENT").exists():
        encoder = load_encoder(model, pretrained=pretrained, device="cpu", runtime="auto", precision="auto")
        write_demo_store(store, encoder, count=segments, spec=ModelSpec(model=model, pretrained=pretrained))
    return store


def _latencies(text: str) -> tuple[list[float], list[float]]:
    """Milliseconds of answers and of refusals: parts of `answers;refusals` between bars, numbers between commas."""
    kinds: tuple[list[float], list[float]] = ([], [])
    for part in text.split("|"):
        for kind, numbers in zip(kinds, part.split(";"), strict=True):
            kind += [float(number) for number in numbers.split(",") if number]
    return kinds


def _spread(milliseconds: list[float], seconds: float) -> dict[str, float]:
    if len(milliseconds) < 100:
        raise SystemExit(f"only {len(milliseconds)} answers of a kind: too few to say anything; run for longer")
    cuts = statistics.quantiles(milliseconds, n=100)
    return {
        "per_second": round(len(milliseconds) / seconds, 1),
        **{f"p{part}_ms": round(cuts[part - 1], 1) for part in (50, 95, 99)},
        "max_ms": round(max(milliseconds), 1),
    }


def table(report: dict[str, Any]) -> str:
    """Markdown."""
    lines = ["| caches | clients | requests/s | p50 ms | p95 ms | p99 ms | errors | MiB |", "|---" * 8 + "|"]
    for row in report["rows"]:
        errors = row["status_errors"] + row["timeouts"] + row["socket_errors"]
        latencies = " | ".join(f"{row[name]:.1f}" for name in ("p50_ms", "p95_ms", "p99_ms"))
        lines.append(
            f"| {row['caches']} | {row['clients']} | {row['per_second']:.0f} | {latencies} | {errors} | "
            f"{row['memory_mib']} |"
        )
    alone = next(row for row in report["rows"] if row["caches"] == "off" and row["clients"] == 1)
    busy = max((row for row in report["rows"] if row["caches"] == "off"), key=lambda row: row["per_second"])
    one, batch = report["bare_ms_per_query"]["one"], report["bare_ms_per_query"]["batch"]
    lines += [
        "",
        f"bare engine: {one:.1f} ms a query one by one, {batch:.1f} ms in batches of {BATCH}; one client over HTTP "
        f"{alone['p50_ms']:.1f} ms: HTTP and batching add {alone['p50_ms'] - one:.1f} ms. Best throughput "
        f"{busy['per_second']:.0f}/s is {busy['per_second'] * batch / 1000:.2f} of the bare engine's in batches.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("var/demo"), help="of `emcl demo`")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--soak", type=float, metavar="SECONDS", help="one load for this long instead")
    parser.add_argument("--clients", type=int, default=50, help="of the soak")
    parser.add_argument("--refusals", type=float, metavar="SECONDS", help="far over capacity for this long instead")
    parser.add_argument("--workers", type=int, metavar="N", help="one process against N instead")
    parser.add_argument("--model", help="another model than the demo's, for a store of drawn segments")
    parser.add_argument("--pretrained", help="tag or weights file of that model")
    parser.add_argument("--segments", type=int, default=10_000, help="of that store")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed (Debian: apt-get install wrk)")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    store = store_of(arguments.folder, arguments.segments, arguments.model, arguments.pretrained)
    with tempfile.TemporaryDirectory() as folder:
        files = write_queries(Path(folder))
        if arguments.soak:
            report = soak(store, files, arguments.soak, arguments.clients)
        elif arguments.workers:
            report = workers(store, files, arguments.seconds, arguments.workers)
            print(json.dumps(report, indent=2))
        elif arguments.refusals:
            report = refusals(store, files, arguments.refusals)
            print(json.dumps(report, indent=2))
        else:
            report = ladder(store, files, arguments.seconds)
            print(table(report))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
