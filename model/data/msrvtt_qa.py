"""MSRVTT-QA: questions about MSR-VTT's videos, each with a one-word answer.

``train.jsonl``, ``val.jsonl``, ``test.jsonl``: one object a line with ``question``, ``answer``, ``video_id`` and
``answer_type``. ``train_ans2label.json``: the list of answers, {answer: 0, 1, …}, the most frequent of training.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path, PurePath

from model.data.annotation_files import caption, expect, field, read_json, read_lines
from model.data.batches import Question
from model.data.dataset import DatasetError


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


def questions_by_clip(questions: Sequence[Question], names: Sequence[str], where: str) -> list[tuple[Question, ...]]:
    """Return the questions about each of the clips, which are called by name or by file name without suffix.

    Raises ``DatasetError`` for a question about a video that is not among them.
    """
    rows = {PurePath(name).stem: row for row, name in enumerate(names)} | {name: row for row, name in enumerate(names)}
    found: list[list[Question]] = [[] for _ in names]
    foreign = []
    for question in questions:
        row = rows.get(question.video_id)
        if row is None:
            foreign.append(question.video_id)
        else:
            found[row].append(question)
    if foreign:
        raise DatasetError(
            f"{where}: {len(foreign)} of {len(questions)} questions are about videos that are not among the "
            f"{len(names)} of this split, such as {foreign[0]}; give the questions of this split"
        )
    return [tuple(some) for some in found]
