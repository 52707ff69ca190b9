"""What a child of ``service.media.fork_server`` does to decode an upload; the service itself never imports it.

Takes its job and the video as standard input, a file. Writes one JSON line and, on success, two ``.npy`` arrays
(frames, timestamps) or a JPEG to what was standard output. Limits are set before a single byte of the video is read;
the decoder's own messages are discarded.
"""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from indexer.build.decode import cut, tracks_of
from model.clip.preprocess import Preprocess
from model.config import SamplingConfig
from model.video.sampling import DecodeLimits, OverLimit, VideoError, decode, probe
from service.media.pictures import picture_of, sprite_of, still_of
from service.media.process_limits import limit_process

MOST_TRANSCRIPT_BYTES = 8 << 20
"""All subtitle tracks of a video together, as JSON."""


def main(job: dict[str, Any]) -> int:
    """Do one job; returns the exit code, which is 0 also for a video that is refused."""
    answer = os.fdopen(os.dup(1), "wb")
    upload = os.fdopen(os.dup(0), "rb")
    silence = os.open(os.devnull, os.O_RDWR)
    os.dup2(silence, 0)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    size_bytes = os.fstat(upload.fileno()).st_size
    memory_bytes = job["memory_bytes"] + (0 if "picture" in job or "sprite" in job else size_bytes)
    limit_process(cpu_seconds=job["cpu_seconds"], memory_bytes=memory_bytes, file_bytes=0)
    with answer:
        try:
            if "picture" in job or "sprite" in job:
                _answer_picture(job, upload.fileno(), size_bytes, answer)
            else:
                _answer(job, upload.read(), answer)
        except Exception as error:  # whatever an untrusted file provokes is reported, by type
            _write_header(answer, {"error": type(error).__name__, "message": str(error)[:2000]})
    return 0


def _answer(job: dict[str, Any], video: bytes, answer: IO[bytes]) -> None:
    if "windows" in job:
        _answer_windows(job, video, answer)
        return
    if "still" in job:
        _answer_frames(job, still_of(video, _limits(job)), np.zeros(1), 0.0, answer)
        return
    batch = decode(video, sampling=SamplingConfig(**job["sampling"]), limits=_limits(job))
    _answer_frames(job, batch.frames, batch.timestamps_seconds, batch.duration_seconds, answer)


def _answer_frames(
    job: dict[str, Any],
    frames: NDArray[np.uint8],
    times: NDArray[np.float64],
    duration_seconds: float,
    answer: IO[bytes],
) -> None:
    frames_FHWC = Preprocess(**job["preprocess"])(frames)
    arrays = io.BytesIO()  # np.save takes a pipe for a file that it may seek in
    np.save(arrays, frames_FHWC, allow_pickle=False)
    np.save(arrays, np.asarray(times, dtype=np.float64), allow_pickle=False)
    _write_header(answer, {"duration_seconds": duration_seconds})
    answer.write(arrays.getbuffer())


def _answer_picture(job: dict[str, Any], number: int, size_bytes: int, answer: IO[bytes]) -> None:
    """A moment, or several, of a file that may be too large to be held: it is read through its open descriptor."""
    limits = _limits(job)
    limits.check_bytes(size_bytes)
    source = Path(f"/proc/self/fd/{number}")
    if "sprite" in job:
        picture = sprite_of(source, job["sprite"]["at_seconds"], job["sprite"]["side"], limits)
    else:
        picture = picture_of(source, job["picture"]["at_seconds"], job["picture"]["width"], limits)
    _write_header(answer, {})
    answer.write(picture)


def _answer_windows(job: dict[str, Any], video: bytes, answer: IO[bytes]) -> None:
    """Some of the windows that the video is cut into when it is indexed: ``count`` from number ``first`` on."""
    asked, limits = job["windows"], _limits(job)
    info = probe(video, limits=limits)
    windows = cut(video, info, asked["segment_seconds"], limits)
    segments: list[dict[str, Any]] = []
    arrays = io.BytesIO()
    for window in windows[asked["first"] : asked["first"] + asked["count"]]:
        facts = {"number": window.number, "start_seconds": window.start_seconds, "end_seconds": window.end_seconds}
        try:
            batch = decode(
                video,
                sampling=SamplingConfig(**job["sampling"]),
                limits=limits,
                start_seconds=window.start_seconds,
                end_seconds=None if window.is_last else window.end_seconds,
            )
        except VideoError as error:
            if window.number == 0 or isinstance(error, OverLimit):
                raise  # as in indexing: a video whose beginning cannot be read is refused
            segments.append({**facts, "reason": str(error)[:500]})
            continue
        segments.append({**facts, "skipped_packets": batch.skipped_packets})
        np.save(arrays, Preprocess(**job["preprocess"])(batch.frames), allow_pickle=False)
        np.save(arrays, np.asarray(batch.timestamps_seconds, dtype=np.float64), allow_pickle=False)
    transcripts, notes = _transcripts(video, limits) if asked["first"] == 0 else ([], ())
    size = {"duration_seconds": info.duration_seconds, "width": info.width, "height": info.height}
    said = {"notes": (*info.notes, *notes), "transcripts": transcripts, "metadata": info.recording.to_metadata()}
    _write_header(answer, {**size, **said, "windows": len(windows), "segments": segments})
    answer.write(arrays.getbuffer())


def _transcripts(video: bytes, limits: DecodeLimits) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """The subtitle tracks of the video as JSON, and notes on those that cannot be used; all of them within a bound."""
    rows, notes = tracks_of(video, limits)
    found: list[dict[str, Any]] = []
    size_bytes = 0
    for row in rows:
        cues = [(cue.start_seconds, cue.end_seconds, cue.text) for cue in row.cues]
        one = {"language": row.language, "source": row.source, "cues": cues}
        size_bytes += len(json.dumps(one))
        if size_bytes > MOST_TRANSCRIPT_BYTES:
            return found, (*notes, f"subtitle {row.source} and those behind it are too large to be read")
        found.append(one)
    return found, notes


def _limits(job: dict[str, Any]) -> DecodeLimits:
    return DecodeLimits(
        max_bytes=job["max_bytes"],
        max_seconds=job["max_seconds"],
        max_pixels=job["max_pixels"],
        check_clock=job["check_clock"],
    )


def _write_header(answer: IO[bytes], header: dict[str, Any]) -> None:
    answer.write(json.dumps(header).encode() + b"\n")
    answer.flush()
