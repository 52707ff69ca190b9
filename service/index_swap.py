"""Switch to another index and its model while queries continue.

    build the engine of the new store ── a query through all its stages ── new requests get it ── the old one is closed
                                                                          when its last request has been answered

Engine, caches and batchers belong to one model, so all of them are exchanged together: a request has one ``Services``
from its beginning to its end. If the new index cannot be served, nothing changes. For a moment both are in memory.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

from service.errors import Conflict
from service.jobs.commands import STORE
from service.observe.collector import ServiceCollector
from service.search.engine import build_engine
from service.services import Services

logger = logging.getLogger(__name__)

CONFIGURED = "configured"

_LOOK_SECONDS = 0.1


class IndexSwap:
    """Exchanges ``state.services`` of a running application."""

    def __init__(self, state: Any) -> None:
        self._state = state
        self._lock = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()
        self._configured = self._services.settings

    @property
    def _services(self) -> Services:
        services: Services = self._state.services
        return services

    async def to(self, named: str) -> None:
        """Serve the index that a job made, or the ``configured`` one. Raises ``NotFound``, ``Conflict``."""
        async with self._lock:
            old = self._services
            if not old.place.is_alone:
                raise Conflict(
                    f"{old.place.count} workers serve this index, and each would have to load the other one's model",
                    expected="a service with --workers 1",
                    next_step="start the service again with the --store of the other index",
                )
            settings = self._configured
            if named != CONFIGURED:
                store = await asyncio.to_thread(self._store_of, named)
                settings = settings.model_copy(update={"store": store, "model": None, "pretrained": None, "watch": ()})
            new = await self._open(settings, named)
            self._state.services = new
            old.jobs.store = settings.store
            old.telemetry.watch(ServiceCollector(new))
            logger.info("%s is served now, before %s", settings.store, old.settings.store)
            task = asyncio.create_task(_retire(old), name="close the former index")
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    async def close(self) -> None:
        """Close the present services, and former ones that are still in use."""
        async with self._lock:
            for task in self._retiring:
                task.cancel()
            await asyncio.gather(*self._retiring, return_exceptions=True)
            await self._services.close()

    def _store_of(self, job_id: str) -> Path:
        job_store = self._services.jobs.job_store
        job = job_store.get(job_id)
        if job.kind != "index" or job.state != "succeeded" or job.parameters.get("store") != "new":
            raise Conflict(
                f"job {job_id} ({job.kind}, {job.state}) has made no index",
                expected='an index job with store "new" that succeeded',
                next_step="name such a job; GET /v1/jobs?kind=index lists them",
            )
        return job_store.job_folder(job_id) / STORE

    async def _open(self, settings: Any, named: str) -> Services:
        old = self._services
        try:
            engine = await asyncio.to_thread(build_engine, settings)
        except (ValueError, OSError) as error:
            raise _not_servable(named, error) from error
        new = Services(settings, engine, old.telemetry, jobs=old.jobs)
        new.start()
        try:
            await new.probe()
        except BaseException as error:
            await new.close(keep_jobs=True)
            if isinstance(error, Exception):
                raise _not_servable(named, error) from error
            raise
        return new


async def _retire(old: Services) -> None:
    try:
        while old.requests > 0:
            await asyncio.sleep(_LOOK_SECONDS)
    finally:
        await old.close(keep_jobs=True)


def _not_servable(named: str, error: Exception) -> Conflict:
    return Conflict(
        f"the index {named} cannot be served: {error}",
        expected="an index whose files are whole, and its model",
        next_step="fix it as the detail says, or build it again; the present index is still served",
    )
