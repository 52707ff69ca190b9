"""A LlamaIndex retriever over the service: a query gives nodes, one for each video, best first.

Needs the extra ``llama-index`` (``pip install 'emcl-search[llama-index]'``).
"""

from __future__ import annotations

from collections.abc import Sequence

from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from service.client.client import AsyncClient, Client
from service.client.documents import metadata_of, text_of
from service.search.values import Rerank


class VideoRetriever(BaseRetriever):
    """Finds videos of the service at ``base_url``; only those with all ``tags``.

    A node's text is the video's captions, or its title if it has none; its score is the hit's cosine, and its metadata
    are those of ``service.client.langchain.VideoRetriever``. Raises ``service.client.ClientError``.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        k: int = 10,
        tags: Sequence[str] = (),
        rerank: Rerank = "emcl",
    ) -> None:
        super().__init__()
        self._base_url = base_url
        self._api_key = api_key
        self._k = k
        self._tags = tuple(tags)
        self._rerank: Rerank = rerank

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        with Client(self._base_url, api_key=self._api_key) as client:
            hits = client.search(query_bundle.query_str, k=self._k, tags=self._tags, rerank=self._rerank).hits
            return [
                NodeWithScore(
                    node=TextNode(
                        id_=hit.video_id,
                        text=text_of(client.video(hit.video_id)),
                        metadata=metadata_of(hit, self._base_url),
                    ),
                    score=hit.score,
                )
                for hit in hits
            ]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        async with AsyncClient(self._base_url, api_key=self._api_key) as client:
            answer = await client.search(query_bundle.query_str, k=self._k, tags=self._tags, rerank=self._rerank)
            return [
                NodeWithScore(
                    node=TextNode(
                        id_=hit.video_id,
                        text=text_of(await client.video(hit.video_id)),
                        metadata=metadata_of(hit, self._base_url),
                    ),
                    score=hit.score,
                )
                for hit in answer.hits
            ]
