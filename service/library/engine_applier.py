"""Brings the collections of an external engine up to date while the service runs.

Answers do not depend on it: what the engine lacks is searched in the view itself (``indexer.engine.reader``). It keeps
that little. Several services of one store may run one each; whichever finds a change first applies it.
"""

from __future__ import annotations

from contextlib import suppress
from threading import Event, Thread
from typing import TYPE_CHECKING

from service.background import Background

if TYPE_CHECKING:
    from service.settings import Settings


class EngineApplier:
    """A thread that applies changes every few seconds. ``background`` says how it is doing."""

    def __init__(self, settings: Settings) -> None:
        self.background = Background("engine applier")
        self._settings = settings
        self._stop = Event()
        self._thread = Thread(target=self._run, name="engine applier", daemon=True)

    def start(self) -> None:
        """Start; does nothing without an engine, or with an interval of 0 seconds."""
        if self._settings.engine is not None and self._settings.engine_apply_seconds > 0:
            self._thread.start()

    def close(self) -> None:
        """Stop after the present step."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._settings.engine_apply_seconds):
            self.background.attempt(self._apply, self._stop.wait)

    def _apply(self) -> None:
        from indexer.engine import follow
        from indexer.engine.milvus import MilvusEngine
        from indexer.errors import EngineBusy

        assert self._settings.engine is not None
        if not follow.behind(self._settings.store):
            return
        engine = MilvusEngine(self._settings.engine, timeout_seconds=self._settings.engine_timeout_seconds)
        try:
            with suppress(EngineBusy):  # it does what this one would
                follow.apply_changes(self._settings.store, engine)
        finally:
            engine.close()
