"""Observations that are kept for a while: none is lost, and none waits for long."""

import threading

from prometheus_client import CollectorRegistry, Histogram

from service.observe.metrics import Telemetry
from service.observe.tally import Tally


def test_what_was_added_is_observed_when_somebody_asks():
    registry, tally = CollectorRegistry(), Tally()
    histogram = Histogram("seconds", "…", ("stage",), buckets=(1, 2), registry=registry)
    for stage, seconds in (("encode", 0.5), ("rerank", 1.5), ("encode", 9)):
        tally.add(histogram.labels(stage), seconds)
    assert registry.get_sample_value("seconds_count", {"stage": "encode"}) == 0
    tally.tell()
    tally.tell()  # each once
    assert registry.get_sample_value("seconds_count", {"stage": "encode"}) == 2
    assert registry.get_sample_value("seconds_sum", {"stage": "encode"}) == 9.5
    assert registry.get_sample_value("seconds_bucket", {"stage": "encode", "le": "1.0"}) == 1
    assert registry.get_sample_value("seconds_sum", {"stage": "rerank"}) == 1.5


def test_few_are_kept_when_nobody_asks():
    registry, tally = CollectorRegistry(), Tally()
    histogram = Histogram("seconds", "…", registry=registry)
    for number in range(1, 1001):
        tally.add(histogram, 1)
        assert number - registry.get_sample_value("seconds_count") < 64


def test_threads_lose_nothing():
    registry, tally = CollectorRegistry(), Tally()
    histogram = Histogram("seconds", "…", registry=registry)

    def add():
        for _ in range(5000):
            tally.add(histogram, 1)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(50):
        tally.tell()
    for thread in threads:
        thread.join()
    tally.tell()
    assert registry.get_sample_value("seconds_count") == 20000


def test_the_page_of_metrics_holds_what_was_just_noted():
    telemetry = Telemetry()
    telemetry.note("decode", 0.25)
    assert b'emcl_stage_seconds_sum{stage="decode"} 0.25' in telemetry.page()
