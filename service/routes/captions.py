"""Adding, listing and removing captions. A caption is a text that an uploaded video finds."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi import Path as InPath

from service.access.gate import require
from service.schemas.library import CaptionsAdded, CaptionsIn, CaptionsPage, StoredCaption, check_caption
from service.schemas.search import VIDEO_ID
from service.services import ServicesDep

_MAX_PAGE = 1000

router = APIRouter(prefix="/v1/captions", tags=["captions"], dependencies=[require("search")])

CaptionId = Annotated[int, InPath(ge=1, le=2**63 - 1, description="A caption's id.")]


@router.get("", summary="List captions")
async def list_captions(
    services: ServicesDep,
    offset: Annotated[int, Query(ge=0, le=2**53, description="Captions to leave out before the first.")] = 0,
    limit: Annotated[int, Query(ge=1, le=_MAX_PAGE, description="Most captions.")] = 100,
    video_id: Annotated[str | None, Query(pattern=VIDEO_ID, description="Only captions of this video.")] = None,
) -> CaptionsPage:
    """A page of the captions that can be found, in the order of their ids."""

    def read() -> CaptionsPage:
        with services.engine.live.lease() as generation:
            reader = generation.reader
            captions = reader.list_captions(offset, limit, video_id=video_id)
            total = reader.count_captions(video_id=video_id)
        return CaptionsPage(
            captions=[StoredCaption.of(caption) for caption in captions], total=total, offset=offset, limit=limit
        )

    return await asyncio.to_thread(read)


@router.post("", summary="Add captions", status_code=201, dependencies=[require("write")])
async def add_captions(asked: CaptionsIn, services: ServicesDep) -> CaptionsAdded:
    """Store captions, of indexed videos or of none; they can be found when this is answered.

    All or none of them. Existing captions stay as they are and keep their ids.
    """
    engine = services.engine
    captions = [(one.video_id, check_caption(engine.limits, one.text)) for one in asked.captions]
    texts = [text for _, text in captions]
    rows_ND = await services.compute(lambda: engine.encoder.encode_texts(texts))
    ids = await asyncio.wrap_future(services.library.add_captions(captions, rows_ND))
    return CaptionsAdded(
        captions=[
            StoredCaption(caption_id=number, text=text, video_id=video_id)
            for number, (video_id, text) in zip(ids, captions, strict=True)
        ]
    )


@router.delete("/{caption_id}", summary="Remove a caption", status_code=204, dependencies=[require("write")])
async def remove_caption(caption_id: CaptionId, services: ServicesDep) -> None:
    """Remove a caption: no video finds it any more."""
    await asyncio.wrap_future(services.library.remove_caption(caption_id))
