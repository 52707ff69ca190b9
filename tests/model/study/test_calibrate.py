"""Choosing EMCL's settings on validation pairs: what counts and is chosen; chance is not taken for a gain."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from model.checkpoint import CheckpointError, load_checkpoint, rewrite_settings, save_checkpoint, stored_dtype
from model.config import EMCLConfig, SearchConfig
from model.data.validation import TestSplitError, data_digest, open_for_choosing
from model.evaluate.run import Corpus, measure
from model.study import calibrate as module
from model.study.calibrate import Grid, calibrate, record, table, verdict
from model.study.per_video_ranks import Ranks, VideoRanks, ranking, ranks_of, variant, video_ranks_of
from service.cli import app

VIDEOS = 12


def random_corpus(captions_each=1, dim=32, frames=4):
    """Captions near their videos, so that ranks are neither perfect nor random."""
    rng = np.random.default_rng(0)
    topics = rng.normal(size=(VIDEOS, dim)) + 1.0
    owners = np.repeat(np.arange(VIDEOS), captions_each)
    features = topics[:, None] + rng.normal(size=(VIDEOS, frames, dim))
    text = topics[owners] + 1.5 * rng.normal(size=(len(owners), dim))
    return Corpus(
        text_TD=text.astype(np.float32),
        features_VFD=features.astype(np.float32),
        mask_VF=np.ones((VIDEOS, frames), bool),
        video_of_text_T=owners,
    )


# What becomes of each video.


def test_captions_of_a_video_are_averaged():
    ranks = Ranks(
        text_to_video_T=np.array([0.0, 1.0, 3.0]),
        video_to_text_V=np.array([0.0, 0.5]),
        video_of_text_T=np.array([0, 0, 1]),
    )
    video_ranks = ranks.per_video()
    np.testing.assert_allclose(video_ranks.reciprocal_VW, [[0.75, 1.0], [0.25, 1 / 1.5]])
    np.testing.assert_allclose(video_ranks.first_VW, [[0.5, 1.0], [0.0, 0.0]])


@pytest.mark.parametrize("captions_each", [1, 3])
def test_first_places_are_those_that_evaluation_counts(tiny_encoder, captions_each):
    corpus = random_corpus(captions_each)
    ranked = ranking(tiny_encoder, corpus, candidates=5)
    row = measure("x", ranked, corpus)
    video_ranks = ranks_of(ranked, corpus).per_video()
    np.testing.assert_allclose(
        100 * video_ranks.first_VW.mean(axis=0), [row.text_to_video.recall[1], row.video_to_text.recall[1]]
    )


def test_strength_zero_is_the_ranking_without_emcl(tiny_encoder):
    corpus = random_corpus()
    none = video_ranks_of(tiny_encoder, corpus, None, candidates=6)
    zero = video_ranks_of(tiny_encoder, corpus, EMCLConfig(beta=0.0), candidates=6)
    tiny = video_ranks_of(tiny_encoder, corpus, EMCLConfig(beta=1e-9), candidates=6)
    for other in (zero, tiny):
        np.testing.assert_array_equal(none.reciprocal_VW, other.reciprocal_VW)


def test_a_trained_state_stays_where_strength_or_kernel_change(tiny_encoder):
    own = tiny_encoder.config.emcl
    before = tiny_encoder.net.emcl.state.clone()
    tiny_encoder.net.emcl.state.mul_(0.5)
    try:
        trained = tiny_encoder.net.emcl.state
        kept = variant(tiny_encoder, own.model_copy(update={"beta": 0.7, "sigma": 0.2, "iterations": 2}))
        torch.testing.assert_close(kept.net.emcl.state, trained)
        new = variant(tiny_encoder, own.model_copy(update={"num_bases": own.num_bases + 1}))
        assert new.net.emcl.state.shape[1] == own.num_bases + 1
        redrawn = variant(tiny_encoder, own.model_copy(update={"seed": 5}))
        assert not torch.equal(redrawn.net.emcl.state, trained)
        assert tiny_encoder.config.emcl == own
    finally:
        tiny_encoder.net.emcl.state.copy_(before)


# The grid and the choice.


def test_the_grid_holds_every_combination_once_and_the_checkpoints_own():
    own = EMCLConfig(beta=0.7, seed=3)
    settings = Grid().settings(own)
    assert settings[0] == own
    assert len(settings) == len(set(settings)) == 1 + 80 + 4
    assert {config.seed for config in settings} == {3}
    assert {config.mode for config in Grid(modes=("reference",)).settings(own)} == {"reference"}
    assert [c.beta for c in Grid(modes=("channel",), betas=(0.0, 0.2), sigmas=(1.0,)).settings(own)] == [0.7] + [
        0.2
    ] * 4
    with pytest.raises(ValueError, match="Input should be greater than 0"):
        Grid(sigmas=(-1.0,)).settings(own)


def planted(monkeypatch, reciprocal_of, videos):
    """Let every setting have the reciprocal ranks that ``reciprocal_of(config)`` says."""

    def video_ranks(encoder, corpus, config, *, candidates, dual_softmax_temperature=None):
        values = np.asarray(reciprocal_of(config, candidates, dual_softmax_temperature), float)
        both = np.stack([values, values], axis=1)
        return VideoRanks(reciprocal_VW=both, first_VW=(both > 0.9).astype(float))

    monkeypatch.setattr(module, "video_ranks_of", video_ranks)
    features = np.zeros((videos, 1, 2), np.float32)
    return Corpus(
        text_TD=np.zeros((videos, 2), np.float32),
        features_VFD=features,
        mask_VF=np.ones((videos, 1), bool),
        video_of_text_T=np.arange(videos),
    )


def test_a_real_gain_is_found_and_called_one(monkeypatch, tiny_encoder):
    rng = np.random.default_rng(0)
    base = rng.uniform(0.2, 0.8, 200)
    gain = np.where(rng.uniform(size=200) < 0.7, 0.1, -0.1)

    def reciprocal(config, candidates, temperature):
        return base + (gain if config is not None and config.beta == 0.3 else 0.0)

    found = calibrate(tiny_encoder, planted(monkeypatch, reciprocal, 200), Grid(modes=("channel",)))
    assert found.best.config.beta == 0.3
    assert found.held_out.is_better
    assert found.best.holm_p < 0.05
    assert found.choice(only_if_better=True) == found.best.config
    assert "Better than without EMCL beyond chance" in verdict(found)
    assert found.held_out.reciprocal_difference.low > 0


@pytest.mark.parametrize("seed", range(5))
def test_the_luckiest_of_eighty_is_not_taken_for_a_gain(monkeypatch, tiny_encoder, seed):
    """Every setting is noise around the ranking without EMCL: one always looks better on the videos it is chosen on."""
    rng = np.random.default_rng(seed)
    base = rng.uniform(0.2, 0.8, 200)
    drawn = {}

    def reciprocal(config, candidates, temperature):
        return base if config is None else drawn.setdefault(config, base + rng.normal(0, 0.1, 200))

    found = calibrate(tiny_encoder, planted(monkeypatch, reciprocal, 200), Grid())
    assert found.in_sample.reciprocal_difference.mean > 0
    assert not found.held_out.is_better
    assert found.choice().beta > 0
    assert found.choice(only_if_better=True) == tiny_encoder.config.emcl.model_copy(update={"beta": 0.0})
    assert "Not better than without EMCL beyond chance" in verdict(found)
    assert len(table(found).splitlines()) == 2 + 1 + 5 + 1 + 5


def test_held_out_videos_never_choose_for_themselves(monkeypatch, tiny_encoder):
    """A setting that wins on one fold alone is chosen by the other folds never for that fold."""
    fold = module.folds_of(10, 5, seed=0)
    base = np.full(10, 0.5)
    special = np.where(fold == 2, 1.0, 0.45)

    def reciprocal(config, candidates, temperature):
        return special if config is not None and config.beta == 0.2 else base

    grid = Grid(modes=("channel",), betas=(0.2, 0.3), sigmas=(0.1,), bases=(8,), iterations=(3,))
    found = calibrate(tiny_encoder, planted(monkeypatch, reciprocal, 10), grid, folds=5)
    assert found.best.config.beta == 0.2
    assert found.fold_choices[2] == "without EMCL"
    assert [choice != "without EMCL" for choice in found.fold_choices] == [True, True, False, True, True]
    assert found.held_out.ranks.wins == 0
    assert found.held_out.ranks.losses == 8


def test_where_nothing_is_better_emcl_is_left_out(monkeypatch, tiny_encoder):
    def reciprocal(config, candidates, temperature):
        return np.full(20, 0.5 if config is None else 0.4)

    found = calibrate(tiny_encoder, planted(monkeypatch, reciprocal, 20), Grid(modes=("reference",)))
    assert found.best is None
    assert found.choice().beta == 0
    assert "beta 0 is chosen" in verdict(found)


def test_candidates_and_temperature_change_for_a_difference_only(monkeypatch, tiny_encoder):
    own = tiny_encoder.config.search

    def reciprocal(config, candidates, temperature):
        better = 0.2 * (temperature == 0.1) + 0.3 * (candidates == 200) + 0.0005 * (candidates == 50)
        return np.full(300, 0.4 + better)

    corpus = planted(monkeypatch, reciprocal, 300)
    grid = Grid(modes=("reference",), candidates=(50, 200, 500))
    found = calibrate(tiny_encoder, corpus, grid)
    assert found.search == SearchConfig(candidates=200, dual_softmax_temperature=0.1)
    assert sorted(found.candidates) == [50, 100, 200], "500 candidates are all 300 videos"
    unchanged = calibrate(tiny_encoder, corpus, grid.model_copy(update={"candidates": (50,), "temperatures": (0.2,)}))
    assert unchanged.search == own


def test_too_few_videos_and_an_empty_grid_are_refused(tiny_encoder):
    with pytest.raises(ValueError, match="13 folds of 12 videos"):
        calibrate(tiny_encoder, random_corpus(), Grid(), folds=13)
    without = variant(tiny_encoder, tiny_encoder.config.emcl.model_copy(update={"beta": 0.0}))
    with pytest.raises(ValueError, match="no setting with a beta above 0"):
        calibrate(without, random_corpus(), Grid(betas=(0.0,)))


def test_the_same_seed_gives_the_same_calibration(tiny_encoder):
    grid = Grid(modes=("channel",), betas=(0.1, 0.5), sigmas=(0.1,), bases=(4,), iterations=(2,))
    first, second = (calibrate(tiny_encoder, random_corpus(2), grid, folds=3, seed=7) for _ in range(2))
    assert verdict(first) == verdict(second)
    assert record(first, first.choice(), {}) == record(second, second.choice(), {})


# Which data it takes.


def manifest(path: Path, *names: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    for name in names or ("a.mp4",):
        (path.parent / name).parent.mkdir(parents=True, exist_ok=True)
        (path.parent / name).write_bytes(b"video")
    lines = [json.dumps({"video": name, "captions": ["words"]}) for name in names or ("a.mp4",)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["test.jsonl", "test/captions.jsonl", "mine-test.jsonl", "msrvtt_Test_1k.jsonl"])
def test_a_test_split_is_refused_by_its_name(tmp_path, name):
    with pytest.raises(TestSplitError, match="never chosen on a test split"):
        open_for_choosing(manifest(tmp_path / "d" / name), "val")


@pytest.mark.parametrize("name", ["val.jsonl", "latest.jsonl", "contest/captions.jsonl", "test_things0/val.jsonl"])
def test_names_that_only_contain_the_word_are_taken(tmp_path, name):
    assert len(open_for_choosing(manifest(tmp_path / "d" / name), "val").clips) == 1


def test_a_test_split_is_refused_under_cover(tmp_path):
    hidden = manifest(tmp_path / "d" / "test.jsonl")
    (tmp_path / "val.jsonl").symlink_to(hidden)
    with pytest.raises(TestSplitError, match=r"test\.jsonl is named as one"):
        open_for_choosing(tmp_path / "val.jsonl", "val")
    with pytest.raises(TestSplitError, match="the split is test"):
        open_for_choosing(manifest(tmp_path / "d" / "val.jsonl"), "test")
    with pytest.raises(TestSplitError, match="test video test/a"):
        open_for_choosing(manifest(tmp_path / "d" / "val2.jsonl", "test/a.mp4"), "val")
    with pytest.raises(TestSplitError, match="test-0-000017"):
        open_for_choosing(manifest(tmp_path / "d" / "val3.jsonl", "test-0-000017.mp4"), "val")
    folder = manifest(tmp_path / "test" / "captions.jsonl").parent
    with pytest.raises(TestSplitError):
        open_for_choosing(folder, "val")
    configuration = tmp_path / "data.yaml"
    configuration.write_text(
        f"kind: manifest\ntrain: {tmp_path / 'd' / 'val.jsonl'}\nvalidation: {hidden}\n", encoding="utf-8"
    )
    with pytest.raises(TestSplitError, match=r"test\.jsonl"):
        open_for_choosing(configuration, "val")


def test_the_digest_is_that_of_the_content(tmp_path):
    first = open_for_choosing(manifest(tmp_path / "a" / "val.jsonl", "x.mp4", "y.mp4"), "val").clips
    moved = open_for_choosing(manifest(tmp_path / "b" / "other.jsonl", "y.mp4", "x.mp4"), "val").clips
    assert data_digest(first) == data_digest(moved)
    assert data_digest(first) != data_digest(first[:1])
    (tmp_path / "b" / "x.mp4").write_bytes(b"another")
    assert data_digest(first) != data_digest(moved)


SMALL_GRID = ("--beta", "0.1,0.5", "--sigma", "0.1", "--bases", "4", "--iterations", "2", "--temperatures", "0.01,0.1")


# The command and what it writes.


@pytest.fixture
def checkpoint(tmp_path, tiny_checkpoint) -> Path:
    for suffix in (".safetensors", ".json"):
        shutil.copyfile(tiny_checkpoint.with_suffix(suffix), tmp_path / f"mine{suffix}")
    return tmp_path / "mine.safetensors"


def run(*arguments):
    return CliRunner().invoke(
        app, [str(argument) for argument in ("calibrate", "--form", "published", *arguments, "--device", "cpu")]
    )


def test_the_choice_is_written_into_the_description_alone(checkpoint, validation_folder, tmp_path):
    weights, before = checkpoint.read_bytes(), load_checkpoint(checkpoint)
    bases = before.config.emcl.num_bases
    options = [*SMALL_GRID[:4], "--bases", bases, "--iterations", 2, "--mode", "channel", "--json", tmp_path / "f.json"]
    result = run("--model", checkpoint, "--data", validation_folder, *options)
    assert result.exit_code == 0, result.output
    assert "emcl index rebuild" in result.output
    assert checkpoint.read_bytes() == weights
    net = load_checkpoint(checkpoint)
    described = json.loads(checkpoint.with_suffix(".json").read_text(encoding="utf-8"))
    stored = described["metadata"]["calibration"]
    assert stored["emcl"] == net.config.emcl.model_dump(mode="json")
    assert (stored["videos"], stored["captions"], stored["split"]) == (10, 20, "val")
    assert stored["data_digest"] == data_digest(open_for_choosing(validation_folder, "val").clips)
    assert stored["settings_tried"] == 3
    figures = json.loads((tmp_path / "f.json").read_text(encoding="utf-8"))
    assert len(figures["settings"]) == 3
    assert figures["held_out"]["folds"] == len(figures["held_out"]["choices"]) == 5


def test_a_dry_run_writes_nothing(checkpoint, validation_folder):
    before = {file.name: file.read_bytes() for file in checkpoint.parent.iterdir()}
    options = [*SMALL_GRID, "--dry-run", "--split", "train"]
    result = run("--model", checkpoint, "--data", validation_folder, *options)
    assert result.exit_code == 0, result.output
    assert "training pairs" in result.output
    assert "nothing was written" in result.output
    assert {file.name: file.read_bytes() for file in checkpoint.parent.iterdir()} == before


def test_another_number_of_bases_is_another_model(checkpoint, validation_folder, tmp_path, monkeypatch):
    """The state is saved with the weights, and a message says that indexes must be built again."""
    monkeypatch.setattr(module.Calibration, "choice", lambda self, **_: EMCLConfig(num_bases=4, beta=0.5))
    new = tmp_path / "new.safetensors"
    before = checkpoint.with_suffix(".json").read_bytes()
    result = run("--model", checkpoint, "--data", validation_folder, *SMALL_GRID, "--output", new)
    assert result.exit_code == 0, result.output
    assert "emcl index build" in result.output
    assert checkpoint.with_suffix(".json").read_bytes() == before, "the checkpoint itself stays"
    changed = load_checkpoint(new)
    assert changed.emcl.state.shape == (changed.embed_dim, 4)
    old, found = (json.loads(path.with_suffix(".json").read_text(encoding="utf-8")) for path in (checkpoint, new))
    assert old["fingerprint"] != found["fingerprint"]
    assert found["metadata"]["calibration"] != old["metadata"].get("calibration")


def test_only_if_significant_leaves_emcl_out(checkpoint, validation_folder):
    """Ten clips and a random model: nothing can be beyond chance."""
    result = run(
        "--model", checkpoint, "--data", validation_folder, *SMALL_GRID, "--mode", "channel", "--only-if-significant"
    )
    assert result.exit_code == 0, result.output
    assert "chosen: without EMCL" in result.output
    assert load_checkpoint(checkpoint).config.emcl.beta == 0


def test_what_cannot_be_written_is_told_before_the_work(checkpoint, validation_folder, tmp_path):
    for arguments, message in (
        (("--model", "demo"), "pass --output"),
        (("--model", "ViT-B-32", "--pretrained", "openai"), "pass --output"),
        (("--model", checkpoint, "--output", checkpoint), "exists already"),
        (("--model", checkpoint, "--output", tmp_path / "new.v2"), "NEW.safetensors"),
    ):
        result = run(*arguments, "--data", validation_folder)
        assert message in str(result.exception)
    result = run("--model", checkpoint, "--data", validation_folder, "--split", "test")
    assert isinstance(result.exception, TestSplitError)
    for options, message in (
        (("--beta", "much"), "--beta is 'much'"),
        (("--bases", "8.5"), "--bases is '8.5'"),
        (("--candidates", "0"), "candidates.0: Input should be greater than 0"),
        (("--sigma", "0"), "sigma: Input should be greater than 0"),
    ):
        result = run("--model", checkpoint, "--data", validation_folder, *options)
        assert message in str(result.exception)
        assert type(result.exception) is ValueError


def test_a_checkpoint_keeps_its_precision(tmp_path, tiny_encoder):
    for dtype in ("fp16", "fp32"):
        path = save_checkpoint(tiny_encoder.net, tmp_path / f"{dtype}.safetensors", dtype=dtype)
        assert stored_dtype(path) == dtype


def test_settings_that_need_another_state_cannot_be_slipped_in(checkpoint):
    before = checkpoint.with_suffix(".json").read_bytes()
    for changes in ({"mode": "reference"}, {"num_bases": 3}, {"seed": 9}):
        with pytest.raises(CheckpointError, match=next(iter(changes))):
            rewrite_settings(
                checkpoint, emcl=EMCLConfig().model_copy(update=changes), search=SearchConfig(), metadata={}
            )
    assert checkpoint.with_suffix(".json").read_bytes() == before


# Who reads it.


def test_the_service_takes_the_checkpoints_number_of_candidates(checkpoint, clip_store):
    from service.errors import Unprocessable
    from service.search.engine import build_engine
    from service.search.values import Ranking, SearchQuery
    from service.settings import Settings

    found = load_checkpoint(checkpoint).config
    rewrite_settings(checkpoint, emcl=found.emcl, search=SearchConfig(candidates=4), metadata={})
    settings = Settings(store=clip_store / "store", model=str(checkpoint), device="cpu")
    engine = build_engine(settings)
    try:
        query = SearchQuery(text="a red circle", ranking=Ranking(k=4))
        engine.limits.check_search(query)
        own = engine.search([query])[0].hits
        asked = SearchQuery(text="a red circle", ranking=Ranking(k=4, candidates=4))
        assert own == engine.search([asked])[0].hits
        wide = SearchQuery(text="a red circle", ranking=Ranking(k=6, candidates=6))
        assert len(engine.search([wide])[0].hits) == 6
        with pytest.raises(Unprocessable, match="k=5"):
            engine.limits.check_search(SearchQuery(text="a", ranking=Ranking(k=5)))
    finally:
        engine.close()


def test_a_checkpoint_cannot_ask_for_more_candidates_than_the_settings_let_it():
    from service.search.values import QueryLimits, Ranking
    from service.settings import Settings

    limits = QueryLimits.from_settings(Settings(max_candidates=50), default_candidates=100)
    assert limits.candidates_of(Ranking()) == 50
    assert limits.candidates_of(Ranking(candidates=20)) == 20
