"""Errors of a store. Imports nothing of the package.

StoreError (ValueError)
├── NotAStore            the folder holds no store, or none that was published
├── NewerFormat          the store was written by a newer version of this program
├── StoreLocked          another process is writing
├── SettingsConflict     the options given differ from those the store was built with
├── ModelMismatch        the store was built with another checkpoint
│   └── WrongPreprocessing  of the same weights, but of frames that were prepared in another way
├── Damaged              a file's size, checksum or content is not what was recorded
├── SourceError          a path that was given cannot be indexed
├── CaptionFileError     rows of a caption file that cannot be used, each as ``file:line: reason``
├── TranscriptError      a transcript that cannot be read
├── FeatureError         features that cannot be stored (overflow of half precision, NaN, wrong shape)
├── IndexFactoryError    a FAISS factory string that does not fit the data
└── EngineError          an external vector engine cannot be used for this store
    ├── EngineUnavailable   it cannot be reached, or refuses
    ├── EngineBusy          another process is changing the collections of the store
    └── EngineBehind        it does not hold enough of the store yet
"""

from __future__ import annotations


class StoreError(ValueError):
    """Base of all errors of a store that a user can act on."""


class NotAStore(StoreError):  # noqa: N818 - the name says what it is
    """The folder holds no store, or nothing has been published in it yet."""


class NewerFormat(StoreError):  # noqa: N818
    """The store was written by a newer version of this program."""


class StoreLocked(StoreError):  # noqa: N818
    """Another process is writing to the store."""


class SettingsConflict(StoreError):  # noqa: N818
    """The options given differ from those that the store records."""


class ModelMismatch(StoreError):  # noqa: N818
    """The store was built with another checkpoint than the one that was loaded."""


class WrongPreprocessing(ModelMismatch):
    """The store was built with the same weights, by a release that prepared its frames in another way."""

    def __init__(self, store: str, *, model: str, pretrained: str | None) -> None:
        named = f"--model {model}" + (f" --pretrained {pretrained}" if pretrained else "")
        super().__init__(
            f"{store} was built with the weights that are loaded ({named}), but by a release that cropped and resized "
            "every model's frames as OpenAI's CLIP does; these weights were trained on frames prepared in another "
            "way, so the stored features are wrong. Index the videos again "
            f"into a new store: emcl index build VIDEOS --store NEW {named}"
        )


class Damaged(StoreError):  # noqa: N818
    """A file's size, checksum or content differs from what was recorded."""


class SourceError(StoreError):
    """A path that was given cannot be indexed."""


class CaptionFileError(StoreError):
    """Rows of a caption file that cannot be used."""


class TranscriptError(StoreError):
    """A transcript that cannot be read, or is larger than one may be."""


class FeatureError(StoreError):
    """Features that cannot be stored."""


class IndexFactoryError(StoreError):
    """A FAISS factory string that is unknown or does not fit the data."""


class EngineError(StoreError):
    """An external vector engine cannot be used for this store."""


class EngineUnavailable(EngineError):  # noqa: N818
    """The engine cannot be reached, or refuses."""


class EngineBusy(EngineError):  # noqa: N818
    """Another process is changing the collections of the store."""


class EngineBehind(EngineError):  # noqa: N818
    """The engine does not hold enough of the store yet."""
