"""MSR-VTT from files to report: the real annotation files, generated videos under the real names."""

import json
from pathlib import Path

import pytest
import yaml
from dataset_support import dump, place
from typer.testing import CliRunner

from model.cli import app
from model.demo.captions import captions_of
from model.demo.corpus import clip_id, write_clip
from model.demo.scene import make_scene

REAL = Path(__file__).parents[4] / "shared" / "annotations" / "msrvtt"
SCENES = 24
VIDEOS = 10000


def invoke(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None, f"{arguments}: {result.output}"
    return result.stdout


@pytest.fixture(scope="module")
def msrvtt(tmp_path_factory):
    """The set's folder: 10,000 names for a few compressed videos, every caption describing its own video's scene."""
    if not REAL.is_dir():
        pytest.skip("the real annotation files are not distributed with the project")
    folder = tmp_path_factory.mktemp("msrvtt")
    scenes = [make_scene(0, "train", index) for index in range(SCENES)]
    (folder / "original").mkdir()
    for index, scene in enumerate(scenes):
        write_clip(scene, folder / "original" / f"{clip_id(0, 'train', index)}.mp4")
    invoke("data", "compress", folder / "original", folder / "small", "--workers", 1)
    for number in range(VIDEOS):
        name = clip_id(0, "train", number % SCENES)
        place(folder / "small" / f"{name}.mp4", folder / "videos", [f"video{number}.mp4"])
    (folder / "annotations").mkdir()
    for file in REAL.glob("*.csv"):
        place(file, folder / "annotations", [file.name])
    texts = [captions_of(scene, 0, index) for index, scene in enumerate(scenes)]
    sentences = [{"video_id": f"video{n}", "caption": text} for n in range(VIDEOS) for text in texts[n % SCENES]]
    dump(folder / "annotations" / "MSRVTT_data.json", {"sentences": sentences, "videos": []})
    return folder


@pytest.mark.slow
def test_compress_check_train_and_evaluate(msrvtt, tiny_config):
    settings = {
        "model": tiny_config.model_dump(mode="json"),
        "data": {
            "kind": "msrvtt",
            "root": str(msrvtt / "videos"),
            "annotations": str(msrvtt / "annotations"),
            "train_split": "9k",
        },
        **{"batch_size": 8, "steps": 2, "workers": 0, "validate_every": 2, "checkpoint_every": 2, "log_every": 1},
    }
    config = msrvtt / "run.yaml"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    counts = invoke("data", "check", "--config", config)
    assert "| train | 8,500 |" in counts
    assert "| val | 500 | 500 | pairs | 0 |" in counts
    assert "| test | 1,000 of 1,000 | 1,000 | pairs | 0 |" in counts

    invoke("train", "--config", config, "--output", msrvtt / "run", "--device", "cpu")
    log = [json.loads(line) for line in (msrvtt / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert log[-1]["validation"]["text_to_video"]["queries"] == 500

    report = msrvtt / "report.json"
    checkpoint = msrvtt / "run" / "model.safetensors"
    evaluate = ["evaluate", "--data", config, "--model", checkpoint, "--json", report, "--device", "cpu"]
    table = invoke(*evaluate)
    assert "pooling without EMCL" in table
    written = json.loads(report.read_text(encoding="utf-8"))
    facts = {name: written[name] for name in ("data", "split", "videos", "captions", "videos_lost")}
    assert facts == {"data": "msrvtt", "split": "test", "videos": 1000, "captions": 1000, "videos_lost": 0}
    assert all(row["text_to_video"]["queries"] == 1000 for row in written["rows"])
