"""A service whose stage 1 is Milvus (Lite, in this process): made by the commands, the same answers, live changes."""

import shutil

import pytest
from library_support import until
from service_support import assert_problem, serving
from typer.testing import CliRunner

from indexer.engine import follow
from indexer.engine import reader as engine_reader
from indexer.engine.milvus import MilvusEngine
from indexer.errors import EngineUnavailable
from service.cli import app

pytest.importorskip("milvus_lite", reason="milvus-lite is not installed (extra dev)")

TEXTS = ["a red circle", "a blue star moves", "nothing of the kind"]


@pytest.fixture
def folder(clip_store, tmp_path):
    shutil.copytree(clip_store / "store", tmp_path / "store")
    return tmp_path


@pytest.fixture
def url(folder):
    return f"milvus-lite://{folder}/engine.db"


def run(*arguments, code=0):
    result = CliRunner().invoke(app, ["engine", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


def fill(folder, url):
    places = ("--store", folder / "store", "--engine", url)
    assert "g1 is made and empty" in run("create", *places, "--prefix", "test")
    run("fill", *places)


def answers(client, **asked):
    found = []
    for text in TEXTS:
        answer = client.post("/v1/search", json={"text": text, "k": 6, **asked}).json()
        found.append([(hit["video_id"], hit["segment"], hit["score"], hit["stage1_score"]) for hit in answer["hits"]])
    return found


def test_commands_make_fill_check_and_drop(folder, url):
    fill(folder, url)
    assert "g1: auto" in run("status", "--store", folder / "store")
    assert '"behind": 0' in run("status", "--store", folder / "store", "--json")
    assert "6 segments" in run("verify", "--store", folder / "store", "--engine", url)
    run("create", "--store", folder / "store", "--engine", url, "--prefix", "test", "--index", "FLAT")
    run("fill", "--store", folder / "store", "--engine", url, "--name", "g2")
    assert "g2 is in use" in run("switch", "g2", "--store", folder / "store", "--engine", url)
    run("drop", "g1", "--store", folder / "store", "--engine", url)
    assert "g2: FLAT" in run("status", "--store", folder / "store")


@pytest.mark.parametrize("exact_rows", [0, 4096], ids=["by the engine", "exact"])
def test_hits_are_those_of_the_embedded_index(folder, url, tiny_encoder, monkeypatch, exact_rows):
    monkeypatch.setattr(engine_reader, "EXACT_ROWS", exact_rows)
    fill(folder, url)
    for asked in ({}, {"rerank": "none"}, {"filter": {"min_seconds": 0.5}}, {"filter": {"tags": ["no such tag"]}}):
        with serving(folder, tiny_encoder, folder) as client:
            expected = answers(client, **asked)
        with serving(folder, tiny_encoder, folder, engine=url) as client:
            found = answers(client, **asked)
        for ours, theirs in zip(found, expected, strict=True):
            assert [hit[:2] for hit in ours] == [hit[:2] for hit in theirs]
            for one, other in zip(ours, theirs, strict=True):
                assert one[2:] == pytest.approx(other[2:], abs=1e-5)


def test_changes_are_found_at_once_and_reach_the_engine(folder, url, tiny_encoder):
    fill(folder, url)
    store = folder / "store"
    with serving(folder, tiny_encoder, folder, engine=url, engine_apply_seconds=0.05) as client:
        video_id = client.get("/v1/videos").json()["videos"][0]["video_id"]
        assert client.delete(f"/v1/videos/{video_id}").status_code == 204
        assert video_id not in {hit[0] for hits in answers(client) for hit in hits}
        until(lambda: follow.behind(store) == 0, "the applier has written what changed")
        engine = MilvusEngine(url)
        assert follow.verify(store, engine).problems == ()
        engine.close()
        assert client.get("/health/ready").json()["trouble"] == []


def test_an_engine_that_fails_is_a_problem_to_try_again(folder, url, tiny_encoder, monkeypatch):
    fill(folder, url)
    monkeypatch.setattr(engine_reader, "EXACT_ROWS", 0)
    with serving(folder, tiny_encoder, folder, engine=url) as client:

        def unavailable(*_):
            raise EngineUnavailable("milvus://secret-host:1 failed")

        with monkeypatch.context() as patched:
            patched.setattr(MilvusEngine, "shortlist", unavailable)
            problem = assert_problem(client.post("/v1/search", json={"text": "another"}), 503, slug="overloaded")
            assert "engine" in problem["detail"]
            assert "secret-host" not in str(problem)
        assert client.post("/v1/search", json={"text": "another"}).status_code == 200
