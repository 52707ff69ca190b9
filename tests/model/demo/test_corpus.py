"""The demo corpus: deterministic, splits that share nothing, captions that describe the clip, readable files."""

import json
from dataclasses import replace

import numpy as np
import pytest

from model.clip.preprocess import Preprocess
from model.config import SamplingConfig
from model.data.batches import stack_clips
from model.data.scenes import ScenesConfig, ScenesData
from model.demo.captions import captions_of, describe, describe_briefly
from model.demo.corpus import CLIP_SIZE, write_clip, write_corpus
from model.demo.render import render
from model.demo.scene import (
    COLOURS,
    CORNERS,
    MOTIONS,
    PATTERNS,
    SHAPES,
    SPLITS,
    describes,
    make_scene,
    recall_ceiling,
    vary,
)
from model.video.sampling import decode

SAMPLING = SamplingConfig(sample_fps=2.0, max_frames=8)


def times(scene, fps=2.0):
    return np.arange(round(scene.duration_seconds * fps)) / fps


@pytest.fixture(scope="module")
def scenes():
    return {split: [make_scene(0, split, index) for index in range(300)] for split in SPLITS}


def test_a_scene_depends_on_its_name_only(scenes):
    assert make_scene(0, "train", 17) == scenes["train"][17]
    assert make_scene(1, "train", 17) != scenes["train"][17]
    assert captions_of(scenes["val"][3], 0, 3) == captions_of(make_scene(0, "val", 3), 0, 3)


def test_no_combination_occurs_in_two_splits(scenes):
    seen = {split: {scene.combination for scene in members} for split, members in scenes.items()}
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["val"]
    assert not seen["val"] & seen["test"]
    assert all(scene.split == split for split, members in scenes.items() for scene in members)


def test_a_hard_negative_differs_in_what_is_told_and_stays_in_its_split(scenes):
    rng = np.random.default_rng(0)
    for scene in scenes["train"][:100]:
        varied = vary(scene, rng)
        assert varied.split == "train"
        assert not (describes(scene, varied) and describes(varied, scene))


def test_every_value_is_drawn(scenes):
    train = scenes["train"]
    assert {scene.colour for scene in train} == set(COLOURS)
    assert {scene.shape for scene in train} == set(SHAPES)
    assert {scene.motion for scene in train} == set(MOTIONS)
    assert {scene.pattern for scene in train} == set(PATTERNS)
    assert {scene.second.corner for scene in train if scene.second} == set(CORNERS)


def test_a_full_caption_describes_everything(scenes):
    """Scenes that differ in a described attribute never get the same caption, whatever words are drawn."""
    described = {}
    for scene in scenes["train"]:
        shown = replace(scene, look=None, duration_seconds=0)
        for seed in range(10):
            caption = describe(scene, np.random.default_rng(seed))
            assert described.setdefault(caption, shown) == shown
    for caption in described:
        assert "a orange" not in caption


def test_short_captions_are_shorter(scenes):
    rng = np.random.default_rng(0)
    full = np.mean([len(describe(scene, rng)) for scene in scenes["train"]])
    assert np.mean([len(describe_briefly(scene, rng)) for scene in scenes["train"]]) < full / 2


def test_the_ceiling_counts_the_clips_that_a_caption_is_true_of(scenes):
    scene = replace(scenes["test"][0], second=None, then_colour=None, visibility="always")
    more = replace(scene, second=make_scene(0, "test", 1).second or scenes["test"][2].second)
    more = more if more.second else replace(scene, visibility="appears")
    other = replace(scene, colour="red" if scene.colour != "red" else "blue")
    assert describes(scene, more)
    assert not describes(more, scene)
    assert recall_ceiling([scene, more, other]) == pytest.approx((100 * 2.5 / 3, 100 * 2.5 / 3))


def test_test_captions_are_almost_never_ambiguous():
    ceiling, _ = recall_ceiling([make_scene(0, "test", index) for index in range(500)])
    assert ceiling > 97


def test_frames_show_what_is_told(scenes):
    scene = next(s for s in scenes["train"] if s.motion == "left" and not s.then_motion and s.visibility == "always")
    plain = replace(scene, colour="red", background="black", pattern="plain", second=None, then_colour=None)
    frames = render(plain, times(plain), 64).astype(int)
    red = (frames[..., 0] - frames[..., 1] > 80) & (frames[..., 0] > 120)
    centres = [np.mean(np.nonzero(mask)[1]) for mask in red]
    assert np.all(np.diff(centres) < 0)


def test_a_disappearing_object_is_gone_at_the_end(scenes):
    scene = next(s for s in scenes["train"] if s.visibility == "disappears")
    alone = replace(scene, second=None)
    last = render(alone, np.array([alone.duration_seconds]), 64)
    empty = render(replace(alone, visibility="appears"), np.array([0.0]), 64)
    np.testing.assert_array_equal(last, empty)


def test_all_shapes_and_patterns_draw_at_any_size(scenes):
    for shape in SHAPES:
        for pattern in PATTERNS:
            scene = replace(scenes["train"][0], shape=shape, pattern=pattern)
            small, large = render(scene, times(scene), 32), render(scene, times(scene), 96)
            assert small.shape == (len(times(scene)), 32, 32, 3)
            assert small.dtype == np.uint8
            assert abs(small.mean() - large.mean()) < 2


def test_decoded_files_look_like_what_training_draws(scenes, tmp_path):
    """The gap between rendering at the model's size and H.264 + resizing is a few grey levels."""
    for number, scene in enumerate(scenes["test"][:4]):
        path = tmp_path / f"{number}.mp4"
        write_clip(scene, path)
        batch = decode(path, sampling=SAMPLING)
        assert (batch.width, batch.height) == (CLIP_SIZE, CLIP_SIZE)
        np.testing.assert_allclose(batch.timestamps_seconds, times(scene), atol=1e-6)
        shown = Preprocess.square(64)(batch.frames).astype(int)
        assert np.abs(shown - render(scene, times(scene), 64).astype(int)).mean() < 5


def test_a_corpus_has_files_captions_and_tags(tmp_path):
    listing = write_corpus(tmp_path / "corpus", split="val", count=3, workers=1)
    records = [json.loads(line) for line in listing.read_text(encoding="utf-8").splitlines()]
    assert len(records) == 3
    for index, record in enumerate(records):
        scene = make_scene(0, "val", index)
        assert (listing.parent / record["video"]).stat().st_size > 1000
        assert record["captions"] == captions_of(scene, 0, index)
        assert record["captions"][0] != record["captions"][1]
        assert record["tags"] == [scene.colour, scene.shape, f"{scene.background} background"]


def test_batches_are_a_function_of_the_step():
    config = ScenesConfig(seed=5, hard_negatives=0.5, short_captions=0.3, validation_clips=7)
    data, again = (
        ScenesData(config, batch_size=6, preprocess=Preprocess.square(32), sampling=SAMPLING) for _ in range(2)
    )
    first, same, other = data.batch(3), again.batch(3), data.batch(4)
    np.testing.assert_array_equal(first.frames_BFHWC, same.frames_BFHWC)
    assert first.captions == same.captions
    assert len(set(first.clip_ids)) == 6
    assert not set(first.clip_ids) & set(other.clip_ids)
    assert sum(len(batch.captions) for batch in data.validation()) == 7


def test_stacking_pads_with_zeros():
    frames, mask = stack_clips([np.full((1, 2, 2, 3), 7, np.uint8), np.full((3, 2, 2, 3), 9, np.uint8)])
    np.testing.assert_array_equal(mask, [[True, False, False], [True, True, True]])
    assert frames[0, 1:].sum() == 0


@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_object_steps_show_no_two_clips_alike(step):
    """Each caption of an object step is true of its own clip only, so no pair is a false negative."""
    data = scenes_data(object_warmup_steps=4)
    batch = data.batch(step)
    again = data.batch(step)
    assert batch.captions == again.captions
    assert np.array_equal(batch.frames_BFHWC, again.frames_BFHWC)
    assert batch.frames_BFHWC.shape[1] == 2
    sized = any(size in batch.captions[0] for size in ("small", "little", "tiny", "large", "big", "huge"))
    objects = [object_of(caption, sized=sized) for caption in batch.captions]
    assert len(set(objects)) == len(objects) == min(data.batch_size, 112 if sized else 56)


def test_steps_after_the_warm_up_show_whole_scenes():
    assert scenes_data(object_warmup_steps=2).batch(2).frames_BFHWC.shape[1] > 2


def scenes_data(**settings) -> ScenesData:
    return ScenesData(
        ScenesConfig(**settings),
        batch_size=120,
        preprocess=Preprocess.square(16),
        sampling=SamplingConfig(sample_fps=2.0, max_frames=8),
    )


def object_of(caption: str, *, sized: bool) -> tuple[str, ...]:
    """(size, colour, shape) in the corpus's own words, read back from a caption that names one object."""
    words = caption.removeprefix("an ").removeprefix("a ")
    same = {"disc": "circle", "dot": "circle", "box": "square", "hoop": "ring", "plus sign": "cross"}
    size, rest = words.split(" ", 1) if sized else ("", words)
    colour, shape = rest.split(" ", 1)
    assert colour in COLOURS
    return (
        "small" if size in ("small", "little", "tiny") else "large" if sized else "",
        colour,
        same.get(shape, shape),
    )
