"""Energy and latency of baselines and optimised networks on a GPU, through NVML.

    python host/bench_energy_gpu.py --output energy-gpu.json
    python host/table2.py --gpu energy-gpu.json --output docs/results/energy.md

Networks run in torch as float16 CUDA graphs, batch by batch, with the batch copied in and the
results copied out through pinned memory: a stand-in for TensorRT. Every network, baseline or not,
runs in the faster of both memory layouts, with the fastest algorithms that cuDNN finds. Power and
energy are measured by the product's own code, `edgexnas.device.power` and
`edgexnas.device.benchmark`. A repeat measures all tasks; the file is written after each of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch_graphs import TorchGraph, fastest_graph

from edgexnas.device.benchmark import EnergyProtocol, LatencyResult, Load, measure_energy
from edgexnas.device.benchmark.intervals import half_width
from edgexnas.device.benchmark.latency import RUNS, time_runs
from edgexnas.device.power import open_power_meter
from edgexnas.device.power.device_state import observe_device, throttling
from edgexnas.host.networks.bragg_models import BraggNN, CnnBragg, MlpBragg, count_parameters
from edgexnas.host.networks.ptycho_models import CnnPtycho, MlpPtycho, PtychoNN
from edgexnas.whole_files import write_whole

FAMILIES: dict[str, Callable[..., nn.Module]] = {
    "BraggNN": lambda *widths: BraggNN(widths),
    "mlpBragg": MlpBragg,
    "cnnBragg": CnnBragg,
    "PtychoNN": PtychoNN,
    "mlpPtycho": MlpPtycho,
    "cnnPtycho": CnnPtycho,
}
SHAPES = {"Bragg": (1, 11, 11), "Ptycho": (1, 64, 64)}

Pair = tuple[float, float]
"""A value and half of its 95 % interval."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    parser.add_argument(
        "--networks", nargs="+", action="append", metavar="FAMILY-SIZE-SIZE",
        help="of one task, the baseline first; specify it once a task",
    )  # fmt: skip
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--load", type=float, default=60.0, help="seconds of each load window")
    parser.add_argument("--idle", type=float, default=60.0, help="seconds of each idle window")
    parser.add_argument("--blocks", type=int, default=3, help="load windows of a network")
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    tasks = options.networks or [
        ["BraggNN-64-32-16-8", "mlpBragg-96-2"], ["PtychoNN", "cnnPtycho-64-6-6-6"],
    ]  # fmt: skip
    bench = Bench(tasks, options)
    for repeat in range(options.repeats):
        for names in tasks:
            print(f"repeat {repeat + 1}: {' against '.join(names)}", flush=True)
            bench.measure(names)
            write_whole(options.output, json.dumps(bench.content(), indent=1).encode())
    print(summary(bench.content()))


class Bench:
    """All networks, captured once, and what was measured of them so far."""

    def __init__(self, tasks: Sequence[Sequence[str]], options: argparse.Namespace) -> None:
        self._options = options
        self._meter = open_power_meter("nvml")
        self._protocol = EnergyProtocol(
            load_s=options.load, idle_s=options.idle, blocks=options.blocks,
            warm_up_s=0.3, lead_s=0.4, settle_s=0.4, period_s=0.05,
        )  # fmt: skip
        self._before = observe_device(nvml=True)
        self._faults: list[str] = []
        self._notes: list[str] = []
        self._graphs: dict[str, TorchGraph] = {}
        self._rows: dict[str, dict[str, Any]] = {}
        for name in (name for names in tasks for name in names):
            model = build(name).eval()
            shape = (options.batch, *shape_of(name))
            graph = self._graphs[name] = fastest_graph(model, shape)
            print(f"{name}: {graph.layout} is the faster layout", flush=True)
            self._rows[name] = {
                "name": name,
                "parameters": count_parameters(model),
                "layout": graph.layout,
                "latency": [],
                "device_ms": [],
                "energy": [],
            }

    def measure(self, names: Sequence[str]) -> None:
        """Measure one repeat of one task's networks, in turns."""
        loads = [Load(name, self._graphs[name].replay, self._options.batch) for name in names]
        sessions: list[list[list[list[float]]]] = [[] for _ in loads]
        # The paper's 375 runs, some after each window of load: see `LatencyResult.of_sessions`.
        runs = math.ceil(RUNS / (len(loads) * self._protocol.blocks))
        device_ms: dict[str, list[float]] = {name: [] for name in names}

        def while_hot() -> None:
            self._faults.extend(throttling(self._before, observe_device(nvml=True)))
            for record, times in zip(sessions, time_runs(loads, runs=runs), strict=True):
                record.append(times)
            for name, values in device_ms.items():
                values.append(statistics.fmean(self._graphs[name].device_ms(5)))

        report = measure_energy(
            loads, self._meter, self._protocol,
            progress=functools.partial(print, flush=True), after_block=while_hot,
        )  # fmt: skip
        for name, values in device_ms.items():
            self._rows[name]["device_ms"].append((statistics.fmean(values), half_width(values)))
        for load, record in zip(loads, sessions, strict=True):
            latency = LatencyResult.of_sessions(load, record)
            self._rows[load.name]["latency"].append(dataclasses.asdict(latency))
        for energy in report.results:
            self._rows[energy.name]["energy"].append(dataclasses.asdict(energy))
        self._faults.extend(report.faults)
        self._notes.extend(f"{' against '.join(names)}: {note}" for note in report.notes)

    def content(self) -> dict[str, Any]:
        """Give everything as JSON takes it."""
        return {
            "device": dataclasses.asdict(self._before),
            "device_after": dataclasses.asdict(observe_device(nvml=True)),
            "torch": torch.__version__,
            "batch": self._options.batch,
            "meter": self._meter.description,
            "protocol": dataclasses.asdict(self._protocol),
            "faults": list(dict.fromkeys(self._faults)),
            "notes": list(dict.fromkeys(self._notes)),
            "rows": list(self._rows.values()),
        }


def build(name: str) -> nn.Module:
    """Build a network from its family and sizes, such as mlpBragg-96-2 (units, layers)."""
    family, *sizes = name.split("-")
    if family not in FAMILIES:
        raise SystemExit(f"{name} is of no known family; specify one of {', '.join(FAMILIES)}")
    return FAMILIES[family](*(int(size) for size in sizes))


def shape_of(name: str) -> tuple[int, ...]:
    return SHAPES["Ptycho" if "Ptycho" in name else "Bragg"]


def with_interval(part: str, value: str, half_width: str) -> Callable[[dict[str, Any], int], Pair]:
    """Take a value and half of its interval from a repeat's part of a row."""
    return lambda row, k: (row[part][k][value], row[part][k][half_width])


QUANTITIES: dict[str, Callable[[dict[str, Any], int], Pair]] = {
    "mean ms over windows": with_interval("energy", "period_ms", "period_half_width_ms"),
    "mean ms of runs": with_interval("latency", "mean_ms", "half_width_ms"),
    "median ms": with_interval("latency", "p50_ms", "p50_half_width_ms"),
    "ms on the GPU's clock": lambda row, k: (row["device_ms"][k][0], row["device_ms"][k][1]),
    "total mJ": with_interval("energy", "total_mj", "total_half_width_mj"),
    "mJ above idle": with_interval("energy", "marginal_mj", "marginal_half_width_mj"),
}
"""What is measured of a network in each repeat, with half of its 95 % interval."""


def agree(a: Pair, b: Pair) -> bool:
    """Whether two repeats differ by no more than their intervals together allow."""
    return abs(a[0] - b[0]) <= math.hypot(a[1], b[1])


def apart(row: dict[str, Any]) -> list[str]:
    """Name the quantities in which a network's first and last repeat do not agree."""
    last = len(row["energy"]) - 1
    return [what for what, of in QUANTITIES.items() if not agree(of(row, 0), of(row, last))]


def summary(content: dict[str, Any]) -> str:
    lines = []
    for row in content["rows"]:
        lines.append(f"{row['name']}, {row['parameters']:,} parameters, {row['layout']}")
        for what, of in QUANTITIES.items():
            values = [of(row, k) for k in range(len(row["energy"]))]
            words = ", ".join(f"{value:.4f} ± {width:.4f}" for value, width in values)
            lines.append(f"  {what}: {words}{'  APART' if what in apart(row) else ''}")
    lines += content["notes"] + [f"FAULT: {fault}" for fault in content["faults"]]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
