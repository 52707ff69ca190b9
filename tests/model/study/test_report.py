"""The report: its numbers against slow ones, its pictures, and a page that loads and runs nothing."""

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from jinja2 import UndefinedError
from PIL import Image
from typer.testing import CliRunner

from model.config import EMCLConfig
from model.data.manifest import read_manifest
from model.encoder import load_encoder
from model.evaluate.run import encode_corpus
from model.study.numbers import SubspaceView, bases_in_training, bases_now, effect_of_emcl, modality_gap, words_of
from model.study.page import ReportFacts, Strips, build_report, render
from model.study.per_video_ranks import ranking, variant
from service.cli import app

FACTS = ReportFacts(data="my <data>", split="val", videos_lost=0, seed=0)


@pytest.fixture(scope="module")
def clips(validation_folder):
    return read_manifest(validation_folder / "captions.jsonl")


@pytest.fixture(scope="module")
def strong():
    """The demo model with a correction that changes ranks."""
    return variant(load_encoder("demo", device="cpu"), EMCLConfig(num_bases=8, iterations=3, sigma=0.3, beta=3.0))


@pytest.fixture(scope="module")
def corpus(strong, clips):
    """With captions so noisy that not all find their video first."""
    encoded = encode_corpus(strong, clips)
    noise = np.random.default_rng(0).normal(scale=1.5 * encoded.text_TD.std(), size=encoded.text_TD.shape)
    return replace(encoded, text_TD=(encoded.text_TD + noise).astype(np.float32))


@pytest.fixture(scope="module")
def frozen(strong, corpus):
    return strong.fit_frozen_map(np.concatenate([strong.pool(corpus.features_VFD, corpus.mask_VF), corpus.text_TD]))


def test_the_gap_is_that_of_the_vectors_of_stage_one(strong, corpus, frozen):
    gap = modality_gap(strong, corpus, frozen)
    videos = strong.pool(corpus.features_VFD, corpus.mask_VF)
    texts = corpus.text_TD[::2]  # two captions each
    for found, (v, t) in (
        (gap.before, [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (videos, texts)]),
        (gap.after, [strong.map_rows(frozen, rows) for rows in (videos, texts)]),
    ):
        cosines = [[float(a @ b) for b in v] for a in t]
        right = [cosines[i][i] for i in range(10)]
        wrong = [cosines[i][j] for i in range(10) for j in range(10) if i != j]
        assert found.matched_cosine == pytest.approx(np.mean(right), abs=1e-5)
        assert found.mismatched_cosine == pytest.approx(np.mean(wrong), abs=1e-5)
        assert found.centroid_distance == pytest.approx(
            np.linalg.norm(np.mean(v, axis=0) - np.mean(t, axis=0)), abs=1e-5
        )
    assert gap.after != gap.before
    assert 0 < gap.shown_variance <= 1
    spread = np.concatenate(gap.points_before).var(axis=0)
    assert spread[0] >= spread[1] > 0


def test_coordinates_are_those_of_the_frozen_map(strong, clips, corpus, frozen):
    view = SubspaceView(strong, clips, corpus, frozen).of(3)
    features = corpus.features_VFD[corpus.mask_VF]
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    z, norms = frozen.responsibilities_DK.numpy(), frozen.base_norms_K.numpy()
    coordinates = unit @ z / norms
    standard = (coordinates - coordinates.mean(axis=0)) / coordinates.std(axis=0)
    rows = corpus.mask_VF.sum(axis=1)
    start = int(rows[:3].sum())
    np.testing.assert_allclose(view.frames_FK, standard[start : start + rows[3]], atol=1e-3)
    assert view.words == words_of(clips[3].captions[0])
    assert view.similarity_FL.shape == (rows[3], len(view.words))
    for matrix in (view.similarity_FL, view.plain_similarity_FL):
        assert np.isfinite(matrix).all()
        assert np.abs(matrix).max() <= 1 + 1e-6


def test_words_are_each_named_once():
    assert words_of("a red, red-ish circle on a box") == ["a", "red", "ish", "circle", "on", "box"]
    assert words_of("???") == ["???"]


def test_the_extremes_of_both_ways_are_shown(strong, corpus):
    effect = effect_of_emcl(strong, corpus, candidates=10, shown=3, hits=4, seed=0)
    assert effect.rises or effect.falls, "a correction of this strength changes ranks"
    for changes, sign in ((effect.rises, 1), (effect.falls, -1)):
        gains = [sign * (1 / (one.rank_with + 1) - 1 / (one.rank_without + 1)) for one in changes]
        assert all(gain > 0 for gain in gains)
        assert gains == sorted(gains, reverse=True)
    with_emcl = ranking(strong, corpus, candidates=10, how="emcl").text_to_video_TV
    for change in (*effect.rises, *effect.falls):
        assert change.first_with == np.argsort(-with_emcl[change.text])[:4].tolist()
        assert change.match == change.text // 2
        assert (change.match in change.first_with) == (change.rank_with < 4)
    assert effect.with_emcl[0].queries == 20
    assert effect.with_emcl[1].queries == 10


def test_a_strip_is_frames_side_by_side(strong, clips):
    strips = Strips(clips, strong.config.sampling)
    source = strips.of(0, frames=3, height=40)
    picture = Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/jpeg;base64,"))))
    assert picture.size == (3 * 40 + 2 * 2, 40)
    assert strips.of(0, frames=3, height=40) is source, "decoded once"
    assert strips.of(0, frames=None, height=40) != source


class Attributes(HTMLParser):
    """Every tag with its attributes."""

    def __init__(self):
        super().__init__()
        self.tags = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def check_self_contained(text):
    parser = Attributes()
    parser.feed(text)
    assert {"script", "link", "iframe", "object", "a", "form"}.isdisjoint(tag for tag, _ in parser.tags)
    for tag, attributes in parser.tags:
        assert not any(name.startswith("on") or name == "href" for name in attributes), (tag, attributes)
        if tag == "img":
            assert attributes["src"].startswith(("data:image/jpeg;base64,", "data:image/svg+xml;base64,"))
            assert attributes["alt"]
    assert "url(" not in text
    assert "@import" not in text
    policy = next(a["content"] for tag, a in parser.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    drawings = re.findall(r"data:image/svg\+xml;base64,([^\"]+)", text)
    for drawing in drawings:
        assert b"<script" not in base64.b64decode(drawing)
    return drawings


def test_the_page_holds_everything_and_runs_nothing(strong, clips, corpus, tmp_path):
    log = tmp_path / "log.jsonl"
    measured = {"distinct_bases": 30, "effective_rank": 3.5, "correction_ratio": 0.02}
    lines = [{"step": 10, "loss": 1.0, "emcl": measured}, {"step": 20, "validation": {}}]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    text = build_report(strong, clips, corpus, FACTS, run=tmp_path)
    drawings = check_self_contained(text)
    assert len(drawings) == 1 + 2 * 2 + 1, "the gap, two examples of two, the bases in training"
    assert "my &lt;data&gt;" in text
    assert "One checkpoint is one training seed" in text
    for title in ("with and without EMCL", "The gap between", "in the subspaces", "Ranked results", "Rank and dist"):
        assert title in text
    assert text.count("<figcaption>") == len(drawings)
    assert 'class="match"' in text


def test_captions_cannot_smuggle_anything_in(strong, clips, corpus, tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n', encoding="utf-8")
    hostile = [
        type(clip)(path=clip.path, captions=('<script>alert("x")</script> & "quoted"', "other")) for clip in clips
    ]
    text = build_report(strong, hostile, corpus, FACTS, run=tmp_path)
    check_self_contained(text)
    assert "&lt;script&gt;" in text
    assert "holds no measurements of the bases" in text


def test_a_value_that_the_template_needs_is_never_left_out():
    with pytest.raises(UndefinedError, match="name"):
        render()


def test_nothing_to_show_of_a_model_without_emcl(strong, clips, corpus):
    without = variant(strong, strong.config.emcl.model_copy(update={"beta": 0.0}))
    with pytest.raises(ValueError, match="pass --beta"):
        build_report(without, clips, corpus, FACTS)


def test_bases_of_a_training_are_read_from_its_log(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"log\.jsonl does not exist"):
        bases_in_training(tmp_path)
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1, "loss": 2.0}\n', encoding="utf-8")
    assert bases_in_training(tmp_path) is None
    measured = {"distinct_bases": 8, "effective_rank": 2.5, "correction_ratio": 0.1}
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": 2, "emcl": measured}) + "\n")
    found = bases_in_training(tmp_path)
    assert found.steps == [2]
    assert list(found.curves.values()) == [[8.0], [2.5], [0.1]]
    with log.open("a", encoding="utf-8") as file:
        file.write('{"step": 3, "emcl": {"distinct_bases": 8}}\n')
    with pytest.raises(ValueError, match="line 3"):
        bases_in_training(tmp_path)


def test_bases_of_this_corpus_are_counted(strong, corpus):
    now = bases_now(strong, corpus)
    assert 2 <= now.distinct_bases <= 8
    assert 1 <= now.effective_rank <= 8
    assert now.correction_ratio == pytest.approx(3.0)


def test_the_command_writes_one_file(tiny_checkpoint, validation_folder, tmp_path):
    target = tmp_path / "new" / "report.html"
    arguments = ["report", "--model", tiny_checkpoint, "--data", validation_folder, "--output", target]
    result = CliRunner().invoke(app, [str(one) for one in (*arguments, "--beta", "0.5", "--device", "cpu")])
    assert result.exit_code == 0, result.output
    text = target.read_text(encoding="utf-8")
    check_self_contained(text)
    assert "β 0.5" in text
    assert "No training run was given" in text
    assert [file.name for file in target.parent.iterdir()] == ["report.html"]


def test_frames_are_linked_to_their_nearest_words_in_the_subspaces(strong, clips, corpus, frozen):
    """Similarities of all channels would link other words, with other figures."""
    view = SubspaceView(strong, clips, corpus, frozen)
    moved = 0
    for row in range(len(clips)):
        seen = view.of(row)
        words = [seen.words.index(word) for _, word, _ in seen.links]
        frames = np.arange(len(words))
        unit_FK, unit_LK = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (seen.frames_FK, seen.words_LK))
        cosines_FL = unit_FK @ unit_LK.T
        assert [frame for frame, *_ in seen.links] == (frames + 1).tolist()
        np.testing.assert_allclose([found for *_, found in seen.links], cosines_FL.max(axis=1), atol=1e-5)
        np.testing.assert_allclose(cosines_FL[frames, words], cosines_FL.max(axis=1), atol=1e-5)
        moved += int((seen.plain_similarity_FL.argmax(axis=1) != words).sum())
        assert np.abs(seen.plain_similarity_FL.max(axis=1) - [found for *_, found in seen.links]).max() > 1e-2
    assert moved > 0
