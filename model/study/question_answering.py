"""``emcl study qa``: question answering on exported features, with and without EMCL in the training's contrast.

In: frame features of training and test videos, questions about both, and the model of the features, for the questions'
tokens. Out: one table, the mean over seeds with the standard deviation, beside the most frequent answer.

The model stays as it is; what is trained is ``model.tasks.question_answering``. EMCL is part of the loss only (K 16,
5 iterations, σ 1, β 1, the released defaults): answers never pass through it, so it has no inference-only form here.
A question whose answer is not in the list counts as wrong; the released evaluation drops it, which is printed as well.

Shape suffixes: B questions, V videos, F frames, L words, D channels.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from statistics import mean, stdev

import numpy as np
import torch
from torch import Tensor, nn

from model.config import EMCLConfig
from model.data.batches import Question
from model.data.msrvtt_qa import read_answers, read_questions
from model.emcl.em import EMCL
from model.encoder import Encoder, load_encoder
from model.evaluate.answering import blind_answers
from model.heads.features import FeaturesError, FeatureSet, read_features
from model.heads.losses import known_pairs
from model.options import QaOptions
from model.tasks.answering import frequent_answers
from model.tasks.question_answering import CONTRASTIVE_WEIGHT, Accuracy, QuestionAnswering, accuracy, answer_loss

WAYS = ("answers alone", "with the contrast", "EMCL in the contrast")
_TEST_BATCH = 256


class Asked:
    """Questions with the features of their videos."""

    def __init__(self, features: FeatureSet, questions: Sequence[Question], encoder: Encoder) -> None:
        if features.kind != "frames":
            raise FeaturesError(f"question answering needs features of kind frames, got {features.kind}")
        if features.settings.get("fingerprint") != encoder.fingerprint:
            raise FeaturesError(
                f"the features are of model {str(features.settings.get('fingerprint'))[:12]}, --model is "
                f"{encoder.fingerprint[:12]}; questions must be encoded by the model of the videos"
            )
        places = {PurePath(name).stem: place for place, name in enumerate(features.video_ids)}
        places |= {name: place for place, name in enumerate(features.video_ids)}
        missing = sorted({q.video_id for q in questions if q.video_id not in places})
        if missing:
            raise ValueError(f"{len(missing)} videos of questions have no features, such as {missing[0]}")
        self.questions, self.encoder = questions, encoder
        self.video_ids = {features.video_ids[places[q.video_id]] for q in questions}
        self.video_of = torch.tensor([places[q.video_id] for q in questions])
        self.text_of = torch.tensor(_numbered([q.text for q in questions]))
        self.frames_VFD = torch.from_numpy(np.array(features.arrays["video"]))
        self.mask_VF = torch.from_numpy(np.array(features.arrays["video_mask"]))
        self.log_scale = torch.tensor(math.log(100) if features.logit_scale is None else features.logit_scale)

    @torch.no_grad()
    def inputs(self, rows_B: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return frames, their mask, the questions' tokens and their mask, as ``QuestionAnswering`` reads them."""
        ids_BL, mask_BL = self.encoder.tokenizer([self.questions[row].text for row in rows_B.tolist()])
        words_BLD = self.encoder.net.clip.text_tokens(ids_BL.to(self.encoder.device)).cpu()
        videos_B = self.video_of[rows_B]
        return self.frames_VFD[videos_B], self.mask_VF[videos_B], words_BLD, mask_BL


def _numbered(texts: Sequence[str]) -> list[int]:
    numbers: dict[str, int] = {}
    return [numbers.setdefault(text, len(numbers)) for text in texts]


def labels_of(questions: Sequence[Question], answers: Sequence[str]) -> Tensor:
    """Return the number of each question's answer, -1 where it is not in the list."""
    numbers = {answer: number for number, answer in enumerate(answers)}
    return torch.tensor([numbers.get(question.answer, -1) for question in questions])


def train_one(way: str, train: Asked, answers: Sequence[str], options: QaOptions, seed: int) -> QuestionAnswering:
    """Train a net on the training questions that have an answer in the list; the same seed gives the same net."""
    labels = labels_of(train.questions, answers)
    usable = (labels >= 0).nonzero()[:, 0]
    if len(usable) < options.batch:
        raise ValueError(f"{len(usable)} training questions have an answer in the list, --batch is {options.batch}")
    dim, generator = train.frames_VFD.shape[-1], torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # weights and dropout
        net = QuestionAnswering(
            dim,
            len(answers),
            heads=max(1, dim // 64),
            positions=max(77, train.frames_VFD.shape[1]),
            projected=options.projected,
            hidden=options.hidden,
        )
        config = EMCLConfig.reference(num_bases=16, iterations=5, sigma=1.0, beta=1.0, seed=seed)
        emcl = EMCL(options.projected, config) if way == WAYS[2] else None
        optimiser = torch.optim.AdamW(net.parameters(), lr=options.learning_rate, weight_decay=0.2)
        net.train()
        for _ in range(options.steps):
            rows_B = usable[torch.randperm(len(usable), generator=generator)[: options.batch]]
            logits, video, text = net(*train.inputs(rows_B))
            known = known_pairs(torch.stack([train.video_of[rows_B], train.text_of[rows_B]], dim=1))
            weight = 0.0 if way == WAYS[0] else CONTRASTIVE_WEIGHT
            found = answer_loss(
                logits, video, text, labels[rows_B], train.log_scale, emcl=emcl, known_BB=known, weight=weight
            )
            optimiser.zero_grad()
            found.total.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
    return net.eval()


@torch.no_grad()
def logits_of(net: QuestionAnswering, test: Asked) -> Tensor:
    """Answer all questions, each without regard to the others."""
    rows = torch.arange(len(test.questions)).split(_TEST_BATCH)  # type: ignore[no-untyped-call]
    return torch.cat([net(*test.inputs(rows_B))[0] for rows_B in rows])


@dataclass(frozen=True, kw_only=True)
class Line:
    """One way of training: the accuracy of each seed, and the top-1 of each kind of question."""

    name: str
    seeds: Sequence[Accuracy]
    kinds: Sequence[dict[str, float]]


def study(train: Asked, test: Asked, answers: Sequence[str], options: QaOptions, seeds: Sequence[int]) -> list[Line]:
    """Train each way with each seed, and measure it."""
    shared = train.video_ids & test.video_ids
    if shared:
        raise ValueError(f"{len(shared)} videos are in both sets, such as {sorted(shared)[0]}; test on other videos")
    labels = labels_of(test.questions, answers)
    lines = []
    for way in WAYS:
        logits = [logits_of(train_one(way, train, answers, options, seed), test) for seed in seeds]
        kinds = [_by_kind(one, labels, test.questions) for one in logits]
        lines.append(Line(name=way, seeds=[accuracy(one, labels) for one in logits], kinds=kinds))
    return lines


def _by_kind(logits: Tensor, labels: Tensor, questions: Sequence[Question]) -> dict[str, float]:
    of = {kind: torch.tensor([q.kind == kind for q in questions]) for kind in sorted({q.kind for q in questions})}
    return {kind: accuracy(logits[rows], labels[rows]).of_all[0] for kind, rows in of.items()}


def table(lines: Sequence[Line], train: Asked, test: Asked, answers: Sequence[str]) -> str:
    """Return the results as a Markdown table."""
    kinds = list(lines[0].kinds[0])
    head = ["training", "top-1", "top-5", "top-1, unanswerable dropped", *(f"top-1, {kind}" for kind in kinds)]
    rows = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    (most, _), *_ = Counter(q.answer for q in train.questions if q.answer in set(answers)).most_common(1)
    majority = 100 * sum(q.answer == most for q in test.questions) / len(test.questions)
    rows.append(f"| always {most!r} | {majority:.1f} |" + " – |" * (len(head) - 2))
    guesses = blind_answers(train.questions, test.questions)
    right = [guess == q.answer for guess, q in zip(guesses, test.questions, strict=True)]
    by_kind = [[hit for hit, q in zip(right, test.questions, strict=True) if q.kind == kind] for kind in kinds]
    blind = " | ".join(f"{100 * mean(some):.1f}" for some in by_kind)
    rows.append(f"| most frequent answer to the question, no video | {100 * mean(right):.1f} | – | – | {blind} |")
    for line in lines:
        values = [
            [one.of_all[0] for one in line.seeds],
            [one.of_all[1] for one in line.seeds],
            [one.of_answerable[0] for one in line.seeds],
            *([one[kind] for one in line.kinds] for kind in kinds),
        ]
        rows.append("| " + " | ".join([line.name, *map(_over_seeds, values)]) + " |")
    one, count = lines[0].seeds[0], len(lines[0].seeds)
    error = 100 * math.sqrt(0.25 / one.questions)
    rows += [
        "",
        f"{one.questions} test questions, {one.questions - one.answerable} of them with an answer outside the list of "
        f"{len(answers)}: counted as wrong, except in the column that drops them as the released evaluation does. "
        f"{count} seeds{': mean ± standard deviation over them' if count > 1 else ''}; the standard error over "
        f"questions is at most {error:.1f} points. Which of the first two the paper's baseline is, is unknown.",
    ]
    return "\n".join(rows)


def _over_seeds(values: Sequence[float]) -> str:
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def parse_seeds(text: str) -> list[int]:
    """Read whole numbers separated by commas. Raises ``ValueError``."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"--seeds takes whole numbers separated by commas, such as 0,1,2; got {text!r}") from error


def run(options: QaOptions) -> str:
    """Read everything, train, and return the table."""
    seeds = parse_seeds(options.seeds)
    questions = read_questions(options.train)
    own = (question.answer for question in questions)
    answers = frequent_answers(own) if options.answers is None else read_answers(options.answers)
    encoder = load_encoder(options.model, pretrained=options.pretrained, device=options.device)
    train = Asked(read_features(options.train_features), questions, encoder)
    test = Asked(read_features(options.test_features), read_questions(options.test), encoder)
    return table(study(train, test, answers, options, seeds), train, test, answers)
