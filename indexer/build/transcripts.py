"""Transcripts of a run: files beside videos and in a named folder become cues in the catalogue.

Nothing here ends a run: a file that cannot be used is reported, and its video keeps the transcript that it had.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from indexer.errors import TranscriptError
from indexer.locations import inode_of
from indexer.sources.transcripts import TranscriptFile, TranscriptFolders, is_whisper, parse, read_file
from indexer.store.records import TranscriptRow

if TYPE_CHECKING:
    from indexer.locations import Location
    from indexer.store.writer import StoreWriter

READING = "1"
"""Changes whenever the same file would be read differently, so that files are read again."""

VIDEOS_AT_ONCE = 100
"""Videos whose transcripts are committed together."""


@dataclass(kw_only=True)
class Attached:
    """What became of transcript files: how many were read, what could not be used, notes for the user."""

    count: int = 0
    unused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def attach_transcripts(
    writer: StoreWriter, found: Sequence[Location], named: Path | None, *, within: Collection[Path] = ()
) -> Attached:
    """Store the transcripts of indexed videos among ``found`` whose files are new or changed, and forget those whose
    files are gone. ``named`` is a folder with more, of all videos of the store; with ``within``, links that lead out of
    these folders are not followed.
    """
    report = Attached()
    folders = TranscriptFolders(named, within=within)
    places: dict[str, list[Path]] = defaultdict(list)
    for location in found if named is None else writer.catalogue.locations():
        places[location.video_id].append(Path(location.path))
    states = writer.catalogue.states()
    videos = [video_id for video_id in places if states.get(video_id) == "indexed"]
    for start in range(0, len(videos), VIDEOS_AT_ONCE):
        rows: dict[str, list[TranscriptRow]] = {}
        gone: list[tuple[str, str]] = []
        for video_id in videos[start : start + VIDEOS_AT_ONCE]:
            files = {file.language: file for path in reversed(places[video_id]) for file in folders.of(path)}
            known = writer.catalogue.transcript_sources(video_id)
            rows[video_id] = [row for file in files.values() if (row := _read(file, known.get(file.language), report))]
            gone += [
                (video_id, language)
                for language, (origin, source, _) in known.items()
                if origin == "file" and language not in files and _is_gone(Path(source))
            ]
        writer.set_transcripts(rows, gone)
        report.count += sum(map(len, rows.values()))
    report.unused += folders.problems
    return report


def _read(file: TranscriptFile, known: tuple[str, str, str] | None, report: Attached) -> TranscriptRow | None:
    """The transcript in a file; None if it is there already, gives way to another, or cannot be used."""
    path = file.path
    try:
        status = path.stat()
    except OSError as error:
        report.unused.append(f"{path}: {error.strerror}")
        return None
    version = f"{READING} {status.st_size} {status.st_mtime_ns} {inode_of(status)}"
    if known is not None:
        origin, source, its_version = known
        if origin == "http" or (source, its_version) == (str(path), version):
            return None
        others = source != str(path) and Path(source).parent != path.parent
        if origin == "file" and others and not file.named and not _is_gone(Path(source)):
            return None  # of a folder that an earlier run was given
    try:
        content = read_file(path)
        if path.suffix.lower() == ".json" and not file.named and not is_whisper(content):
            return None
        parsed = parse(content, path.suffix.lower())
    except TranscriptError as error:
        report.unused.append(f"{path}: {error}")
        return None
    report.notes += [f"{path}: {note}" for note in parsed.notes]
    if not parsed.cues:
        report.unused.append(f"{path}: holds no text")
        return None
    return TranscriptRow(language=file.language, origin="file", source=str(path), version=version, cues=parsed.cues)


def _is_gone(source: Path) -> bool:
    """Whether a file was removed, and not its whole folder, whose disk may not be mounted."""
    return not source.exists() and source.parent.exists()
