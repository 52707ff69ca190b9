"""A LangChain retriever over the service: a query gives documents, one for each video, best first.

Needs the extra ``langchain`` (``pip install 'emcl-search[langchain]'``).
"""

from __future__ import annotations

from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import ConfigDict, Field

from service.client.client import AsyncClient, Client
from service.client.documents import metadata_of, text_of
from service.search.values import Rerank


class VideoRetriever(BaseRetriever):
    """Finds videos of the service at ``base_url``.

    ``page_content`` of a document is the video's captions, or its title if it has none; ``metadata`` holds
    ``video_id``, ``title``, ``start_seconds``, ``end_seconds``, ``moment_seconds``, ``score``, ``tags``, and absolute
    ``stream_url`` and ``thumbnail_url``. Raises ``service.client.ClientError``.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    base_url: str
    api_key: str | None = Field(None, repr=False)
    k: int = 10
    min_seconds: float | None = None
    max_seconds: float | None = None
    video_tags: tuple[str, ...] = ()
    """Only videos with all of these tags; LangChain's own ``tags`` name a retriever in traces."""
    rerank: Rerank = "emcl"

    def _asked(self) -> dict[str, Any]:
        return {
            "k": self.k,
            "rerank": self.rerank,
            "tags": self.video_tags,
            "min_seconds": self.min_seconds,
            "max_seconds": self.max_seconds,
        }

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        with Client(self.base_url, api_key=self.api_key) as client:
            hits = client.search(query, **self._asked()).hits
            return [
                Document(
                    id=hit.video_id,
                    page_content=text_of(client.video(hit.video_id)),
                    metadata=metadata_of(hit, self.base_url),
                )
                for hit in hits
            ]

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun
    ) -> list[Document]:
        async with AsyncClient(self.base_url, api_key=self.api_key) as client:
            hits = (await client.search(query, **self._asked())).hits
            return [
                Document(
                    id=hit.video_id,
                    page_content=text_of(await client.video(hit.video_id)),
                    metadata=metadata_of(hit, self.base_url),
                )
                for hit in hits
            ]
