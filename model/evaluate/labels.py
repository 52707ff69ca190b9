"""Labels, prompts and questions about a video: what may be given, and the text that is encoded. Needs no PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

ACTIVITYNET_PROMPT = "human action of {}"
DEFAULT_PROMPT = "a video of {}"
MAX_LABELS, MAX_LABEL_CHARS, MAX_PROMPT_CHARS = 1000, 200, 200
MAX_QUESTION_CHARS, MAX_ANSWERS = 500, 100


def check_labels(labels: Sequence[str], prompt: str) -> None:
    """Raise ``ValueError`` that names the first label, or the prompt, that cannot be used."""
    if not 1 <= len(labels) <= MAX_LABELS:
        raise ValueError(f"{len(labels)} labels were given, expected 1 to {MAX_LABELS}")
    for label in labels:
        if not label.strip():
            raise ValueError("a label is empty; every label needs words")
        if len(label) > MAX_LABEL_CHARS:
            raise ValueError(f"a label has {len(label)} characters, at most {MAX_LABEL_CHARS} are allowed")
    if len(set(labels)) < len(labels):
        double = next(label for label in labels if list(labels).count(label) > 1)
        raise ValueError(f"the label {double!r} is given twice; probabilities need different labels")
    if prompt.count("{}") != 1 or len(prompt) > MAX_PROMPT_CHARS:
        raise ValueError(
            f"the prompt is {prompt[:MAX_PROMPT_CHARS]!r}, expected at most {MAX_PROMPT_CHARS} characters with one "
            "{} for the label, such as 'a video of {}'"
        )


def check_question(question: str) -> None:
    """Raise ``ValueError`` for a question that cannot be used."""
    if not question.strip():
        raise ValueError("the question is empty; ask something")
    if len(question) > MAX_QUESTION_CHARS:
        raise ValueError(f"the question has {len(question)} characters, at most {MAX_QUESTION_CHARS} are allowed")


def prompts_of(labels: Sequence[str], prompt: str) -> list[str]:
    """Return the text of every label. Raises ``ValueError`` as ``check_labels`` does."""
    check_labels(labels, prompt)
    return [prompt.replace("{}", label) for label in labels]


def read_labels(path: Path) -> list[str]:
    """Read labels, one a line; empty lines are left out. Raises ``ValueError`` for a file that is not UTF-8 text."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}; write one label a line") from error
    labels = [line.strip() for line in lines if line.strip()]
    if not labels:
        raise ValueError(f"{path} holds no label; write one label a line")
    return labels
