"""EMCL-Net: golden features and logits of the reference; invariances of per-query scoring."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from heads_support import golden_architecture, reference_name
from numeric_support import assert_equal_towers, assert_within_rounding, rounding_spread, tolerance

from model.config import TemporalConfig
from model.emcl.pooling import pool_videos
from model.encoder import Encoder
from model.net import EMCLNet, build_net

GOLDEN = {"width": 64, "blocks": 4}  # two of a tower, two of the temporal transformer


@pytest.fixture
def golden_net(golden) -> tuple[EMCLNet, dict[str, torch.Tensor]]:
    arrays = {key: torch.from_numpy(value) for key, value in golden("emclnet_forward").items() if key != "meta"}
    net = golden_architecture()
    state = net.state_dict()
    for name in state:
        if name != "emcl.state":
            state[name] = arrays.pop("state/" + reference_name(name)).view_as(state[name])
    left = [key for key in arrays if key.startswith("state/")]
    assert left == []
    state["emcl.state"] = arrays["M_in"]
    net.load_state_dict(state, strict=True)
    return net.eval(), arrays


@torch.no_grad()
def encode(net: EMCLNet, arrays: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    mask = arrays["video_mask"].bool()
    text = net.encode_text(arrays["text_ids"].long(), arrays["text_mask"].bool())
    return text, net.encode_video(arrays["video"], mask), mask


def golden_features(arrays: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return arrays["cls"], arrays["video_feats"], arrays["video_mask"].bool()


def test_encoders_equal_golden(golden_net):
    net, arrays = golden_net
    text, features, mask = encode(net, arrays)
    assert_equal_towers(text, arrays["cls"], **GOLDEN)
    assert_equal_towers(features[mask], arrays["video_feats"][mask], **GOLDEN)
    with torch.no_grad():
        frames = net.clip.encode_image(arrays["video"].flatten(0, 1)).view(*mask.shape, -1)
    assert_equal_towers(frames, arrays["frame_feats"], **GOLDEN)


def test_pooled_vectors_and_logits_equal_golden(golden_net):
    net, arrays = golden_net
    text, features, mask = golden_features(arrays)
    everything = features.expand(len(text), *features.shape), mask.expand(len(text), *mask.shape)
    assert_equal_towers(pool_videos(text, *everything, net.config.pooling)[0], arrays["pooled"], width=64, blocks=1)

    def in_blocks(size, net=net, dtype=torch.float32):
        given, videos = text.to(dtype), features.to(dtype)
        blocks = [
            [net.score_matrix(given[t : t + size], videos[v : v + size], mask[v : v + size]) for v in range(0, 4, size)]
            for t in range(0, 4, size)
        ]
        return torch.cat([torch.cat(row, dim=1) for row in blocks])

    double = copy.deepcopy(net).double()
    with torch.no_grad():
        for size, name in ((4, "t2v_logits_eval"), (2, "t2v_logits_eval_blocks2x2")):
            assert_within_rounding(in_blocks(size), arrays[name], lambda s=size: in_blocks(s, double, torch.float64))
        assert_within_rounding(
            net.score_matrix(text[:3], features, mask),
            arrays["t2v_logits_eval_3x4"],
            lambda: double.score_matrix(text[:3].double(), features.double(), mask),
        )


def test_training_pass_moves_the_state_as_golden(golden_net):
    net, arrays = golden_net
    text, features, mask = golden_features(arrays)
    net.train()
    double = copy.deepcopy(net).double()

    def moved():
        moving = copy.deepcopy(double)
        moving.score_matrix(text.double(), features.double(), mask)
        return moving.emcl.state

    with torch.no_grad():
        net.score_matrix(text, features, mask)
        assert_within_rounding(net.emcl.state, arrays["M_after_train"], moved)


@pytest.fixture
def candidates() -> dict[str, torch.Tensor]:
    """32 queries with 20 candidates each, of up to 6 frames, some of them padding."""
    g = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 7, (32, 20), generator=g)
    mask = torch.arange(6) < lengths[..., None]
    features = torch.randn(32, 20, 6, 32, generator=g) * mask[..., None]
    return {"text_QD": torch.randn(32, 32, generator=g), "features_QNFD": features, "mask_QNF": mask}


def spread_of_scores(net: EMCLNet, given: dict[str, torch.Tensor]) -> float:
    """How far apart two computations of the same scores may be."""
    double = copy.deepcopy(net).double()
    exact = {name: value.double() if value.is_floating_point() else value for name, value in given.items()}
    return 2 * rounding_spread(lambda: double.score_videos(**exact).scores_QN)


@torch.no_grad()
def test_answer_is_the_same_alone_and_among_31_others(tiny_encoder, candidates):
    net = tiny_encoder.net
    together = net.score_videos(**candidates).scores_QN
    for row in range(32):
        alone = net.score_videos(**{key: value[row : row + 1] for key, value in candidates.items()}).scores_QN[0]
        assert torch.equal(alone, together[row])  # to the last bit: on a CPU queries are computed one after the other


@torch.no_grad()
def test_order_of_candidates_does_not_matter(tiny_encoder, candidates):
    net = tiny_encoder.net
    scores = net.score_videos(**candidates).scores_QN
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    shuffled = {**candidates, **{key: candidates[key][:, order] for key in ("features_QNFD", "mask_QNF")}}
    spread = spread_of_scores(net, candidates)
    torch.testing.assert_close(net.score_videos(**shuffled).scores_QN, scores[:, order], rtol=0, atol=spread)


@torch.no_grad()
def test_padded_frames_and_masked_candidates_change_nothing(tiny_encoder, candidates):
    net = tiny_encoder.net
    scores, spread = net.score_videos(**candidates).scores_QN, spread_of_scores(net, candidates)
    g = torch.Generator().manual_seed(2)
    padded = dict(candidates)
    padded["features_QNFD"] = torch.cat([candidates["features_QNFD"], torch.randn(32, 20, 3, 32, generator=g)], dim=2)
    padded["mask_QNF"] = torch.nn.functional.pad(candidates["mask_QNF"], (0, 3))
    torch.testing.assert_close(net.score_videos(**padded).scores_QN, scores, rtol=0, atol=spread)
    more = dict(candidates)
    more["features_QNFD"] = torch.cat([candidates["features_QNFD"], torch.randn(32, 5, 6, 32, generator=g)], dim=1)
    more["mask_QNF"] = torch.cat([candidates["mask_QNF"], torch.ones(32, 5, 6, dtype=torch.bool)], dim=1)
    valid = torch.arange(25).expand(32, 25) < 20
    masked = net.score_videos(**more, candidate_mask_QN=valid).scores_QN
    torch.testing.assert_close(masked[:, :20], scores, rtol=0, atol=spread)
    assert torch.isneginf(masked[:, 20:]).all()


@torch.no_grad()
def test_rerank_none_is_cosine_after_pooling_and_emcl_moves_it(tiny_encoder, candidates):
    net = tiny_encoder.net
    plain = net.score_videos(**candidates, rerank="none").scores_QN
    assert plain.abs().max() <= 1 + tolerance(np.float32, 32)
    assert (plain - net.score_videos(**candidates).scores_QN).abs().max() > 1e-3
    with pytest.raises(ValueError, match="rerank must be"):
        net.score_videos(**candidates, rerank="best")


@torch.no_grad()
def test_captions_direction_equals_a_loop_over_queries(tiny_encoder):
    net = tiny_encoder.net
    g = torch.Generator().manual_seed(3)
    features, captions = torch.randn(4, 6, 32, generator=g), torch.randn(4, 9, 32, generator=g)
    mask = torch.arange(6) < torch.tensor([6, 3, 1, 5])[:, None]
    together = net.score_captions(features, mask, captions)
    assert together.frame_weights_QNF.shape == (4, 9, 6)
    double = copy.deepcopy(net).double()
    spread = 2 * rounding_spread(lambda: double.score_captions(features.double(), mask, captions.double()).scores_QN)
    for row in range(4):
        alone = net.score_captions(features[row : row + 1], mask[row : row + 1], captions[row : row + 1])
        torch.testing.assert_close(alone.scores_QN[0], together.scores_QN[row], rtol=0, atol=spread)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["mean", "lstm", "transformer"])
def test_padding_does_not_reach_the_frame_features(tiny_config, kind):
    net = build_net(tiny_config.model_copy(update={"temporal": tiny_config.temporal.model_copy(update={"kind": kind})}))
    frames = torch.randint(0, 256, (2, 4, 3, 32, 32), dtype=torch.uint8)
    mask = torch.tensor([[True] * 4, [True] * 2 + [False] * 2])
    features = net.eval().encode_video(frames, mask)
    alone = net.encode_video(frames[1:, :2], mask[1:, :2])
    assert_equal_towers(features[1, :2].detach(), alone[0].detach(), width=64, blocks=4)
    assert features[1, 2:].abs().max() == 0
    with pytest.raises(ValueError, match="no real frame"):
        net.encode_video(frames, torch.zeros(2, 4, dtype=torch.bool))


def test_transformer_starts_from_the_text_tower(tiny_config):
    net = build_net(tiny_config)
    torch.testing.assert_close(net.temporal.positions.weight, net.clip.text_positions[:32])
    ours, source = net.temporal.blocks.resblocks[0].state_dict(), net.clip.text_blocks[0].state_dict()
    assert all(torch.equal(ours[key], source[key]) for key in source)


def test_transformer_that_cannot_start_from_the_text_tower_is_refused(tiny_config):
    deeper = tiny_config.model_copy(update={"temporal": TemporalConfig(layers=3, max_positions=32)})
    with pytest.raises(ValueError, match="needs 3 of width 32; this model has 2"):
        build_net(deeper)


def test_encoder_scores_in_turns_as_at_once(tiny_encoder, candidates, monkeypatch):
    arrays = {key: value.numpy() for key, value in candidates.items()}
    at_once = tiny_encoder.score_videos(**arrays)
    monkeypatch.setattr("model.encoder.SCORE_ELEMENTS", 3 * 20 * 6 * 32)
    in_turns = tiny_encoder.score_videos(**arrays)
    for field in dataclasses.fields(at_once):
        np.testing.assert_array_equal(getattr(in_turns, field.name), getattr(at_once, field.name))


def test_encoder_refuses_frames_of_another_size(tiny_encoder):
    with pytest.raises(ValueError, match=r"\(B, F, 32, 32, 3\), got uint8 \(1, 2, 16, 16, 3\)"):
        tiny_encoder.encode_videos(np.zeros((1, 2, 16, 16, 3), np.uint8), np.ones((1, 2), bool))


@pytest.mark.parametrize("kind", ["mean", "lstm", "transformer"])
def test_encoder_gives_a_video_the_same_bits_alone_and_among_others(tiny_config, kind):
    """Other videos change the shape of every product, and with it the order of its sums; on a CPU none may show."""
    temporal = tiny_config.temporal.model_copy(update={"kind": kind})
    net = build_net(tiny_config.model_copy(update={"temporal": temporal})).eval()
    encoder = Encoder(net, tokenizer=None, fingerprint="", device=torch.device("cpu"))
    rng = np.random.default_rng(4)
    frames = rng.integers(0, 256, (7, 6, 32, 32, 3), dtype=np.uint8)
    mask = np.arange(6) < np.array([6, 1, 3, 6, 5, 2, 4])[:, None]
    together = encoder.encode_videos(frames, mask)
    pooled = encoder.pool(together, mask)
    assert not together[~mask].any()
    for row, count in enumerate(mask.sum(axis=1)):
        alone = encoder.encode_videos(frames[row : row + 1, :count], mask[row : row + 1, :count])
        np.testing.assert_array_equal(alone[0], together[row, :count])
        np.testing.assert_array_equal(encoder.pool(alone, mask[row : row + 1, :count])[0], pooled[row])


def test_a_frozen_map_does_not_depend_on_the_order_of_the_corpus(tiny_encoder):
    rows = np.random.default_rng(5).standard_normal((300, 32)).astype(np.float32)
    rows[10] = rows[200]  # equal ones have no order
    straight = tiny_encoder.fit_frozen_map(rows).to_arrays()
    shuffled = tiny_encoder.fit_frozen_map(np.random.default_rng(6).permutation(rows)).to_arrays()
    for name, array in straight.items():
        np.testing.assert_array_equal(shuffled[name], array, err_msg=name)


def test_encoder_texts_do_not_depend_on_their_neighbours(tiny_encoder):
    texts = ["a red circle", "x", "two blue squares move to the left and then to the right over a striped background"]
    together = tiny_encoder.encode_texts(texts)
    for row, text in enumerate(texts):
        assert_equal_towers(tiny_encoder.encode_texts([text])[0], together[row], width=32, blocks=2)
    assert tiny_encoder.encode_texts([]).shape == (0, 32)
