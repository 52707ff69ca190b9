"""Stores of any size without a video: features that are drawn, written by the program's own writer.

Legend: N segments, F frames, D channels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from indexer.locations import Location
from indexer.store.config import ModelSpec, StoreSettings
from indexer.store.vectors import RowMapper
from indexer.store.writer import EncodedSegment, EncodedVideo, StoreWriter
from model.config import SamplingConfig

if TYPE_CHECKING:
    from model.config import PoolingConfig
    from model.emcl.correction import CorrectionSettings
    from model.emcl.em import FrozenMap

Floats = npt.NDArray[np.float32]

COMMIT_VIDEOS = 1000
KINDS = 3000
"""Different captions whose features the segments of a demo corpus scatter around."""
SEGMENT_NOISE, FRAME_NOISE = 0.5, 0.3
"""Norm of what separates a segment from its caption, and a frame from its segment, relative to the caption's norm."""


@dataclass(frozen=True, kw_only=True)
class NeutralMapper:
    """A mapper that only normalises: all that publishing needs where no model is asked."""

    dim: int

    def fit_frozen_map(self, rows_ND: npt.NDArray[Any], /) -> FrozenMap:
        """The neutral map, whatever the rows."""
        from model.emcl.em import FrozenMap

        return FrozenMap.neutral(self.dim)

    @property
    def pooling(self) -> PoolingConfig:
        """The usual pooling."""
        from model.config import PoolingConfig

        return PoolingConfig()

    @property
    def calibrated(self) -> CorrectionSettings | None:
        """Hubs are left as they are: what is measured is the index."""
        from model.emcl.correction import CorrectionSettings

        return CorrectionSettings(hub_strength=0.0)


def write_store(path: Path, *, count: int, dim: int, frames: int) -> Path:
    """A published store of ``count`` segments, one a video, with random features of no model."""
    rng = np.random.default_rng(0)
    settings = StoreSettings(
        model_spec=ModelSpec(model="none"), fingerprint="0" * 64, dim=dim, sampling=SamplingConfig(max_frames=frames)
    )
    _fill(
        path, settings, count, lambda size: rng.standard_normal((size, frames, dim), np.float32), NeutralMapper(dim=dim)
    )
    return path


def write_demo_store(path: Path, encoder: Any, *, count: int, spec: ModelSpec | None = None) -> Path:
    """A published store of ``count`` segments whose features scatter around captions as the model encodes them.

    ``spec`` names the model of ``encoder``; the shipped one if it is left out.

    Queries in the same words therefore have near neighbours, many others at a distance, and a common direction: the
    distribution that the trained model gives.
    """
    rng = np.random.default_rng(0)
    texts_KD = encoder.encode_texts(captions(min(KINDS, max(50, count // 4)), seed=2))
    scale = float(np.linalg.norm(texts_KD, axis=1).mean()) / np.sqrt(encoder.dim)
    frames = encoder.config.sampling.max_frames

    def draw(size: int) -> Floats:
        centres = texts_KD[rng.integers(0, len(texts_KD), size)]
        segments = centres + SEGMENT_NOISE * scale * rng.standard_normal(centres.shape, np.float32)
        spread = FRAME_NOISE * scale * rng.standard_normal((size, frames, encoder.dim), np.float32)
        features: Floats = segments[:, None] + spread
        return features

    settings = StoreSettings(
        model_spec=spec or ModelSpec(model="demo"),
        fingerprint=encoder.fingerprint,
        dim=encoder.dim,
        sampling=encoder.config.sampling,
    )
    _fill(path, settings, count, draw, encoder)
    return path


def captions(count: int, seed: int = 1) -> list[str]:
    """Different captions as the generator of the demo's corpus writes them."""
    from model.demo.captions import captions_of
    from model.demo.scene import make_scene

    texts: dict[str, None] = {}
    number = 0
    while len(texts) < count:
        texts[captions_of(make_scene(seed, "test", number), seed, number)[0]] = None
        number += 1
    return list(texts)


def _fill(path: Path, settings: StoreSettings, count: int, draw: Callable[[int], Floats], mapper: RowMapper) -> None:
    with StoreWriter.open(path, settings=settings) as writer:
        for start in range(0, count, COMMIT_VIDEOS):
            numbers = range(start, min(start + COMMIT_VIDEOS, count))
            writer.add_locations([_location(number) for number in numbers])
            failures = writer.add_videos(_videos(numbers, draw(len(numbers))))
            assert not failures, failures
        writer.publish(mapper)


def _videos(numbers: Sequence[int], features_NFD: Floats) -> list[EncodedVideo]:
    seconds = float(features_NFD.shape[1])
    times = np.arange(features_NFD.shape[1], dtype=np.float64)
    pooled_ND = features_NFD.mean(axis=1)
    return [
        EncodedVideo(
            video_id=_video_id(number),
            name=f"{number}.mp4",
            duration_seconds=seconds,
            width=224,
            height=224,
            reason=None,
            segments=[
                EncodedSegment(
                    number=0,
                    start_seconds=0.0,
                    end_seconds=seconds,
                    timestamps_seconds=times,
                    features_FD=features_NFD[row],
                    pooled_D=pooled_ND[row],
                )
            ],
        )
        for row, number in enumerate(numbers)
    ]


def _location(number: int) -> Location:
    return Location(path=f"/videos/{number}.mp4", video_id=_video_id(number), size_bytes=1, modified_ns=1)


def _video_id(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()
