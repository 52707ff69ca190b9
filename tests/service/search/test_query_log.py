"""The log of past queries: off by default, bounded, embeddings alone, and the bank of the next publication."""

import numpy as np
from engine_support import fill_store
from fastapi.testclient import TestClient

from indexer.store.bank import QUERY_LOG, read_query_log
from indexer.store.reader import StoreReader
from indexer.store.writer import StoreWriter
from model.config import EMCLConfig
from model.evaluate.corpus import with_emcl
from service.app import create_app
from service.search.engine import Engine
from service.search.query_log import QueryLog
from service.search.values import QueryLimits
from service.settings import load_settings


def serve(store, encoder, tmp_path, **changes):
    settings = load_settings({"store": store, "jobs_folder": tmp_path / "jobs", "embedded_worker": "off", **changes})
    engine = Engine(
        encoder,
        lambda: StoreReader.open(store, fingerprint=encoder.fingerprint),
        limits=QueryLimits.from_settings(settings),
        cache_entries=100,
    )
    return TestClient(create_app(settings, engine), base_url="http://127.0.0.1:8000")


def test_nothing_is_kept_unless_asked_for(tmp_path, tiny_encoder):
    store = fill_store(tmp_path / "store", tiny_encoder)
    with serve(store, tiny_encoder, tmp_path) as client:
        assert client.post("/v1/search", json={"text": "a private thing"}).status_code == 200
    assert not (store / QUERY_LOG).exists()


def test_embeddings_alone_are_kept_and_become_the_bank(tmp_path, tiny_encoder):
    encoder = with_emcl(tiny_encoder, EMCLConfig(beta=0.0))
    store = fill_store(tmp_path / "store", encoder)
    texts = [f"a private thing with number {n}" for n in range(220)]
    with serve(store, encoder, tmp_path, query_log=210) as client:
        for text in texts:
            assert client.post("/v1/search", json={"text": text}).status_code == 200
    np.testing.assert_allclose(read_query_log(store), encoder.encode_texts(texts[-210:]), rtol=2e-3, atol=2e-3)
    assert b"private" not in (store / QUERY_LOG).read_bytes()
    with StoreWriter.open(store) as writer:
        writer.publish(encoder)
    with StoreReader.open(store) as reader:
        assert "hub bases, 210 past queries" in reader.correction.text()


def test_the_newest_stay_and_a_later_service_goes_on(tmp_path):
    first = QueryLog(tmp_path, 3)
    first.add(np.eye(4, dtype=np.float32))
    first.write()
    later = QueryLog(tmp_path, 3)
    later.add([np.full(4, 2, np.float32)])
    later.write()
    np.testing.assert_array_equal(read_query_log(tmp_path), [*np.eye(4)[2:], np.full(4, 2)])


def test_writing_is_due_every_so_often(tmp_path):
    log = QueryLog(tmp_path, 1000)
    assert [log.add(np.zeros((128, 2), np.float32)) for _ in range(3)] == [False, True, False]
    log.write()
    assert not log.add(np.zeros((128, 2), np.float32))


def test_a_damaged_log_begins_anew(tmp_path):
    (tmp_path / QUERY_LOG).write_bytes(b"nothing")
    log = QueryLog(tmp_path, 5)
    log.add([np.ones(2, np.float32)])
    log.write()
    assert len(read_query_log(tmp_path)) == 1
