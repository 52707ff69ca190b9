"""The Model Context Protocol server, by the SDK's own client: over stdio, and at ``/mcp`` with keys and scopes."""

import asyncio
import json
import sys

import httpx
import pytest
from service_support import make_app, make_keys

mcp = pytest.importorskip("mcp", reason="the extra `mcp` is not installed")

from service.routes.mcp import MissingExtraError  # noqa: E402

QUERY_TOOLS = {"search_videos", "similar_videos", "describe_video", "list_videos", "library_status"}
FILE_TOOLS = {"find_words_for_video", "add_video"}


@pytest.fixture(scope="module")
def url(start_server, clip_store, tiny_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    options = ("--store", clip_store / "store", "--model", tiny_checkpoint, "--jobs-folder", folder / "jobs", "--mcp")
    return start_server(*options).url


def over_stdio(url):
    return mcp.StdioServerParameters(command=sys.executable, args=["-m", "service.cli", "mcp", "--url", url])


def value_of(result):
    """What a tool returned; an error of the tool fails the test with its text."""
    assert not result.is_error, result.content
    found = result.structured_content
    return found["result"] if set(found) == {"result"} else found


def test_an_agent_searches_looks_up_and_sees_a_moment(url):
    async def talk():
        async with mcp.Client(over_stdio(url)) as client:
            tools = {tool.name: tool for tool in (await client.list_tools()).tools}
            assert set(tools) == QUERY_TOOLS | FILE_TOOLS
            assert tools["search_videos"].annotations.read_only_hint
            hits = value_of(await client.call_tool("search_videos", {"query": "a red circle", "limit": 2}))
            with httpx.Client(base_url=url) as plain:
                expected = plain.post("/v1/search", json={"text": "a red circle", "k": 2}).json()["hits"]
            assert [hit["video_id"] for hit in hits] == [hit["video_id"] for hit in expected]
            assert [hit["moment_seconds"] for hit in hits] == [hit["moment"] for hit in expected]
            first = hits[0]
            video = value_of(await client.call_tool("describe_video", {"video_id": first["video_id"]}))
            assert video["title"] == first["title"]
            near = value_of(await client.call_tool("similar_videos", {"video_id": first["video_id"], "limit": 3}))
            assert len(near) == 3
            assert first["video_id"] not in {hit["video_id"] for hit in near}
            listed = value_of(await client.call_tool("list_videos", {"limit": 2}))
            assert listed["total"] == 6
            assert len(listed["videos"]) == 2
            assert value_of(await client.call_tool("library_status", {}))["counts"]["videos"] == 6
            picture = (await client.read_resource(first["picture"])).contents[0]
            assert picture.mime_type == "image/jpeg"
            assert picture.blob.startswith("/9j/")  # a JPEG, in base64

    asyncio.run(talk())


def test_words_for_a_file_and_errors_that_say_what_to_do(url, clip_store, tmp_path):
    async def talk():
        async with mcp.Client(over_stdio(url)) as client:
            path = str(clip_store / "clips" / "clip_0.mp4")
            found = value_of(await client.call_tool("find_words_for_video", {"path": path, "limit": 3}))
            assert len(found["captions"]) == 3
            missing = await client.call_tool("add_video", {"path": str(tmp_path / "none.mp4")})
            assert missing.is_error
            assert "name an existing video file" in missing.content[0].text
            unknown = await client.call_tool("describe_video", {"video_id": "0" * 64})
            assert unknown.is_error
            assert "expected" in unknown.content[0].text
            silly = await client.call_tool("search_videos", {"query": "a", "limit": 1000})
            assert silly.is_error
            with pytest.raises(mcp.MCPError):
                await client.read_resource(f"video://{'0' * 64}/thumbnail/first")

    asyncio.run(talk())


def test_over_http_files_of_the_service_cannot_be_named(url):
    async def talk():
        async with mcp.Client(f"{url}/mcp") as client:
            assert {tool.name for tool in (await client.list_tools()).tools} == QUERY_TOOLS
            hits = value_of(await client.call_tool("search_videos", {"query": "a red circle", "limit": 1}))
            assert len(hits) == 1

    asyncio.run(talk())


def test_over_http_a_call_needs_a_key_and_carries_it(clip_store, tiny_encoder, tmp_path):
    _, tokens = make_keys(tmp_path)
    app = make_app(clip_store, tiny_encoder, tmp_path, mcp=True, require_keys=True)
    call = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "tools/call",
        "params": {"name": "search_videos", "arguments": {"query": "a red circle", "limit": 1}},
    }
    headers = {"accept": "application/json, text/event-stream", "mcp-protocol-version": "2025-06-18"}
    from fastapi.testclient import TestClient

    with TestClient(app) as client:
        assert client.post("/mcp", json=call, headers=headers).status_code == 401
        answer = client.post("/mcp", json=call, headers={**headers, "authorization": f"Bearer {tokens['search']}"})
        assert answer.status_code == 200, answer.text
        result = answer.json()["result"]
        assert not result.get("isError"), result
        assert json.loads(result["content"][0]["text"])["score"] == pytest.approx(
            client.post(
                "/v1/search",
                json={"text": "a red circle", "k": 1},
                headers={"authorization": f"Bearer {tokens['search']}"},
            ).json()["hits"][0]["score"],
            abs=1e-4,
        )


def test_without_the_extra_the_setting_says_what_to_install(clip_store, tiny_encoder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mcp.server.transport_security", None)
    with pytest.raises(MissingExtraError, match=r"emcl-search\[mcp\]"):
        make_app(clip_store, tiny_encoder, tmp_path, mcp=True)
