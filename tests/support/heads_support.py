"""Golden arrays of ``rest/`` as tensors, and EMCL with their settings."""

import torch

from model.config import EMCLConfig
from model.emcl.em import EMCL


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
