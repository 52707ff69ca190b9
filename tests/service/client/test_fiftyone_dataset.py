"""Datasets of FiftyOne: what searches find is written as one, and one is read as captions or tags that index."""

import json
import subprocess
import sys

import pytest
from service_support import make_keys, serving
from typer.testing import CliRunner

from indexer.cli import app as index_app
from indexer.store.reader import StoreReader
from service.client import Client
from service.client.fiftyone_dataset import DatasetError, export_dataset, read_dataset

QUERIES = ("a red circle", "a green heart")


@pytest.fixture
def client(page_server):
    with Client(page_server.url) as made:
        yield made


def test_hits_become_samples_and_moments_detections(client, clip_store, tmp_path):
    assert export_dataset(client, tmp_path / "set", QUERIES, k=3) >= 3
    labels = json.loads((tmp_path / "set" / "labels.json").read_text())
    videos = json.loads((tmp_path / "set" / "data.json").read_text())
    assert labels["classes"] == list(QUERIES)
    assert labels["labels"].keys() == videos.keys()
    for query in QUERIES:
        for hit in client.search(query, k=3).hits:
            assert videos[hit.video_id] == hit.path
            found = [one for one in labels["labels"][hit.video_id] if one["label"] == query]
            assert found[0]["timestamps"] == [hit.start, hit.end]
            assert found[0]["confidence"] == pytest.approx(hit.score, abs=1e-5)


def test_what_was_exported_can_be_imported_and_indexed(page_server, tiny_checkpoint, tmp_path):
    command = [sys.executable, "-m", "service.client.fiftyone_dataset"]
    export = [*command, "export", str(tmp_path / "set"), "--query", QUERIES[0], "--k", "2", "--url", page_server.url]
    done = subprocess.run(export, capture_output=True, text=True, check=True)
    assert done.stdout == f"2 videos: {tmp_path / 'set'}\n"
    imported = [*command, "import", str(tmp_path / "set"), str(tmp_path / "captions.jsonl")]
    subprocess.run(imported, check=True, capture_output=True)
    rows = [json.loads(line) for line in (tmp_path / "captions.jsonl").read_text().splitlines()]
    assert [row["tags"] for row in rows] == [[QUERIES[0]]] * 2
    build = ["build", *(row["video"] for row in rows), "--captions", str(tmp_path / "captions.jsonl")]
    build += ["--store", str(tmp_path / "store"), "--model", str(tiny_checkpoint)]
    outcome = CliRunner().invoke(index_app, build)
    assert outcome.exit_code == 0, outcome.output
    with StoreReader.open(tmp_path / "store") as reader:
        assert [video.tags for video in reader.list_videos(0, 5)] == [(QUERIES[0],)] * 2


def test_a_dataset_with_its_media_and_numbered_classes(tmp_path):
    (tmp_path / "data" / "day").mkdir(parents=True)
    for name in ("day/a.mp4", "b.mov"):
        (tmp_path / "data" / name).write_bytes(b"")
    detections = {
        "day/a": [{"label": 1, "support": [1, 30]}, {"label": 1, "support": [60, 90]}, {"label": 0}],
        "b": None,
    }
    (tmp_path / "labels.json").write_text(json.dumps({"classes": ["run", "jump"], "labels": detections}))
    rows = read_dataset(tmp_path, labels_as="captions")
    assert rows == [
        {"video": str(tmp_path / "data" / "day" / "a.mp4"), "captions": ["jump", "run"]},
        {"video": str(tmp_path / "data" / "b.mov"), "captions": []},
    ]


@pytest.mark.parametrize(
    ("labels", "complaint"),
    [
        (None, "cannot be read as JSON"),
        ("[", "cannot be read as JSON"),
        ("[]", "holds no JSON object"),
        ('{"classes": []}', "has no `labels` of samples"),
        ('{"labels": {"c": []}}', "sample 'c' has labels and no video"),
        ('{"labels": {"a": [{"label": 3}]}}', "label 3 is not among the 0 classes"),
        ('{"labels": {"a": [{"label": ""}]}}', "a detection has no label"),
        ('{"labels": {"a": ["x"]}}', "a detection has no label"),
    ],
)
def test_what_is_no_dataset_is_said(labels, complaint, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.mp4").write_bytes(b"")
    if labels is not None:
        (tmp_path / "labels.json").write_text(labels)
    with pytest.raises(DatasetError, match=complaint):
        read_dataset(tmp_path, labels_as="tags")


def test_nothing_is_overwritten_and_paths_are_needed(client, clip_store, tiny_encoder, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    with pytest.raises(DatasetError, match="is not empty"):
        export_dataset(client, tmp_path / "full", QUERIES)
    with pytest.raises(DatasetError, match="no query given"):
        export_dataset(client, tmp_path / "new", ())
    _, tokens = make_keys(tmp_path)
    with serving(clip_store, tiny_encoder, tmp_path, require_keys=True) as web:

        class Blind:
            def search(self, text, **asked):
                answer = web.post(
                    "/v1/search", json={"text": text}, headers={"Authorization": f"Bearer {tokens['search']}"}
                )
                from service.schemas.search import SearchAnswer

                return SearchAnswer.model_validate_json(answer.content)

        with pytest.raises(DatasetError, match="a key of scope admin"):
            export_dataset(Blind(), tmp_path / "new", QUERIES)
    assert not (tmp_path / "new").exists()
