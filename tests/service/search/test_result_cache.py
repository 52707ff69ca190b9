"""What was computed before: found by those it is right for and by nobody else, whatever happens to Redis."""

import dataclasses
import threading
import time
from contextlib import contextmanager
from copy import copy

import numpy as np
import pytest
from redis_support import running_redis
from service_support import serving

from model.runtime.choose import RuntimeChoice
from service.search import result_cache
from service.search.engine import Engine
from service.search.result_cache import MAX_VALUE_BYTES
from service.search.values import Ranking, SearchQuery, VideoFilter

ASKED = {"text": "a red circle moves left", "k": 4}
TIMEOUT_MS = 200
MARGIN_SECONDS = 5.0  # of a loaded machine


@pytest.fixture(autouse=True)
def empty_redis(redis_server):
    with redis_server.client() as client:
        client.flushall()


@contextmanager
def service(clip_store, encoder, folder, server, **options):
    """A client of a service that has found its Redis."""
    url = server if isinstance(server, str | None) else server.url
    options = {"redis_url": url, "redis_timeout_ms": 5000, "redis_retry_seconds": 0.05, **options}
    with serving(clip_store, encoder, folder, **options) as client:
        if url is not None:
            until(lambda: services_of(client).redis.available)
        yield client


def services_of(client):
    return client.app.state.services


def until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def search(client, **changes):
    response = client.post("/v1/search", json={**ASKED, **changes})
    assert response.status_code == 200, response.text
    return response.json()


@pytest.fixture
def computed(monkeypatch):
    """The queries that engines computed, and the texts that they encoded."""
    seen = {"queries": [], "texts": []}
    straight = Engine.search

    def watched(self, queries):
        seen["queries"] += queries
        return straight(self, queries)

    monkeypatch.setattr(Engine, "search", watched)
    encoder_class = None

    def watch_encoder(encoder):
        nonlocal encoder_class
        encoder_class = type(encoder)
        encode = encoder_class.encode_texts
        monkeypatch.setattr(
            encoder_class, "encode_texts", lambda self, texts: seen["texts"].extend(texts) or encode(self, texts)
        )

    seen["watch"] = watch_encoder
    return seen


def wait_for_keys(server, count):
    until(lambda: len(server.keys("emcl:*")) >= count)


def test_the_same_question_is_computed_once_and_answered_alike(clip_store, tiny_encoder, tmp_path, computed):
    with service(clip_store, tiny_encoder, tmp_path, None) as client:
        first, second = search(client), search(client)
        assert first["hits"] == second["hits"]
        assert len(computed["queries"]) == 1
        assert set(second["source"]["stage_ms"]) == {"cache"}
        assert "encode" in first["source"]["stage_ms"]
        assert services_of(client).shared.results.hits == 1
        both = client.post("/v1/search", json={"texts": [ASKED["text"], "a blue star"], "k": 4}).json()["results"]
        assert both[0]["hits"] == first["hits"]
        assert [query.text for query in computed["queries"]] == [ASKED["text"], "a blue star"]
        assert client.get("/health/ready").json()["redis"] == "off"


def test_another_process_finds_the_result(clip_store, tiny_encoder, tmp_path, computed, redis_server):
    with service(clip_store, tiny_encoder, tmp_path, redis_server) as client:
        first = search(client)
        wait_for_keys(redis_server, 2)
    with service(clip_store, tiny_encoder, tmp_path, redis_server) as client:
        assert search(client)["hits"] == first["hits"]
        assert services_of(client).shared.shared_hits == 1
        assert client.get("/health/ready").json()["redis"] == "ok"
    assert len(computed["queries"]) == 1
    with redis_server.client() as inside:
        assert all(0 < inside.ttl(key) <= 3600 for key in inside.keys("emcl:*"))


def test_another_process_finds_the_embedding(clip_store, tiny_encoder, tmp_path, computed, redis_server):
    computed["watch"](tiny_encoder)
    with service(clip_store, tiny_encoder, tmp_path, redis_server) as client:
        search(client)
        wait_for_keys(redis_server, 2)
    with service(clip_store, tiny_encoder, tmp_path, redis_server) as client:
        expected = search(client, k=3)
        vector = client.post("/v1/embeddings", json={"texts": [ASKED["text"]]}).json()["embeddings"]
        segment = {"video_id": expected["hits"][0]["video_id"]}
        assert client.post("/v1/rerank", json={"text": ASKED["text"], "segments": [segment]}).status_code == 200
        assert services_of(client).shared.embedding_hits == 1
    assert computed["texts"] == [ASKED["text"]]
    assert len(computed["queries"]) == 2
    with service(clip_store, tiny_encoder, tmp_path, None) as client:  # as if nothing had been shared
        assert search(client, k=3)["hits"] == expected["hits"]
        assert client.post("/v1/embeddings", json={"texts": [ASKED["text"]]}).json()["embeddings"] == vector


def test_a_rerank_shares_its_embedding_too(clip_store, tiny_encoder, tmp_path, redis_server):
    with service(clip_store, tiny_encoder, tmp_path, redis_server) as client:
        client.post("/v1/embeddings", json={"texts": ["one text", "another text"]})
        wait_for_keys(redis_server, 2)
    assert len(redis_server.keys("emcl:text:*")) == 2


# Right for whom?


def cache_of(encoder, clip_store, folder, **options):
    """The digest of a query as a service with this model and these settings computes it."""
    with serving(clip_store, encoder, folder, **options) as client:
        shared = services_of(client).shared
        query = SearchQuery(text="a")
        with services_of(client).engine.live.lease() as generation:
            return shared.result_digest(query, generation.version), shared.text_digest("a")


def test_results_are_found_for_the_same_model_settings_and_index_alone(clip_store, tiny_encoder, tmp_path):
    result, text = cache_of(tiny_encoder, clip_store, tmp_path)
    assert cache_of(tiny_encoder, clip_store, tmp_path) == (result, text)
    for runtime, precision in (("torch", "bf16"), ("onnx", "fp32"), ("onnx-int8", "int8")):
        other = copy(tiny_encoder)
        other.runtime = RuntimeChoice.both(runtime, precision, reason="for a test")
        other_arithmetic = cache_of(other, clip_store, tmp_path)
        assert other_arithmetic[0] != result
        assert other_arithmetic[1] != text


def test_a_model_of_other_emcl_settings_shares_embeddings_and_no_results(clip_store, tiny_encoder, tmp_path):
    result, text = cache_of(tiny_encoder, clip_store, tmp_path)
    config = tiny_encoder.config
    changed = config.model_copy(update={"emcl": config.emcl.model_copy(update={"beta": 0.123})})
    straight = tiny_encoder.net.config
    tiny_encoder.net.config = changed
    try:
        assert tiny_encoder.config is changed
        other_result, other_text = cache_of(tiny_encoder, clip_store, tmp_path)
    finally:
        tiny_encoder.net.config = straight
    assert other_text == text  # the fingerprint, and so the embedding, is the same
    assert other_result != result


def test_every_parameter_of_a_query_counts(clip_store, tiny_encoder, tmp_path):
    base = SearchQuery(text="a")
    changes = [
        {"text": "b"},
        {"text": None, "video_id": "0" * 64},
        {"text": None, "video_id": "0" * 64, "segment": 0},
        {"filter": VideoFilter(tags=("x",))},
        {"filter": VideoFilter(min_seconds=1.0)},
        {"filter": VideoFilter(max_seconds=1.0)},
    ]
    rankings = [{"k": 9}, {"offset": 1}, {"candidates": 99}, {"rerank": "none"}, {"rerank": "frozen"}]
    rankings += [{"group": "segment"}, {"normalise": "qb-norm"}, {"min_confidence": 0.5}, {"fusion": "auto"}]
    changed_fields = {name for change in [*changes, *rankings] for name in change}
    known = {field.name for kind in (SearchQuery, Ranking) for field in dataclasses.fields(kind)} - {"ranking"}
    assert known <= changed_fields, f"say here what {known - changed_fields} changes"
    queries = [base, *(dataclasses.replace(base, **change) for change in changes)]
    queries += [dataclasses.replace(base, ranking=Ranking(**change)) for change in rankings]
    with serving(clip_store, tiny_encoder, tmp_path) as client:
        shared = services_of(client).shared
        digests = {shared.result_digest(query, "version") for query in queries}
        digests.add(shared.result_digest(base, "another version"))
        assert len(digests) == len(queries) + 1
        services_of(client).engine.limits = dataclasses.replace(services_of(client).engine.limits, default_candidates=7)
        assert shared.result_digest(base, "version") not in digests  # the default decides too


def test_a_new_version_of_the_index_is_never_answered_from_the_old(
    clip_store, tiny_encoder, tmp_path, computed, redis_server
):
    with service(clip_store, tiny_encoder, tmp_path, redis_server) as client:
        search(client)
        wait_for_keys(redis_server, 2)
        with services_of(client).engine.live.lease() as generation:
            old = generation.version
            generation.version = "changed since"
            search(client)
            assert len(computed["queries"]) == 2
            generation.version = old
            search(client)
            assert len(computed["queries"]) == 2


def test_a_result_is_kept_under_the_version_that_computed_it(clip_store, tiny_encoder, tmp_path, monkeypatch):
    """The index changes between looking a query up and computing it."""
    straight = Engine.search

    def change_then_search(self, queries):
        with self.live.lease() as generation:
            generation.version = "newer"
        return straight(self, queries)

    monkeypatch.setattr(Engine, "search", change_then_search)
    with service(clip_store, tiny_encoder, tmp_path, None) as client:
        with services_of(client).engine.live.lease() as generation:
            old = generation.version
        search(client)
        shared, query = services_of(client).shared, SearchQuery(text=ASKED["text"], ranking=Ranking(k=4, fusion="auto"))
        assert shared.local(shared.result_digest(query, "newer")) is not None
        assert shared.local(shared.result_digest(query, old)) is None


# Damage.


def truth_of(clip_store, encoder, folder):
    with service(clip_store, encoder, folder, None, result_cache_bytes=0, cache_entries=0) as client:
        return search(client)["hits"], search(client, k=3)["hits"]


def flip(value, place):
    return value[:place] + bytes([value[place] ^ 1]) + value[place + 1 :]


DAMAGES = {
    "empty": lambda value, other: b"",
    "short": lambda value, other: value[:10],
    "cut": lambda value, other: value[:-1],
    "longer": lambda value, other: value + b"\x00",
    "flipped in the head": lambda value, other: flip(value, 7),
    "flipped in the sum": lambda value, other: flip(value, 25),
    "flipped in the payload": lambda value, other: flip(value, len(value) - 3),
    "of another key": lambda value, other: other,
    "json of nothing": lambda value, other: b"{}",
    "zeros": lambda value, other: bytes(len(value)),
    "huge": lambda value, other: value + bytes(3 * MAX_VALUE_BYTES),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_values_are_unknown(clip_store, tiny_encoder, tmp_path, redis_server, damage):
    truth = truth_of(clip_store, tiny_encoder, tmp_path)
    with service(clip_store, tiny_encoder, tmp_path, redis_server) as client:
        search(client)
        search(client, text="a blue star in the corner")
        wait_for_keys(redis_server, 4)
    with redis_server.client() as inside:
        for kind in ("result", "text"):
            one, other = sorted(inside.keys(f"emcl:{kind}:*"))
            values = inside.get(one), inside.get(other)
            inside.set(one, DAMAGES[damage](*values))
            inside.set(other, DAMAGES[damage](*reversed(values)))
    with service(clip_store, tiny_encoder, tmp_path, redis_server) as client:
        assert search(client)["hits"] == truth[0]
        assert search(client, k=3)["hits"] == truth[1]
        shared = services_of(client).shared
        assert (shared.shared_hits, shared.embedding_hits) == (0, 0)
        assert shared.damaged == (0 if damage == "empty" else 2)


@pytest.mark.parametrize("kind", ["result", "text"])
def test_keys_of_another_type_are_unknown(clip_store, tiny_encoder, tmp_path, redis_server, kind):
    truth = truth_of(clip_store, tiny_encoder, tmp_path)
    with service(clip_store, tiny_encoder, tmp_path, redis_server) as client:
        search(client)
        wait_for_keys(redis_server, 2)
    with redis_server.client() as inside:
        for key in inside.keys(f"emcl:{kind}:*"):
            inside.delete(key)
            inside.lpush(key, "a list")
    with service(clip_store, tiny_encoder, tmp_path, redis_server) as client:
        assert search(client)["hits"] == truth[0]


def test_whole_values_that_hold_no_sense_are_unknown(clip_store, tiny_encoder, tmp_path, redis_server):
    """Sealed as ours are, as a program of another version with the same name of the version might."""
    truth = truth_of(clip_store, tiny_encoder, tmp_path)
    with service(clip_store, tiny_encoder, tmp_path, redis_server) as client:
        search(client)
        wait_for_keys(redis_server, 2)
    with redis_server.client() as inside:
        for key in inside.keys("emcl:*"):
            digest = bytes.fromhex(key.decode().rsplit(":", 1)[1])
            nonsense = b'{"hits": 3}' if b"result" in key else np.full(tiny_encoder.dim, np.nan, "<f4").tobytes()
            inside.set(key, result_cache.sealed(digest, nonsense))
    with service(clip_store, tiny_encoder, tmp_path, redis_server) as client:
        assert search(client)["hits"] == truth[0]
        assert services_of(client).shared.damaged == 2


# Faults of Redis while it is used.


def answers_in_bound(client, truth, rounds, **options):
    """Search again and again, always something not in the process's cache; answers are right and in time."""
    bound = 2 * TIMEOUT_MS / 1000 + MARGIN_SECONDS
    for _ in range(rounds):
        services_of(client).shared.results.clear()
        services_of(client).engine.texts.clear()
        started = time.monotonic()
        assert search(client)["hits"] == truth
        assert time.monotonic() - started < bound


@pytest.mark.parametrize("fault", ["held", "gone", "restarted", "flushed", "full"])
def test_search_goes_on_within_its_bound(clip_store, tiny_encoder, tmp_path, fault):
    truth = truth_of(clip_store, tiny_encoder, tmp_path)[0]
    with (
        running_redis(tmp_path, "--maxmemory-policy", "noeviction") as server,
        service(clip_store, tiny_encoder, tmp_path, server, redis_timeout_ms=TIMEOUT_MS) as client,
    ):
        answers_in_bound(client, truth, 3)
        redis = services_of(client).redis
        if fault == "held":
            with server.held():
                answers_in_bound(client, truth, 6)
                assert client.get("/health/ready").json()["redis"] == "unavailable"
                assert redis.status == "unavailable"
            until(lambda: redis.available)
        elif fault in ("gone", "restarted"):
            server.kill()
            if fault == "restarted":
                server.start()
            answers_in_bound(client, truth, 6)
            if fault == "gone":
                assert client.get("/health/ready").json()["redis"] == "unavailable"
                server.start()
            until(lambda: redis.available)
        elif fault == "flushed":
            with server.client() as inside:
                stop = threading.Event()

                def flush():
                    while not stop.is_set():
                        inside.flushall()

                flusher = threading.Thread(target=flush)
                flusher.start()
                answers_in_bound(client, truth, 20)
                stop.set()
                flusher.join(20)
        else:
            with server.client() as inside:
                inside.flushall()
                inside.config_set("maxmemory", 1)
                with pytest.raises(Exception, match="maxmemory"):
                    inside.set("more", bytes(1000))
            answers_in_bound(client, truth, 5)
            until(lambda: redis.errors > 0)
            assert client.get("/health/ready").json()["redis"] == "ok"
        answers_in_bound(client, truth, 3)


# Sizes.


def test_a_cache_of_no_bytes_keeps_nothing_anywhere(clip_store, tiny_encoder, tmp_path, computed, redis_server):
    with service(clip_store, tiny_encoder, tmp_path, redis_server, result_cache_bytes=0, cache_entries=0) as client:
        assert search(client)["hits"] == search(client)["hits"]
        assert len(computed["queries"]) == 2
        assert redis_server.keys("emcl:*") == []


def test_what_is_kept_is_bounded(clip_store, tiny_encoder, tmp_path, monkeypatch):
    with service(clip_store, tiny_encoder, tmp_path, None, result_cache_bytes=20_000) as client:
        for number in range(30):
            search(client, text=f"number {number}")
        results = services_of(client).shared.results
        assert 1 <= len(results) < 30
        monkeypatch.setattr(result_cache, "MAX_VALUE_BYTES", 100)
        count = len(results)
        search(client, text="too large to keep")
        assert len(results) == count


def test_sharing_that_falls_behind_is_dropped(clip_store, tiny_encoder, tmp_path, monkeypatch, redis_server):
    monkeypatch.setattr(result_cache, "MAX_WRITES", 0)
    with service(clip_store, tiny_encoder, tmp_path, redis_server) as client:
        search(client)
        assert services_of(client).shared.dropped == 2
    assert redis_server.keys("emcl:*") == []
