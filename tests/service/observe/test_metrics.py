"""Metrics: everything is counted, labels are bounded, a broken part hides nothing else, and dashboards name what is."""

import json
import re
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from service_support import serving

from service.observe.metrics import Telemetry

MONITORING = Path(__file__).parents[3] / "docker" / "monitoring"


def scrape(client):
    response = client.get("/metrics")
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def value(metrics, name, **labels):
    return metrics.get((name, tuple(sorted(labels.items()))), 0.0)


@pytest.fixture
def client(clip_store, tiny_encoder, tmp_path):
    with serving(clip_store, tiny_encoder, tmp_path) as made:
        yield made


def test_requests_are_timed_by_template_and_status(client):
    for number in range(3):
        client.get(f"/v1/videos/{number:064d}")
    client.post("/v1/search", json={"text": "a"})
    metrics = scrape(client)
    name = "emcl_http_request_seconds_count"
    assert value(metrics, name, method="GET", route="/v1/videos/{video_id}", status="404") == 3
    assert value(metrics, name, method="POST", route="/v1/search", status="200") == 1
    assert value(metrics, "emcl_problems_total", problem="not-found") == 3
    assert value(metrics, "emcl_http_requests_in_flight") == 1  # the scrape itself


def test_no_label_holds_what_a_client_sent(client):
    for number in range(20):
        client.get(f"/nothing/{number}")
        client.request(f"VERB{number}", f"/v1/search/{number}")
        client.get("/v1/videos", headers={"Host": f"host{number}.example"})
    routes = {dict(labels)["route"] for name, labels in scrape(client) if name == "emcl_http_request_seconds_count"}
    methods = {dict(labels)["method"] for name, labels in scrape(client) if name == "emcl_http_request_seconds_count"}
    assert routes <= {"unrouted", "/metrics", "/v1/search"}
    assert methods == {"GET", "other"}


def test_stages_and_batches_are_counted_once_for_a_batch(client):
    before = scrape(client)
    client.post("/v1/search", json={"texts": ["a", "b", "c"]})
    client.post("/v1/embeddings", json={"texts": ["a", "b"]})
    after = scrape(client)

    def grown(name, **labels):
        return value(after, name, **labels) - value(before, name, **labels)

    assert grown("emcl_batch_size_count") >= 1
    assert grown("emcl_batch_size_sum") == 3
    batches = grown("emcl_batch_size_count")
    assert grown("emcl_stage_seconds_count", stage="rerank") == batches
    assert grown("emcl_stage_seconds_count", stage="encode") == batches + 1
    assert grown("emcl_stage_seconds_count", stage="queue") == 2  # one for each request


def test_uploads_are_counted_by_what_became_of_them(client, clip_store):
    video = (clip_store / "clips" / "clip_0.mp4").read_bytes()
    assert client.post("/v1/search/video", files={"file": video}).status_code == 200
    client.post("/v1/search/video", files={"file": b"no video"})
    client.post("/v1/search/video", content=b"no form")
    metrics = scrape(client)
    assert value(metrics, "emcl_uploads_total", outcome="accepted") == 1
    assert value(metrics, "emcl_uploads_total", outcome="unsupported-media") == 2
    assert value(metrics, "emcl_decodes_total", outcome="decoded") == 1
    assert value(metrics, "emcl_decodes_total", outcome="unsupported-media") == 1
    assert value(metrics, "emcl_decodes_total", outcome="failed") == 0
    for stage in ("receive", "decode", "encode", "captions"):
        assert value(metrics, "emcl_stage_seconds_count", stage=stage) >= 1, stage


def test_the_index_the_process_and_the_parts_are_seen(client):
    metrics = scrape(client)
    described = client.get("/v1/index").json()
    (info,) = [dict(labels) for name, labels in metrics if name == "emcl_index_info"]
    assert info["generation"] == described["generation"]
    assert info["fingerprint"] == described["fingerprint"]
    assert value(metrics, "emcl_index_rows", kind="videos") == 6
    assert value(metrics, "emcl_index_rows", kind="captions") == 12
    assert value(metrics, "emcl_index_created_timestamp_seconds") > 1.7e9
    assert value(metrics, "process_resident_memory_bytes") > 1e6
    assert value(metrics, "process_cpu_seconds_total") > 0
    for queue in ("search", "compute", "thumbnail"):
        assert ("emcl_queue_depth", (("queue", queue),)) in metrics
    for name in (
        "emcl_index_stale",
        "emcl_library_pending",
        "emcl_library_changes_waiting",
        "emcl_admission_body_bytes",
    ):
        assert metrics[(name, ())] == 0
    assert value(metrics, "emcl_library_videos_total", outcome="failed") == 0
    assert value(metrics, "emcl_admission_requests") == 1  # the scrape
    for state in ("queued", "running", "succeeded", "failed", "cancelled", "lost"):
        assert ("emcl_jobs", (("state", state),)) in metrics
    assert all(up == 1 for (name, _), up in metrics.items() if name == "emcl_collector_up")


def test_caches_count_hits_and_misses(client):
    for text in ("a", "a", "b"):
        client.post("/v1/embeddings", json={"texts": [text]})
    metrics = scrape(client)
    assert value(metrics, "emcl_cache_hits_total", cache="embeddings") == 1
    assert value(metrics, "emcl_cache_misses_total", cache="embeddings") == 2
    assert value(metrics, "emcl_cache_entries", cache="embeddings") == 2


def test_a_part_that_cannot_be_read_is_reported_and_hides_no_other(client, monkeypatch, caplog):
    def fail():
        raise OSError("the job store is gone")

    monkeypatch.setattr(client.app.state.services.jobs.job_store, "counts", fail)
    metrics = scrape(client)
    assert value(metrics, "emcl_collector_up", part="jobs") == 0
    assert value(metrics, "emcl_collector_up", part="index") == 1
    assert value(metrics, "emcl_index_rows", kind="videos") == 6
    assert "the job store is gone" in caplog.text


def test_two_applications_share_no_numbers(client, clip_store, tiny_encoder, tmp_path):
    client.post("/v1/search", json={"text": "a"})
    with serving(clip_store, tiny_encoder, tmp_path / "other") as other:
        assert value(scrape(other), "emcl_batch_size_count") == 0
    assert Telemetry().registry is not Telemetry().registry


def test_server_timing_names_the_stages(client, clip_store):
    video = (clip_store / "clips" / "clip_0.mp4").read_bytes()
    ids = [hit["video_id"] for hit in client.get("/v1/videos").json()["videos"]]
    segments = [{"video_id": ids[0]}]
    search = {"queue", "encode", "candidates", "words", "rerank", "answer", "total"}
    for expected, response in (
        (search, client.post("/v1/search", json={"text": "a"})),
        (search, client.post("/v1/search", json={"texts": ["a", "b"]})),
        (search - {"answer", "words"}, client.post("/v1/rerank", json={"text": "a", "segments": segments})),
        ({"queue", "encode", "total"}, client.post("/v1/embeddings", json={"texts": ["a"]})),
        (search | {"receive", "decode", "captions"}, client.post("/v1/search/video", files={"file": video})),
    ):
        assert response.status_code == 200
        timing = dict(re.findall(r"([a-z0-9]+);dur=([0-9.]+)", response.headers["server-timing"]))
        assert set(timing) == expected
        assert float(timing["total"]) >= max(float(part) for part in timing.values())
    assert "server-timing" not in client.get("/health/live").headers


def used_in(expression):
    return set(re.findall(r"\b(?:emcl|process)_[a-z0-9_]+", expression))


def exported(client, clip_store):
    """Names of all metrics after everything happened once."""
    client.post("/v1/search", json={"text": "a"})
    client.post("/v1/search/video", files={"file": b"no video"})
    client.get("/nothing")
    text = client.get("/metrics").text
    return {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}


def test_the_dashboard_shows_what_is_exported(client, clip_store):
    board = json.loads((MONITORING / "grafana" / "dashboards" / "emcl.json").read_text(encoding="utf-8"))
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert len(panels) >= 15
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    used = set()
    for panel in panels:
        assert panel["title"]
        assert panel["targets"], panel["title"]
        for target in panel["targets"]:
            assert used_in(target["expr"]), target
            used |= used_in(target["expr"])
    names = exported(client, clip_store)
    only_with_a_gpu = {"emcl_gpu_memory_bytes"}
    assert used - names <= only_with_a_gpu
    shown = {name.removesuffix("_bucket").removesuffix("_count").removesuffix("_sum") for name in used}
    kept = {name for name in names if name.startswith("emcl_") and not name.endswith("_created")}
    ours = {re.sub("_(bucket|count|sum)$", "", name) for name in kept}
    assert ours - shown == set(), "not on the dashboard"


def test_alerts_and_scraping_name_what_is(client, clip_store):
    rules = yaml.safe_load((MONITORING / "alerts.yml").read_text(encoding="utf-8"))
    alerts = [rule for group in rules["groups"] for rule in group["rules"]]
    assert len(alerts) >= 5
    names = exported(client, clip_store)
    for alert in alerts:
        assert used_in(alert["expr"]) <= names, alert["alert"]
        assert alert["annotations"]["summary"]
        assert alert["annotations"]["next_step"]
        assert alert["labels"]["severity"] in ("page", "ticket")
    scraping = yaml.safe_load((MONITORING / "prometheus.yml").read_text(encoding="utf-8"))
    assert scraping["scrape_configs"][0]["metrics_path"] == "/metrics"
    assert scraping["rule_files"] == ["/etc/prometheus/alerts.yml"]
    for file in MONITORING.glob("grafana/provisioning/*/*.yml"):
        assert yaml.safe_load(file.read_text(encoding="utf-8"))["apiVersion"] == 1
