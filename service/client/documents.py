"""A hit for retrievers of other frameworks: text, and metadata of plain values."""

from __future__ import annotations

from typing import Any
from urllib.parse import urljoin

from service.schemas.library import VideoOut
from service.schemas.search import HitOut


def text_of(video: VideoOut) -> str:
    """The text of a video for a language model: its captions, one a line, or its title if it has none."""
    return "\n".join(video.captions) or video.title


def metadata_of(hit: HitOut, base_url: str) -> dict[str, Any]:
    """Where the match is, in seconds of the video, with absolute addresses of the video and of a picture."""
    return {
        "video_id": hit.video_id,
        "title": hit.title,
        "start_seconds": hit.start,
        "end_seconds": hit.end,
        "moment_seconds": hit.moment,
        "score": hit.score,
        "tags": hit.tags,
        "stream_url": urljoin(base_url, f"{hit.stream_url}#t={hit.moment}"),
        "thumbnail_url": urljoin(base_url, hit.thumbnail_url),
    }
