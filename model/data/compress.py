"""Videos → small copies for training and evaluation: few frames per second, short side 224, upright, without sound.

Each copy holds the frames that were on screen at 0, 1/fps, 2/fps, …, so sampling a copy at 1 fps gives the frames that
sampling its source gives. The shorter side of the *upright* picture becomes ``short_side``, whichever it is; the
reference gets portrait videos wrong (reference §8, 28) and copies the source where it fails. A picture that is smaller
already is not enlarged. Sides are rounded to even numbers, as H.264 wants them.

A copy is written beside its final name and renamed when it is complete. It carries its settings, by which a later run
knows it. A video that crashes its decoder costs one worker process, not the run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import TimeoutError as TookTooLong
from dataclasses import dataclass
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from filelock import FileLock, Timeout
from pebble import ProcessExpired, ProcessPool
from tqdm import tqdm

from model.video.container import OpenVideo, open_video
from model.video.formats import ALL_SUFFIXES
from model.video.pyav import IDENTITY, Decoder, display_matrix, make_upright
from model.video.sampling import NO_LIMITS, VideoError, probe
from model.video.timeline import measure_end
from model.video.types import ROUNDING_SECONDS

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from numpy.typing import NDArray

Outcome = Literal["written", "kept"]

_PARTIAL = ".partial-"
LOCK = ".compress.lock"
# A decoder that hangs on a damaged file must not hold up the run forever; films of hours are through sooner.
_SECONDS_PER_VIDEO = 3600.0
_ROUNDING_ERROR = 1e-6  # of a second: target times are not exact in floating point


@dataclass(frozen=True, kw_only=True)
class CompressSettings:
    """``crf`` is x264's quality; 23 is its default and what the reference uses."""

    fps: float = 3.0
    short_side: int = 224
    crf: int = 23

    @property
    def mark(self) -> str:
        """How a copy was made, as recorded in it."""
        return f"emcl data compress: {self.fps:g} fps, short side {self.short_side}, crf {self.crf}"


@dataclass(frozen=True, kw_only=True)
class CompressReport:
    """How many copies were written and found, and each failure as (name below the source folder, reason)."""

    written: int
    kept: int
    failed: tuple[tuple[str, str], ...]


def compress_folder(source: Path, destination: Path, settings: CompressSettings, *, workers: int = 2) -> CompressReport:
    """Compress every video below ``source`` to the same place below ``destination``, as ``.mp4``.

    Raises ``ValueError`` for folders that overlap, an empty source and a destination that another run is writing to,
    ``FileNotFoundError`` for a source that is not there.
    """
    if not source.is_dir():
        raise FileNotFoundError(f"there is no folder {source}")
    inside, outside = destination.resolve(), source.resolve()
    if inside.is_relative_to(outside) or outside.is_relative_to(inside):
        raise ValueError(f"{destination} and {source} are nested; give the copies a separate folder")
    tasks, clashes = _plan(source, destination)
    if not tasks:
        raise ValueError(f"there are no videos below {source}")
    destination.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(destination / LOCK, timeout=0):
            outcomes = list(_run(tasks, settings, workers))
    except Timeout as error:
        raise ValueError(f"another run is writing to {destination}; wait for it or stop it") from error
    failed = [(name, reason) for name, outcome, reason in outcomes if outcome is None]
    return CompressReport(
        written=sum(outcome == "written" for _, outcome, _ in outcomes),
        kept=sum(outcome == "kept" for _, outcome, _ in outcomes),
        failed=tuple(sorted(clashes + failed)),
    )


def _plan(source: Path, destination: Path) -> tuple[dict[str, tuple[Path, Path]], list[tuple[str, str]]]:
    """Name → source and target; and the names whose target another video takes already."""
    tasks: dict[str, tuple[Path, Path]] = {}
    clashes = []
    taken: dict[Path, str] = {}
    for path in sorted(path for path in source.rglob("*") if path.suffix.lower() in ALL_SUFFIXES and path.is_file()):
        relative = path.relative_to(source)
        if any(part.startswith(".") for part in relative.parts):
            continue
        target = destination / relative.with_suffix(".mp4")
        if target in taken:
            clashes.append((str(relative), f"{taken[target]} has the same name and becomes {target}; rename one"))
            continue
        taken[target] = str(relative)
        tasks[str(relative)] = (path, target)
    return tasks, clashes


def _run(
    tasks: dict[str, tuple[Path, Path]], settings: CompressSettings, workers: int
) -> Iterator[tuple[str, Outcome | None, str]]:
    with ProcessPool(max_workers=workers, context=get_context("spawn")) as pool:
        futures = {
            name: pool.schedule(compress_video, args=[path, target, settings], timeout=_SECONDS_PER_VIDEO)
            for name, (path, target) in tasks.items()
        }
        try:
            for name, future in tqdm(futures.items(), desc="compress", unit="video"):
                try:
                    yield name, future.result(), ""
                except ProcessExpired as error:
                    yield name, None, f"it crashed the decoder (exit code {error.exitcode})"
                except TookTooLong:
                    yield name, None, f"it took longer than {_SECONDS_PER_VIDEO:.0f} s"
                except (ValueError, OSError) as error:
                    yield name, None, str(error)
        except BaseException:  # Ctrl-C, above all: what was scheduled is not to be done
            pool.stop()
            raise


def compress_video(source: Path, target: Path, settings: CompressSettings) -> Outcome:
    """Write one copy, unless it is there and was made with the same settings.

    Raises ``VideoError`` for a source that cannot be decoded, ``FileExistsError`` for a target that is a video of
    another origin.
    """
    if target.exists() and _is_copy(target, settings):
        return "kept"
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{_PARTIAL}{target.name}")
    try:
        _write(source, partial, settings)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return "written"


def _is_copy(target: Path, settings: CompressSettings) -> bool:
    """Whether a file is a copy by these settings. False for one that no frame of can be decoded."""
    try:
        probe(target)
        with open_video(target, NO_LIMITS) as video:
            mark = video.container.metadata.get("comment", "")
    except VideoError:
        return False
    if mark != settings.mark:
        raise FileExistsError(
            f"{target} exists and was made in another way ({mark or 'not by this command'}), expected "
            f"'{settings.mark}'; remove it or choose another destination"
        )
    return True


def _write(source: Path, partial: Path, settings: CompressSettings) -> None:
    import av

    rate = Fraction(settings.fps).limit_denominator(1000)
    with open_video(source, NO_LIMITS) as video, av.open(str(partial), "w", format="mp4") as output:
        output.metadata["comment"] = settings.mark
        stream = None
        for number, image in enumerate(_images(video, settings)):
            if stream is None:
                # One thread: the videos are the parallel part.
                stream = output.add_stream("libx264", rate=rate, options={"crf": f"{settings.crf}", "threads": "1"})
                stream.height, stream.width = image.shape[:2]
                stream.pix_fmt = "yuv420p"
                stream.time_base = 1 / rate
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, 1 / rate
            output.mux(stream.encode(frame))
        if stream is None:
            raise video.no_frames()
        output.mux(stream.encode(None))


def _images(video: OpenVideo, settings: CompressSettings) -> Iterator[NDArray[np.uint8]]:
    """The small upright frames on screen at 0, 1/fps, …, before the end of the video."""
    scale = _Scaler(settings.short_side)
    end_seconds = video.seconds(measure_end(video))
    video.rewind(None)
    number = 0
    shown: VideoFrame | None = None
    for time, frame in _frames(video):
        # All targets before this frame belong to the one before it; the first frame of all also to those before it.
        while shown is not None and number / settings.fps + ROUNDING_SECONDS < video.seconds(time):
            yield scale(shown)
            number += 1
        shown = frame
    while shown is not None and (number == 0 or number / settings.fps < end_seconds - _ROUNDING_ERROR):
        yield scale(shown)
        number += 1


def _frames(video: OpenVideo) -> Iterator[tuple[int, VideoFrame]]:
    decoder = Decoder(video)
    for packet in video.packets():
        yield from decoder.feed(packet, needed=True)
    yield from decoder.drain()


class _Scaler:
    """Decoded frames → upright RGB ``(H, W, 3)`` of one size, which the first frame decides."""

    def __init__(self, short_side: int) -> None:
        from av.video.reformatter import VideoReformatter

        self._short_side = short_side
        self._reformatter = VideoReformatter()
        self._matrix = IDENTITY
        self._stored_size: tuple[int, int] | None = None

    def __call__(self, frame: VideoFrame) -> NDArray[np.uint8]:
        if self._stored_size is None:
            self._matrix = display_matrix(frame)
            self._stored_size = small_size(frame.width, frame.height, self._short_side)
        width, height = self._stored_size
        small = self._reformatter.reformat(
            frame, width=width, height=height, format="rgb24", interpolation="BICUBIC", threads=1
        )
        return np.ascontiguousarray(make_upright(np.asarray(small.to_ndarray(), np.uint8), self._matrix))


def small_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """The size whose shorter side is at most ``short_side``, with the same shape as far as even numbers allow."""
    share = min(1.0, short_side / min(width, height))
    return _even(width * share), _even(height * share)


def _even(pixels: float) -> int:
    return max(2, 2 * round(pixels / 2))
