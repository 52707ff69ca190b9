"""What can go wrong with a store. Imports nothing of the package.

StoreError (ValueError)
├── NotAStore            the folder holds no store, or none that was published
├── NewerFormat          the store was written by a newer version of this program
├── StoreLocked          another process is writing
├── SettingsConflict     the options given differ from those the store was built with
├── ModelMismatch        the store was built with another checkpoint
├── Damaged              a file's size, checksum or content is not what was recorded
├── SourceError          a path that was given cannot be indexed
├── CaptionFileError     rows of a caption file that cannot be used, each as ``file:line: reason``
├── FeatureError         features that cannot be stored (overflow of half precision, NaN, wrong shape)
└── IndexFactoryError    a FAISS factory string that does not fit the data
"""

from __future__ import annotations


class StoreError(ValueError):
    """Base of everything a user of a store can be told."""


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


class Damaged(StoreError):  # noqa: N818
    """A file's size, checksum or content differs from what was recorded."""


class SourceError(StoreError):
    """A path that was given cannot be indexed."""


class CaptionFileError(StoreError):
    """Rows of a caption file that cannot be used."""


class FeatureError(StoreError):
    """Features that cannot be stored."""


class IndexFactoryError(StoreError):
    """A FAISS factory string that is unknown or does not fit the data."""
