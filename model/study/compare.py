"""``emcl compare``: several training seeds against several, on the same labelled videos.

In: checkpoints, or folders of training runs, and the videos. Out: for both ways mean and deviation over seeds, the
t-test over seeds (paired where there are as many on both sides) and the sign test over videos of the mean over seeds. A
difference between single models says nothing of the methods that trained them: below three seeds nothing is claimed.

Shape suffixes: S seeds, V videos, W the two ways.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.data.dataset import Split
from model.emcl.correction import Correction
from model.emcl.em import FrozenMap
from model.study.per_video_ranks import WAYS, VideoRanks, ranks_of, video_ranks_of
from model.study.significance import Interval, PairedTest, bootstrap, compare

FEWEST_SEEDS = 3
SIGNIFICANCE = 0.05


@dataclass(frozen=True, kw_only=True)
class TTest:
    """Student's t with its degrees of freedom and two-sided p; all NaN where there are too few seeds."""

    t: float
    degrees: int
    p: float


@dataclass(frozen=True, kw_only=True, eq=False)
class WayComparison:
    """R@1 in percent of one way: of each seed on both sides, their difference over seeds and over videos."""

    name: str
    ours_S: NDArray[np.float64]
    theirs_S: NDArray[np.float64]
    seeds: TTest
    videos: PairedTest
    difference: Interval


@dataclass(frozen=True, kw_only=True, eq=False)
class RunComparison:
    """Both ways; ``paired`` says whether seed i of one side belongs to seed i of the other."""

    ways: tuple[WayComparison, ...]
    paired: bool

    @property
    def seeds(self) -> int:
        """The smaller number of seeds."""
        return min(min(len(way.ours_S), len(way.theirs_S)) for way in self.ways)

    @property
    def may_claim(self) -> bool:
        """Whether there are enough seeds on both sides for any claim."""
        return self.seeds >= FEWEST_SEEDS

    def text(self) -> str:
        """A Markdown table and a verdict."""
        head = ["way", "R@1", "against", "difference over videos", "sign test over videos", "t-test over seeds"]
        lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        for way in self.ways:
            lines.append(
                f"| {way.name} | {_mean(way.ours_S)} | {_mean(way.theirs_S)} | {way.difference.text(1, sign=True)} | "
                f"{way.videos.wins} better, {way.videos.losses} worse, p = {way.videos.p:.2g} | {_t_text(way.seeds)} |"
            )
        return "\n".join([*lines, "", self.verdict()])

    def verdict(self) -> str:
        """What may be said."""
        if not self.may_claim:
            return (
                f"No claim: {self.seeds} seed{'s' if self.seeds != 1 else ''} on a side, {FEWEST_SEEDS} needed. "
                "Another training seed moves R@1 by points; train more seeds of both."
            )
        found = []
        for way in self.ways:
            sure = way.seeds.p < SIGNIFICANCE and way.videos.p < SIGNIFICANCE
            word = "better" if way.difference.mean > 0 else "worse"
            found.append(f"{way.name}: {word if sure else 'no difference'} beyond chance")
        return "; ".join(found) + f" (p < {SIGNIFICANCE:g} over seeds and over videos)."

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "paired": self.paired,
            "may_claim": self.may_claim,
            "ways": [
                {
                    "way": way.name,
                    "r1": way.ours_S.tolist(),
                    "against_r1": way.theirs_S.tolist(),
                    "difference": vars(way.difference),
                    "sign_test": vars(way.videos),
                    "t_test": {name: None if value != value else value for name, value in vars(way.seeds).items()},
                }
                for way in self.ways
            ],
        }


def compare_runs(ours: Sequence[VideoRanks], theirs: Sequence[VideoRanks]) -> RunComparison:
    """Compare training runs on the same videos; seeds are paired if there are as many on both sides."""
    paired = len(ours) == len(theirs)
    ways = []
    for number, name in enumerate(WAYS):
        ours_SV = 100 * np.stack([video_ranks.first_VW[:, number] for video_ranks in ours])
        theirs_SV = 100 * np.stack([video_ranks.first_VW[:, number] for video_ranks in theirs])
        difference_V = ours_SV.mean(axis=0) - theirs_SV.mean(axis=0)
        ours_S, theirs_S = ours_SV.mean(axis=1), theirs_SV.mean(axis=1)
        ways.append(
            WayComparison(
                name=name,
                ours_S=ours_S,
                theirs_S=theirs_S,
                seeds=paired_t_test(ours_S - theirs_S) if paired else t_test(ours_S, theirs_S),
                videos=compare(difference_V),
                difference=bootstrap(difference_V),
            )
        )
    return RunComparison(ways=tuple(ways), paired=paired)


def paired_t_test(differences_S: NDArray[np.float64]) -> TTest:
    """Student's t of paired differences against 0."""
    count = len(differences_S)
    if count < 2:
        return TTest(t=math.nan, degrees=0, p=math.nan)
    return _tested(float(differences_S.mean()), float(differences_S.std(ddof=1) / math.sqrt(count)), count - 1)


def t_test(ours_S: NDArray[np.float64], theirs_S: NDArray[np.float64]) -> TTest:
    """Student's t of two samples with one variance."""
    degrees = len(ours_S) + len(theirs_S) - 2
    if min(len(ours_S), len(theirs_S)) < 2:
        return TTest(t=math.nan, degrees=0, p=math.nan)
    squares = float(((ours_S - ours_S.mean()) ** 2).sum() + ((theirs_S - theirs_S.mean()) ** 2).sum())
    error = math.sqrt(squares / degrees * (1 / len(ours_S) + 1 / len(theirs_S)))
    return _tested(float(ours_S.mean() - theirs_S.mean()), error, degrees)


def _tested(difference: float, error: float, degrees: int) -> TTest:
    if error == 0:
        t = math.inf if difference else 0.0
        return TTest(t=math.copysign(t, difference), degrees=degrees, p=0.0 if difference else 1.0)
    t = difference / error
    return TTest(t=t, degrees=degrees, p=two_sided_p(t, degrees))


def two_sided_p(t: float, degrees: int) -> float:
    """P(|T| > |t|) for whole degrees of freedom, by the finite series (Abramowitz and Stegun 26.7.3, 26.7.4)."""
    angle = math.atan(abs(t) / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    if degrees == 1:
        return max(0.0, 1 - 2 * angle / math.pi)
    term = total = cosine if degrees % 2 else 1.0
    for k in range(3 if degrees % 2 else 2, degrees - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    inside = 2 / math.pi * (angle + sine * total) if degrees % 2 else sine * total
    return max(0.0, 1 - inside)


def _mean(values_S: NDArray[np.float64]) -> str:
    spread = f" ± {values_S.std(ddof=1):.1f}" if len(values_S) > 1 else ""
    return f"{values_S.mean():.1f}{spread} ({len(values_S)})"


def _t_text(test: TTest) -> str:
    return "–" if math.isnan(test.t) else f"t({test.degrees}) = {test.t:.2f}, p = {test.p:.2g}"


def checkpoint_of(run: Path) -> Path:
    """The checkpoint of a run: its folder's ``model.safetensors``, or the file itself. Raises ``FileNotFoundError``."""
    path = run / "model.safetensors" if run.is_dir() else run
    if not path.with_suffix(".safetensors").is_file():
        raise FileNotFoundError(f"{run} is neither a checkpoint NAME.safetensors nor a training run with one")
    return path


def video_ranks_of_runs(
    runs: Sequence[Path], data: Path, split: Split, *, allow_missing: bool, device: str
) -> list[VideoRanks]:
    """Rank the videos with each run's model as it would be served: with what was calibrated for it, if anything was.

    Hub bases of a bank are the index's, not the model's, and are left out.
    """
    from dataclasses import replace

    from model.data.registry import open_for_evaluation
    from model.encoder import load_encoder
    from model.evaluate.corpus import encode_corpus
    from model.evaluate.rank import fill_behind, rank_corrected

    found = []
    for path in [checkpoint_of(run) for run in runs]:
        clips = open_for_evaluation(data, split, allow_missing=allow_missing).clips
        encoder = load_encoder(str(path), device=device)
        corpus = encode_corpus(encoder, clips)
        candidates = encoder.config.search.candidates
        settings = encoder.calibrated
        if settings is not None and settings.paired is not None:
            correction = Correction.fit(
                FrozenMap.neutral(encoder.dim),
                replace(settings, hub_strength=0.0),
                banks={},
                pooling=encoder.pooling,
            )
            ranked, first = rank_corrected(encoder, corpus, correction, candidates=candidates)
            found.append(ranks_of(fill_behind(ranked, first), corpus).per_video())
        else:
            found.append(video_ranks_of(encoder, corpus, encoder.config.emcl, candidates=candidates))
    return found
