"""Submits, cancels and resumes jobs. An accepted job has been checked, is in the job store, and will be run.

Everything that can be checked is checked at once: paths are inside --jobs-inputs, configurations are valid, the jobs
that are named made what the new one needs.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import subprocess
import sys
from pathlib import Path
from threading import Lock
from typing import Any

from pydantic import ValidationError

from service.errors import Conflict, Overloaded, Unprocessable
from service.jobs.commands import CONFIG, STORE, checkpoint_of
from service.jobs.kinds import KINDS, AllowedFolders, CalibrateJob, EvaluateJob, IndexJob, TrainJob
from service.jobs.record import Job
from service.jobs.store import JobStore
from service.settings import Settings, environment_of

_MARGIN_SECONDS = 10.0

logger = logging.getLogger(__name__)
RETRY_SECONDS = 5
_DEEPEST = 50


class EmbeddedWorker:
    """At most one worker, a child process of `emcl serve`, so that jobs run without anything else being started.

    It is started with the first job, started again if it died, and ends when the service does, however that ends: its
    standard input is a pipe from us.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    @property
    def pid(self) -> int | None:
        """The worker's process, if it runs."""
        process = self._process
        return None if process is None or process.poll() is not None else process.pid

    def ensure(self) -> None:
        """Start the worker unless it runs."""
        with self._lock:
            if self._closed or self.pid is not None:
                return
            if self._process is not None:
                logger.warning("the worker ended with exit code %s; starting another", self._process.returncode)
                self._end_input(self._process)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "service.cli", "worker", "--embedded"],
                stdin=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for the service, which stops the worker itself
                env=environment_of(self._settings),
            )
            logger.info("worker started, process %d", self._process.pid)

    def close(self) -> None:
        """End the worker: it stops its jobs and puts them back into the queue."""
        with self._lock:
            self._closed = True
            process, self._process = self._process, None
        if process is None:
            return
        self._end_input(process)
        try:
            process.wait(2 * self._settings.job_grace_seconds + _MARGIN_SECONDS)
        except subprocess.TimeoutExpired:
            logger.error("the worker did not end; killing it, so its jobs count as lost")
            process.kill()
            process.wait()

    @staticmethod
    def _end_input(process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None  # it is a pipe
        process.stdin.close()


class JobService:
    """Jobs of a running service.

    ``job_store`` holds them; ``store`` is the index store that is served; ``worker`` runs them, ``None`` if others do.
    With ``runs`` false, others do in any case.
    """

    def __init__(self, settings: Settings, *, runs: bool = True) -> None:
        self.settings = settings
        self.job_store = JobStore(settings.jobs_folder)
        self.store = settings.store
        self._allowed = AllowedFolders(settings.jobs_inputs)
        wanted = settings.embedded_worker
        embedded = runs and (wanted == "on" or (wanted == "auto" and settings.redis_url is None))
        self.worker = EmbeddedWorker(settings) if embedded else None

    def start(self) -> None:
        """Run jobs that an earlier service accepted and did not finish."""
        if self.worker is not None and self.job_store.exists and self.job_store.unfinished(KINDS):
            self.worker.ensure()

    def close(self) -> None:
        """Stop taking jobs; those that the embedded worker runs are put back into the queue."""
        if self.worker is not None:
            self.worker.close()
        self.job_store.close()

    def submit(self, asked: IndexJob | TrainJob | EvaluateJob | CalibrateJob, *, key_name: str | None = None) -> Job:
        """Accept a job. Raises ``Unprocessable``, ``NotFound`` or ``Conflict`` for what cannot be done, and
        ``Overloaded`` if too many jobs wait or the job store cannot be written.
        """
        self._check_timeout(asked.timeout_seconds)
        parameters = asked.model_dump(exclude={"kind"})
        _check_keepable(parameters)
        files: dict[str, bytes] = {}
        if isinstance(asked, IndexJob):
            self._prepare_index(asked, parameters)
        elif isinstance(asked, TrainJob):
            files[CONFIG] = self._training_config(asked)
        else:
            parameters["data"] = str(self._allowed.find(asked.data, field="data"))
            parameters["model"] = self._model(asked.model)
        self._check_room()
        try:
            job = self.job_store.create(asked.kind, parameters, key_name=key_name, resumable=True, files=files)
        except (sqlite3.OperationalError, OSError) as error:
            logger.exception("a job could not be written into the job store")
            raise Overloaded(
                "the job store cannot be written",
                expected="a disk with room for --jobs-folder",
                next_step="try again when the operator has made room; this job was not accepted",
                retry_after_seconds=RETRY_SECONDS,
            ) from error
        self._ensure_worker()
        return job

    def cancel(self, job_id: str) -> Job:
        """Cancel a waiting job, or request a running one to stop. Raises ``Conflict`` if it has ended."""
        self.job_store.find_lost()
        return self.job_store.cancel(job_id)

    def resume(self, job_id: str) -> Job:
        """Queue a job again. Raises ``Conflict`` if it cannot be continued, ``Overloaded`` if too many wait."""
        if (kind := self.job_store.get(job_id).kind) not in KINDS:
            raise Conflict(
                f"a job of kind {kind} keeps nothing that could be continued",
                expected=f"a job of kind {', '.join(KINDS)}",
                next_step="send the video again with POST /v1/videos",
            )
        self._check_room()
        self.job_store.find_lost()
        job = self.job_store.resume(job_id)
        self._ensure_worker()
        return job

    def forget(self, job_id: str) -> None:
        """Remove a finished job with everything that it made. Raises ``Conflict`` if that is still used."""
        users = [job.job_id for job in self.job_store.referring(job_id)]
        if self.served_job == job_id:
            users.append("the index that is served")
        if users:
            raise Conflict(
                f"what job {job_id} made is used by {', '.join(users[:3])}",
                expected="a job that nothing else was made from",
                next_step="delete those jobs first, or serve another index",
            )
        self.job_store.forget(job_id)

    @property
    def served_job(self) -> str | None:
        """The index job whose store is served; ``None`` if no job made it."""
        store, jobs = self.store.resolve(), self.job_store.folder.resolve()
        return store.parent.name if store.name == STORE and store.parent.parent == jobs else None

    def _check_timeout(self, seconds: float | None) -> None:
        most = self.settings.job_timeout_seconds
        if seconds is not None and seconds > most:
            raise Unprocessable(
                f"timeout_seconds is {seconds:g}, a job may take at most {most:g}",
                expected=f"at most {most:g}",
                next_step="ask for less, or raise --job-timeout-seconds (EMCL_JOB_TIMEOUT_SECONDS)",
            )

    def _prepare_index(self, asked: IndexJob, parameters: dict[str, Any]) -> None:
        parameters["paths"] = [str(self._allowed.find(path, field="paths")) for path in asked.paths]
        if asked.captions is not None:
            parameters["captions"] = str(self._allowed.find(asked.captions, field="captions"))
        if asked.store == "new":
            parameters["model"] = self._model(asked.model or "served")
            return
        store = self.served_job if asked.store == "served" else asked.store
        if store is not None:
            self._require_store(self.job_store.get(store))
            parameters["store"] = store

    def _require_store(self, job: Job) -> None:
        if job.kind != "index" or job.parameters["store"] != "new":
            raise Conflict(
                f"job {job.job_id} has no store of its own",
                expected='the id of an index job with store "new"',
                next_step="name such a job; GET /v1/jobs?kind=index lists them",
            )

    def _model(self, named: str) -> str:
        """Pin a model's name: the job uses what is served now, whatever is served later."""
        if named == "served" and self.served_job is not None:
            return str(self.job_store.get(self.served_job).parameters["model"])
        if named not in ("demo", "served"):
            checkpoint_of(self.job_store.get(named), self.job_store)
        return named

    def _training_config(self, asked: TrainJob) -> bytes:
        from model.config import load_mapping, problems_of
        from model.encoder import DEMO_CHECKPOINT
        from model.train.config import TrainConfig

        given = asked.config
        try:
            if given is None:
                given = load_mapping(self._allowed.find(str(asked.config_file), field="config_file"))
            config = TrainConfig.model_validate(given)
        except ValidationError as error:
            raise _wrong_config(problems_of(error)) from error
        except OSError as error:
            raise _wrong_config(f"it cannot be read: {error.strerror}") from error
        config = self._allowed.confine(config, field="config")
        clip = self._allowed.confine_clip(config.model.clip, field="config.model.clip")
        changes: dict[str, Any] = {"model": config.model.model_copy(update={"clip": clip})}
        if asked.start_from is not None:
            named = asked.start_from
            made = DEMO_CHECKPOINT if named == "demo" else checkpoint_of(self.job_store.get(named), self.job_store)
            changes["start_from"] = Path(made).absolute()
        return json.dumps(config.model_copy(update=changes).model_dump(mode="json"), indent=2).encode()

    def _check_room(self) -> None:
        """Raise ``Overloaded`` if ``--max-jobs`` jobs are queued."""
        if self.job_store.exists and self.job_store.count(state="queued") >= self.settings.max_jobs:
            raise Overloaded(
                f"{self.settings.max_jobs} jobs wait already",
                expected="fewer waiting jobs",
                next_step="try again when some have run, or cancel some",
                retry_after_seconds=RETRY_SECONDS,
            )

    def _ensure_worker(self) -> None:
        if self.worker is not None:
            self.worker.ensure()


def _check_keepable(parameters: dict[str, Any]) -> None:
    """Raise ``Unprocessable`` for values that Python reads from JSON but that cannot be written as JSON."""
    try:
        json.dumps(parameters, allow_nan=False, ensure_ascii=False).encode()
        depth = _depth(parameters)
    except (ValueError, RecursionError):  # UnicodeEncodeError is a ValueError
        depth = _DEEPEST + 1
    if depth > _DEEPEST:
        raise Unprocessable(
            "the body holds NaN, infinity, half a character, or is nested too deeply",
            expected=f"finite numbers, whole characters, at most {_DEEPEST} levels",
            next_step="correct the body",
        )


def _depth(value: Any) -> int:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, parts), default=0)


def _wrong_config(problems: str) -> Unprocessable:
    return Unprocessable(
        f"this is not a valid training configuration: {problems}",
        expected="a configuration as configs/demo.yaml has one",
        next_step="correct what the detail names",
    )
