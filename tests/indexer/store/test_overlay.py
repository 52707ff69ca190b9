"""The overlay: a store that is written to answers at any moment as one that was published at that moment."""

from __future__ import annotations

import random
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from index_support import DIM, FakeEncoder, fill, location_of, settings

from indexer.errors import Damaged
from indexer.library import Wanted
from indexer.locations import Location
from indexer.store import generation, overlay, schema
from indexer.store.reader import StoreReader
from indexer.store.records import VideoOrder
from indexer.store.shards import HEADER_BYTES
from indexer.store.verify import verify
from indexer.store.writer import StoreWriter

SMALL_SHARDS = HEADER_BYTES + 12 * DIM * 2
TIE = 1e-6
QUERIES = FakeEncoder().map_rows(None, np.random.default_rng(5).standard_normal((7, DIM)).astype(np.float32))


class SameMap(FakeEncoder):
    """A mapper that keeps the map of the generation that is current."""

    def __init__(self, store: Path) -> None:
        super().__init__()
        self._map = generation.load_correction(store / "generations" / generation.current_name(store)).frozen

    def fit_frozen_map(self, rows_ND: np.ndarray) -> object:
        return self._map


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "s"
    with open_writer(path) as writer:
        fill(writer, range(6))
        writer.add_captions([(None, "free"), (None, "of nobody")], FakeEncoder().encode_texts(["free", "of nobody"]))
        writer.publish(FakeEncoder())
    return path


@pytest.fixture
def reader(store: Path) -> Iterator[StoreReader]:
    with StoreReader.open(store) as opened:
        yield opened


def open_writer(path: Path) -> StoreWriter:
    return StoreWriter.open(path, settings=settings(), shard_bytes=SMALL_SHARDS)


def rebuilt(store: Path, where: Path) -> Path:
    """A copy of the store in which everything is published, with the same frozen map."""
    shutil.copytree(store, where)
    with open_writer(where) as writer:
        writer.publish(SameMap(where))
    return where


def answers(reader: StoreReader) -> dict[str, object]:
    """Everything that a reader can be asked, in a form that compares."""
    found: dict[str, object] = {"counts": reader.counts.model_dump()}
    for state in ("indexed", "failed", "pending", None):
        videos = reader.list_videos(0, 1000, state=state)
        found[f"videos {state}"] = [plain(video) for video in videos]
        assert reader.count_videos(state=state) == len(videos)
        assert [v.video_id for n in range(0, len(videos), 3) for v in reader.list_videos(n, 3, state=state)] == [
            video.video_id for video in videos
        ]
    segments, captions = reader.segment_ids(), reader.caption_ids()
    assert (len(segments), len(captions)) == (reader.counts.segments, reader.counts.captions)
    found["segments"] = [plain(segment) for segment in reader.segments(segments)]
    found["captions"] = reader.captions(captions)
    assert reader.list_captions(0, 1000) == found["captions"]
    features, mask = reader.segment_features(segments)
    found["features"] = [part[keep].tobytes() for part, keep in zip(features, mask, strict=True)]
    found["pooled"] = reader.segment_embeddings(segments).tobytes()
    found["texts"] = reader.caption_embeddings(captions).tobytes()
    for tags in ((), ("even",), ("odd", "red"), ("red",)):
        for bounds in ({}, {"min_seconds": 40.0}, {"max_seconds": 40.0}):
            allowed = reader.select_segments(tags=tags, **bounds)
            found[f"allowed {tags} {bounds}"] = allowed.tolist()
            found[f"hits {tags} {bounds}"] = hits(reader.search_videos(QUERIES, 5, Wanted(tags=tuple(tags), **bounds)))
        found[f"tagged {tags}"] = [video.video_id for video in reader.list_videos(0, 99, tags=tags, state=None)]
    for k in (1, 4, 50):
        found[f"hits {k}"] = hits(reader.search_videos(QUERIES, k))
        found[f"caption hits {k}"] = hits(reader.search_captions(QUERIES, k))
    for order in get_args(VideoOrder):
        listed = reader.list_videos(0, 99, state=None, order=order)
        found[f"in order {order}"] = [(video.video_id, video.title) for video in listed]
    found["titled"] = [video.video_id for video in reader.list_videos(0, 99, title="TITLE 1")]
    return found


def plain(value: object) -> dict[str, object]:
    fields = {name: getattr(value, name) for name in value.__dataclass_fields__}
    if "segments" in fields:
        fields["segments"] = [plain(segment) for segment in fields["segments"]]
    if "timestamps_seconds" in fields:
        fields["timestamps_seconds"] = fields["timestamps_seconds"].tolist()
    return fields


class Near(list[float]):
    """Scores that compare within the rounding of sums."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Near) and len(self) == len(other) and np.allclose(self, other, rtol=0, atol=TIE)

    __hash__ = None


def hits(found: tuple[np.ndarray, np.ndarray]) -> list[tuple[object, list[list[int]]]]:
    """Scores, which compare within the rounding of sums, and ids by score.

    The fake encoder's map, which a publication uses, and the frozen map of the overlay round otherwise. So where the
    last ones are equal but for that, which of them are among the k is up to the last bit: they are left out.
    """
    plain_rows = []
    for score_k, id_k in zip(*found, strict=True):
        last = score_k[-1] if np.isfinite(score_k[-1]) else -2.0
        groups: list[list[int]] = []
        for number, (score, name) in enumerate(zip(score_k, id_k, strict=True)):
            if name < 0 or score - last < TIE:
                continue
            if number == 0 or score_k[number - 1] - score > TIE:
                groups.append([])
            groups[-1].append(int(name))
        scores = [float(score) for score in score_k if np.isfinite(score)]
        plain_rows.append((Near(scores), [sorted(group) for group in groups]))
    return plain_rows


CHANGES = (
    *("add", "add", "remove", "again", "fail", "move"),
    *("tag", "untag", "title", "caption", "uncaption", "publish"),
)


class Chance:
    """Random changes of a store, each a function of the seed alone."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.next_video = 100

    def change(self, writer: StoreWriter) -> str:
        name = self.random.choice(CHANGES)
        getattr(self, f"_{name}")(writer)
        return name

    def _known(self, writer: StoreWriter, state: str = "indexed") -> list[str]:
        return sorted(video for video, found in writer.catalogue.states().items() if found == state)

    def _some(self, writer: StoreWriter) -> list[str]:
        known = self._known(writer)
        return self.random.sample(known, min(len(known), self.random.randint(1, 2)))

    def _add(self, writer: StoreWriter) -> None:
        numbers = range(self.next_video, self.next_video + self.random.randint(1, 3))
        self.next_video = numbers.stop
        fill(writer, numbers)

    def _remove(self, writer: StoreWriter) -> None:
        writer.remove_videos(self._some(writer))

    def _again(self, writer: StoreWriter) -> None:
        """A video that is removed and added again, with other ids."""
        for video_id in self._some(writer):
            number = int(video_id, 16)
            if number < 10**6:
                writer.remove_videos([video_id])
                fill(writer, [number])

    def _tag(self, writer: StoreWriter) -> None:
        writer.add_tags({video: ["red", self.random.choice(["even", "odd"])] for video in self._some(writer)})

    def _untag(self, writer: StoreWriter) -> None:
        for video in self._some(writer):
            writer.edit_video(video, tags=["blue"])

    def _title(self, writer: StoreWriter) -> None:
        for video in self._some(writer):
            writer.edit_video(video, title=self.random.choice(["", "Title 1", "title 12"]))

    def _caption(self, writer: StoreWriter) -> None:
        # The same text again and again: equal vectors, whose order must not depend on where they are.
        texts = [(video, self.random.choice(["twin", "other"])) for video in (*self._some(writer), None)]
        new = [caption for caption in texts if not writer.catalogue.has_caption(*caption)]
        if new:
            writer.add_captions(new, FakeEncoder().encode_texts([text for _, text in new]))

    def _uncaption(self, writer: StoreWriter) -> None:
        rows = writer.catalogue.connection.execute("SELECT caption_id FROM captions").fetchall()
        writer.remove_captions([row[0] for row in self.random.sample(rows, min(2, len(rows)))])

    def _fail(self, writer: StoreWriter) -> None:
        location = location_of(10**6 + self.random.randint(0, 3))
        writer.add_locations([location])
        writer.fail_video(location.video_id, f"reason {self.random.random()}")
        if not writer.catalogue.has_caption(location.video_id, "of a failed one"):
            writer.add_captions([(location.video_id, "of a failed one")], FakeEncoder().encode_texts(["x"]))

    def _move(self, writer: StoreWriter) -> None:
        """A path that had one video has another one's bytes now; and a path that is forgotten."""
        known = self._known(writer)
        if len(known) > 1:
            first, second = self.random.sample(known, 2)
            path = f"/clips/{int(first, 16)}.mp4"
            writer.add_locations([Location(path=path, video_id=second, size_bytes=10, modified_ns=2)])
            writer.add_locations([], forgotten=[f"/clips/{int(second, 16)}.mp4"])

    def _publish(self, writer: StoreWriter) -> None:
        if self.random.random() < 0.5:
            writer.publish(FakeEncoder())


SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 7))]


@pytest.mark.parametrize("seed", SEEDS)
def test_after_any_sequence_of_changes_the_answers_are_those_of_a_rebuilt_store(
    store: Path, tmp_path: Path, seed: int
) -> None:
    chance = Chance(seed)
    view = StoreReader.open(store)
    for step in range(7):
        before, was = view, answers(view) if step % 4 == 0 else None
        with open_writer(store) as writer:
            done = [chance.change(writer) for _ in range(chance.random.randint(1, 4))]
            view = view.refreshed() or view
        if was is not None:
            assert answers(before) == was, "a view that is in use never changes"
        if before is not view:
            assert before.version != view.version
            before.close()
        with StoreReader.open(rebuilt(store, tmp_path / f"rebuilt {step}")) as fresh:
            assert fresh.overlay_rows == 0
            expected = answers(fresh)
        assert answers(view) == expected, done
        with StoreReader.open(store) as reopened:
            assert answers(reopened) == expected, done
            assert reopened.version == view.version
        shutil.rmtree(tmp_path / f"rebuilt {step}")
    view.close()
    assert verify(store).problems == []


def test_the_log_of_changes_says_what_a_comparison_of_all_rows_finds(store: Path) -> None:
    chance = Chance(99)
    for _ in range(10):
        with open_writer(store) as writer:
            for _ in range(3):
                chance.change(writer)
        current = generation.read_current(store)
        snapshot = store / "generations" / current.generation / "snapshot.db"
        with closing(sqlite3.connect("file::memory:", uri=True, isolation_level=None)) as database:
            overlay.attach(database, overlay.readable_uri(store / "catalogue.db"), snapshot)
            overlay.changed_by_comparison(database, len(schema.MIGRATIONS))
            compared = {row[0] for row in database.execute("SELECT video_id FROM changed_videos")}
            texts = {row[0] for row in database.execute("SELECT caption_id FROM changed_captions")}
            query = "SELECT {} FROM store.{} WHERE revision > ?"
            rows = database.execute(query.format("video_id", "changed_videos"), (current.revision,)).fetchall()
            logged = {row[0] for row in rows}
            rows = database.execute(query.format("caption_id", "changed_captions"), (current.revision,)).fetchall()
            logged_texts = {row[0] for row in rows}
        assert compared <= logged, "a change that is not logged is never seen"
        assert texts <= logged_texts


def test_additions_are_found_and_deletions_are_not_before_anything_is_published(
    store: Path, reader: StoreReader
) -> None:
    gone, new = location_of(2).video_id, location_of(50).video_id
    with open_writer(store) as writer:
        writer.remove_videos([gone])
        fill(writer, [50])
        later = reader.refreshed()
        assert later is not None
        with later:
            assert later.video(gone) is None
            video = later.video(new)
            assert video is not None
            own = np.array([segment.segment_id for segment in video.segments])
            rows = FakeEncoder().map_rows(None, later.segment_embeddings(own))
            np.testing.assert_array_equal(later.search_videos(rows, 1)[1][:, 0], own)
            _, found = later.search_videos(QUERIES, later.counts.segments)
            assert (found >= 0).all(), "those that are gone are made up for"
            assert later.refreshed() is None
    assert reader.video(gone) is not None
    assert reader.video(new) is None


@pytest.mark.parametrize("factory", ["HNSW8", "IVF2,Flat", "SQ8"])
def test_k_answers_remain_when_most_of_an_approximate_index_is_gone(tmp_path: Path, factory: str) -> None:
    with StoreWriter.open(tmp_path / "s", settings=settings(factory=factory, options="")) as writer:
        fill(writer, range(80), captions=0)
        writer.publish(FakeEncoder())
        writer.remove_videos([location_of(n).video_id for n in range(60)])
        with StoreReader.open(tmp_path / "s") as reader:
            k = 8 if factory.startswith("IVF") else reader.counts.segments
            _, found = reader.search_videos(QUERIES, k)
            assert (found >= 0).sum() >= 0.9 * found.size
            assert not np.isin(found, reader.base.segments.ids[: reader.base.manifest.counts.segments // 2]).any()
            with pytest.raises(KeyError):
                reader.segment_features(reader.base.segments.ids[:1])


def test_a_catalogue_of_the_first_format_is_compared_as_a_whole(store: Path, tmp_path: Path) -> None:
    """What a run of the former program committed and did not publish is found, though nothing logged it."""
    snapshot = store / "generations" / generation.current_name(store) / "snapshot.db"
    with open_writer(store) as writer:
        writer.remove_videos([location_of(1).video_id])
        fill(writer, [60])
        writer.remove_captions([writer.catalogue.caption_ids([(None, "free")])[0]])
    for path in (store / "catalogue.db", snapshot):
        to_first_format(path)
    expected = answers_of_rebuilt(store, tmp_path)
    with StoreReader.open(store) as reader:
        assert reader.counts.videos == 6
        assert answers(reader) == expected
    open_writer(store).close()  # migrates; the log begins after what is there
    with StoreReader.open(store) as reader:
        assert answers(reader) == expected


def to_first_format(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        for kind, name in database.execute(
            "SELECT type, name FROM sqlite_schema WHERE type = 'trigger' OR name IN"
            " ('titles', 'changed_videos', 'changed_captions', 'change_log', 'sources', 'inodes', 'videos_by_state',"
            " 'documents_fts', 'documents', 'document_counts', 'cues', 'transcripts', 'recordings', 'read_recordings')"
            " ORDER BY type DESC"
        ).fetchall():
            database.execute(f"DROP {kind} {name}")
        database.execute("PRAGMA user_version = 1")
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def answers_of_rebuilt(store: Path, tmp_path: Path) -> dict[str, object]:
    where = tmp_path / "rebuilt"
    shutil.copytree(store, where)
    manifest = generation.read_current(where)
    folder = where / "generations" / manifest.generation
    check = generation.check_of(folder / "snapshot.db")
    for place in (where, store):  # the snapshot was changed by the test: its checksum follows
        manifest = manifest.model_copy(update={"files": {**manifest.files, "snapshot.db": check}})
        (place / "generations" / manifest.generation / "manifest.json").write_text(manifest.to_json())
    with open_writer(where) as writer:
        writer.publish(SameMap(where))
    with StoreReader.open(where) as fresh:
        return answers(fresh)


def test_a_catalogue_that_cannot_be_read_or_is_too_old_is_refused_and_a_view_stays(
    store: Path, reader: StoreReader
) -> None:
    path = store / "catalogue.db"
    content = path.read_bytes()
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("UPDATE meta SET value = '1' WHERE key = 'revision'")
    with pytest.raises(Damaged, match=r"is at revision 1, but revision .* was published"):
        reader.refreshed()
    path.write_bytes(content[:4096] + b"\xff" * 8192)
    for call in (reader.refreshed, lambda: StoreReader.open(store)):
        with pytest.raises(ValueError, match=r"catalogue\.db"):
            call()
    assert reader.list_videos()
    path.unlink()
    with StoreReader.open(store) as alone:  # a copy of what was published, without the catalogue
        assert alone.counts == alone.manifest.counts


def test_readers_follow_a_writer_without_a_wrong_answer(store: Path) -> None:
    """Threads that refresh and search while videos come and go: each view agrees with itself."""
    stop = threading.Event()
    wrong: list[str] = []

    def follow() -> None:
        view = StoreReader.open(store)
        while not stop.is_set():
            new = view.refreshed()
            if new is not None:
                view.close()
                view = new
            _, ids = view.search_videos(QUERIES, 500)
            found = {int(i) for i in ids[0] if i >= 0}
            if found != set(view.segment_ids().tolist()) or len(found) != view.counts.segments:
                wrong.append(f"{len(found)} found of {view.counts.segments}")
            videos = {segment.video_id for segment in view.segments(sorted(found))}
            if videos != {video.video_id for video in view.list_videos(0, 1000)}:
                wrong.append("other videos are listed than are found")
            view.segment_features(view.segment_ids())
        view.close()

    def guarded() -> None:
        try:
            follow()
        except Exception as error:
            wrong.append(repr(error))

    threads = [threading.Thread(target=guarded) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        chance = Chance(7)
        with open_writer(store) as writer:
            for _ in range(25):
                chance.change(writer)
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    assert wrong == []
