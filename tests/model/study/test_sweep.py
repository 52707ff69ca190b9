"""Sweeps: what varies and what does not, intervals, the published table, files that are the same every time."""

import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from model.config import EMCLConfig
from model.evaluate.run import Corpus
from model.study.per_video_ranks import correction_size, variant, video_ranks_of
from model.study.sweep import (
    SUPPLEMENTARY_2,
    Plan,
    as_dict,
    markdown,
    metrics_table,
    parse_vary,
    sweep,
    table,
    with_frames,
)
from service.cli import app

FACTS = {"model": "tiny", "data": "val", "split": "val", "videos": 12, "videos_lost": 0}


@pytest.fixture(scope="module")
def corpus():
    rng = np.random.default_rng(0)
    topics = rng.normal(size=(12, 32)) + 1.0
    features = topics[:, None] + rng.normal(size=(12, 4, 32))
    text = topics + 1.5 * rng.normal(size=(12, 32))
    return Corpus(
        text_TD=text.astype(np.float32),
        features_VFD=features.astype(np.float32),
        mask_VF=np.ones((12, 4), bool),
        video_of_text_T=np.arange(12),
    )


def test_values_are_read_by_kind():
    vary = parse_vary(["beta=0,0.5,0.5,1", "bases=4,8", "mode=channel,reference"])
    assert vary == {"beta": (0.0, 0.5, 1.0), "bases": (4, 8), "mode": ("channel", "reference")}


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        (["gamma=1"], "a NAME of beta, sigma"),
        (["beta"], "NAME=VALUE"),
        (["beta="], "NAME=VALUE"),
        (["beta=a"], "could not convert"),
        (["bases=1.5"], "invalid literal"),
        (["beta=1", "beta=2"], "twice"),
    ],
)
def test_what_cannot_be_varied_is_refused(wishes, message):
    with pytest.raises(ValueError, match=message):
        parse_vary(wishes)


def test_one_at_a_time_or_all_combinations():
    vary = parse_vary(["beta=0,1", "sigma=0.1,0.3,1"])
    assert Plan(vary=vary).combinations() == [
        {"beta": 0.0},
        {"beta": 1.0},
        {"sigma": 0.1},
        {"sigma": 0.3},
        {"sigma": 1.0},
    ]
    crossed = Plan(vary=vary, grid=True).combinations()
    assert len(crossed) == 6
    assert {"beta": 1.0, "sigma": 0.3} in crossed


def test_a_point_is_the_checkpoints_ranking_with_one_setting_changed(tiny_encoder, corpus):
    points = sweep(tiny_encoder, lambda _: corpus, Plan(vary=parse_vary(["beta=0,0.5", "seed=0,1"])))
    own = tiny_encoder.config.emcl
    for point, changes in zip(points, ({"beta": 0.0}, {"beta": 0.5}, {}, {"seed": 1}), strict=True):
        candidates = tiny_encoder.config.search.candidates
        video_ranks = video_ranks_of(tiny_encoder, corpus, own.model_copy(update=changes), candidates=candidates)
        assert point.first[0].mean == pytest.approx(100 * video_ranks.first_VW[:, 0].mean())
        assert point.first[1].mean == pytest.approx(100 * video_ranks.first_VW[:, 1].mean())
        assert point.reciprocal.mean == pytest.approx(100 * video_ranks.mean_reciprocal)
        assert point.first[0].low <= point.first[0].mean <= point.first[0].high
    without = points[0].against_none
    assert (without.ranks.wins, without.ranks.losses, without.reciprocal_difference.mean) == (0, 0, 0.0)


def test_each_number_of_frames_is_encoded_once_with_that_sampling(tiny_encoder, corpus):
    asked = []

    def encode(encoder):
        asked.append(encoder.config.sampling.max_frames)
        return corpus

    plan = Plan(vary=parse_vary(["frames=2,4", "beta=0.1,0.2"]), grid=True)
    assert len(sweep(tiny_encoder, encode, plan)) == 4
    own = tiny_encoder.config.sampling.max_frames
    assert asked == [2, 4]
    assert tiny_encoder.config.sampling.max_frames == own, "the model itself is left alone"
    sweep(tiny_encoder, encode, Plan(vary=parse_vary(["beta=0.1,0.2"])))
    assert asked == [2, 4, own]


@pytest.mark.parametrize(("wish", "message"), [("frames=4,40", "frame positions"), ("sigma=0.1,0", "greater than 0")])
def test_what_the_model_cannot_have_is_told_before_the_work(tiny_encoder, wish, message):
    def encode(_):
        raise AssertionError("encoded although a value is impossible")

    with pytest.raises(ValueError, match=message):
        sweep(tiny_encoder, encode, Plan(vary=parse_vary([wish])))


def test_fewer_frames_give_other_features(tiny_encoder):
    """Encoded anew, not thinned: the temporal layers see fewer frames."""
    fewer = with_frames(tiny_encoder, 2)
    assert fewer.config.sampling.max_frames == 2
    assert fewer.net.clip is tiny_encoder.net.clip
    assert fewer.net.config is not tiny_encoder.net.config
    assert with_frames(tiny_encoder, None) is tiny_encoder


def test_the_published_table_is_the_first_example(tiny_encoder, corpus):
    assert SUPPLEMENTARY_2.base == EMCLConfig.reference()
    assert SUPPLEMENTARY_2.published == {0: 42.4, 1: 43.6, 2: 45.1, 3: 51.6, 4: 41.5}
    assert SUPPLEMENTARY_2.dual_softmax == 0.01
    points = sweep(tiny_encoder, lambda _: corpus, SUPPLEMENTARY_2)
    lines = table(points, SUPPLEMENTARY_2).splitlines()
    assert lines[0].endswith("| published R@1 t→v |")
    sizes = [point.correction for point in points]
    assert sizes[0] == 0
    assert [f"{100 * size:.2g} %" for size in sizes] == [line.split("|")[2].strip() for line in lines[2:]]
    assert sizes[1:] == pytest.approx([beta * sizes[1] for beta in (1, 2, 3, 4)])  # β is a factor of what is added
    assert [line.rsplit("|", 2)[1].strip() for line in lines[2:]] == ["42.4", "43.6", "45.1", "51.6", "41.5"]
    text = markdown(points, SUPPLEMENTARY_2, FACTS)
    assert "not the same experiment" in text
    assert "transductive" in text
    both = metrics_table(points, SUPPLEMENTARY_2)
    assert both in text
    own, published = (line.split(" | ") for line in both.splitlines()[-2:])
    assert (own[1], published[1]) == ("ours", "published")
    assert published[2:5] == ["41.5", "71.3", "81.4"]
    assert published[7:11] == ["44.2", "72.1", "82.8", "2.0"]
    ways = (*points[-1].metrics[0].as_dict().items(), *points[-1].metrics[1].as_dict().items())
    wanted = [f"{value:.1f}" for name, value in ways if name in ("R@1", "R@5", "R@10", "MdR", "MnR")]
    assert [cell.strip(" |") for cell in own[2:]] == wanted
    weighed = video_ranks_of(
        tiny_encoder, corpus, EMCLConfig.reference(beta=2.0), candidates=100, dual_softmax_temperature=0.01
    )
    assert points[2].reciprocal.mean == pytest.approx(100 * weighed.mean_reciprocal)


def test_missing_videos_are_told(tiny_encoder, corpus):
    plan = Plan(vary={"beta": (0.1,)})
    points = sweep(tiny_encoder, lambda _: corpus, plan)
    assert "3 videos of the split are missing" in markdown(points, plan, {**FACTS, "videos_lost": 3})
    assert "missing" not in markdown(points, plan, FACTS)
    assert "published" not in table(points, plan)
    written = json.loads(json.dumps(as_dict(points, plan, FACTS)))
    assert written["vary"] == {"beta": [0.1]}
    assert written["points"][0]["against_no_emcl"]["p"] <= 1


def test_the_command_writes_the_same_files_every_time(tiny_checkpoint, validation_folder, tmp_path):
    written = []
    for name in ("first", "second"):
        arguments = ["sweep", "--model", tiny_checkpoint, "--data", validation_folder, "--output", tmp_path / name]
        options = ["--vary", "beta=0,0.5", "--vary", "frames=1,4", "--grid", "--dual-softmax", "--device", "cpu"]
        result = CliRunner().invoke(app, [str(one) for one in (*arguments, *options)])
        assert result.exit_code == 0, result.output
        written.append({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()})
    assert written[0].keys() == {"sweep.md", "sweep.json", "sweep.svg", "sweep.png"}
    for name in ("sweep.md", "sweep.json", "sweep.svg"):
        assert written[0][name] == written[1][name], name
    assert ET.fromstring(written[0]["sweep.svg"]).tag.endswith("svg")
    assert written[0]["sweep.png"].startswith(b"\x89PNG")
    figures = json.loads(written[0]["sweep.json"])
    assert len(figures["points"]) == 4
    assert figures["dual_softmax_temperature"] == 0.01
    assert figures["training_seeds"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "either --vary"),
        (["--vary", "beta=1", "--preset", "supplementary-2"], "either --vary"),
        (["--preset", "supplementary-2", "--grid"], "a preset has its own"),
        (["--vary", "beta=1", "--split", "test"], "never chosen on a test split"),
    ],
)
def test_wrong_usage_is_told(validation_folder, options, message):
    result = CliRunner().invoke(app, ["sweep", "--model", "demo", "--data", str(validation_folder), *options])
    assert message in str(result.exception)


def test_the_size_of_the_correction_is_that_of_a_querys_own_pass(tiny_encoder, corpus):
    """Written out for the released arithmetic: mean norm of what is added over that of the rows, query by query."""
    config, candidates = EMCLConfig.reference(beta=3.0), 4
    pooled = tiny_encoder.pool(corpus.features_VFD, corpus.mask_VF)
    emcl = variant(tiny_encoder, config).net.emcl.eval()
    sizes = []
    for text in corpus.text_TD[:32]:
        cosines = pooled @ text / np.linalg.norm(pooled, axis=1)
        rows = np.concatenate([pooled[np.sort(np.argsort(-cosines)[:candidates])], text[None]])
        added = emcl(torch.from_numpy(rows)[None])[0].detach().numpy() - rows
        sizes.append(np.linalg.norm(added, axis=1).mean() / np.linalg.norm(rows, axis=1).mean())
    assert len(corpus.text_TD) <= 32, "else only some are looked at"
    found = correction_size(tiny_encoder, corpus, config, candidates=candidates)
    assert found == pytest.approx(np.mean(sizes), rel=1e-4)
    assert correction_size(tiny_encoder, corpus, EMCLConfig(beta=0.0), candidates=candidates) == 0
    assert correction_size(tiny_encoder, corpus, EMCLConfig(beta=0.2), candidates=candidates) == pytest.approx(0.2)
