"""Answers to questions about videos by a model with an answer head, and their figures.

A question whose answer is not in the head's list counts as wrong; the released evaluation drops it, which is given too.

Shape suffixes: Q questions, B videos, F frames, L tokens, D channels, A answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.clip.tokenizer import Tokenizer
from model.data.batches import Question
from model.encoder import Encoder
from model.evaluate.captioning import NoHeadError
from model.tasks.answering import AnswerHead, FoundAnswer
from model.tasks.question_answering import accuracy

if TYPE_CHECKING:
    from model.net import EMCLNet


def answer_head(encoder: Encoder) -> AnswerHead:
    """Return the model's answer head. Raises ``NoHeadError``."""
    head = encoder.net.answerer
    if head is None:
        raise NoHeadError(
            "this model has no answer head; train one with `task: qa` and `start_from` of your own model, and use the "
            "result as the model (docs/training.md; for the demo model configs/demo-qa.yaml does it)"
        )
    return head


def encode_questions(
    net: EMCLNet, tokenizer: Tokenizer, texts: Sequence[str], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the features of all tokens (Q, L, D), raw, and their mask (Q, L); L is the same for all questions."""
    ids_QL, mask_QL = tokenizer(texts, pad_to="max")
    return net.clip.text_tokens(ids_QL.to(device)), mask_QL.to(device)


def answer_question(
    encoder: Encoder, features_FD: NDArray[np.float32], mask_F: NDArray[np.bool_], question: str, *, top: int = 5
) -> list[FoundAnswer]:
    """Answer from a video's frame features, the most probable first; masked ones are left out.

    Raises ``NoHeadError``.
    """
    head = answer_head(encoder)
    features = torch.from_numpy(np.array(features_FD[mask_F], np.float32))[None].to(encoder.device)
    real = torch.ones(features.shape[:2], dtype=torch.bool, device=encoder.device)
    with torch.no_grad():
        words_QLD, word_mask_QL = encode_questions(encoder.net, encoder.tokenizer, [question], encoder.device)
    return head.answer(features, real, words_QLD, word_mask_QL, top=top)[0]


class AnswerFigures:
    """Collects questions and the head's logits; measures them together."""

    def __init__(self, head: AnswerHead) -> None:
        self.head = head
        self.questions: list[Question] = []
        self.logits: list[Tensor] = []

    def add(self, questions: Sequence[Question], logits_QA: Tensor) -> None:
        """Add questions."""
        self.questions += questions
        self.logits.append(logits_QA.float().cpu())

    def metrics(self) -> dict[str, dict[str, float]] | None:
        """Return percentages, None without questions. ``floor`` is what the most frequent answer of them all reaches.

        Top-1 is also given for each kind of question, and, as ``answerable``, without the questions whose answer is not
        in the list.
        """
        if not self.questions:
            return None
        logits_QA = torch.cat(self.logits)
        labels_Q = self.head.labels([question.answer for question in self.questions])
        found = accuracy(logits_QA, labels_Q)
        kinds = np.array([question.kind for question in self.questions])
        (_, most), *_ = Counter(question.answer for question in self.questions).most_common(1)
        return {
            "questions": {
                "top-1": found.of_all[0],
                "top-5": found.of_all[1],
                "answerable top-1": found.of_answerable[0],
                "answerable top-5": found.of_answerable[1],
                "floor": 100.0 * most / found.questions,
                **{
                    f"{kind} top-1": accuracy(logits_QA[rows], labels_Q[rows]).of_all[0]
                    for kind in sorted(set(kinds))
                    if len(rows := torch.from_numpy(np.flatnonzero(kinds == kind)))
                },
                "questions": float(found.questions),
                "answerable questions": float(found.answerable),
            }
        }
