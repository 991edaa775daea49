"""The web page: complete without JavaScript, which only keeps it fresh."""

from __future__ import annotations

import html
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from edgexnas.device.monitoring.health import Health
from edgexnas.device.monitoring.status import LastResult
from edgexnas.device.monitoring.summary import SummaryTable, clock_time, summarise
from edgexnas.device.monitoring.watch import HISTORY_S, HistoryPoint, Observation

__all__ = ["PagePicture", "page_data", "pictures_of", "render_page"]

_NUMBERS = ("flow", "queues", "latency", "ledger", "sinks", "source", "machine")
"""Tables beside the charts."""

_PALETTES = {
    "/frame.png": "inferno",
    "/object/amplitude.png": "viridis",
    "/object/phase.png": "cycle",
    "/object/refinement.png": "cycle",
}

_CHART_WIDTH, _CHART_HEIGHT = 300.0, 60.0


class PagePicture(NamedTuple):
    """A picture on the page: where it is and what it shows.

    Attributes
    ----------
    path
        Its address on this server.
    alt
        What somebody who cannot see it is told.
    caption
        The same, how old it is, and what the colours mean.
    palette
        Of the colour bar.
    """

    path: str
    alt: str
    caption: str
    palette: str


class _Chart(NamedTuple):
    key: str
    title: str
    lines: tuple[tuple[str, str, str], ...]
    """(colour class, name with the newest value, path of the line)."""
    top: str


def pictures_of(
    observation: Observation, scales: Mapping[str, str] | None = None
) -> tuple[PagePicture, ...]:
    """List the pictures that the newest result has.

    Parameters
    ----------
    observation
        What is shown.
    scales
        Address of a picture → what its colours mean, as far as it has been drawn.
    """
    result = observation.status.last_result
    if result is None:
        return ()
    where = f"frame {result.number} of series {result.series}"
    pictures: tuple[tuple[str, str], ...] = ()
    if result.object_image is not None:
        pictures = (
            ("/object/amplitude.png", f"Amplitude of the object up to {where}"),
            ("/object/phase.png", f"Phase of the object up to {where}"),
        )
        if result.refinement is not None:
            residuals, seconds = result.refinement.residuals, result.refinement.seconds
            told = (
                f"Phase of series {result.series} by the network, refined by {len(residuals) - 1} "
                f"sweeps in {seconds[-1]:.1f} s, and the difference; the residual fell from "
                f"{residuals[0]:.2%} to {residuals[-1]:.2%} of the light"
            )
            pictures += (("/object/refinement.png", told),)
    elif result.pixels is not None:
        rings = ""
        if result.positions_px is not None:
            count = len(result.positions_px)
            rings = f", {count} peak{'' if count == 1 else 's'} marked with rings"
        pictures = (("/frame.png", f"{where[0].upper()}{where[1:]}{rings}"),)
    known = scales or {}
    age = ""
    if result.arrival_s is not None:
        age = f"; {time.monotonic() - result.arrival_s:.0f} s old"
    return tuple(
        PagePicture(
            path,
            alt,
            f"{alt}{age}" + (f"; {known[path]}" if path in known else ""),
            _PALETTES[path],
        )
        for path, alt in pictures
    )


def _picture_version(result: LastResult | None) -> str:
    if result is None:
        return ""
    refined = "" if result.refinement is None else "/refined"
    return f"{result.series}/{result.number}{refined}"


def page_data(observation: Observation, scales: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Collect what changes on the page: the body of ``/status.json``.

    Parameters
    ----------
    observation
        What is shown.
    scales
        As for `pictures_of`.

    Returns
    -------
    dict
        Numbers for programs under ``"status"``; texts, charts and pictures as the page shows them
        under ``"page"``.
    """
    status, health, error = observation.status, observation.status.health, _error(observation)
    result = status.last_result
    return {
        "status": {
            "state": health.state,
            "state_for_s": health.for_s,
            "healthy": health.healthy,
            "reason": health.sentence,
            "reasons": [reason.what for reason in health.reasons],
            "model_id": status.model_id,
            "engine": status.engine._asdict() if status.engine else None,
            "source": status.source,
            "series": status.series,
            "detection": status.detection,
            "began_at_s": status.began_at_s,
            "uptime_s": status.uptime_s,
            "counts": dict(status.counts),
            "series_counts": dict(status.series_counts),
            "rates": status.rates._asdict(),
            "queues": {stage: level._asdict() for stage, level in status.queues.items()},
            "latency_ms": _latency(status.latency_ms),
            "stage_ms": {stage: _latency(times) for stage, times in status.stage_ms.items()},
            "peaks_total": status.peaks_total,
            "sums": status.sums._asdict(),
            "familiarity": {
                **status.familiarity._asdict(),
                "reasons": dict(status.familiarity.reasons),
            },
            "watermark": status.watermark,
            "last_error": status.last_error._asdict() if status.last_error else None,
            "source_counts": dict(status.source_counts),
            "sinks": {name: counts._asdict() for name, counts in status.sinks.items()},
            "rails_w": dict(observation.sensors.rails_w),
            "module_w": observation.sensors.module_w,
            "power_source": observation.sensors.power_source,
            "temperatures_c": dict(observation.sensors.temperatures_c),
        },
        "page": {
            "state": health.state,
            "level": _level(health),
            "reason": health.why,
            "error": error,
            "tables": {table.key: table.rows for table in summarise(observation)},
            "charts": {
                chart.key: {
                    "top": chart.top,
                    "lines": [[name, points] for _, name, points in chart.lines],
                }
                for chart in _charts(observation.history)
            },
            "pictures": [picture._asdict() for picture in pictures_of(observation, scales)],
            "picture_version": _picture_version(result),
        },
    }


def _level(health: Health) -> str:
    """Tell good, a state with reasons that still answers 200, and bad apart by one word."""
    return "bad" if not health.healthy else "warning" if health.reasons else "good"


def _error(observation: Observation) -> str:
    """Give the newest error for the banner; nothing once its cause is gone."""
    error = observation.status.last_error
    if error is None or error.gone:
        return ""
    return f"{clock_time(error.at_s)}  {error.message}"


def _latency(summary: Any) -> dict[str, float]:
    return {name: getattr(summary, name) for name in ("p50", "p95", "p99", "max", "count")}


def render_page(observation: Observation, scales: Mapping[str, str] | None = None) -> str:
    """Write the page.

    Parameters
    ----------
    observation
        What is shown. Every text of it is escaped: model and series names come from outside.
    scales
        As for `pictures_of`.

    Returns
    -------
    str
        A complete HTML document.
    """
    status, health, error = observation.status, observation.status.health, _error(observation)
    pictures = pictures_of(observation, scales)
    tables = {table.key: table for table in summarise(observation)}
    kind = "Object" if len(pictures) > 1 else "Last frame"
    figures = "".join(_figure(picture) for picture in pictures)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>edgexnas: {_text(status.model_id or "streaming service")}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/page.css">
<noscript><meta http-equiv="refresh" content="5"></noscript>
<script src="/page.js" defer></script>
</head>
<body>
<header>
<h1>edgexnas <span id="model">{_text(status.model_id)}</span></h1>
<p id="health" role="status" data-level="{_level(health)}">
<strong id="state">{health.state}</strong> <span id="reason">{_text(health.why)}</span>
</p>
</header>
<main>
<p id="error" role="alert"{"" if error else " hidden"}>{_text(error)}</p>
<div class="column">
<section id="pictures" aria-labelledby="pictures-title">
<h2 id="pictures-title">{kind}</h2>
<div id="figures">{figures or '<p class="none">No result so far.</p>'}</div>
</section>
{_table(tables["service"])}
</div>
<div class="column numbers">
<section id="charts" aria-labelledby="charts-title">
<h2 id="charts-title">Last {HISTORY_S // 60} minutes</h2>
{"".join(_chart(chart) for chart in _charts(observation.history))}
</section>
{"".join(_table(tables[key]) for key in _NUMBERS)}
</div>
</main>
<footer>
<p>Read-only. Programs read <a href="/status.json">status.json</a>, Prometheus
<a href="/metrics">metrics</a>, and a load balancer <a href="/healthz">healthz</a>.</p>
</footer>
</body>
</html>
"""


def _text(value: str | None) -> str:
    return html.escape(value or "")


def _figure(picture: PagePicture) -> str:
    return (
        f'<figure><img src="{picture.path}" alt="{_text(picture.alt)}">'
        f'<span class="bar {picture.palette}" aria-hidden="true"></span>'
        f"<figcaption>{_text(picture.caption)}</figcaption></figure>"
    )


def _table(table: SummaryTable) -> str:
    head = ""
    if any(table.columns):
        cells = "".join(
            f'<th scope="col">{_text(column)}</th>' if column else "<td></td>"
            for column in table.columns
        )
        head = f"<thead><tr>{cells}</tr></thead>"
    rows = "".join(
        f'<tr><th scope="row">{_text(row[0])}</th>'
        + "".join(f"<td>{_text(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in table.rows
    )
    return (
        f'<section class="card {table.key}" aria-labelledby="{table.key}-title">'
        f'<h2 id="{table.key}-title">{_text(table.title)}</h2>'
        f'<table>{head}<tbody id="{table.key}">{rows}</tbody></table></section>'
    )


def _charts(history: Sequence[HistoryPoint]) -> tuple[_Chart, ...]:
    columns = zip(*history, strict=True) if history else [()] * len(HistoryPoint._fields)
    times, received, done, p50, p99 = map(list, columns)
    # Where nothing was done there is no latency; the percentiles are those of before.
    p50, p99 = (
        [value if n else None for value, n in zip(v, done, strict=True)] for v in (p50, p99)
    )
    charts = []
    for key, title, unit, lines in (
        ("rate-chart", "Frames per second", "", {"received": received, "done": done}),
        ("latency-chart", "Latency from arrival to result", " ms", {"p50": p50, "p99": p99}),
    ):
        drawn_values = [value for values in lines.values() for value in values if value is not None]
        top = _round_up(drawn_values)
        drawn = tuple(
            (colour, _legend(name, values, unit), _points(times, values, top))
            for colour, (name, values) in zip("ab", lines.items(), strict=True)
        )
        charts.append(_Chart(key, title, drawn, f"{top:g}{unit}"))
    return tuple(charts)


def _legend(name: str, values: Sequence[float | None], unit: str) -> str:
    newest = values[-1] if values else None
    return name if newest is None else f"{name} {newest:.1f}{unit}"


def _round_up(values: Sequence[float]) -> float:
    """Find the next 1, 2 or 5 times a power of ten, so that the scale moves seldom."""
    largest = max(values, default=0.0)
    if largest <= 0:
        return 1.0
    power = 10.0 ** (len(f"{int(largest)}") - 1) if largest >= 1 else 0.1
    return next(power * step for step in (1, 2, 5, 10) if power * step >= largest)


def _points(times: Sequence[float], values: Sequence[float | None], top: float) -> str:
    """Path of a line, the newest point at the right edge, broken where there is no value."""
    path, pen = [], "M"
    for at, value in zip(times, values, strict=True):
        if value is None or times[-1] - at > HISTORY_S:
            pen = "M"
            continue
        x = _CHART_WIDTH * (1 - (times[-1] - at) / HISTORY_S)
        path.append(f"{pen}{x:.1f},{_CHART_HEIGHT * (1 - value / top):.1f}")
        pen = "L"
    return " ".join(path)


def _chart(chart: _Chart) -> str:
    lines = "".join(
        f'<path class="{colour}" d="{points}"></path>' for colour, _, points in chart.lines
    )
    legend = "".join(
        f'<span class="{colour}">{_text(name)}</span>' for colour, name, _ in chart.lines
    )
    return (
        f'<figure class="chart" id="{chart.key}"><figcaption>{_text(chart.title)} '
        f'<span class="legend">{legend}</span></figcaption><div class="plot">'
        f'<svg viewBox="0 -2 {_CHART_WIDTH:g} {_CHART_HEIGHT + 4:g}" preserveAspectRatio="none" '
        f'aria-hidden="true">{lines}</svg><span class="top">{_text(chart.top)}</span>'
        '<span class="bottom">0</span></div></figure>'
    )
