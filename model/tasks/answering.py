"""The answer head of a net: frame features and a question's tokens in, an answer from a fixed list out, and its loss.

The layers and the loss are those of EMCL-QA (``model.tasks.question_answering``). A question whose answer is not in the
list teaches no answer; in the contrast it takes part like any other.

Shape suffixes: B questions, F frames, L tokens, D channels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.config import QaConfig
from model.emcl.em import EMCL
from model.tasks.captioning import spread_frames
from model.tasks.question_answering import QuestionAnswering, answer_loss


@dataclass(frozen=True, kw_only=True)
class FoundAnswer:
    """``probability`` is that among the answers of the list, which sum to 1."""

    text: str
    probability: float


def frequent_answers(answers: Iterable[str], most: int = 1500) -> tuple[str, ...]:
    """Return the most frequent answers, as MSRVTT-QA's own list was made. Raises ``ValueError`` for none."""
    counts = Counter(answers)
    if not counts:
        raise ValueError("the training questions have no answers; add questions about training videos")
    return tuple(sorted(counts, key=lambda answer: (-counts[answer], answer))[:most])


class AnswerHead(nn.Module):
    """Answers questions, given as CLIP's token features, about frame features (B, F, ``width``), raw."""

    def __init__(self, width: int, config: QaConfig) -> None:
        super().__init__()
        self.config = config
        self.net = QuestionAnswering(
            width,
            len(config.answers),
            heads=config.heads or max(1, width // 64),
            layers=config.layers,
            positions=config.frames,
            projected=config.projected,
            hidden=config.hidden,
            dropout=config.dropout,
        )
        self.emcl = EMCL(config.projected, config.emcl)
        self._ids = {answer: number for number, answer in enumerate(config.answers)}

    def labels(self, answers: Sequence[str]) -> Tensor:
        """Return the number of each answer, -1 for one that is not in the list."""
        return torch.tensor([self._ids.get(answer, -1) for answer in answers], dtype=torch.int64)

    def logits(
        self, features_BFD: Tensor, mask_BF: Tensor, words_BLD: Tensor, word_mask_BL: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the answers' logits, and videos and questions as the contrast sees them."""
        taken_BFD, taken_BF = spread_frames(features_BFD, mask_BF, self.config.frames)
        found: tuple[Tensor, Tensor, Tensor] = self.net(taken_BFD, taken_BF, words_BLD, word_mask_BL)
        return found

    def loss(
        self,
        features_BFD: Tensor,
        mask_BF: Tensor,
        words_BLD: Tensor,
        word_mask_BL: Tensor,
        labels_B: Tensor,
        log_scale: Tensor,
        *,
        weight: float,
        joint_emcl: bool,
        known_BB: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of a batch; see ``answer_loss``. In training mode the EM pass also moves its state."""
        logits, video, text = self.logits(features_BFD, mask_BF, words_BLD, word_mask_BL)
        emcl = (lambda rows_NH: self.emcl(rows_NH[None])[0]) if joint_emcl else None
        return answer_loss(logits, video, text, labels_B, log_scale, emcl=emcl, known_BB=known_BB, weight=weight).total

    @torch.no_grad()
    def answer(
        self, features_BFD: Tensor, mask_BF: Tensor, words_BLD: Tensor, word_mask_BL: Tensor, *, top: int = 5
    ) -> list[list[FoundAnswer]]:
        """Return the ``top`` answers of each question, the most probable first, without regard to the others."""
        logits_BA = self.logits(features_BFD, mask_BF, words_BLD, word_mask_BL)[0]
        best = torch.softmax(logits_BA.float(), dim=1).topk(min(top, logits_BA.shape[1]), dim=1)
        return [
            [
                FoundAnswer(text=self.config.answers[number], probability=probability)
                for probability, number in zip(probabilities, numbers, strict=True)
            ]
            for probabilities, numbers in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
