"""Embeddings out of a store and into another: the same vectors and hits, other programs' files, and bad input."""

import json

import numpy as np
import pytest
from index_support import DIM, FakeEncoder, fill, location_of, make_clip, settings

from indexer.errors import SourceError
from indexer.store.embedding_files import export_captions, export_segments, import_embeddings
from indexer.store.reader import StoreReader
from indexer.store.writer import StoreWriter
from model.durable import sha256_of_file

FORMATS = ["npy", "parquet"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = tmp_path_factory.mktemp("exchange") / "store"
    with StoreWriter.open(store, settings=settings()) as writer:
        fill(writer, range(6))
        writer.publish(FakeEncoder())
    return store


def needs(file_format):
    if file_format == "parquet":
        pytest.importorskip("pyarrow", reason="the extra `parquet` is not installed")


def imported(source, target):
    with StoreWriter.open(target, settings=settings()) as writer:
        added = import_embeddings(writer, source)
        writer.add_captions(added.captions, FakeEncoder().encode_texts([text for _, text in added.captions]))
        writer.publish(FakeEncoder())
    return added


def hits(store, queries_QD, k=8):
    with StoreReader.open(store) as reader:
        scores, ids = reader.search_videos(queries_QD, k)
        found = [[(segment.video_id, segment.number) for segment in reader.segments(row)] for row in ids]
    return scores, found


@pytest.mark.parametrize("file_format", FORMATS)
def test_what_goes_out_and_in_again_is_found_alike(store, tmp_path, file_format):
    needs(file_format)
    with StoreReader.open(store) as reader:
        written = export_segments(reader, tmp_path / "out", file_format)
        export_captions(reader, tmp_path / "out", file_format)
        assert written.rows == len(reader.segment_ids())
        before = [(video.title, video.tags) for video in reader.list_videos()]
    added = imported(written.files[0], tmp_path / "again")
    assert (added.videos, added.segments, added.known, added.failed) == (6, written.rows, 0, {})
    queries = FakeEncoder().map_rows(None, FakeEncoder().encode_texts(["red", "blue", "a hand"]))
    (left, names), (right, again) = hits(store, queries), hits(tmp_path / "again", queries)
    assert names == again
    assert left.tobytes() == right.tobytes(), "pooled vectors are kept in float32, so nothing is rounded"
    with StoreReader.open(tmp_path / "again") as reader:
        assert [(video.title, video.tags) for video in reader.list_videos()] == before


@pytest.mark.parametrize("file_format", FORMATS)
def test_exported_rows_say_what_they_are(store, tmp_path, file_format):
    needs(file_format)
    with StoreReader.open(store) as reader:
        files = export_segments(reader, tmp_path, file_format).files
        captions = export_captions(reader, tmp_path, file_format).files
        ids = reader.segment_ids()
        segments, vectors = reader.segments(ids), reader.segment_embeddings(ids)
        texts = [caption.text for caption in reader.captions(reader.caption_ids())]
    if file_format == "npy":
        rows = [json.loads(line) for line in files[1].read_text().splitlines()]
        found = np.load(files[0])
        stored = [json.loads(line)["text"] for line in captions[1].read_text().splitlines()]
    else:
        import pyarrow.parquet as parquet

        rows = parquet.read_table(files[0]).to_pylist()
        found = np.array([row.pop("vector") for row in rows], np.float32)
        stored = parquet.read_table(captions[0])["text"].to_pylist()
    assert found.tobytes() == vectors.tobytes()
    keys = ("video_id", "segment", "start_seconds", "end_seconds")
    expected = [(one.video_id, one.number, one.start_seconds, one.end_seconds) for one in segments]
    assert [tuple(row[key] for key in keys) for row in rows] == expected
    assert rows[0]["path"] == "/clips/0.mp4"
    assert stored == texts


def test_a_second_import_changes_nothing_and_files_that_exist_are_not_overwritten(store, tmp_path):
    with StoreReader.open(store) as reader:
        file = export_segments(reader, tmp_path, "npy").files[0]
        with pytest.raises(SourceError, match="exists; name another folder"):
            export_segments(reader, tmp_path, "npy")
    imported(file, tmp_path / "again")
    with StoreWriter.open(tmp_path / "again") as writer:
        revision = writer.catalogue.revision
        added = import_embeddings(writer, file)
        assert (added.videos, added.known) == (0, 6)
        assert writer.catalogue.revision == revision


def test_a_folder_of_clip_retrieval(tmp_path):
    arrow = pytest.importorskip("pyarrow", reason="the extra `parquet` is not installed")
    import pyarrow.parquet as parquet

    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((5, DIM)).astype(np.float16)  # its default type
    there = make_clip(tmp_path / "there.mp4", 1)
    names = [str(there), "/gone/1.jpg", "/gone/2.jpg", "/gone/3.jpg", "/gone/4.jpg"]
    for folder in ("img_emb", "metadata"):
        (tmp_path / "out" / folder).mkdir(parents=True)
    for part, rows in enumerate((slice(0, 3), slice(3, 5))):
        np.save(tmp_path / "out" / "img_emb" / f"img_emb_{part}.npy", vectors[rows])
        table = arrow.table({"image_path": names[rows], "caption": [f"caption of {name}" for name in names[rows]]})
        parquet.write_table(table, tmp_path / "out" / "metadata" / f"metadata_{part}.parquet")
    added = imported(tmp_path / "out", tmp_path / "store")
    assert (added.videos, added.segments, len(added.captions)) == (5, 5, 5)
    with StoreReader.open(tmp_path / "store") as reader:
        known = reader.video(sha256_of_file(there))
        assert known.path == str(there), "a file that is there is known by its bytes"
        assert [caption.text for caption in known.captions] == [f"caption of {there}"]
        query = FakeEncoder().map_rows(None, vectors[3:4].astype(np.float32))
        _, ids = reader.search_videos(query, 1)
        assert reader.video(reader.segments(ids[0])[0].video_id).path == "/gone/3.jpg"
    (tmp_path / "out" / "metadata" / "metadata_1.parquet").unlink()
    with StoreWriter.open(tmp_path / "store") as writer, pytest.raises(SourceError, match="as many of both"):
        import_embeddings(writer, tmp_path / "out")


def write(folder, rows, vectors):
    np.save(folder / "x.npy", np.asarray(vectors, np.float32))
    (folder / "x.jsonl").write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return folder / "x.npy"


GOOD = np.ones((1, DIM))


@pytest.mark.parametrize(
    ("rows", "vectors", "complaint"),
    [
        ([{"path": "a"}], np.ones((1, DIM + 1)), "vectors have shape"),
        ([{"path": "a"}], np.zeros((1, DIM)), "row 0: the vector is zero"),
        ([{"path": "a"}], np.full((1, DIM), np.nan), "row 0: the vector is zero, or holds NaN"),
        ([{"name": "a"}], GOOD, "names what the vector is of"),
        ([{"path": "a"}, {"path": "b"}], GOOD, "fewer than what names them"),
        ([], GOOD, "what names them 0"),
        (["{"], GOOD, "x.jsonl:1: not JSON"),
        (["3"], GOOD, "expected an object, got int"),
        ([{"path": "a", "start_seconds": 3, "end_seconds": 1}], GOOD, "expected 0 <= start <= end"),
        ([], np.zeros((0, DIM)), "holds no rows"),
    ],
)
def test_bad_input_is_refused_with_its_place_and_commits_nothing(tmp_path, rows, vectors, complaint):
    file = write(tmp_path, rows, vectors)
    with StoreWriter.open(tmp_path / "store", settings=settings()) as writer:
        revision = writer.catalogue.revision
        with pytest.raises(SourceError, match=complaint):
            import_embeddings(writer, file)
        assert writer.catalogue.revision == revision
        assert writer.catalogue.states() == {}


def test_sources_that_are_none(tmp_path):
    (tmp_path / "x.npy").write_bytes(b"not an array")
    (tmp_path / "x.jsonl").write_text("")
    with StoreWriter.open(tmp_path / "store", settings=settings()) as writer:
        for name, complaint in (("x.npy", "cannot be read as .npy"), ("none", "is not a .parquet file")):
            with pytest.raises(SourceError, match=complaint):
                import_embeddings(writer, tmp_path / name)
        np.save(tmp_path / "lone.npy", GOOD)
        with pytest.raises(SourceError, match=r"lone.jsonl is missing"):
            import_embeddings(writer, tmp_path / "lone.npy")


def test_the_commands_name_the_model(tiny_checkpoint, clip_store, tmp_path, capsys, monkeypatch):
    from service.cli import main

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["emcl", "store", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code

    assert run("export-embeddings", "--store", clip_store / "store", "--output", tmp_path / "out") == 0
    source, target = tmp_path / "out" / "segments.npy", tmp_path / "again"
    assert run("import-embeddings", source, "--store", target) == 2
    assert "--model" in capsys.readouterr().err
    assert run("import-embeddings", source, "--store", target, "--model", tiny_checkpoint) == 0
    with StoreReader.open(clip_store / "store") as left, StoreReader.open(target) as right:
        assert right.count_videos() == left.count_videos()
        assert location_of(0).video_id not in {video.video_id for video in right.list_videos()}
