"""Captions of videos by a model with a caption head, and their figures.

BLEU-1 to 4, ROUGE-L and CIDEr-D are in percent, with this project's own tokeniser.

METEOR needs Java and its table of paraphrases and is not computed. CIDEr weighs n-grams by the set that is measured,
and exceeds 100.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from model.encoder import Encoder
from model.tasks.caption_metrics import CaptionScores, score_captions, tokenise
from model.tasks.captioning import CaptionHead, WrittenCaption


class NoHeadError(ValueError):
    """The model was not trained for this task."""


def caption_head(encoder: Encoder) -> CaptionHead:
    """Return the model's caption head. Raises ``NoHeadError``."""
    head = encoder.net.captioner
    if head is None:
        raise NoHeadError(
            "this model has no caption head; train one with `task: captioning` and `start_from` of your own model, and "
            "use the result as the model (docs/training.md; for the demo model configs/demo-captions.yaml does it)"
        )
    return head


def write_caption(
    encoder: Encoder, features_FD: NDArray[np.float32], mask_F: NDArray[np.bool_], *, beams: int = 5
) -> WrittenCaption:
    """Write a caption from a video's frame features; masked ones are left out. Raises ``NoHeadError``."""
    head = caption_head(encoder)
    features = torch.from_numpy(np.array(features_FD[mask_F], np.float32))[None].to(encoder.device)
    real = torch.ones(features.shape[:2], dtype=torch.bool, device=encoder.device)
    return head.write(features, real, size=beams)[0]


class CaptionFigures:
    """Collects one caption of each video, and the video's own; measures them together."""

    def __init__(self) -> None:
        self.written: list[str] = []
        self.references: list[tuple[str, ...]] = []

    def add(self, written: Sequence[str], references: Sequence[tuple[str, ...]]) -> None:
        """Add videos."""
        self.written += written
        self.references += references

    def scores(self, written: Sequence[str] | None = None) -> CaptionScores:
        """Measure; ``written`` replaces the captions that were added."""
        hypotheses = [tokenise(text) for text in (self.written if written is None else written)]
        return score_captions(hypotheses, [[tokenise(text) for text in some] for some in self.references])

    def metrics(self) -> dict[str, dict[str, float]] | None:
        """Return percentages, None without videos. ``shuffled CIDEr`` is that of the captions in another order.

        It is what captions reach that fit the set and not the video: the floor to compare CIDEr with.
        """
        if not self.written:
            return None
        found = self.scores()
        order = np.random.default_rng(0).permutation(len(self.written))
        shuffled = self.scores([self.written[place] for place in order])
        return {
            "captions": {
                **{f"BLEU-{n}": 100 * value for n, value in enumerate(found.bleu, start=1)},
                "ROUGE-L": 100 * found.rouge_l,
                "CIDEr": 100 * found.cider,
                "shuffled CIDEr": 100 * shuffled.cider,
                "different captions": float(len(set(self.written))),
                "videos": float(len(self.written)),
            }
        }
