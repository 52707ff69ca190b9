"""Runtimes: which one is chosen in each situation, and that texts in buckets are encoded as one by one."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from numeric_support import assert_equal_towers

from model.clip.tokenizer import BUCKET_TOKENS, rounded_up, text_buckets
from model.encoder import load_encoder
from model.net import build_net
from model.runtime import choose as runtime_module
from model.runtime.choose import Machine, Offer, RuntimeUnavailableError, choose, machine_of
from model.runtime.packed import can_pack, pack, padded_rows

PLAIN = Machine(cuda=False, onnxruntime=False, bf16=False, int8=False)
FULL = Machine(cuda=False, onnxruntime=True, bf16=True, int8=True)
CUDA = Machine(cuda=True, onnxruntime=True, bf16=True, int8=True)
NOTHING: dict = {}
ALL = {"onnx": None, "onnx-int8": None, "torch-bf16": None}


def machine(base: Machine, **changes) -> Machine:
    return Machine(**{**vars(base), **changes})


def choice_of(wish, precision, here, exported=NOTHING, fastest=None):
    """``exported`` maps what is beside the checkpoint to what is wrong with it, None for nothing."""

    def offers(kind):
        if kind not in exported:
            return Offer(exists=False, problem=f"no export of {kind}; make one: emcl export")
        return Offer(exists=True, problem=exported[kind])

    return choose(wish, precision, here, offers, fastest)


# -- auto


@pytest.mark.parametrize(
    ("here", "exported", "label"),
    [
        (PLAIN, NOTHING, "torch fp32"),
        (FULL, NOTHING, "torch fp32"),  # bf16 in hardware, but nobody judged it
        (FULL, ALL, "onnx int8"),
        (machine(FULL, int8=False), ALL, "torch bf16"),
        (machine(FULL, int8=False, bf16=False), ALL, "onnx fp32"),
        (machine(FULL, onnxruntime=False), ALL, "torch bf16"),
        (PLAIN, ALL, "torch fp32"),
        (FULL, {"onnx": None}, "onnx fp32"),
        (FULL, {**ALL, "onnx-int8": "the guard refused it"}, "torch bf16"),
        (FULL, {"onnx-int8": "damaged", "onnx": "damaged"}, "torch fp32"),
        (CUDA, NOTHING, "torch fp32"),
        (CUDA, ALL, "torch bf16"),
        (machine(CUDA, bf16=False), ALL, "torch fp32"),
    ],
)
def test_auto_takes_the_fastest_that_was_judged_and_can_run(here, exported, label):
    assert choice_of("auto", "auto", here, exported).label == label


def test_auto_keeps_to_a_precision_that_was_asked_for():
    assert choice_of("auto", "fp32", FULL, ALL).label == "onnx fp32"
    assert choice_of("auto", "fp32", CUDA, ALL).label == "torch fp32"
    assert choice_of("auto", "bf16", PLAIN).label == "torch bf16"
    assert choice_of("auto", "fp16", FULL, ALL).label == "torch fp16"


def test_auto_says_why_an_export_was_passed_over():
    assert "nothing faster is exported" in choice_of("auto", "auto", FULL).reason
    assert "the guard refused it" in choice_of("auto", "auto", FULL, {"onnx-int8": "the guard refused it"}).reason
    assert "emcl-search[onnx]" in choice_of("auto", "auto", PLAIN, {"onnx": None}).reason
    assert "no instructions" in choice_of("auto", "auto", machine(FULL, int8=False), {"onnx-int8": None}).reason


MIXED = {"text": "onnx-int8", "image": "torch-bf16"}


def test_auto_goes_by_what_was_measured_for_each_tower():
    mixed = choice_of("auto", "auto", FULL, ALL, MIXED)
    assert (mixed.label, mixed.torch_precision) == ("onnx int8 for texts, torch bf16 for frames", "bf16")
    assert "measured on this processor" in mixed.reason
    plain = choice_of("auto", "auto", FULL, ALL, {"text": "torch", "image": "torch"})
    assert plain.label == "torch fp32"  # though exports are there: they were found slower


@pytest.mark.parametrize(
    ("here", "exported", "label"),
    [
        (machine(FULL, bf16=False), ALL, "onnx int8"),
        (machine(FULL, onnxruntime=False), ALL, "torch bf16"),
        (FULL, {**ALL, "torch-bf16": "the guard refused it"}, "onnx int8"),
        (CUDA, ALL, "torch bf16"),
    ],
)
def test_what_was_measured_and_cannot_run_any_more_does_not_count(here, exported, label):
    assert choice_of("auto", "auto", here, exported, MIXED).label == label


def test_what_was_measured_does_not_overrule_a_precision_or_a_name():
    assert choice_of("auto", "fp32", FULL, ALL, MIXED).label == "onnx fp32"
    assert choice_of("torch", "auto", FULL, ALL, MIXED).label == "torch fp32"


# -- by name


@pytest.mark.parametrize(
    ("wish", "precision", "label"),
    [
        ("torch", "auto", "torch fp32"),
        ("torch", "bf16", "torch bf16"),
        ("torch-compiled", "auto", "torch-compiled fp32"),
        ("onnx", "auto", "onnx fp32"),
        ("onnx", "fp32", "onnx fp32"),
        ("onnx-int8", "auto", "onnx int8"),
    ],
)
def test_a_name_is_obeyed(wish, precision, label):
    assert choice_of(wish, precision, FULL, ALL).label == label


@pytest.mark.parametrize(
    ("wish", "precision", "here", "exported", "message"),
    [
        ("onnx", "auto", FULL, NOTHING, "emcl export"),
        ("onnx", "auto", machine(FULL, onnxruntime=False), ALL, r"pip install 'emcl-search\[onnx\]'"),
        ("onnx-int8", "auto", machine(FULL, int8=False), ALL, "VNNI"),
        ("onnx-int8", "auto", FULL, {"onnx-int8": "the guard refused it"}, "the guard refused it"),
        ("onnx", "bf16", FULL, ALL, "--runtime torch --precision bf16"),
        ("onnx-int8", "fp32", FULL, ALL, "computes in int8"),
        ("onnx", "auto", CUDA, ALL, "--device cpu"),
        ("tensorrt", "auto", FULL, ALL, "expected one of auto, torch"),
        ("torch", "int4", FULL, ALL, "expected auto, fp32"),
    ],
)
def test_what_is_impossible_is_refused_with_the_next_step(wish, precision, here, exported, message):
    with pytest.raises(RuntimeUnavailableError, match=message):
        choice_of(wish, precision, here, exported)


def test_the_machine_is_asked_and_an_unknown_question_counts_as_no(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    monkeypatch.delattr(torch.cpu, "_is_vnni_supported", raising=False)
    monkeypatch.setattr(runtime_module, "find_spec", lambda name: None)
    assert machine_of(torch.device("cpu")) == Machine(cuda=False, onnxruntime=False, bf16=True, int8=False)


# -- loading


def test_the_choice_is_in_the_encoder_and_in_the_log(caplog, tmp_path):
    with caplog.at_level(logging.INFO, logger="model.runtime.install"):
        encoder = load_encoder("demo", device="cpu", runtime="auto", precision="auto", exports=tmp_path)
    assert encoder.runtime.label == "torch fp32"
    assert "runtime torch fp32 on cpu: nothing faster is exported" in caplog.text
    assert load_encoder("demo", device="cpu", precision="bf16").runtime.label == "torch bf16"


def test_compiled_towers_compile_few_shapes_and_give_the_same_features(tiny_checkpoint, tiny_encoder, monkeypatch):
    compiled = []

    def compile_nothing(function, **options):
        def run(*tensors):
            compiled.append(tuple(tensors[0].shape))
            return function(*tensors)

        return run

    monkeypatch.setattr(torch, "compile", compile_nothing)
    encoder = load_encoder(str(tiny_checkpoint), device="cpu", runtime="torch-compiled")
    assert encoder.runtime.label == "torch-compiled fp32"
    warmed = len(compiled)
    texts = ["a", "a red circle", "a large blue star moves to the left in front of a grey wall"]
    np.testing.assert_allclose(encoder.encode_texts(texts), tiny_encoder.encode_texts(texts), atol=1e-5)
    assert all(shape[1] % 8 == 0 for shape in compiled[warmed:])
    assert warmed == 6  # one and several, of texts and of images


def test_a_machine_that_cannot_compile_says_so(tiny_checkpoint, monkeypatch):
    def no_compiler(function, **options):
        def fail(*tensors):
            raise RuntimeError("no C++ compiler\nand a long story")

        return fail

    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.raises(RuntimeUnavailableError, match=r"no C\+\+ compiler\); it needs .* --runtime torch"):
        load_encoder(str(tiny_checkpoint), device="cpu", runtime="torch-compiled")


# -- texts in buckets


def test_buckets_hold_every_text_once_and_nobody_pays_for_a_long_one():
    lengths = np.random.default_rng(0).integers(1, 78, size=500).tolist()
    buckets = list(text_buckets(lengths, most=32))
    assert sorted(place for bucket in buckets for place in bucket) == list(range(500))
    assert max(map(len, buckets)) <= 32
    for bucket in buckets:
        in_bucket = [lengths[place] for place in bucket]
        assert max(in_bucket) - min(in_bucket) < BUCKET_TOKENS
    assert list(text_buckets([], most=4)) == []


def test_texts_in_buckets_equal_one_by_one(tiny_encoder):
    rng = np.random.default_rng(1)
    words = ["red", "blue", "circle", "star", "moves", "left", "appears", "then", "grows"]
    texts = [" ".join(rng.choice(words, size=count)) for count in rng.integers(0, 40, size=60)]
    together = tiny_encoder.encode_texts(texts)
    alone = np.concatenate([tiny_encoder.encode_texts([text]) for text in texts])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)
    assert len(np.unique(together.round(4), axis=0)) > 30  # they are different texts, and not mixed up


def test_a_short_text_is_not_padded_to_a_long_one(tiny_encoder, monkeypatch):
    widths = {}
    straight = type(tiny_encoder.net).encode_text

    def watched(self, ids_BL, mask_BL):
        widths[int(mask_BL.sum(dim=1).min())] = ids_BL.shape[1]
        return straight(self, ids_BL, mask_BL)

    monkeypatch.setattr(type(tiny_encoder.net), "encode_text", watched)
    tiny_encoder.encode_texts(["a", "a b c d e f g h i j k l m n o p q r s t u v w x y z " * 2])
    assert widths == {3: BUCKET_TOKENS, 32: 32}


TOKENS = torch.arange(40).reshape(2, 20)
MASK = torch.ones_like(TOKENS, dtype=torch.bool)


@pytest.fixture
def towers(tiny_config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_net(tiny_config).eval().clip


SIZE = {"width": 32, "blocks": 2}  # of the tiny model's text tower; its image tower has one block


# Products in bf16 are summed in float32 and rounded once.
@pytest.mark.parametrize(("precision", "dtype", "terms"), [("fp32", torch.float32, 32), ("bf16", torch.bfloat16, 1)])
def test_packed_towers_compute_the_same(towers, precision, dtype, terms):
    towers.set_precision(precision)
    if not can_pack(towers):
        pytest.skip("oneDNN cannot do this here")
    with torch.inference_mode():
        expected = towers.encode_text(TOKENS, MASK)
        pack(towers)
        assert_equal_towers(towers.encode_text(TOKENS, MASK), expected, width=terms, blocks=2, dtype=dtype)


@pytest.mark.parametrize("texts", [1, 2, 3, 5, 13])
@pytest.mark.parametrize("length", [4, 12, 19, 32])
def test_batches_of_every_size_compute_the_same(towers, texts, length):
    if not can_pack(towers):
        pytest.skip("oneDNN cannot do this here")
    ids = torch.randint(1, 500, (texts, length), generator=torch.Generator().manual_seed(texts))
    mask = torch.ones_like(ids, dtype=torch.bool)
    images = torch.rand(texts, 3, *towers.preprocess.shape[:2], generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = towers.encode_text(ids, mask), towers.encode_image(images)
        pack(towers)
        for found, wanted in zip((towers.encode_text(ids, mask), towers.encode_image(images)), expected, strict=True):
            assert_equal_towers(found, wanted, **SIZE)


def test_a_few_numbers_of_rows_stand_for_all():
    counts = range(1, 32 * 77 + 1)
    padded = [padded_rows(count) for count in counts]
    assert all(0 <= more - count <= max(3, count / 8) for count, more in zip(counts, padded, strict=True))
    assert padded == sorted(padded)
    assert all(padded_rows(more) == more for more in padded)
    assert len(set(padded)) < 60


def test_onednn_meets_few_shapes(tiny_encoder, tiny_checkpoint, monkeypatch):
    """Each costs memory that is never given back, and a compilation that some search waits for."""
    if not can_pack(tiny_encoder.net.clip):
        pytest.skip("oneDNN cannot do this here")
    encoder = load_encoder(str(tiny_checkpoint), device="cpu", runtime="torch")
    seen = set()
    multiply = torch.ops.mkldnn._linear_pointwise

    def counting(rows, *others):
        seen.add(rows.numel() // rows.shape[-1])
        return multiply(rows, *others)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", counting, raising=False)
    for texts in range(1, 33):
        for words in range(1, encoder.config.tokenizer.max_words, 2):
            encoder.encode_texts(["red " * words] * texts)
    assert seen, "the weights of a loaded model are packed"
    assert seen <= {padded_rows(count) for count in range(1, 32 * 77 + 1)}
    assert min(seen) >= BUCKET_TOKENS
    assert len(seen) < 60


def test_a_text_as_long_as_the_tower_is_not_padded_beyond_it(tiny_encoder, monkeypatch):
    expected = tiny_encoder.encode_texts(["red " * 200])
    monkeypatch.setattr("model.clip.tokenizer.BUCKET_TOKENS", 5)
    assert rounded_up(tiny_encoder.net.clip.context_length) > tiny_encoder.net.clip.context_length
    np.testing.assert_array_equal(tiny_encoder.encode_texts(["red " * 200]), expected)


@pytest.mark.parametrize("known", [False, True])
def test_bf16_is_left_alone_where_onednn_cannot_multiply_it(towers, known, monkeypatch):
    """As with AVX2 alone, and with a PyTorch that cannot say: slower, but it works."""
    if known:
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False, raising=False)
    else:
        monkeypatch.setattr("model.runtime.packed.torch.ops.mkldnn", WithoutQuestion())
    packs_fp32 = can_pack(towers)
    towers.set_precision("bf16")
    assert packs_fp32
    assert not can_pack(towers)
    with torch.inference_mode():
        assert towers.encode_text(TOKENS, MASK).isfinite().all()


class WithoutQuestion:
    """oneDNN's operations without the question whether it can multiply bf16."""

    _reorder_linear_weight = staticmethod(torch.ops.mkldnn._reorder_linear_weight)
    _linear_pointwise = staticmethod(torch.ops.mkldnn._linear_pointwise)
