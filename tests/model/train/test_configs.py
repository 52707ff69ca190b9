"""Every shipped training configuration parses, says what the paper says, and builds its settings."""

from pathlib import Path

import pytest

from model.data.registry import PublishedSet
from model.train.config import TrainConfig, load_train_config, selection_split
from model.train.optimiser import rate_factor

CONFIGS = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))
SETS = ("activitynet", "didemo", "lsmdc", "msrvtt", "msvd", "vatex")


def test_every_set_has_our_way_and_the_reference_s():
    assert {path.stem for path in CONFIGS} >= {f"{name}{suffix}" for name in SETS for suffix in ("", "-reference")}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_survives_being_written_and_read(path):
    config = load_train_config(path)
    assert TrainConfig.model_validate(config.model_dump(mode="json")) == config
    steps = config.steps or 20000
    assert rate_factor(steps - 1, steps, config.optimiser) < 0.1


@pytest.mark.parametrize("suffix", ["", "-reference"])
@pytest.mark.parametrize("name", SETS)
def test_the_paper_s_values(name, suffix):
    config = load_train_config(CONFIGS[0].parent / f"{name}{suffix}.yaml")
    assert isinstance(config.data, PublishedSet)
    assert config.data.kind == name
    long = name in ("activitynet", "didemo")
    assert (config.model.sampling.max_frames, config.model.tokenizer.max_words) == ((64, 64) if long else (12, 32))
    emcl = config.model.emcl
    assert (emcl.num_bases, emcl.iterations, emcl.beta, emcl.sigma, emcl.momentum) == (32, 9, 3.0, 1.0, 0.9)
    assert (config.batch_size, config.epochs, config.joint_emcl) == (128, 20 if name == "msvd" else 5, True)
    assert config.keep_best
    augmented = config.augmentation.kind == "randaugment"
    assert augmented == (name in ("msrvtt", "msvd", "lsmdc"))


@pytest.mark.parametrize("name", SETS)
def test_only_the_reference_s_way_has_its_oddities(name):
    ours, theirs = (load_train_config(CONFIGS[0].parent / f"{name}{suffix}.yaml") for suffix in ("", "-reference"))
    assert selection_split(ours.data) == "val"
    assert selection_split(theirs.data) == ("val" if name in ("msvd", "lsmdc") else "test")
    assert (ours.duplicates, theirs.duplicates) == ("ignore", "negatives")
    assert (ours.model.pooling.mask, theirs.model.pooling.mask) == ("before", "after")
    assert (ours.optimiser.kind, theirs.optimiser.kind) == ("adamw", "bert-adam")
