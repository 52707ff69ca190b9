"""Annotation files → checked values. Every complaint is a ``DatasetError`` that begins with ``FILE:LINE``, or with the
place inside a JSON file.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from model.data.dataset import DatasetError

T = TypeVar("T")


def read_text(path: Path) -> str:
    """Read a UTF-8 file, with or without a byte order mark."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; docs/datasets.md says which files a set needs")
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DatasetError(f"{path}:{line}: not UTF-8 ({error.reason}); convert the file to UTF-8") from error


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield each line that is not blank, with its place ``FILE:LINE``."""
    # Not str.splitlines, which also splits at characters that may occur inside a sentence.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield f"{path}:{number}", line.rstrip("\r")


def read_ids(path: Path) -> list[str]:
    """Read one video id per line; the last line needs no newline. A repeated id is an error."""
    seen: dict[str, str] = {}
    for where, line in read_lines(path):
        add_once(seen, line.strip(), where)
    return _not_empty(list(seen), path)


def read_csv(path: Path, columns: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """Read rows as dictionaries, each with its place. Other columns are allowed."""
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    rows = []
    try:
        absent = [name for name in columns if name not in (reader.fieldnames or ())]
        if absent:
            raise DatasetError(
                f"{path}:1: there is no column {', '.join(absent)}; the columns are {reader.fieldnames or 'none'}"
            )
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if None in row or None in row.values():
                raise DatasetError(f"{where}: the row has not {len(reader.fieldnames or ())} fields as the header has")
            rows.append((where, row))
    except csv.Error as error:
        raise DatasetError(f"{path}:{reader.reader.line_num}: not readable as CSV: {error}") from error
    return _not_empty(rows, path)


def read_json(path: Path) -> Any:
    """Read a JSON file in which no object repeats a key."""
    try:
        return json.loads(read_text(path), object_pairs_hook=lambda pairs: _unique(pairs, path))
    except json.JSONDecodeError as error:
        raise DatasetError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error
    except RecursionError as error:
        raise DatasetError(f"{path}: nested too deeply to be an annotation file") from error


def expect(value: Any, kind: type, where: str) -> Any:
    """Return ``value`` if it is a ``kind``, else raise; an int is a float too, a bool is neither."""
    kinds = (int, float) if kind is float else kind
    if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
        raise DatasetError(f"{where}: expected a {kind.__name__}, got {str(value)[:80]!r}")
    return value


def field(record: Any, name: str, kind: type, where: str) -> Any:
    """Return a field of a JSON object, checked."""
    if name not in expect(record, dict, where):
        raise DatasetError(f"{where}: there is no {name!r}")
    return expect(record[name], kind, f"{where}, {name}")


def caption(value: Any, where: str) -> str:
    """Return a caption without outer white space; it must not be empty."""
    text: str = expect(value, str, where).strip()
    if not text:
        raise DatasetError(f"{where}: the caption is empty")
    return text


def add_once(seen: dict[str, str], video_id: str, where: str) -> None:
    """Note that ``video_id`` occurs at ``where``. Raises if it did before, or is empty."""
    if not video_id:
        raise DatasetError(f"{where}: the video id is empty")
    if video_id in seen:
        raise DatasetError(f"{where}: {video_id} is listed a second time, first at {seen[video_id]}")
    seen[video_id] = where


def _unique(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in record if names.count(name) > 1)
        raise DatasetError(f"{path}: the key {repeated!r} occurs twice in one object")
    return record


def _not_empty(items: list[T], path: Path) -> list[T]:
    if not items:
        raise DatasetError(f"{path}: the file lists no videos")
    return items
