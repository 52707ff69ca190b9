"""Any number of videos and captions as a trained model would embed them.

A million clips cannot be rendered and encoded in a benchmark, and noise is no test of an approximate index. So 2,000
generated clips and their captions are encoded with the shipped demo model, and new ones are drawn between them: a clip
is at a random point between a real one and one of its ten nearest, its caption at the same point between theirs. So
the clusters, the gap between the two kinds of vector and who is whose neighbour are those of the trained model. What
separates a vector from all others is noise with the spectrum of the differences between neighbours, half as
long as these.

The demo model has 128 channels. A random orthonormal map takes them to D = 512, which changes no inner product, and the
noise goes on into the other channels with the decay that its spectrum has, so that none is empty. This is kinder than a
real CLIP, whose intrinsic dimension is higher: recall is a property of the data, so tune it on yours.

Legend: E encoded clips, N drawn, D channels, d channels of the demo model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

ENCODED, FRAMES_OF_A_CLIP, DRAWN_SIZE = 2000, 4, 128
NEIGHBOURS = 10


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedVectors:
    """Draws clips and captions; made by ``fit`` or ``load``."""

    videos_ED: Floats
    captions_ED: Floats
    nearest_EK: Ids
    noise_DD: Floats

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """``count`` clips and the caption of each, both ``(N, D)``."""
        first = rng.integers(0, len(self.videos_ED), count)
        second = self.nearest_EK[first, rng.integers(0, NEIGHBOURS, count)]
        between = rng.random((count, 1), dtype=np.float32)
        return tuple(  # type: ignore[return-value]
            rows_ED[first]
            + between * (rows_ED[second] - rows_ED[first])
            + rng.standard_normal((count, rows_ED.shape[1]), dtype=np.float32) @ self.noise_DD
            for rows_ED in (self.videos_ED, self.captions_ED)
        )

    def to_arrays(self) -> dict[str, np.ndarray]:
        """For ``np.savez``."""
        return dict(vars(self))


def encode_clips(count: int = ENCODED) -> tuple[Floats, Floats]:
    """Pooled features and caption features ``(E, d)`` of generated clips, L2-normalised, by the demo model."""
    from model.demo.captions import captions_of
    from model.demo.render import render
    from model.demo.scene import make_scene
    from model.encoder import load_encoder

    encoder = load_encoder("demo")
    texts: list[str] = []
    pooled: list[Floats] = []
    for start in range(0, count, 64):
        frames = []
        for index in range(start, min(start + 64, count)):
            scene = make_scene(1, "test", index)
            times = (np.arange(FRAMES_OF_A_CLIP) + 0.5) / FRAMES_OF_A_CLIP * scene.duration_seconds
            frames.append(encoder.preprocess(render(scene, times, DRAWN_SIZE)))
            texts.append(captions_of(scene, 1, index)[0])
        mask = np.ones((len(frames), FRAMES_OF_A_CLIP), dtype=bool)
        pooled.append(encoder.pool(encoder.encode_videos(np.stack(frames), mask), mask))
    return _unit(np.concatenate(pooled)), _unit(encoder.encode_texts(texts))


def fit(videos_Ed: Floats, captions_Ed: Floats, dim: int) -> TrainedVectors:
    """The distribution of some encoded clips, in ``dim`` channels."""
    rng = np.random.default_rng(0)
    channels = videos_Ed.shape[1]
    axes_DD = np.linalg.qr(rng.standard_normal((dim, dim)))[0].astype(np.float32)
    likeness_EE = videos_Ed @ videos_Ed.T
    np.fill_diagonal(likeness_EE, -np.inf)
    nearest_EK = np.argsort(-likeness_EE, axis=1)[:, :NEIGHBOURS]
    apart_Ed = videos_Ed - videos_Ed[nearest_EK[:, 0]]
    spectrum_d, inside_dd = np.linalg.eigh(np.cov(apart_Ed.T))
    deviations = np.sqrt(np.maximum(spectrum_d[::-1], 0))
    half = channels // 2
    decay = np.polyfit(np.log(np.arange(half // 2, half) + 1), np.log(deviations[half // 2 : half]), 1)
    tail = np.exp(np.polyval(decay, np.log(np.arange(channels, dim) + 1)))
    noise_DD = np.zeros((dim, dim))
    noise_DD[:channels, :channels] = deviations[:, None] * inside_dd[:, ::-1].T
    noise_DD[channels:, channels:] = np.diag(tail)
    length = np.median(np.linalg.norm(apart_Ed, axis=1))
    noise_DD *= 0.5 * length / np.sqrt((noise_DD**2).sum())
    return TrainedVectors(
        videos_ED=videos_Ed @ axes_DD[:channels],
        captions_ED=captions_Ed @ axes_DD[:channels],
        nearest_EK=nearest_EK,
        noise_DD=(noise_DD @ axes_DD).astype(np.float32),
    )


def _unit(rows: Floats) -> Floats:
    scaled: Floats = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return scaled
