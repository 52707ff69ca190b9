"""``emcl study comparators``: EMCL beside PCA, a transformer, fully connected layers and a sparse autoencoder.

In: exported features of two disjoint sets (``model.heads.features``), kinds ``pooled`` or ``frames``. Out: one table,
the mean over seeds with the standard deviation.

Every correction gets the same rows, one unit vector for each video and each text of a batch (2B), and adds f(X) to
them; then cosine and InfoNCE. The features stay as they are: what is trained is the correction alone, for so many steps
of 128 pairs. So the table says what a correction is worth on a finished model, not what training a model with it is.
EMCL is tried twice: in the released arithmetic (K 32, 9 iterations, β 3), and in ours; it learns nothing but its state.
At test time all rows share the pass (protocol ``whole``); the others are applied row by row.

Shape suffixes: B pairs, N rows, T texts, V videos, D channels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import EMCLConfig
from model.emcl.diagnostics import effective_rank
from model.emcl.em import EMCL
from model.emcl.pooling import mean_pool
from model.evaluate.measure import measure
from model.evaluate.rank import Ranked
from model.heads.comparators import Comparator, CorrectionKind, PcaCorrection, build_comparator
from model.heads.features import FeaturesError, FeatureSet, read_features
from model.heads.losses import known_pairs, symmetric_info_nce

BATCH_PAIRS = 128  # the paper's batch
LEARNING_RATE = 1e-4  # the base model's, for everything new
KINDS: tuple[str, ...] = ("none", "emcl reference", "emcl channel", "pca", "transformer", "fc", "sae")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """``steps`` of training; ``log_scale`` is that of the loss, CLIP's ln 100 where the features state none."""

    seeds: Sequence[int] = (0, 1, 2)
    steps: int = 300
    batch: int = BATCH_PAIRS
    learning_rate: float = LEARNING_RATE


@dataclass(frozen=True, kw_only=True)
class Result:
    """One correction: R@1 both ways for each seed; what f adds, relative to the rows, and its effective rank."""

    name: str
    parameters: int
    flops_per_row: int
    to_videos: Sequence[float]
    to_texts: Sequence[float]
    size: float
    rank: float


def pooled_rows(features: FeatureSet) -> tuple[Tensor, Tensor]:
    """Return unit vectors of videos (V, D) and texts (T, D): text-free pooling where the features are frames."""
    if features.kind not in ("pooled", "frames"):
        raise FeaturesError(f"comparators need features of kind pooled or frames, got {features.kind}")
    video, text = (torch.from_numpy(np.array(features.arrays[name])) for name in ("video", "text"))
    if features.kind == "frames":
        video = mean_pool(video, torch.from_numpy(np.array(features.arrays["video_mask"])))
    return F.normalize(video, dim=-1), F.normalize(text, dim=-1)


def study(train: FeatureSet, test: FeatureSet, settings: Settings) -> list[Result]:
    """Train every correction with every seed on ``train`` and measure it on ``test``."""
    if len(settings.seeds) < 1 or train.arrays["text"].shape[-1] != test.arrays["text"].shape[-1]:
        raise ValueError("comparators need a seed, and training and test features of the same model")
    shared = set(train.video_ids) & set(test.video_ids)
    if shared:
        raise ValueError(f"{len(shared)} videos are in both sets, such as {sorted(shared)[0]}; test on other videos")
    return [_study_one(kind, train, test, settings) for kind in KINDS]


def _study_one(kind: str, train: FeatureSet, test: FeatureSet, settings: Settings) -> Result:
    scores = []
    for seed in settings.seeds:
        module = _module(kind, train.arrays["text"].shape[-1], seed)
        _train(module, train, settings, seed)
        scores.append(_measure(module.eval(), test))
    video_VD, text_TD = pooled_rows(test)
    rows_ND = torch.cat([video_VD, text_TD])
    with torch.no_grad():
        added_ND = module(rows_ND) - rows_ND
    dim, rows = rows_ND.shape[1], len(rows_ND)
    return Result(
        name=kind,
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        flops_per_row=_flops(module, dim, rows),
        to_videos=[to_videos for to_videos, _ in scores],
        to_texts=[to_texts for _, to_texts in scores],
        size=float(added_ND.norm(dim=1).mean()),
        rank=effective_rank(added_ND),
    )


def _module(kind: str, dim: int, seed: int) -> Comparator | EMCL:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "emcl reference":
            return EMCL(dim, EMCLConfig.reference(seed=seed))
        if kind == "emcl channel":
            return EMCL(dim, EMCLConfig(mode="channel", sigma=0.1, beta=0.1, seed=seed))
        return build_comparator(cast(CorrectionKind, kind), dim)


def _train(module: Comparator | EMCL, train: FeatureSet, settings: Settings, seed: int) -> None:
    """Train on batches of different videos with one text each; modules without parameters only see the batches."""
    video_VD, text_TD = pooled_rows(train)
    owner_T = torch.from_numpy(np.array(train.video_of_text_T))
    scale = torch.tensor(np.log(100.0) if train.logit_scale is None else train.logit_scale, dtype=torch.float32)
    parameters = list(module.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.2) if parameters else None
    generator = torch.Generator().manual_seed(seed)
    module.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # dropout
        for _ in range(settings.steps):
            chosen_B = torch.randperm(len(text_TD), generator=generator)[: settings.batch]
            loss = batch_loss(module, video_VD[owner_T[chosen_B]], text_TD[chosen_B], scale, owner_T[chosen_B])
            if optimiser is not None:
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimiser.step()


def batch_loss(
    module: Comparator | EMCL, video_BD: Tensor, text_BD: Tensor, log_scale: Tensor, videos_B: Tensor
) -> Tensor:
    """Return InfoNCE of a batch after the correction of its 2B rows, with the correction's own penalty.

    Texts of one video are not negatives of each other; ``videos_B`` says which video each pair is of.
    """
    rows_ND = torch.cat([video_BD, text_BD])
    out_ND = F.normalize(module(rows_ND), dim=-1)
    video, text = out_ND[: len(video_BD)], out_ND[len(video_BD) :]
    known = known_pairs(torch.stack([videos_B, torch.arange(len(videos_B))], dim=1))
    loss = symmetric_info_nce(text @ video.T, log_scale, known)
    return loss + module.penalty(rows_ND) if isinstance(module, Comparator) else loss


@torch.no_grad()
def _measure(module: Callable[[Tensor], Tensor], test: FeatureSet) -> tuple[float, float]:
    video_VD, text_TD = pooled_rows(test)
    out_ND = F.normalize(module(torch.cat([video_VD, text_TD])), dim=-1)
    video, text = out_ND[: len(video_VD)], out_ND[len(video_VD) :]
    scores_TV = (text @ video.T).numpy()
    row = measure("", Ranked(text_to_video_TV=scores_TV, video_to_text_VT=scores_TV.T), test)
    assert row.video_to_text is not None
    return row.text_to_video.recall[1], row.video_to_text.recall[1]


def _flops(module: Comparator | EMCL, dim: int, rows: int) -> int:
    """Multiplications and additions for one row, of a pass over ``rows``; normalisation and softmax left out."""
    if isinstance(module, EMCL):
        bases = module.config.num_bases
        return 4 * dim * bases * module.config.iterations + 2 * dim * bases
    if isinstance(module, PcaCorrection):
        return 4 * dim * module.kept
    weights = sum(parameter.numel() for parameter in module.parameters() if parameter.dim() > 1)
    return 2 * weights  # of the transformer as well: attention over a single row is its value


def table(results: Sequence[Result], settings: Settings) -> str:
    """Return the results as a Markdown table."""
    head = ["correction", "R@1 text → video", "R@1 video → text", "parameters", "FLOPs per row", "size", "rank"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for result in results:
        cells = [
            result.name,
            _over_seeds(result.to_videos),
            _over_seeds(result.to_texts),
            f"{result.parameters:,}",
            f"{result.flops_per_row:,}",
            f"{result.size:.3f}",
            f"{result.rank:.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        f"{len(settings.seeds)} seeds: mean ± standard deviation over them. size: mean norm of f(X), that of the rows "
        "being 1; rank: effective rank of f(X). Features frozen, the correction alone trained.",
        "unknown in the sources, chosen here: PCA fitted on running moments; transformer of 8 heads, each row alone; "
        f"sae weights 1 and 0.001; unit rows; {settings.steps} steps of {settings.batch} pairs at "
        f"{settings.learning_rate:g}.",
    ]
    return "\n".join(lines)


def _over_seeds(values: Sequence[float]) -> str:
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def run(train: Path, test: Path, settings: Settings, json_file: Path | None = None) -> str:
    """Read both files, study, write JSON where asked, and return the table."""
    results = study(read_features(train), read_features(test), settings)
    if json_file is not None:
        facts: dict[str, Any] = {"settings": vars(settings) | {"seeds": list(settings.seeds)}}
        facts["results"] = [vars(result) for result in results]
        json_file.write_text(json.dumps(facts, indent=2, default=list) + "\n", encoding="utf-8")
    return table(results, settings)
