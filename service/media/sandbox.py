"""Decoding of uploads in a process of its own, with limits on processor time, memory and wall time.

In: an open file with untrusted bytes. Out: frames ready for the image tower, or an error that says what is wrong with
the file. A video decoder is a large body of C that reads hostile input: here it can crash, loop or fill memory without
harm to the service. The process (``service.media.sandbox_worker``, forked by ``service.media.fork_server``) imports no
model, gets an empty environment, may create no file and is killed when it takes too long; its answer is read up to a
bound and parsed without pickle.
"""

from __future__ import annotations

import io
import json
import logging
import math
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from model.clip.preprocess import Preprocess
from model.config import SamplingConfig
from service.errors import ServiceError, TooLarge, Unprocessable, UnsupportedMedia
from service.media.fork_server import Child, ForkServer, ForkServerLostError
from service.media.pictures import SPRITE_COLUMNS
from service.settings import Settings

logger = logging.getLogger(__name__)

_HEADER_BYTES = 64 * 1024  # bound of the JSON line and of the two array headers
_COMPLAINT_BYTES = 2048
OUTCOMES = ("decoded", TooLarge.slug, Unprocessable.slug, UnsupportedMedia.slug, "failed")
"""Frames; over a limit; a video that cannot be decoded; no video at all; the decoding process could not be run."""
_OTHER_FILE = "upload another file"


@dataclass(frozen=True, kw_only=True)
class SandboxLimits:
    """What the decoding of one upload may use, and how large a video may be.

    ``memory_bytes`` of address space come on top of the upload itself, which is read into memory.
    """

    wall_seconds: float
    cpu_seconds: int
    memory_bytes: int
    max_bytes: int
    max_seconds: float
    max_pixels: int

    @classmethod
    def from_settings(cls, settings: Settings) -> SandboxLimits:
        """The limits in the settings."""
        return cls(
            wall_seconds=settings.decode_wall_seconds,
            cpu_seconds=settings.decode_cpu_seconds,
            memory_bytes=settings.decode_memory_bytes,
            max_bytes=settings.upload_max_bytes,
            max_seconds=settings.upload_max_seconds,
            max_pixels=settings.upload_max_pixels,
        )

    @classmethod
    def of_thumbnails(cls, settings: Settings, pictures: int = 1) -> SandboxLimits:
        """The limits of a thumbnail in the settings, or of as many ``pictures`` in one file.

        Indexed files may be longer and larger than uploads. The clock allows four times the processor time: on a busy
        machine the process waits for its turn.
        """
        return cls(
            wall_seconds=4 * pictures * settings.thumbnail_seconds,
            cpu_seconds=math.ceil(pictures * settings.thumbnail_seconds),
            memory_bytes=settings.decode_memory_bytes,
            max_bytes=sys.maxsize,
            max_seconds=math.inf,
            max_pixels=settings.thumbnail_max_pixels,
        )


@dataclass(frozen=True, kw_only=True)
class UploadedFrames:
    """``frames_FHWC`` uint8 RGB (F, S, S, 3), upright; ``timestamps_seconds`` (F,) float64 from the first frame."""

    frames_FHWC: NDArray[np.uint8]
    timestamps_seconds: NDArray[np.float64]
    duration_seconds: float

    def __post_init__(self) -> None:
        frames, times = self.frames_FHWC, self.timestamps_seconds
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or len(frames) == 0:
            raise ValueError(f"frames must be uint8 (F, S, S, 3) with F > 0, got {frames.dtype} {frames.shape}")
        if times.dtype != np.float64 or times.shape != frames.shape[:1]:
            raise ValueError(f"timestamps must be float64 ({len(frames)},), got {times.dtype} {times.shape}")


class KillSwitch:
    """Ends a decoding that is no longer wanted: kills its process, now or as soon as there is one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: Child | None = None
        self._activated = False

    def attach(self, process: Child) -> None:
        """Name the process to kill; it is killed at once if the switch was activated before."""
        with self._lock:
            self._process = process
            if self._activated:
                process.kill()

    def activate(self) -> None:
        """Kill the process; has no effect on one that has ended."""
        with self._lock:
            self._activated = True
            if self._process is not None:
                self._process.kill()


class Sandbox:
    """Decodes uploads under the given limits; may be used from several threads.

    ``fork_server`` starts its processes; without one it has its own, which ends with it. ``outcomes`` counts uploads by
    what became of them, under a fixed set of names.
    """

    def __init__(self, limits: SandboxLimits, fork_server: ForkServer | None = None) -> None:
        self.limits = limits
        self.fork_server = fork_server or ForkServer()
        self.outcomes: Counter[str] = Counter(dict.fromkeys(OUTCOMES, 0))
        self._lock = threading.Lock()

    def decode(
        self,
        file: IO[bytes],
        *,
        sampling: SamplingConfig,
        preprocess: Preprocess,
        kill_switch: KillSwitch | None = None,
    ) -> UploadedFrames:
        """Decode the sampled frames of ``file``, as the pictures that the model takes.

        ``kill_switch`` ends it from another thread; it then raises ``Unprocessable``.

        Raises ``UnsupportedMedia`` (not a video), ``Unprocessable`` (no video stream, no frame, or the decoder failed
        on it) or ``TooLarge`` (over a limit), and ``RuntimeError`` if the process itself could not be run.
        """
        outcome = "failed"
        try:
            frames = self._decode(file, sampling, preprocess, kill_switch or KillSwitch())
            outcome = "decoded"
        except ServiceError as error:
            outcome = error.slug
            raise
        finally:
            with self._lock:
                self.outcomes[outcome] += 1
        return frames

    def _decode(
        self, file: IO[bytes], sampling: SamplingConfig, preprocess: Preprocess, kill_switch: KillSwitch
    ) -> UploadedFrames:
        job = self.job(sampling, preprocess)
        return self._parse(self.answer(job, file, kill_switch, arrays=1), sampling, preprocess)

    def still(self, file: IO[bytes], *, sampling: SamplingConfig, preprocess: Preprocess) -> UploadedFrames:
        """A picture as the one frame of a video that lasts 0 seconds. Raises as ``decode`` does; not counted either."""
        job = {**self.job(sampling, preprocess), "still": True}
        return self._parse(self.answer(job, file, KillSwitch(), arrays=1), sampling, preprocess)

    def picture(self, file: IO[bytes], *, at_seconds: float, width: int, check_clock: bool = True) -> bytes:
        """A JPEG of a moment, see ``service.media.pictures``; ``check_clock`` as in ``DecodeLimits``.

        Raises as ``decode`` does; is not counted in ``outcomes``.
        """
        asked = {"picture": {"at_seconds": at_seconds, "width": width}}
        return self._picture(asked, file, 12 * width * width, check_clock)

    def sprite(self, file: IO[bytes], *, at_seconds: Sequence[float], side: int, check_clock: bool = True) -> bytes:
        """A JPEG with a tile for each of some moments, see ``service.media.pictures``; otherwise as ``picture``."""
        tiles = len(at_seconds) + SPRITE_COLUMNS  # the last row is filled up
        return self._picture(
            {"sprite": {"at_seconds": list(at_seconds), "side": side}}, file, tiles * 3 * side * side, check_clock
        )

    def _picture(self, asked: dict[str, Any], file: IO[bytes], most_bytes: int, check_clock: bool) -> bytes:
        job = {**asked, **self._limits(), "check_clock": check_clock}
        head, _, picture = self._answer(job, file, KillSwitch(), _HEADER_BYTES + most_bytes).partition(b"\n")
        header = json.loads(head)
        if "error" in header:
            raise self.refusal(header["error"], header["message"])
        return picture

    def answer(
        self, job: dict[str, Any], file: IO[bytes], kill_switch: KillSwitch, *, arrays: int, more_bytes: int = 0
    ) -> bytes:
        """What the decoding process says to a job, of at most ``arrays`` times the frames of a segment, and more.

        Raises as ``decode`` does, as far as the process could not do its work.
        """
        pixels, frames = job["preprocess"]["height"] * job["preprocess"]["width"], job["sampling"]["max_frames"]
        return self._answer(job, file, kill_switch, arrays * (_HEADER_BYTES + frames * (pixels * 3 + 8)) + more_bytes)

    def _answer(self, job: dict[str, Any], file: IO[bytes], kill_switch: KillSwitch, bound: int) -> bytes:
        code, answer, complaint = self._run(job, file, kill_switch, bound)
        if code == 0:
            return answer
        if code == -signal.SIGXCPU:
            raise self._over(f"decoding took more than {self.limits.cpu_seconds} CPU seconds", "--decode-cpu-seconds")
        if code < 0:
            logger.warning("the decoder died of signal %d on an upload", -code)
            raise _unusable(f"the decoder crashed on this file ({signal.Signals(-code).name})")
        raise RuntimeError(f"the decoding process ended with code {code}: {complaint}")

    def job(self, sampling: SamplingConfig, preprocess: Preprocess) -> dict[str, Any]:
        """The job of the decoding process: how to sample, what pictures to make, and the limits."""
        return {
            "sampling": sampling.model_dump(),
            "preprocess": asdict(preprocess),
            **self._limits(),
            "check_clock": True,
        }

    def _limits(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self.limits).items() if name != "wall_seconds"}

    def _run(self, job: dict[str, Any], file: IO[bytes], kill_switch: KillSwitch, bound: int) -> tuple[int, bytes, str]:
        """Run the process: its exit code (negative: the signal it died of), its answer, and what it complained of."""
        position = os.lseek(file.fileno(), 0, os.SEEK_CUR)
        try:
            return self._run_once(job, file, kill_switch, bound)
        except ForkServerLostError:
            logger.warning("the process that starts decoders died and is started again")
            os.lseek(file.fileno(), position, os.SEEK_SET)
            return self._run_once(job, file, kill_switch, bound)

    def _run_once(
        self, job: dict[str, Any], file: IO[bytes], kill_switch: KillSwitch, bound: int
    ) -> tuple[int, bytes, str]:
        expired = threading.Event()
        with ExitStack() as stack:
            answer_read, answer_write = _pipe(stack)
            complaint_read, complaint_write = _pipe(stack)
            with answer_write, complaint_write:
                child = self.fork_server.child(
                    "decode",
                    job,
                    stdin=file.fileno(),
                    stdout=answer_write.fileno(),
                    stderr=complaint_write.fileno(),
                )
            stack.enter_context(child)  # closed first: it is killed before its pipes go
            kill_switch.attach(child)

            def expire() -> None:
                expired.set()
                child.kill()

            timer = threading.Timer(self.limits.wall_seconds, expire)
            timer.start()
            try:
                answer = answer_read.read(bound)
                if len(answer) == bound:
                    child.kill()  # it says more than any answer can hold
                complaint = complaint_read.read(_COMPLAINT_BYTES)
                code = child.wait()  # ends at the latest when the timer kills it
            finally:
                timer.cancel()
        if expired.is_set() and code == -signal.SIGKILL:
            raise self._over(f"decoding took longer than {self.limits.wall_seconds:g} seconds", "--decode-wall-seconds")
        return code, answer, complaint.decode("utf-8", "replace")

    def _parse(self, answer: bytes, sampling: SamplingConfig, preprocess: Preprocess) -> UploadedFrames:
        head, _, arrays = answer.partition(b"\n")
        header = json.loads(head)
        if "error" in header:
            raise self.refusal(header["error"], header["message"])
        stream = io.BytesIO(arrays)
        result = UploadedFrames(
            frames_FHWC=np.load(stream, allow_pickle=False),
            timestamps_seconds=np.load(stream, allow_pickle=False),
            duration_seconds=float(header["duration_seconds"]),
        )
        if result.frames_FHWC.shape[1:] != preprocess.shape or len(result.frames_FHWC) > sampling.max_frames:
            raise ValueError(f"the decoding process returned frames of shape {result.frames_FHWC.shape}")
        return result

    def refusal(self, kind: str, message: str) -> ServiceError:
        """The error for what the decoding process found wrong with a file."""
        if kind == "NotAVideo":
            return UnsupportedMedia(message, expected="a video file that FFmpeg reads", next_step=_OTHER_FILE)
        if kind == "NotAPicture":
            return UnsupportedMedia(
                message, expected="a picture: JPEG, PNG, WebP, GIF, BMP or TIFF", next_step="send another file"
            )
        if kind == "OverLimit":
            return TooLarge(message, expected="a video within the limits", next_step="cut or scale the video down")
        if kind == "MemoryError":
            return self._over(
                f"decoding needs more memory than {self.limits.memory_bytes} bytes", "--decode-memory-bytes"
            )
        if kind not in ("NoVideoStream", "NoFrames"):
            logger.warning("decoding an upload failed with %s: %s", kind, message)
            message = "the file cannot be decoded"
        return _unusable(message)

    def _over(self, detail: str, option: str) -> TooLarge:
        return TooLarge(
            detail,
            expected="a video that decodes within the service's limits",
            next_step=f"upload a shorter or smaller video, or raise {option}",
        )


def _unusable(detail: str) -> Unprocessable:
    return Unprocessable(detail, expected="a video with at least one frame that decodes", next_step=_OTHER_FILE)


def _pipe(stack: ExitStack) -> tuple[IO[bytes], IO[bytes]]:
    read, write = os.pipe()
    return stack.enter_context(os.fdopen(read, "rb")), stack.enter_context(os.fdopen(write, "wb"))
