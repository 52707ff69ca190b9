"""Exported features: files, protocols, and the same table as from the videos."""

import json

import numpy as np
import pytest
import torch
from evaluation_support import build_encoder, random_corpus
from numeric_support import score_tolerance
from typer.testing import CliRunner

from model.cli import app
from model.config import EMCLConfig
from model.emcl.em import EMCL
from model.evaluate.features import (
    SharedPass,
    combine,
    emcl_of,
    features_of,
    rows_of_features,
    run,
    scorer_of,
    scores_of,
)
from model.evaluate.hubness import BankNorm
from model.evaluate.run import EvaluationSettings, evaluate_rows
from model.evaluate.table import table
from model.heads.features import FeaturesError, FeatureSet, read_features, write_features
from model.options import EvaluateOptions

T, V, D = 9, 9, 16


def features(kind="pooled", *, seed=0, owner=None):
    rng = np.random.default_rng(seed)
    owner = np.arange(T) if owner is None else owner
    topics = rng.normal(size=(V, D))

    def near(shape, index=slice(None)):
        base = topics[index].reshape(-1, *[1] * (len(shape) - 2), D)
        return (base + rng.normal(size=shape)).astype(np.float32)

    texts = len(owner)
    frames = np.arange(4) < rng.integers(1, 5, (V, 1))
    words = np.arange(5) < rng.integers(1, 6, (texts, 1))
    arrays = {
        "pooled": lambda: {"video": near((V, D)), "text": near((texts, D), owner)},
        "frames": lambda: {"video": near((V, 4, D)), "video_mask": frames, "text": near((texts, D), owner)},
        "tokens": lambda: {
            "video": near((V, 4, D)),
            "video_mask": frames,
            "text": near((texts, 5, D), owner),
            "text_mask": words,
        },
        "experts": lambda: {
            "video": near((V, 3, D)),
            "text": near((texts, 3, D), owner),
            "text_weight": rng.random((texts, 3)).astype(np.float32),
        },
        "mixture": lambda: {
            "video": near((V, D)),
            "text": near((texts, D), owner),
            "second_video": near((V, D)),
            "second_text": near((texts, D), owner),
        },
    }[kind]()
    return FeatureSet(
        kind=kind,
        arrays=arrays,
        video_of_text_T=owner,
        video_ids=[f"v{n}" for n in range(V)],
        texts=[f"text {n}" for n in range(texts)],
        logit_scale=2.5,
        settings={"data": "own"},
    )


KINDS = ("pooled", "frames", "tokens", "experts", "mixture")


def shuffled(given, order):
    arrays = {name: array[order] if name != "emcl_state" else array for name, array in given.arrays.items()}
    return FeatureSet(kind=given.kind, arrays=arrays, video_of_text_T=np.arange(len(order)))


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_gives_back_what_was_written(tmp_path, kind, suffix):
    given, path = features(kind), tmp_path / f"x{suffix}"
    write_features(path, given)
    found = read_features(path)
    assert (found.kind, found.video_ids, found.texts, found.settings) == (
        kind,
        given.video_ids,
        given.texts,
        given.settings,
    )
    assert found.logit_scale == 2.5
    assert found.arrays.keys() == given.arrays.keys()
    for name, array in given.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array)
    np.testing.assert_array_equal(found.video_of_text_T, given.video_of_text_T)


def damaged(**changes):
    base = {"kind": np.array("pooled"), "video": np.ones((3, 4), np.float32), "text": np.ones((3, 4), np.float32)}
    return {name: value for name, value in {**base, **changes}.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"video": None}, "lacks video"),
        ({"video": np.ones((3, 5), np.float32)}, r"text has shape \(3, 4\), expected \(T, D = 5\)"),
        ({"video": np.full((3, 4), np.nan, np.float32)}, "12 values that are NaN"),
        ({"video": np.ones((3, 4), np.int64)}, "dtype int64, expected floating"),
        ({"video": np.ones((0, 4), np.float32)}, "is empty"),
        ({"text": np.ones((4, 4), np.float32)}, "need owner"),
        ({"owner": np.array([0, 2, 1])}, "must rise"),
        ({"owner": np.array([0, 1, 5])}, "names videos 0 to 5, there are 0 to 2"),
        ({"owner": np.array([0.0, 1, 2])}, "expected integers"),
        ({"other": np.ones(2, np.float32)}, "unknown keys other"),
        ({"kind": np.array("cross")}, "scores pairs by a network"),
        ({"kind": np.array("pools")}, "expected one of pooled"),
        ({"kind": None}, "give --head"),
        ({"video_ids": np.array(["a", "b"])}, "video_ids has 2 entries, expected 3"),
        ({"settings": np.array("{")}, "settings is not JSON"),
        ({"logit_scale": np.array([1.0, 2.0])}, "one finite number"),
        ({"kind": np.array("mixture")}, "needs extra_similarity"),
        ({"texts": np.array([{"a": 1}], dtype=object)}, "not a readable .npz of plain arrays"),
    ],
)
def test_a_damaged_file_is_refused_by_key(tmp_path, changes, message):
    path = tmp_path / "x.npz"
    np.savez(path, **damaged(**changes))
    with pytest.raises(FeaturesError, match=message):
        read_features(path)


def test_files_that_are_no_features(tmp_path):
    for name in ("x.npz", "x.safetensors"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(FeaturesError, match="not a readable"):
            read_features(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_features(tmp_path / "absent.npz")
    (tmp_path / "x.pt").write_bytes(b"")
    with pytest.raises(FeaturesError, match=r"\.npz or \.safetensors"):
        read_features(tmp_path / "x.pt")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("protocol", ["per-query", "whole", "frozen"])
def test_shuffling_the_set_changes_nothing(kind, protocol):
    given, order = features(kind), np.random.default_rng(1).permutation(T)
    config = EMCLConfig(num_bases=4, iterations=3, sigma=0.3, beta=0.3)
    how = SharedPass(protocol=protocol, candidates=4)
    one = scores_of(given, EMCL(D, config).eval(), how)
    other = scores_of(shuffled(given, order), EMCL(D, config).eval(), how)
    # Three iterations of two products, whose kernel multiplies errors by 1/sigma squared, then correction and cosine.
    close = score_tolerance(D, products=2 * 3 + 3, condition=1 / 0.3**2)
    np.testing.assert_allclose(other.text_to_video_TV, one.text_to_video_TV[order][:, order], rtol=0, atol=close)
    np.testing.assert_allclose(other.video_to_text_VT, one.video_to_text_VT[order][:, order], rtol=0, atol=close)


def test_blocks_depend_on_the_order_and_aligned_blocks_know_the_pairs():
    given, order = features(), np.random.default_rng(1).permutation(T)
    emcl = EMCL(D, EMCLConfig.reference(num_bases=4, iterations=3, sigma=0.3)).eval()
    how = SharedPass(protocol="blocks", block=4)
    one, other = (scores_of(part, emcl, how).text_to_video_TV for part in (given, shuffled(given, order)))
    assert np.abs(other - one[order][:, order]).max() > 1e-3
    aligned = scores_of(given, emcl, SharedPass(protocol="blocks", block=4, aligned=True)).text_to_video_TV
    np.testing.assert_array_equal(aligned[:4, :4], one[:4, :4])
    assert np.abs(aligned[:4, 4:] - one[:4, 4:]).max() > 1e-3
    with pytest.raises(ValueError, match="one text for each video"):
        scores_of(features("mixture"), emcl, SharedPass(protocol="blocks", aligned=True))
    assert SharedPass(protocol="blocks", block=32, aligned=True).name == "blocks 32, aligned"


def test_the_published_settings_of_each_kind():
    assert [emcl_of(features(kind))[0].model_dump() for kind in ("mixture", "experts")] == [
        EMCLConfig.reference(num_bases=7, iterations=10, sigma=0.1, beta=4.0).model_dump(),
        EMCLConfig.reference(num_bases=64, iterations=5, sigma=1.0, beta=3.0).model_dump(),
    ]


def test_a_bank_is_scored_both_ways():
    given, bank, how = features(), features(seed=5), SharedPass(protocol="whole")
    rows = {row.name: row for row in rows_of_features(given, how, bank=bank)}
    plain = scores_of(given, None, how)
    norm = BankNorm.fit([scores_of(combine(bank, given), None, how).video_to_text_VT], T)
    expected = norm.rescore(plain.video_to_text_VT)
    first = np.mean(np.argmax(expected, axis=1) == np.arange(V)) * 100
    row = rows["without EMCL + QB-Norm"]
    assert row.video_to_text is not None
    assert row.video_to_text.recall[1] == pytest.approx(first)
    assert set(rows) >= {"EMCL reference, beta 4 + QB-Norm", "EMCL channel, beta 0.1 + QB-Norm"}
    with pytest.raises(FeaturesError, match="kind tokens"):
        combine(given, features("tokens"))


@pytest.mark.parametrize("protocol", ["per-query", "reference", "frozen"])
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_exported_frames_give_the_table_of_the_videos(tmp_path, protocol, suffix):
    encoder, corpus = build_encoder(), random_corpus(captions_each=2)
    encoder.net.emcl.state.mul_(1.5)  # no state that a seed would give
    path = tmp_path / f"x{suffix}"
    write_features(path, features_of(encoder, corpus, "frames", facts={}))
    found = read_features(path)
    settings = EvaluationSettings(protocol=protocol, candidates=5)
    expected = table(list(evaluate_rows(encoder, corpus, settings)))
    again = scorer_of(found)
    from model.evaluate.features import corpus_of

    assert table(list(evaluate_rows(again, corpus_of(found), settings))) == expected
    torch.testing.assert_close(again.net.emcl.state, encoder.net.emcl.state)


def test_commands_export_and_evaluate_the_same_table(tmp_path, validation_folder, tiny_checkpoint):
    file, arguments = tmp_path / "x.npz", ["--data", str(validation_folder), "--model", str(tiny_checkpoint)]
    runner = CliRunner()
    done = runner.invoke(app, ["features", "export", *arguments, "--output", str(file)])
    assert done.exit_code == 0, done.output
    for protocol in ("per-query", "reference", "frozen"):
        from_videos = runner.invoke(app, ["evaluate", *arguments, "--protocol", protocol]).stdout
        from_file = runner.invoke(app, ["evaluate", "--features", str(file), "--protocol", protocol]).stdout
        rows = [line for line in from_videos.splitlines() if line.startswith("|")]
        assert len(rows) > 4
        assert rows == [line for line in from_file.splitlines() if line.startswith("|")]
        assert f"protocol: {protocol}" in from_file
    report = tmp_path / "x.json"
    blocks = ["evaluate", "--features", str(file), "--protocol", "blocks", "--block-size", "4", "--json", str(report)]
    assert runner.invoke(app, blocks).exit_code == 0
    assert json.loads(report.read_text(encoding="utf-8"))["protocol"] == "blocks 4, head frames"


def test_options_that_would_be_ignored_are_refused(tmp_path):
    path = tmp_path / "x.npz"
    write_features(path, features())
    for changes, message in (
        ({"protocol": "whole", "candidates": 3}, "no effect under protocol whole"),
        ({"protocol": "per-query", "aligned": True}, "belong to --protocol blocks"),
        ({"protocol": "reference"}, "--block-size 64 for"),
        ({"head": "tokens"}, "kind pooled, not tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            run(EvaluateOptions(features=path, **changes))
    result = CliRunner().invoke(app, ["evaluate", "--data", "x", "--aligned"])
    assert "need --features" in str(result.exception)
