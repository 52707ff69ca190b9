"""Zero-shot classification: a video gets the label whose prompt is nearest to it.

In: one unit vector for each video (frames at unit norm, averaged, CLIP4Clip's pooling), and labels put into a prompt.
Out: cosines, and probabilities at the model's own logit scale. The paper's figure for long videos (supplementary,
table 3) is such a classification on ActivityNet, with the prompt ``human action of {}``.

With EMCL, which is a choice here, videos and prompts of a pass are its rows; off unless asked for.

Shape suffixes: V videos, N labels, F frames, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from model.emcl.pooling import unit_mean_pool
from model.encoder import Encoder
from model.heads.base import Correction
from model.heads.pooled import PooledBatch, PooledHead


@dataclass(frozen=True, kw_only=True)
class LabelScore:
    """A label with its cosine in [-1, 1] and its probability among the labels that were given."""

    label: str
    score: float
    probability: float


def similarity(video_VD: Tensor, prompt_ND: Tensor, correct: Correction | None = None) -> Tensor:
    """Return cosines (V, N) of unit videos and prompts, after a pass over all of them if ``correct`` is given."""
    head = PooledHead()
    batch = head.corrected(PooledBatch(video_VD=video_VD, text_TD=prompt_ND), correct)
    return head.similarity(batch).T


@torch.inference_mode()
def classify(
    encoder: Encoder,
    features_FD: NDArray[Any],
    mask_F: NDArray[np.bool_],
    labels: Sequence[str],
    prompt_ND: NDArray[Any],
) -> list[LabelScore]:
    """Score the labels for one video's frame features, best first; ties stay in the order of the labels.

    ``prompt_ND`` are the raw features of the prompts. Probabilities sum to 1 over the labels.
    """
    video_1D = unit_mean_pool(torch.from_numpy(np.array(features_FD, np.float32))[None], torch.from_numpy(mask_F)[None])
    prompts = F.normalize(torch.from_numpy(np.array(prompt_ND, np.float32)), dim=-1)
    scores_N = similarity(video_1D, prompts)[0].double()
    scale = float(encoder.net.clip.logit_scale.exp())
    probabilities_N = torch.softmax(scores_N * scale, dim=0)
    order = torch.argsort(scores_N, descending=True, stable=True).tolist()
    return [LabelScore(label=labels[n], score=float(scores_N[n]), probability=float(probabilities_N[n])) for n in order]


def accuracy(similarity_VN: Tensor, labels_V: Tensor, *, top: int = 1) -> float:
    """Return the percentage of videos whose label is among the ``top`` nearest."""
    nearest = similarity_VN.topk(min(top, similarity_VN.shape[1]), dim=1).indices
    return float((nearest == labels_V[:, None]).any(dim=1).float().mean() * 100)
