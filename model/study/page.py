"""``emcl report``: one HTML file that shows what EMCL does to a model, no scripts, nothing loaded from elsewhere.

In: an encoder, clips, their encoded corpus, optionally a training run. Out: the page as text. All that comes from the
data (captions, names) is escaped, and the page's own policy forbids everything but its styles and its pictures.

The bones of a page that holds everything itself: style, policy, sections, figures, table rows. All text is escaped.

``page`` and ``section`` take HTML as content; every other argument is plain text.

Strips of frames: a video as one small picture, for pages that must hold everything themselves.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from model.config import SamplingConfig
from model.data.clips import Clip
from model.encoder import Encoder
from model.evaluate.metrics import RetrievalMetrics
from model.evaluate.run import Corpus
from model.study import figures
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
from model.video.sampling import decode

_GAP_PIXELS = 2

_JPEG_QUALITY = 82


class Strips:
    """Strips of the clips of a corpus, each decoded once."""

    def __init__(self, clips: Sequence[Clip], sampling: SamplingConfig) -> None:
        self._clips, self._sampling = clips, sampling
        self._made: dict[tuple[int, int | None, int], str] = {}

    def of(self, row: int, *, frames: int | None, height: int) -> str:
        """A data URI (JPEG) of up to ``frames`` frames side by side in order of time; ``None``: all that the model saw.

        Raises ``ValueError`` that names a video which cannot be decoded.
        """
        key = (row, frames, height)
        if key not in self._made:
            self._made[key] = self._make(self._clips[row], frames, height)
        return self._made[key]

    def _make(self, clip: Clip, frames: int | None, height: int) -> str:
        sampling = self._sampling if frames is None else self._sampling.model_copy(update={"max_frames": frames})
        try:
            shot = decode(clip.path, sampling=sampling, start_seconds=clip.start_seconds, end_seconds=clip.end_seconds)
        except ValueError as error:
            raise ValueError(f"{clip.path} cannot be decoded ({error})") from error
        width = max(1, round(shot.frames.shape[2] * height / shot.frames.shape[1]))
        pictures = [Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC) for frame in shot.frames]
        strip = Image.new("RGB", (len(pictures) * (width + _GAP_PIXELS) - _GAP_PIXELS, height), "white")
        for place, picture in enumerate(pictures):
            strip.paste(picture, (place * (width + _GAP_PIXELS), 0))
        return data_uri(strip)


def data_uri(picture: Image.Image) -> str:
    """A picture as JPEG in a data URI."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


_CSS = """
:root { color-scheme: light; }
body { margin: 0; background: #f6f7f9; color: #2b2f36; font: 15px/1.55 system-ui, "DejaVu Sans", sans-serif; }
main { max-width: 1000px; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; } h2 { font-size: 1.2rem; margin: 0 0 .6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
section { background: #fff; border: 1px solid #e3e6eb; border-radius: 10px; padding: 1.4rem 1.6rem; }
section { margin-top: 1.4rem; }
p { margin: .4rem 0 .8rem; } .faint { color: #626a76; }
figure { margin: 1rem 0 0; } figure > img { max-width: 100%; display: block; }
figcaption { color: #4d5560; font-size: .9rem; margin-top: .5rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .6rem 0; }
th, td { text-align: right; padding: .3rem .8rem; border-bottom: 1px solid #e9ecf0; } th { font-weight: 600; }
th:first-child, td:first-child { text-align: left; padding-left: 0; white-space: nowrap; }
.scroll { overflow-x: auto; }
.query { border-top: 1px solid #e9ecf0; padding: .9rem 0 1rem; } .query q { font-weight: 600; }
.rank { display: inline-block; border-radius: 5px; padding: 0 .5rem; margin-left: .4rem; font-size: .85rem; }
.up { background: #dff2ea; color: #1d6b52; } .down { background: #fbe6df; color: #9a3b1c; }
.ways { display: grid; grid-template-columns: 1fr 1fr; gap: 1.4rem; margin-top: .6rem; }
.ways ol { list-style: none; margin: 0; padding: 0; } .ways h4 { margin: 0 0 .3rem; font-size: .9rem; color: #4d5560; }
.ways li { display: flex; align-items: center; gap: .6rem; margin-bottom: .35rem; }
.ways li span { min-width: 1.2rem; text-align: right; color: #626a76; }
.ways img { height: 58px; max-width: calc(100% - 2rem); border: 3px solid transparent; border-radius: 5px; }
.ways li.match img { border-color: #2e8b6f; } .ways li.match span { color: #1d6b52; font-weight: 700; }
"""

_HEAD = (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
    "style-src 'unsafe-inline'\">\n"
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
)


def page(title: str, sections: Sequence[str]) -> str:
    """A whole document. Its policy forbids scripts and everything that is not in the file itself."""
    body = "\n".join(sections)
    return (
        f"{_HEAD}<title>{escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body><main>\n{body}\n</main></body>\n"
        "</html>\n"
    )


def section(title: str, content: str) -> str:
    """A card with a heading."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}\n</section>"


def figure(svg: str, alt: str, caption: str) -> str:
    """A drawing with its explanation. As an image, so that the ids of several drawings do not meet."""
    source = base64.b64encode(svg.encode()).decode()
    return (
        f'<figure><img alt="{escape(alt)}" src="data:image/svg+xml;base64,{source}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def row(tag: str, cells: Sequence[str]) -> str:
    """A row of a table, of ``th`` or ``td`` cells."""
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"


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
