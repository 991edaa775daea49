"""The paper's Table 2 beside our own networks: counted, estimated, and measured on a GPU.

    python host/table2.py --gpu energy-gpu.json --output docs/results/energy.md

energy-gpu.json is what `host/bench_energy_gpu.py` writes.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench_energy_gpu import QUANTITIES, apart, build, shape_of
from torch import nn

from edgexnas.host.measuring.cost_model import PAPER_TABLE_2, CostModel, count_cost
from edgexnas.host.networks.bragg_models import BraggNN, MlpBragg, count_parameters
from edgexnas.host.networks.ptycho_models import CnnPtycho, MlpPtycho, PtychoNN

BRAGG, PTYCHO = (1, 11, 11), (1, 64, 64)
Build = Callable[[], nn.Module]

OURS: tuple[tuple[str, str, Build, tuple[int, ...]], ...] = (
    ("BraggNN 64-32-16-8", "BraggNN", lambda: BraggNN((64, 32, 16, 8)), BRAGG),
    ("BraggNN 16-8-4-2", "", lambda: BraggNN((16, 8, 4, 2)), BRAGG),
    ("mlpBragg 50×5", "optimised Bragg", lambda: MlpBragg(50, 5), BRAGG),
    ("mlpBragg 96×2", "", lambda: MlpBragg(96, 2), BRAGG),
    ("PtychoNN", "PtychoNN", PtychoNN, PTYCHO),
    ("cnnPtycho 251, 1-2-1", "optimised Ptycho", lambda: CnnPtycho(251, 1, 2, 1), PTYCHO),
    ("cnnPtycho 64, 6-6-6", "", lambda: CnnPtycho(64, 6, 6, 6), PTYCHO),
    ("mlpPtycho 256×2", "", lambda: MlpPtycho(256, 2), PTYCHO),
)
"""Name, the row of the paper that it stands for, and how to build it."""

SAID = {
    "BraggNN": "baseline",
    "optimised Bragg": "44.18 % less energy (abstract)",
    "PtychoNN": "baseline",
    "optimised Ptycho": "15.34 % less, elsewhere 18.79 %",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", type=Path, help="what host/bench_energy_gpu.py wrote")
    parser.add_argument("--output", type=Path, help="Markdown file; only printed if not given")
    options = parser.parse_args()
    sections = ["# Latency and energy: the paper's Table 2 and ours", paper(), counted()]
    if options.gpu is not None:
        sections.append(measured(json.loads(options.gpu.read_text())))
    page = "\n\n".join(sections) + "\n"
    print(page)
    if options.output is not None:
        options.output.write_text(page)


def paper() -> str:
    """Repeat the paper's rows with the percentages that follow from them."""
    lines = [
        "## The paper's rows",
        "",
        "Jetson AGX Orin 32 GB, INT8, batch 32, as printed; other columns follow by arithmetic.",
        "",
        "| network | ms | mJ | mean W | mJ an item | energy against baseline | the paper says |",
        "|---|---|---|---|---|---|---|",
    ]
    for number, row in enumerate(PAPER_TABLE_2):
        base = PAPER_TABLE_2[number - number % 2]
        change = "" if row is base else f"−{1 - row.energy_mj / base.energy_mj:.1%}"
        lines.append(
            f"| {row.name} | {row.latency_ms} | {row.energy_mj} | "
            f"{row.energy_mj / row.latency_ms:.1f} | {row.energy_mj / 32:.3f} | {change} | "
            f"{SAID[row.name]} |"
        )
    lines += [
        "",
        "The paper's percentages do not agree with each other, and its baselines match no public "
        "network.",
    ]
    return "\n".join(lines)


def counted() -> str:
    """Count our networks and estimate them."""
    model, known = CostModel(), {row.name: row for row in PAPER_TABLE_2}
    lines = [
        "## Counted, and estimated for the Orin",
        "",
        "By the cost model `edgexnas/host/measuring/cost_model.py`, INT8, batch 32. It misses the "
        "paper's latencies by up to 18 %, and energies by up to 34 %. **No Orin was measured "
        "here.**",
        "",
        "| network | parameters | MACs an item | kernels | ms, estimate | mJ, estimate | "
        "stands for the paper's | ms there | mJ there |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row_name, make, shape in OURS:
        network = make().eval()
        cost = count_cost(network, shape)
        row = known.get(row_name)
        there = f"{row.name} | {row.latency_ms} | {row.energy_mj}" if row else " | | "
        lines.append(
            f"| {name} | {count_parameters(network):,} | {cost.macs:,.0f} | {cost.launches} | "
            f"{model.latency_ms(cost):.3f} | {model.energy_mj(cost):.2f} | {there} |"
        )
    return "\n".join(lines)


def measured(content: dict[str, Any]) -> str:
    """Tabulate what was measured on a GPU, baselines against ours."""
    gpu, protocol = content["device"]["gpu"], content["protocol"]
    rows = content["rows"]
    names = {row["name"]: in_words(row["name"]) for row in rows}
    lines = [
        "## Measured on a data-centre GPU through NVML",
        "",
        f"`python host/bench_energy_gpu.py --output energy-gpu.json --load {protocol['load_s']:g} "
        f"--idle {protocol['idle_s']:g} --blocks {protocol['blocks']}` on one {gpu['name']}, torch "
        f"{content['torch']}: float16 CUDA graphs, a stand-in for TensorRT, batch "
        f"{content['batch']}, copies included. ± is half of the 95 % interval; NVML's ±5 % comes "
        "on top.",
        "",
        "| network | parameters | MACs an item | error | repeat | W | idle W | mJ | "
        "mJ above idle | mJ an item |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        macs = count_cost(build(row["name"]).eval(), shape_of(row["name"])).macs
        for number, energy in enumerate(row["energy"], start=1):
            lines.append(
                f"| {names[row['name']]} | {row['parameters']:,} | {macs:,.0f} | "
                f"{ERRORS.get(row['name'], '')} | {number} | "
                f"{energy['power_w']:.1f} | {energy['idle_w']:.1f} | "
                f"{_pm(energy['total_mj'], energy['total_half_width_mj'])} | "
                f"{_pm(energy['marginal_mj'], energy['marginal_half_width_mj'])} | "
                f"{energy['total_mj'] / energy['items']:.4f} |"
            )
    lines += [
        "",
        "Errors are those of [fronts-ruby](fronts-ruby.md) and [ptycho-star](ptycho-star.md).",
        "",
        "| network | layout | repeat | mean ms over load windows | mean ms of 375×10 | median ms | "
        "p99 ms | ms on the GPU's clock |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        for k, latency in enumerate(row["latency"][: len(row["energy"])]):
            means = " | ".join(_pm(*QUANTITIES[what](row, k)) for what in LATENCIES)
            over_windows, runs, median, on_gpu = means.split(" | ")
            lines.append(
                f"| {names[row['name']]} | {row['layout']} | {k + 1} | {over_windows} | {runs} | "
                f"{median} | {latency['p99_ms']:.4f} | {on_gpu} |"
            )
    lines.append("")
    for baseline, rival in zip(rows[::2], rows[1::2], strict=True):
        lines.append(_comparison(baseline, rival))
    missed = [f"{what} of {names[row['name']]}" for row in rows for what in apart(row)]
    count = len(rows) * len(QUANTITIES)
    lines.append(
        f"* The repeats agree within their intervals in {count - len(missed)} of {count} "
        f"comparisons{': all but ' + ', '.join(missed) if missed else ''}."
    )
    notes = [note.partition(": ")[2] for note in content["notes"]]
    lines += [f"* {note}" for note in dict.fromkeys(notes) if "uncertain" in note]
    lines += [f"* Fault: {fault}." for fault in content["faults"]]
    if not content["faults"]:
        lines.append("* No throttling, no lost reading.")
    return "\n".join(lines)


LATENCIES = ("mean ms over windows", "mean ms of runs", "median ms", "ms on the GPU's clock")

ERRORS = {
    "BraggNN-64-32-16-8": "0.0091 px",
    "BraggNN-16-8-4-2": "0.0106 px",
    "mlpBragg-96-2": "0.0078 px",
    "PtychoNN": "0.0665 rad",
    "cnnPtycho-64-6-6-6": "0.0657 rad",
    "cnnPtycho-48-6-6-6": "0.0679 rad",
}
"""From docs/results/fronts-ruby.md (mlpBragg 96×2 is #36 of its search) and ptycho-star.md."""


def in_words(name: str) -> str:
    """BraggNN 64-32-16-8, mlpBragg 96×2."""
    family, _, sizes = name.partition("-")
    if family == "cnnPtycho":
        filters, _, depths = sizes.partition("-")
        return f"{family} {filters}, {depths}"
    return f"{family} {sizes if family == 'BraggNN' else sizes.replace('-', '×')}".strip()


def _pm(value: float, width: float) -> str:
    """Write a value with as many digits as its interval is worth."""
    digits = 4 if not 0 < width < math.inf else max(0, 1 - math.floor(math.log10(width)))
    return f"{value:.{digits}f} ± {width:.{digits}f}"


def _comparison(baseline: dict[str, Any], rival: dict[str, Any]) -> str:
    words = []
    for what in ("total mJ", "mJ above idle", LATENCIES[0]):
        a, b = (_both(row, what) for row in (baseline, rival))
        if a[0] <= 2 * a[1] or b[0] <= b[1]:
            # What is uncertain itself gives no ratio.
            continue
        ratio = b[0] / a[0]
        width = ratio * math.hypot(a[1] / a[0], b[1] / b[0])
        words.append(f"{what} {ratio - 1:+.1%} ± {width:.1%}")
    return (
        f"* **{in_words(rival['name'])} against {in_words(baseline['name'])}**: {', '.join(words)}."
    )


def _both(row: dict[str, Any], what: str) -> tuple[float, float]:
    """Mean of the repeats, and half of its interval."""
    pairs = [QUANTITIES[what](row, k) for k in range(len(row["energy"]))]
    return (
        sum(value for value, _ in pairs) / len(pairs),
        math.hypot(*(width for _, width in pairs)) / len(pairs),
    )


if __name__ == "__main__":
    main()
