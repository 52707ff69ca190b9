"""What every engine behind ``indexer.library.Library`` must answer: the hits of an exhaustive search."""

from __future__ import annotations

import itertools

import numpy as np

from indexer.library import EVERYTHING, Library, Wanted
from indexer.store.reader import StoreReader
from indexer.store.records import Video

DAY = 86400.0

PREDICATES = (
    EVERYTHING,
    Wanted(tags=("even",)),
    Wanted(tags=("odd",), min_seconds=60.0),
    Wanted(max_seconds=30.0),
    Wanted(min_seconds=31.0, max_seconds=59.0),
    Wanted(tags=('no such "tag" \\ \'',)),
    Wanted(video_ids=(f"{1:064x}", f"{2:064x}")),
    Wanted(video_ids=()),
    Wanted(tags=("even",), without_videos=(f"{2:064x}", f"{4:064x}"), without_segments=(1, 7)),
    Wanted(recorded_from=3 * DAY, recorded_until=9 * DAY),
    Wanted(tags=("even",), recorded_from=4 * DAY),
    Wanted(recorded_until=5 * DAY, max_seconds=59.0),
    Wanted(camera="PIXEL"),
    Wanted(camera="100%_"),
    Wanted(min_height=720),
    Wanted(folder="/clips"),
    Wanted(folder="/clip"),
    EVERYTHING.leaving_out(videos=[f"{3:064x}"], segments=[2, 9]),
)


def matching(view: StoreReader, wanted: Wanted) -> np.ndarray:
    """Ids of the segments that a predicate lets through, video by video."""
    found = []
    for video in view.list_videos(limit=100_000):
        seconds = video.duration_seconds
        fits = [
            set(wanted.tags) <= set(video.tags),
            wanted.min_seconds is None or seconds >= wanted.min_seconds,
            wanted.max_seconds is None or seconds <= wanted.max_seconds,
            wanted.video_ids is None or video.video_id in wanted.video_ids,
            video.video_id not in wanted.without_videos,
            _was_recorded(video, wanted),
        ]
        if all(fits):
            found += [s.segment_id for s in video.segments if s.segment_id not in wanted.without_segments]
    return np.array(sorted(found), dtype=np.int64)


def _was_recorded(video: Video, wanted: Wanted) -> bool:
    time, camera = video.recording.recorded_seconds, video.recording.camera
    return all(
        (
            wanted.recorded_from is None or (time is not None and time >= wanted.recorded_from),
            wanted.recorded_until is None or (time is not None and time < wanted.recorded_until),
            wanted.camera is None or (camera is not None and wanted.camera.lower() in camera.lower()),
            wanted.min_height is None or min(video.width, video.height) >= wanted.min_height,
            wanted.folder is None or any(path.startswith(f"{wanted.folder}/") for path in video.paths),
        )
    )


def exhaustive(
    items_NM: np.ndarray, ids_N: np.ndarray, queries_QM: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k best of all, in double precision; equal scores by id; padded."""
    scores_QN = queries_QM.astype(np.float64) @ items_NM.astype(np.float64).T
    scores, ids = np.full((len(queries_QM), k), -np.inf), np.full((len(queries_QM), k), -1)
    for q, row in enumerate(scores_QN):
        order = np.lexsort((ids_N, -np.round(row, 7)))[:k]
        scores[q, : len(order)], ids[q, : len(order)] = row[order], ids_N[order]
    return scores, ids


def check_library(library: Library, truth: StoreReader, texts_QD: np.ndarray, *, ks: tuple[int, ...]) -> None:
    """Compare ``library`` with an exhaustive search over the vectors of ``truth``, a view of the same state."""
    correction = library.correction
    queries_QM = correction.queries(texts_QD, "text", "videos")
    for wanted, k in itertools.product(PREDICATES, ks):
        ids_N = matching(truth, wanted)
        assert library.count_matching(wanted) == len(ids_N), wanted
        items_NM = correction.items(truth.segment_embeddings(ids_N), "videos")
        _same(library.search_videos(queries_QM, k, wanted), exhaustive(items_NM, ids_N, queries_QM, k), f"{wanted} {k}")
        for q in range(len(queries_QM)):
            alone = library.search_videos(queries_QM[[q]], k, wanted)
            together = library.search_videos(queries_QM, k, wanted)
            np.testing.assert_array_equal(alone[1][0], together[1][q])
            np.testing.assert_array_equal(alone[0][0], together[0][q])  # bit for bit
    ids_N = truth.caption_ids()
    items_NM = correction.items(truth.caption_embeddings(ids_N), "captions")
    asked_QM = correction.queries(texts_QD, "video", "captions")
    for k in ks:
        _same(library.search_captions(asked_QM, k), exhaustive(items_NM, ids_N, asked_QM, k), f"captions {k}")


def _same(found: tuple[np.ndarray, np.ndarray], expected: tuple[np.ndarray, np.ndarray], what: str) -> None:
    # Cosines of up to 1 from float32 sums over at most some hundred coordinates: 1e-6 is ten units in the last place.
    np.testing.assert_allclose(found[0], expected[0], atol=1e-6, err_msg=what)
    assert (found[0][:, 1:] <= found[0][:, :-1]).all(), what
    different = found[1] != expected[1]
    if different.any():  # only neighbours whose scores agree to the tolerance may change places
        again = np.sort(found[1], axis=1) == np.sort(expected[1], axis=1)
        assert again.all(), f"{what}: {found[1]} is not {expected[1]}"
