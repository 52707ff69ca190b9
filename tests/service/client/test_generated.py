"""A client that is generated from the OpenAPI document has methods with plain names, and works."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest


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
