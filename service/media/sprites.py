"""Sprites: the pictures of a segment, or of moments spread over a whole video, as tiles of one JPEG.

In: a video's file and times. Out: the JPEG, decoded in one pass in the sandbox, and kept on the disk in a folder of
bounded size, from which the least recently used are removed. A page then asks once for what it would ask for dozens of
times.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from service.errors import NotFound, ServiceError, Unprocessable
from service.media.files import PictureMaker
from service.media.pictures import JPEG_QUALITY, SPRITE_COLUMNS

if TYPE_CHECKING:
    from indexer.store.records import Video
    from service.media.sandbox import Sandbox

logger = logging.getLogger(__name__)

OVERVIEW_TILES = 24
"""Tiles of the sprite of a whole video: tile i shows the middle of the i-th of so many equal parts."""
TIME_OF_PICTURES = 4
"""A sprite may take as long as so many thumbnails: what lies between its frames is decoded once."""

_SLACK = 0.1  # share of the bound that may be added before the folder is looked at again


@dataclass(frozen=True, kw_only=True)
class WantedSprite:
    """A sprite that is wanted; ``name`` differs wherever its picture does. ``check_clock`` as in ``DecodeLimits``."""

    video_id: str
    path: Path
    at_seconds: tuple[float, ...]
    side: int
    check_clock: bool = True

    @property
    def name(self) -> str:
        """The name of the file that is made, without its ending."""
        shape = json.dumps([self.at_seconds, self.side, SPRITE_COLUMNS, JPEG_QUALITY]).encode()
        return f"{self.video_id}-{hashlib.sha256(shape).hexdigest()[:16]}"


def sprite_times(video: Video, segment: int | None) -> tuple[float, ...]:
    """When the tiles of a sprite are shown: the frames that are indexed of a segment, or moments of the whole video.

    Raises ``NotFound`` for a segment that the video does not have, ``Unprocessable`` for a video that is not indexed.
    """
    if video.duration_seconds is None:
        raise Unprocessable(
            f"video {video.video_id} is not indexed ({video.state})",
            expected="a video that is indexed",
            next_step="wait for its job, or see in `reason` of the video why it failed",
        )
    if segment is None:
        return tuple((number + 0.5) / OVERVIEW_TILES * video.duration_seconds for number in range(OVERVIEW_TILES))
    for one in video.segments:
        if one.number == segment:
            return tuple(one.timestamps_seconds.tolist())
    raise NotFound(
        f"video {video.video_id} has no segment {segment}",
        expected="the number of one of its segments",
        next_step=f"see `segments` in GET /v1/videos/{video.video_id}",
    )


class Sprites(PictureMaker[WantedSprite]):
    """Makes sprites with tiles of at most ``side`` pixels.

    Keeps ``cache_bytes`` of them in ``folder``; with 0 none is kept. Several services may share the folder.
    """

    def __init__(self, folder: Path, *, side: int, cache_bytes: int, max_queue: int, sandbox: Sandbox) -> None:
        super().__init__("sprite", max_queue=max_queue)
        self.folder = folder
        self.side = side
        self.cache_bytes = cache_bytes
        self.made = 0
        self._sandbox = sandbox
        self._lock = threading.Lock()
        self._added_bytes: float = float("inf")  # since the folder was looked at

    def kept(self, wanted: WantedSprite) -> bytes | None:
        """The JPEG if it was made before."""
        place = self._place(wanted)
        try:
            picture = place.read_bytes()
        except OSError:  # not there, or a folder that cannot be read
            return None
        with suppress(OSError):
            os.utime(place)  # used now
        return picture

    def forget(self, video_id: str) -> None:
        """Remove the sprites of a video, if there are any."""
        for path in self.folder.glob(f"{video_id}-*.jpg"):
            path.unlink(missing_ok=True)

    def _place(self, wanted: WantedSprite) -> Path:
        return self.folder / f"{wanted.name}.jpg"

    def make(self, wanted: WantedSprite) -> bytes:
        """The JPEG, kept or made. Raises ``Unprocessable`` if the frames cannot be decoded within the limits."""
        picture = self.kept(wanted)  # made for another request while this one waited
        if picture is not None:
            return picture
        try:
            with wanted.path.open("rb") as file:
                picture = self._sandbox.sprite(
                    file, at_seconds=wanted.at_seconds, side=wanted.side, check_clock=wanted.check_clock
                )
        except (OSError, ServiceError) as error:
            raise Unprocessable(
                f"no sprite can be made: {error}",
                expected="a video whose frames decode within --thumbnail-seconds and --thumbnail-max-pixels",
                next_step="ask for single pictures with …/thumbnail, or raise --thumbnail-seconds",
            ) from error
        with self._lock:
            self.made += 1
        self._keep(wanted, picture)
        return picture

    def _keep(self, wanted: WantedSprite, picture: bytes) -> None:
        if len(picture) > self.cache_bytes:
            return
        with self._lock:
            try:
                self._make_room(len(picture))
                self._write(self._place(wanted), picture)
                self._added_bytes += len(picture)
            except OSError as error:  # a full disk, or a folder that cannot be written to
                logger.warning("a sprite was made and could not be kept: %s", error)

    def _write(self, place: Path, picture: bytes) -> None:
        with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".part", delete=False) as part:
            torn = Path(part.name)
            try:
                part.write(picture)
                part.flush()
                torn.replace(place)
            finally:
                torn.unlink(missing_ok=True)

    def _make_room(self, size_bytes: int) -> None:
        """Look at the folder whenever a tenth of the bound was added: remove those that were not used for longest.

        What others add to the same folder is counted when it is looked at. Files that were begun and not finished, by a
        service that was killed, are removed like the others.
        """
        if self._added_bytes + size_bytes <= _SLACK * self.cache_bytes:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = []
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):  # another service removed it
                status = path.stat()
                kept.append((status.st_mtime_ns, status.st_size, path))
        excess = sum(size for _, size, _ in kept) + size_bytes - (1 - _SLACK) * self.cache_bytes
        for _, size, path in sorted(kept):
            if excess <= 0:
                break
            path.unlink(missing_ok=True)
            excess -= size
        self._added_bytes = 0
