"""Answers to questions about videos by a model with an answer head, and their figures.

A question whose answer is not in the head's list counts as wrong; the released evaluation drops it, which is given too.

Shape suffixes: Q questions, B videos, F frames, L tokens, D channels, A answers.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from model.clip.tokenizer import Tokenizer
from model.data.batches import Question
from model.data.clips import load_frames
from model.data.msrvtt_qa import questions_by_clip, read_questions
from model.data.registry import open_for_evaluation
from model.encoder import Encoder, load_encoder
from model.evaluate.captioning import NoHeadError
from model.options import EvaluateOptions
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


def blind_answers(train: Sequence[Question], test: Sequence[Question]) -> list[str]:
    """Return what is best guessed without the video: for each test question the most frequent of ``train``'s answers.

    Those to the same question count; where it was never asked, those to questions of its kind, or else all.
    """
    by: dict[tuple[str, str], Counter[str]] = {}
    for question in train:
        for key in (("text", question.text), ("kind", question.kind), ("", "")):
            by.setdefault(key, Counter())[question.answer] += 1
    guesses = []
    for question in test:
        counts = by.get(("text", question.text)) or by.get(("kind", question.kind)) or by[("", "")]
        guesses.append(min(counts, key=lambda answer: (-counts[answer], answer)))
    return guesses


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


_READ = {"task", "questions", "data", "split", "allow_missing", "model", "pretrained", "metric_rules", "device"}
_READ |= {"json_file", "markdown_file"}


@torch.no_grad()
def run(options: EvaluateOptions) -> str:
    """Answer questions about the videos of a set (``emcl evaluate --task qa``) and return the report.

    Both rules are printed; ``metric_rules`` says which of them comes first. Raises ``ValueError`` for options that
    only retrieval reads, and ``NoHeadError``.
    """
    if options.data is None or options.questions is None:
        raise ValueError("--task qa needs --data, the videos, and --questions, a file of questions about them")
    foreign = [name for name in type(options).model_fields if name not in _READ and options.changed((name,))]
    if foreign:
        names = ", ".join("--" + name.replace("_", "-") for name in foreign)
        raise ValueError(f"{names}: no effect with --task qa; leave it out")
    encoder = load_encoder(options.model, pretrained=options.pretrained, device=options.device)
    head = answer_head(encoder)
    clips = open_for_evaluation(options.data, options.split, allow_missing=options.allow_missing).clips
    questions = read_questions(options.questions)
    asked = questions_by_clip(questions, [clip.name for clip in clips], str(options.questions))
    figures = AnswerFigures(head)
    for clip, some in zip(tqdm(clips, desc="answer", unit="video"), asked, strict=True):
        if not some:
            continue
        frames = load_frames(clip, preprocess=encoder.preprocess, sampling=encoder.config.sampling)
        features = torch.from_numpy(encoder.encode_videos(frames[None], np.ones((1, len(frames)), bool)))
        features_QFD = features.to(encoder.device).expand(len(some), -1, -1)
        mask_QF = torch.ones(features_QFD.shape[:2], dtype=torch.bool, device=encoder.device)
        words = encode_questions(encoder.net, encoder.tokenizer, [question.text for question in some], encoder.device)
        figures.add(some, head.logits(features_QFD, mask_QF, *words)[0])
    metrics = figures.metrics()
    assert metrics is not None  # a file without questions is refused
    report = _report(metrics["questions"], len(head.config.answers), options)
    if options.json_file is not None:
        options.json_file.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    if options.markdown_file is not None:
        options.markdown_file.write_text(report + "\n", encoding="utf-8")
    return report


def _report(found: dict[str, float], answers: int, options: EvaluateOptions) -> str:
    kinds = [name for name in found if name.endswith(" top-1") and name != "answerable top-1"]
    rows: list[list[str | float | None]] = [
        ["unanswerable questions count as wrong", found["top-1"], found["top-5"], *(found[kind] for kind in kinds)],
        [
            "unanswerable questions dropped, as the released evaluation does",
            found["answerable top-1"],
            found["answerable top-5"],
            *(None for _ in kinds),
        ],
        ["the most frequent answer, always", found["floor"], None, *(None for _ in kinds)],
    ]
    if options.metric_rules == "reference":
        rows[:2] = rows[1::-1]
    cells = [[one if isinstance(one, str) else "–" if one is None else f"{one:.1f}" for one in row] for row in rows]
    head = ["rule", "top-1", "top-5", *kinds]
    missing, error = int(found["questions"] - found["answerable questions"]), 50 / found["questions"] ** 0.5
    return "\n".join(
        [
            "| " + " | ".join(head) + " |",
            "|---" * len(head) + "|",
            *("| " + " | ".join(row) + " |" for row in cells),
            "",
            f"{int(found['questions'])} questions, {missing} of them with an answer outside the model's list of "
            f"{answers}; metric rules {options.metric_rules}; standard error at most {error:.1f} points.",
        ]
    )
