"""Short queries: what counts as a right answer, and precision against counting by hand."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.short_queries import measure_short_queries, object_queries, precision, scene_of, shown_objects
from model.data.manifest import read_manifest
from model.demo.corpus import clip_id, write_corpus
from model.demo.scene import SecondObject, make_scene
from model.encoder import load_encoder
from model.evaluate.run import encode_corpus

SECOND = SecondObject(colour="orange", shape="star", corner="top left")


def test_everything_that_is_seen_counts():
    scene = replace(make_scene(0, "test", 0), colour="red", shape="ring", then_colour="blue", second=SECOND)
    assert shown_objects(scene) == {("red", "ring"), ("blue", "ring"), ("orange", "star")}
    assert shown_objects(replace(scene, then_colour=None, second=None)) == {("red", "ring")}


def test_each_pair_that_occurs_is_asked_for_once():
    scene = replace(make_scene(0, "test", 0), colour="red", shape="ring", then_colour=None, second=SECOND)
    other = replace(scene, second=None)
    queries = object_queries([scene, other])
    assert queries.texts == ["an orange star", "a red ring"]
    np.testing.assert_array_equal(queries.relevant_QV, [[True, False], [True, True]])


def test_precision_counts_only_the_places_that_can_be_right():
    scores = np.array([[0.9, 0.8, 0.7, 0.1], [0.1, 0.2, 0.3, 0.4]])
    relevant = np.array([[True, False, True, False], [False, False, False, True]])
    assert precision(scores, relevant, 1) == 100.0
    assert precision(scores, relevant, 5) == pytest.approx(100 * (1 / 2 + 1) / 2)


def test_a_name_leads_back_to_its_scene():
    assert scene_of(clip_id(3, "val", 12)) == make_scene(3, "val", 12)
    with pytest.raises(ValueError, match="holiday"):
        scene_of("holiday")


def test_the_shipped_checkpoint_is_measured_in_every_way(tmp_path):
    clips = read_manifest(write_corpus(tmp_path, split="test", count=24, captions=1, workers=1))
    encoder = load_encoder("demo", device="cpu")
    corpus = encode_corpus(encoder, clips)
    figures = measure_short_queries(encoder, corpus, [scene_of(clip.path.stem) for clip in clips])
    assert list(figures) == ["stage 1, frozen map", "pooling without EMCL", "EMCL", "any"]
    assert figures["EMCL"]["P@1"] > figures["any"]["P@1"]
