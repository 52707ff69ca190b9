"""A small random model and corpora of random features, for tests of evaluation."""

from __future__ import annotations

import numpy as np
import torch

from model.clip.tokenizer import build_tokenizer
from model.config import (
    ClipConfig,
    EMCLConfig,
    ModelConfig,
    PoolingConfig,
    SamplingConfig,
    TemporalConfig,
    TokenizerConfig,
)
from model.encoder import Encoder
from model.evaluate.corpus import Corpus
from model.net import build_net


def build_encoder(emcl=EMCLConfig(num_bases=4, iterations=3, beta=0.3), *, dim=32, pooling=PoolingConfig()):  # noqa: B008
    """An encoder with random weights; D is ``dim``."""
    torch.manual_seed(0)
    towers = {
        "embed_dim": dim,
        "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1, "head_width": 64},
        "text_cfg": {"context_length": 48, "vocab_size": 1014, "width": 32, "heads": 2, "layers": 1},
    }
    config = ModelConfig(
        clip=ClipConfig(custom=towers),
        tokenizer=TokenizerConfig(max_words=48, merges=500),
        temporal=TemporalConfig(kind="mean") if dim != 32 else TemporalConfig(layers=1, max_positions=8),
        pooling=pooling,
        emcl=emcl,
        sampling=SamplingConfig(sample_fps=1.0, max_frames=4),
    )
    net = build_net(config)
    tokenizer = build_tokenizer(config.tokenizer, config.clip)
    return Encoder(net, tokenizer, fingerprint="0" * 64, device=torch.device("cpu"))


def random_corpus(videos=12, captions_each=1, dim=32, frames=4, noise=1.5):
    """Captions near their videos, so that ranks are neither perfect nor random."""
    rng = np.random.default_rng(0)
    topics = rng.normal(size=(videos, dim)) + 1.0
    owners = np.repeat(np.arange(videos), captions_each)
    lengths = rng.integers(1, frames + 1, videos)
    mask = np.arange(frames) < lengths[:, None]
    features = (topics[:, None] + rng.normal(size=(videos, frames, dim))) * mask[..., None]
    text = topics[owners] + noise * rng.normal(size=(len(owners), dim))
    return Corpus(
        text_TD=text.astype(np.float32),
        features_VFD=features.astype(np.float32),
        mask_VF=mask,
        video_of_text_T=owners,
    )
