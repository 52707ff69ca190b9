"""MSRVTT-QA: questions about MSR-VTT's videos, each with a one-word answer.

``train.jsonl``, ``val.jsonl``, ``test.jsonl``: one object a line with ``question``, ``answer``, ``video_id`` and
``answer_type``. ``train_ans2label.json``: the list of answers, {answer: 0, 1, …}, the most frequent of training.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from model.data.annotation_files import caption, expect, field, read_json, read_lines
from model.data.dataset import DatasetError


@dataclass(frozen=True, kw_only=True)
class Question:
    """``kind`` is the set's ``answer_type``: what, who, how, when or where."""

    video_id: str
    text: str
    answer: str
    kind: str


def read_questions(path: Path) -> list[Question]:
    """Read a split. Raises ``DatasetError`` that names the line."""
    questions = []
    for where, line in read_lines(path):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DatasetError(f"{where}: not JSON ({error.msg}); expected one question a line") from error
        text, answer, video_id, kind = (
            caption(field(record, name, str, where), f"{where}, {name}")
            for name in ("question", "answer", "video_id", "answer_type")
        )
        questions.append(Question(video_id=video_id, text=text, answer=answer, kind=kind))
    if not questions:
        raise DatasetError(f"{path} holds no questions")
    return questions


def read_answers(path: Path) -> tuple[str, ...]:
    """Read the list of answers, in the order of their numbers, which must be 0, 1, … without gaps."""
    numbers = expect(read_json(path), dict, str(path))
    for answer, number in numbers.items():
        expect(number, int, f"{path}, {answer}")
    if not numbers or sorted(numbers.values()) != list(range(len(numbers))):
        raise DatasetError(f"{path}: the numbers of {len(numbers)} answers must be 0, 1, … without gaps or repeats")
    return tuple(sorted(numbers, key=lambda answer: numbers[answer]))


def frequent_answers(questions: Sequence[Question], most: int = 1500) -> tuple[str, ...]:
    """Return the most frequent answers, as the set's own list was made."""
    counts = Counter(question.answer for question in questions)
    return tuple(sorted(counts, key=lambda answer: (-counts[answer], answer))[:most])
