"""Data sets from outside: manifests with windows, shipped configurations, ``emcl data check``, ``emcl evaluate``."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from dataset_support import KINDS, make, place, write_video
from typer.testing import CliRunner

from model.cli import app
from model.clip.preprocess import Preprocess
from model.config import SamplingConfig
from model.data.augment import NoAugmentation, RandAugmentConfig
from model.data.clips import load_frames
from model.data.dataset import DatasetError, IncompleteSetError
from model.data.manifest import ManifestConfig, ManifestData, open_manifest, read_manifest
from model.data.registry import load_stored_set, open_for_evaluation
from model.train.config import TrainConfig, load_train_config

ROOT = Path(__file__).parents[3]
SAMPLING = SamplingConfig(sample_fps=1.0, max_frames=4)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "video.mp4", seconds=4)


def manifest(folder, *records):
    file = folder / "captions.jsonl"
    file.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return file


def test_a_manifest_cuts_windows(tmp_path, video):
    place(video, tmp_path, ["a.mp4"])
    records = [{"video": "a.mp4", "captions": ["x\u2028y"], "start": s, "end": s + 1, "tags": ["t"]} for s in (0, 1, 2)]
    clips = read_manifest(manifest(tmp_path, *records, {"video": "a.mp4", "captions": ["x"], "start": 3.0}))
    greys = [load_frames(clip, preprocess=Preprocess.square(32), sampling=SAMPLING) for clip in clips]
    assert [len(frames) for frames in greys] == [1, 1, 1, 1]
    np.testing.assert_allclose([frames.mean() for frames in greys], [0, 50, 100, 150], atol=3)
    assert len({clip.name for clip in clips}) == 4
    data = ManifestData(
        ManifestConfig(kind="manifest", train=tmp_path / "captions.jsonl"),
        batch_size=4,
        preprocess=Preprocess.square(32),
        sampling=SAMPLING,
    )
    assert sorted(round(float(frames.mean()) / 50) for frames in data.batch(0).frames_BFHWC) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "window", [{"start": -1}, {"end": "3"}, {"start": 2, "end": 2}, {"end": 0}, {"start": True}, {"start": None}]
)
def test_a_wrong_window_is_named(tmp_path, window):
    with pytest.raises(ValueError, match="line 1 has"):
        read_manifest(manifest(tmp_path, {"video": "a.mp4", "captions": ["x"], **window}))
    file = tmp_path / "nan.jsonl"
    file.write_text('{"video": "a.mp4", "captions": ["x"], "end": NaN}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="line 1 has"):
        read_manifest(file)


def test_a_manifest_does_not_shrink_quietly(tmp_path, video):
    place(video, tmp_path, ["a.mp4"])
    file = manifest(tmp_path, *({"video": f"{name}.mp4", "captions": ["x"]} for name in "ab"))
    with pytest.raises(IncompleteSetError, match=r"1 of the 2 videos .*b\.mp4 \(no video file\)"):
        open_manifest(file, "test")
    assert open_for_evaluation(tmp_path, "test", allow_missing=True).videos_lost == 1


def test_lines_of_one_video_are_one_clip_and_captions_are_not_empty(tmp_path, video):
    place(video, tmp_path, ["a.mp4"])
    rows = [("./a.mp4", "one"), ("a.mp4", "two")]
    lines = [{"video": name, "captions": [text]} for name, text in rows]
    window = {"video": "a.mp4", "captions": ["three"], "start": 1}
    whole, part = read_manifest(manifest(tmp_path, *lines, window))
    assert (whole.captions, part.captions) == (("one", "two"), ("three",))
    with pytest.raises(ValueError, match=r"line 1 must have .*non-empty texts"):
        read_manifest(manifest(tmp_path, {"video": "a.mp4", "captions": ["one", " "]}))


def overlapping(folder, video, train, validation, **more):
    """A set of two manifests in two folders over one folder of videos, and its configuration file."""
    place(video, folder, ["videos/a.mp4", "videos/b.mp4"])
    files = {}
    for name, records in (("train", train), ("validation", validation)):
        (folder / name).mkdir()
        rows = [{"video": f"../videos/{record.pop('video')}", "captions": ["x"], **record} for record in records]
        files[name] = str(manifest(folder / name, *rows))
    config = ManifestConfig.model_validate({"kind": "manifest", **files, **more})
    path = folder / "set.yaml"
    path.write_text(yaml.safe_dump({"data": config.model_dump(mode="json")}), encoding="utf-8")
    return config, CliRunner().invoke(app, ["data", "check", "--config", str(path)])


def build(config):
    return ManifestData(config, batch_size=2, preprocess=Preprocess.square(16), sampling=SAMPLING)


def test_check_and_training_agree_about_manifests_that_overlap(tmp_path, video, caplog):
    lists = {"train": [{"video": "a.mp4"}, {"video": "b.mp4"}], "validation": [{"video": "b.mp4", "start": 1}]}
    (tmp_path / "refused").mkdir()
    config, checked = overlapping(tmp_path / "refused", video, **json.loads(json.dumps(lists)))
    assert checked.exit_code == 1
    assert "1 videos are both in the train and the val split" in checked.stdout
    with pytest.raises(DatasetError, match=r"both in the train and the val split .*b\.mp4.*allow_overlap: true"):
        build(config)

    (tmp_path / "allowed").mkdir()
    config, checked = overlapping(tmp_path / "allowed", video, **lists, allow_overlap=True)
    assert checked.exit_code == 0
    assert "1 videos are both" in checked.stdout
    assert len(build(config).clips) == 2
    assert "allowed by allow_overlap" in caplog.text


def test_windows_of_one_video_that_do_not_touch_are_no_overlap(tmp_path, video):
    train = [{"video": "a.mp4", "end": 1}, {"video": "b.mp4"}]
    config, checked = overlapping(tmp_path, video, train, [{"video": "a.mp4", "start": 1}])
    assert checked.exit_code == 0, checked.output
    assert len(build(config).validation_clips) == 1


def test_a_link_to_a_training_video_is_that_video(tmp_path, video):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "link.mp4").symlink_to("b.mp4")
    config, checked = overlapping(tmp_path, video, [{"video": "a.mp4"}, {"video": "b.mp4"}], [{"video": "link.mp4"}])
    assert checked.exit_code == 1
    with pytest.raises(DatasetError, match="1 videos are both"):
        build(config)


@pytest.mark.parametrize("kind", KINDS)
def test_the_shipped_configuration_has_the_papers_values(kind):
    config = load_train_config(ROOT / "configs" / f"{kind}.yaml")
    assert config.data.kind == kind
    long = kind in ("activitynet", "didemo")
    words, frames = config.model.tokenizer.max_words, config.model.sampling.max_frames
    assert (words, frames) == ((64, 64) if long else (32, 12))
    emcl = config.model.emcl
    values = (emcl.mode, emcl.num_bases, emcl.iterations, emcl.beta, emcl.sigma, emcl.momentum)
    assert values == ("reference", 32, 9, 3.0, 1.0, 0.9)
    assert config.batch_size == 128
    # a run's config.json is a configuration too
    assert TrainConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("kind", KINDS)
def test_the_shipped_configuration_augments_where_the_released_code_does(kind):
    augmentation = load_train_config(ROOT / "configs" / f"{kind}.yaml").augmentation
    assert augmentation == (RandAugmentConfig() if kind in ("msrvtt", "msvd", "lsmdc") else NoAugmentation())


def test_the_reference_configuration_repeats_the_released_code():
    config = load_train_config(ROOT / "configs" / "msrvtt-reference.yaml")
    assert (config.optimiser.kind, config.optimiser.train_patches) == ("bert-adam", False)
    assert config.optimiser.encoder_learning_rate == pytest.approx(1e-3 * config.optimiser.learning_rate)
    assert (config.epochs, config.epoch_of, config.duplicates) == (5, "captions", "negatives")
    assert (config.model.pooling.mask, config.model.emcl.mode) == ("after", "reference")
    assert (config.data.protocol, config.augmentation) == ("reference", RandAugmentConfig())
    assert TrainConfig.model_validate(config.model_dump(mode="json")) == config


def test_check_counts_and_lists_what_is_missing(tmp_path, video):
    config = make("didemo", tmp_path, video)
    arguments = ["data", "check", "--kind", "didemo", "--root", str(config.root)]
    arguments += ["--annotations", str(config.annotations), "--json", str(tmp_path / "x.json")]
    whole = CliRunner().invoke(app, arguments)
    assert whole.exit_code == 0, whole.output
    assert "| test | 1,004 of 1,004 | 1,004 | pairs | 0 | not tried |" in whole.stdout

    for clip in config.read("test").clips[:20]:
        clip.path.unlink()
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert result.stdout.count("no video file") == 20  # all of them, not the first few
    written = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert [split["videos_lost"] for split in written["splits"]] == [0, 0, 20]


def test_check_decodes_on_request(tmp_path, video):
    config = make("vatex", tmp_path, video, test=1)
    broken = config.read("val").clips[0].path
    broken.unlink()
    broken.write_bytes(b"not a video")
    file = tmp_path / "set.yaml"
    file.write_text(yaml.safe_dump({"data": config.model_dump(mode="json")}), encoding="utf-8")
    assert load_stored_set(file) == config
    result = CliRunner().invoke(app, ["data", "check", "--config", str(file), "--decode"])
    assert result.exit_code == 1
    assert f"val: {broken.stem}: {broken.name} is not a video" in result.stdout


def test_check_wants_one_description(tmp_path):
    assert CliRunner().invoke(app, ["data", "check"]).exit_code == 2
    result = CliRunner().invoke(app, ["data", "check", "--kind", "msvd", "--train-split", "7k"])
    assert isinstance(result.exception, DatasetError)
    assert "train_split" in str(result.exception)
    file = tmp_path / "demo.yaml"
    file.write_text("data: {kind: synthetic}\n", encoding="utf-8")
    result = CliRunner().invoke(app, ["data", "check", "--config", str(file)])
    assert "does not describe a data set" in str(result.exception)


def test_evaluation_of_a_set_says_how_many_videos_it_lost(tmp_path, video):
    config = make("vatex", tmp_path, video, test=3)
    file, scores = tmp_path / "set.yaml", tmp_path / "scores.json"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    arguments = ["evaluate", "--data", str(file), "--json", str(scores), "--device", "cpu"]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, IncompleteSetError)
    result = CliRunner().invoke(app, [*arguments, "--allow-missing"])
    assert result.exit_code == 0, result.output
    assert "1497 videos of the test split are missing" in result.stdout
    written = json.loads(scores.read_text(encoding="utf-8"))
    assert (written["data"], written["split"], written["videos"], written["videos_lost"]) == ("vatex", "test", 3, 1497)
