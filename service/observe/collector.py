"""The state of a running service as Prometheus metrics, read from its parts at the moment when Prometheus asks.

Each part is read on its own: one that cannot be read is logged, reported by ``emcl_collector_up``, and does not hide
the others. Caches, queues and counters are plain attributes of the parts; nothing is copied.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from service.search.cache import LRUCache
    from service.services import Services

logger = logging.getLogger(__name__)


class ServiceCollector(Collector):
    """Reads ``services`` on each scrape, in the thread that scrapes."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._parts: dict[str, Callable[[Services], Iterator[Metric]]] = {
            "queues": _queues,
            "caches": _caches,
            "redis": _redis,
            "index": _index,
            "uploads": _uploads,
            "library": _library,
            "background": _background,
            "admission": _admission,
            "jobs": _jobs,
            "webhooks": _webhooks,
            "gpu": _gpu,
        }
        if not services.place.leads:  # what all workers would say alike is said by the leader
            for name in ("library", "jobs", "webhooks"):
                del self._parts[name]

    def describe(self) -> Iterable[Metric]:
        """Nothing: the metrics are only known when they are read."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Everything that can be read now."""
        up = GaugeMetricFamily("emcl_collector_up", "Whether this part of the service could be read.", labels=("part",))
        for name, read in self._parts.items():
            try:
                metrics = list(read(self._services))
            except Exception:
                logger.exception("the metrics of %s cannot be read", name)
                up.add_metric((name,), 0)
            else:
                up.add_metric((name,), 1)
                yield from metrics
        yield up


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, label: str, values: dict[str, float]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=(label,))
    for value, number in values.items():
        family.add_metric((value,), number)
    return family


def _gauges(name: str, text: str, label: str, values: dict[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=(label,))
    for value, number in values.items():
        family.add_metric((value,), number)
    return family


def _queues(services: Services) -> Iterator[Metric]:
    queues = services.queues
    yield _gauges(
        "emcl_queue_depth", "What waits to be computed.", "queue", {name: q.queue_depth for name, q in queues.items()}
    )
    ended = CounterMetricFamily(
        "emcl_queue_items",
        "What came to a queue: computed, rejected because it was full, expired before its turn, cancelled by a client "
        "that left.",
        labels=("queue", "outcome"),
    )
    for name, queue in queues.items():
        ended.add_metric((name, "computed"), queue.items)
        ended.add_metric((name, "rejected"), queue.rejected)
        ended.add_metric((name, "expired"), queue.expired)
        ended.add_metric((name, "cancelled"), queue.cancelled)
    yield ended
    yield CounterMetricFamily(
        "emcl_rate_limited", "Requests refused because their key asks too often.", value=services.gate.limits.rejected
    )


def _caches(services: Services) -> Iterator[Metric]:
    shared, redis = services.shared, services.redis.status != "off"
    caches: dict[str, LRUCache[Any, Any]] = {
        "embeddings": services.engine.texts,
        "results": shared.results,
        "thumbnails": services.thumbnails.cache,
    }
    hits = {name: float(cache.hits) for name, cache in caches.items()}
    misses = {name: float(cache.misses) for name, cache in caches.items()}
    if redis:
        hits |= {"redis-results": shared.shared_hits, "redis-embeddings": shared.embedding_hits}
        misses |= {"redis-results": shared.misses, "redis-embeddings": shared.embedding_misses}
    yield _gauges("emcl_cache_entries", "Entries kept.", "cache", {name: len(cache) for name, cache in caches.items()})
    yield _counter("emcl_cache_hits", "What was found in a cache.", "cache", hits)
    yield _counter("emcl_cache_misses", "What was not.", "cache", misses)


def _redis(services: Services) -> Iterator[Metric]:
    link, shared = services.redis, services.shared
    yield _gauge("emcl_redis_configured", "Whether a Redis is to be used.", link.status != "off")
    yield _gauge("emcl_redis_available", "Whether it answers; search goes on without it.", link.available)
    outcomes = {
        "asked": link.calls,
        "refused": link.errors,
        "unanswered": link.failures,
        "skipped": link.skipped,
        "damaged": shared.damaged,
        "dropped": shared.dropped,
    }
    yield _counter(
        "emcl_redis_calls",
        "Calls of Redis that were made, and of those refused or not answered in time; calls skipped because it did not "
        "answer before; values that were damaged, or dropped because too much was being written.",
        "outcome",
        {name: float(number) for name, number in outcomes.items()},
    )


def _index(services: Services) -> Iterator[Metric]:
    with services.engine.live.lease() as generation:
        manifest, version = generation.reader.manifest, generation.version
        counts, overlay_rows = generation.reader.counts, generation.reader.overlay_rows
    yield InfoMetricFamily(
        "emcl_index",
        "The generation that is served.",
        value={
            "generation": manifest.generation,
            "version": version,
            "fingerprint": services.engine.encoder.fingerprint,
            "model": services.engine.encoder.config.name,
            "runtime": services.engine.encoder.runtime.label,
        },
    )
    yield _gauge(
        "emcl_index_created_timestamp_seconds",
        "When the generation was published.",
        datetime.fromisoformat(manifest.created).timestamp(),
    )
    yield _gauges("emcl_index_rows", "What can be found, changes since the generation included.", "kind", vars(counts))
    yield _gauge(
        "emcl_index_overlay_rows",
        "Segments and captions added or removed since the generation was published; publishing folds them in.",
        overlay_rows,
    )
    yield _gauge(
        "emcl_index_stale",
        "1 if the newest state of the index cannot be served; the one before is served on.",
        services.watcher.trouble is not None,
    )


def _background(services: Services) -> Iterator[Metric]:
    works = services.background
    yield _counter(
        "emcl_background_failures",
        "Exceptions in background work, which is tried again.",
        "work",
        {work.name: float(work.failures) for work in works},
    )
    yield _gauges(
        "emcl_background_trouble",
        "1 for background work that has not succeeded since it failed last.",
        "work",
        {work.name: float(work.trouble is not None) for work in works},
    )


def _uploads(services: Services) -> Iterator[Metric]:
    yield _gauge("emcl_uploads_in_flight", "Uploads that are being received or decoded.", services.receiver.taken)
    yield _counter("emcl_decodes", "Decoded uploads, by outcome.", "outcome", dict(services.sandbox.outcomes))


def _library(services: Services) -> Iterator[Metric]:
    library = services.library
    yield _gauge("emcl_library_pending", "Accepted videos that cannot be found yet.", library.additions.waiting)
    yield _gauge(
        "emcl_library_changes_waiting", "Changes of the store that wait for their turn.", library.writer.waiting
    )
    yield _counter(
        "emcl_library_videos",
        "Videos that came over HTTP, by what became of them.",
        "outcome",
        {"added": library.additions.added, "failed": library.additions.failed},
    )
    yield _counter(
        "emcl_library_publications",
        "Generations that the service published to fold in what was changed.",
        "outcome",
        {"published": library.writer.publications, "failed": library.writer.failures},
    )


def _admission(services: Services) -> Iterator[Metric]:
    admission = services.admission
    yield _gauge("emcl_admission_requests", "Requests that are let in.", admission.active)
    yield _gauge("emcl_admission_body_bytes", "Bytes of bodies that are held for them.", admission.held_bytes)
    yield CounterMetricFamily(
        "emcl_admission_rejected", "Requests refused because too many are under way.", value=admission.rejected
    )


def _jobs(services: Services) -> Iterator[Metric]:
    yield _gauges("emcl_jobs", "Jobs in the job store, by state.", "state", dict(services.jobs.job_store.counts()))


def _webhooks(services: Services) -> Iterator[Metric]:
    webhooks = services.webhooks
    if not webhooks.urls:
        return
    yield _gauge("emcl_webhooks_waiting", "Events that are to be sent.", webhooks.waiting)
    outcomes = {outcome: float(number) for outcome, number in webhooks.outcomes.items()}
    yield _counter(
        "emcl_webhooks",
        "Attempts to send an event; those that failed are repeated.",
        "outcome",
        outcomes,
    )


def _gpu(services: Services) -> Iterator[Metric]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return
    used = GaugeMetricFamily("emcl_gpu_memory_bytes", "Memory of a GPU.", labels=("device", "kind"))
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        device = f"cuda:{number}"
        used.add_metric((device, "total"), total)
        used.add_metric((device, "free"), free)
        used.add_metric((device, "allocated"), torch.cuda.memory_allocated(number))
        used.add_metric((device, "reserved"), torch.cuda.memory_reserved(number))
    yield used
