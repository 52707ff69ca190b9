"""When, where and with what a video was recorded, as its container says.

Read are the keys of FFmpeg for QuickTime and MP4 (Apple's and Android's), Matroska and AVI: ``creation_time`` and
``com.apple.quicktime.creationdate``, ``date``, makes and models, and places as ISO 6709. Devices and programs write
these as they like, so implausible values count as unknown: dates before ``EARLIEST`` (clocks that were never set say
1904 or 1970) and in the future. Texts are cut.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

EARLIEST = datetime(1971, 1, 1, tzinfo=UTC)
MOST_CHARS = 100
_TOMORROW = timedelta(days=1)  # cameras keep local time and call it UTC

_DATES = ("com.apple.quicktime.creationdate", "creation_time", "date", "date_recorded", "date-eng", "icrd")
_MODELS = ("com.apple.quicktime.model", "com.android.model", "model", "model-eng")
_MAKES = ("com.apple.quicktime.make", "com.android.manufacturer", "make", "make-eng")
_PLACES = ("com.apple.quicktime.location.iso6709", "location", "location-eng")
_POINT = re.compile(r"([+-]\d{2}(?:\.\d{1,10})?)([+-]\d{3}(?:\.\d{1,10})?)")


@dataclass(frozen=True, kw_only=True)
class Recording:
    """``recorded_seconds``: Unix time; ``camera``: make and model; degrees, north and east positive. None: not known.

    ``latitude`` and ``longitude`` are both known, or neither.
    """

    recorded_seconds: float | None = None
    camera: str | None = None
    latitude: float | None = None
    longitude: float | None = None

    def to_metadata(self) -> dict[str, str]:
        """Metadata that ``recording_of`` reads as the same, for another process."""
        said = {}
        if self.recorded_seconds is not None:
            said["creation_time"] = datetime.fromtimestamp(self.recorded_seconds, UTC).isoformat()
        if self.camera is not None:
            said["model"] = self.camera
        if self.latitude is not None and self.longitude is not None:
            said["location"] = f"{self.latitude:+011.7f}{self.longitude:+012.7f}"
        return said


UNKNOWN_RECORDING = Recording()


def recording_of(metadata: Mapping[str, str], of_stream: Mapping[str, str] | None = None) -> Recording:
    """What the metadata of a container say, or else those of its video stream."""
    said = {key.lower(): value for key, value in {**(of_stream or {}), **metadata}.items()}

    def first(names: tuple[str, ...]) -> str:
        return next((text for name in names if (text := _plain(said.get(name, "")))), "")

    dates = (_moment(said[name]) for name in _DATES if name in said)
    places = (_point(said[name]) for name in _PLACES if name in said)
    make, model = first(_MAKES), first(_MODELS)
    camera = model if model.casefold().startswith(make.casefold()) else f"{make} {model}".strip()
    latitude, longitude = next((place for place in places if place is not None), (None, None))
    return Recording(
        recorded_seconds=next((date for date in dates if date is not None), None),
        camera=camera[:MOST_CHARS] or None,
        latitude=latitude,
        longitude=longitude,
    )


def _plain(text: str) -> str:
    """In one line, without control characters, NFC."""
    kept = "".join(
        " " if unicodedata.category(char).startswith(("C", "Z")) else char for char in text[: 4 * MOST_CHARS]
    )
    return unicodedata.normalize("NFC", " ".join(kept.split()))[:MOST_CHARS]


def _moment(text: str) -> float | None:
    """Unix time of an ISO 8601 date or date and time; without a zone it is taken as UTC."""
    text = text.strip()[:40]
    if re.fullmatch(r"\d{4}([-/.]?\d{2}){2}", text):
        text = re.sub(r"[/.]", "-", text)
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    found = found if found.tzinfo is not None else found.replace(tzinfo=UTC)
    try:
        return found.timestamp() if EARLIEST <= found <= datetime.now(UTC) + _TOMORROW else None
    except OverflowError:  # with its zone the date is outside the range of datetime
        return None


def _point(text: str) -> tuple[float, float] | None:
    """Degrees of an ISO 6709 place in decimal degrees, as phones write it."""
    found = _POINT.match(text.strip())
    if found is None:
        return None
    latitude, longitude = float(found[1]), float(found[2])
    return (latitude, longitude) if abs(latitude) <= 90 and abs(longitude) <= 180 else None
