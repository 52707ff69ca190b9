"""A store's own files: videos that it keeps in its folder ``media``, whatever path the store is reached by.

The catalogue names them relative to the store (``media/<video id>.<ending>``), so that they move with it. Catalogues
before format 4 named them by absolute paths; such a name counts as the own file wherever the store has that file.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePath

FOLDER = "media"
_NAME = re.compile(r"([0-9a-f]{64})\.[a-z0-9]{2,4}")
_RECORD = ".json"


def video_of(name: str) -> str | None:
    """The id of the video that a file of this name in ``media`` holds; None for other files."""
    match = _NAME.fullmatch(name)
    return None if match is None or name.endswith(_RECORD) else match[1]


def recorded(store: Path, path: str, video_id: str) -> str:
    """How the catalogue of ``store`` names the place ``path`` of a video."""
    place = PurePath(path)
    if video_of(place.name) == video_id and place.parent.name == FOLDER:
        own = store.absolute() / FOLDER
        if place.parent == own or Path(path).parent.resolve() == own.resolve():
            return f"{FOLDER}/{place.name}"
    return path


def resolved(store: Path, name: str, video_id: str) -> str:
    """The path of a place that the catalogue of ``store`` names; the inverse of ``recorded``."""
    place = PurePath(name)
    if place.parent.name != FOLDER or video_of(place.name) != video_id:
        return name
    own = store.absolute() / FOLDER / place.name
    return str(own) if not place.is_absolute() or own.exists() else name
