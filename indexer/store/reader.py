"""Reading a store: one immutable view, opened once and shared by any number of threads.

A view is a generation with the overlay over it (``indexer.store.overlay``): everything that was committed when it was
made is searchable, listed and counted, whether or not it was published, and whichever process wrote it. A view does not
change while a writer works; ``refreshed`` returns the next one. Writing is in ``indexer.store.writer``.

Legend: Q queries, k neighbours, F frames, D channels.

``Serving`` says how the indexes of a generation are held for searching: in memory or mapped, on the CPU or on GPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
import numpy.typing as npt

from indexer.ann import gpu
from indexer.ann import index as ann
from indexer.ann.index import Rows
from indexer.ann.recipe import split_options
from indexer.errors import Damaged, ModelMismatch, WrongPreprocessing
from indexer.library import EVERYTHING, FoundByWords, Wanted
from indexer.store import confidence, generation, overlay
from indexer.store.config import Counts, IndexReport, Manifest
from indexer.store.layered import LayerIndex, Layers, mapped
from indexer.store.overlay import Overlay
from indexer.store.records import Caption, Segment, Transcript, Video, VideoOrder, VideoState
from indexer.store.schema import database_uri
from indexer.store.shards import CAPTIONS, FRAMES, POOLED, ShardReader, to_single
from indexer.store.snapshot import Snapshot
from indexer.store.transcripts import cues_of, transcripts_of
from indexer.store.word_search import Query, WordMatch, WordSearch, snippet

if TYPE_CHECKING:
    from indexer.sources.transcripts import Cue
    from model.emcl.correction import Correction

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Serving:
    """``mmap``: leave vectors and codes in the files (``auto``: those that are more than the memory that an index may
    take). ``device``: see ``indexer.ann.gpu.on_device``."""

    mmap: Literal["auto", "on", "off"] = "auto"
    device: gpu.Device = "cpu"

    def open(self, path: Path, ids_N: Ids, rows: Rows, report: IndexReport | None) -> LayerIndex:
        """The index in ``path``; ``report`` is what the manifest says of it. Raises ``Damaged`` or ``StoreError``."""
        mapped = self.mmap == "on" or (self.mmap == "auto" and report is not None and report.mapped)
        refine = 0.0 if report is None else split_options(report.options)[1]
        index = ann.load(path, ids_N, rows=rows, refine=refine, mmap=mapped)
        return gpu.on_device(index, self.device)


__all__ = ["Caption", "Manifest", "Segment", "StoreReader", "Video"]

FloatArray = npt.NDArray[np.float32]

HalfArray = npt.NDArray[np.float16]

IdArray = npt.NDArray[np.int64]

BoolArray = npt.NDArray[np.bool_]

MOST_VAIN_BATCHES = 12
"""Batches of documents that bring no new video before a search by words ends: hours of talk may repeat one word."""

_LAYERS = {
    "videos": ("segment", generation.VIDEO_INDEX, generation.SEGMENT_PLACES_FILE, POOLED.name, "pooled_"),
    "captions": ("caption", generation.CAPTION_INDEX, generation.CAPTION_PLACES_FILE, CAPTIONS.name, ""),
}


class _Base:
    """What all views of one generation share; released when the last of them is."""

    def __init__(self, path: Path, manifest: Manifest, serving: Serving) -> None:
        folder = path / generation.GENERATIONS / manifest.generation
        self.manifest = manifest
        self.snapshot = folder / generation.SNAPSHOT
        self.correction: Correction = generation.load_correction(folder)
        self.hub_numbers_N: FloatArray | None = None
        if generation.SEGMENT_HUBS in manifest.files:
            self.hub_numbers_N = np.load(folder / generation.SEGMENT_HUBS, mmap_mode="r")
        self.confidence: confidence.Confidence | None = None
        if confidence.CONFIDENCE in manifest.files:
            self.confidence = confidence.read(folder / confidence.CONFIDENCE)
        self.compared_segments: set[int] = set()  # that came later, whose best matches are in ``confidence``
        self.new_hub_numbers: dict[int, float] = {}  # of segments that came later, by id
        self.shards = generation.open_shards(path, manifest)
        self.serving = serving
        self.segments = self._layers(folder, "videos")
        self.captions = self._layers(folder, "captions")

    def _layers(self, folder: Path, name: Literal["videos", "captions"]) -> Layers:
        """One kind of vector. In memory stay the index, unless it is mapped, and eight bytes for each id."""
        what, index, file, kind, prefix = _LAYERS[name]
        places = np.load(folder / file, mmap_mode="r")
        shards_N, rows_N = places[f"{prefix}shard"], places[f"{prefix}row"]
        # Not through self: the index would hold this object, which holds the index, and both would outlive their last
        # view until the garbage collector came by.
        correction, shard = self.correction, self.shards[kind]

        def rows(positions: IdArray) -> FloatArray:
            return mapped(correction, name, shard, shards_N[positions], rows_N[positions])

        report = self.manifest.indexes.get(name)
        ids_N = np.ascontiguousarray(places["id"])
        return Layers(what, places, self.serving.open(folder / index, ids_N, rows, report))


class StoreReader:
    """An open view. Thread-safe; use as a context manager or call ``close`` when no call is running.

    ``manifest`` describes the generation; ``counts`` and ``revision`` (of the catalogue) describe the view.
    """

    def __init__(self, path: Path, base: _Base, over: Overlay) -> None:
        """Use ``StoreReader.open``, which checks the files first."""
        self.path = path
        self.manifest = base.manifest
        self.correction = base.correction
        self.frozen_map = base.correction.frozen
        self.revision = over.revision
        self.overlay_rows = over.rows
        self.counts = _sum(base.manifest.counts, over.gains)
        self.base = base
        self._shards = {name: reader.grown(over.shard_rows.get(name, {})) for name, reader in base.shards.items()}
        self._segments, self._captions = base.segments, base.captions
        if over.rows:
            new, text = over.new_segments, over.new_captions
            pooled = self._mapped("videos", POOLED.name, new["pooled_shard"], new["pooled_row"])
            self._segments = base.segments.under(new, pooled, over.gone_segments)
            texts = self._mapped("captions", CAPTIONS.name, text["shard"], text["row"])
            self._captions = base.captions.under(text, texts, over.gone_captions)
            self._number_new(new)
            self._compare_new(new["id"], pooled)
        self._confidence = base.confidence
        self._snapshot = Snapshot(base.snapshot, over.content)
        self._last_matching: tuple[Wanted, IdArray] | None = None
        self._words = WordSearch(lambda: _words_uri(path, base.snapshot))

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        fingerprint: str | None = None,
        former_fingerprints: Callable[[], frozenset[str]] = frozenset,
        serving: Serving | None = None,
    ) -> Self:
        """Open the current generation of the store in ``path``, and everything committed since.

        ``fingerprint`` is the loaded checkpoint's; without it any model's generation is opened (to list it, say).
        ``former_fingerprints`` are what the checkpoint was called when its frames were prepared in another way.
        ``serving`` says how the indexes are held.
        Sizes and checksums of the generation's files and sizes and headers of its shards are checked; what the shards
        contain is checked by ``emcl index verify``. Raises ``NotAStore``, ``ModelMismatch``, ``NewerFormat`` or
        ``Damaged``, all ``ValueError``.
        """
        path = Path(path)
        while True:
            name = generation.current_name(path)
            try:
                base = _Base(path, _checked(path, name, fingerprint, former_fingerprints), serving or Serving())
                return cls(path, base, _overlay(path, base))
            except (Damaged, FileNotFoundError):
                # Two generations published while this one was being opened delete it; then there is a newer one.
                if generation.current_name(path) == name:
                    raise

    def refreshed(self) -> StoreReader | None:
        """A view of what is there now; None if that is this one. This one stays open and as it is.

        Shares what it can with this view: only what changed is read, unless a generation was published. Raises what
        ``open`` does.
        """
        if generation.current_name(self.path) != self.manifest.generation:
            return StoreReader.open(self.path, fingerprint=self.manifest.fingerprint, serving=self.base.serving)
        over = overlay.derive(
            self.path / generation.CATALOGUE, self.base.snapshot, self.manifest.revision, known=self.revision
        )
        return None if over is None else StoreReader(self.path, self.base, over)

    @property
    def version(self) -> str:
        """Changes whenever anything that can be found, listed or counted changes."""
        return f"{self.manifest.generation}+{self.revision - self.manifest.revision}"

    def close(self) -> None:
        """Release database connections; memory maps go with the last view of the generation."""
        self._snapshot.close()
        self._words.close()

    def __enter__(self) -> StoreReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def search_videos(self, queries_QD: FloatArray, k: int, wanted: Wanted = EVERYTHING) -> tuple[FloatArray, IdArray]:
        """The k nearest segments of each query: scores ``(Q, k)`` float32, descending, and segment ids ``(Q, k)``.

        ``queries_QD`` are those of ``correction.queries``, so scores are corrected cosines. ``wanted``
        restricts the answer. Where there are fewer than k, ids are -1 and scores -inf. A query's answer does not
        depend on the others.
        """
        return self._segments.search(queries_QD, k, None if wanted.is_everything else self.matching(wanted))

    def matching(self, wanted: Wanted) -> IdArray:
        """Ids, ascending, of the segments that ``wanted`` lets through.

        What the last predicate matched before its exceptions is kept: queries ask again with more exceptions.
        """
        filtered = wanted.without_exceptions
        known = self._last_matching
        if known is None or known[0] != filtered:
            known = filtered, self.segment_ids() if filtered.is_everything else self._select(filtered)
            self._last_matching = known
        left_out = np.array(wanted.without_segments, dtype=np.int64)
        if wanted.without_videos:
            left_out = np.union1d(left_out, self.select_segments(video_ids=wanted.without_videos))
        return np.setdiff1d(known[1], left_out, assume_unique=True) if len(left_out) else known[1]

    def count_matching(self, wanted: Wanted) -> int:
        """How many segments ``wanted`` lets through."""
        return self.counts.segments if wanted.is_everything else len(self.matching(wanted))

    def _select(self, wanted: Wanted) -> IdArray:
        return self._snapshot.select_segments(wanted)

    def search_captions(self, queries_QD: FloatArray, k: int) -> tuple[FloatArray, IdArray]:
        """The k nearest captions of each query, as ``search_videos`` does for segments."""
        return self._captions.search(queries_QD, k, None)

    @property
    def has_words(self) -> bool:
        """Whether this store can be searched by words: the next change of an older one makes it so."""
        return self._words.available

    def search_words(
        self, text: str, count: int, wanted: Wanted = EVERYTHING, *, coverage: float = 0.0
    ) -> list[FoundByWords]:
        """At most ``count`` videos with words of ``text`` in titles, file names, tags, captions or transcripts, best
        first.

        ``coverage`` is the least share of the query's words that counts. ``wanted`` restricts the answer.
        """
        query = self._words.query(text)
        if query is None:
            return []
        found: dict[str, FoundByWords] = {}
        vain = 0
        for batch in self._words.batches(query, coverage=coverage):
            fitting = [match for match in batch if match.coverage >= coverage]
            new = [m for m in fitting if m.video_id not in found or m.order < found[m.video_id].order]
            known = len(found)
            found |= {one.video_id: one for one in self._served(query, new, count, wanted)}
            vain = 0 if len(found) > known else vain + 1
            if len(found) >= count or (wanted.is_everything and ((batch and not fitting) or vain == MOST_VAIN_BATCHES)):
                break
        return sorted(found.values(), key=lambda one: one.order)[:count]

    def _served(self, query: Query, matches: Sequence[WordMatch], count: int, wanted: Wanted) -> list[FoundByWords]:
        """The first ``count`` matches of which this view serves a segment that is wanted."""
        found: list[FoundByWords] = []
        allowed = None if wanted.is_everything else self.matching(wanted)
        for start in range(0, len(matches), 2 * count):
            part = matches[start : start + 2 * count]
            segments = self._snapshot.segments_of([match.video_id for match in part])
            for match in part:
                own = segments.get(match.video_id, [])
                if allowed is not None and own:
                    kept = np.isin([number for number, *_ in own], allowed)
                    own = [one for one, is_kept in zip(own, kept, strict=True) if is_kept]
                if own:
                    found.append(
                        FoundByWords(
                            video_id=match.video_id,
                            coverage=match.coverage,
                            bm25=match.bm25,
                            kinds=match.kinds,
                            marked=partial(snippet, query, match.text),
                            segments=tuple(own),
                            passage=match.passage,
                        )
                    )
            if len(found) >= count:
                break
        return found[:count]

    def transcripts(self, video_id: str) -> list[Transcript]:
        """The transcripts that a video has, in order of language."""
        return transcripts_of(self._words.connection, video_id)

    def cues(self, video_id: str, language: str) -> list[Cue]:
        """The cues of one transcript in order of time; empty if the video has no transcript in this language."""
        return cues_of(self._words.connection, video_id, language)

    def videos_of(self, ids: Sequence[int] | IdArray) -> dict[int, str]:
        """The video of each of these segments, by the segment's id."""
        return self._snapshot.videos_of([int(i) for i in ids])

    def segment_features(self, ids: IdArray) -> tuple[FloatArray, BoolArray]:
        """Frame features of segments: ``(*ids.shape, F, D)`` float32, raw, and a mask ``(*ids.shape, F)``.

        F is the longest of them; padding is zero. An id of -1 gives an all-False mask. Raises ``KeyError`` for any
        other id that this generation does not hold.
        """
        features, mask = self.stored_features(ids)
        return to_single(features), mask

    def stored_features(self, ids: IdArray) -> tuple[HalfArray, BoolArray]:
        """``segment_features`` in the half precision that they are stored in, for a scorer that widens them itself."""
        places, present = self._segments.places(ids)
        frames = np.where(present, places["frames"], 0)
        longest = int(frames.max(initial=0))
        blocks = self._reader(FRAMES.name).gather_blocks(places["shard"], places["row"], frames, longest)
        features: HalfArray = blocks.view(np.float16)
        mask = np.arange(longest) < frames[:, None]
        shape = np.shape(ids)
        return features.reshape(*shape, longest, self.manifest.dim), mask.reshape(*shape, longest)

    def segment_embeddings(self, ids: IdArray) -> FloatArray:
        """Pooled raw vectors of segments, before the frozen map: ``(*ids.shape, D)`` float32; zeros for -1."""
        places, present = self._segments.places(ids)
        rows = self._reader(POOLED.name).gather_blocks(
            places["pooled_shard"], places["pooled_row"], present.astype(np.int64), 1
        )
        return rows[:, 0].astype(np.float32, copy=False).reshape(*np.shape(ids), self.manifest.dim)

    def mapped_rows(self, side: Literal["videos", "captions"], ids_N: IdArray) -> FloatArray:
        """Rows (N, M) of segments or captions as the index compares them. Raises ``KeyError`` for an unknown id."""
        if side == "videos":
            places, _ = self._segments.places(ids_N)
            return self._mapped("videos", POOLED.name, places["pooled_shard"], places["pooled_row"])
        places, _ = self._captions.places(ids_N)
        return self._mapped("captions", CAPTIONS.name, places["shard"], places["row"])

    def filter_fields(self, ids: IdArray) -> list[tuple[str, float, tuple[str, ...]]]:
        """What filters ask of these segments, in this order: video id, duration in seconds, tags."""
        return self._snapshot.filter_fields([int(i) for i in ids])

    def captions_of_videos(self, video_ids: Sequence[str]) -> IdArray:
        """Ids, ascending, of all captions of some videos, also of those that failed to index."""
        return self._snapshot.caption_ids_of(video_ids)

    def caption_embeddings(self, ids: IdArray) -> FloatArray:
        """Raw text features of captions: ``(*ids.shape, D)`` float32; zeros for an id of -1."""
        places, present = self._captions.places(ids)
        rows = self._reader(CAPTIONS.name).gather_blocks(places["shard"], places["row"], present.astype(np.int64), 1)
        return rows[:, 0].astype(np.float32, copy=False).reshape(*np.shape(ids), self.manifest.dim)

    def segments(self, ids: Sequence[int] | IdArray) -> list[Segment]:
        """The segments with these ids, in this order. Raises ``KeyError`` for an unknown id."""
        return self._snapshot.segments([int(i) for i in ids])

    def captions(self, ids: Sequence[int] | IdArray) -> list[Caption]:
        """The captions with these ids, in this order. Raises ``KeyError`` for an unknown id."""
        return self._snapshot.captions([int(i) for i in ids])

    def video(self, video_id: str) -> Video | None:
        """One video (also one that failed to index), or None."""
        return self._snapshot.video(video_id)

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
        """A page of videos in an order; ``state`` None lists all, whatever became of them.

        Only those that have all of ``tags``, and whose title contains ``title``, in whatever case.
        """
        return self._snapshot.list_videos(offset, limit, state, tags, title, order)

    def count_videos(
        self, *, state: VideoState | None = "indexed", tags: Sequence[str] = (), title: str | None = None
    ) -> int:
        """How many videos ``list_videos`` has on all its pages."""
        if not tags and title is None and state in ("indexed", "failed"):
            return self.counts.videos if state == "indexed" else self.counts.failed
        return self._snapshot.count_videos(state, tags, title)

    def newest_addition(self) -> int:
        """The highest id of a segment; 0 if there is none."""
        return self._snapshot.newest_addition()

    def videos_added_after(self, addition: int, limit: int) -> list[tuple[int, str]]:
        """The first ``limit`` videos with segments of higher ids, each with its highest."""
        return self._snapshot.videos_added_after(addition, limit)

    def list_captions(self, offset: int = 0, limit: int = 100, *, video_id: str | None = None) -> list[Caption]:
        """A page of the searchable captions, ordered by id: of one video, or of all."""
        return self._snapshot.list_captions(offset, limit, video_id)

    def count_captions(self, *, video_id: str | None = None) -> int:
        """How many captions ``list_captions`` has on all its pages."""
        return self.counts.captions if video_id is None else self._snapshot.count_captions(video_id)

    def select_segments(
        self,
        *,
        tags: Sequence[str] = (),
        min_seconds: float | None = None,
        max_seconds: float | None = None,
        video_ids: Sequence[str] | None = None,
    ) -> IdArray:
        """Ids, ascending, of the segments whose video matches every condition given.

        The video has all of ``tags``, lasts between ``min_seconds`` and ``max_seconds`` (both inclusive), and is one
        of ``video_ids``.
        """
        return self._snapshot.select_segments(
            Wanted(
                tags=tuple(tags),
                min_seconds=min_seconds,
                max_seconds=max_seconds,
                video_ids=None if video_ids is None else tuple(video_ids),
            )
        )

    def segment_ids(self) -> IdArray:
        """``(N,)`` ids of all segments, ascending."""
        return self._segments.ids

    def caption_ids(self) -> IdArray:
        """``(N,)`` ids of all searchable captions, ascending."""
        return self._captions.ids

    def _reader(self, kind: str) -> ShardReader:
        return self._shards[kind]

    def hub_numbers(self, ids: IdArray) -> FloatArray:
        """How near segments are to all texts of the bank in the rerank's score: the shape of ``ids``, float32.

        0 for an id of -1. Only of a generation whose correction has hub bases of texts.
        """
        base_N, base_ids_N = self.base.hub_numbers_N, self.base.segments.ids
        assert base_N is not None, "the generation has no hub bases of texts"
        flat = np.asarray(ids, dtype=np.int64).ravel()
        places = np.minimum(np.searchsorted(base_ids_N, flat), max(0, len(base_ids_N) - 1))
        known = base_ids_N[places] == flat if len(base_ids_N) else np.zeros(len(flat), bool)
        numbers = np.zeros(len(flat), np.float32)
        numbers[known] = base_N[places[known]]
        for place in np.flatnonzero(~known & (flat >= 0)):
            numbers[place] = self.base.new_hub_numbers[int(flat[place])]
        return numbers.reshape(np.shape(ids))

    @property
    def has_confidence(self) -> bool:
        """Whether hits of texts have a confidence: not in generations of earlier versions."""
        return self._confidence is not None

    def confidences(self, row_D: FloatArray, ids_K: IdArray) -> FloatArray | None:
        """The confidence (K,) of segments as hits of a text, whose raw row is given; None if it is not known.

        See ``indexer.store.confidence``.
        """
        if self._confidence is None:
            return None
        query_M = self.correction.base_rows(row_D[None], "text")[0]
        return self._confidence.of(query_M, self.correction.base_rows(self.segment_embeddings(ids_K), "video"))

    def _number_new(self, places: npt.NDArray[np.void]) -> None:
        """Compute the numbers of segments added after the generation: one E-step each, kept for later views."""
        known = self.base.new_hub_numbers
        fresh = [place for place, number in enumerate(places["id"]) if int(number) not in known]
        if self.base.hub_numbers_N is None or not fresh:
            return
        numbers = generation.segment_numbers(self.correction, places[fresh], self._reader(FRAMES.name))
        known.update(zip((int(number) for number in places["id"][fresh]), map(float, numbers), strict=True))

    def _compare_new(self, ids_N: IdArray, items_NM: FloatArray) -> None:
        """Compare unrelated texts with segments that came after the generation, once for all next views."""
        base = self.base
        if base.confidence is None:
            return
        fresh = [place for place, number in enumerate(ids_N.tolist()) if number not in base.compared_segments]
        width = len(base.confidence.offset_M)  # without the coordinates of hubs
        base.confidence = base.confidence.over(items_NM[fresh, :width])
        base.compared_segments.update(ids_N[fresh].tolist())

    def _mapped(
        self, side: Literal["videos", "captions"], kind: str, shards_N: npt.NDArray[np.int32], rows_N: IdArray
    ) -> FloatArray:
        return mapped(self.correction, side, self._reader(kind), shards_N, rows_N)


def _words_uri(path: Path, snapshot: Path) -> str:
    """Where documents are read: the catalogue, or the generation's copy in a store of which nothing else was copied."""
    catalogue = path / generation.CATALOGUE
    return overlay.readable_uri(catalogue) if catalogue.exists() else database_uri(snapshot, "mode=ro&immutable=1")


def _overlay(path: Path, base: _Base) -> Overlay:
    over = overlay.derive(path / generation.CATALOGUE, base.snapshot, base.manifest.revision)
    assert over is not None, "only a known revision can be the present one"
    return over


def _sum(counts: Counts, gains: Counts) -> Counts:
    return Counts(**{name: count + getattr(gains, name) for name, count in counts.model_dump().items()})


def _checked(
    path: Path, name: str, fingerprint: str | None, former_fingerprints: Callable[[], frozenset[str]]
) -> Manifest:
    """The manifest of generation ``name``, after its files were compared with it."""
    folder = path / generation.GENERATIONS / name
    manifest = generation.read_manifest(folder)
    if fingerprint is not None and fingerprint != manifest.fingerprint:
        spec = manifest.model_spec
        if manifest.fingerprint in former_fingerprints():
            raise WrongPreprocessing(str(path), model=spec.model or "default", pretrained=spec.pretrained)
        raise ModelMismatch(
            f"generation {manifest.generation} of {path} was built with checkpoint {manifest.fingerprint[:12]} "
            f"(--model {spec.model or 'default'}{f' --pretrained {spec.pretrained}' if spec.pretrained else ''}), "
            f"the loaded checkpoint is {fingerprint[:12]}; load the first one, or index the videos into another "
            "store with `emcl index build --model`"
        )
    generation.check_files(folder, manifest)
    return manifest
