"""Offline evaluation: what the service does, against a slow writing-out of it; table, JSON, commands."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from model.checkpoint import save_checkpoint
from model.cli import app
from model.config import ClipConfig, EMCLConfig, ModelConfig, SamplingConfig, TemporalConfig, TokenizerConfig
from model.data.manifest import read_manifest
from model.encoder import DEMO_CHECKPOINT, Encoder, load_encoder
from model.evaluate import (
    Corpus,
    emcl_variants,
    encode_corpus,
    evaluate_features,
    fill_behind,
    measure,
    report,
    rerank,
    stage_one,
    table,
    with_dual_softmax,
    with_emcl,
)
from model.net import build_net
from model.synthetic import write_corpus
from model.tokenizer import build_tokenizer
from model.train_config import load_train_config

TOWERS = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1, "head_width": 64},
    "text_cfg": {"context_length": 48, "vocab_size": 1014, "width": 32, "heads": 2, "layers": 1},
}


def build_encoder(emcl=EMCLConfig(num_bases=4, iterations=3, beta=0.3)):  # noqa: B008
    torch.manual_seed(0)
    config = ModelConfig(
        clip=ClipConfig(custom=TOWERS),
        tokenizer=TokenizerConfig(max_words=48, merges=500),
        temporal=TemporalConfig(layers=1, max_positions=8),
        emcl=emcl,
        sampling=SamplingConfig(sample_fps=1.0, max_frames=4),
    )
    net = build_net(config)
    return Encoder(
        net, build_tokenizer(config.tokenizer, config.clip), fingerprint="0" * 64, device=torch.device("cpu")
    )


@pytest.fixture(scope="module")
def encoder():
    return build_encoder()


def random_corpus(videos=12, captions_each=1, dim=32, frames=4):
    """Captions near their videos, so that ranks are neither perfect nor random."""
    rng = np.random.default_rng(0)
    topics = rng.normal(size=(videos, dim)) + 1.0
    owners = np.repeat(np.arange(videos), captions_each)
    lengths = rng.integers(1, frames + 1, videos)
    mask = np.arange(frames) < lengths[:, None]
    features = (topics[:, None] + rng.normal(size=(videos, frames, dim))) * mask[..., None]
    text = topics[owners] + 1.5 * rng.normal(size=(len(owners), dim))
    return Corpus(
        text_TD=text.astype(np.float32),
        features_VFD=features.astype(np.float32),
        mask_VF=mask,
        video_of_text_T=owners,
    )


@pytest.mark.parametrize("how", ["emcl", "none"])
def test_a_query_is_ranked_as_the_service_ranks_it(encoder, how):
    """Written out for one query at a time: candidates by the frozen map, in order of id, one pass over them alone."""
    corpus, candidates = random_corpus(), 5
    first = stage_one(encoder, corpus, frozen_map=True)
    ranked = fill_behind(rerank(encoder, corpus, first, candidates=candidates, how=how), first)

    pooled = encoder.pool(corpus.features_VFD, corpus.mask_VF)
    frozen = encoder.fit_frozen_map(np.concatenate([pooled, corpus.text_TD]))
    videos, texts = encoder.map_rows(frozen, pooled), encoder.map_rows(frozen, corpus.text_TD)
    stored = corpus.features_VFD.astype(np.float16)
    for t in range(len(texts)):
        stage1 = videos @ texts[t]
        ids = np.sort(np.argsort(-stage1)[:candidates])
        scores = encoder.score_videos(
            corpus.text_TD[t : t + 1], stored[ids][None], corpus.mask_VF[ids][None], None, how
        )
        best = ids[np.argsort(-scores.scores_QN[0])]
        rest = [v for v in np.argsort(-stage1) if v not in ids]
        np.testing.assert_array_equal(np.argsort(-ranked.text_to_video_TV[t]), [*best, *rest])
        np.testing.assert_allclose(ranked.text_to_video_TV[t, ids], scores.scores_QN[0], atol=1e-6)
    for v in range(len(videos)):
        stage1 = texts @ videos[v]
        ids = np.sort(np.argsort(-stage1)[:candidates])
        scores = encoder.score_captions(
            corpus.features_VFD[v : v + 1], corpus.mask_VF[v : v + 1], corpus.text_TD[ids][None], None, how
        )
        best = ids[np.argsort(-scores.scores_QN[0])]
        rest = [t for t in np.argsort(-stage1) if t not in ids]
        np.testing.assert_array_equal(np.argsort(-ranked.video_to_text_VT[v]), [*best, *rest])


def test_without_strength_emcl_ranks_as_pooling_does():
    encoder, corpus = build_encoder(EMCLConfig(num_bases=4, beta=0.0)), random_corpus()
    first = stage_one(encoder, corpus, frozen_map=True)
    with_pass, without = (rerank(encoder, corpus, first, candidates=12, how=how) for how in ("emcl", "none"))
    np.testing.assert_allclose(with_pass.text_to_video_TV, without.text_to_video_TV, atol=1e-6)
    np.testing.assert_allclose(
        first.text_to_video_TV, stage_one(encoder, corpus, frozen_map=False).text_to_video_TV, atol=1e-6
    )


def test_all_candidates_leave_nothing_behind(encoder):
    corpus = random_corpus()
    first = stage_one(encoder, corpus, frozen_map=True)
    ranked = rerank(encoder, corpus, first, candidates=100, how="emcl")
    assert np.isfinite(ranked.text_to_video_TV).all()
    np.testing.assert_array_equal(fill_behind(ranked, first).text_to_video_TV, ranked.text_to_video_TV)


def test_dual_softmax_keeps_what_was_no_candidate_behind(encoder):
    corpus = random_corpus()
    first = stage_one(encoder, corpus, frozen_map=True)
    scores = rerank(encoder, corpus, first, candidates=3, how="emcl")
    filled = fill_behind(with_dual_softmax(scores), first).text_to_video_TV
    candidate = np.isfinite(scores.text_to_video_TV)
    for row, is_candidate in zip(filled, candidate, strict=True):
        assert row[is_candidate].min() > row[~is_candidate].max()


def test_several_captions_of_a_video_count_as_one(encoder):
    corpus = random_corpus(videos=6, captions_each=2)
    first = stage_one(encoder, corpus, frozen_map=False)
    row = measure("x", first, corpus)
    assert row.text_to_video.queries == 12
    assert row.video_to_text.queries == 6
    best = first.video_to_text_VT.reshape(6, 6, 2).max(axis=2)
    assert row.video_to_text.recall[1] == pytest.approx(100 * np.mean(best.argmax(axis=1) == np.arange(6)))


def test_every_way_is_measured_plain_and_transductive(encoder):
    rows = evaluate_features(encoder, random_corpus(), candidates=5)
    assert [row.name for row in rows if not row.transductive] == [
        "stage 1, no map",
        "stage 1, frozen map",
        "pooling without EMCL",
        "EMCL channel, beta 0.3",
        "EMCL reference, beta 3",
    ]
    assert len(rows) == 10
    assert len(table(rows).splitlines()) == 12
    written = json.loads(json.dumps(report(rows, videos=12)))
    assert written["training_seeds"] == 1
    assert written["rows"][0]["text_to_video"]["queries"] == 12


def test_another_emcl_leaves_the_model_as_it_was(encoder):
    before = encoder.net.emcl
    variant = with_emcl(encoder, EMCLConfig.reference())
    assert variant.config.emcl.mode == "reference"
    assert variant.net.emcl is not before
    assert variant.net.clip is encoder.net.clip
    assert encoder.net.emcl is before
    assert encoder.config.emcl.mode == "channel"
    assert with_emcl(encoder, encoder.config.emcl) is encoder


def test_a_reference_checkpoint_is_compared_with_channel():
    own = EMCLConfig.reference(num_bases=7)
    assert [config.mode for config in emcl_variants(own)] == ["channel", "reference"]
    assert emcl_variants(own)[1] is own


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory, encoder):
    folder = tmp_path_factory.mktemp("evaluate")
    listing = write_corpus(folder / "clips", split="test", count=6, captions=1, workers=1)
    return listing, save_checkpoint(encoder.net, folder / "tiny.safetensors")


def test_files_are_encoded_as_one_by_one(on_disk, encoder):
    clips = read_manifest(on_disk[0])
    corpus = encode_corpus(encoder, clips)
    alone = encode_corpus(encoder, clips[2:3])
    frames = alone.features_VFD.shape[1]
    np.testing.assert_array_equal(alone.mask_VF[0], corpus.mask_VF[2, :frames])
    np.testing.assert_allclose(alone.features_VFD[0], corpus.features_VFD[2, :frames], atol=1e-5)
    np.testing.assert_allclose(alone.text_TD[0], corpus.text_TD[2], atol=1e-5)


def test_the_command_prints_a_table_and_writes_json(on_disk, tmp_path):
    listing, checkpoint = on_disk
    file = tmp_path / "scores.json"
    arguments = ["evaluate", "--data", str(listing.parent), "--checkpoint", str(checkpoint), "--json", str(file)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "pooling without EMCL" in result.stdout
    scores = json.loads(file.read_text(encoding="utf-8"))
    assert scores["videos"] == 6
    assert scores["fingerprint"] == load_encoder(str(checkpoint), device="cpu").fingerprint


def test_the_command_says_what_is_missing(on_disk, tmp_path):
    result = CliRunner().invoke(app, ["evaluate", "--data", str(tmp_path), "--checkpoint", str(on_disk[1])])
    assert isinstance(result.exception, FileNotFoundError)
    assert "captions.jsonl" in str(result.exception)


def test_the_shipped_checkpoint_is_what_its_files_say():
    encoder = load_encoder("demo", device="cpu")
    scores = json.loads((DEMO_CHECKPOINT.parent / "demo-scores.json").read_text(encoding="utf-8"))
    config = load_train_config(Path(__file__).parents[1] / "configs" / "demo.yaml").model
    assert DEMO_CHECKPOINT.stat().st_size <= 10_000_000
    assert scores["fingerprint"] == encoder.fingerprint
    assert scores["videos"] == 500
    assert encoder.config.model_copy(update={"clip": config.clip}) == config
    assert encoder.config.clip.custom["vision_cfg"] == config.clip.custom["vision_cfg"]
    assert encoder.config.clip.custom["text_cfg"] == config.clip.custom["text_cfg"]


def test_the_shipped_checkpoint_finds_clips_it_was_never_trained_on(tmp_path):
    listing = write_corpus(tmp_path, split="test", count=40, seed=1, captions=1, workers=1)
    corpus = encode_corpus(load_encoder("demo", device="cpu"), read_manifest(listing))
    found = {row.name: row for row in evaluate_features(load_encoder("demo", device="cpu"), corpus)}
    for row in found.values():
        assert row.text_to_video.recall[1] >= 85
        assert row.video_to_text.recall[1] >= 85
