"""Calibration of hub and paired bases: what gains is kept, chance is not, and no choice has seen what decides on it."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from evaluation_support import build_encoder
from typer.testing import CliRunner

from model.config import EMCLConfig
from model.encoder import load_encoder
from model.evaluate.corpus import Corpus
from model.study import bases
from model.study.bases import BasesGrid, Material, calibrate_bases, take
from service.cli import app

DIM = 32


@pytest.fixture(scope="module")
def encoder():
    return build_encoder(EMCLConfig(beta=0.0))


def corpus_of(videos=150, *, shuffled=False, seed=0):
    """Texts and videos that share a quarter of the directions, the others being their own: paired bases must gain."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(videos, 8))
    text, video = (
        np.concatenate([shared + 0.1 * rng.normal(size=shared.shape), 1.6 * rng.normal(size=(videos, DIM - 8))], axis=1)
        for _ in range(2)
    )
    if shuffled:
        text = text[rng.permutation(videos)]
    return Corpus(
        text_TD=text.astype(np.float32),
        features_VFD=video[:, None].astype(np.float32),
        mask_VF=np.ones((videos, 1), bool),
        video_of_text_T=np.arange(videos),
    )


def test_what_gains_on_held_out_videos_is_kept(encoder):
    found = calibrate_bases(encoder, corpus_of(), BasesGrid.quick(), source="mine")
    assert found.kept
    assert found.chosen.weight > 0
    assert found.held_out.ranks.p < 0.01
    assert found.settings.paired.pairs == 150
    assert found.settings.paired.source == "mine"
    record = json.loads(found.settings.record)
    assert (record["kept"], record["settings_tried"]) == (True, 6)
    assert "Kept: paired" in found.text()


@pytest.mark.parametrize("seed", [1, 2])
def test_shuffled_pairs_leave_it_off(encoder, seed):
    found = calibrate_bases(encoder, corpus_of(shuffled=True, seed=seed), BasesGrid.quick())
    assert not found.kept
    assert found.settings.paired is None
    assert found.settings.hub_strength == 0
    assert "Left off" in found.text()


def corpus_with_hubs(seed, lean, videos=150):
    """Texts share a direction in which videos differ by chance, so some are near to every text; with 0 none is."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(videos, DIM))
    text, video = (shared + 1.6 * rng.normal(size=shared.shape) for _ in range(2))
    lean_D = rng.normal(size=DIM)
    lean_D *= lean / np.linalg.norm(lean_D)
    corpus = Corpus(
        text_TD=(text + 6 * lean_D).astype(np.float32),
        features_VFD=(video + 4 * rng.normal(size=(videos, 1)) * lean_D)[:, None].astype(np.float32),
        mask_VF=np.ones((videos, 1), bool),
        video_of_text_T=np.arange(videos),
    )
    return corpus, lean_D


HUBS_ALONE = BasesGrid(regularisations=(1.0,), weights=(0.0,), hub_bases=(16,), strengths=(0.0, 0.25, 0.5, 0.75))


@pytest.mark.parametrize("seed", [0, 1])
def test_a_bank_of_the_domain_is_kept_where_there_are_hubs(encoder, seed):
    corpus, lean_D = corpus_with_hubs(seed, lean=1)
    bank_ND = 1.9 * np.random.default_rng(100 + seed).normal(size=(600, DIM)) + 6 * lean_D
    material = replace(Material.none(DIM), bank_ND=bank_ND.astype(np.float32))
    found = calibrate_bases(encoder, corpus, HUBS_ALONE, material=material)
    assert found.kept
    assert found.settings.hub_strength > 0


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_bank_of_another_domain_leaves_it_off(encoder, seed):
    corpus, _ = corpus_with_hubs(seed, lean=0)
    rng = np.random.default_rng(100 + seed)
    bank_ND = 0.3 * rng.normal(size=(600, DIM)) + 8 * rng.normal(size=DIM) / np.sqrt(DIM)
    material = replace(Material.none(DIM), bank_ND=bank_ND.astype(np.float32))
    found = calibrate_bases(encoder, corpus, HUBS_ALONE, material=material)
    assert not found.kept
    assert found.settings.hub_strength == 0


def test_few_pairs_are_warned_of(encoder):
    assert "Few pairs: 60" in calibrate_bases(encoder, corpus_of(60), BasesGrid.quick()).text()


def test_a_fold_is_ranked_by_what_saw_nothing_of_it(encoder, monkeypatch):
    """Every fit's rows, by value, against the rows that are ranked under it."""
    corpus, seen = corpus_of(40), []
    plain = bases.fitting_rows

    def watched(encoder, whole, material, fit_V):
        seen.append(fit_V.copy())
        return plain(encoder, whole, material, fit_V)

    monkeypatch.setattr(bases, "fitting_rows", watched)
    ranked = []
    rank = bases.ranked_by

    def watching(encoder, part, correction):
        inside_V = np.isin(corpus.features_VFD[:, 0, 0], part.features_VFD[:, 0, 0])
        if correction.has_own_pass:
            ranked.append((inside_V, seen[-1]))
        return rank(encoder, part, correction)

    monkeypatch.setattr(bases, "ranked_by", watching)
    calibrate_bases(encoder, corpus, BasesGrid.quick(), folds=4)
    assert ranked
    assert all(not (inside_V & fit_V).any() for inside_V, fit_V in ranked)


def test_the_same_seed_gives_the_same_figures(encoder):
    first, again = (calibrate_bases(encoder, corpus_of(40), BasesGrid.quick(), seed=3) for _ in range(2))
    assert first.as_dict() == again.as_dict()


def test_the_grid_holds_each_setting_once_and_none_first():
    settings = BasesGrid().settings()
    assert settings[0].is_off
    assert sum(setting.is_off for setting in settings) == 1
    assert len(settings) == len(set(settings)) == 1 + 9 + 15 * 10


def test_more_pairs_are_fitted_on_too(encoder):
    more = corpus_of(100, seed=9)
    material = replace(
        Material.none(DIM), pair_text_ND=more.text_TD, pair_video_ND=more.features_VFD[:, 0], bank_ND=more.text_TD
    )
    assert calibrate_bases(encoder, corpus_of(40), BasesGrid.quick(), material=material).pairs == 140


def test_part_of_a_corpus_keeps_its_captions():
    corpus = corpus_of(6)
    several = replace(corpus, text_TD=np.repeat(corpus.text_TD, 2, axis=0), video_of_text_T=np.repeat(np.arange(6), 2))
    part = take(several, np.array([True, False, False, True, False, True]))
    np.testing.assert_array_equal(part.video_of_text_T, [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(part.text_TD[2], corpus.text_TD[3])


# The command.


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in ("calibrate", *arguments, "--device", "cpu")])


def test_the_choice_lies_beside_the_checkpoint_and_is_loaded_with_it(tiny_checkpoint, validation_folder, tmp_path):
    for suffix in (".safetensors", ".json"):
        shutil.copyfile(tiny_checkpoint.with_suffix(suffix), tmp_path / f"mine{suffix}")
    mine = tmp_path / "mine.safetensors"
    result = run("--model", mine, "--data", validation_folder, "--quick", "--json", tmp_path / "found.json")
    assert result.exit_code == 0, result.output
    assert "emcl index rebuild" in result.output
    chosen = load_encoder(str(mine), device="cpu").calibrated
    facts, record = json.loads((tmp_path / "found.json").read_text()), json.loads(chosen.record)
    assert facts["data_digest"] == record["data_digest"]
    assert chosen.fingerprint == facts["model"]
    (tmp_path / "mine.correction.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="damaged"):
        load_encoder(str(mine), device="cpu")


def test_a_bank_that_holds_what_is_ranked_is_refused(tiny_checkpoint, validation_folder):
    listing = validation_folder / "captions.jsonl"
    result = run(
        "--model", tiny_checkpoint, "--data", validation_folder, "--quick", "--dry-run", "--query-bank", listing
    )
    assert isinstance(result.exception, ValueError)
    assert "captions of --query-bank" in str(result.exception)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--beta", "0.1"), "--beta has no effect with --form bases"),
        (("--form", "published", "--quick"), "--quick has no effect with --form published"),
        (("--store", "nowhere"), "holds no store"),
        ((), "--store"),
    ],
)
def test_options_without_effect_or_place_are_refused(validation_folder, options, message):
    result = run("--model", "demo", "--data", validation_folder, *options)
    assert isinstance(result.exception, ValueError)
    assert message in str(result.exception)
