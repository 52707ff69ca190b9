"""The bytes of indexed videos: where the file is, what type it has, and pictures of moments.

Paths come from the catalogue alone, never from a request.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from indexer.locations import protocol_of, shard_of
from service.errors import Gone, RangeNotSatisfiable, ServiceError, Unprocessable
from service.search.batching import Batcher
from service.search.cache import LRUCache

if TYPE_CHECKING:
    from indexer.store.records import Video
    from service.media.sandbox import Sandbox

W = TypeVar("W")

_SNIFF_BYTES = 64
_MAX_AT_ONCE = 4  # each may take as much memory as decoding an upload
_NUMBER = re.compile(r"[0-9]{1,18}")  # more digits than a file of any size has positions
_BY_SUFFIX = {
    ".avi": "video/x-msvideo",
    ".flv": "video/x-flv",
    ".gif": "image/gif",
    ".mpeg": "video/mpeg",
    ".mpg": "video/mpeg",
    ".ogv": "video/ogg",
    ".ts": "video/mp2t",
    ".wmv": "video/x-ms-wmv",
}


def find_file(video: Video) -> Path:
    """A path where the video's file still exists, unchanged in size. Raises ``Gone``."""
    files = [Path(name) for name in video.paths if protocol_of(name) is None and shard_of(name) is None]
    for path in files:
        if path.is_file() and path.stat().st_size == video.size_bytes:
            return path
    if video.paths and not files:
        raise Gone(
            f"video {video.video_id} was indexed from a tar shard or a URL, and its media is not local",
            expected="a video that was indexed from a file, or with its media kept",
            next_step="index its source again with `emcl index build --keep-media`, which copies it into the store",
        )
    raise Gone(
        f"the file of video {video.video_id} is no longer where it was indexed, or has changed",
        expected=f"the {video.size_bytes} bytes that were indexed",
        next_step="put the file back, or index the place where it is now with `emcl index add`",
    )


def media_type(path: Path) -> str:
    """The content type by what the file begins with, else by its name."""
    with path.open("rb") as file:
        start = file.read(_SNIFF_BYTES)
    if start[4:8] == b"ftyp":
        return "video/quicktime" if start[8:12] == b"qt  " else "video/mp4"
    if start.startswith(b"\x1a\x45\xdf\xa3"):  # EBML, of which WebM is one kind
        return "video/webm" if b"webm" in start else "video/x-matroska"
    return _BY_SUFFIX.get(path.suffix.lower(), "application/octet-stream")


def check_range(header: str | None, size_bytes: int) -> None:
    """Raise ``RangeNotSatisfiable`` for a ``Range`` header that asks for nothing of a file of this size.

    Headers of another form than ``bytes=FIRST-LAST``, ``FIRST-`` or ``-COUNT`` (several with commas) are refused too;
    other units than bytes are ignored, as RFC 9110 wants it.
    """
    if header is None:
        return
    unit, _, ranges = header.partition("=")
    if unit.strip().lower() != "bytes":
        return
    if not all(_within(part.strip(), size_bytes) for part in ranges.split(",")):
        raise RangeNotSatisfiable(
            f"the range {header[:100]!r} has nothing of a file of {size_bytes} bytes",
            expected=f"bytes=FIRST-LAST with FIRST <= LAST and FIRST < {size_bytes}",
            next_step="ask without a Range header, or for a range inside the file",
            headers={"Content-Range": f"bytes */{size_bytes}"},
        )


def _within(part: str, size_bytes: int) -> bool:
    first, dash, last = part.partition("-")
    if not dash or not (first or last) or not all(_NUMBER.fullmatch(number) for number in (first, last) if number):
        return False
    if not first:
        return int(last) > 0 and size_bytes > 0
    return int(first) < size_bytes and (not last or int(first) <= int(last))


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A picture that is wanted: ``milliseconds`` from the first frame; ``check_clock`` as in ``DecodeLimits``."""

    video_id: str
    path: Path
    milliseconds: int
    check_clock: bool = True


class PictureMaker(ABC, Generic[W]):
    """Makes pictures of what is wanted, as many at a time as there are cores, at most four.

    Start it inside a running event loop, and close it before the loop ends.
    """

    def __init__(self, name: str, *, max_queue: int) -> None:
        at_once = min(_MAX_AT_ONCE, os.cpu_count() or 1)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"{name}s")
        self._makers = ThreadPoolExecutor(at_once, thread_name_prefix=name)
        self.batcher: Batcher[W, bytes | Unprocessable] = Batcher(
            lambda wanted: list(self._makers.map(self._outcome, wanted)),
            executor=self._executor,
            max_batch=at_once,
            max_wait_seconds=0,
            max_queue=max_queue,
            name=name,
        )

    def start(self) -> None:
        """Begin to make pictures."""
        self.batcher.start()

    async def close(self) -> None:
        """Stop; waiting callers get ``Overloaded``."""
        await self.batcher.close()
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._makers.shutdown(wait=False, cancel_futures=True)

    async def picture(self, wanted: W) -> bytes:
        """The JPEG. Raises ``Overloaded``, or ``Unprocessable`` if its frames cannot be decoded within the limits."""
        outcome = await self.batcher.submit(wanted)
        if isinstance(outcome, Unprocessable):
            raise outcome
        return outcome

    @abstractmethod
    def make(self, wanted: W) -> bytes:
        """Make the JPEG, in the calling thread. Raises ``Unprocessable``."""

    def _outcome(self, wanted: W) -> bytes | Unprocessable:
        """A refusal is returned, not raised: the batcher would make all pictures of a batch with an error again."""
        try:
            return self.make(wanted)
        except Unprocessable as error:
            return error


class Thumbnails(PictureMaker[Moment]):
    """Makes JPEG pictures of moments and keeps the last ones.

    Every file is decoded in a process of its own, in ``sandbox``, whether it was uploaded or indexed: a single frame
    can take gigabytes, or, far from the last key frame, minutes.
    """

    def __init__(self, *, width: int, cache_bytes: int, max_queue: int, sandbox: Sandbox) -> None:
        super().__init__("thumbnail", max_queue=max_queue)
        self._width = width
        self._sandbox = sandbox
        self.cache: LRUCache[tuple[str, int], bytes] = LRUCache(cache_bytes, weigh=len)

    async def picture(self, moment: Moment) -> bytes:
        """The JPEG of a moment. Raises ``Overloaded``, or ``Unprocessable`` if no frame can be decoded there."""
        key = (moment.video_id, moment.milliseconds)
        picture = self.cache.get(key)
        if picture is None:
            picture = await super().picture(moment)
            self.cache.put(key, picture)
        return picture

    def make(self, moment: Moment) -> bytes:
        """The JPEG of a moment. Raises ``Unprocessable`` where no frame decodes."""
        seconds = moment.milliseconds / 1000
        try:
            with moment.path.open("rb") as file:
                return self._sandbox.picture(
                    file, at_seconds=seconds, width=self._width, check_clock=moment.check_clock
                )
        except (OSError, ServiceError) as error:
            raise Unprocessable(
                f"no picture can be made at {seconds:g} s: {error}",
                expected="a moment with a frame that decodes",
                next_step="ask for another moment, or index the video again",
            ) from error
