"""EMCL-QA: an answer from a fixed list, for a question about a video (MSRVTT-QA).

    y = linear(blocks(x + positions)) + x                      frames x (F, D), raw
    video, text = Σ α_f y_f, Σ α_l h_l                         α the softmax of a small network, real ones alone
    V, Q = linear(video), linear(text)
    answers = linear(relu(linear(dropout([V; Q]))))
    loss = CE(answers) + ½ InfoNCE of emcl([V; Q]), normalised

EMCL is part of the loss only: the answers never pass through it. Released mistakes, by name: padding keeps its share
of α (``mask="after"``), and two questions about one video are each other's negatives (``known_BB=None``).

Shape suffixes: B questions, L words, F frames, N tokens, D channels, H projected channels, A answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.heads.base import Correction
from model.heads.blocks import quick_gelu_blocks, run_blocks
from model.heads.losses import symmetric_info_nce

CONTRASTIVE_WEIGHT = 0.5


class TokenPooling(nn.Module):
    """Weighs tokens (B, N, D) by the softmax of linear, relu, linear, and sums them."""

    def __init__(self, dim: int, *, mask: Literal["before", "after"] = "before") -> None:
        super().__init__()
        self.mask = mask
        self.score = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, 1))

    def forward(self, tokens_BND: Tensor, mask_BN: Tensor) -> Tensor:
        """Return (B, D)."""
        scores_BN = self.score(tokens_BND)[..., 0]
        if self.mask == "before":
            scores_BN = scores_BN.masked_fill(~mask_BN.bool(), torch.finfo(scores_BN.dtype).min)
        weights_BN = torch.softmax(scores_BN, dim=-1) * mask_BN
        return (weights_BN[..., None] * tokens_BND).sum(dim=1)


@dataclass(frozen=True, kw_only=True)
class AnswerLoss:
    """``total`` = ``answers`` + 0.5 · ``contrast``."""

    total: Tensor
    answers: Tensor
    contrast: Tensor


class QuestionAnswering(nn.Module):
    """The layers after CLIP. Sizes as released: D 512, ``projected`` 2048, ``hidden`` 8192, 1,500 answers."""

    def __init__(
        self,
        dim: int,
        answers: int,
        *,
        heads: int,
        layers: int = 4,
        positions: int = 77,
        projected: int = 2048,
        hidden: int = 8192,
        dropout: float = 0.1,
        mask: Literal["before", "after"] = "before",
    ) -> None:
        super().__init__()
        self.heads = heads
        self.positions = nn.Embedding(positions, dim)
        self.blocks = quick_gelu_blocks(dim, heads, layers)
        self.frame_projection = nn.Linear(dim, dim)
        self.video_pooling, self.text_pooling = TokenPooling(dim, mask=mask), TokenPooling(dim, mask=mask)
        self.video_projection, self.text_projection = nn.Linear(dim, projected), nn.Linear(dim, projected)
        self.dropout = nn.Dropout(dropout)
        self.answer = nn.Sequential(nn.Linear(2 * projected, hidden), nn.ReLU(), nn.Linear(hidden, answers))

    def pool(
        self, frames_BFD: Tensor, mask_BF: Tensor, words_BLD: Tensor, word_mask_BL: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the pooled video and question, (B, D) each."""
        positions_FD = self.positions.weight[: frames_BFD.shape[1]]
        mixed_BFD = run_blocks(self.blocks, frames_BFD + positions_FD, mask_BF, self.heads)
        frames_BFD = self.frame_projection(mixed_BFD) + frames_BFD
        return self.video_pooling(frames_BFD, mask_BF), self.text_pooling(words_BLD, word_mask_BL)

    def forward(
        self, frames_BFD: Tensor, mask_BF: Tensor, words_BLD: Tensor, word_mask_BL: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the answers' logits (B, A), and the projected videos and questions (B, H) that the contrast sees."""
        video_BD, text_BD = self.pool(frames_BFD, mask_BF, words_BLD, word_mask_BL)
        video_BH, text_BH = self.video_projection(video_BD), self.text_projection(text_BD)
        return self.answer(self.dropout(torch.cat([video_BH, text_BH], dim=1))), video_BH, text_BH


def answer_loss(
    logits_BA: Tensor,
    video_BH: Tensor,
    text_BH: Tensor,
    answers_B: Tensor,
    log_scale: Tensor,
    *,
    emcl: Correction | None,
    known_BB: Tensor | None = None,
    weight: float = CONTRASTIVE_WEIGHT,
) -> AnswerLoss:
    """Return the loss of a batch. ``emcl`` None leaves the pass out, ``weight`` 0 the contrast.

    ``answers_B`` is -1 for a question that teaches no answer. Where ``known_BB`` is True
    (``model.heads.losses.known_pairs``), a question and a video belong together.
    """
    total = F.cross_entropy(logits_BA, answers_B, ignore_index=-1, reduction="sum")
    answers = total / (answers_B >= 0).sum().clamp(min=1)
    rows_NH = torch.cat([video_BH, text_BH])
    unit_NH = F.normalize(rows_NH if emcl is None else emcl(rows_NH), dim=-1)
    video, text = unit_NH[: len(video_BH)], unit_NH[len(video_BH) :]
    contrast = symmetric_info_nce(text @ video.T, log_scale, known_BB)
    return AnswerLoss(total=answers + weight * contrast, answers=answers, contrast=contrast)


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Percent of questions whose answer is among the first 1 and 5. ``answerable`` have theirs in the list at all.

    ``of_all`` counts the others as wrong; ``of_answerable`` leaves them out, as the released evaluation does.
    """

    questions: int
    answerable: int
    of_all: tuple[float, float]
    of_answerable: tuple[float, float]


def accuracy(logits_BA: Tensor, answers_B: Tensor) -> Accuracy:
    """Measure answers; ``answers_B`` is -1 for a question whose answer is not in the list."""
    best_BK = logits_BA.topk(min(5, logits_BA.shape[1]), dim=1).indices
    known_B = answers_B >= 0
    found = [(best_BK[:, :k] == answers_B[:, None]).any(dim=1) & known_B for k in (1, 5)]
    total, answerable = len(answers_B), int(known_B.sum())

    def percent(count: int) -> tuple[float, float]:
        return tuple(100.0 * int(hit.sum()) / max(1, count) for hit in found)  # type: ignore[return-value]

    return Accuracy(questions=total, answerable=answerable, of_all=percent(total), of_answerable=percent(answerable))
