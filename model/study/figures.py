"""Drawings of ``emcl sweep`` and ``emcl report``, with matplotlib (extra ``train``): numbers in, SVG or a file out.

Text is drawn as outlines, so that a figure looks the same everywhere; ids and dates are fixed, so that the same numbers
give the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from model.study.sweep import Plan, Point

Floats = NDArray[np.floating[Any]]

VIDEO, TEXT, ACCENT, INK, FAINT = "#2563a8", "#d9822b", "#2e8b6f", "#2b2f36", "#c9ced6"
_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 10.0,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#eceff3",
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "svg.hashsalt": "emcl",
    "svg.fonttype": "path",
}


@contextmanager
def drawing(width: float, height: float) -> Iterator[Figure]:
    """A figure of so many inches in the house style. Raises ``ValueError`` where matplotlib is not installed."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("figures need matplotlib, which is not installed: pip install 'emcl-search[train]'") from error
    with mpl.rc_context(_STYLE):
        yield Figure(figsize=(width, height), layout="constrained")


def to_svg(figure: Figure) -> str:
    """The figure as an SVG document."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def draw_sweep(points: Sequence[Point], plan: Plan, file: Path) -> None:
    """R@1 both ways with intervals: a panel for each setting, or for each combination of the rest of a grid.

    The suffix decides the format. Raises ``ValueError`` for one that matplotlib does not know.
    """
    panels = _panels(points, plan)
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    with drawing(max(5.0, 4.2 * columns), 3.2 * rows) as figure:
        for place, (title, (name, members)) in enumerate(panels.items(), start=1):
            _sweep_panel(figure.add_subplot(rows, columns, place), title, name, members)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=len(labels))
        metadata = {"Date": None} if file.suffix == ".svg" else {}
        figure.savefig(file, dpi=150, metadata=metadata)


def _panels(points: Sequence[Point], plan: Plan) -> dict[str, tuple[str, list[Point]]]:
    """Title to the setting on the horizontal axis and its points."""
    panels: dict[str, tuple[str, list[Point]]] = {}
    for point in points:
        name = next(iter(plan.vary)) if plan.grid else next(iter(point.changes))
        rest = ", ".join(f"{key} {value}" for key, value in point.changes.items() if key != name)
        panels.setdefault(rest or name, (name, []))[1].append(point)
    return panels


def _sweep_panel(axes: Axes, title: str, name: str, members: Sequence[Point]) -> None:
    values = [point.changes[name] for point in members]
    places = np.arange(len(values))
    for way, (label, colour) in enumerate((("text → video", TEXT), ("video → text", VIDEO))):
        means = np.array([point.first[way].mean for point in members])
        low = np.array([point.first[way].low for point in members])
        high = np.array([point.first[way].high for point in members])
        errors = np.clip([means - low, high - means], 0, None)
        shifted = places + (way - 0.5) * 0.12  # so that intervals do not hide each other
        axes.errorbar(shifted, means, yerr=errors, color=colour, marker="o", markersize=4, capsize=3, label=label)
    axes.set_xticks(places, [value if isinstance(value, str) else f"{value:g}" for value in values])
    axes.set_xlabel(name)
    axes.set_ylabel("R@1 (%)")
    axes.set_title(title)


def draw_gap(before: tuple[Floats, Floats], after: tuple[Floats, Floats], *, linked: int) -> str:
    """Videos and texts (V, 2) before and after EMCL on the same axes; the first ``linked`` pairs are joined."""
    with drawing(9.0, 4.0) as figure:
        axes = figure.subplots(1, 2, sharex=True, sharey=True)
        titles = ("before EMCL", "after EMCL")
        for one, title, (videos_V2, texts_V2) in zip(axes, titles, (before, after), strict=True):
            for video, text in zip(videos_V2[:linked], texts_V2[:linked], strict=True):
                one.plot(*zip(video, text, strict=True), color=FAINT, linewidth=0.7, zorder=1)
            one.scatter(*videos_V2.T, s=10, color=VIDEO, alpha=0.7, linewidths=0, label="videos", zorder=2)
            one.scatter(*texts_V2.T, s=12, color=TEXT, alpha=0.7, linewidths=0, marker="^", label="captions", zorder=2)
            for rows, colour in ((videos_V2, VIDEO), (texts_V2, TEXT)):
                one.scatter(*rows.mean(axis=0), s=110, color=colour, marker="X", edgecolors="white", zorder=3)
            one.set_title(title)
            one.set_xlabel("first principal component")
        axes[0].set_ylabel("second principal component")
        axes[0].legend(loc="best", markerscale=2)
        return to_svg(figure)


def draw_subspaces(shares_NK: Floats, rows: Sequence[str], frames: int) -> str:
    """Coordinates of frames and words in the K subspaces as a heatmap; frames are above the line."""
    with drawing(9.0, 0.8 + 0.22 * len(rows)) as figure:
        axes = figure.add_subplot()
        limit = max(1.0, float(np.abs(shares_NK).max()))
        image = axes.imshow(shares_NK, aspect="auto", cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
        axes.set_yticks(np.arange(len(rows)), rows)
        axes.set_xticks(np.arange(shares_NK.shape[1]), [str(base) for base in range(1, shares_NK.shape[1] + 1)])
        axes.set_xlabel("subspace (base)")
        axes.axhline(frames - 0.5, color=INK, linewidth=1.2)
        axes.grid(visible=False)
        figure.colorbar(image, ax=axes, label="standard deviations", fraction=0.03)
        return to_svg(figure)


def draw_similarity(panels: Mapping[str, Floats], frames: Sequence[str], words: Sequence[str]) -> str:
    """Frames by words, one heatmap for each title, all on the scale -1 to 1."""
    with drawing(9.0, 1.2 + 0.24 * len(frames)) as figure:
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for one, (title, matrix_FL) in zip(axes, panels.items(), strict=True):
            image = one.imshow(matrix_FL, aspect="auto", cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
            one.set_xticks(np.arange(len(words)), words, rotation=45, ha="right")
            one.set_yticks(np.arange(len(frames)), frames if one is axes[0] else [])
            one.grid(visible=False)
            one.set_title(title)
        figure.colorbar(image, ax=list(axes), label="cosine", fraction=0.03)
        return to_svg(figure)


def draw_bases(steps: Sequence[int], curves: Mapping[str, Sequence[float]]) -> str:
    """One small panel for each quantity over the steps of a training."""
    with drawing(9.0, 2.6) as figure:
        for one, (title, values) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
            one.plot(steps, values, color=ACCENT, marker="o" if len(steps) < 40 else "", markersize=3)
            one.set_title(title)
            one.set_xlabel("step")
            one.set_ylim(bottom=0)
        return to_svg(figure)
