"""Reading a store: one immutable generation, opened once and shared by any number of threads.

What is searchable, listed and counted comes from the generation's own files, so a reader sees one consistent snapshot
while a writer adds videos and publishes new generations beside it. Writing is in ``indexer.writer``.

Legend: Q queries, k neighbours, F frames, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from indexer import ann, generation
from indexer.config import Manifest
from indexer.errors import Damaged, ModelMismatch
from indexer.features import CAPTIONS, FRAMES, POOLED, ShardReader
from indexer.records import Caption, Segment, Video, VideoState
from indexer.snapshot import Snapshot

if TYPE_CHECKING:
    from model.emcl import FrozenMap

__all__ = ["Caption", "Manifest", "Segment", "StoreReader", "Video"]

FloatArray = npt.NDArray[np.float32]
IdArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


class StoreReader:
    """An open generation. Thread-safe; use as a context manager or call ``close`` when no call is running."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        """Use ``StoreReader.open``, which checks the files first."""
        folder = path / generation.GENERATIONS / manifest.generation
        self.path = path
        self.manifest = manifest
        self.frozen_map: FrozenMap = generation.load_frozen_map(folder)
        self._shards = generation.open_shards(path, manifest)
        self._segments = np.load(folder / generation.SEGMENT_PLACES_FILE, mmap_mode="r")
        self._captions = np.load(folder / generation.CAPTION_PLACES_FILE, mmap_mode="r")
        self._segment_ids = np.ascontiguousarray(self._segments["id"])
        self._caption_ids = np.ascontiguousarray(self._captions["id"])
        self._videos_index = ann.load(folder / generation.VIDEO_INDEX)
        self._captions_index = ann.load(folder / generation.CAPTION_INDEX)
        self._snapshot = Snapshot(folder / generation.SNAPSHOT)

    @classmethod
    def open(cls, path: str | Path, *, fingerprint: str | None = None) -> StoreReader:
        """Open the current generation of the store in ``path``.

        ``fingerprint`` is the loaded checkpoint's; without it any model's generation is opened (to list it, say).
        Sizes and checksums of the generation's files and sizes and headers of its shards are checked; what the shards
        contain is checked by ``emcl index verify``. Raises ``NotAStore``, ``ModelMismatch``, ``NewerFormat`` or
        ``Damaged``, all ``ValueError``.
        """
        path = Path(path)
        while True:
            name = generation.current_name(path)
            try:
                return cls(path, _checked(path, name, fingerprint))
            except (Damaged, FileNotFoundError):
                # Two generations published while this one was being opened delete it; then there is a newer one.
                if generation.current_name(path) == name:
                    raise

    def close(self) -> None:
        """Release database connections and memory maps."""
        self._snapshot.close()
        for reader in self._shards.values():
            reader.close()

    def __enter__(self) -> StoreReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def search_videos(
        self, queries_QD: FloatArray, k: int, allowed_segment_ids: IdArray | None = None
    ) -> tuple[FloatArray, IdArray]:
        """The k nearest segments of each query: scores ``(Q, k)`` float32, descending, and segment ids ``(Q, k)``.

        ``queries_QD`` are mapped by ``frozen_map`` and L2-normalised, so scores are cosines. ``allowed_segment_ids``
        restricts the answer. Where there are fewer than k, ids are -1 and scores -inf. A query's answer does not
        depend on the others.
        """
        return self._videos_index.search(queries_QD, k, allowed_segment_ids)

    def search_captions(self, queries_QD: FloatArray, k: int) -> tuple[FloatArray, IdArray]:
        """The k nearest captions of each query, as ``search_videos`` does for segments."""
        return self._captions_index.search(queries_QD, k)

    def segment_features(self, ids: IdArray) -> tuple[FloatArray, BoolArray]:
        """Frame features of segments: ``(*ids.shape, F, D)`` float32, raw, and a mask ``(*ids.shape, F)``.

        F is the longest of them; padding is zero. An id of -1 gives an all-False mask. Raises ``KeyError`` for any
        other id that this generation does not hold.
        """
        places, present = _places(self._segments, self._segment_ids, ids, "segment")
        frames = np.where(present, places["frames"], 0)
        longest = int(frames.max(initial=0))
        features = self._reader(FRAMES.name).gather_blocks(places["shard"], places["row"], frames, longest)
        mask = np.arange(longest) < frames[:, None]
        shape = np.shape(ids)
        return features.astype(np.float32).reshape(*shape, longest, self.manifest.dim), mask.reshape(*shape, longest)

    def segment_embeddings(self, ids: IdArray) -> FloatArray:
        """Pooled raw vectors of segments, before the frozen map: ``(*ids.shape, D)`` float32; zeros for -1."""
        places, present = _places(self._segments, self._segment_ids, ids, "segment")
        rows = self._reader(POOLED.name).gather_blocks(
            places["pooled_shard"], places["pooled_row"], present.astype(np.int64), 1
        )
        return rows[:, 0].astype(np.float32, copy=False).reshape(*np.shape(ids), self.manifest.dim)

    def caption_embeddings(self, ids: IdArray) -> FloatArray:
        """Raw text features of captions: ``(*ids.shape, D)`` float32; zeros for an id of -1."""
        places, present = _places(self._captions, self._caption_ids, ids, "caption")
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

    def list_videos(self, offset: int = 0, limit: int = 100, *, state: VideoState | None = "indexed") -> list[Video]:
        """A page of videos, ordered by id; ``state`` None lists all, whatever became of them."""
        return self._snapshot.list_videos(offset, limit, state)

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
        return self._snapshot.select_segments(tags, min_seconds, max_seconds, video_ids)

    def segment_ids(self) -> IdArray:
        """``(N,)`` ids of all segments, ascending."""
        return self._segment_ids

    def caption_ids(self) -> IdArray:
        """``(N,)`` ids of all searchable captions, ascending."""
        return self._caption_ids

    def _reader(self, kind: str) -> ShardReader:
        return self._shards[kind]


def _checked(path: Path, name: str, fingerprint: str | None) -> Manifest:
    """The manifest of generation ``name``, after its files were compared with it."""
    folder = path / generation.GENERATIONS / name
    manifest = generation.read_manifest(folder)
    if fingerprint is not None and fingerprint != manifest.fingerprint:
        spec = manifest.model_spec
        raise ModelMismatch(
            f"generation {manifest.generation} of {path} was built with checkpoint {manifest.fingerprint[:12]} "
            f"(--model {spec.model or 'default'}{f' --pretrained {spec.pretrained}' if spec.pretrained else ''}), "
            f"the loaded checkpoint is {fingerprint[:12]}; load the first one, or index the videos into another "
            "store with `emcl index build --model`"
        )
    generation.check_files(folder, manifest)
    return manifest


def _places(
    table: npt.NDArray[np.void], sorted_ids: IdArray, ids: IdArray, what: str
) -> tuple[npt.NDArray[np.void], BoolArray]:
    """Records of ``ids``, flattened, and which of them are there; -1 gives a record of zeros."""
    flat = np.asarray(ids, dtype=np.int64).ravel()
    present: BoolArray = flat != ann.NO_NEIGHBOUR
    position = np.searchsorted(sorted_ids, flat)
    known = position < len(sorted_ids)
    known[known] = sorted_ids[position[known]] == flat[known]
    if not np.array_equal(known, present):
        raise KeyError(f"this generation has no {what} {flat[known != present][0]}")
    records = np.zeros(len(flat), dtype=table.dtype)
    records[present] = table[position[present]]
    return records, present
