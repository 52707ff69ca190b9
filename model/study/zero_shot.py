"""``emcl study zero-shot``: which class a video is of, by prompts, without EMCL and with it (supplementary, table 3).

In: exported features (kinds ``frames`` or ``pooled``), a file of each video's class, and the model that made them, for
the prompts. Out: one table of top-1 and top-5 accuracy with binomial standard errors, beside the published pair.

Classes come from ActivityNet's file (``{"database": {id: {"annotations": [{"label": …}]}}}``) or a mapping of video ids
to labels; names are put into the prompt in lower case. Where EMCL acts is a choice: on a pass's videos and prompts.

Shape suffixes: V videos, N classes, D channels.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import EMCLConfig
from model.emcl.em import EMCL
from model.emcl.pooling import unit_mean_pool
from model.encoder import Encoder, load_encoder
from model.evaluate.features import INFERENCE_SETTINGS
from model.evaluate.labels import prompts_of
from model.evaluate.paper_results import OTHER_TASKS
from model.evaluate.zero_shot import accuracy, similarity
from model.heads.features import FeaturesError, FeatureSet, read_features
from model.options import ZeroShotOptions

_ACTIVITYNET_PREFIX = "v_"  # of ActivityNet's file names, absent from its annotations


@dataclass(frozen=True, kw_only=True)
class Line:
    """One way of classifying: percentages of videos."""

    name: str
    top1: float
    top5: float


def read_classes(path: Path) -> dict[str, str]:
    """Return the class of each video id. Raises ``ValueError`` that names the file and what is wrong."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if isinstance(content, dict) and isinstance(content.get("database"), dict):
        found = {name: _annotated(path, name, entry) for name, entry in content["database"].items()}
        return {name: label for name, label in found.items() if label is not None}
    if isinstance(content, dict) and content and all(isinstance(label, str) for label in content.values()):
        return dict(content)
    raise ValueError(f"{path} must be ActivityNet's file with a database, or a mapping of video ids to labels")


def _annotated(path: Path, name: str, entry: Any) -> str | None:
    """The label of a video's annotations; None for a video of the test set, which has none."""
    annotations = entry.get("annotations") if isinstance(entry, dict) else None
    if not isinstance(annotations, list):
        raise ValueError(f"{path}: {name} has no list of annotations")
    labels = {part.get("label") for part in annotations if isinstance(part, dict)}
    if len(labels) > 1:
        raise ValueError(f"{path}: {name} has several labels: {', '.join(sorted(map(str, labels)))}; expected one")
    return str(labels.pop()) if labels else None


def study(features: FeatureSet, classes: dict[str, str], encoder: Encoder, prompt: str) -> tuple[list[Line], int]:
    """Classify all videos that have a class. Returns the lines, and the number of those videos."""
    if features.settings.get("fingerprint") != encoder.fingerprint:
        raise FeaturesError(
            f"the features are of model {str(features.settings.get('fingerprint'))[:12]}, --model is "
            f"{encoder.fingerprint[:12]}; prompts must be encoded by the model of the videos"
        )
    names = sorted({label.lower() for label in classes.values()})
    own = [classes.get(name, classes.get(name.removeprefix(_ACTIVITYNET_PREFIX))) for name in features.video_ids]
    known = [number for number, label in enumerate(own) if label is not None]
    if not known:
        raise ValueError("none of the videos has a class in --classes; are its ids those of the features' video_ids?")
    video_VD = _videos(features)[known]
    targets_V = torch.tensor([names.index(label.lower()) for label in own if label is not None])
    prompt_ND = F.normalize(torch.from_numpy(encoder.encode_texts(prompts_of(names, prompt))), dim=-1)
    lines = [_line("without EMCL", similarity(video_VD, prompt_ND), targets_V)]
    for config in (INFERENCE_SETTINGS["pooled"], EMCLConfig(mode="channel", sigma=0.1, beta=0.1)):
        emcl = EMCL(video_VD.shape[1], config).eval()
        named = f"EMCL {config.mode}, beta {config.beta:g}"
        with torch.no_grad():
            single = torch.cat([similarity(video_D[None], prompt_ND, emcl) for video_D in video_VD])
            together = similarity(video_VD, prompt_ND, emcl)
        lines += [_line(f"{named}, per-query", single, targets_V), _line(f"{named}, whole", together, targets_V)]
    return lines, len(known)


def _videos(features: FeatureSet) -> Tensor:
    """Unit vectors (V, D), CLIP4Clip's pooling of frames."""
    video = torch.from_numpy(np.array(features.arrays["video"]))
    if features.kind == "frames":
        return unit_mean_pool(video, torch.from_numpy(np.array(features.arrays["video_mask"])))
    if features.kind == "pooled":
        return F.normalize(video, dim=-1)
    raise FeaturesError(f"classification needs features of kind frames or pooled, got {features.kind}")


def _line(name: str, similarity_VN: Tensor, targets_V: Tensor) -> Line:
    return Line(name=name, top1=accuracy(similarity_VN, targets_V), top5=accuracy(similarity_VN, targets_V, top=5))


def run(options: ZeroShotOptions) -> str:
    """Classify, and return the table."""
    classes = read_classes(options.classes)
    features = read_features(options.features)
    encoder = load_encoder(options.model, pretrained=options.pretrained, device=options.device)
    lines, videos = study(features, classes, encoder, options.prompt)
    published = next(row for row in OTHER_TASKS if row.base == "CLIP4Clip")
    rows = ["| way | top-1 | top-5 |", "|---|---|---|"]
    where = f"published: {published.base}, {published.data_set}"
    rows.append(f"| {where} | {published.without_emcl} | – |")
    rows.append(f"| {where} + EMCL | {published.with_emcl} | – |")
    rows += [f"| {line.name} | {_with_error(line.top1, videos)} | {_with_error(line.top5, videos)} |" for line in lines]
    count, left_out = len(set(classes.values())), len(features.video_ids) - videos
    rows += [
        "",
        f"{videos} videos, {left_out} without a class left out; {count} classes; prompt: {options.prompt!r}; ± is the "
        "standard error over videos. The published pair states no settings, no seeds and no error.",
    ]
    return "\n".join(rows)


def _with_error(percent: float, videos: int) -> str:
    share = percent / 100
    return f"{percent:.1f} ± {100 * math.sqrt(share * (1 - share) / videos):.1f}"
