"""The queries of QB-Norm's bank: captions that were trained on, from a file or from the training split of a set.

In: a source and a limit. Out: texts, a random part of them if there are more than the limit, always the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.data.annotation_files import read_text
from model.data.dataset import DatasetConfig, DatasetError
from model.data.manifest import read_manifest
from model.data.registry import load_stored_set
from model.evaluate.hubness import QB_NORM_BETA, QB_NORM_TOP

TRAIN_SPLIT = "train"
DEFAULT_SIZE = 5000
_CONFIG_SUFFIXES = (".yaml", ".yml", ".json")


@dataclass(frozen=True, kw_only=True)
class QueryBank:
    """Texts of a bank. ``available`` is how many different ones the source has; ``seed`` drew from them."""

    texts: tuple[str, ...]
    source: str
    available: int
    seed: int
    beta: float = QB_NORM_BETA
    top: int = QB_NORM_TOP

    def shared_with(self, captions: Iterable[str]) -> int:
        """How many of the texts are among ``captions``: a bank that holds test captions has seen the test."""
        return len(set(self.texts) & set(captions))


def open_bank(
    source: str,
    data: Path | None,
    *,
    size: int = DEFAULT_SIZE,
    seed: int = 0,
    beta: float = QB_NORM_BETA,
    top: int = QB_NORM_TOP,
) -> QueryBank:
    """Open a bank: ``train`` for the training captions of the set that ``data`` configures, else a file.

    A file is JSON lines with ``captions`` (a manifest, say) or, ending in .txt, one caption a line. Raises
    ``ValueError`` that names file and line, ``FileNotFoundError``.
    """
    captions = _training_captions(data) if source == TRAIN_SPLIT else list(_file_captions(Path(source)))
    different = list(dict.fromkeys(text for text in captions if text.strip()))
    if not different:
        raise ValueError(f"the query bank {source} holds no caption; it needs texts that the model was trained on")
    chosen = np.sort(np.random.default_rng(seed).permutation(len(different))[:size])
    return QueryBank(
        texts=tuple(different[i] for i in chosen),
        source=source if source != TRAIN_SPLIT else f"train split of {data}",
        available=len(different),
        seed=seed,
        beta=beta,
        top=top,
    )


def _training_captions(data: Path | None) -> list[str]:
    if data is None or data.suffix not in _CONFIG_SUFFIXES:
        raise ValueError(
            f"a query bank from the train split needs a data set's configuration, got --data {data}; "
            "name a file of training captions instead: --query-bank captions.jsonl"
        )
    config = load_stored_set(data)
    if isinstance(config, DatasetConfig):
        return [text for entry in config.entries("train") for text in entry.captions]
    return [text for clip in read_manifest(config.train) for text in clip.captions]


def _file_captions(path: Path) -> Iterator[str]:
    file = path / "captions.jsonl" if path.is_dir() else path
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if file.suffix == ".txt":
            yield line.strip()
        elif line.strip():
            yield from _captions_of(line, f"{file}, line {number}")


def _captions_of(line: str, where: str) -> list[str]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise DatasetError(f"{where} is not JSON: {error}; a file of bare captions must end in .txt") from error
    captions = record.get("captions") if isinstance(record, dict) else None
    if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
        raise DatasetError(f'{where} must be an object with "captions", a list of texts, got {line[:200]!r}')
    return captions
