"""The command line of a job, and the job's result from the files that it wrote.

The command is the one that a user would type. Everything it writes goes to the job's folder, but for an index job
that adds to a store. Running it again continues what an earlier attempt began.

How far a job's process is, read from what it writes: progress lines, or a training run's log.

Both are JSON lines in files of the job's folder that grow at their end; a torn last line is read when it is whole.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from service.errors import Conflict
from service.jobs.record import Job, JobProgress
from service.jobs.store import JobStore
from service.settings import Settings

_BLOCK_BYTES = 1 << 20


class GrowingLines:
    """JSON objects appended to a file, each returned once. A file that was cut short is read from its beginning."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0

    def new(self) -> Iterator[Mapping[str, Any]]:
        """The objects that were appended since the last call."""
        try:
            with self.path.open("rb") as file:
                if file.seek(0, 2) < self._offset:
                    self._offset = 0
                file.seek(self._offset)
                while line := file.readline(_BLOCK_BYTES):
                    if not line.endswith(b"\n"):
                        return
                    self._offset += len(line)
                    value = _parse(line)
                    if value is not None:
                        yield value
        except FileNotFoundError:
            return


def read_lines(path: Path) -> list[Mapping[str, Any]]:
    """All whole JSON objects of a file of lines; none if there is no file."""
    return list(GrowingLines(path).new())


class PhaseProgress:
    """Progress of ``emcl index``: lines of ``{phase, done, total, note}``."""

    def __init__(self, path: Path) -> None:
        self._lines = GrowingLines(path)

    def latest(self) -> JobProgress | None:
        """The newest progress; ``None`` if there is nothing new."""
        found = None
        for line in self._lines.new():
            note = " · ".join(filter(None, (str(line.get("phase", "")), str(line.get("note", "")))))
            found = JobProgress(done=int(line.get("done", 0)), total=int(line.get("total", 0)), note=note)
        return found


class TrainingProgress:
    """Progress of ``emcl train``: steps, the last loss and the last validation of its ``log.jsonl``."""

    def __init__(self, path: Path, steps: int) -> None:
        self._lines = GrowingLines(path)
        self._steps = steps
        self._loss = self._recall = ""
        self._done = 0

    def latest(self) -> JobProgress | None:
        """The newest progress; ``None`` if there is nothing new."""
        seen = False
        for line in self._lines.new():
            seen = True
            self._done = int(line.get("step", self._done))
            self._steps = int(line.get("steps", self._steps))  # a run that counts epochs knows them only when it runs
            if isinstance(line.get("loss"), int | float):
                self._loss = f"loss {line['loss']:.3f}"
            if (recall := _recall_at_1(line)) is not None:
                self._recall = f"validation R@1 {recall:.1f}"
        if not seen:
            return None
        note = ", ".join(filter(None, (self._loss, self._recall)))
        return JobProgress(done=self._done, total=self._steps, note=note)


class NoProgress:
    """Of a command that reports no progress."""

    def latest(self) -> JobProgress | None:
        """Nothing."""
        return None


def _recall_at_1(line: Mapping[str, Any]) -> float | None:
    validation = line.get("validation")
    direction = validation.get("text_to_video") if isinstance(validation, dict) else None
    value = direction.get("R@1", direction.get("r1")) if isinstance(direction, dict) else None
    return float(value) if isinstance(value, int | float) else None


def _parse(line: bytes) -> Mapping[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


CONFIG = "config.json"

STORE = "store"

RUN = "run"

REPORT = "report.json"

_PROGRESS = "progress.jsonl"

INCOMPLETE = 3
"""Exit code of `emcl index`: done, but some files or captions could not be used."""


class ProgressSource(Protocol):
    """Where the progress of a running command can be read."""

    def latest(self) -> JobProgress | None:
        """The newest progress; ``None`` if there is nothing new."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """What to run: arguments of ``emcl``, where its progress appears, exit codes that mean success.

    ``stale`` are files that an earlier attempt may have left and that the command would refuse to replace.
    """

    arguments: list[str]
    progress: ProgressSource
    program: tuple[str, ...] = (sys.executable, "-u", "-m", "service.cli")  # emcl; -u for a log that is live
    good_exits: tuple[int, ...] = (0,)
    stale: tuple[Path, ...] = ()


def command_of(job: Job, job_store: JobStore, settings: Settings) -> Command:
    """The command of a job. Raises ``ValueError`` if another job that it needs is gone."""
    return {"index": _index, "train": _train, "evaluate": _evaluate, "calibrate": _calibrate}[job.kind](
        job, job_store, settings
    )


def result_of(job: Job, job_store: JobStore, settings: Settings, exit_code: int) -> dict[str, Any]:
    """The result of a job whose command succeeded. Raises ``ValueError`` or ``OSError`` if it left none."""
    folder = job_store.job_folder(job.job_id)
    if job.kind == "index":
        return _index_result(store_of(job, job_store, settings), complete=exit_code != INCOMPLETE)
    if job.kind == "train":
        return _checkpoint_result(folder, Path(RUN) / "model.safetensors") | _last_validation(folder / RUN)
    report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    if job.kind == "evaluate":
        return {"report": report}
    return _checkpoint_result(folder, Path("model.safetensors")) | {"report": report}


def store_of(job: Job, job_store: JobStore, settings: Settings) -> Path:
    """The store that an index job writes. Raises ``NotFound`` if it belongs to a job that is gone."""
    named = str(job.parameters["store"])
    if named == "served":
        return settings.store
    return job_store.job_folder(job.job_id if named == "new" else job_store.get(named).job_id) / STORE


def model_arguments(named: str, job_store: JobStore, settings: Settings, *, option: str) -> list[str]:
    """The options that name a model: ``demo``, ``served`` or a job's checkpoint."""
    if named == "demo":
        return [option, "demo"]
    if named == "served":
        return _served_model(settings, option)
    return [option, str(checkpoint_of(job_store.get(named), job_store).absolute())]


def checkpoint_of(job: Job, job_store: JobStore) -> Path:
    """The checkpoint that a job made. Raises ``Conflict`` if it made none."""
    made = (job.result or {}).get("checkpoint")
    if job.state != "succeeded" or not isinstance(made, str):
        raise Conflict(
            f"job {job.job_id} ({job.kind}, {job.state}) has no checkpoint",
            expected="a train or calibrate job that succeeded",
            next_step="wait until it has, or name another one; GET /v1/jobs?kind=train lists them",
        )
    return job_store.job_folder(job.job_id) / made


def _served_model(settings: Settings, option: str) -> list[str]:
    from indexer.options import recorded_settings

    name, pretrained = settings.model, settings.pretrained
    if name is None:
        recorded = recorded_settings(settings.store)
        if recorded is not None:
            name, pretrained = recorded.model_spec.model, pretrained or recorded.model_spec.pretrained
    return ([] if name is None else [option, name]) + ([] if pretrained is None else ["--pretrained", pretrained])


def _index(job: Job, job_store: JobStore, settings: Settings) -> Command:
    asked, folder = job.parameters, job_store.job_folder(job.job_id).absolute()
    store = store_of(job, job_store, settings).absolute()
    command = ["index", "build" if asked["paths"] else "add", "--store", str(store), "--device", asked["device"]]
    command += ["--progress-file", str(folder / _PROGRESS)]
    if asked["store"] == "new" and not (store / "catalogue.db").exists():
        command += model_arguments(asked["model"] or "served", job_store, settings, option="--model")
    for name in ("captions", "workers", "segment_seconds"):
        if asked[name] is not None:
            command += [f"--{name.replace('_', '-')}", str(asked[name])]
    if asked["prune"]:
        command.append("--prune")
    for allowed in settings.jobs_inputs:
        command += ["--within", str(allowed.absolute())]
    return Command(
        arguments=[*command, "--", *asked["paths"]],
        progress=PhaseProgress(folder / _PROGRESS),
        good_exits=(0, INCOMPLETE),
    )


def _train(job: Job, job_store: JobStore, settings: Settings) -> Command:
    folder = job_store.job_folder(job.job_id).absolute()
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    command = ["train", "--config", str(folder / CONFIG), "--output", str(folder / RUN), "--resume"]
    return Command(
        arguments=[*command, "--device", job.parameters["device"]],
        progress=TrainingProgress(folder / RUN / "log.jsonl", config.get("steps") or 0),
    )


def _evaluate(job: Job, job_store: JobStore, settings: Settings) -> Command:
    asked, report = job.parameters, job_store.job_folder(job.job_id).absolute() / REPORT
    command = ["evaluate", *_measured(asked), "--json", str(report)]
    if asked["candidates"] is not None:
        command += ["--candidates", str(asked["candidates"])]
    command += model_arguments(asked["model"], job_store, settings, option="--checkpoint")
    return Command(arguments=command, progress=NoProgress())


def _calibrate(job: Job, job_store: JobStore, settings: Settings) -> Command:
    asked, folder = job.parameters, job_store.job_folder(job.job_id).absolute()
    made = folder / "model.safetensors"
    command = [
        "calibrate",
        "--form",
        "published",
        *_measured(asked),
        "--output",
        str(made),
        "--json",
        str(folder / REPORT),
    ]
    command += ["--mode", asked["mode"]] + (["--only-if-significant"] if asked["only_if_significant"] else [])
    command += model_arguments(asked["model"], job_store, settings, option="--model")
    return Command(arguments=command, progress=NoProgress(), stale=(made, made.with_suffix(".json")))


def _measured(asked: Mapping[str, Any]) -> list[str]:
    options = ["--data", asked["data"], "--split", asked["split"], "--device", asked["device"]]
    return options + (["--allow-missing"] if asked["allow_missing"] else [])


def _index_result(store: Path, *, complete: bool) -> dict[str, Any]:
    from indexer.errors import NotAStore
    from indexer.store.generation import read_current

    try:
        manifest = read_current(store)
    except NotAStore:  # nothing that was named could be read
        return {"complete": complete, "generation": None}
    return {
        "complete": complete,
        "generation": manifest.generation,
        "fingerprint": manifest.fingerprint,
        "counts": manifest.counts.model_dump(),
    }


def _checkpoint_result(folder: Path, checkpoint: Path) -> dict[str, Any]:
    from model.config import load_mapping

    described = load_mapping((folder / checkpoint).with_suffix(".json"))
    return {"checkpoint": str(checkpoint), "fingerprint": described["fingerprint"]}


def _last_validation(run: Path) -> dict[str, Any]:
    found: list[Mapping[str, Any]] = [line for line in read_lines(run / "log.jsonl") if "validation" in line]
    return {"validation": found[-1]["validation"]} if found else {}
