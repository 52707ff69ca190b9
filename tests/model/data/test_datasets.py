"""The published sets: pairing, counts, separate splits, nothing lost quietly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from dataset_support import KINDS, TEST_VIDEOS, dump, make, place, write_video
from pydantic import ValidationError
from typer.testing import CliRunner

from model.cli import app
from model.clip.preprocess import Preprocess
from model.config import SamplingConfig, load_mapping
from model.data.batches import Share
from model.data.check import overlaps, require_disjoint
from model.data.dataset import DatasetError, IncompleteSetError, held_out
from model.data.registry import parse_stored_set, read_splits, training_data
from model.demo.captions import captions_of
from model.demo.corpus import clip_id, write_clip
from model.demo.scene import make_scene
from model.heads.losses import known_pairs

REAL_MSRVTT = Path(__file__).parents[4] / "shared" / "annotations" / "msrvtt"
SAMPLING = SamplingConfig(sample_fps=1.0, max_frames=4)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "video.mp4", seconds=4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_complete_set_has_all_splits_and_its_own_captions(kind, tmp_path, video):
    config = make(kind, tmp_path, video)
    splits = {split: config.open(split) for split in config.splits}
    assert {split: len(found.clips) for split, found in splits.items()} == {
        "train": 6,
        "val": 3,
        "test": TEST_VIDEOS[kind],
    }
    for found in splits.values():
        assert found.videos_lost == 0
        for clip in found.clips:
            assert all(clip.video_id in text for text in clip.captions)
            assert Path(clip.video_id).stem.removeprefix("v_") in clip.path.name
    require_disjoint(splits["train"], splits["test"])
    multi = {kind: found.multi_sentence for kind, found in splits.items()}
    assert multi["test"] == (kind in ("msvd", "vatex"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_set_trains_on_batches_that_depend_on_the_step_alone(kind, tmp_path, video):
    config = make(kind, tmp_path, video, test=2)
    data, again = (
        training_data(config, batch_size=3, preprocess=Preprocess.square(16), sampling=SAMPLING) for _ in range(2)
    )
    batch = data.batch(5)
    assert batch.captions == again.batch(5).captions
    assert batch.frames_BFHWC.shape[0] == 3
    assert sorted(data.batch(0).clip_ids + data.batch(1).clip_ids) == sorted(clip.name for clip in data.clips)
    assert len([name for part in data.validation() for name in part.clip_ids]) == 3


def test_captions_are_grouped_by_video(tmp_path, video):
    """The reference's evaluator gives the last caption of a video to the next one (reference §8, 7)."""
    found = make("msvd", tmp_path, video, test=4).read("test")
    owners = found.video_of_caption
    assert owners.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    for text, owner, name in zip(found.captions, owners, found.caption_ids, strict=True):
        assert text.endswith(found.clips[owner].video_id)
        assert name.startswith(found.clips[owner].video_id)
    assert len(set(found.caption_ids)) == 8


def test_paragraphs_are_joined_and_have_windows(tmp_path, video):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    activity = make("activitynet", tmp_path / "a", video, test=1).read("test").clips[0]
    assert activity.captions == ("First. Of v_test0.",)
    assert (activity.start_seconds, activity.end_seconds) == (0.0, 3.0)
    didemo = make("didemo", tmp_path / "b", video, test=1).read("test").clips[0]
    assert didemo.captions == ("a of 0@N02_test.avi b of 0@N02_test.avi",)
    assert (didemo.start_seconds, didemo.end_seconds) == (0.0, 31.0)


def test_a_clip_of_lsmdc_with_two_sentences_is_one_video(tmp_path, video):
    found = make("lsmdc", tmp_path, video, test=1).read("train")
    assert [len(clip.captions) for clip in found.clips] == [2, 1, 1, 1, 1, 1]
    assert found.clips[0].captions[1] == found.clips[0].captions[0] + " again"


def test_msrvtt_falls_back_to_webm_and_prefers_mp4(tmp_path, video):
    config = make("msrvtt", tmp_path, video, test=2)
    names = [clip.path.name for clip in config.read("test").clips]
    assert names == ["video9999.webm", "video9998.mp4"]
    place(video, config.root, ["video9998.webm"])
    assert config.read("test").clips[1].path.name == "video9998.mp4"


@pytest.mark.parametrize("kind", KINDS)
def test_a_test_set_does_not_shrink_quietly(kind, tmp_path, video, caplog):
    config = make(kind, tmp_path, video)
    gone = config.read("test").clips[7]
    gone.path.unlink()
    with pytest.raises(IncompleteSetError, match=rf"1 of the {TEST_VIDEOS[kind]} .*no video file.*--allow-missing"):
        config.open("test")
    found = config.open("test", allow_missing=True)
    assert found.videos_lost == 1
    assert [item.video_id for item in found.missing] == [gone.video_id]
    assert gone.video_id in caplog.text


def test_annotations_that_are_cut_short_count_as_missing_videos(tmp_path, video):
    config = make("msvd", tmp_path, video, test=600)
    with pytest.raises(IncompleteSetError, match="annotations list 600, the protocol has 670"):
        config.open("test")
    assert config.open("test", allow_missing=True).videos_lost == 70


def test_videos_without_captions_count_as_missing(tmp_path, video):
    config = make("vatex", tmp_path, video)
    records = load_mapping(config.annotations / "vatex_data.json")
    del records["test-_3_000001_000011"]
    records["test-_4_000001_000011"]["enCap"] = []
    dump(config.annotations / "vatex_data.json", records)
    missing = config.read("test").missing
    assert [(item.video_id[:7], item.reason) for item in missing] == [
        ("test-_3", "no captions in the annotations"),
        ("test-_4", "no captions in the annotations"),
    ]


def test_training_on_a_part_is_an_explicit_choice(tmp_path, video):
    config = make("vatex", tmp_path, video, test=1)
    config.read("train").clips[0].path.unlink()
    build = {"batch_size": 2, "preprocess": Preprocess.square(16), "sampling": SAMPLING}
    with pytest.raises(IncompleteSetError, match="allow_missing: true"):
        training_data(config, **build)
    allowed = config.model_copy(update={"allow_missing": True})
    assert len(training_data(allowed, **build).clips) == 5


def test_a_set_without_any_video_is_an_error_even_if_allowed(tmp_path, video):
    config = make("vatex", tmp_path, video, test=1)
    (tmp_path / "empty").mkdir()
    moved = config.model_copy(update={"root": tmp_path / "empty"})
    with pytest.raises(IncompleteSetError, match="no video of the train split"):
        moved.open("train", allow_missing=True)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        config.model_copy(update={"root": tmp_path / "nowhere"}).read("train")


@pytest.mark.parametrize("kind", ["msrvtt", "activitynet"])
def test_selection_videos_are_cut_from_training_and_stay_the_same(kind, tmp_path, video):
    config = make(kind, tmp_path, video, test=1)
    train, selection = config.read("train"), config.read("val")
    require_disjoint(train, selection)
    fewer = config.model_copy(update={"held_out_videos": 2}).read("val")
    assert {clip.name for clip in fewer.clips} < {clip.name for clip in selection.clips}
    assert not selection.multi_sentence
    none = config.model_copy(update={"held_out_videos": 0})
    assert len(none.read("train").clips) == 9
    assert none.splits == ("train", "test")
    assert (
        list(training_data(none, batch_size=2, preprocess=Preprocess.square(16), sampling=SAMPLING).validation()) == []
    )


def test_the_choice_of_selection_videos_never_changes():
    """Results of earlier trainings depend on it."""
    ids = [f"video{n}" for n in range(100)]
    assert held_out("msrvtt", ids, 4) == held_out("msrvtt", ids[::-1], 4)
    assert sorted(held_out("msrvtt", ids, 4)) == EXPECTED_HELD_OUT
    with pytest.raises(DatasetError, match="only 100 training videos"):
        held_out("msrvtt", ids, 100)


EXPECTED_HELD_OUT = ["video23", "video30", "video46", "video57"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_protocol_selects_where_the_released_code_does(kind, tmp_path, video, caplog):
    config = make(kind, tmp_path, video)
    settings = {**config.model_dump(mode="json"), "protocol": "reference"}
    settings.pop("held_out_videos", None)
    reference = parse_stored_set(settings, "test")
    data = training_data(reference, batch_size=2, preprocess=Preprocess.square(16), sampling=SAMPLING)
    on_test = kind not in ("msvd", "lsmdc")
    assert (data.validation_clips == config.read("test").clips) == on_test
    assert ("TEST split" in caplog.text) == on_test
    assert len(data.clips) == (9 if kind in ("msrvtt", "activitynet") else 6)
    if kind in ("msrvtt", "activitynet"):
        with pytest.raises(DatasetError, match="no val split under protocol 'reference'"):
            reference.read("val")
        with pytest.raises(ValidationError, match="held_out_videos"):
            type(reference).model_validate({**settings, "held_out_videos": 2})


def test_splits_that_share_videos_are_refused(tmp_path, video):
    config = make("msvd", tmp_path, video, test=1)
    (config.annotations / "val_list.txt").write_text("train-x_0_9\n", encoding="utf-8")
    with pytest.raises(DatasetError, match=r"1 videos are both in the train and the val split \(train-x_0_9\)"):
        training_data(config, batch_size=2, preprocess=Preprocess.square(16), sampling=SAMPLING)


def test_training_on_test_videos_is_refused_even_if_nothing_selects_on_them(tmp_path, video, caplog):
    config = make("msvd", tmp_path, video, test=2)
    lists = config.annotations
    (lists / "test_list.txt").write_text("test-x_0_9\ntrain-x_0_9\n", encoding="utf-8")
    build = {"batch_size": 2, "preprocess": Preprocess.square(16), "sampling": SAMPLING}
    with pytest.raises(DatasetError, match=r"1 videos are both in the train and the test split \(train-x_0_9\)"):
        training_data(config, **build)
    training_data(config.model_copy(update={"allow_overlap": True}), **build)
    assert "allowed by allow_overlap" in caplog.text
    assert "both in the train and the test" in overlaps(read_splits(config))[0]  # `emcl data check` says so too
    (lists / "test_list.txt").unlink()  # training works without the test set, with a message
    training_data(config, **build)
    assert "could not be checked" in caplog.text
    assert "test_list.txt" in caplog.text


def test_captions_of_one_video_in_a_batch_share_its_identity(tmp_path, video):
    """So the loss can leave them out; the reference's ids differ from process to process (reference §8, 16)."""
    config = make("msrvtt", tmp_path, video, test=2)
    data = training_data(
        config, batch_size=12, preprocess=Preprocess.square(16), sampling=SAMPLING, epoch_of="captions"
    )
    batch = data.batch(0)
    assert len(set(batch.clip_ids)) == 6
    videos, captions = batch.identities.T
    for row in range(12):
        for other in range(12):
            assert (videos[row] == videos[other]) == (batch.clip_ids[row] == batch.clip_ids[other])
            assert (captions[row] == captions[other]) == (row == other)
    known = known_pairs(torch.from_numpy(batch.identities))
    assert known.sum() == 24  # every text with both rows of its video
    shares = [data.batch(0, Share(rank=rank, size=5)).identities for rank in range(5)]
    assert np.array_equal(np.concatenate(shares), batch.identities)


def msrvtt_full(folder, video):
    folder.mkdir()
    (folder / "annotations").mkdir()
    names = [f"video{n}" for n in range(10000)]
    place(video, folder / "videos", [f"{name}.mp4" for name in names])
    sentences = [{"video_id": name, "caption": f"{n} of {name}"} for name in names for n in range(2)]
    dump(folder / "annotations" / "MSRVTT_data.json", {"sentences": sentences})
    return {"kind": "msrvtt", "root": str(folder / "videos"), "annotations": str(folder / "annotations")}


def test_msrvtt_full_and_real_annotations(tmp_path, video):
    settings = msrvtt_full(tmp_path / "set", video)
    full = parse_stored_set({**settings, "train_split": "full"}, "test")
    splits = [full.open(split) for split in full.splits]
    assert [len(found.clips) for found in splits] == [6513, 497, 2990]
    assert all(found.multi_sentence for found in splits)
    if not REAL_MSRVTT.is_dir():
        pytest.skip("the real annotation files are not distributed with the project")
    for file in REAL_MSRVTT.glob("*.csv"):
        place(file, tmp_path / "set" / "annotations", [file.name])
    splits = read_splits(parse_stored_set(settings, "test"))
    assert [len(found.clips) for found in splits] == [8500, 500, 1000]
    assert [len(found.captions) for found in splits] == [17000, 500, 1000]
    assert splits[2].clips[1].captions == ("a little girl does gymnastics",)
    assert splits[2].clips[1].video_id == "video9771"
    for found in splits[:2]:
        require_disjoint(found, splits[2])


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
