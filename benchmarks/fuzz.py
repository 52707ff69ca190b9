"""Requests made of the service's own description of itself, by schemathesis, for as long as you like.

    python -m benchmarks.fuzz --seconds 600                 its own server over a small demo index, ten minutes
    python -m benchmarks.fuzz --url http://127.0.0.1:8000   a server that runs; whatever it serves may be changed!
    python -m benchmarks.fuzz --examples 5                  one short round, as the tests have it

Every operation of ``/openapi.json`` gets requests that fit the schema and such that break it, singly and in sequences
(what one answer names, the next request uses). An answer is wrong if its status is 5xx (but 503, which is documented),
or not documented, or if its content type, headers or body are not as described; if a request that breaks the schema is
accepted; if a method that a path does not have is; or if something can be found after it was deleted.

Not checked: that every request that fits the schema is accepted (a schema cannot say that k + offset may not exceed
candidates); that one user sees nothing of another's, for they share one library; that what was accepted with 202 can be
found, for a file that turns out to be no video cannot; and that a form of ``POST /v1/videos`` whose texts are of
another type is refused, for everything in a form is text. One operation is left out, the stream of a job's events:
it ends with its job, and here no job ever begins, because the server has no worker (tests/service/jobs/test_api.py
follows jobs). The server asks for keys, and the fuzz has one.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

TIMEOUT_SECONDS = 60
# Every check is on but these. (Checks that are named on the command line would overrule what is said of an operation.)
CONFIGURATION = """
[checks]
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", "503"]
positive_data_acceptance.enabled = false
object_level_authorization.enabled = false
ensure_resource_availability.enabled = false

[[operations]]
include-name = "POST /v1/videos"
checks.negative_data_rejection.enabled = false

[[operations]]
include-name = "GET /v1/jobs/{job_id}/events"
enabled = false
"""
SERVER = (
    *("--port", "0", "--embedded-worker", "off", "--max-jobs", "100000", "--rate-limit", "0"),
    *("--upload-rate-per-minute", "0", "--upload-slots", "64", "--log-level", "info"),
)


def fuzz(url: str, key: str | None, *, seed: int, seconds: int | None, examples: int | None, workers: int) -> int:
    """Run schemathesis against a server; its exit code, 0 if every answer was right."""
    with tempfile.TemporaryDirectory() as folder:
        configuration = Path(folder, "schemathesis.toml")
        configuration.write_text(CONFIGURATION, encoding="utf-8")
        command = [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(configuration), "run"),
            *(f"{url}/openapi.json", "--seed", str(seed), "--workers", str(workers)),
            *("--request-timeout", str(TIMEOUT_SECONDS), "--continue-on-failure", "--no-color"),
            *("--suppress-health-check", "all", "--warnings", "off"),
        ]
        if key is not None:
            command += ["--header", f"Authorization: Bearer {key}"]
        if seconds is not None:
            command += ["--max-time", str(seconds)]
        if examples is not None:
            command += ["--max-examples", str(examples), "--no-shrink"]
        return subprocess.run(command, cwd=folder, check=False).returncode


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, str]]:
    """The address of a server over a small demo index in ``folder``, and a key for it."""
    from service.access.keys import KeyStore
    from service.demo import prepare

    prepare(folder, 10, say=print)
    _, key = KeyStore(folder / "keys.json").create("fuzz", "admin")
    options = ["--store", str(folder / "store"), "--model", "demo", "--jobs-folder", str(folder / "jobs"), *SERVER]
    options += ["--require-keys", "--keys-file", str(folder / "keys.json")]
    with (folder / "server.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen([sys.executable, "-m", "service.cli", "serve", *options], stderr=log)
        try:
            yield _address(folder / "server.log", process), key
            assert process.poll() is None, f"the server ended with {process.returncode}"
        finally:
            process.terminate()
            process.wait(30)


def _address(log: Path, process: subprocess.Popen[bytes]) -> str:
    while process.poll() is None:
        if found := re.search(r"running on (http://[0-9.:]+)", log.read_text(encoding="utf-8")):
            return found[1]
        _wait_a_moment(process)
    raise RuntimeError(f"the server did not start:\n{log.read_text(encoding='utf-8')}")


def _wait_a_moment(process: subprocess.Popen[bytes]) -> None:
    """Wait a moment for a process to end."""
    try:
        process.wait(0.2)
    except subprocess.TimeoutExpired:
        return


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a server that runs already")
    parser.add_argument("--key", help="an admin key of that server, if it asks for keys")
    parser.add_argument("--seconds", type=int, help="how long to go on")
    parser.add_argument("--examples", type=int, help="most requests of one kind to an operation")
    parser.add_argument("--seed", type=int, default=1)
    # Threads trip over CPython 3.11's parser (gh-106905), which hypothesis uses: "AST constructor recursion depth".
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args(arguments)
    how = {"seed": given.seed, "seconds": given.seconds, "examples": given.examples, "workers": given.workers}
    if given.url is not None:
        return fuzz(given.url, given.key, **how)
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as (url, key):
        code = fuzz(url, key, **how)
        faults = [line for line in Path(folder, "server.log").read_text("utf-8").splitlines() if "incident" in line]
        print("\n".join(faults))
        return code or bool(faults)


if __name__ == "__main__":
    sys.exit(main())
