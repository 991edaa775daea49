"""A service's status in words and numbers for people: what page and terminal both show."""

from __future__ import annotations

import time
from typing import NamedTuple

from edgexnas.device.monitoring.status import LatencySummary, ServiceStatus
from edgexnas.device.monitoring.watch import Observation

__all__ = ["LEDGER_STATES", "SummaryTable", "clock_time", "summarise"]

LEDGER_STATES = (
    ("received", "arrived from the source"),
    ("done", "result committed"),
    ("dropped", "displaced by newer frames"),
    ("failed", "not decoded, processed or stored"),
    ("duplicate", "received again"),
    ("pending", "in progress"),
    ("spilled", "waiting on disk"),
    ("lost", "never received"),
)
"""States of the ledger in the order in which they are shown, and what each means."""


class SummaryTable(NamedTuple):
    """A small table of texts.

    Attributes
    ----------
    key
        Its name for programs.
    title
        Its heading.
    columns
        Headings of the columns; empty strings where the rows speak for themselves.
    rows
        As many texts each as there are columns; the first names the row.
    """

    key: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def summarise(observation: Observation) -> tuple[SummaryTable, ...]:
    """Put an observation into tables.

    Parameters
    ----------
    observation
        What is shown.

    Returns
    -------
    tuple
        Always the same tables in the same order; some have no rows.
    """
    status = observation.status
    return (
        _service(status),
        _flow(status),
        SummaryTable(
            "latency",
            "Latency (ms)",
            ("", "p50", "p95", "p99", "max"),
            (
                _latency_row("arrival → result", status.latency_ms),
                *(_latency_row(_name(name), summary) for name, summary in status.stage_ms.items()),
            ),
        ),
        SummaryTable(
            "ledger",
            "Ledger (frames)",
            ("", "all", "this series"),
            tuple(
                (
                    f"{state}: {meaning}",
                    _count(status.counts.get(state, 0)),
                    _count(status.series_counts.get(state, 0)),
                )
                for state, meaning in LEDGER_STATES
            ),
        ),
        SummaryTable(
            "queues",
            "Queues (frames)",
            ("", "queued", "capacity"),
            tuple(
                (_name(stage), _count(level.length), _count(level.capacity))
                for stage, level in status.queues.items()
            ),
        ),
        SummaryTable(
            "sinks",
            "Sinks (results)",
            ("", "stored", "not stored", "dropped"),
            tuple(
                (_name(name), *(_count(number) for number in counts))
                for name, counts in status.sinks.items()
            ),
        ),
        SummaryTable(
            "source",
            "Source",
            ("", ""),
            tuple(
                (name.capitalize(), _count(value) if isinstance(value, int) else value)
                for name, value in status.source_counts.items()
            ),
        ),
        _machine(observation),
    )


def _service(status: ServiceStatus) -> SummaryTable:
    engine = status.engine
    return SummaryTable(
        "service",
        "Service",
        ("", ""),
        (
            ("Model", status.model_id or "–"),
            ("Engine", f"{engine.name}, {engine.precision}" if engine else "–"),
            ("Chosen because", engine.reason if engine else "–"),
            ("Source", status.source or "–"),
            ("Series", status.series or "–"),
            ("Uptime", _duration(status.uptime_s)),
            ("Last error", _last_error(status)),
        ),
    )


def _last_error(status: ServiceStatus) -> str:
    error = status.last_error
    if error is None:
        return "none"
    return f"{clock_time(error.at_s)}{' (gone)' if error.gone else ''}: {error.message}"


def _flow(status: ServiceStatus) -> SummaryTable:
    rows = [
        ("Received", f"{status.rates.received_per_s:.1f} frames/s"),
        ("Done", f"{status.rates.done_per_s:.1f} frames/s"),
        ("Complete up to frame", _optional(status.watermark)),
    ]
    # Ptychography has no peaks, and a row of zeros would look like a fault.
    if status.last_result is None or status.last_result.object_image is None:
        rows.append(("Peaks so far", _count(status.peaks_total)))
    # Bundles from before calibration judge nothing.
    if (data := status.familiarity).judged:
        rows.append(("Unlike the training data", f"{data.unfamiliar / data.judged:.1%}"))
    return SummaryTable("flow", "Rates", ("", ""), tuple(rows))


def _machine(observation: Observation) -> SummaryTable:
    sensors = observation.sensors
    rows = [(rail, f"{power_w:.2f} W") for rail, power_w in sensors.rails_w.items()]
    if sensors.module_w is not None:
        rows.insert(0, ("Module power", f"{sensors.module_w:.2f} W"))
    if not rows:
        rows.append(("Power", "no sensor"))
    rows.extend((zone, f"{celsius:.1f} °C") for zone, celsius in sensors.temperatures_c.items())
    return SummaryTable("machine", "Power and temperatures", ("", ""), tuple(rows))


def _name(text: str) -> str:
    """Let a path break after a slash, and nowhere in a word."""
    return text.replace("/", "/\u200b")


def clock_time(seconds: float) -> str:
    """Write Unix seconds as local date and time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _latency_row(name: str, summary: LatencySummary) -> tuple[str, ...]:
    # Dashes and not 0.00, which would be an excellent latency.
    if not summary.count:
        return name, "–", "–", "–", "–"
    times = (summary.p50, summary.p95, summary.p99, summary.max)
    return name, *(f"{time:.2f}" if time < 10 else f"{time:.1f}" for time in times)


def _count(number: int) -> str:
    # A narrow no-break space: a comma is a decimal point to half of the readers.
    return f"{number:,}".replace(",", "\u202f")


def _optional(number: int | None) -> str:
    return "–" if number is None else _count(number)


def _duration(seconds: float) -> str:
    """Write seconds as days, hours, minutes and seconds."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return (f"{days} d " if days else "") + f"{hour:02d}:{minute:02d}:{second:02d}"
