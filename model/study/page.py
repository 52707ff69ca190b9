"""``emcl report``: one HTML file that shows what EMCL does to a model, no scripts, nothing loaded from elsewhere.

In: an encoder, clips, their encoded corpus, optionally a training run. Out: the page as text. All that comes from the
data (captions, names) is escaped, and the page's own policy forbids everything but its styles and its pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from model.data.clips import Clip
from model.encoder import Encoder
from model.evaluate.metrics import RetrievalMetrics
from model.evaluate.run import Corpus
from model.study import figures
from model.study.html import figure, page, row, section
from model.study.numbers import (
    Change,
    Effect,
    ModalityGap,
    Subspaces,
    SubspaceView,
    bases_in_training,
    bases_now,
    effect_of_emcl,
    modality_gap,
)
from model.study.per_video_ranks import describe
from model.study.strips import Strips

QUERIES_EACH_WAY = 3
HITS = 5
EXAMPLES = 2
_LINKED = 40
_STRIP_FRAMES, _STRIP_HEIGHT = 4, 72


@dataclass(frozen=True, kw_only=True)
class ReportFacts:
    """What the page says of its data: a name, the split, videos that were missing, the seed of the bootstrap."""

    data: str
    split: str
    videos_lost: int
    seed: int


def build_report(
    encoder: Encoder, clips: Sequence[Clip], corpus: Corpus, facts: ReportFacts, *, run: Path | None = None
) -> str:
    """Measure and write the page. Raises ``ValueError`` for a model with ``beta`` 0: there is nothing to show of it."""
    if encoder.config.emcl.beta == 0:
        raise ValueError(
            "this checkpoint leaves EMCL out (beta 0), so with and without it are the same; pass --beta, such as 0.1, "
            "to see what it would do"
        )
    training = None if run is None else _training(run)  # a wrong folder is told before the work
    candidates = encoder.config.search.candidates
    rows_ND = np.concatenate([encoder.pool(corpus.features_VFD, corpus.mask_VF), corpus.text_TD])
    frozen = encoder.fit_frozen_map(rows_ND)
    effect = effect_of_emcl(encoder, corpus, candidates=candidates, shown=QUERIES_EACH_WAY, hits=HITS, seed=facts.seed)
    strips = Strips(clips, encoder.config.sampling)
    view = SubspaceView(encoder, clips, corpus, frozen)
    examples = [view.of(row) for row in _example_rows(effect, corpus)]
    captions = [text for clip in clips for text in clip.captions]
    parts = [
        _intro(encoder, corpus, facts),
        _scores(effect, candidates),
        _gap_section(modality_gap(encoder, corpus, frozen)),
        _subspace_section(examples, clips, strips),
        _ranked_section(effect, captions, strips),
        _bases_section(encoder, corpus, training),
    ]
    return page(f"EMCL in {encoder.config.name}", parts)


def _intro(encoder: Encoder, corpus: Corpus, facts: ReportFacts) -> str:
    videos, texts = len(corpus.mask_VF), len(corpus.text_TD)
    lost = f" {facts.videos_lost} videos of the split are missing." if facts.videos_lost else ""
    return (
        f"<h1>What EMCL does in {escape(encoder.config.name)}</h1>\n"
        f'<p class="faint">{escape(describe(encoder.config.emcl))} · fingerprint {encoder.fingerprint[:12]} · '
        f"{videos} videos and {texts} captions of {escape(facts.data)}, split {escape(facts.split)}.{lost} "
        "One checkpoint is one training seed: differences between seeds are not in these figures.</p>"
    )


def _scores(effect: Effect, candidates: int) -> str:
    head = ["", *(f"{way} {name}" for way in ("t→v", "v→t") for name in ("R@1", "R@5", "R@10", "MdR", "MnR"))]
    rows = [("without EMCL", effect.without), ("with EMCL", effect.with_emcl)]
    body = "".join(row("td", [name, *(cell for one in both for cell in _cells(one))]) for name, both in rows)
    found = effect.comparison
    chance = "more than chance" if found.ranks.p < 0.05 else "no more than chance"
    return section(
        "Retrieval with and without EMCL",
        f'<div class="scroll"><table>{row("th", head)}{body}</table></div>\n'
        f"<p>Of the videos, {found.ranks.wins} are found better with EMCL and {found.ranks.losses} worse, counted by "
        f"their mean reciprocal rank: {chance} (sign test, p = {found.ranks.p:.2g}). R@1 changes by "
        f"{found.first_difference[0].text(1, sign=True)} points from text to video and by "
        f"{found.first_difference[1].text(1, sign=True)} from video to text (95\u00a0% bootstrap "
        "intervals over videos).</p>"
        f'<p class="faint">Ranked as the service ranks: {candidates} candidates of stage 1, text-conditioned pooling, '
        "one EM pass per query. Recall in percent.</p>",
    )


def _cells(metrics: RetrievalMetrics) -> list[str]:
    recall = [f"{metrics.recall[k]:.1f}" for k in (1, 5, 10)]
    return [*recall, f"{metrics.median_rank:g}", f"{metrics.mean_rank:.2f}"]


def _gap_section(gap: ModalityGap) -> str:
    rows = (
        (
            "distance between the means of videos and captions",
            gap.before.centroid_distance,
            gap.after.centroid_distance,
        ),
        ("mean cosine of a video and its caption", gap.before.matched_cosine, gap.after.matched_cosine),
        ("mean cosine of a video and another's caption", gap.before.mismatched_cosine, gap.after.mismatched_cosine),
    )
    body = "".join(row("td", [name, f"{a:.4f}", f"{b:.4f}", f"{b - a:+.4f}"]) for name, a, b in rows)
    picture = figures.draw_gap(gap.points_before, gap.points_after, linked=_LINKED)
    return section(
        "The gap between videos and captions",
        f"<table>{row('th', ['unit vectors', 'before', 'after', 'change'])}{body}</table>"
        + figure(
            picture,
            "Videos and captions on the same two axes before and after EMCL",
            "Pooled videos (blue) and their first captions (orange), L2-normalised, before and after the frozen EMCL "
            "map that stage 1 uses. Both panels have the same axes, the first two principal components before EMCL "
            f"({100 * gap.shown_variance:.0f} % of the variance). Crosses are the means, whose distance is the gap; "
            f"grey lines join the first {_LINKED} pairs. A gap that closes while right and wrong pairs move together "
            "gains nothing: compare the second and third line of the table.",
        ),
    )


def _subspace_section(examples: Sequence[Subspaces], clips: Sequence[Clip], strips: Strips) -> str:
    parts = [
        "<p>EMCL groups the channels of the features into K subspaces, one for each base. Where a frame and a word "
        "stand out in the same subspaces, they share a meaning there (after figure 1 of the paper's supplementary).</p>"
    ]
    for example in examples:
        frames = [f"frame {number}" for number in range(1, len(example.frames_FK) + 1)]
        heat = figures.draw_subspaces(
            np.concatenate([example.frames_FK, example.words_LK]), [*frames, *example.words], len(frames)
        )
        panels = {"all channels": example.plain_similarity_FL, "in the subspaces": example.similarity_FL}
        similar = figures.draw_similarity(panels, frames, example.words)
        parts.append(
            f"<h3>{escape(clips[example.row].captions[0])}</h3>\n"
            f'<figure><img alt="The frames that the model sees" src="{strips.of(example.row, frames=None, height=96)}">'
            "</figure>"
            + figure(
                heat,
                "Coordinates of frames and words in the subspaces",
                "How strongly each frame (above the line) and each word (below) is expressed in each subspace: "
                "coordinates in standard deviations, frames against all frames, words against all words of the "
                "captions. Each word is encoded as a text of its own.",
            )
            + figure(
                similar,
                "Similarity of frames and words, of all channels and in the subspaces",
                "Cosines of frames and words, after taking off the mean frame and the mean word: on the left with all "
                "channels, on the right with the K coordinates above.",
            )
        )
    if not examples:
        parts.append("<p>No caption finds its video first, so there is no example to look at.</p>")
    return section("Frames and words in the subspaces", "\n".join(parts))


def _example_rows(effect: Effect, corpus: Corpus) -> list[int]:
    """The videos with the most frames among those that their caption finds; the first of equals."""
    found = effect.first_with_emcl
    frames = corpus.mask_VF.sum(axis=1)[found]
    return [int(row) for row in found[np.argsort(-frames, kind="stable")][:EXAMPLES]]


def _ranked_section(effect: Effect, captions: Sequence[str], strips: Strips) -> str:
    parts = [
        f"<p>The captions whose video rises or falls most, with the first {HITS} videos without and with EMCL, "
        f"{_STRIP_FRAMES} frames each. The right video is framed in green, below the others if it is not among them "
        "(after figure 2 of the supplementary). These "
        "are the extremes, both ways, and not what usually happens.</p>"
    ]
    for title, changes in (("Rises with EMCL", effect.rises), ("Falls with EMCL", effect.falls)):
        parts.append(f"<h3>{title}</h3>")
        if not changes:
            parts.append("<p>None: no caption's video changes its rank this way.</p>")
        parts += [_query(change, captions[change.text], strips) for change in changes]
    return section("Ranked results with and without EMCL", "\n".join(parts))


def _query(change: Change, caption: str, strips: Strips) -> str:
    kind = "up" if change.rank_with < change.rank_without else "down"
    ways = (("without EMCL", change.first_without), ("with EMCL", change.first_with))
    lists = ""
    for name, rows in ways:
        hits = "".join(_hit(row, f"{place}", row == change.match, strips) for place, row in enumerate(rows, start=1))
        if change.match not in rows:
            rank = change.rank_without if rows is change.first_without else change.rank_with
            hits += _hit(change.match, f"{rank + 1:g}", True, strips)
        lists += f"<div><h4>{name}</h4><ol>{hits}</ol></div>"
    return (
        f'<div class="query"><q>{escape(caption)}</q><span class="rank {kind}">rank {change.rank_without + 1:g} → '
        f'{change.rank_with + 1:g}</span><div class="ways">{lists}</div></div>'
    )


def _hit(row: int, place: str, is_match: bool, strips: Strips) -> str:
    source = strips.of(row, frames=_STRIP_FRAMES, height=_STRIP_HEIGHT)
    label = f"place {place}{', the right video' if is_match else ''}"
    kind = "match" if is_match else "other"
    return f'<li class="{kind}"><span>{place}</span><img alt="{label}" src="{source}"></li>'


def _training(run: Path) -> str:
    found = bases_in_training(run)
    name = escape(run.name)
    if found is None:
        return (
            f"<p>The log of the run {name} holds no measurements of the bases: a training writes them where the EM "
            "pass is part of its loss (<code>joint_emcl</code>).</p>"
        )
    return figure(
        figures.draw_bases(found.steps, found.curves),
        "Distinct bases, effective rank and size of the correction over the steps of the training",
        f"The run {name}: bases that differ in direction (cosine below 0.9999), effective rank of the correction, and "
        "its size relative to the features, over the training batches. Bases that melt into one another show as a fall "
        "of the first two.",
    )


def _bases_section(encoder: Encoder, corpus: Corpus, training: str | None) -> str:
    now, config = bases_now(encoder, corpus), encoder.config.emcl
    absent = "<p>No training run was given (<code>--run</code>), so their course during training is not shown.</p>"
    return section(
        "Rank and distinctness of the bases",
        f"<p>On these videos and captions, {now.distinct_bases} of {config.num_bases} bases are distinct, the "
        f"correction has an effective rank of {now.effective_rank:.1f}, and its size is "
        f"{100 * now.correction_ratio:.1f} % of the features'.</p>\n{absent if training is None else training}",
    )
