"""A bench report as one HTML file with everything inside, to keep beside the numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from edgexnas.device.benchmark.bench import BenchReport
from edgexnas.device.benchmark.energy import EnergyReport
from edgexnas.device.benchmark.energy_result import EnergyResult
from edgexnas.device.benchmark.svg_plots import bar_chart, line_chart
from edgexnas.device.power.device_state import DeviceState

__all__ = ["to_html"]

STYLE = """
body{font:15px/1.5 sans-serif;max-width:1180px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:1em 0}td,th{padding:.25em .7em;border-bottom:1px solid #ddd;
text-align:right}td:first-child,th:first-child{text-align:left}.fault{background:#fdd;padding:.6em}
td{white-space:nowrap}.device td{white-space:normal;overflow-wrap:anywhere}
.fault ul{margin:.3em 0}.wide{overflow-x:auto}
.plots{display:flex;flex-wrap:wrap;gap:12px}svg{max-width:100%;height:auto}
"""


def to_html(report: BenchReport) -> str:
    """Write tables and plots of latency, energy and power as a page without any other file."""
    parts = [
        f"<h1>edgexnas bench</h1><p>{escape(report.before.name)}, "
        f"{report.created:%Y-%m-%d %H:%M} UTC, edgexnas {escape(report.edgexnas)}</p>",
        _faults(report.faults),
        "<h2>Latency</h2>",
        _latency_table(report),
        f'<div class="plots">{_latency_plots(report)}</div>',
    ]
    if report.energy is not None:
        parts += ["<h2>Energy</h2>", _energy_section(report.energy)]
    parts += ["<h2>Device</h2>", _device_table(report.before, report.after)]
    parts += [f"<p>{escape(note)}</p>" for note in report.notes]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>edgexnas bench</title><style>{STYLE}</style></head><body>"
        f"{''.join(parts)}</body></html>\n"
    )


def _faults(faults: Sequence[str]) -> str:
    if not faults:
        return ""
    items = "".join(f"<li>{escape(fault)}</li>" for fault in faults)
    return f'<div class="fault">These numbers are void, do not publish them:<ul>{items}</ul></div>'


def table(header: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "numbers") -> str:
    """Write a table; `kind` is its class in the page's style."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f'<div class="wide"><table class="{kind}"><tr>{head}</tr>{body}</table></div>'


def _latency_table(report: BenchReport) -> str:
    header = (
        "bundle", "parameters", "engine", "batch", "mean ms", "p50 ms", "p90 ms", "p99 ms",
        "items/s", "build ms", "open ms", "cold start ms",
    )  # fmt: skip
    rows = []
    for bench in report.bundles:
        result, start = bench.latency, bench.cold_start
        rows.append(
            (
                bench.name,
                f"{bench.parameters:,}",
                f"{bench.engine.get('engine')} {bench.engine.get('precision')}",
                str(result.items),
                f"{result.mean_ms:.4f} ± {result.half_width_ms:.4f}",
                f"{result.p50_ms:.4f} ± {result.p50_half_width_ms:.4f}",
                *(f"{value:.4f}" for value in (result.p90_ms, result.p99_ms)),
                f"{result.items_per_s:,.0f}",
                f"{bench.build_ms:.0f}",
                f"{bench.open_ms:.0f}",
                f"{start.total_ms:.0f}" if start else "",
            )
        )
    settings = report.settings
    note = (
        f"<p>{settings.runs} runs of {settings.calls} inferences of a batch, the bundles in turns, "
        f"over {settings.spread_s:g} s at least. ± is half of the 95 % interval; p50, p90 and p99 "
        "are percentiles of single inferences. Build: from the verified bundle to a checked engine "
        "without a cache; open: the same with one; cold start: from the start of a process to its "
        "first result.</p>"
    )
    return table(header, rows) + note + _comparison(report)


def _comparison(report: BenchReport) -> str:
    """Compare each further bundle with the first."""
    baseline, *rivals = report.bundles
    if not rivals:
        return ""
    rows = []
    for rival in rivals:
        a, b = baseline.latency, rival.latency
        row = [
            rival.name,
            _change(a.mean_ms, a.half_width_ms, b.mean_ms, b.half_width_ms),
            _change(a.p50_ms, a.p50_half_width_ms, b.p50_ms, b.p50_half_width_ms),
        ]
        if baseline.energy is not None and rival.energy is not None:
            c, d = baseline.energy, rival.energy
            row += [
                _change(c.total_mj, c.total_half_width_mj, d.total_mj, d.total_half_width_mj),
                _change(
                    c.marginal_mj, c.marginal_half_width_mj, d.marginal_mj, d.marginal_half_width_mj
                ),
            ]
        rows.append(row)
    header = ["", "mean latency", "median latency", "total energy", "energy above idle"]
    header[0] = f"against {baseline.name}"
    return table(header[: len(rows[0])], rows)


def _change(before: float, width_before: float, after: float, width_after: float) -> str:
    """Write a relative change with its interval, or that the intervals leave it open."""
    # The quotient's interval below is linear in the widths, which holds for small ones alone.
    if before <= 2 * width_before or after <= 0:
        return "too uncertain"
    change = after / before - 1
    width = after / before * math.hypot(width_before / before, width_after / after)
    open_question = "" if abs(change) > width else ", none for sure"
    return f"{change:+.1%} ± {width:.1%}{open_question}"


def _latency_plots(report: BenchReport) -> str:
    bars = [(b.name, b.latency.mean_ms, b.latency.half_width_ms) for b in report.bundles]
    runs = {b.name: (range(len(b.latency.runs_ms)), b.latency.runs_ms) for b in report.bundles}
    plots = [
        bar_chart("Mean latency of one inference ± half of its 95 % interval", "ms", bars),
        line_chart("Mean of each run", "ms", runs, x_label="run"),
    ]
    sweeps = {
        b.name: ([r.items for r in b.sweep], [r.items_per_s for r in b.sweep])
        for b in report.bundles
        if b.sweep
    }
    if sweeps:
        plots.append(line_chart("Throughput", "items/s", sweeps, x_label="batch", logarithmic=True))
    return "".join(plots)


def _energy_section(energy: EnergyReport) -> str:
    rows = []
    for result in energy.results:
        rows.append(
            (
                result.name,
                f"{result.power_w:.2f}",
                f"{result.idle_w:.2f}",
                f"{result.total_mj:.3f} ± {result.total_half_width_mj:.3f}",
                _optional(result.total_systematic_mj),
                f"{result.marginal_mj:.3f} ± {result.marginal_half_width_mj:.3f}",
                _optional(result.marginal_systematic_mj),
                f"{result.total_mj_per_item:.4f}",
                f"{result.marginal_mj_per_item:.4f}",
            )
        )
    header = (
        "bundle", "power W", "idle W", "total mJ", "± systematic", "above idle mJ",
        "± systematic", "total mJ an item", "above idle mJ an item",
    )  # fmt: skip
    protocol = energy.protocol
    words = (
        f"<p>{escape(energy.meter)}. Idle {protocol.idle_s:g} s, load {protocol.load_s:g} s, "
        f"{protocol.blocks} windows of each load in turns, a reading each {protocol.period_s:g} s. "
        "Energies are of one inference, ± half of the 95 % interval.</p>"
    )
    plots = f'<div class="plots">{_energy_plots(energy)}</div>'
    return table(header, rows) + words + _rails_table(energy.results) + plots


def _rails_table(results: Sequence[EnergyResult]) -> str:
    rails = list(results[0].rails_mj)
    rows = [(r.name, *(f"{r.rails_mj[rail]:.3f}" for rail in rails)) for r in results]
    return table(("mJ of one inference by rail", *rails), rows)


def _energy_plots(energy: EnergyReport) -> str:
    total = [(r.name, r.total_mj, r.total_half_width_mj) for r in energy.results]
    above = [(r.name, r.marginal_mj, r.marginal_half_width_mj) for r in energy.results]
    trace = energy.trace
    start = float(trace.times_s[0])
    series = {
        name: (trace.times_s - start, watts)
        for name, watts in {"module": trace.module_w, **trace.rails_w}.items()
    }
    bands = [(b.name, b.start_s - start, b.end_s - start) for b in energy.blocks]
    return (
        bar_chart("Mean module energy of one inference ± half of its 95 % interval", "mJ", total)
        + bar_chart("Mean energy above idle ± half of its 95 % interval", "mJ", above)
        + line_chart("Power", "W", series, x_label="s", bands=bands)
    )


def _device_table(before: DeviceState, after: DeviceState) -> str:
    def cells(state: DeviceState) -> list[str]:
        gpu = state.gpu
        return [
            state.system,
            str(state.cores),
            state.power_mode or "not known",
            _pairs(state.clocks_mhz, "MHz"),
            _pairs(state.clock_limits_mhz, "MHz"),
            _pairs(state.temperatures_c, "°C"),
            f"{state.supply_v:.2f} V" if state.supply_v is not None else "not measured",
            f"{gpu.name}, {gpu.driver}, {_pairs(gpu.clocks_mhz, 'MHz')}" if gpu else "none",
            ", ".join(f"{name} {version}" for name, version in state.versions.items()),
        ]

    names = ("system", "cores", "power mode", "clocks", "clock limits", "temperatures", "supply",
             "GPU", "versions")  # fmt: skip
    rows = zip(names, cells(before), cells(after), strict=True)
    return table(("", "before", "after"), rows, "device")


def _pairs(values: object, unit: str) -> str:
    items = values.items() if hasattr(values, "items") else ()
    return ", ".join(f"{name} {value:.0f} {unit}" for name, value in items) or "not known"


def _optional(value: float | None) -> str:
    return "not stated" if value is None else f"{value:.3f}"
