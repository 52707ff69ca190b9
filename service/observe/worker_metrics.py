"""The metrics of several workers as one page: each sample with a label ``worker``.

prometheus-client's multiprocess mode would sum them in files, but it has no custom collectors, and most of what the
service reports (queues, caches, the index, jobs, memory) is read by one (``service.observe.collector``). With a label
for each worker, a counter that starts at 0 again with its process is an ordinary reset to Prometheus.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


def merged(pages: Mapping[int, bytes | None]) -> bytes:
    """One page of the pages of workers, by their numbers; None for one that did not answer."""
    up = GaugeMetricFamily("emcl_worker_up", "Whether this worker gave its metrics.", labels=("worker",))
    families: dict[str, Metric] = {}
    for number, page in sorted(pages.items()):
        up.add_metric((str(number),), page is not None)
        for family in text_string_to_metric_families((page or b"").decode()):
            kept = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                kept.add_sample(sample.name, {**sample.labels, "worker": str(number)}, sample.value)
    registry = CollectorRegistry()
    registry.register(_Families([*families.values(), up]))
    return generate_latest(registry)


class _Families(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        yield from self._families
