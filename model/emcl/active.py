"""Which correction a search applies, in a word, a number and a sentence: what API, page and command line report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from model.config import EMCLConfig

if TYPE_CHECKING:
    from model.emcl.correction import Correction, Mode

_STALE = "stage 1 still has the map of an earlier setting, which `emcl index rebuild` replaces"


@dataclass(frozen=True, kw_only=True)
class ActiveEMCL:
    """``strength`` is β for ``reference`` and ``channel``, a for hub bases, w for paired bases alone, 0 for ``off``.
    ``text`` follows "EMCL: ".
    """

    mode: Mode
    strength: float
    text: str


def published_emcl(correction: Correction) -> ActiveEMCL:
    """The correction that a generation applies with any model."""
    strength = correction.strength if correction.mode != "off" else 0.0
    if correction.has_own_pass:
        text = correction.text()
    else:
        text = "off, not calibrated for this model" if correction.mode == "off" else f"{correction.mode}, calibrated"
    return ActiveEMCL(mode=correction.mode, strength=strength, text=text)


def active_emcl(config: EMCLConfig, correction: Correction) -> ActiveEMCL:
    """What ``rerank: emcl`` does with a model of ``config`` over an index that applies ``correction``."""
    if correction.has_own_pass:
        return ActiveEMCL(mode=correction.mode, strength=correction.strength, text=correction.text())
    if config.beta == 0:
        text = "off, not calibrated for this model"
        return ActiveEMCL(mode="off", strength=0.0, text=f"{text}; {_STALE}" if correction.frozen.strength else text)
    return ActiveEMCL(mode=config.mode, strength=config.beta, text=f"{config.mode}, β {config.beta:g}, calibrated")
