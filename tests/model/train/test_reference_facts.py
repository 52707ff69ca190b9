"""``configs/*-reference.yaml`` against the facts that the released code, its README and the paper state."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import nn

from model.config import TemporalConfig
from model.net import build_net
from model.temporal import build_temporal
from model.train.config import load_train_config

CONFIGS = Path(__file__).parents[3] / "configs"

# What holds for every set. Comments name where the released code or the paper states it.
FACTS: dict[str, Any] = {
    "model.clip.architecture": "ViT-B-32-quickgelu",  # modeling.py: ViT-B/32, x * sigmoid(1.702 x)
    "model.clip.pretrained": "openai",
    "model.temporal.kind": "transformer",  # sim_header seqTransf
    "model.temporal.layers": 4,  # num_hidden_layers
    "model.temporal.max_positions": 77,  # CLIP's context length
    "model.pooling.temperature": 3.0,  # modeling.py:174
    "model.pooling.mask": "after",  # modeling.py:176
    "model.emcl.mode": "reference",
    "model.emcl.num_bases": 32,  # paper and main_retrieval.py: K
    "model.emcl.iterations": 9,  # stage_num
    "model.emcl.beta": 3.0,
    "model.emcl.sigma": 1.0,  # lamd
    "model.emcl.momentum": 0.9,
    "model.sampling.sample_fps": 1.0,  # video_framerate
    "data.protocol": "reference",
    "optimiser.kind": "bert-adam",
    "optimiser.learning_rate": 1e-4,
    "optimiser.encoder_learning_rate": 1e-7,  # coef_lr 1e-3 times 1e-4
    "optimiser.warmup_share": 0.1,
    "optimiser.weight_decay": 0.2,
    "optimiser.beta1": 0.9,
    "optimiser.beta2": 0.98,
    "optimiser.clip_norm": 1.0,
    "optimiser.train_patches": False,  # conv1 is frozen
    "batch_size": 128,
    "epoch_of": "captions",  # expand_msrvtt_sentences
    "duplicates": "negatives",
    "seed": 0,
    "joint_emcl": True,
    "keep_best": True,  # the checkpoint with the best R@1
}
# Words, frames, epochs, augmentation: the commands of the README, and which loaders call RandAugment.
PER_SET: dict[str, dict[str, Any]] = {
    "msrvtt": {"words": 32, "frames": 12, "epochs": 5, "augmentation": "randaugment", "data.train_split": "9k"},
    "msvd": {"words": 32, "frames": 12, "epochs": 20, "augmentation": "randaugment"},
    "lsmdc": {"words": 32, "frames": 12, "epochs": 5, "augmentation": "randaugment"},
    "activitynet": {"words": 64, "frames": 64, "epochs": 5, "augmentation": None},
    "didemo": {"words": 64, "frames": 64, "epochs": 5, "augmentation": None},
    "vatex": {"words": 32, "frames": 12, "epochs": 5, "augmentation": None},  # no loader: the short sets' values
}
LONG_NAMES = {"words": "model.tokenizer.max_words", "frames": "model.sampling.max_frames"}
# Not from the sources: names, places, and how often a run reports and saves.
OURS = {
    "model.name",
    "data.kind",
    "data.root",
    "data.annotations",
    "precision",
    "workers",
    "log_every",
    "validate_every",
    "checkpoint_every",
}


def leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix.rstrip("."): value}
    return {key: leaf for name, part in value.items() for key, leaf in leaves(part, f"{prefix}{name}.").items()}


@pytest.mark.parametrize("name", sorted(PER_SET))
def test_a_reference_configuration_states_the_facts_and_nothing_unknown(name):
    own = {LONG_NAMES.get(key, key): value for key, value in PER_SET[name].items() if value is not None}
    written = leaves(yaml.safe_load((CONFIGS / f"{name}-reference.yaml").read_text(encoding="utf-8")))
    stated = {key: value for key, value in written.items() if key not in OURS}
    assert stated == {**FACTS, **own}
    assert set(written) >= OURS


@pytest.mark.parametrize("name", sorted(PER_SET))
def test_what_is_parsed_is_what_is_written(name):
    """A default in the schema must not stand in for a value of the file."""
    path = CONFIGS / f"{name}-reference.yaml"
    parsed = leaves(load_train_config(path).model_dump(mode="json"))
    for key, value in leaves(yaml.safe_load(path.read_text(encoding="utf-8"))).items():
        assert parsed["augmentation.kind" if key == "augmentation" else key] == value, key


def test_the_temporal_layer_norms_have_the_reference_s_epsilon_and_clip_s_have_its_own(tiny_config):
    net = build_net(tiny_config)
    temporal = build_temporal(TemporalConfig(layers=2, max_positions=16), net.clip)
    norms = [module for module in temporal.modules() if isinstance(module, nn.LayerNorm)]
    assert [norm.eps for norm in norms] == [1e-12] * 4  # until_module.LayerNorm
    own = [module.eps for module in net.clip.modules() if isinstance(module, nn.LayerNorm)]
    assert own
    assert set(own) == {1e-5}
