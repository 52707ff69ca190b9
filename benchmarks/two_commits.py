"""Processor time per query of two commits that serve at the same time and are asked in turns.

    python -m benchmarks.two_commits BEFORE AFTER --rounds 10 -- --runtime onnx-int8 --exports FOLDER

BEFORE and AFTER are folders with a checkout and ``store``, a copy of one store that the older of them wrote (a newer
program migrates a store). What follows ``--`` goes to both `emcl serve`; caches are off. Other work on the machine
slows both alike, so the ratios of the rounds are what compares, and processor time more than the clock.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.corpus import captions
from benchmarks.load import NO_CACHES

LOADS = ((1, 150), (16, 400))
"""Clients, and queries of all of them together in one round."""

TEXTS, START_SECONDS = 6000, 120


class Service:
    """`emcl serve` of a checkout, and clients that ask it."""

    def __init__(self, root: Path, options: Sequence[str]) -> None:
        self._log = tempfile.NamedTemporaryFile("w+", suffix=".log")  # noqa: SIM115 - it lives as long as the service
        serve = [sys.executable, "-m", "service.cli", "serve", "--store", str(root / "store"), "--port", "0"]
        self._process = subprocess.Popen(
            [*serve, *NO_CACHES, *options],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root)},
            stdout=self._log,
            stderr=self._log,
        )
        self._host = self._ready()

    def _ready(self) -> str:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self._process.poll() is None:
            text = Path(self._log.name).read_text(encoding="utf-8")
            if (found := re.search(r"running on http://([0-9.:]+)", text)) and _is_ready(found[1]):
                return found[1]
            time.sleep(0.2)
        raise SystemExit(f"the service did not get ready:\n{text}")

    def _cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def ask(self, clients: int, texts: Sequence[str]) -> dict[str, float]:
        """Milliseconds of processor time per query, median milliseconds until the answer, queries per second."""
        waiting, taken, lock = iter(texts), [], threading.Lock()

        def work() -> None:
            connection = http.client.HTTPConnection(self._host, timeout=60)
            while True:
                with lock:
                    text = next(waiting, None)
                if text is None:
                    return connection.close()
                started = time.perf_counter()
                body = json.dumps({"text": text})
                connection.request("POST", "/v1/search", body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                answer.read()
                if answer.status == 200:
                    taken.append(time.perf_counter() - started)

        cpu, started = self._cpu_seconds(), time.perf_counter()
        threads = [threading.Thread(target=work) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if len(taken) < len(texts):
            raise SystemExit(f"{len(texts) - len(taken)} of {len(texts)} queries failed")
        seconds = time.perf_counter() - started
        return {
            "cpu_ms": 1000 * (self._cpu_seconds() - cpu) / len(texts),
            "p50_ms": 1000 * statistics.median(taken),
            "per_second": len(texts) / seconds,
        }

    def stop(self) -> None:
        """End the service."""
        self._process.terminate()
        self._process.wait(30)


def _is_ready(host: str) -> bool:
    try:
        connection = http.client.HTTPConnection(host, timeout=10)
        connection.request("GET", "/health/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False


def main() -> None:
    """Print a line for each load and figure: medians of both, and the ratio of each round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs=2, metavar="FOLDER")
    parser.add_argument("--rounds", type=int, default=10)
    at = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    arguments, options = parser.parse_args(sys.argv[1:at]), sys.argv[at + 1 :]
    texts = captions(TEXTS)
    services: list[Service] = []
    try:
        for folder in arguments.folders:
            services.append(Service(folder.absolute(), options))
            services[-1].ask(1, texts[:60])  # warm up
            services[-1].ask(16, texts[:200])
        for clients, count in LOADS:
            rounds = []
            for number in range(arguments.rounds):
                start = number * count % (TEXTS - count)
                order = (0, 1) if number % 2 else (1, 0)
                found = {which: services[which].ask(clients, texts[start : start + count]) for which in order}
                rounds.append((found[0], found[1]))
            for name in rounds[0][0]:
                before, after = (statistics.median(pair[which][name] for pair in rounds) for which in (0, 1))
                ratios = [new[name] / old[name] for old, new in rounds]
                spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
                print(f"{clients:3} clients  {name:10} {before:8.2f} {after:8.2f}  ratio {spread}", flush=True)
    finally:
        for service in services:
            service.stop()


if __name__ == "__main__":
    main()
