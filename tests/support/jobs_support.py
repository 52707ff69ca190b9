"""Jobs that do what the test wants, in a worker process that a test can kill, and the waiting for them.

python jobs_support.py worker OPTIONS-AS-JSON     a worker whose jobs run this file
python jobs_support.py BEHAVIOUR FOLDER           such a job
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

KIND = "evaluate"
PATIENCE_SECONDS = 60.0


def until(condition: Callable[[], Any], *, seconds: float = PATIENCE_SECONDS) -> Any:
    """Wait until something is true, and return it."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return found


def ask(job_store: Any, behaviour: str, **parameters: Any) -> str:
    """Write a job into the job store; returns its id."""
    return str(job_store.create(KIND, {"behaviour": behaviour, **parameters}, resumable=True).job_id)


def submit(client: Any, **body: Any) -> Any:
    """Hand in a job over HTTP; returns how it is described."""
    response = client.post("/v1/jobs", json=body)
    assert response.status_code == 202, response.text
    assert response.headers["location"] == "/v1/jobs/" + response.json()["job_id"]
    return response.json()


def start_worker(folder: Path, **options: Any) -> subprocess.Popen[bytes]:
    """A worker process on the job store in ``folder``."""
    given = json.dumps({"jobs_folder": str(folder), "job_grace_seconds": 0.5, **options})
    return subprocess.Popen([sys.executable, __file__, "worker", given], stdin=subprocess.PIPE)


def fake_command(job: Any, job_store: Any, settings: Any) -> Any:
    """The command of such a job."""
    from service.jobs.commands import Command, PhaseProgress

    folder = job_store.job_folder(job.job_id).absolute()
    return Command(
        program=(sys.executable, "-u", __file__),
        arguments=[job.parameters["behaviour"], str(folder)],
        progress=PhaseProgress(folder / "progress.jsonl"),
    )


def fake_result(job: Any, job_store: Any, settings: Any, code: int) -> dict[str, Any]:
    """The result of such a job: how often it was begun."""
    return {"begun": begun(job_store.job_folder(job.job_id))}


def begun(folder: Path) -> int:
    """How often a job was begun."""
    path = folder / "begun"
    return len(path.read_text().splitlines()) if path.exists() else 0


def pids(folder: Path) -> list[int]:
    """The processes of a hanging job."""
    path = folder / "pids"
    return [int(word) for word in path.read_text().split()] if path.exists() else []


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def _worker(options: str) -> None:
    from service.jobs import runner
    from service.jobs.worker import Worker, stop_with_stdin
    from service.settings import load_settings

    runner.command_of, runner.result_of = fake_command, fake_result
    worker = Worker(load_settings(json.loads(options)))
    signal.signal(signal.SIGTERM, lambda *_: worker.stop.set())
    stop_with_stdin(worker.stop)
    worker.run()


def _job(behaviour: str, folder: Path) -> None:
    with (folder / "begun").open("a") as file:
        file.write("once\n")
    print("begun", flush=True)
    if behaviour == "once-then-quick":  # hangs the first time
        behaviour = "hang" if begun(folder) == 1 else "quick"
    if behaviour == "killed-once":
        behaviour = "killed" if begun(folder) == 1 else "quick"
    if behaviour == "stubborn":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if behaviour == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "wrong":
        print("error: there is no such thing", flush=True)
        sys.exit(1)
    if behaviour == "greedy":
        print(f"error: {'refused' if _refused(1 << 40) else 'got it'}, nice {os.nice(0)}", flush=True)
        sys.exit(1)
    if behaviour in ("hang", "stubborn"):
        _hang(folder)
    lines = [{"phase": "videos", "done": done, "total": 3, "note": ""} for done in (1, 3)]
    (folder / "progress.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _refused(size: int) -> bool:
    import mmap

    try:
        mmap.mmap(-1, size)
    except (OSError, MemoryError):
        return True
    return False


def _hang(folder: Path) -> None:
    helper = subprocess.Popen(["sleep", "1000"])
    (folder / "pids.part").write_text(f"{os.getpid()} {helper.pid}")
    (folder / "pids.part").rename(folder / "pids")
    try:
        while True:
            time.sleep(1)
    except KeyboardInterrupt:
        print("told to stop", flush=True)
        raise


if __name__ == "__main__":
    if sys.argv[1] == "worker":
        _worker(sys.argv[2])
    else:
        _job(sys.argv[1], Path(sys.argv[2]))
