"""CLIP towers: the reference's numbers, text at its own length, other open_clip classes, precision."""

import copy
import warnings

import pytest
import torch
from numeric_support import assert_equal_towers
from torch import nn

from model.clip.compat import import_open_clip
from model.clip.pretrained import ClipError
from model.clip.tokenizer import build_tokenizer
from model.clip.towers import ClipTowers, build_clip
from model.clip.weights import load_strictly
from model.config import ClipConfig, TokenizerConfig

CONTEXT, VOCAB = 16, 714
TEXT = {"context_length": CONTEXT, "vocab_size": VOCAB, "width": 64, "heads": 2, "layers": 2}
VISION = {"image_size": 32, "patch_size": 16, "width": 64, "head_width": 32, "layers": 2}
PLAIN = {"embed_dim": 48, "quick_gelu": True, "vision_cfg": VISION, "text_cfg": TEXT}

SIZE = {"width": 64, "blocks": 2}

SIGLIP_TEXT = {**TEXT, "no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
KINDS = {
    "CLIP": PLAIN,
    "CLIP with layer scale": {
        **PLAIN,
        "vision_cfg": {**VISION, "ls_init_value": 0.1},
        "text_cfg": {**TEXT, "ls_init_value": 0.1},
    },
    "CLIP with a ResNet": {**PLAIN, "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16}},
    "CLIP pooled elsewhere": {**PLAIN, "text_cfg": {**TEXT, "pool_type": "last"}},
    "CustomTextCLIP": {**PLAIN, "custom_text": True},
    "SigLIP": {
        "embed_dim": 64,
        "custom_text": True,
        "init_logit_bias": -10,
        "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none"},
        "text_cfg": SIGLIP_TEXT,
    },
    "CoCa": {
        **PLAIN,
        "custom_text": True,
        "vision_cfg": {**VISION, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {**TEXT, "attn_pooler_heads": 2},
    },
}


def towers_of(custom: dict, **options) -> ClipTowers:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return build_clip(ClipConfig(custom=custom), **options)


def some_pixels(towers: ClipTowers) -> torch.Tensor:
    size = towers.preprocess.height
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(2))


def some_text() -> tuple[torch.Tensor, torch.Tensor]:
    config = TokenizerConfig(max_words=12, merges=200)
    return build_tokenizer(config, ClipConfig(custom=PLAIN))(["a cat", "", "two dogs play with a ball in the park"])


@pytest.fixture(scope="module")
def plain() -> ClipTowers:
    return towers_of(PLAIN)


# -- the reference's numbers


@pytest.fixture
def golden_towers(golden) -> tuple[ClipTowers, dict[str, torch.Tensor]]:
    custom = {
        "embed_dim": 64,
        "quick_gelu": True,
        "vision_cfg": VISION,
        "text_cfg": {**TEXT, "vocab_size": 500},
    }
    towers = build_clip(ClipConfig(custom=custom))
    arrays = {name: torch.from_numpy(value) for name, value in golden("emclnet_forward").items() if name != "meta"}
    prefix = "state/clip."
    state = {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
    load_strictly(towers.model, state, source="golden")
    return towers, arrays


@torch.inference_mode()
def test_frame_features_equal_the_reference(golden_towers):
    towers, arrays = golden_towers
    features = towers.encode_image(arrays["video"].flatten(0, 1)).view(4, 5, 64)
    assert_equal_towers(features, arrays["frame_feats"], **SIZE)


@torch.inference_mode()
def test_text_features_equal_the_reference(golden_towers):
    towers, arrays = golden_towers
    ids, mask = arrays["text_ids"].long(), arrays["text_mask"].bool()
    assert_equal_towers(towers.encode_text(ids, mask), arrays["cls"], **SIZE)
    hidden = towers.project(towers.model.ln_final(towers.text_states(ids)))
    assert_equal_towers(hidden[mask], arrays["text_hidden"][mask], **SIZE)


# -- text at its own length


@torch.inference_mode()
def test_width_of_the_padding_changes_nothing(plain):
    ids, mask = some_text()
    expected = plain.encode_text(ids, mask)
    for width in range(ids.shape[1], CONTEXT + 1):
        padding = (0, width - ids.shape[1])
        wide = plain.encode_text(nn.functional.pad(ids, padding), nn.functional.pad(mask, padding))
        assert_equal_towers(wide, expected, **SIZE)


@torch.inference_mode()
def test_a_text_alone_is_the_same_as_in_a_batch(plain):
    ids, mask = some_text()
    together = plain.encode_text(ids, mask)
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        alone = plain.encode_text(ids[row : row + 1, :length], mask[row : row + 1, :length])
        assert_equal_towers(alone[0], together[row], **SIZE)


@torch.inference_mode()
def test_ids_under_the_padding_change_nothing(plain):
    ids, mask = some_text()
    other = torch.where(mask, ids, 377)
    assert torch.equal(plain.encode_text(other, mask), plain.encode_text(ids, mask))


@torch.inference_mode()
def test_text_equals_open_clip_on_the_full_context(plain):
    ids, mask = some_text()
    expected = plain.model.encode_text(nn.functional.pad(ids, (0, CONTEXT - ids.shape[1])))
    assert_equal_towers(plain.encode_text(ids, mask), expected, **SIZE)


def test_masks_that_are_no_prefix_are_refused(plain):
    ids, mask = some_text()
    for bad in (mask.flip(1), torch.zeros_like(mask), mask.clone().index_fill(1, torch.tensor([1]), False)):
        with pytest.raises(ValueError, match="True for the first tokens"):
            plain.encode_text(ids, bad)


@pytest.mark.parametrize("kind", ["CLIP", "CustomTextCLIP"])
def test_more_tokens_than_positions_are_refused(kind):
    ids = torch.ones(1, CONTEXT + 1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"16 positions, got 17 tokens; lower tokenizer.max_words"):
        towers_of(KINDS[kind]).encode_text(ids, ids.bool())


def test_gradients_reach_both_towers(plain):
    towers = copy.deepcopy(plain).train()
    ids, mask = some_text()
    (towers.encode_text(ids, mask).square().sum() + towers.encode_image(some_pixels(towers)).square().sum()).backward()
    without = [name for name, value in towers.named_parameters() if value.grad is None and "logit_scale" not in name]
    assert without == []
    assert not towers.text_positions.grad[ids.shape[1] :].any()


# -- what others read from the towers


def test_attributes_of_a_plain_model(plain):
    assert (plain.embed_dim, plain.preprocess.height, plain.context_length) == (48, 32, CONTEXT)
    assert plain.image_mean == (0.48145466, 0.4578275, 0.40821073)
    assert plain.image_std == (0.26862954, 0.26130258, 0.27577711)
    assert isinstance(plain.logit_scale, nn.Parameter)
    assert len(plain.text_blocks) == 2
    assert plain.text_blocks[0].attn.num_heads == 2
    assert plain.text_positions.shape == (CONTEXT, 64)
    assert not plain.training


def test_description_rebuilds_the_same_towers(plain):
    again = build_clip(ClipConfig(custom=plain.description))
    assert again.description == plain.description
    again.load_state_dict(plain.state_dict())
    pixels = some_pixels(plain)
    assert torch.equal(again.encode_image(pixels), plain.encode_image(pixels))


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_other_classes_run_on_their_own_context(kind):
    towers = towers_of(KINDS[kind])
    ids, mask = some_text()
    images, texts = towers.encode_image(some_pixels(towers)), towers.encode_text(ids, mask)
    assert images.shape == texts.shape == (3, towers.embed_dim)
    assert images.dtype == texts.dtype == torch.float32
    full_ids = nn.functional.pad(ids, (0, CONTEXT - ids.shape[1]))
    expected = towers.model.encode_text(full_ids, normalize=False)
    assert_equal_towers(texts, expected, **SIZE)
    norms = torch.cat([images, texts]).norm(dim=1)
    assert not torch.allclose(norms, torch.ones_like(norms)), "features are raw, also where open_clip normalises"


# -- precision


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 3e-2), ("fp16", 4e-3)])
@torch.inference_mode()
def test_low_precision_is_close_to_fp32(kind, precision, tolerance):
    exact = towers_of(KINDS[kind])
    rounded = towers_of(KINDS[kind], precision=precision)
    pixels, (ids, mask) = some_pixels(exact), some_text()
    for expected, got in (
        (exact.encode_image(pixels), rounded.encode_image(pixels)),
        (exact.encode_text(ids, mask), rounded.encode_text(ids, mask)),
    ):
        assert got.dtype == torch.float32
        assert (got - expected).abs().max() <= tolerance * expected.abs().max()
        assert nn.functional.cosine_similarity(got, expected).min() > 0.9995


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@torch.inference_mode()
def test_low_precision_equals_open_clips_own(precision, plain, monkeypatch):
    """We convert after loading, open_clip before; the arithmetic must be the same to the last bit."""
    open_clip = import_open_clip()
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", copy.deepcopy(PLAIN))
    with warnings.catch_warnings():
        theirs = open_clip.create_model("tiny", precision=precision).eval()
    theirs.load_state_dict(plain.model.state_dict())
    ours = copy.deepcopy(plain)
    ours.set_precision(precision)
    pixels, (ids, mask) = some_pixels(plain), some_text()
    assert torch.equal(ours.encode_image(pixels), theirs.encode_image(pixels.to(theirs.visual.proj.dtype)).float())
    full_ids, full_mask = (nn.functional.pad(value, (0, CONTEXT - ids.shape[1])) for value in (ids, mask))
    assert torch.equal(ours.encode_text(full_ids, full_mask), theirs.encode_text(full_ids).float())


def test_normalisation_and_logit_scale_stay_fp32(plain):
    towers = copy.deepcopy(plain)
    towers.set_precision("bf16")
    kept = {name for name, value in towers.named_parameters() if value.dtype == torch.float32}
    norms = {
        f"{name}.{part}"
        for name, module in towers.named_modules()
        if isinstance(module, nn.LayerNorm)
        for part in ("weight", "bias")
    }
    assert kept == norms | {"model.logit_scale"}


def test_precision_is_converted_once_and_by_a_known_name(plain):
    towers = copy.deepcopy(plain)
    towers.set_precision("fp32")
    assert towers.original_digests == {}
    towers.set_precision("bf16")
    towers.set_precision("bf16")
    with pytest.raises(ClipError, match="are bf16 already; load them in fp32 to convert to fp16"):
        towers.set_precision("fp16")
    with pytest.raises(ClipError, match="one of fp32, bf16, fp16, got 'int8'"):
        build_clip(ClipConfig(custom=PLAIN), precision="int8")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 5e-3), ("bf16", 3e-2), ("fp16", 5e-3)])
@torch.inference_mode()
def test_every_precision_on_cuda_is_close_to_fp32_on_the_cpu(kind, precision, tolerance):
    exact = towers_of(KINDS[kind])
    towers = towers_of(KINDS[kind], precision=precision, device="cuda")
    pixels, (ids, mask) = some_pixels(exact), some_text()
    for expected, got in (
        (exact.encode_image(pixels), towers.encode_image(pixels.cuda())),
        (exact.encode_text(ids, mask), towers.encode_text(ids.cuda(), mask.cuda())),
    ):
        assert got.dtype == torch.float32
        assert (got.cpu() - expected).abs().max() <= tolerance * expected.abs().max()
