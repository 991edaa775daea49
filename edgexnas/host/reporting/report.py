"""One page about a search: its fronts, how it got there, what mattered, and every candidate.

The page holds its figures and styles itself, so that it can be mailed and archived.
"""

from __future__ import annotations

import base64
import html
import io
import itertools
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from edgexnas.errors import SearchError
from edgexnas.host.reporting.figures import (
    convergence_figure,
    front_figure,
    hypervolume_figure,
    importance_figure,
    save_figure,
)
from edgexnas.host.reporting.importance import LEAST_CANDIDATES, hyperparameter_importance
from edgexnas.host.run_files import write_run_file
from edgexnas.host.search.evaluation import FAILURES
from edgexnas.host.search.journal import Trial
from edgexnas.host.search.result import SearchResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["write_report"]

Baselines = Mapping[str, Mapping[str, float]]


def write_report(
    run: str | Path | SearchResult,
    path: str | Path | None = None,
    *,
    baselines: Baselines | None = None,
) -> Path:
    """Write a self-contained HTML page and, beside it in ``figures/``, its figures as PNG.

    Parameters
    ----------
    run
        A run folder, also of a search that still runs, or a result.
    path
        The page; None writes ``report.html`` into the run folder.
    baselines
        Name → metrics of networks to draw into the fronts, such as BraggNN.

    Raises
    ------
    SearchError
        If the folder holds no run, nothing was evaluated yet, or a file cannot be written.
    """
    # Without spaces: a page needs no networks, and a space may no longer be importable.
    result = run if isinstance(run, SearchResult) else SearchResult.load(run, spaces=())
    if not result.trials:
        raise SearchError(f"{result.folder} has no evaluation yet; wait for the first one")
    page = result.folder / "report.html" if path is None else Path(path)
    figures = make_figures(result, baselines)
    folder = page.parent / "figures"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SearchError(
            f"{folder} cannot be made ({error.strerror}); specify another path"
        ) from error
    for name, (_, figure) in figures.items():
        save_figure(figure, folder / f"{name}.png")
    write_run_file(page, _page(result, figures).encode())
    return page


def make_figures(
    result: SearchResult, baselines: Baselines | None = None
) -> dict[str, tuple[str, Figure]]:
    """Make all figures of a result: file name → (caption, figure)."""
    figures: dict[str, tuple[str, Figure]] = {
        "hypervolume": (
            "Hypervolume of the front after each evaluation, on fixed logarithmic scales.",
            hypervolume_figure({str(result.description["search"]): [result.hypervolume_curve]}),
        )
    }
    if not result.candidates:
        return figures
    for y, x in _pairs_to_draw(result):
        known = {n: m for n, m in (baselines or {}).items() if x in m and y in m}
        figures[f"front_{y}_{x}"] = (
            f"All candidates in {x} and {y}; lines join each space's front.",
            front_figure(result, x=x, y=y, baselines=known),
        )
    figures["convergence"] = (
        "Best value of each objective so far, relative to the first evaluation's.",
        convergence_figure(result),
    )
    for space in dict.fromkeys(candidate.space for candidate in result.candidates):
        members = [c for c in result.candidates if c.space == space]
        # What is computed from the configuration needs no statistics.
        uncertain = [o for o in result.objectives if o.kind != "exact"]
        shares = {o.name: hyperparameter_importance(members, o) for o in uncertain}
        if any(shares.values()):
            figures[f"importance_{space}"] = (
                f"Share of each objective's variation that hangs on a hyperparameter of {space} "
                "(permutation importance of extra trees).",
                importance_figure(shares),
            )
    return figures


def _pairs_to_draw(result: SearchResult) -> list[tuple[str, str]]:
    """Pairs of objectives with something to trade: not two that follow from the size."""
    pairs = itertools.combinations(result.objectives, 2)
    return [
        (a.name, b.name) for a, b in pairs if "exact" not in (a.kind, b.kind) or a.kind != b.kind
    ]


def _page(result: SearchResult, figures: Mapping[str, tuple[str, Figure]]) -> str:
    title = f"Search of {result.folder.name}"
    fronts = _gallery(figures, "front") or "<p>A front takes two objectives.</p>"
    note = ""
    if not any(name.startswith("importance") for name in figures):
        note = f"<p>Importances need {LEAST_CANDIDATES} candidates of a space.</p>"
    template = Template(resources.files(__package__).joinpath("report.html").read_text("utf-8"))
    return template.substitute(
        title=html.escape(title),
        summary=_summary(result),
        fronts=fronts,
        course=_gallery(figures, "hypervolume") + _gallery(figures, "convergence"),
        importance=_gallery(figures, "importance") + note,
        front=_trial_table(result, [c.trial for c in result.pareto], with_status=False),
        trials=_trial_table(result, sorted(t.number for t in result.trials), with_status=True),
    )


def _summary(result: SearchResult) -> str:
    description = result.description
    rows: list[tuple[str, str]] = [
        ("task", str(description["task"])),
        ("search", f"{description['search']}, seed {description['seed']}"),
        ("spaces", ", ".join(space["name"] for space in description["spaces"])),
        ("objectives", ", ".join(o.label for o in result.objectives)),
        ("constraints", _pairs(description["constraints"], " ≤ ") or "none"),
        ("evaluations", f"{len(result.trials)}, of which {len(result.candidates)} succeeded"),
    ]
    rows += [
        (f"failed: {reason}", f"{count} ({FAILURES.get(reason, '')})")
        for reason, count in sorted(result.failures.items())
    ]
    rows.append(("hypervolume", f"{result.hypervolume:.4f}"))
    if result.candidates:
        for objective in result.objectives:
            best = result.best(objective.name)
            value = _number(best.objectives[objective.name])
            rows.append((f"best {objective.label}", f"{value} (trial {best.trial}, {best.space})"))
    rows.append(("data digest", str(description["data"])[:16]))
    cells = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
        for name, value in rows
    )
    return f"<table class='facts'>{cells}</table>"


def _gallery(figures: Mapping[str, tuple[str, Figure]], prefix: str) -> str:
    return "".join(
        f"<figure><img alt='{html.escape(caption)}' src='{_inline(figure)}'>"
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for name, (caption, figure) in figures.items()
        if name.startswith(prefix)
    )


def _inline(figure: Figure) -> str:
    buffer = io.BytesIO()
    # SVG inside the page: sharp at every size, and no file beside it.
    figure.savefig(buffer, format="svg")
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def _trial_table(result: SearchResult, numbers: Iterable[int], *, with_status: bool) -> str:
    trials = {trial.number: trial for trial in result.trials}
    front = {candidate.trial for candidate in result.pareto}
    chosen = [trials[number] for number in numbers]
    if not chosen:
        return "<p>No evaluation succeeded.</p>"
    metrics = _metric_names(result, chosen)
    heads = ["trial", "space", *(["status"] if with_status else []), "configuration", *metrics]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in [*heads, "seconds"])
    body = "".join(
        f"<tr{' class=front' if trial.number in front else ''}>"
        + _cells(trial, metrics, with_status=with_status)
        + "</tr>"
        for trial in chosen
    )
    return (
        f"<div class='wide'><table class='sortable'><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _metric_names(result: SearchResult, trials: Iterable[Trial]) -> list[str]:
    first = [objective.name for objective in result.objectives]
    others = dict.fromkeys(name for trial in trials for name in trial.metrics)
    return [*first, *(name for name in others if name not in first)]


def _cells(trial: Trial, metrics: Iterable[str], *, with_status: bool) -> str:
    cells = [str(trial.number), trial.space]
    if with_status:
        cells.append(f"{trial.reason}: {trial.message}" if trial.reason else trial.status)
    cells.append(_pairs(trial.configuration, " = "))
    cells += [_number(trial.metrics[n]) if n in trial.metrics else "" for n in metrics]
    cells.append(f"{trial.seconds:.1f}")
    return "".join(
        f"<td{' class=text' if ' ' in cell else ''}>{html.escape(cell)}</td>" for cell in cells
    )


def _pairs(values: Mapping[str, Any], sign: str) -> str:
    return ", ".join(f"{name}{sign}{_number(value)}" for name, value in values.items())


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if float(value).is_integer() and abs(value) < 1e15:
        return str(int(value))
    return f"{value:.4g}"
