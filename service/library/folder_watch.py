"""Folders that a service keeps indexed: ``emcl index watch`` as a child process, started again if it ends.

It decodes and encodes in a process of its own, so that searches wait for neither, and loads the model a second time.
Its output goes to the service's log. It cannot outlive the service (``service.jobs.launch``).
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from threading import Event, Thread
from typing import TYPE_CHECKING

from service.background import Background
from service.jobs import launch
from service.settings import environment_of_jobs

if TYPE_CHECKING:
    from service.settings import Settings

logger = logging.getLogger(__name__)

GRACE_SECONDS = 20.0
"""How long the video that is being written may take before the process is killed; the store survives that."""


def check_folders(settings: Settings) -> None:
    """Raise ``ValueError`` for a file among the folders. One that is missing may be mounted later."""
    for folder in settings.watch:
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"--watch {folder} is a file, expected a folder; index a file with `emcl index add`")


class FolderWatch:
    """Watches the folders in the settings, if there are any. ``background`` says how it is doing."""

    def __init__(self, settings: Settings) -> None:
        self.background = Background("folder watch")
        self.folders = settings.watch
        self._settings = settings
        self._stop = Event()
        self._process: subprocess.Popen[str] | None = None
        self._thread = Thread(target=self._run, name="folder watch", daemon=True)

    def start(self) -> None:
        """Begin, if there are folders."""
        if self.folders:
            self._thread.start()

    def close(self) -> None:
        """Stop once the current video is written or ``GRACE_SECONDS`` have passed."""
        self._stop.set()
        if self._thread.ident is None:
            return
        if (process := self._process) is not None:
            process.send_signal(signal.SIGINT)
        self._thread.join(GRACE_SECONDS)
        if self._thread.is_alive() and (process := self._process) is not None:
            os.killpg(process.pid, signal.SIGKILL)
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            self.background.attempt(self._watch, self._stop.wait)

    def _watch(self) -> None:
        """Run the process to its end. Raises ``RuntimeError`` if that was not asked for."""
        settings = self._settings
        options = ["--store", settings.store, "--device", settings.device, "--workers", 1]
        command = [sys.executable, "-m", "service.cli", "index", "watch", *self.folders, *options]
        process, ours = launch.start(
            list(map(str, command)),
            nice=settings.job_nice,
            stdout=subprocess.PIPE,
            text=True,
            errors="replace",
            env=environment_of_jobs(),
        )
        self._process = process
        try:
            last = self._follow(process)
            code = process.wait()
        finally:
            os.close(ours)  # whatever is left of its group dies
            self._process = None
        if not self._stop.is_set():
            raise RuntimeError(f"`emcl index watch` ended with exit code {code}: {last}")

    def _follow(self, process: subprocess.Popen[str]) -> str:
        """Log what it prints, until it ends; returns the last line."""
        last = "it printed nothing"
        assert process.stdout is not None  # it is a pipe
        with process.stdout as lines:
            for line in lines:
                if self._stop.is_set():
                    process.send_signal(signal.SIGINT)  # `close` may have come before the process was there
                last = line.strip() or last
                logger.info("%s", last)
                if last.startswith("watching "):  # store and model are loaded
                    self.background.succeeded()
        return last
