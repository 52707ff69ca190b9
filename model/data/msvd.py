"""MSVD: 1,970 short videos with about 40 captions each, split 1,200/100/670; evaluated with all captions.

    annotations/train_list.txt, val_list.txt, test_list.txt     one video id per line
    annotations/raw-captions.pkl                                {id: [[word, …], …]}, a pickle
    root/**/ID.avi                                              or any other video format

A pickle is a program. This one is read by an unpickler that refuses to look up anything at all, so that only built-in
containers, numbers and strings can come out and nothing can be executed.

The reference's evaluator cuts the captions one too early (reference §8, 7); here a caption belongs to its own video.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn

from model.data.annotation_files import caption, expect, read_ids
from model.data.dataset import DatasetConfig, DatasetError, Entry, Split

# What damaged pickles make the unpickler raise, besides its own error.
_DAMAGE = (
    *(pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError),
    *(OverflowError, MemoryError, ImportError, RecursionError),
)


class MsvdConfig(DatasetConfig):
    """MSVD. The released code selects on the validation split, as we do."""

    kind: Literal["msvd"] = "msvd"

    reference_selects_on: ClassVar[Split] = "val"

    @property
    def official_test_videos(self) -> int:
        """See ``DatasetConfig``."""
        return 670

    def entries(self, split: Split) -> list[Entry]:
        """See ``DatasetConfig``."""
        path = self.annotations / "raw-captions.pkl"
        captions = expect(read_plain_pickle(path), dict, str(path))
        ids = read_ids(self.annotations / f"{split}_list.txt")
        return [Entry(video_id=name, captions=_sentences(captions.get(name, []), f"{path}: {name}")) for name in ids]


class _PlainUnpickler(pickle.Unpickler):
    """Builds containers, numbers and strings, and refuses everything that would need a name to be looked up."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it refers to {module}.{name}, and captions are made of lists and words alone")


def read_plain_pickle(path: Path) -> Any:
    """Read a pickle of built-in containers, numbers and strings. Raises ``DatasetError`` for anything else."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; docs/datasets.md says which files a set needs")
    with path.open("rb") as file:
        try:
            return _PlainUnpickler(file, encoding="utf-8").load()  # words of Python 2 are UTF-8 bytes
        except _DAMAGE as error:
            raise DatasetError(f"{path}: not a pickle of plain captions: {error}") from error


def _sentences(sentences: Any, where: str) -> tuple[str, ...]:
    texts = []
    for number, words in enumerate(expect(sentences, list, where)):
        place = f"{where}, sentence {number}"
        texts.append(caption(" ".join(expect(word, str, place) for word in expect(words, list, place)), place))
    return tuple(texts)
