"""The output of ``emcl evaluate``: one table on the terminal, a JSON file, a Markdown report.

In: rows of metrics, published rows, and facts about the run. Figures are percentages and ranks from 1; what was not
measured, or is not given where it was published, is a dash.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from model.evaluate.metrics import RECALL_AT, RetrievalMetrics
from model.evaluate.paper_results import PaperResult

if TYPE_CHECKING:
    from model.evaluate.measure import Row

MISSING = "–"
WAYS = ("text → video", "video → text")
COLUMNS = (*(f"R@{k}" for k in RECALL_AT), "MdR", "MnR")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a reader must know about a run to compare its figures with others'."""

    data: str
    split: str
    videos: int
    videos_lost: int
    captions: int
    multi_sentence: bool
    fingerprint: str
    emcl: Mapping[str, Any]
    protocol: str
    metric_rules: str
    candidates: int | None
    deviations: Sequence[str]
    query_bank: Mapping[str, Any] | None
    training_seeds: int = 1
    runtime: str = "torch fp32"

    def as_dict(self) -> dict[str, Any]:
        """Return a mapping for JSON."""
        return {**vars(self), "emcl": dict(self.emcl), "deviations": list(self.deviations)}


def report(rows: Sequence[Row], published: Sequence[PaperResult] = (), **facts: Any) -> dict[str, Any]:
    """Return what ``emcl evaluate --json`` writes. One checkpoint is one training seed, and says so."""
    return {
        "training_seeds": 1,
        **facts,
        "rows": [
            {
                "name": row.name,
                "transductive": row.transductive,
                "text_to_video": row.text_to_video.as_dict(),
                "video_to_text": None if row.video_to_text is None else row.video_to_text.as_dict(),
            }
            for row in rows
        ],
        "published": [row.as_dict() for row in published],
    }


def table(rows: Sequence[Row], published: Sequence[PaperResult] = ()) -> str:
    """Return published rows and ours as a Markdown table; R@1 of ours with its standard error over queries."""
    head = ["ranking", *(f"{way} {name}" for way in WAYS for name in COLUMNS)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for given in published:
        cells = [f"published: {given.method} ({given.source})"]
        for figures in (given.text_to_video, given.video_to_text):
            cells += [f"{figures[name]:g}" if name in figures else MISSING for name in COLUMNS]
        lines.append("| " + " | ".join(cells) + " |")
    for row in rows:
        cells = [f"{row.name}{' (transductive)' if row.transductive else ''}"]
        for metrics in (row.text_to_video, row.video_to_text):
            cells += [MISSING] * len(COLUMNS) if metrics is None else _cells(metrics)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cells(metrics: RetrievalMetrics) -> list[str]:
    first, *others = RECALL_AT
    return [
        f"{metrics.recall[first]:.1f} ± {metrics.recall_errors[first]:.1f}",
        *(f"{metrics.recall[k]:.1f}" for k in others),
        f"{metrics.median_rank:g}",
        f"{metrics.mean_rank:.2f}",
    ]


def conditions(facts: Facts) -> list[str]:
    """Describe in a few lines how the figures were measured, for the terminal and the report."""
    bank = facts.query_bank
    lines = [
        f"data: {facts.data}, {facts.split} split; {facts.videos} videos, {facts.captions} captions"
        + (", several a video: the best of a video's captions counts from video to text" * facts.multi_sentence)
        + f"; {facts.videos_lost or 'no'} videos missing",
        f"model: fingerprint {facts.fingerprint[:12]}, {facts.training_seeds} training seed: ± is the standard error "
        "over queries, not over seeds",
        f"protocol: {facts.protocol}, metric rules: {facts.metric_rules}",
        "dual softmax is transductive: it looks at all queries at once, which a service never has",
    ]
    if facts.runtime != "torch fp32":
        lines.append(f"features by {facts.runtime}, which rounds otherwise than PyTorch in fp32")
    if bank is not None:
        shared = f"; {bank['shared']} OF THEM ARE CAPTIONS OF THIS SET" if bank["shared"] else ""
        lines.append(
            f"QB-Norm: {bank['queries']} of {bank['available']} captions of {bank['source']} (seed {bank['seed']}), "
            f"beta {bank['beta']:g}, top {bank['top']}{shared}; "
            + (f"captions are ranked by {bank['videos']} videos" if bank["videos"] else "it ranks videos alone")
        )
    return lines


def markdown(rows: Sequence[Row], published: Sequence[PaperResult], facts: Facts) -> str:
    """Return the report of ``emcl evaluate --markdown``: conditions, table, deviations from the released protocol."""
    nothing = ["nothing known to differ"]
    return "\n".join(
        [
            f"# Evaluation: {facts.data}, {facts.split} split, protocol {facts.protocol}",
            "",
            *(f"* {line}" for line in conditions(facts)),
            "",
            table(rows, published),
            "",
            f"{MISSING}: not given in the source, or not measured. Published rows are others' training runs on the "
            "whole data set."
            if published
            else f"{MISSING}: not measured. There are no published figures for this data.",
            "",
            "## What differs from the released evaluation",
            *(f"* {line}" for line in (list(facts.deviations) or nothing)),
            "",
            "## Files and settings",
            f"* fingerprint: `{facts.fingerprint}`",
            f"* EMCL of the checkpoint: {', '.join(f'{name} {value}' for name, value in facts.emcl.items())}",
            *([f"* candidates: {facts.candidates}"] if facts.candidates is not None else []),
            "",
        ]
    )
