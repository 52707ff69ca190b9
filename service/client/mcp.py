"""A Model Context Protocol server in front of the service, so that agents can search a library of videos.

``build_server`` makes the tools and resources; each call goes through an ``AsyncClient``, so keys, scopes, limits and
error texts are the service's own. ``emcl mcp`` runs it over stdio, and the service mounts the same tools at ``/mcp``
(``--mcp``), where each call carries the key of the request that made it.

Needs the extra ``mcp`` (``pip install 'emcl-search[mcp]'``).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ResourceError, ToolError
from mcp_types import ToolAnnotations
from pydantic import Field

from service.client.client import AsyncClient
from service.client.transport import ClientError
from service.schemas.search import CaptionOut, HitOut

INSTRUCTIONS = """Search a library of videos with words, or find words for a video file.
`search_videos` returns segments of videos, best first, with the second at which the match is clearest (`moment`).
Scores are cosines: they order the hits of one query and say little on their own.
Pictures of a moment are resources: video://VIDEO_ID/thumbnail/SECONDS."""

Connect = Callable[[Context[Any] | None], AbstractAsyncContextManager[AsyncClient]]
"""How a call reaches the service; it is given the context of the call, None for a resource."""

_READS = ToolAnnotations(read_only_hint=True, open_world_hint=False)
_ADDS = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=True, open_world_hint=False)

Limit = Annotated[int, Field(ge=1, le=50, description="Most results.")]
VideoId = Annotated[str, Field(pattern="^[0-9a-f]{64}$", description="A video_id of an earlier result.")]
Tags = Annotated[list[str] | None, Field(description="Only videos with all of these tags.")]


def build_server(connect: Connect, *, local_files: bool) -> MCPServer:
    """A server whose tools call the service through ``connect``.

    ``local_files`` offers the tools that read a video file by its path: right over stdio, where server and agent are on
    one machine, and wrong over HTTP, where a path would name a file of the service's machine.
    """
    server = MCPServer("emcl-search", instructions=INSTRUCTIONS, version=version("emcl-search"))

    @server.tool(annotations=_READS)
    async def search_videos(
        context: Context[Any],
        query: Annotated[str, Field(description="What to look for, as one would describe the scene.")],
        limit: Limit = 10,
        tags: Tags = None,
        min_seconds: Annotated[float | None, Field(ge=0, description="Only videos at least this long.")] = None,
        max_seconds: Annotated[float | None, Field(ge=0, description="Only videos at most this long.")] = None,
        recorded_after: Annotated[str | None, Field(description="Only recorded on this ISO date or later.")] = None,
        recorded_before: Annotated[str | None, Field(description="Only recorded on this ISO date or earlier.")] = None,
        camera: Annotated[str | None, Field(description="Part of the camera's make and model.")] = None,
    ) -> list[dict[str, Any]]:
        """Find videos that show what the query says. Each hit is the best segment of one video."""
        more = {"recorded_after": recorded_after, "recorded_before": recorded_before, "camera": camera}
        async with _answering(connect, context) as client:
            answer = await client.search(
                query,
                k=limit,
                tags=tags or (),
                min_seconds=min_seconds,
                max_seconds=max_seconds,
                filter={name: value for name, value in more.items() if value is not None},
            )
        return [_hit(hit) for hit in answer.hits]

    @server.tool(annotations=_READS)
    async def similar_videos(context: Context[Any], video_id: VideoId, limit: Limit = 10) -> list[dict[str, Any]]:
        """Find videos that look like a video of the library; the video itself is left out."""
        async with _answering(connect, context) as client:
            answer = await client.search(video_id=video_id, k=limit)
        return [_hit(hit) for hit in answer.hits]

    @server.tool(annotations=_READS)
    async def describe_video(context: Context[Any], video_id: VideoId) -> dict[str, Any]:
        """Look a video up: title, duration, tags, captions, and its segments in seconds."""
        async with _answering(connect, context) as client:
            video = await client.video(video_id)
        return video.model_dump(mode="json")

    @server.tool(annotations=_READS)
    async def list_videos(
        context: Context[Any],
        limit: Limit = 20,
        offset: Annotated[int, Field(ge=0, description="Videos to leave out before the first.")] = 0,
        tags: Tags = None,
        title: Annotated[str | None, Field(description="Only videos whose title contains this.")] = None,
    ) -> dict[str, Any]:
        """List videos of the library with their titles and tags, and how many there are."""
        async with _answering(connect, context) as client:
            page = await client.videos(offset=offset, limit=limit, tags=tags or (), title=title)
        listed = [
            {"video_id": video.video_id, "title": video.title, "duration_seconds": video.duration_seconds}
            | {"tags": video.tags}
            for video in page.videos
        ]
        return {"total": page.total, "videos": listed}

    @server.tool(annotations=_READS)
    async def library_status(context: Context[Any]) -> dict[str, Any]:
        """Say what is being served: numbers of videos, segments and captions, and the model."""
        async with _answering(connect, context) as client:
            index = await client.index()
        return index.model_dump(mode="json", include={"counts", "model", "generation", "fingerprint"})

    @server.resource("video://{video_id}/thumbnail/{seconds}", mime_type="image/jpeg")
    async def thumbnail(video_id: str, seconds: str, context: Context[Any]) -> bytes:
        """A picture of a moment of a video, as JPEG."""
        try:
            at = float(seconds)
        except ValueError as error:
            raise ResourceError(f"{seconds!r} is not a number of seconds; use the `moment` of a hit") from error
        try:
            async with connect(context) as client:
                return await client.thumbnail(video_id, seconds=at)
        except ClientError as error:
            raise ResourceError(str(error)) from error

    if local_files:
        _add_file_tools(server, connect)
    return server


def _add_file_tools(server: MCPServer, connect: Connect) -> None:
    @server.tool(annotations=_READS)
    async def find_words_for_video(
        context: Context[Any],
        path: Annotated[str, Field(description="A video file on this machine. Nothing of it is kept.")],
        limit: Limit = 10,
    ) -> dict[str, Any]:
        """Find captions of the library that fit a video file, and videos that look like it."""
        async with _answering(connect, context) as client:
            answer = await client.search_video(_existing(path), k=limit)
        captions = [_caption(caption) for caption in answer.captions]
        return {"captions": captions, "videos": [_hit(hit) for hit in answer.hits]}

    @server.tool(annotations=_ADDS)
    async def add_video(
        context: Context[Any],
        path: Annotated[str, Field(description="A video file on this machine; the library keeps a copy.")],
        title: Annotated[str | None, Field(description="Default: the name of the file.")] = None,
        tags: Annotated[list[str] | None, Field(description="Words to filter by later.")] = None,
        captions: Annotated[list[str] | None, Field(description="Texts that describe the video.")] = None,
    ) -> dict[str, Any]:
        """Add a video file to the library, and wait until it can be found."""
        async with _answering(connect, context) as client:
            added = await client.add_video(_existing(path), title=title, tags=tags or (), captions=captions or ())
            if added.job_id is not None:
                await client.wait_for_job(added.job_id)
            video = await client.video(added.video_id)
        return {"video_id": video.video_id, "title": video.title, "state": video.state, "reason": video.reason}


@asynccontextmanager
async def _answering(connect: Connect, context: Context[Any]) -> AsyncIterator[AsyncClient]:
    """A client whose errors reach the agent as the tool's, with what to do next."""
    try:
        async with connect(context) as client:
            yield client
    except ClientError as error:
        raise ToolError(str(error)) from error


def _existing(path: str) -> Path:
    file = Path(path).expanduser()
    if not file.is_file():
        raise ToolError(f"{path} is not a file on this machine; name an existing video file")
    return file


def _hit(hit: HitOut) -> dict[str, Any]:
    return {
        "video_id": hit.video_id,
        "title": hit.title,
        "start_seconds": hit.start,
        "end_seconds": hit.end,
        "moment_seconds": hit.moment,
        "moments": [{"start_seconds": one.start, "end_seconds": one.end} for one in hit.moments],
        "score": round(hit.score, 4),
        "confidence": None if hit.confidence is None else round(hit.confidence, 3),
        "tags": hit.tags,
        "picture": f"video://{hit.video_id}/thumbnail/{hit.moment}",
    }


def _caption(caption: CaptionOut) -> dict[str, Any]:
    return {
        "text": caption.text,
        "score": round(caption.score, 4),
        "moment_seconds": caption.moment,
        "video_id": caption.video_id,
    }


def run_stdio(base_url: str, api_key: str | None) -> None:
    """Serve the service at ``base_url`` over standard input and output until the input ends."""

    @asynccontextmanager
    async def connect(context: Context[Any] | None) -> AsyncIterator[AsyncClient]:
        async with AsyncClient(base_url, api_key=api_key) as client:
            yield client

    build_server(connect, local_files=True).run("stdio")
