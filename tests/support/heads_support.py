"""Golden arrays of ``rest/`` as tensors, and EMCL with their settings."""

from __future__ import annotations

import torch

from model.config import ClipConfig, EMCLConfig, ModelConfig, PoolingConfig, SamplingConfig, TemporalConfig
from model.emcl.em import EMCL
from model.net import EMCLNet, build_net

TOWERS = {
    "embed_dim": 64,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 500, "width": 64, "heads": 2, "layers": 2},
}


def reference_name(ours: str) -> str:
    """Our parameter name in the reference's state dict; the EMCL state is in none of its checkpoints."""
    if ours.startswith("temporal.blocks."):
        return ours.replace("temporal.blocks.", "transformerClip.", 1)
    return ours.replace("temporal.positions.", "frame_position_embeddings.", 1).replace("clip.model.", "clip.", 1)


def golden_architecture() -> EMCLNet:
    """The net in reference mode with random weights."""
    return build_net(
        ModelConfig(
            clip=ClipConfig(custom=TOWERS),
            temporal=TemporalConfig(layers=2, max_positions=16),
            pooling=PoolingConfig(temperature=3.0, mask="after"),
            emcl=EMCLConfig.reference(num_bases=8),
            sampling=SamplingConfig(max_frames=12),
        )
    )


def tensors(arrays):
    """All numeric arrays as tensors."""
    return {key: torch.from_numpy(value) for key, value in arrays.items() if value.dtype.kind in "fiub"}


def golden_emcl(arrays, prefix, dim, *, training=False, momentum=0.9):
    """EMCL in reference mode from ``PREFIX/M_in`` and its scalars."""
    config = EMCLConfig.reference(
        num_bases=int(arrays[f"{prefix}K"]),
        iterations=int(arrays[f"{prefix}T"]),
        sigma=float(arrays[f"{prefix}lamd"]),
        beta=float(arrays[f"{prefix}beta"]),
        momentum=momentum,
    )
    emcl = EMCL(dim, config)
    emcl.state.copy_(arrays[f"{prefix}M_in"])
    return emcl.train(training)


def load_renamed(module, arrays, prefix, rename):
    """Load ``PREFIX/NAME`` arrays strictly; ``rename`` gives our name, or None for what is not ours to load."""
    state = {}
    for key, value in arrays.items():
        if key.startswith(prefix) and (ours := rename(key.removeprefix(prefix))) is not None:
            state[ours] = value
    module.load_state_dict(state, strict=True)
    return module


def relative_error(found, expected):
    """The norm of the difference, as a share of the expected one's."""
    return float((found - expected).norm() / expected.norm())
