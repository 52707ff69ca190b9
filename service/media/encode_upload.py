"""From a stranger's file to a video that the store takes: decoded behind the fence, encoded between searches.

Legend: B windows of a batch, F frames, S image size, D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import IO, TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from indexer.build.decode import windows_of
from indexer.build.encode import padded
from indexer.store.writer import EncodedSegment, EncodedVideo
from service.media.sandbox import Fence, Leash
from service.media.window_decoder import Window, WindowPlan, decode_windows

if TYPE_CHECKING:
    from indexer.store.config import Manifest
    from model.encoder import Encoder
    from service.library.upload_store import Accepted

T = TypeVar("T")
Floats = NDArray[np.float32]


class PatientEncoder:
    """An encoder each of whose calls waits for its turn; ``when_its_turn`` runs it there."""

    def __init__(self, encoder: Encoder, when_its_turn: Callable[[Callable[[], Floats]], Floats]) -> None:
        self.image_size = encoder.image_size
        self.dim = encoder.dim
        self._encoder = encoder
        self._when_its_turn = when_its_turn

    def encode_videos(self, frames_BFSSC: NDArray[np.uint8], mask_BF: NDArray[np.bool_]) -> Floats:
        """Raw frame features ``(B, F, D)``."""
        return self._when_its_turn(lambda: self._encoder.encode_videos(frames_BFSSC, mask_BF))

    def pool(self, features_BFD: Floats, mask_BF: NDArray[np.bool_]) -> Floats:
        """Raw pooled vectors ``(B, D)``."""
        return self._when_its_turn(lambda: self._encoder.pool(features_BFD, mask_BF))

    def encode_texts(self, texts: Sequence[str]) -> Floats:
        """Raw text features ``(N, D)``; no text waits for no turn."""
        if not texts:
            return np.zeros((0, self.dim), dtype=np.float32)
        return self._when_its_turn(lambda: self._encoder.encode_texts(texts))


def encode_video(
    accepted: Accepted,
    file: IO[bytes],
    manifest: Manifest,
    fence: Fence,
    encoder: PatientEncoder,
    progress: Callable[[int, int], None],
    leash: Leash,
) -> EncodedVideo:
    """Decode and encode all windows of a video, as ``emcl index`` does with a file.

    ``progress`` is told how many windows are done, of how many; what it raises ends the work. Raises as
    ``Fence.decode`` does for a file that cannot be used.
    """
    plan = WindowPlan(
        sampling=manifest.sampling, segment_seconds=manifest.segment_seconds, image_size=encoder.image_size
    )
    segments: list[EncodedSegment] = []
    notes: list[str] = []
    skipped = done = 0
    progress(0, 0)
    for batch in decode_windows(fence, file, plan, leash):
        edges = windows_of(batch.duration_seconds, manifest.segment_seconds)
        good = [window for window in batch.windows if window.frames_FSSC is not None]
        if good:
            segments += _encode(good, edges, encoder)
        skipped += sum(window.skipped_packets for window in good)
        notes += [
            f"{edges[window.number][0]:g}-{edges[window.number][1]:g} s: {window.reason}"
            for window in batch.windows
            if window.frames_FSSC is None
        ]
        done += len(batch.windows)
        progress(done, batch.total)
    if skipped:
        notes.append(f"{skipped} damaged packets were skipped")
    return EncodedVideo(
        video_id=accepted.video_id,
        name=accepted.video_id[:12],
        duration_seconds=batch.duration_seconds,
        width=batch.width,
        height=batch.height,
        reason="; ".join(notes) or None,
        segments=segments,
    )


def _encode(
    windows: Sequence[Window], edges: Sequence[tuple[float, float]], encoder: PatientEncoder
) -> list[EncodedSegment]:
    frames_BFSSC, mask_BF = padded([window.frames_FSSC for window in windows if window.frames_FSSC is not None])
    features_BFD = encoder.encode_videos(frames_BFSSC, mask_BF)
    pooled_BD = encoder.pool(features_BFD, mask_BF)
    return [
        EncodedSegment(
            number=window.number,
            start_seconds=edges[window.number][0],
            end_seconds=edges[window.number][1],
            timestamps_seconds=np.asarray(window.timestamps_seconds),
            features_FD=features_BFD[row, mask_BF[row]],
            pooled_D=pooled_BD[row],
        )
        for row, window in enumerate(windows)
    ]
