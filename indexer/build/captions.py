"""Which video each caption of a run belongs to, also where other machines index other parts of the corpus."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from indexer.locations import Location, shard_of
from indexer.sources.captions import CaptionEntry, Resolved, VideoNames, read_sidecars, resolve
from indexer.sources.discover import Discovery
from indexer.sources.partition import elsewhere, is_elsewhere


@dataclass(frozen=True, kw_only=True)
class Attached:
    """Captions and tags of videos that are here; what could not be used; notes for the user."""

    texts: Resolved
    unmatched: list[str]
    notes: list[str]


def attach(
    locations: Sequence[Location],
    entries: list[CaptionEntry],
    mine: Discovery,
    others: Discovery,
    *,
    within: Collection[Path] = (),
) -> Attached:
    """Attach captions of a file and of ``NAME.txt`` beside videos; ``others`` is what other parts index.
    Those beside videos are read only in the folders ``within``, if there are any.

    Raises ``CaptionFileError`` for names that stand for several videos, and if no row at all matches.
    """
    sidecars, unreadable = read_sidecars((file.path for file in mine.files), within=within)
    if not entries and not sidecars:
        return Attached(texts=Resolved(captions=[], tags={}, unmatched=[]), unmatched=unreadable, notes=[])
    names = VideoNames(_named(locations, mine, others), {place.path: place.video_id for place in locations})
    found = resolve(sidecars + entries, names, partial=bool(others.packed))
    captions = [caption for caption in found.captions if not is_elsewhere(caption[0])]
    tags = {video_id: texts for video_id, texts in found.tags.items() if not is_elsewhere(video_id)}
    texts = Resolved(captions=captions, tags=tags, unmatched=found.unmatched)
    if others.packed and found.unmatched:  # this part does not know what is in the shards of others
        notes = [f"{len(found.unmatched)} rows of captions name no video of this part"]
        return Attached(texts=texts, unmatched=unreadable, notes=notes)
    return Attached(texts=texts, unmatched=unreadable + found.unmatched, notes=[])


def _named(locations: Sequence[Location], mine: Discovery, others: Discovery) -> Iterator[tuple[Path, Path, str]]:
    """Every file and member by the names that captions may call it, with the folder that was given, and its video."""
    roots = {str(file.path): file.root for file in mine.files}
    for place in locations:
        if shard := shard_of(place.path):
            yield Path(place.path.removeprefix(f"{shard}!")), Path(), place.video_id
        else:
            yield Path(place.path), roots.get(place.path, Path(place.path).parent), place.video_id
    for file in others.files:
        yield file.path, file.root, elsewhere(file.path)
