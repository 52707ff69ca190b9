"""Requests made of the OpenAPI document against a real server: every answer is as documented, and none is a fault.

``python -m benchmarks.fuzz --seconds 600`` does the same for ten minutes.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import httpx
from service_support import bearer, make_keys

EXAMPLES = 3


def test_every_answer_is_as_documented(start_server, clip_store, tiny_checkpoint, tmp_path: Path):
    shutil.copytree(clip_store / "store", tmp_path / "store")
    _, tokens = make_keys(tmp_path)
    server = start_server(
        *("--store", tmp_path / "store", "--model", tiny_checkpoint, "--jobs-folder", tmp_path / "jobs"),
        *("--require-keys", "--keys-file", tmp_path / "keys.json", "--upload-slots", 64),
        *("--embedded-worker", "off", "--max-jobs", 100_000, "--rate-limit", 0, "--upload-rate-per-minute", 0),
    )
    document = httpx.get(server.url + "/openapi.json", headers=bearer(tokens["search"])).json()
    assert len(document["paths"]) > 20
    command = [sys.executable, "-m", "benchmarks.fuzz", "--url", server.url, "--examples", str(EXAMPLES)]
    command += ["--key", tokens["admin"]]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
    assert server.process.poll() is None
    assert not [line for line in server.said if "incident" in line]
    assert httpx.get(server.url + "/health/ready", timeout=60).status_code == 200
