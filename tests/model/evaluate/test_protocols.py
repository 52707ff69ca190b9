"""Protocols of evaluation against slow writings-out of them and the reference's own block scores."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from evaluation_support import build_encoder, random_corpus
from numeric_support import assert_within_rounding, score_tolerance, unit_roundoff

from model.config import EMCLConfig, PoolingConfig
from model.emcl.pooling import frame_weights
from model.evaluate.corpus import Corpus, with_emcl
from model.evaluate.hubness import BankNorm, dual_softmax
from model.evaluate.measure import BankRows, measure, rows_of
from model.evaluate.metrics import best_sentence, evaluate_similarity, retrieval_metrics, text_to_video_metrics
from model.evaluate.protocols import PROTOCOLS, ways_of
from model.evaluate.query_bank import QueryBank
from model.evaluate.rank import Ranked, best_columns, fill_floor, fill_scores, rerank, score_in_blocks, stage_one
from model.evaluate.run import EvaluationSettings, deviations, evaluate_rows

REFERENCE = EMCLConfig.reference(num_bases=4, iterations=3)


def slow_blocks(encoder, corpus, block):
    """In float64, one block after another, one pair after another; rows as the released code stacks them."""
    text, features = torch.from_numpy(corpus.text_TD).double(), torch.from_numpy(corpus.features_VFD).double()
    mask = torch.from_numpy(corpus.mask_VF)
    scores = torch.full((len(text), len(features)), torch.nan, dtype=torch.float64)
    emcl = copy.deepcopy(encoder.net.emcl).double()
    for t0 in range(0, len(text), block):
        for v0 in range(0, len(features), block):
            ts, vs = range(t0, min(t0 + block, len(text))), range(v0, min(v0 + block, len(features)))
            rows = []
            for t in ts:
                for v in vs:
                    weights = frame_weights(features[v] @ text[t], mask[v], encoder.config.pooling)
                    rows.append(sum(w * frame for w, frame in zip(weights, features[v], strict=True)))
            rows = emcl(torch.stack([*rows, *(text[t] for t in ts)]))
            for i, t in enumerate(ts):
                for j, v in enumerate(vs):
                    pooled, query = rows[i * len(vs) + j], rows[len(ts) * len(vs) + i]
                    scores[t, v] = F.cosine_similarity(pooled, query, dim=0)
    return scores


@pytest.mark.parametrize("emcl", [REFERENCE, EMCLConfig(num_bases=4, iterations=3)], ids=["reference", "channel"])
@pytest.mark.parametrize("mask", ["after", "before"])
def test_reference_protocol_equals_a_slow_loop(emcl, mask):
    encoder, corpus = build_encoder(emcl, pooling=PoolingConfig(mask=mask)), random_corpus(videos=7, captions_each=2)
    state = encoder.net.emcl.state.clone()
    found = torch.from_numpy(score_in_blocks(encoder, corpus, corpus.text_TD, block=4))
    with torch.no_grad():  # 14 texts, 7 videos: the last blocks have 2 and 3
        assert_within_rounding(found, slow_blocks(encoder, corpus, 4), lambda: slow_blocks(encoder, corpus, 4))
    torch.testing.assert_close(encoder.net.emcl.state, state, rtol=0, atol=0)


def test_reference_protocol_equals_the_reference_s_block_scores(golden):
    arrays = golden("emclnet_forward")
    encoder = build_encoder(EMCLConfig.reference(num_bases=8), dim=64, pooling=PoolingConfig(mask="after"))
    encoder.net.emcl.state.copy_(torch.from_numpy(arrays["M_in"]))
    corpus = Corpus(
        text_TD=arrays["cls"],
        features_VFD=arrays["video_feats"],
        mask_VF=arrays["video_mask"].astype(bool),
        video_of_text_T=np.arange(4),
    )
    for block, name in ((2, "t2v_logits_eval_blocks2x2"), (4, "t2v_logits_eval"), (32, "t2v_logits_eval")):
        found = score_in_blocks(encoder, corpus, corpus.text_TD, block=block)
        with torch.no_grad():
            assert_within_rounding(found, arrays[name], lambda block=block: slow_blocks(encoder, corpus, block))
    found = score_in_blocks(encoder, corpus, corpus.text_TD[:3])
    np.testing.assert_allclose(found, arrays["t2v_logits_eval_3x4"], rtol=0, atol=score_tolerance(64, 2 * 9 + 3))


def ways(protocol, encoder=None, corpus=None, candidates=5):
    return {
        way.name: way
        for way in ways_of(encoder or build_encoder(), corpus or random_corpus(), protocol, candidates=candidates)
    }


def test_every_protocol_has_rows_with_and_without_emcl():
    assert list(ways("reference")) == [
        "stage 1, no map",
        "pooling without EMCL",
        "EMCL channel, beta 0.3",
        "EMCL reference, beta 3",
    ]
    assert list(ways("frozen")) == [
        "stage 1, no map",
        "stage 1, frozen map, EMCL channel, beta 0.3",
        "stage 1, frozen map, EMCL reference, beta 3",
    ]
    assert list(ways("per-query")) == [
        "stage 1, no map",
        "stage 1, frozen map",
        "pooling without EMCL",
        "EMCL channel, beta 0.3",
        "EMCL reference, beta 3",
    ]


def test_reference_protocol_measures_blocks_of_32():
    corpus = random_corpus(videos=40)
    encoder = build_encoder()
    found = ways("reference", encoder, corpus)
    own = score_in_blocks(encoder, corpus, corpus.text_TD, block=32)
    np.testing.assert_array_equal(found["EMCL channel, beta 0.3"].ranked.text_to_video_TV, own)
    np.testing.assert_array_equal(found["EMCL channel, beta 0.3"].ranked.video_to_text_VT, own.T)
    other = with_emcl(encoder, EMCLConfig.reference())
    expected = score_in_blocks(other, corpus, corpus.text_TD, block=32)
    np.testing.assert_array_equal(found["EMCL reference, beta 3"].ranked.text_to_video_TV, expected)
    assert np.abs(own - score_in_blocks(encoder, corpus, corpus.text_TD, block=16)).max() > 1e-4, "blocks matter"


def test_a_per_query_score_does_not_depend_on_the_other_queries():
    encoder, corpus = build_encoder(), random_corpus(videos=20)
    first = stage_one(encoder, corpus, frozen_map=True)
    alone = Corpus(
        text_TD=corpus.text_TD[3:4],
        features_VFD=corpus.features_VFD,
        mask_VF=corpus.mask_VF,
        video_of_text_T=corpus.video_of_text_T[3:4],
    )
    firsts = Ranked(text_to_video_TV=first.text_to_video_TV[3:4], video_to_text_VT=first.video_to_text_VT[:, 3:4])
    whole = rerank(encoder, corpus, first, candidates=6, how="emcl").text_to_video_TV[3]
    single = rerank(encoder, alone, firsts, candidates=6, how="emcl").text_to_video_TV[0]
    np.testing.assert_array_equal(single, whole)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_bank_is_scored_as_the_captions_were(protocol):
    """The captions themselves, asked as a bank, get their own scores; what was no candidate its lowest."""
    corpus = random_corpus()
    for way in ways(protocol, corpus=corpus).values():
        asked, own = way.score_texts(corpus.text_TD), way.ranked.text_to_video_TV
        assert np.isfinite(asked).all(), way.name
        known = np.isfinite(own)
        if way.name != "pooling without EMCL":
            np.testing.assert_array_equal(asked, fill_floor(own), err_msg=way.name)
        if protocol != "reference":  # there the blocks would be others
            # Pooling scores all pairs of a bank at once, and those of candidates query by query.
            close = score_tolerance(32, products=2) if "pooling" in way.name else 0.0
            np.testing.assert_allclose(asked[known], own[known], rtol=0, atol=close, err_msg=way.name)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_bank_of_videos_is_scored_as_the_videos_were(protocol):
    """The videos themselves, asked as a bank, get their own scores; what was no candidate its lowest."""
    corpus = random_corpus()
    for way in ways(protocol, corpus=corpus).values():
        asked, own = way.score_videos(corpus.features_VFD, corpus.mask_VF), way.ranked.video_to_text_VT
        assert np.isfinite(asked).all(), way.name
        known = np.isfinite(own)
        # Own videos are pooled as they are stored, in half precision; those of a bank are not stored.
        stored = 2 * unit_roundoff(np.float16) if "pooling" in way.name else 0.0
        np.testing.assert_allclose(asked[known], own[known], rtol=0, atol=stored)
        if way.name != "pooling without EMCL":
            np.testing.assert_array_equal(asked, fill_floor(own), err_msg=way.name)


def test_rows_are_what_whole_matrices_give():
    encoder, corpus = build_encoder(), random_corpus(videos=15, captions_each=2)
    way = ways("per-query", encoder, corpus)["EMCL channel, beta 0.3"]
    bank = BankRows(text_BD=corpus.text_TD[::3] + 0.1, beta=20.0, top=1)
    plain, dual, normed = rows_of(way, corpus, bank=bank, temperature=0.05)
    scores, behind, owner = way.ranked, way.behind, corpus.video_of_text_T
    whole = fill_scores(scores.text_to_video_TV, behind.text_to_video_TV)
    assert plain.text_to_video == text_to_video_metrics(whole, owner)
    whole = fill_scores(scores.video_to_text_VT, behind.video_to_text_VT)
    assert plain.video_to_text == evaluate_similarity(best_sentence(whole, owner))
    whole = fill_scores(dual_softmax(scores.text_to_video_TV, 0.05), behind.text_to_video_TV)
    assert dual.text_to_video == text_to_video_metrics(whole, owner)
    assert dual.transductive
    norm = BankNorm.fit([way.score_texts(bank.text_BD)], 15)
    whole = fill_scores(norm.rescore(scores.text_to_video_TV), behind.text_to_video_TV)
    assert normed.text_to_video == text_to_video_metrics(whole, owner)
    assert normed.video_to_text is None
    assert not normed.transductive
    both = BankRows(
        text_BD=bank.text_BD, beta=20.0, top=1, features_BFD=corpus.features_VFD[:9] * 1.1, mask_BF=corpus.mask_VF[:9]
    )
    *_, normed = rows_of(way, corpus, bank=both, temperature=0.05)
    norm = BankNorm.fit([way.score_videos(both.features_BFD, both.mask_BF)], 30)
    whole = fill_scores(norm.rescore(scores.video_to_text_VT), behind.video_to_text_VT)
    assert normed.video_to_text == evaluate_similarity(best_sentence(whole, owner))
    assert normed.video_to_text != plain.video_to_text


def test_best_columns_are_those_of_a_stable_sort():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 6, (40, 23)).astype(np.float32)  # full of ties
    for count in (1, 5, 22, 23, 50):
        expected = np.sort(np.argsort(-scores, axis=1, kind="stable")[:, :count], axis=1)
        np.testing.assert_array_equal(best_columns(scores, count), expected)


def test_metric_rules_of_the_reference_are_used_only_by_name():
    tied = np.array([[0.5, 0.5], [0.1, 0.9]], np.float32)
    corpus = random_corpus(videos=2)
    ranked = Ranked(text_to_video_TV=tied, video_to_text_VT=tied.T)
    ours = measure("x", ranked, corpus)
    theirs = measure("x", ranked, corpus, rules="reference")
    assert ours.text_to_video == retrieval_metrics(np.array([0.5, 0.0]))
    assert (ours.text_to_video.queries, theirs.text_to_video.queries) == (2, 3)


def test_the_cut_points_of_msvd_are_shifted_only_by_name():
    corpus = random_corpus(videos=6, captions_each=3)
    ranked = stage_one(build_encoder(), corpus, frozen_map=False)
    queries = {
        rules: measure("x", ranked, corpus, rules=rules).text_to_video.queries
        for rules in ("corrected", "reference", "reference-msvd")
    }
    assert queries == {"corrected": 18, "reference": 18, "reference-msvd": 17}
    shifted = measure("x", ranked, corpus, rules="reference-msvd")
    assert shifted.video_to_text.queries == 6
    assert shifted.text_to_video.recall != measure("x", ranked, corpus).text_to_video.recall


def test_the_reference_s_rules_refuse_nan_as_ours_do():
    scores = np.full((3, 3), np.nan)
    with pytest.raises(ValueError, match="NaN"):
        measure(
            "x", Ranked(text_to_video_TV=scores, video_to_text_VT=scores), random_corpus(videos=3), rules="reference"
        )


def test_deviations_name_what_differs():
    released = build_encoder(EMCLConfig.reference(), pooling=PoolingConfig(mask="after")).config
    exact = EvaluationSettings(protocol="reference", rules="reference")
    few = deviations(released, exact, multi_sentence=False)
    assert [line.split(",")[0] for line in few] == [
        "EMCL's state is that of the checkpoint",
        "frames are those shown at the sampled times",
    ]
    ours = deviations(build_encoder().config, EvaluationSettings(), multi_sentence=True, videos_lost=3)
    text = "\n".join(ours)
    for part in (
        "100 candidates",
        "fp16",
        "emcl.mode",
        "num_bases",
        "before the softmax",
        "ties",
        "median",
        "3 videos",
    ):
        assert part in text
    frozen = deviations(released, EvaluationSettings(protocol="frozen"), multi_sentence=False)
    assert "stage 1 alone" in frozen[0]


def test_rows_of_all_protocols_with_a_bank():
    bank = QueryBank(texts=("a red circle", "a blue square moves"), source="test", available=2, seed=0)
    for protocol, rankings, hubs in (("reference", 4, 0), ("frozen", 3, 1), ("per-query", 5, 1)):
        rows = list(evaluate_rows(build_encoder(), random_corpus(), EvaluationSettings(protocol=protocol, bank=bank)))
        assert len(rows) == 3 * rankings + hubs
        assert sum("hub bases" in row.name for row in rows) == hubs
        assert sum("QB-Norm" in row.name for row in rows) == rankings
        assert sum(row.transductive for row in rows) == rankings
