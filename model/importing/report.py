"""What an import did, for people and for programs: where every name went, and which settings were chosen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from model.config import ModelConfig, TemporalConfig

Kind = Literal["emcl-net", "clip4clip", "clip"]


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """What was written, and what became of every name: ``taken`` tensors, ``unused`` ones known to be of no use,
    ``unmatched`` names of the source and ``unfilled`` parameters of ours (both empty unless they were allowed).
    """

    kind: Kind
    path: Path
    fingerprint: str
    config: ModelConfig
    taken: int
    unused: list[str]
    unmatched: list[str]
    unfilled: list[str]
    notes: list[str]

    def text(self) -> str:
        """The report for people, some lines."""
        clip, emcl, pooling = self.config.clip.custom or {}, self.config.emcl, self.config.pooling
        vision, words = clip["vision_cfg"], clip["text_cfg"]
        lines = [
            f"{self.path}: {self.kind}, fingerprint {self.fingerprint[:12]}",
            f"  images   {vision['layers']} layers, width {vision['width']}, patch {vision['patch_size']}, "
            f"{vision['image_size']} pixels, heads of {vision['head_width']}",
            f"  text     {words['layers']} layers, width {words['width']}, {words['heads']} heads, "
            f"{words['context_length']} positions; {'quick-gelu' if clip['quick_gelu'] else 'gelu'} in both towers",
            f"  frames   {_temporal_text(self.config.temporal)}",
            f"  tensors  {self.taken} taken, {len(self.unused)} known to be of no use here",
            "settings that no such file holds (see docs/importing.md):",
            f"  EMCL     {emcl.mode} mode, K {emcl.num_bases}, {emcl.iterations} iterations, sigma {emcl.sigma:g}, "
            f"beta {emcl.beta:g}; its state is new, from seed {emcl.seed}",
            f"  pooling  temperature {pooling.temperature:g}, padding masked {pooling.mask} the softmax",
            f"  input    {self.config.tokenizer.max_words} words, {self.config.sampling.max_frames} frames at "
            f"{self.config.sampling.sample_fps:g} per second",
            *(f"note: {note}" for note in self.notes),
            *(f"left out: {name}" for name in self.unmatched),
            *(f"not in the file, kept at its start: {name}" for name in self.unfilled),
        ]
        return "\n".join(lines)


def _temporal_text(temporal: TemporalConfig) -> str:
    if temporal.kind == "transformer":
        return f"transformer of {temporal.layers} layers, {temporal.max_positions} positions"
    return "LSTM" if temporal.kind == "lstm" else "averaged"
