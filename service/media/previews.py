"""Previews: what browsers cannot play (HEVC, MPEG-4 part 2 and others) once more as small H.264. And clips: a moment as
a file of its own (``service.media.clips``).

Both are made on the first request, in a process of its own with limits on processor time, memory, wall time
and the size of what it writes (``service.media.preview_worker``), and kept in a folder of bounded size, from which the
least recently used are removed.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from service import errors
from service.errors import NotFound, TooLarge, Unprocessable
from service.media.clips import Clip
from service.media.fork_server import Child, ForkServer
from service.search.batching import Batcher
from service.settings import Settings

SIDE = 640
_MAX_QUEUE = 16
_COMPLAINT_BYTES = 4096
_TORN_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class PreviewLimits:
    """What making one preview may use, and of what videos one is made. ``cache_bytes`` bounds all of them together."""

    cache_bytes: int
    seconds: float
    memory_bytes: int
    max_seconds: float
    max_pixels: int

    @classmethod
    def from_settings(cls, settings: Settings) -> PreviewLimits:
        """The limits in the settings; memory and pixels are those of decoding an upload."""
        return cls(
            cache_bytes=settings.preview_cache_bytes,
            seconds=settings.preview_seconds,
            memory_bytes=settings.decode_memory_bytes,
            max_seconds=settings.upload_max_seconds,
            max_pixels=settings.upload_max_pixels,
        )


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A video to make a preview or a clip of: its id, and the path of its file.

    ``check_clock`` as in ``DecodeLimits``.
    """

    video_id: str
    path: Path
    clip: Clip | None = None
    check_clock: bool = True

    @property
    def name(self) -> str:
        """The name of the file that is made."""
        return f"{self.video_id}.mp4" if self.clip is None else f"{self.video_id}-{self.clip.name}.mp4"


class Previews:
    """Makes previews in ``folder``, one at a time in a thread of its own.

    ``fork_server`` starts its processes; without one it has its own. Start it inside a running event loop, and close it
    before the loop ends.
    """

    def __init__(self, folder: Path, limits: PreviewLimits, fork_server: ForkServer | None = None) -> None:
        self.folder = folder
        self.limits = limits
        self._fork_server = fork_server or ForkServer()
        self.made = 0
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="previews")
        self.batcher: Batcher[Wanted, Path] = Batcher(
            lambda wanted: [self.make(one) for one in wanted],
            executor=self._executor,
            max_batch=1,
            max_wait_seconds=0,
            max_queue=_MAX_QUEUE,
            name="preview",
        )
        self._process: Child | None = None

    def start(self) -> None:
        """Begin to make previews."""
        self.batcher.start()

    async def close(self) -> None:
        """Stop; waiting callers get ``Overloaded``, and the preview in progress is abandoned."""
        if self._process is not None:
            self._process.kill()
        await self.batcher.close()
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def file(self, wanted: Wanted) -> Path:
        """The preview of a video, or the clip that is wanted of it.

        Raises ``NotFound`` if there are none, ``Unprocessable`` if none can be made of this video, ``TooLarge`` if that
        would take too much, and ``Overloaded`` if too many wait or the disk is full.
        """
        if self.limits.cache_bytes == 0:
            raise NotFound(
                "this service makes no previews and no clips",
                expected="a service with --preview-cache-bytes above 0",
                next_step="get the video itself from …/stream and play it with another program",
            )
        return self._kept(wanted) or await self.batcher.submit(wanted)

    def forget(self, video_id: str) -> None:
        """Remove the preview and the clips of a video, if there are any."""
        for path in self.folder.glob(f"{video_id}*.mp4"):
            path.unlink(missing_ok=True)

    def _kept(self, wanted: Wanted) -> Path | None:
        place = self.folder / wanted.name
        try:
            os.utime(place)  # watched now
        except FileNotFoundError:
            return None
        return place

    def make(self, wanted: Wanted) -> Path:
        """Make a preview or clip, unless it is there by now; the path of its file."""
        kept = self._kept(wanted)  # made for another request while this one waited
        if kept is not None:
            return kept
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._remove_torn()
            return self._write(wanted)
        except OSError as error:
            if errors.is_full(error):
                raise errors.refusal() from error
            raise

    def _remove_torn(self) -> None:
        """Remove what services that were killed had begun. Other workers may be writing, each for a limited time."""
        oldest = time.time() - self.limits.seconds - _TORN_SECONDS
        for torn in self.folder.glob("*.part"):
            with suppress(FileNotFoundError):
                if torn.stat().st_mtime < oldest:
                    torn.unlink()

    def _write(self, wanted: Wanted) -> Path:
        place = self.folder / wanted.name
        with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".part", delete=False) as part:
            torn = Path(part.name)
            try:
                with wanted.path.open("rb") as source:
                    code, complaint = self._run(source.fileno(), part.fileno(), wanted)
                self._check(code, complaint)
                self._make_room(torn.stat().st_size)
                torn.replace(place)
            finally:
                torn.unlink(missing_ok=True)
        self.made += 1
        return place

    def _run(self, source: int, target: int, wanted: Wanted) -> tuple[int, str]:
        """Run the process: its exit code (negative: the signal it died of) and what it complained of."""
        limits = self.limits
        job = {
            "side": SIDE,
            "clip": None if wanted.clip is None else asdict(wanted.clip),
            "check_clock": wanted.check_clock,
            "cpu_seconds": max(1, round(limits.seconds)),
            "memory_bytes": limits.memory_bytes,
            "max_bytes": limits.cache_bytes,
            "max_seconds": limits.max_seconds,
            "max_pixels": limits.max_pixels,
        }
        complaint_read, complaint_write = os.pipe()
        with os.fdopen(complaint_read, "rb") as complaint:
            with os.fdopen(complaint_write, "wb"):
                child = self._fork_server.child("preview", job, stdin=source, stdout=target, stderr=complaint_write)
            with child:
                self._process = child
                timer = threading.Timer(limits.seconds, child.kill)
                timer.start()
                try:
                    said = complaint.read(_COMPLAINT_BYTES)
                    code = child.wait()
                finally:
                    timer.cancel()
                    self._process = None
        return code, said.decode("utf-8", "replace")

    def _check(self, code: int, complaint: str) -> None:
        if code == 0:
            return
        if code in (-signal.SIGKILL, -signal.SIGXCPU, -signal.SIGXFSZ):
            raise self._over(f"making it takes longer than {self.limits.seconds:g} seconds, or too much room")
        if code < 0:
            raise self._none(f"the decoder broke on this file ({signal.Signals(-code).name})")
        try:
            said = json.loads(complaint)
        except ValueError as error:
            raise RuntimeError(f"the process of previews ended with code {code}: {complaint}") from error
        if said["error"] in ("MemoryError", "OverLimit", "OSError"):
            raise self._over(said["message"] or said["error"])
        raise self._none(
            said["message"] if said["error"] in ("NoFrames", "NoVideoStream", "NotAVideo") else said["error"]
        )

    def _over(self, detail: str) -> TooLarge:
        return TooLarge(
            detail,
            expected="a preview or clip that can be made within the service's limits",
            next_step="get the video itself from …/stream, or raise --preview-seconds or --preview-cache-bytes",
        )

    def _none(self, detail: str) -> Unprocessable:
        return Unprocessable(
            f"no preview or clip can be made: {detail}",
            expected="a video with at least one frame that decodes",
            next_step="get the video itself from …/stream and play it with another program",
        )

    def _make_room(self, size_bytes: int) -> None:
        """Remove the least recently watched previews until one of this size fits."""
        kept = sorted((path.stat().st_mtime_ns, path.stat().st_size, path) for path in self.folder.glob("*.mp4"))
        excess = sum(size for _, size, _ in kept) + size_bytes - self.limits.cache_bytes
        for _, size, path in kept:
            if excess <= 0:
                return
            path.unlink(missing_ok=True)
            excess -= size
