"""Figures of one search or of several, as in the paper's figures 2, 4 and 5.

Nothing here touches matplotlib's global state, so figures can be made from any thread and without
a display.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgexnas.host.measuring.objectives import Objective
from edgexnas.host.run_files import write_run_file
from edgexnas.host.search.result import Candidate, SearchResult, front_of
from edgexnas.host.search.tasks import find_task

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = [
    "convergence_figure",
    "front_figure",
    "hypervolume_figure",
    "importance_figure",
    "save_figure",
]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
"""Okabe and Ito's colours, told apart with every kind of colour vision."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def hypervolume_figure(curves: Mapping[str, Sequence[Sequence[float]]]) -> Figure:
    """Hypervolume against evaluations (figure 2): the median of the seeds, and their range.

    Parameters
    ----------
    curves
        Name of a search → for each seed its `SearchResult.hypervolume_curve`.
    """
    figure, axes = _figure()
    for (name, seeds), colour in zip(curves.items(), itertools.cycle(COLOURS), strict=False):
        # To the shortest: a median over fewer seeds would jump where one ends.
        length = min((len(seed) for seed in seeds), default=0)
        if not length:
            continue
        values = np.array([seed[:length] for seed in seeds])
        count = np.arange(1, length + 1)
        axes.step(
            count, np.median(values, axis=0), where="post", color=colour, label=name, linewidth=1.8
        )
        if len(values) > 1:
            axes.fill_between(
                count, values.min(axis=0), values.max(axis=0), step="post", color=colour,
                alpha=0.15, linewidth=0,
            )  # fmt: skip
    axes.set(xlabel="evaluations", ylabel="hypervolume")
    axes.set_ylim(bottom=0)
    _legend(axes)
    return figure


def front_figure(
    result: SearchResult,
    *,
    x: str = "parameters",
    y: str = "error",
    baselines: Mapping[str, Mapping[str, float]] | None = None,
) -> Figure:
    """All candidates and each space's front in two objectives (figures 4 and 5).

    Parameters
    ----------
    baselines
        Name → metrics of networks to compare with, such as BraggNN.
    """
    figure, axes = _figure()
    known = {**find_task(result.description["task"]).objectives}
    known |= {objective.name: objective for objective in result.objectives}
    objectives = (known[x], known[y])
    spaces = list(dict.fromkeys(candidate.space for candidate in result.candidates))
    for number, space in enumerate(spaces):
        members = [c for c in result.candidates if c.space == space]
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        # A diverged network's error of a million pixels would squeeze all others into a corner.
        shown = [c for c in members if c.metrics[y] <= objectives[1].worst]
        axes.scatter(
            [c.metrics[x] for c in shown], [c.metrics[y] for c in shown],
            s=14, color=colour, marker=marker, alpha=0.3, linewidths=0,
        )  # fmt: skip
        _draw_front(axes, members, objectives, colour, marker, space)
    for number, (name, metrics) in enumerate((baselines or {}).items()):
        axes.plot(
            metrics[x], metrics[y], linestyle="", marker="*" if number == 0 else "p",
            markersize=11, color="black", markerfacecolor="white", label=name,
        )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel=objectives[0].label, ylabel=objectives[1].label)
    _plain_ticks(axes)
    axes.grid(visible=True, which="major", color="#dddddd", linewidth=0.6)
    _legend(axes)
    return figure


def convergence_figure(result: SearchResult) -> Figure:
    """Best value so far of each objective, relative to the first one, against evaluations."""
    figure, axes = _figure()
    for number, objective in enumerate(result.objectives):
        values = [
            t.metrics[objective.name] if t.status == "done" else np.inf for t in result.trials
        ]
        best = np.minimum.accumulate(values) if values else np.zeros(0)
        known = np.isfinite(best)
        if known.any():
            axes.step(
                np.arange(1, len(best) + 1)[known], best[known] / best[known][0],
                where="post", color=COLOURS[number % len(COLOURS)], label=objective.name,
                linewidth=1.8,
            )  # fmt: skip
    axes.set(yscale="log", xlabel="evaluations", ylabel="best so far / first")
    _legend(axes)
    return figure


def importance_figure(importances: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw the importance of each hyperparameter for each objective.

    Parameters
    ----------
    importances
        Objective → hyperparameter → share, as `hyperparameter_importance` gives it.
    """
    figure, axes = _figure()
    names = list(dict.fromkeys(name for shares in importances.values() for name in shares))
    names.sort(key=lambda name: sum(shares.get(name, 0.0) for shares in importances.values()))
    height = 0.8 / max(1, len(importances))
    for number, (objective, shares) in enumerate(importances.items()):
        places = np.arange(len(names)) + 0.4 - (number + 0.5) * height
        axes.barh(
            places, [shares.get(name, 0.0) for name in names], height=height,
            color=COLOURS[number % len(COLOURS)], label=objective,
        )  # fmt: skip
    axes.set_yticks(np.arange(len(names)), labels=names)
    axes.set(xlim=(0, 1), xlabel="share of the importance")
    _legend(axes)
    return figure


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a PNG, whole or not at all."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160)
    place = Path(path)
    write_run_file(place, buffer.getvalue())
    return place


def _figure() -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 3.8), layout="constrained")
    # A canvas without pyplot: no global state, no display, any thread.
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _draw_front(
    axes: Axes,
    members: Sequence[Candidate],
    objectives: tuple[Objective, Objective],
    colour: str,
    marker: str,
    label: str,
) -> None:
    x, y = (objective.name for objective in objectives)
    # With these two objectives alone, because a front of all of them has other members.
    points = [
        Candidate(c.trial, c.space, {}, {x: c.metrics[x], y: c.metrics[y]}, c.metrics, None)
        for c in members
    ]
    front = front_of(points, objectives)
    axes.plot(
        [c.metrics[x] for c in front], [c.metrics[y] for c in front],
        drawstyle="steps-post", color=colour, marker=marker, markersize=4.5, linewidth=1.4,
        label=label,
    )  # fmt: skip


def _plain_ticks(axes: Axes) -> None:
    """Label 0.1 and 20,000 as such, not as powers of ten, and as many as have room."""
    _label_logarithmic(axes.xaxis, middle=(1, 2, 5), narrow=(1, 2, 3, 4, 6, 8))
    _label_logarithmic(axes.yaxis, middle=(1, 2, 4, 6), narrow=tuple(range(1, 10)))


def _label_logarithmic(axis: Axis, *, middle: Sequence[int], narrow: Sequence[int]) -> None:
    def label(value: float, _: float = 0.0) -> str:
        low, high = axis.get_view_interval()
        digits = (1,) if high / low > 100 else middle if high / low > 4 else narrow
        # 1e-9, because a tick may lie a rounding error below its power of ten.
        digit = round(value / 10 ** math.floor(math.log10(value) + 1e-9))
        return f"{value:,g}" if digit in digits else ""

    axis.set_major_formatter(label)
    axis.set_minor_formatter(label)


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize="small")
