"""The interface of a library for search, whichever engine finds its vectors: predicates in, ids with exact scores out.

The embedded store implements ``Library`` (``indexer.store.reader``). Imports nothing of the package at run time.

Legend: Q queries, k neighbours, N ids, F frames, D channels, M coordinates that the index compares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from indexer.sources.transcripts import Cue
    from indexer.store.config import Counts, Manifest
    from indexer.store.records import Caption, Segment, Transcript, Video, VideoOrder, VideoState
    from model.emcl.correction import Correction
    from model.emcl.em import FrozenMap

FloatArray = npt.NDArray[np.float32]
HalfArray = npt.NDArray[np.float16]
IdArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which segments may be answers: a predicate, never a list of all that match. The default lets everything through.

    ``tags``: the video has all of them. ``min_seconds``, ``max_seconds``: bounds of the video's duration, inclusive.
    ``recorded_from``, ``recorded_until``: Unix seconds, the first inclusive, the last not. ``folder``: a file of the
    video is in this folder or below. ``camera``: part of the make and model, whatever its case. ``min_height``: pixels
    of the shorter side at least. ``video_ids``: the video is one of these. ``without_videos`` and ``without_segments``
    are left out.
    """

    tags: tuple[str, ...] = ()
    min_seconds: float | None = None
    max_seconds: float | None = None
    recorded_from: float | None = None
    recorded_until: float | None = None
    folder: str | None = None
    camera: str | None = None
    min_height: int | None = None
    video_ids: tuple[str, ...] | None = None
    without_videos: tuple[str, ...] = ()
    without_segments: tuple[int, ...] = ()

    @property
    def is_everything(self) -> bool:
        """Whether it lets everything through."""
        return self == EVERYTHING

    @property
    def without_exceptions(self) -> Wanted:
        """The same without what is left out: what a view may remember while only the exceptions grow."""
        return replace(self, without_videos=(), without_segments=())

    def leaving_out(self, *, videos: Iterable[str] = (), segments: Iterable[int] = ()) -> Wanted:
        """The same, with more videos and segments left out."""
        return replace(
            self,
            without_videos=tuple(sorted({*self.without_videos, *videos})),
            without_segments=tuple(sorted({*self.without_segments, *segments})),
        )


EVERYTHING = Wanted()


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundByWords:
    """A video with words of a query in its texts.

    ``coverage`` in (0, 1]: the share of the query's words that they have; ``bm25`` of the text that fits best.
    ``kinds`` says which have any: ``title``, ``name``, ``tag``, ``caption``, ``transcript``. ``snippet`` is that text
    in parts, True for words of the query, and ``passage`` its start and end in seconds if it is of a transcript.
    ``segments`` are those that may be answers: id, start, end, in order of time.
    """

    video_id: str
    coverage: float
    bm25: float
    kinds: tuple[str, ...]
    marked: Callable[[], tuple[tuple[str, bool], ...]] = field(repr=False, compare=False)
    segments: tuple[tuple[int, float, float], ...]
    passage: tuple[float, float] | None = None

    @property
    def snippet(self) -> tuple[tuple[str, bool], ...]:
        """Made when it is asked for: most of what is found is not shown."""
        return self.marked()

    @property
    def segment_of_passage(self) -> int | None:
        """The id of the segment with most of the passage, or else of the one nearest to its start."""
        if self.passage is None:
            return None
        start, end = self.passage

        def rank(segment: tuple[int, float, float]) -> tuple[float, float]:
            _, first, last = segment
            return min(end, last) - max(start, first), -abs(start - first)

        return max(self.segments, key=rank)[0]

    @property
    def order(self) -> tuple[float, float, str]:
        """Sorts the best first. Shares and BM25 that agree to six decimals count as equal."""
        return (-round(self.coverage, 6), -round(self.bm25, 6), self.video_id)


class Library(Protocol):
    """One view of a library: immutable, shared by any number of threads. See ``StoreReader`` for each member."""

    path: Path
    manifest: Manifest
    correction: Correction
    frozen_map: FrozenMap
    counts: Counts
    revision: int
    overlay_rows: int

    @property
    def version(self) -> str:
        """Changes whenever anything that can be found, listed or counted changes."""
        ...

    def search_videos(self, queries_QD: FloatArray, k: int, wanted: Wanted = EVERYTHING) -> tuple[FloatArray, IdArray]:
        """Cosines ``(Q, k)``, descending, and segment ids; -inf and -1 where fewer than k match."""
        ...

    def search_captions(self, queries_QD: FloatArray, k: int) -> tuple[FloatArray, IdArray]:
        """As ``search_videos``, of all captions."""
        ...

    @property
    def has_words(self) -> bool:
        """Whether the library can be searched by words."""
        ...

    def search_words(
        self, text: str, count: int, wanted: Wanted = EVERYTHING, *, coverage: float = 0.0
    ) -> list[FoundByWords]:
        """At most ``count`` videos with at least this share of the words of a text, best first."""
        ...

    def transcripts(self, video_id: str) -> list[Transcript]:
        """The transcripts that a video has, in order of language."""
        ...

    def cues(self, video_id: str, language: str) -> list[Cue]:
        """The cues of one transcript in order of time; empty if the video has no transcript in this language."""
        ...

    def videos_of(self, ids: Sequence[int] | IdArray) -> dict[int, str]:
        """The video of each of these segments, by the segment's id."""
        ...

    def count_matching(self, wanted: Wanted) -> int:
        """How many segments ``wanted`` lets through."""
        ...

    def segment_features(self, ids: IdArray) -> tuple[FloatArray, BoolArray]:
        """Raw frame features ``(*ids.shape, F, D)`` and their mask."""
        ...

    def stored_features(self, ids: IdArray) -> tuple[HalfArray, BoolArray]:
        """``segment_features`` in the precision in which they are stored."""
        ...

    def segment_embeddings(self, ids: IdArray) -> FloatArray:
        """Pooled raw vectors ``(*ids.shape, D)``."""
        ...

    def caption_embeddings(self, ids: IdArray) -> FloatArray:
        """Raw text features ``(*ids.shape, D)``."""
        ...

    def hub_numbers(self, ids: IdArray) -> FloatArray:
        """How near segments are to all texts of the bank."""
        ...

    @property
    def has_confidence(self) -> bool:
        """Whether the view can say how unusual a match is."""
        ...

    def confidences(self, row_D: FloatArray, ids_K: IdArray) -> FloatArray | None:
        """How unusual it is that these segments match a text."""
        ...

    def segments(self, ids: Sequence[int] | IdArray) -> list[Segment]:
        """The segments with these ids, in this order."""
        ...

    def captions(self, ids: Sequence[int] | IdArray) -> list[Caption]:
        """The captions with these ids, in this order."""
        ...

    def video(self, video_id: str) -> Video | None:
        """One video, or None."""
        ...

    def list_videos(
        self,
        offset: int = 0,
        limit: int = 100,
        *,
        state: VideoState | None = "indexed",
        tags: Sequence[str] = (),
        title: str | None = None,
        order: VideoOrder = "id",
    ) -> list[Video]:
        """A page of videos."""
        ...

    def count_videos(
        self, *, state: VideoState | None = "indexed", tags: Sequence[str] = (), title: str | None = None
    ) -> int:
        """How many videos ``list_videos`` has on all its pages."""
        ...

    def newest_addition(self) -> int:
        """A number that is higher for each video that is added; 0 for an empty library."""
        ...

    def videos_added_after(self, addition: int, limit: int) -> list[tuple[int, str]]:
        """The first ``limit`` videos that were added after that, in order, each with its number."""
        ...

    def list_captions(self, offset: int = 0, limit: int = 100, *, video_id: str | None = None) -> list[Caption]:
        """A page of captions."""
        ...

    def count_captions(self, *, video_id: str | None = None) -> int:
        """How many captions ``list_captions`` has on all its pages."""
        ...

    def refreshed(self) -> Library | None:
        """A view of what is there now; None if that is this one."""
        ...

    def close(self) -> None:
        """Release what the view holds open."""
        ...
