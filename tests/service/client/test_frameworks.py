"""Retrievers for LangChain and LlamaIndex, by the real packages, against a real server."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from service.client import Client, ClientError


@pytest.fixture(scope="module")
def expected(url):
    with Client(url) as client:
        hits = client.search("a red circle", k=3).hits
        return [(hit.video_id, hit.score, client.video(hit.video_id)) for hit in hits]


def test_langchain_gets_a_document_for_each_hit(url, expected):
    pytest.importorskip("langchain_core", reason="the extra `langchain` is not installed")
    from service.client.langchain import VideoRetriever

    retriever = VideoRetriever(base_url=url, k=3)
    for documents in (retriever.invoke("a red circle"), asyncio.run(retriever.ainvoke("a red circle"))):
        assert [document.id for document in documents] == [video_id for video_id, _, _ in expected]
        first, video = documents[0], expected[0][2]
        assert first.page_content == ("\n".join(video.captions) or video.title)
        assert first.metadata["score"] == pytest.approx(expected[0][1], abs=1e-5)
        assert first.metadata["stream_url"].startswith(f"{url}/v1/videos/{video.video_id}/stream#t=")
    assert "secret" not in repr(VideoRetriever(base_url=url, api_key="secret"))


def test_llama_index_gets_a_node_for_each_hit(url, expected):
    pytest.importorskip("llama_index.core", reason="the extra `llama-index` is not installed")
    from service.client.llama_index import VideoRetriever

    retriever = VideoRetriever(url, k=3)
    for nodes in (retriever.retrieve("a red circle"), asyncio.run(retriever.aretrieve("a red circle"))):
        assert [node.node.node_id for node in nodes] == [video_id for video_id, _, _ in expected]
        assert [node.score for node in nodes] == pytest.approx([score for _, score, _ in expected], abs=1e-5)
        assert nodes[0].node.metadata["thumbnail_url"].startswith(f"{url}/v1/videos/")


def test_a_service_that_is_away_is_an_error_not_an_empty_answer():
    pytest.importorskip("langchain_core", reason="the extra `langchain` is not installed")
    from service.client.langchain import VideoRetriever

    with pytest.raises(ClientError):
        VideoRetriever(base_url="http://127.0.0.1:9").invoke("a red circle")


@pytest.fixture(scope="module")
def document(url):
    return httpx.get(f"{url}/openapi.json").json()


def test_each_operation_has_a_plain_name_of_its_own(document):
    names = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert len(set(names)) == len(names)
    for name in names:
        assert name.isidentifier()
        assert "_v1_" not in name


@pytest.mark.slow
def test_openapi_python_client_generates_one_that_works(url, document, tmp_path, monkeypatch):
    pytest.importorskip("openapi_python_client", reason="openapi-python-client is not installed")
    (tmp_path / "openapi.json").write_text(json.dumps(document))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # it formats with ruff
    command = [sys.executable, "-m", "openapi_python_client", "generate", "--meta", "none", "--fail-on-warning"]
    files = ["--path", tmp_path / "openapi.json", "--output-path", tmp_path / "generated"]
    done = subprocess.run([*command, *files], env={**os.environ, "PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    monkeypatch.syspath_prepend(tmp_path)
    client = importlib.import_module("generated.client").Client(base_url=url)
    request = importlib.import_module("generated.models.search_request").SearchRequest(text="a red circle", k=3)
    with client:
        answer = importlib.import_module("generated.api.search.search").sync(client=client, body=request)
        page = importlib.import_module("generated.api.videos.list_videos").sync(client=client, limit=2)
    expected = httpx.post(f"{url}/v1/search", json={"text": "a red circle", "k": 3}).json()
    assert [hit.video_id for hit in answer.hits] == [hit["video_id"] for hit in expected["hits"]]
    assert len(page.videos) == 2
