"""A bench report as one HTML file with everything inside, to keep beside the numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from edgexnas.device.benchmark.bench import BenchReport
from edgexnas.device.benchmark.device_state import DeviceState
from edgexnas.device.benchmark.energy import EnergyReport
from edgexnas.device.benchmark.energy_result import EnergyResult
from edgexnas.device.benchmark.svg_plots import bar_chart, line_chart

__all__ = ["to_html"]

STYLE = """
body{font:15px/1.5 sans-serif;max-width:1180px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:1em 0}td,th{padding:.25em .7em;border-bottom:1px solid #ddd;
text-align:right}td:first-child,th:first-child{text-align:left}.fault{background:#fdd;padding:.6em}
.plots{display:flex;flex-wrap:wrap;gap:12px}
"""


def to_html(report: BenchReport) -> str:
    """Write tables and plots of latency, energy and power as a page without any other file."""
    parts = [
        f"<h1>edgexnas bench</h1><p>{escape(report.before.name)}, "
        f"{report.created:%Y-%m-%d %H:%M} UTC, edgexnas {escape(report.edgexnas)}</p>",
        *(f'<p class="fault">Void: {escape(fault)}</p>' for fault in report.faults),
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


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _latency_table(report: BenchReport) -> str:
    header = (
        "bundle", "parameters", "engine", "batch", "mean ms", "p50", "p90", "p99", "items/s",
        "build ms", "open ms", "cold start ms",
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
    note = f"<p>{settings.runs} runs of {settings.calls} inferences each, in turns.</p>"
    return table(header, rows) + note


def _latency_plots(report: BenchReport) -> str:
    bars = [(b.name, b.latency.mean_ms, b.latency.half_width_ms) for b in report.bundles]
    runs = {b.name: (range(len(b.latency.runs_ms)), b.latency.runs_ms) for b in report.bundles}
    plots = [
        bar_chart("Latency of one inference", "ms", bars),
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
        bar_chart("Module energy of one inference", "mJ", total)
        + bar_chart("Above idle", "mJ", above)
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
    return table(("", "before", "after"), rows)


def _pairs(values: object, unit: str) -> str:
    items = values.items() if hasattr(values, "items") else ()
    return ", ".join(f"{name} {value:.0f} {unit}" for name, value in items) or "not known"


def _optional(value: float | None) -> str:
    return "not stated" if value is None else f"{value:.3f}"
