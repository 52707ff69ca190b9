"""``emcl report``: one HTML file that shows what EMCL does to a model, without scripts or outside resources.

In: an encoder, clips, their encoded corpus, optionally a training run. Out: the page as text, filled into
``report.html.jinja``. Everything from the data (captions, names) is escaped, and the page's content security policy
allows nothing but its own styles and pictures.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
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

QUERIES_EACH_WAY, HITS, EXAMPLES = 3, 5, 2
_LINKED = 40  # pairs of video and caption that the gap's drawing joins
_STRIP_FRAMES, _STRIP_HEIGHT, _EXAMPLE_HEIGHT = 4, 72, 96
_GAP_PIXELS = 2
_JPEG_QUALITY = 82


@dataclass(frozen=True, kw_only=True)
class ReportFacts:
    """Facts about the data: a name, the split, missing videos, the seed of the bootstrap."""

    data: str
    split: str
    videos_lost: int
    seed: int


def build_report(
    encoder: Encoder, clips: Sequence[Clip], corpus: Corpus, facts: ReportFacts, *, run: Path | None = None
) -> str:
    """Measure and write the page. Raises ``ValueError`` for a model with ``beta`` 0, which has nothing to show."""
    config = encoder.config.emcl
    if config.beta == 0:
        raise ValueError(
            "this checkpoint does not use EMCL (beta 0), so both rankings are the same; pass --beta, such as 0.1, to "
            "see its effect"
        )
    training = None if run is None else bases_in_training(run)  # a wrong folder fails before the work
    candidates = encoder.config.search.candidates
    rows_ND = np.concatenate([encoder.pool(corpus.features_VFD, corpus.mask_VF), corpus.text_TD])
    frozen = encoder.fit_frozen_map(rows_ND)
    effect = effect_of_emcl(encoder, corpus, candidates=candidates, shown=QUERIES_EACH_WAY, hits=HITS, seed=facts.seed)
    strips = Strips(clips, encoder.config.sampling)
    view = SubspaceView(encoder, clips, corpus, frozen)
    captions = [text for clip in clips for text in clip.captions]
    gap = modality_gap(encoder, corpus, frozen)
    return render(
        name=encoder.config.name,
        setting=describe(config),
        fingerprint=encoder.fingerprint,
        videos=len(corpus.mask_VF),
        texts=len(corpus.text_TD),
        facts=facts,
        score_head=["", *(f"{way} {name}" for way in ("t→v", "v→t") for name in ("R@1", "R@5", "R@10", "MdR", "MnR"))],
        score_rows=[
            [name, *(cell for one in both for cell in _cells(one))]
            for name, both in (("without EMCL", effect.without), ("with EMCL", effect.with_emcl))
        ],
        found=effect.comparison,
        candidates=candidates,
        gap=gap,
        gap_rows=_gap_rows(gap),
        gap_picture=_svg_uri(figures.draw_gap(gap.points_before, gap.points_after, linked=_LINKED)),
        linked=_LINKED,
        examples=[_example(view.of(row), clips, strips) for row in _example_rows(effect, corpus)],
        hits=HITS,
        strip_frames=_STRIP_FRAMES,
        changes=[
            (title, [_query(change, captions[change.text], strips) for change in changes])
            for title, changes in (("Rises with EMCL", effect.rises), ("Falls with EMCL", effect.falls))
        ],
        bases=bases_now(encoder, corpus),
        num_bases=config.num_bases,
        run=None if run is None else run.name,
        training=None if training is None else _svg_uri(figures.draw_bases(training.steps, training.curves)),
    )


def render(**values: Any) -> str:
    """Fill the template. Every value is escaped; one that is missing raises ``jinja2.UndefinedError``."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template("report.html.jinja").render(values)


def _cells(metrics: RetrievalMetrics) -> list[str]:
    recall = [f"{metrics.recall[k]:.1f}" for k in (1, 5, 10)]
    return [*recall, f"{metrics.median_rank:g}", f"{metrics.mean_rank:.2f}"]


def _gap_rows(gap: ModalityGap) -> list[list[str]]:
    before, after = gap.before, gap.after
    rows = (
        ("distance between the means of videos and captions", before.centroid_distance, after.centroid_distance),
        ("mean cosine of a video and its caption", before.matched_cosine, after.matched_cosine),
        ("mean cosine of a video and another's caption", before.mismatched_cosine, after.mismatched_cosine),
    )
    return [[name, f"{a:.4f}", f"{b:.4f}", f"{b - a:+.4f}"] for name, a, b in rows]


def _example_rows(effect: Effect, corpus: Corpus) -> list[int]:
    """The videos with the most frames among those that their caption finds; the first of equals."""
    found = effect.first_with_emcl
    frames = corpus.mask_VF.sum(axis=1)[found]
    return [int(row) for row in found[np.argsort(-frames, kind="stable")][:EXAMPLES]]


def _example(example: Subspaces, clips: Sequence[Clip], strips: Strips) -> dict[str, Any]:
    frames = [f"frame {number}" for number in range(1, len(example.frames_FK) + 1)]
    both = np.concatenate([example.frames_FK, example.words_LK])
    panels = {"all channels": example.plain_similarity_FL, "in the subspaces": example.similarity_FL}
    return {
        "caption": clips[example.row].captions[0],
        "strip": strips.of(example.row, frames=None, height=_EXAMPLE_HEIGHT),
        "coordinates": _svg_uri(figures.draw_subspaces(both, [*frames, *example.words], len(frames))),
        "links": [(frame, word, f"{similarity:+.2f}") for frame, word, similarity in example.links],
        "similarity": _svg_uri(figures.draw_similarity(panels, frames, example.words)),
    }


def _query(change: Change, caption: str, strips: Strips) -> dict[str, Any]:
    def places(rows: Sequence[int], rank: float) -> list[tuple[str, bool, str]]:
        shown = [(f"{place}", row) for place, row in enumerate(rows, start=1)]
        if change.match not in rows:
            shown.append((f"{rank + 1:g}", change.match))
        return [
            (place, row == change.match, strips.of(row, frames=_STRIP_FRAMES, height=_STRIP_HEIGHT))
            for place, row in shown
        ]

    return {
        "caption": caption,
        "kind": "up" if change.rank_with < change.rank_without else "down",
        "before": f"{change.rank_without + 1:g}",
        "after": f"{change.rank_with + 1:g}",
        "ways": [
            ("without EMCL", places(change.first_without, change.rank_without)),
            ("with EMCL", places(change.first_with, change.rank_with)),
        ],
    }


def _svg_uri(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


class Strips:
    """Strips of the clips of a corpus, each decoded once."""

    def __init__(self, clips: Sequence[Clip], sampling: SamplingConfig) -> None:
        self._clips, self._sampling = clips, sampling
        self._made: dict[tuple[int, int | None, int], str] = {}

    def of(self, row: int, *, frames: int | None, height: int) -> str:
        """Return a data URI (JPEG) of up to ``frames`` frames side by side in order of time (``None``: all).

        Raises ``ValueError`` with the path of a video that cannot be decoded.
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
    """Encode a picture as JPEG in a data URI."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
