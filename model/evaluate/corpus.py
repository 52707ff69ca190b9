"""Videos and captions of a set, encoded: what every evaluation starts from.

In: a loaded model and clips with captions. Out: raw features, not rounded.

Shape suffixes: T captions, V videos, F frames, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from model.config import EMCLConfig
from model.data.batches import frames_for, stack_clips
from model.data.clips import Clip, load_frames
from model.data.dataset import VideoTextSet
from model.encoder import Encoder, Scorer

Floats = NDArray[np.float32]

_VIDEOS_AT_ONCE = 32


@dataclass(frozen=True, kw_only=True, eq=False)
class Corpus:
    """Encoded videos and captions: raw features, not rounded. Caption t belongs to video ``video_of_text_T[t]``.

    The captions of a video are consecutive, in the order of the videos.
    """

    text_TD: Floats
    features_VFD: Floats
    mask_VF: NDArray[np.bool_]
    video_of_text_T: NDArray[np.intp]

    @property
    def multi_sentence(self) -> bool:
        """Whether some video has several captions, so that the multi-sentence protocol applies (reference §4.2)."""
        return len(self.video_of_text_T) > len(self.features_VFD)


def encode_corpus(encoder: Encoder, clips: Sequence[Clip], *, decode_threads: int = 2) -> Corpus:
    """Decode and encode whole videos and all their captions. Raises ``ValueError`` for a video that cannot be read."""
    load = partial(load_frames, preprocess=encoder.preprocess, sampling=encoder.config.sampling)
    longest = encoder.config.sampling.max_frames
    features = np.zeros((len(clips), longest, encoder.dim), np.float32)
    masks = np.zeros((len(clips), longest), bool)
    with ThreadPoolExecutor(decode_threads) as pool:
        decoded = tqdm(pool.map(load, clips), total=len(clips), desc="encode", unit="video")
        waiting: list[NDArray[np.uint8]] = []
        for number, frames in enumerate(decoded, start=1):
            waiting.append(frames)
            if len(waiting) == _VIDEOS_AT_ONCE or number == len(clips):
                stacked, mask = stack_clips(waiting, frames_for(encoder.config, 0))
                rows = slice(number - len(waiting), number)
                features[rows, : mask.shape[1]] = encoder.encode_videos(stacked, mask)
                masks[rows, : mask.shape[1]] = mask
                waiting = []
    grouped = VideoTextSet(name="clips", split="test", clips=tuple(clips))
    return Corpus(
        text_TD=encoder.encode_texts(grouped.captions),
        features_VFD=features,
        mask_VF=masks,
        video_of_text_T=grouped.video_of_caption,
    )


ScorerT = TypeVar("ScorerT", bound=Scorer)


def with_emcl(scorer: ScorerT, config: EMCLConfig) -> ScorerT:
    """Return the same model with another EMCL; its own state is kept if the configuration is its own."""
    return scorer.with_emcl(config)


def emcl_variants(own: EMCLConfig) -> list[EMCLConfig]:
    """Return both modes: the checkpoint's own settings, and the other mode's usual ones."""
    if own.mode == "channel":
        return [own, EMCLConfig.reference()]
    return [EMCLConfig(), own]
