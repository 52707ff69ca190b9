"""EMCL-Net as the golden arrays were made with it, and its parameters' names in the released code."""

from model.config import ClipConfig, EMCLConfig, ModelConfig, PoolingConfig, SamplingConfig, TemporalConfig
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
