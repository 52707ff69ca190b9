"""Offline evaluation: what the service does, against a slow writing-out of it; table, JSON, commands."""

import json
from pathlib import Path

import numpy as np
import pytest
from evaluation_support import build_encoder, random_corpus
from numeric_support import assert_equal_towers, score_tolerance
from typer.testing import CliRunner

from model.checkpoint import save_checkpoint
from model.cli import app
from model.config import EMCLConfig
from model.data.dataset import VideoTextSet
from model.data.manifest import read_manifest
from model.demo.corpus import write_corpus
from model.emcl.correction import Correction, CorrectionSettings
from model.emcl.em import FrozenMap
from model.emcl.paired import PairedBases
from model.encoder import DEMO_CHECKPOINT, Encoder, load_encoder
from model.evaluate.paper_results import PUBLISHED, paper_results_for
from model.evaluate.query_bank import QueryBank, open_bank
from model.evaluate.rank import rank_corrected
from model.evaluate.run import (
    EvaluationSettings,
    emcl_variants,
    encode_corpus,
    evaluate_features,
    evaluate_rows,
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
from model.train.config import load_train_config


@pytest.fixture(scope="module")
def encoder():
    return build_encoder()


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
        np.testing.assert_allclose(ranked.text_to_video_TV[t, ids], scores.scores_QN[0], rtol=0, atol=0)
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
    close = score_tolerance(32, products=2)  # of pooling and of the cosine
    np.testing.assert_allclose(with_pass.text_to_video_TV, without.text_to_video_TV, rtol=0, atol=close)
    np.testing.assert_allclose(
        first.text_to_video_TV, stage_one(encoder, corpus, frozen_map=False).text_to_video_TV, rtol=0, atol=close
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
    np.testing.assert_array_equal(alone.features_VFD[0], corpus.features_VFD[2, :frames])
    assert_equal_towers(alone.text_TD[0], corpus.text_TD[2], width=32, blocks=1)


def test_under_mask_after_every_clip_is_padded_as_the_reference_pads(on_disk, encoder):
    """There, padding has features and takes weight: a clip's must not depend on the clips that are encoded with it."""
    pooling = encoder.config.pooling.model_copy(update={"mask": "after"})
    net = build_net(encoder.config.model_copy(update={"pooling": pooling}))
    net.load_state_dict(encoder.net.state_dict())
    after = Encoder(net, encoder.tokenizer, fingerprint="after", device=encoder.device)
    corpus = encode_corpus(after, read_manifest(on_disk[0])[:1])
    assert corpus.features_VFD.shape[1] == after.config.sampling.max_frames
    padded_RD = corpus.features_VFD[~corpus.mask_VF]
    assert len(padded_RD)
    assert np.abs(padded_RD).max(axis=1).min() > 0


def test_the_command_prints_a_table_and_writes_json(on_disk, tmp_path):
    listing, checkpoint = on_disk
    file = tmp_path / "scores.json"
    arguments = ["evaluate", "--data", str(listing.parent), "--model", str(checkpoint), "--json", str(file)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "pooling without EMCL" in result.stdout
    scores = json.loads(file.read_text(encoding="utf-8"))
    assert scores["videos"] == 6
    assert scores["fingerprint"] == load_encoder(str(checkpoint), device="cpu").fingerprint


def test_checkpoint_is_another_name_of_the_option_model(on_disk):
    listing, checkpoint = on_disk
    outputs = [
        CliRunner().invoke(app, ["evaluate", "--data", str(listing), option, str(checkpoint), "--protocol", "frozen"])
        for option in ("--model", "--checkpoint")
    ]
    assert [result.exit_code for result in outputs] == [0, 0]
    assert outputs[0].stdout == outputs[1].stdout


def test_the_report_says_how_its_figures_came_about(on_disk, tmp_path):
    listing, checkpoint = on_disk
    bank = tmp_path / "bank.txt"
    bank.write_text("a red circle\na blue square\n\na red circle\na green star moves left\n", encoding="utf-8")
    files = {"--json": tmp_path / "scores.json", "--markdown": tmp_path / "scores.md"}
    arguments = ["evaluate", "--data", str(listing), "--model", str(checkpoint), "--protocol", "reference"]
    options = ["--metric-rules", "reference", "--query-bank", str(bank), "--query-bank-size", "2"]
    for option, file in files.items():
        arguments += [option, str(file)]
    result = CliRunner().invoke(app, arguments + options)
    assert result.exit_code == 0, result.output
    scores = json.loads(files["--json"].read_text(encoding="utf-8"))
    assert (scores["protocol"], scores["metric_rules"], scores["training_seeds"]) == ("reference", "reference", 1)
    assert scores["candidates"] is None
    assert scores["published"] == []
    assert (scores["query_bank"]["queries"], scores["query_bank"]["available"]) == (2, 3)
    assert any("padded frames" in line for line in scores["deviations"])
    names = [row["name"] for row in scores["rows"]]
    assert len(names) == 12
    assert "EMCL reference, beta 3 + QB-Norm" in names
    normed = next(row for row in scores["rows"] if "QB-Norm" in row["name"])
    assert normed["video_to_text"] is None
    export = ["features", "export", "--data", str(listing), "--model", str(checkpoint), "--output"]
    assert CliRunner().invoke(app, [*export, str(tmp_path / "bank.npz")]).exit_code == 0
    both = CliRunner().invoke(app, [*arguments, *options, "--video-bank", str(tmp_path / "bank.npz")])
    assert "captions are ranked by" in both.output
    rows = json.loads(files["--json"].read_text(encoding="utf-8"))["rows"]
    assert next(row for row in rows if "QB-Norm" in row["name"])["video_to_text"] is not None
    alone = CliRunner().invoke(app, [*arguments, "--video-bank", str(tmp_path / "bank.npz")])
    assert "goes with --data and --query-bank" in str(alone.exception)
    assert CliRunner().invoke(app, arguments + options).exit_code == 0
    text = files["--markdown"].read_text(encoding="utf-8")
    for part in ("protocol reference", "metric rules: reference", "no videos missing", *scores["deviations"], *names):
        assert part in text, part
    assert scores["fingerprint"] in text


def test_candidates_are_refused_where_they_would_be_ignored(on_disk):
    listing, checkpoint = on_disk
    arguments = ["evaluate", "--data", str(listing), "--model", str(checkpoint), "--protocol", "reference"]
    result = CliRunner().invoke(app, [*arguments, "--candidates", "5"])
    assert isinstance(result.exception, ValueError)
    assert "no effect under protocol reference" in str(result.exception)


def test_published_rows_stand_beside_ours_with_dashes_for_what_is_not_given(encoder):
    published = paper_results_for("msrvtt", split="test", official_videos=1000)
    methods = {row.method: row for row in published}
    assert {name: methods[name].text_to_video["R@1"] for name in ("JSFusion", "CE", "MMT", "CLIP4Clip")} == {
        "JSFusion": 10.2,
        "CE": 20.9,
        "MMT": 24.6,
        "CLIP4Clip": 44.5,
    }
    assert methods["EMCL-Net"].text_to_video == {"R@1": 46.8, "R@5": 73.1, "R@10": 83.1, "MdR": 2}
    assert methods["EMCL-Net + dual softmax"].text_to_video["R@1"] == 51.6
    rows = evaluate_features(encoder, random_corpus(), protocol="frozen")
    lines = table(rows, published).splitlines()
    assert len(lines) == 2 + len(published) + len(rows)
    assert len({line.count("|") for line in lines}) == 1
    (given,) = [line for line in lines if "published: EMCL-Net (EMCL paper)" in line]
    assert given.split(" | ")[1:] == ["46.8", "73.1", "83.1", "–", "2", "–", *["–"] * 5, "– |"]


def test_published_rows_are_those_of_the_same_test_split():
    assert {row.data_set for row in PUBLISHED} == {"msrvtt", "activitynet", "lsmdc", "msvd", "didemo"}
    assert paper_results_for("msrvtt", split="test", official_videos=2990) == []
    assert paper_results_for("msvd", split="val", official_videos=None) == []
    assert paper_results_for("var/mine/captions.jsonl", split="test", official_videos=None) == []
    (msvd,) = paper_results_for("msvd", split="test", official_videos=670)
    assert msvd.video_to_text == {"R@1": 54.3, "R@5": 81.3, "R@10": 88.1, "MdR": 1, "MnR": 5.6}


def test_a_bank_is_drawn_alike_from_the_same_seed(tmp_path):
    file = tmp_path / "captions.jsonl"
    lines = [{"captions": [f"text {n}", f"text {n + 1}"]} for n in range(30)]
    file.write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    first = open_bank(str(file), None, size=10, seed=3)
    assert (len(first.texts), first.available, len(set(first.texts))) == (10, 31, 10)
    assert open_bank(str(tmp_path), None, size=10, seed=3).texts == first.texts
    assert open_bank(str(file), None, size=10, seed=4).texts != first.texts
    assert open_bank(str(file), None).texts == tuple(f"text {n}" for n in range(31))
    assert first.shared_with(["text 7", "other", *first.texts[:2]]) in (2, 3)


def test_a_bank_of_the_train_split_needs_no_videos(tmp_path):
    config = tmp_path / "own.yaml"
    listing = tmp_path / "train.jsonl"
    listing.write_text('{"video": "absent.mp4", "captions": ["a", "b"]}\n', encoding="utf-8")
    config.write_text(f"data: {{kind: manifest, train: {listing}}}\n", encoding="utf-8")
    bank = open_bank("train", config)
    assert bank.texts == ("a", "b")
    assert bank.source == f"train split of {config}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"captions": ["a"]}\n["b"]\n', "line 2 must be an object"),
        ('{"captions": ["a", 3]}\n', "line 1 must be an object"),
        ("plain words\n", r"line 1 is not JSON.*\.txt"),
        ("\n", "holds no caption"),
    ],
)
def test_a_bank_that_cannot_be_read_is_named(tmp_path, text, message):
    file = tmp_path / "captions.jsonl"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        open_bank(str(file), None)


def test_a_bank_of_the_train_split_needs_a_configuration(tmp_path):
    with pytest.raises(ValueError, match="needs a data set's configuration"):
        open_bank("train", tmp_path)


def test_captions_are_grouped_as_the_set_says(on_disk, encoder):
    clips = read_manifest(on_disk[0])
    corpus = encode_corpus(encoder, clips[:3])
    chosen = VideoTextSet(name="x", split="test", clips=tuple(clips[:3]))
    np.testing.assert_array_equal(corpus.video_of_text_T, chosen.video_of_caption)
    assert corpus.multi_sentence == chosen.multi_sentence


def test_the_command_says_what_is_missing(on_disk, tmp_path):
    result = CliRunner().invoke(app, ["evaluate", "--data", str(tmp_path), "--model", str(on_disk[1])])
    assert isinstance(result.exception, FileNotFoundError)
    assert "captions.jsonl" in str(result.exception)


def test_the_shipped_checkpoint_is_what_its_files_say():
    encoder = load_encoder("demo", device="cpu", emcl="configured")
    scores = json.loads((DEMO_CHECKPOINT.parent / "demo-scores.json").read_text(encoding="utf-8"))
    config = load_train_config(Path(__file__).parents[3] / "configs" / "demo.yaml").model
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


def bases_rows(encoder, corpus, settings):
    return {row.name: row for row in evaluate_rows(encoder, corpus, settings) if "bases" in row.name}


@pytest.mark.parametrize("protocol", ["per-query", "frozen"])
def test_hub_and_paired_bases_have_rows_as_a_store_applies_them(protocol):
    encoder, corpus, candidates = build_encoder(), random_corpus(), 5
    bank = QueryBank(texts=tuple(f"thing {n}" for n in range(20)), source="test", available=20, seed=0)
    settings = EvaluationSettings(protocol=protocol, candidates=candidates, bank=bank)
    pairs = encoder.encode_texts([f"pair {n}" for n in range(30)])
    noise = np.random.default_rng(1).normal(size=pairs.shape).astype(np.float32)
    encoder.calibrated = CorrectionSettings(hub_strength=0.25, paired=PairedBases.fit(pairs, pairs + noise, bases=4))
    rows = bases_rows(encoder, corpus, settings)
    prefix = "stage 1, " if protocol == "frozen" else ""
    hubs, paired = "hub bases, a 0.25", f"paired bases, w {encoder.calibrated.paired.weight:g}"
    assert list(rows) == [f"{prefix}EMCL {name}" for name in (hubs, paired, f"{paired} + {hubs}")]

    correction = Correction.fit(
        FrozenMap.neutral(encoder.dim),
        encoder.calibrated,
        banks={"videos": (encoder.encode_texts(bank.texts), "")},
        pooling=encoder.pooling,
    )
    ranked, first = rank_corrected(encoder, corpus, correction, candidates=candidates)
    by_hand = measure("", first, corpus) if protocol == "frozen" else measure("", ranked, corpus, behind=first)
    both = rows[f"{prefix}EMCL {paired} + {hubs}"]
    assert both.text_to_video == by_hand.text_to_video
    assert both.video_to_text is None  # the bank has no videos, which captions would be corrected by
    assert rows[f"{prefix}EMCL {paired}"].video_to_text is not None


def test_without_a_bank_and_bases_there_are_no_such_rows():
    encoder, corpus = build_encoder(), random_corpus()
    assert bases_rows(encoder, corpus, EvaluationSettings(candidates=5)) == {}
    bank = QueryBank(texts=("a", "b"), source="test", available=2, seed=0)
    assert bases_rows(encoder, corpus, EvaluationSettings(protocol="reference", bank=bank)) == {}
    encoder.calibrated = CorrectionSettings(hub_strength=0.0)
    assert bases_rows(encoder, corpus, EvaluationSettings(candidates=5, bank=bank)) == {}
