"""The worker that `emcl serve` keeps as a child process, so that jobs run without anything else being started.

It is started with the first job, started again if it died, and ends when the service does, however that ends: its
standard input is a pipe from us.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from threading import Lock

from service.settings import Settings, environment_of

logger = logging.getLogger(__name__)

_MARGIN_SECONDS = 10.0


class EmbeddedWorker:
    """At most one worker process."""

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
            logger.error("the worker did not end; killing it, its jobs count as lost")
            process.kill()
            process.wait()

    @staticmethod
    def _end_input(process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None  # it is a pipe
        process.stdin.close()
