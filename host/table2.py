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

from torch import nn

from edgexnas.device.benchmark.intervals import series_half_width
from edgexnas.host.cost_model import PAPER_TABLE_2, CostModel, count_cost
from edgexnas.host.models import BraggNN, count_parameters, mlp_bragg
from edgexnas.host.ptycho_models import PtychoNN, cnn_ptycho, mlp_ptycho

BRAGG, PTYCHO = (1, 11, 11), (1, 64, 64)
Build = Callable[[], nn.Module]

OURS: tuple[tuple[str, str, Build, tuple[int, ...]], ...] = (
    ("BraggNN 64-32-16-8", "BraggNN", lambda: BraggNN((64, 32, 16, 8)), BRAGG),
    ("BraggNN 16-8-4-2", "", lambda: BraggNN((16, 8, 4, 2)), BRAGG),
    ("mlpBragg 50×5", "optimised Bragg", lambda: mlp_bragg(50, 5), BRAGG),
    ("mlpBragg 99×1", "", lambda: mlp_bragg(99, 1), BRAGG),
    ("PtychoNN", "PtychoNN", PtychoNN, PTYCHO),
    ("cnnPtycho 251, 1-2-1", "optimised Ptycho", lambda: cnn_ptycho(251, 1, 2, 1), PTYCHO),
    ("mlpPtycho 256×2", "", lambda: mlp_ptycho(256, 2), PTYCHO),
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
    bragg, ours = PAPER_TABLE_2[0].energy_mj, PAPER_TABLE_2[1].energy_mj
    lines += [
        "",
        f"The percentages do not agree with each other: {bragg} → {ours} mJ is a reduction by "
        f"{1 - ours / bragg:.1%}, and {ours / bragg:.1%} is what remains, so the abstract's "
        "44.18 % is close to the ratio. Whether idle power was subtracted, which rails were added, "
        "how often they were read and whether clocks were locked is not stated; 375 runs of 10 "
        "last 0.7 s, in which a reader at 1 Hz sees one sample or none. The paper's "
        "baselines match no public network, so the tables below count their own.",
    ]
    return "\n".join(lines)


def counted() -> str:
    """Count our networks and estimate them."""
    model, known = CostModel(), {row.name: row for row in PAPER_TABLE_2}
    lines = [
        "## Counted, and estimated for the Orin",
        "",
        "Estimate: the cost model of `edgexnas/host/cost_model.py`, INT8, batch 32, calibrated on "
        "all four rows of the paper by networks of ours that stand for them. **No Orin was "
        "measured here.**",
        "",
        "| network | parameters | MACs an item | kernels | ms, estimate | mJ, estimate | "
        "stands for the paper's | ms there | mJ there |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row_name, build, shape in OURS:
        network = build().eval()
        cost = count_cost(network, shape)
        row = known.get(row_name)
        there = f"{row.name} | {row.latency_ms} | {row.energy_mj}" if row else " | | "
        lines.append(
            f"| {name} | {count_parameters(network):,} | {cost.macs:,.0f} | {cost.launches} | "
            f"{model.latency_ms(cost):.3f} | {model.energy_mj(cost):.2f} | {there} |"
        )
    lines += [
        "",
        "The estimate misses the paper's latencies by up to 18 % and its energies by up to 34 %: "
        "differences of two networks that are smaller mean nothing. The paper describes none of "
        "its networks layer by layer. Its optimised one for ptychography (1,708,150 parameters) "
        "may be any of thousands of cnnPtycho of this size, which do 0.6 to 7 times PtychoNN's "
        "arithmetic; the one that stands for it is of that size and does the least.",
    ]
    return "\n".join(lines)


def measured(content: dict[str, Any]) -> str:
    """Tabulate what was measured on a GPU, baselines against ours."""
    gpu, protocol = content["device"]["gpu"], content["protocol"]
    torch = content["device"]["versions"].get("torch", "of unknown version")
    lines = [
        "## Measured on a data-centre GPU through NVML",
        "",
        f"{gpu['name']}, driver {gpu['driver']}, torch {torch}: float16 CUDA graphs, a "
        "stand-in for TensorRT, batch 32, copies in and out included, every network in the faster "
        "of both memory layouts with cuDNN's fastest algorithms. Power and energy by "
        "`edgexnas.device.power` and `edgexnas.device.benchmark`, made by "
        f"`python host/bench_energy_gpu.py --output OUTPUT --load {protocol['load_s']:g} --idle "
        f"{protocol['idle_s']:g} --blocks {protocol['blocks']}`: "
        f"each repeat has {protocol['blocks']} load windows of "
        f"{protocol['load_s']:g} s in the order A B B A between idle windows of "
        f"{protocol['idle_s']:g} s, far below the 60 s that the protocol asks for. ± is half of "
        "the 95 % interval; NVML's systematic error, ±5 %, comes on top and is the same for all.",
        "",
        "| network | parameters | layout | repeat | ms | p50 ms | p99 ms | W | idle W | mJ | "
        "mJ above idle | mJ an item |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for entry in content["rows"]:
        pairs = zip(entry["latency"], entry["energy"], strict=True)
        for number, (latency, energy) in enumerate(pairs, start=1):
            lines.append(
                f"| {entry['name']} | {entry['parameters']:,} | {entry['layout']} | {number} | "
                f"{latency['mean_ms']:.4f} ± {series_half_width(latency['runs_ms']):.4f} | "
                f"{latency['p50_ms']:.4f} | {latency['p99_ms']:.4f} | {energy['power_w']:.1f} | "
                f"{energy['idle_w']:.1f} | "
                f"{energy['total_mj']:.3f} ± {energy['total_half_width_mj']:.3f} | "
                f"{energy['marginal_mj']:.3f} ± {energy['marginal_half_width_mj']:.3f} | "
                f"{energy['total_mj'] / energy['items']:.4f} |"
            )
    lines.append("")
    for baseline, rival in zip(content["rows"][::2], content["rows"][1::2], strict=True):
        lines.append(_comparison(baseline, rival))
    apart_ms = [e["name"] for e in content["rows"] if not _latencies_agree(e["latency"])]
    apart = [e["name"] for e in content["rows"] if not e["total_agrees"]]
    apart_above = [e["name"] for e in content["rows"] if not e["marginal_agrees"]]
    lines.append(
        f"* Repeats agree within their intervals: total energy {_all_but(apart)}, energy above "
        f"idle {_all_but(apart_above)}, mean latency {_all_but(apart_ms)}. Latencies are those "
        "of a host that launches and waits: for nets this small it decides them, and it differed "
        "from repeat to repeat by up to a quarter. Within a repeat rivals are timed in turns."
    )
    lines.append(
        "* The rivals are small nets of this project's searches, not nets of equal accuracy: on "
        "ruby mlpBragg 99×1 errs by 0.0168 px and BraggNN 64-32-16-8 by 0.0120 px "
        "([accuracy](accuracy-ruby.md)). On this GPU both hardly load it, so most of the energy is "
        "what the card takes when it waits, times the latency."
    )
    lines += [f"* {note}" for note in content["notes"]]
    lines += [f"* Fault: {fault}." for fault in content["faults"]]
    return "\n".join(lines)


def _comparison(baseline: dict[str, Any], rival: dict[str, Any]) -> str:
    def mean(entry: dict[str, Any], part: str, name: str) -> float:
        return sum(item[name] for item in entry[part]) / len(entry[part])

    changes = {
        "latency": ("latency", "mean_ms"),
        "energy": ("energy", "total_mj"),
    }
    if all(e["marginal_mj"] > e["marginal_half_width_mj"] for e in rival["energy"]):
        changes["energy above idle"] = ("energy", "marginal_mj")
    words = ", ".join(
        f"{1 - mean(rival, *where) / mean(baseline, *where):.1%} less {what}"
        for what, where in changes.items()
    )
    return f"* {rival['name']} against {baseline['name']}: {words}."


def _latencies_agree(repeats: list[dict[str, Any]]) -> bool:
    first, last = repeats[0], repeats[-1]
    widths = [series_half_width(repeat["runs_ms"]) for repeat in (first, last)]
    return abs(first["mean_ms"] - last["mean_ms"]) <= math.hypot(*widths)


def _all_but(names: list[str]) -> str:
    return f"of all but {', '.join(names)}" if names else "of all"


if __name__ == "__main__":
    main()
