"""Captions and tags from files, and which video each belongs to.

``--captions FILE`` is JSON Lines (one object a line: ``video``, ``captions`` as a list or a single string, optional
``tags``) or CSV (a header with ``captions`` and optionally ``video`` and ``tags``, the latter separated by ``;``).
Beside a video, ``NAME.txt`` holds one caption a line, unless it is what Whisper wrote there: the same words as the
transcript beside it. Every problem is reported as ``file:line: reason``.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from indexer.errors import CaptionFileError
from indexer.locations import Location, leads_out, shard_of
from indexer.sources.discover import Discovery
from indexer.sources.partition import elsewhere, is_elsewhere
from indexer.sources.transcripts import is_of_transcript
from model.durable import open_regular

logger = logging.getLogger(__name__)

FIELDS = frozenset({"video", "captions", "tags"})
SHOWN_PROBLEMS = 20


@dataclass(frozen=True, kw_only=True)
class CaptionEntry:
    """One row of a caption file. ``video`` is as written there, None for captions that belong to no video."""

    where: str
    video: str | None
    captions: tuple[str, ...]
    tags: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """Captions as (video id or None, text), without repetition; tags by video id; rows whose video is not there."""

    captions: list[tuple[str | None, str]]
    tags: dict[str, list[str]]
    unmatched: list[str]


def read_caption_file(path: Path) -> list[CaptionEntry]:
    """Read a ``.jsonl`` or ``.csv`` file. Raises ``CaptionFileError`` that lists every row that cannot be used."""
    readers = {".jsonl": _json_rows, ".ndjson": _json_rows, ".csv": _csv_rows}
    if path.suffix.lower() not in readers:
        raise CaptionFileError(f"{path}: captions come as .jsonl or .csv, got {path.suffix or 'no suffix'!r}")
    entries, problems = [], []
    for line, row in readers[path.suffix.lower()](path):
        try:
            entries.append(_entry(f"{path}:{line}", row))
        except ValueError as error:
            problems.append(f"{path}:{line}: {error}")
    if problems:
        raise CaptionFileError(_listed(problems))
    if not entries:
        raise CaptionFileError(f"{path} holds no caption; expected rows with `video` and `captions`")
    return entries


def read_sidecars(videos: Iterable[Path], *, within: Collection[Path] = ()) -> tuple[list[CaptionEntry], list[str]]:
    """Read ``NAME.txt`` beside each video that has one: one caption a line, empty lines skipped.

    The name may differ from the video's in case, in how accents are composed and in blanks at its end.

    These files were not named by the user, so an unreadable one is not an error: its reason is in the second list. With
    ``within``, files that links lead out of these folders are not read.
    """
    entries, unreadable = [], []
    videos = list(videos)
    named = {video.with_suffix(".txt") for video in videos}
    beside: dict[Path, dict[str, Path]] = {}
    for video in videos:
        path = video.with_suffix(".txt")
        if not path.is_file():
            if video.parent not in beside:
                beside[video.parent] = _texts_in(video.parent, named)
            path = beside[video.parent].get(_likeness(video.stem), path)
        if path == video or not path.is_file():
            continue
        if leads_out(path, within):
            unreadable.append(f"{path}: a link leads out of the folders that may be read")
            continue
        try:
            lines = _text(path).split("\n")
            if is_of_transcript(path, lines):
                continue
        except CaptionFileError as error:
            unreadable.append(str(error))
            continue
        for number, line in enumerate(lines, start=1):
            if text := line.strip():
                entries.append(CaptionEntry(where=f"{path}:{number}", video=str(video), captions=(text,), tags=()))
    return entries, unreadable


def _texts_in(folder: Path, named: Collection[Path]) -> dict[str, Path]:
    """The ``.txt`` files of a folder that are none of ``named``, by what their names are like; the first of equals."""
    try:
        paths = sorted(folder.iterdir(), reverse=True)
    except OSError:
        return {}
    texts = [path for path in paths if path.suffix.rstrip().lower() == ".txt" and path not in named]
    return {_likeness(path.stem): path for path in texts}


class VideoNames:
    """Finds the video that a caption file means: by path, by file name, or by stem, the first that matches.

    A name that matches none as it is written may differ in what systems and people write differently: case, composed or
    decomposed accents, backslashes, blanks at its end.

    ``videos`` are (path, folder that was indexed, video id). A name that stands for several different videos is
    refused; the same bytes under several paths are one video.
    """

    def __init__(self, videos: Iterable[tuple[Path, Path, str]], whole_names: Mapping[str, str] | None = None) -> None:
        """``whole_names`` are other names that must be written as they are (URLs, say), with their video ids."""
        self._whole_names = dict(whole_names or {})
        self._by_path: dict[str, str] = {}
        self._by_name: list[dict[str, dict[str, Path]]] = [defaultdict(dict) for _ in range(6)]
        for path, root, video_id in videos:
            self._by_path[str(path)] = video_id
            relative = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
            written = (relative, path.name, path.stem)
            for names, key in zip(self._by_name, (*written, *map(_likeness, written)), strict=True):
                names[key][video_id] = path

    def find(self, name: str, folder: Path) -> str | None:
        """The id of the video called ``name`` in a file in ``folder``; None if there is none.

        Raises ``ValueError`` if several videos go by that name.
        """
        exact = self._whole_names.get(name) or self._by_path.get(str(folder / name))
        if exact is not None:
            return exact
        for place, names in enumerate(self._by_name):
            if found := names.get(name if place < 3 else _likeness(name)):
                if len(found) > 1:
                    paths = ", ".join(str(path) for path in sorted(found.values())[:3])
                    raise ValueError(f"{name!r} stands for {len(found)} videos ({paths}); write the path instead")
                return next(iter(found))
        return None


def _likeness(name: str) -> str:
    """Equal for names that are written differently on different systems."""
    slashes = name.replace("\\", "/").removeprefix("./")
    return "/".join(part.rstrip(" .") for part in unicodedata.normalize("NFC", slashes).casefold().split("/"))


def resolve(entries: Sequence[CaptionEntry], names: VideoNames, *, partial: bool = False) -> Resolved:
    """Attach captions to videos. Raises ``CaptionFileError`` for ambiguous names, and if no row at all matches.

    ``partial``: there are videos that ``names`` does not know, so no row has to match.
    """
    captions: dict[tuple[str | None, str], None] = {}
    tags: dict[str, list[str]] = defaultdict(list)
    problems, unmatched = [], []
    for entry in entries:
        try:
            video_id = None if entry.video is None else names.find(entry.video, _folder(entry))
        except ValueError as error:
            problems.append(f"{entry.where}: {error}")
            continue
        if video_id is None and entry.video is not None:
            unmatched.append(f"{entry.where}: there is no video {entry.video!r} among those indexed")
            continue
        captions.update(dict.fromkeys((video_id, text) for text in entry.captions))
        if video_id is not None and entry.tags:
            tags[video_id] += entry.tags
    if problems:
        raise CaptionFileError(_listed(problems))
    if entries and len(unmatched) == len(entries) and not partial:
        raise CaptionFileError(
            _listed(unmatched) + "\nno row matched: `video` must be a path, a file name or a stem of an indexed video"
        )
    return Resolved(captions=list(captions), tags=dict(tags), unmatched=unmatched)


def _folder(entry: CaptionEntry) -> Path:
    return Path(entry.where.rpartition(":")[0]).absolute().parent


def _json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                yield number, error


def _csv_rows(path: Path) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(io.StringIO(_text(path), newline=""), strict=True)
    if "captions" not in (reader.fieldnames or ()):
        raise CaptionFileError(f"{path}:1: expected a header with `video` and `captions`, got {reader.fieldnames}")
    while True:
        try:
            row: dict[Any, Any] = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield reader.line_num, error
            return
        if None in row:
            yield reader.line_num, ValueError("the row has more fields than the header; quote commas inside captions")
            continue
        if "video" in row:
            row["video"] = row["video"] or None
        row["tags"] = [tag for tag in (row.get("tags") or "").split(";") if tag.strip()]
        yield reader.line_num, row


def _entry(where: str, row: Any) -> CaptionEntry:
    if isinstance(row, Exception):
        raise ValueError(str(row)) from row
    if not isinstance(row, Mapping):
        raise ValueError(f"expected an object with `video` and `captions`, got {type(row).__name__}")
    if "captions" not in row and "tags" not in row:
        raise ValueError(f"`captions` is missing; the row has {sorted(map(str, row))}")
    extra = sorted(set(row) - FIELDS)
    if extra and "video" not in row:  # one of them may be a misspelt `video`
        raise ValueError(f"`video` is missing, and {extra} are not read; for captions of no video leave `video` empty")
    if extra:
        logger.debug("%s: fields %s are not used", where, extra)
    video = row.get("video")
    if video is not None and (not isinstance(video, str) or not video.strip()):
        raise ValueError(f"`video` must be a path, a name or null, got {video!r}")
    captions, tags = strings_of(row, "captions"), strings_of(row, "tags")
    if not captions and not tags:
        raise ValueError("`captions` is empty")
    return CaptionEntry(where=where, video=video, captions=captions, tags=tags)


def strings_of(row: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """The texts under a key, which may be one text, a list of them or missing. Raises ``ValueError``.

    JSON may hold halves of a character, which can be neither stored nor encoded.
    """
    value = row.get(key)
    values = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(text, str) and text.strip() for text in values):
        raise ValueError(f"`{key}` must be a text or a list of texts, none of them empty, got {value!r}")
    if any("\ud800" <= character <= "\udfff" for text in values for character in text):
        raise ValueError(f"`{key}` contains half of a character (a lone surrogate)")
    return tuple(text.strip() for text in values)


def _text(path: Path) -> str:
    try:
        with io.TextIOWrapper(open_regular(path), encoding="utf-8-sig") as file:
            return file.read()
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise CaptionFileError(f"{path}:{line}: not valid UTF-8 ({error.reason}); save the file as UTF-8") from error
    except OSError as error:
        raise CaptionFileError(f"{path}: {error.strerror}") from error


def _listed(problems: Sequence[str]) -> str:
    shown = "\n".join(problems[:SHOWN_PROBLEMS])
    return shown if len(problems) <= SHOWN_PROBLEMS else f"{shown}\n… and {len(problems) - SHOWN_PROBLEMS} more"


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
