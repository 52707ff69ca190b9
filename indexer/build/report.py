"""What an indexing run did, filled in by its phases."""

from __future__ import annotations

from dataclasses import dataclass, field

from indexer.store.config import Manifest


@dataclass(kw_only=True)
class BuildReport:
    """Counts of one run, and what its user should know.

    ``failed`` are files, shards or places in shards that could not be read, with the reason; ``unmatched`` are rows of
    captions without a video. ``manifest`` is that of the current generation; None if there is nothing to search yet.
    """

    found: int = 0
    indexed: int = 0
    captions: int = 0
    removed: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    manifest: Manifest | None = None

    @property
    def complete(self) -> bool:
        """Whether everything that was given could be used."""
        return not self.failed and not self.unmatched
