"""Which correction a search applies, in a word, a number and a sentence: what API, page and command line report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from model.config import EMCLConfig

if TYPE_CHECKING:
    from model.emcl.em import FrozenMap

Mode = Literal["off", "reference", "channel"]

_STALE = "stage 1 still has the map of an earlier setting, which `emcl index rebuild` replaces"


@dataclass(frozen=True, kw_only=True)
class ActiveEMCL:
    """``strength`` is β for ``reference`` and ``channel``, and 0 for ``off``. ``text`` follows "EMCL: "."""

    mode: Mode
    strength: float
    text: str


def active_emcl(config: EMCLConfig, frozen_map: FrozenMap) -> ActiveEMCL:
    """What the rerank of a model with ``config`` does over an index whose stage 1 was published with ``frozen_map``."""
    if config.beta == 0:
        text = "off, not calibrated for this model"
        return ActiveEMCL(mode="off", strength=0.0, text=f"{text}; {_STALE}" if frozen_map.strength else text)
    text = f"{config.mode}, β {config.beta:g}, calibrated"
    return ActiveEMCL(mode=config.mode, strength=config.beta, text=text)
