"""RandAugment: the operations equal timm's, the draws have the stated distribution, batches repeat exactly."""

import importlib
import json
from collections import Counter

import numpy as np
import pytest
from dataset_support import place, write_video
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from model.clip.compat import import_open_clip
from model.clip.preprocess import Preprocess
from model.config import SamplingConfig
from model.data.augment import (
    Augmentation,
    NoAugmentation,
    Operation,
    RandAugmentConfig,
    apply_operations,
    augment,
    draw_operations,
)
from model.data.batches import Share
from model.data.manifest import ManifestConfig, ManifestData
from model.train.config import TrainConfig
from model.train.data import batches

CONFIG = RandAugmentConfig()
# Ours and timm's, which calls them "increasing" where strength 0 leaves the picture alone.
NAMES = {
    "autocontrast": "AutoContrast",
    "equalize": "Equalize",
    "invert": "Invert",
    "rotate": "Rotate",
    "posterize": "PosterizeIncreasing",
    "solarize": "SolarizeIncreasing",
    "solarize_add": "SolarizeAdd",
    "colour": "ColorIncreasing",
    "contrast": "ContrastIncreasing",
    "brightness": "BrightnessIncreasing",
    "sharpness": "SharpnessIncreasing",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateXRel",
    "translate_y": "TranslateYRel",
}


def picture_frames(count=2, height=24, width=36):
    """Smooth colours and noise, not square, every frame another."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (count, 4, 6, 3)).astype(np.uint8)
    size = (width, height)
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)) for frame in small])


@pytest.fixture(scope="module")
def timm_augment():
    import_open_clip()  # makes torchvision importable, which timm needs
    return importlib.import_module("timm.data.auto_augment")


def only(name, magnitude=7.0, deviation=0.0):
    """What ``draw_operations`` makes of one operation: both signs, if it has two."""
    config = RandAugmentConfig(operations=1, probability=1.0, magnitude=magnitude, magnitude_deviation=deviation)
    drawn = [draw_operations(config, np.random.default_rng(seed))[0] for seed in range(300)]
    return sorted({operation.argument for operation in drawn if operation.name == name})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("magnitude", [0.0, 3.3, 7.0, 9.9])
def test_every_operation_equals_timms(name, magnitude, timm_augment):
    to_argument = timm_augment.LEVEL_TO_ARG[NAMES[name]]
    arguments = {to_argument(magnitude, {"translate_pct": 0.45}) if to_argument else () for _ in range(60)}
    ours = only(name, magnitude)
    assert ours == pytest.approx(sorted(value for values in arguments for value in values) or [0.0])
    function = timm_augment.NAME_TO_OP[NAMES[name]]
    frames = picture_frames()
    for values in arguments:
        settings = {"fillcolor": (128, 128, 128), "resample": Image.Resampling.BICUBIC}
        expected = [np.asarray(function(Image.fromarray(frame), *values, **settings)) for frame in frames]
        changed = apply_operations(frames, [Operation(name=name, argument=values[0] if values else 0.0)])
        np.testing.assert_array_equal(changed, np.stack(expected))


def test_posterize_leaves_a_bit_at_full_strength():
    assert only("posterize", 10.0) == [1]
    assert apply_operations(picture_frames(), [Operation(name="posterize", argument=1)]).max() == 128


def test_the_operations_are_the_fifteen_increasing_ones(timm_augment):
    assert set(NAMES.values()) == set(timm_augment.rand_augment_choices("", increasing=True))
    drawn = Counter(o.name for seed in range(500) for o in draw_operations(CONFIG, np.random.default_rng(seed)))
    assert drawn.keys() == NAMES.keys()


def test_draws_have_the_stated_distribution():
    rng = np.random.default_rng(7)
    drawn = [draw_operations(CONFIG, rng) for _ in range(6000)]
    counts = np.array([len(operations) for operations in drawn])
    assert counts.mean() == pytest.approx(2.0, abs=0.06)  # 4 operations, each done with probability 0.5
    assert counts.max() == 4
    assert np.mean(counts == 0) == pytest.approx(0.5**4, abs=0.015)
    assert any(len({o.name for o in operations}) < len(operations) for operations in drawn)  # with replacement
    names = Counter(operation.name for operations in drawn for operation in operations)
    assert min(names.values()) > 0.8 * 12000 / 15
    assert max(names.values()) < 1.2 * 12000 / 15
    degrees = np.array([o.argument for operations in drawn for o in operations if o.name == "rotate"])
    assert np.mean(degrees > 0) == pytest.approx(0.5, abs=0.06)
    assert np.abs(degrees).mean() == pytest.approx(21, abs=0.3)  # magnitude 7 of 10, of 30 degrees
    assert np.abs(degrees).std() == pytest.approx(1.5, abs=0.2)


def test_magnitudes_stay_within_their_range():
    wild = RandAugmentConfig(magnitude=9.0, magnitude_deviation=20.0, probability=1.0)
    rng = np.random.default_rng(1)
    degrees = [abs(o.argument) for _ in range(2000) for o in draw_operations(wild, rng) if o.name == "rotate"]
    assert max(degrees) == pytest.approx(30)
    assert min(degrees) == 0


def test_all_frames_of_a_clip_are_changed_alike():
    one = picture_frames(count=1)
    changed = [
        augment(np.concatenate([one, one, one]), CONFIG, np.random.default_rng(seed)).tolist() for seed in range(30)
    ]
    assert all(first == second == third for first, second, third in changed)
    assert sum(frames[0] != one[0].tolist() for frames in changed) > 15


def test_the_global_generators_are_neither_read_nor_moved():
    frames = picture_frames()
    np.random.seed(0)
    before = np.random.get_state()[1].tolist()
    first = augment(frames, CONFIG, np.random.default_rng(3))
    assert np.random.get_state()[1].tolist() == before
    np.random.seed(1)
    np.testing.assert_array_equal(augment(frames, CONFIG, np.random.default_rng(3)), first)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("augment")
    place(write_video(folder / "video.mp4"), folder, [f"{name}.mp4" for name in "abcdef"])
    records = [{"video": f"{name}.mp4", "captions": ["first", "second"]} for name in "abcdef"]
    for name, rows in (("train", records[:4]), ("val", records[4:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def data_of(manifest, augmentation=CONFIG, seed=0, batch_size=4):
    config = ManifestConfig(
        kind="manifest", train=manifest / "train.jsonl", validation=manifest / "val.jsonl", seed=seed
    )
    sampling = SamplingConfig(sample_fps=1.0, max_frames=4)
    return ManifestData(
        config, batch_size=batch_size, preprocess=Preprocess.square(16), sampling=sampling, augmentation=augmentation
    )


def test_batches_depend_on_seed_step_and_row_alone(manifest):
    data = data_of(manifest)
    late, early = data.batch(5).frames_BFHWC, data.batch(2).frames_BFHWC
    np.testing.assert_array_equal(data_of(manifest).batch(5).frames_BFHWC, late)  # whatever was asked for before
    shares = [data.batch(5, Share(rank=rank, size=3)).frames_BFHWC for rank in range(3)]
    np.testing.assert_array_equal(np.concatenate(shares), late)  # whatever the number of processes
    assert not np.array_equal(late, early)
    assert not np.array_equal(data_of(manifest, seed=1).batch(5).frames_BFHWC, late)
    plain = data_of(manifest, augmentation=NoAugmentation()).batch(5)
    assert not np.array_equal(plain.frames_BFHWC, late)
    assert plain.captions == data.batch(5).captions  # the other draws are the same with and without


def test_a_resumed_run_with_workers_sees_the_same_frames(manifest):
    """The reference draws from numpy's global state in its workers (reference §8, 27)."""
    data = data_of(manifest)
    alone = list(batches(data, range(4), share=Share(), workers=0))
    resumed = list(batches(data, range(1, 4), share=Share(), workers=2))
    for batch, again in zip(alone[1:], resumed, strict=True):
        np.testing.assert_array_equal(batch.frames_BFHWC, again.frames_BFHWC)
        assert batch.clip_ids == again.clip_ids


def test_validation_clips_are_never_changed(manifest):
    strong = RandAugmentConfig(probability=1.0)
    (changed,), (plain,) = (list(data_of(manifest, how).validation()) for how in (strong, NoAugmentation()))
    np.testing.assert_array_equal(changed.frames_BFHWC, plain.frames_BFHWC)


def test_a_configuration_names_the_augmentation():
    read = TypeAdapter(Augmentation).validate_python
    assert read("none") == NoAugmentation()
    assert read("randaugment") == read({"kind": "randaugment"}) == RandAugmentConfig()
    assert read({"kind": "randaugment", "magnitude": 5}).magnitude == 5
    for wrong in ("flip", {"kind": "none", "magnitude": 5}, {"kind": "randaugment", "magnitude": 11}):
        with pytest.raises(ValidationError):
            read(wrong)


def test_generated_scenes_are_not_augmented(tiny_config):
    with pytest.raises(ValidationError, match="would falsify generated scenes"):
        TrainConfig.model_validate(
            {"model": tiny_config, "data": {"kind": "synthetic"}, "steps": 1, "augmentation": "randaugment"}
        )
