"""decord backend: the same frames as PyAV, for the plain files in which decord is known to give them.

decord 0.6 carries FFmpeg 4.1. Measured: H.264, HEVC, VP8 and VP9 in 8 bits come out bit-identical, MPEG-4 within 2 of
255 levels. But AV1, 10 bits, MPEG-TS and edit lists do not, seeking takes the wrong frame in open GOPs and MPEG-4,
damage is repaired silently, and some damaged files crash the process. So it is used only when it is named, reads only
what ``objection`` lets through, reads it in order, must agree with the packets on every timestamp, and a frame that it
had to repair is an error.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from model.video.types import BackendUnavailable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from model.video.container import OpenVideo
    from model.video.timeline import PacketTable

CONTAINERS = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "flv"})
CODECS = frozenset({"h264", "hevc", "vp8", "vp9", "mpeg4"})
PIXEL_FORMATS = frozenset({"yuv420p", "yuvj420p", "yuv422p", "yuv444p"})
# decord reports timestamps as 32-bit floats of seconds: 2 ms of error at four hours.
TIMESTAMP_TOLERANCE_SECONDS = 0.004
# decord repairs damage silently unless a fraction is given above which it raises; this one means "at all".
ANY_REPAIR = 1e-9


def objection(video: OpenVideo, *, turned: bool) -> str | None:
    """Why decord must not read this video (``turned``: its display matrix is not the identity), or ``None``."""
    checks = {
        "decord is not installed (`pip install decord==0.6.0`)": importlib.util.find_spec("decord") is None,
        f"its container is {video.container.format.name}": video.container.format.name not in CONTAINERS,
        f"its codec is {video.codec}": video.codec not in CODECS,
        f"its pixels are {video.stream.codec_context.pix_fmt}": video.stream.codec_context.pix_fmt not in PIXEL_FORMATS,
        "it is stored turned or mirrored": turned,
    }
    return next((reason for reason, holds in checks.items() if holds), None)


def fetch(
    source: str | os.PathLike[str], video: OpenVideo, table: PacketTable, wanted: list[int], threads: int
) -> NDArray[np.uint8]:
    """Decode the frames at the timestamps ``wanted``; ``table`` must cover the whole video.

    Gives ``(F, H, W, 3)`` uint8 RGB. Raises ``BackendUnavailable`` where decord fails or disagrees with the packets.
    """
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    try:
        reader = decord.VideoReader(str(Path(source).resolve()), num_threads=threads, fault_tol=ANY_REPAIR)
        _check_timestamps(reader, video, table)
        return _read_in_order(reader, np.searchsorted(table.times, wanted).tolist())
    except (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError) as error:
        raise BackendUnavailable(f"decord cannot read {video.label} ({error}); use backend='auto' or 'pyav'") from error


def _read_in_order(reader: Any, indices: list[int]) -> NDArray[np.uint8]:
    """Read every frame up to the last: what decord offers for skipping some jumps to key frames, also to those from
    which it then gives other frames than the ones asked for.
    """
    wanted = frozenset(indices)
    frames = (reader.next() for _ in range(indices[-1] + 1))
    return np.stack([frame.asnumpy() for index, frame in enumerate(frames) if index in wanted])


def _check_timestamps(reader: Any, video: OpenVideo, table: PacketTable) -> None:
    expected = (table.times - video.origin) * video.tick_seconds
    got = reader.get_frame_timestamp(np.arange(len(reader)))[:, 0]
    if len(got) != len(expected) or np.abs(got - got[0] - expected).max() > TIMESTAMP_TOLERANCE_SECONDS:
        raise BackendUnavailable(
            f"decord sees {len(got)} frames in {video.label} at other times than its {len(expected)} packets; "
            "use backend='auto' or 'pyav'"
        )
