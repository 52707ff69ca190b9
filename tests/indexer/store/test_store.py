"""Writing, publishing, reading and verifying a store."""

from __future__ import annotations

import gc
import json
import os
import re
import shutil
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from index_support import DIM, FINGERPRINT, FakeEncoder, fill, location_of, settings, video_of
from library_contract import check_library

from indexer.errors import (
    Damaged,
    IndexFactoryError,
    ModelMismatch,
    NewerFormat,
    NotAStore,
    SettingsConflict,
    StoreError,
    StoreLocked,
    WrongPreprocessing,
)
from indexer.library import EVERYTHING, Wanted
from indexer.store import generation, snapshot
from indexer.store.catalogue import Catalogue, read_settings
from indexer.store.config import STORE_FORMAT, Manifest
from indexer.store.reader import StoreReader
from indexer.store.records import Video, VideoOrder
from indexer.store.schema import MIGRATIONS
from indexer.store.shards import HEADER_BYTES
from indexer.store.verify import verify
from indexer.store.writer import EncodedVideo, StoreWriter
from model.config import SamplingConfig

VIDEOS = 7


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("store") / "s"
    # Small shards, so that everything crosses them.
    with StoreWriter.open(store, settings=settings(), shard_bytes=HEADER_BYTES + 12 * DIM * 2) as writer:
        fill(writer, range(VIDEOS))
        writer.add_locations([location_of(99)])
        writer.fail_video(location_of(99).video_id, "no frame can be decoded")
        writer.add_captions([(None, "free"), (location_of(99).video_id, "of a failed video")], np.ones((2, DIM), "f4"))
        writer.publish(FakeEncoder())
    return store


@pytest.fixture
def store(built: Path, tmp_path: Path) -> Path:
    shutil.copytree(built, tmp_path / "s")
    return tmp_path / "s"


@pytest.fixture
def reader(built: Path) -> Iterator[StoreReader]:
    with StoreReader.open(built, fingerprint=FINGERPRINT) as opened:
        yield opened


def all_segments() -> list[tuple[str, int, np.ndarray]]:
    videos = [video_of(number, 1 + number % 3) for number in range(VIDEOS)]
    return [(video.video_id, part.number, part.features_FD) for video in videos for part in video.segments]


def test_features_come_back_as_they_were_written(reader: StoreReader) -> None:
    expected = {(video_id, number): features for video_id, number, features in all_segments()}
    ids = reader.segment_ids()
    assert len(ids) == len(expected)
    features, mask = reader.segment_features(ids)
    assert features.dtype == np.float32
    assert mask.dtype == bool
    for segment, part, keep in zip(reader.segments(ids), features, mask, strict=True):
        wanted = expected[segment.video_id, segment.number]
        np.testing.assert_array_equal(part[keep], wanted.astype(np.float16).astype(np.float32))
        assert not part[~keep].any()
        assert keep[: len(wanted)].all()
        assert len(segment.timestamps_seconds) == len(wanted)


def test_pooled_and_caption_vectors_keep_full_precision(reader: StoreReader) -> None:
    video = video_of(1, 2)
    found = reader.video(video.video_id)
    assert found is not None
    ids = np.array([segment.segment_id for segment in found.segments])
    np.testing.assert_array_equal(reader.segment_embeddings(ids), np.stack([s.pooled_D for s in video.segments]))
    captions = found.captions
    expected = FakeEncoder().encode_texts([caption.text for caption in captions])
    np.testing.assert_array_equal(reader.caption_embeddings(np.array([c.caption_id for c in captions])), expected)


def test_ids_of_any_shape_with_holes(reader: StoreReader) -> None:
    ids = reader.segment_ids()
    asked = np.array([[ids[3], -1, ids[0]], [-1, -1, ids[3]]])
    features, mask = reader.segment_features(asked)
    assert features.shape == (*asked.shape, mask.shape[-1], DIM)
    assert not mask[asked == -1].any()
    assert not features[asked == -1].any()
    np.testing.assert_array_equal(features[0, 0], features[1, 2])
    assert reader.segment_embeddings(asked).shape == (2, 3, DIM)
    captions = np.array([[reader.caption_ids()[0], -1]])
    assert not reader.caption_embeddings(captions)[0, 1].any()
    nothing, no_mask = reader.segment_features(np.full((2, 2), -1))
    assert nothing.shape == (2, 2, 0, DIM)
    assert no_mask.shape == (2, 2, 0)


def test_unknown_ids_are_an_error(reader: StoreReader) -> None:
    for call in (reader.segment_features, reader.segment_embeddings, reader.caption_embeddings):
        with pytest.raises(KeyError, match="12345"):
            call(np.array([12345]))
    for listing in (reader.segments, reader.captions):
        with pytest.raises(KeyError, match="12345"):
            listing([12345])


def test_search_finds_each_segment_by_its_own_vector(reader: StoreReader) -> None:
    ids = reader.segment_ids()
    queries = FakeEncoder().map_rows(None, reader.segment_embeddings(ids))
    scores, found = reader.search_videos(queries, 3)
    np.testing.assert_array_equal(found[:, 0], ids)
    np.testing.assert_allclose(scores[:, 0], 1, atol=1e-6)
    captions = reader.caption_ids()
    queries = FakeEncoder().map_rows(None, reader.caption_embeddings(captions))
    np.testing.assert_array_equal(reader.search_captions(queries, 1)[1][:, 0], captions)


def test_the_frozen_map_is_the_one_that_was_published(reader: StoreReader) -> None:
    assert reader.frozen_map.strength == 0
    assert reader.frozen_map.mode == "channel"


def test_captions_of_failed_videos_are_not_searchable(reader: StoreReader) -> None:
    texts = {caption.text for caption in reader.captions(reader.caption_ids())}
    assert "free" in texts
    assert "of a failed video" not in texts
    assert reader.manifest.counts.model_dump() == {
        "videos": VIDEOS,
        "segments": len(all_segments()),
        "captions": 2 * VIDEOS + 1,
        "failed": 1,
    }


def test_videos_are_listed_in_the_order_that_is_wanted(reader: StoreReader) -> None:
    """Newest first by when they were committed, titles by their numbers, and what has no segments at the end."""

    def listed(order: VideoOrder) -> list[Video]:
        pages = [reader.list_videos(offset, 3, state=None, order=order) for offset in (0, 3, 6, 9)]
        return [video for page in pages for video in page]

    everything = {video.video_id for video in reader.list_videos(state=None)}
    for order in get_args(VideoOrder):
        assert len(listed(order)) == VIDEOS + 1, order
        assert {video.video_id for video in listed(order)} == everything, order
    assert [video.state for video in listed("newest")] == ["indexed"] * VIDEOS + ["failed"]
    first = [video.segments[0].segment_id for video in listed("newest")[:VIDEOS]]
    assert first == sorted(first, reverse=True)
    lengths = [video.duration_seconds for video in listed("longest")[:VIDEOS]]
    assert lengths == sorted(lengths, reverse=True)
    assert [video.duration_seconds for video in listed("shortest")[:VIDEOS]] == lengths[::-1]
    titles = [video.title for video in listed("title")]
    assert titles == sorted(titles)


def test_titles_are_sorted_with_their_numbers() -> None:
    names = ["clip 10", "Clip 9", "clip 9b", "beach", "clip 009"]
    keys = {name: snapshot.order_of_title(name, None, "id") for name in names}
    assert sorted(names, key=lambda name: keys[name]) == ["beach", "Clip 9", "clip 009", "clip 9b", "clip 10"]


def test_videos_are_listed_in_pages_and_failed_ones_on_request(reader: StoreReader) -> None:
    pages = [reader.list_videos(offset, 3) for offset in (0, 3, 6, 9)]
    assert [len(page) for page in pages] == [3, 3, 1, 0]
    assert [video.video_id for page in pages for video in page] == [location_of(n).video_id for n in range(VIDEOS)]
    (failed,) = reader.list_videos(state="failed")
    assert (failed.reason, failed.segments, failed.duration_seconds) == ("no frame can be decoded", (), None)
    assert len(reader.list_videos(state=None)) == VIDEOS + 1
    video = reader.video(location_of(2).video_id)
    assert video is not None
    assert (video.path, video.tags, len(video.segments), len(video.captions)) == ("/clips/2.mp4", ("even",), 3, 2)
    assert reader.video("0" * 10) is None


def test_segments_are_selected_by_tag_duration_and_video(reader: StoreReader) -> None:
    def chosen(**conditions: object) -> set[int]:
        ids = reader.select_segments(**conditions)
        assert ids.dtype == np.int64
        assert (np.diff(ids) > 0).all()
        return {int(segment.video_id, 16) for segment in reader.segments(ids)}

    assert chosen() == set(range(VIDEOS))
    assert chosen(tags=["even"]) == {0, 2, 4, 6}
    assert chosen(tags=["even", "odd"]) == set()
    assert chosen(min_seconds=60) == {1, 2, 4, 5}
    assert chosen(max_seconds=60, tags=["odd"]) == {1, 3}
    assert chosen(video_ids=[location_of(n).video_id for n in (1, 5, 500)], min_seconds=90) == {5}
    assert chosen(video_ids=[]) == set()


def test_many_threads_share_a_reader(reader: StoreReader) -> None:
    ids = reader.segment_ids()

    def work(number: int) -> tuple[str, float]:
        segment = reader.segments([ids[number % len(ids)]])[0]
        features, _ = reader.segment_features(ids)
        return segment.video_id, float(features.sum())

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, range(64)))
    assert results[: len(ids)] * 2 == (results * 2)[: 2 * len(ids)] or len({total for _, total in results}) == 1


def test_a_closed_reader_says_so(built: Path) -> None:
    reader = StoreReader.open(built)
    reader.close()
    with ThreadPoolExecutor(1) as pool, pytest.raises(ValueError, match="was closed"):
        pool.submit(reader.video, "x").result()


def test_an_old_reader_keeps_its_snapshot_while_others_are_published(store: Path) -> None:
    with StoreReader.open(store) as old:
        before = old.manifest
        with StoreWriter.open(store) as writer:
            writer.remove_videos([location_of(0).video_id])
            fill(writer, [20])
            writer.publish(FakeEncoder())
        with StoreReader.open(store) as new:
            assert new.manifest.generation > before.generation
            assert new.video(location_of(0).video_id) is None
            assert new.video(location_of(20).video_id) is not None
        with ThreadPoolExecutor(1) as pool:  # a thread that opens its connection only now
            video = pool.submit(old.video, location_of(0).video_id).result()
        assert video is not None
        features, mask = old.segment_features(np.array([s.segment_id for s in video.segments]))
        np.testing.assert_array_equal(features[mask], video_of(0).segments[0].features_FD.astype(np.float16))
        assert old.video(location_of(20).video_id) is None
        assert old.manifest.counts.videos == VIDEOS


def test_a_generation_goes_with_its_last_view_and_not_when_garbage_is_collected(built: Path) -> None:
    reader = StoreReader.open(built)
    reader.search_videos(np.ones((1, DIM), "f4"), 3)
    base = weakref.ref(reader.base)
    gc.disable()
    try:
        reader.close()
        del reader
        assert base() is None
    finally:
        gc.enable()


def test_only_the_last_generations_are_kept(store: Path) -> None:
    with StoreWriter.open(store) as writer:
        for number in range(30, 34):
            fill(writer, [number])
            manifest = writer.publish(FakeEncoder())
    names = sorted(path.name for path in (store / "generations").iterdir())
    assert len(names) == 2
    assert names[-1] == manifest.generation == (store / "CURRENT").read_text().strip()


def test_an_emptied_store_is_searched_in_vain(store: Path) -> None:
    with StoreWriter.open(store) as writer:
        writer.remove_videos(list(writer.catalogue.states()))
        with writer.catalogue.transaction():
            writer.catalogue.connection.execute("DELETE FROM captions")
        assert writer.publish(FakeEncoder()).counts.segments == 0
    with StoreReader.open(store) as reader:
        assert (reader.search_videos(np.ones((1, DIM), "f4"), 3)[1] == -1).all()
        assert reader.list_videos() == []
    assert verify(store).problems == []


def test_nothing_at_all_is_not_published(tmp_path: Path) -> None:
    with (
        StoreWriter.open(tmp_path / "s", settings=settings()) as writer,
        pytest.raises(StoreError, match="nothing to publish"),
    ):
        writer.publish(FakeEncoder())
    with pytest.raises(NotAStore, match="nothing was published"):
        StoreReader.open(tmp_path / "s")


def test_another_model_is_refused_with_both_fingerprints(built: Path) -> None:
    with pytest.raises(ModelMismatch, match=f"{FINGERPRINT[:12]}.*{'cd' * 6}.*emcl index build"):
        StoreReader.open(built, fingerprint="cd" * 32)


def test_a_store_of_wrongly_prepared_frames_is_refused_with_the_reason_and_the_remedy(built: Path) -> None:
    """Its features are of the same weights, but of pictures that these were not trained on."""
    former = frozenset({FINGERPRINT})
    with pytest.raises(WrongPreprocessing, match=r"cropped and resized.*emcl index build VIDEOS --store NEW --model"):
        StoreReader.open(built, fingerprint="cd" * 32, former_fingerprints=lambda: former)
    with StoreReader.open(built, fingerprint=FINGERPRINT, former_fingerprints=lambda: former):
        pass  # the loaded model prepares its frames as the store's did


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"segment_seconds": 5.0}, r"segment_seconds is 1.0, asked for 5.0"),
        ({"sampling": SamplingConfig(max_frames=3)}, r"sampling is .*asked for .*max_frames"),
        ({"factory": "HNSW8"}, r"factory is auto, asked for HNSW8.*emcl index rebuild --index"),
    ],
)
def test_other_settings_are_refused(built: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsConflict, match=message):
        StoreWriter.open(built, settings=settings(**changes))
    StoreWriter.open(built, settings=settings()).close()


def test_settings_are_settled_by_the_first_features(tmp_path: Path) -> None:
    store = tmp_path / "s"
    for dim in (5, DIM):  # a first run that ended before anything was encoded binds nobody
        with StoreWriter.open(store, settings=settings(dim=dim)) as writer:
            assert writer.settings.dim == dim
            assert read_settings(store / "catalogue.db") is None
    with StoreWriter.open(store) as writer:
        fill(writer, [1])
    assert read_settings(store / "catalogue.db") == settings()
    with pytest.raises(SettingsConflict, match="dim is 8, asked for 5"):
        StoreWriter.open(store, settings=settings(dim=5))


def test_a_generation_that_is_replaced_while_it_is_opened(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = generation.check_files
    published = []

    def publish_twice_first(folder: Path, manifest: Manifest) -> None:
        if not published:
            with StoreWriter.open(store) as writer:
                for number in (70, 71):
                    fill(writer, [number])
                    published.append(writer.publish(FakeEncoder()))
        real(folder, manifest)

    monkeypatch.setattr(generation, "check_files", publish_twice_first)
    with StoreReader.open(store) as reader:
        assert reader.manifest == published[-1]


def test_there_is_one_writer_and_the_message_says_who(built: Path) -> None:
    with StoreWriter.open(built), StoreReader.open(built) as reader:
        assert reader.manifest.counts.videos == VIDEOS
        for call in (lambda: StoreWriter.open(built), lambda: verify(built)):
            caught: list[BaseException] = []

            def attempt(call: Callable[[], object] = call, caught: list[BaseException] = caught) -> None:
                try:
                    call()
                except StoreLocked as error:
                    caught.append(error)

            thread = threading.Thread(target=attempt)  # a lock taken by this thread would be handed out again
            thread.start()
            thread.join()
            assert f"process {os.getpid()} on" in str(caught[0])
    StoreWriter.open(built).close()


def test_folders_that_are_no_store_are_refused(tmp_path: Path) -> None:
    for call in (StoreReader.open, StoreWriter.open, verify):
        with pytest.raises(NotAStore, match="holds no store"):
            call(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_a_newer_generation_is_refused(store: Path) -> None:
    folder = store / "generations" / (store / "CURRENT").read_text().strip()
    manifest = generation.read_manifest(folder)
    newer = manifest.model_copy(update={"format": STORE_FORMAT + 1})
    (folder / "manifest.json").write_text(newer.to_json())
    with pytest.raises(NewerFormat, match=f"has format {STORE_FORMAT + 1}, this program reads up to {STORE_FORMAT}"):
        StoreReader.open(store)


def test_features_that_overflow_fail_their_video_only(tmp_path: Path) -> None:
    with StoreWriter.open(tmp_path / "s", settings=settings()) as writer:
        writer.add_locations([location_of(1), location_of(2)])
        good, bad = video_of(1), video_of(2)
        part = bad.segments[0]
        huge = EncodedVideo(
            **{f: getattr(bad, f) for f in ("video_id", "name", "duration_seconds", "width", "height", "reason")},
            segments=[
                type(part)(
                    **{
                        **{f: getattr(part, f) for f in part.__dataclass_fields__},
                        "features_FD": part.features_FD * 1e6,
                    }
                )
            ],
        )
        failures = writer.add_videos([good, huge])
        assert list(failures) == [bad.video_id]
        assert "/clips/2.mp4, segment 0: the largest feature is" in failures[bad.video_id]
        assert writer.catalogue.states() == {good.video_id: "indexed", bad.video_id: "failed"}


def test_rows_are_on_the_disk_before_the_catalogue_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        events.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with StoreWriter.open(tmp_path / "s", settings=settings()) as writer:
        writer.add_locations([location_of(1)])
        events.clear()
        writer.catalogue.connection.set_trace_callback(lambda statement: events.append(statement.split()[0]))
        writer.add_videos([video_of(1)])
        writer.catalogue.connection.set_trace_callback(None)
        synced = events.index("000000.npy"), events.index("pooled-000000.npy"), events.index("features")
        assert max(synced) < events.index("BEGIN") < events.index("COMMIT")
        events.clear()
        manifest = writer.publish(FakeEncoder())
    files = {*generation.FILES, "manifest.json"}
    last = [name for name in events if name in files or name in ("generations", ".tmp-CURRENT")]
    assert set(last[:-2]) == files
    assert last[-2:] == ["generations", ".tmp-CURRENT"]
    assert (tmp_path / "s" / "generations" / manifest.generation).is_dir()


def test_another_kind_of_index_is_published_from_what_is_stored(store: Path) -> None:
    with StoreWriter.open(store) as writer:
        writer.change_settings(writer.settings.model_copy(update={"factory": "HNSW8", "options": "efSearch=40"}))
        assert writer.publish(FakeEncoder()).factory == "HNSW8"
        writer.change_settings(writer.settings.model_copy(update={"factory": "IVF9,Flat", "options": ""}))
        current = (store / "CURRENT").read_text()
        with pytest.raises(IndexFactoryError, match="trains on at least"):
            writer.publish(FakeEncoder())
    assert (store / "CURRENT").read_text() == current
    assert verify(store).recall == {"videos": 1.0, "captions": 1.0}


# Verification


def test_a_sound_store_is_found_sound(built: Path) -> None:
    found = verify(built)
    assert (found.problems, found.notes) == ([], [])
    assert found.recall == {"videos": 1.0, "captions": 1.0}
    assert (found.checked_segments, found.checked_captions) == (len(all_segments()), 2 * VIDEOS + 2)


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(bytes(content))


def test_a_flipped_byte_is_found_wherever_it_is(store: Path) -> None:
    current = store / "generations" / (store / "CURRENT").read_text().strip()
    files = [store / "CURRENT", *sorted(current.iterdir()), *sorted((store / "features").iterdir())]
    assert len(files) > 10
    chance = np.random.default_rng(3)
    for path in files:
        size = path.stat().st_size
        for position in {0, size - 1, *chance.integers(0, size, 3).tolist()}:
            if path.name == "CURRENT" and position == size - 1:
                continue  # the newline at its end means nothing
            flip(path, position)
            assert verify(store).problems, f"{path.name}, byte {position} of {size}"
            if current in path.parents or path.name == "CURRENT":
                with pytest.raises(Damaged):
                    StoreReader.open(store)
            flip(path, position)
    assert verify(store).problems == []


@pytest.mark.parametrize("text", [b"caption 1 of 4", b"/clips/3.mp4", b"even", b"no frame can be decoded"])
def test_a_flipped_byte_in_the_catalogue_is_found(store: Path, text: bytes) -> None:
    path = store / "catalogue.db"
    log = store / "catalogue.db-wal"
    assert not log.exists() or log.stat().st_size == 0, "closing the catalogue empties its log"
    flip(path, path.read_bytes().index(text) + 2)
    (problem, *_) = verify(store).problems
    assert "catalogue.db" in problem
    assert "snapshot.db" in problem, "the message says how to go back"


def test_a_damaged_catalogue_goes_back_to_the_published_copy(store: Path) -> None:
    path = store / "catalogue.db"
    path.write_bytes(path.read_bytes()[:5000])
    assert verify(store).problems
    current = store / "generations" / (store / "CURRENT").read_text().strip()
    shutil.copy(current / "snapshot.db", path)
    assert verify(store).problems == []
    with StoreWriter.open(store) as writer:
        fill(writer, [50])
        writer.publish(FakeEncoder())
    assert verify(store).problems == []


def test_a_missing_or_short_shard_is_found(store: Path) -> None:
    path = store / "features" / "000001.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    assert any("rows need" in problem for problem in verify(store).problems)
    path.unlink()
    assert any("is missing" in problem for problem in verify(store).problems)
    with pytest.raises(Damaged, match="is missing"):
        StoreReader.open(store)
    path.write_bytes(content)
    assert verify(store).problems == []


def test_unpublished_work_is_a_note_and_no_damage(store: Path) -> None:
    with StoreWriter.open(store) as writer:
        fill(writer, [40])
    with (store / "features" / "000000.npy").open("ab") as file:
        file.write(b"half a row")
    found = verify(store)
    assert found.problems == []
    assert any("not published" in note for note in found.notes)
    assert any("interrupted" in note for note in found.notes)


def test_changed_rows_are_found_also_beside_unpublished_work(store: Path) -> None:
    with StoreWriter.open(store) as writer:
        fill(writer, [40])
        writer.remove_videos([location_of(3).video_id])
    assert verify(store).problems == []
    with closing(sqlite3.connect(store / "catalogue.db")) as connection:
        connection.execute("UPDATE captions SET text = 'other' WHERE caption_id = 1")
        connection.commit()
    assert any("table captions differs" in problem for problem in verify(store).problems)


def test_low_recall_is_measured(tmp_path: Path) -> None:
    with StoreWriter.open(tmp_path / "s", settings=settings(factory="IVF8,Flat")) as writer:
        fill(writer, range(250), captions=2)
        writer.publish(FakeEncoder())
    found = verify(tmp_path / "s")
    assert found.problems == []
    assert 0.05 < found.recall["videos"] < 0.95
    with StoreWriter.open(tmp_path / "s") as writer:
        writer.change_settings(writer.settings.model_copy(update={"options": "nprobe=8"}))
        writer.publish(FakeEncoder())
    assert verify(tmp_path / "s").recall == {"videos": 1.0, "captions": 1.0}


def test_the_catalogue_is_readable_beside_its_writer(store: Path) -> None:
    with StoreWriter.open(store) as writer:
        fill(writer, [60])
        with closing(Catalogue.open_readonly(store / "catalogue.db")) as catalogue:
            assert location_of(60).video_id in catalogue.states()


def test_the_manifest_is_plain_json(built: Path) -> None:
    folder = built / "generations" / (built / "CURRENT").read_text().strip()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["fingerprint"] == FINGERPRINT
    assert manifest["factory"] == "Flat"
    assert manifest["model_spec"] == {"model": "demo", "pretrained": None}
    assert set(manifest["files"]) == {path.name for path in folder.iterdir()} - {"manifest.json"}


def test_the_format_is_documented() -> None:
    text = (Path(__file__).parents[3] / "docs" / "store-format.md").read_text()
    tables = set(re.findall(r"CREATE TABLE (\w+)", "".join(MIGRATIONS)))
    for name in (*generation.FILES, *tables, *Manifest.model_fields):
        assert f"`{name}`" in text, name
    assert f"Format {STORE_FORMAT};" in text


TEXTS = np.random.default_rng(0).standard_normal((4, DIM)).astype(np.float32)


@pytest.mark.parametrize("later", [False, True])
def test_the_embedded_store_answers_as_an_exhaustive_search(tmp_path: Path, later: bool) -> None:
    with StoreWriter.open(tmp_path / "s", settings=settings()) as writer:
        fill(writer, range(12))
        writer.publish(FakeEncoder())
        if later:
            fill(writer, range(12, 15))
            writer.remove_videos([f"{5:064x}"])
    with StoreReader.open(tmp_path / "s") as view:
        check_library(view, view, TEXTS, ks=(1, 3, 50))


def test_exceptions_add_up_and_keep_their_order() -> None:
    once = Wanted(tags=("a",)).leaving_out(videos=["v2"], segments=[3])
    twice = once.leaving_out(videos=["v1", "v2"], segments=[1])
    assert twice == Wanted(tags=("a",), without_videos=("v1", "v2"), without_segments=(1, 3))
    assert twice.without_exceptions == Wanted(tags=("a",))
    assert EVERYTHING.is_everything
    assert not EVERYTHING.leaving_out(segments=[1]).is_everything
