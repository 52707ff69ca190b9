"""Which part of a corpus one of several machines indexes: ``i/n``, by a hash of each file's name.

The parts are disjoint and cover everything, whichever machine computes them: the hash is of the path below the folder
that was named (``a/b.mp4`` of ``/mnt/x/clips/a/b.mp4``), of a single file's name, or of a tar shard's or a URL's whole
name. File contents do not matter, so no file has to be read to know its part. ``emcl index merge`` combines the stores.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path

from indexer.errors import SourceError
from indexer.sources.discover import Discovery, FoundFile

_FORM = re.compile(r"([0-9]{1,9})/([0-9]{1,9})")


@dataclass(frozen=True, kw_only=True)
class Partition:
    """Part ``number`` of ``count``, counted from 1."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Partition:
        """From ``i/n`` with 1 <= i <= n. Raises ``SourceError``."""
        match = _FORM.fullmatch(text)
        number, count = (int(part) for part in match.groups()) if match else (0, 0)
        if not 1 <= number <= count:
            raise SourceError(f"--partition is {text!r}; expected i/n with 1 <= i <= n, such as 1/4, 2/4, 3/4 and 4/4")
        return cls(number=number, count=count)

    def holds(self, key: str) -> bool:
        """Whether what is named ``key`` belongs to this part."""
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.number - 1


WHOLE = Partition(number=1, count=1)
"""All of it."""

_ELSEWHERE = "elsewhere:"


def split(discovery: Discovery, partition: Partition) -> tuple[Discovery, Discovery]:
    """What belongs to a part, and what is left to the others; both know all folders that were searched."""

    def part(mine: bool) -> Discovery:
        return replace(
            discovery,
            files=[file for file in discovery.files if partition.holds(_key(file)) == mine],
            packed=[source for source in discovery.packed if partition.holds(source.key) == mine],
        )

    return part(True), part(False)


def elsewhere(path: Path) -> str:
    """Placeholder for the id of a video that another part reads."""
    return f"{_ELSEWHERE}{path}"


def is_elsewhere(video_id: str | None) -> bool:
    """Whether ``elsewhere`` made it."""
    return video_id is not None and video_id.startswith(_ELSEWHERE)


def _key(file: FoundFile) -> str:
    return file.path.relative_to(file.root).as_posix()
