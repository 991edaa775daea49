"""Energy and latency of baselines and optimised networks on a GPU, through NVML.

    python host/bench_energy_gpu.py --output docs/results/energy-gpu

Networks run in torch as float16 CUDA graphs, batch by batch, with the batch copied in and the
results copied out through pinned memory: a stand-in for TensorRT. Every network, baseline or not,
runs in the faster of both memory layouts, with the fastest algorithms that cuDNN finds. Power and
energy are measured by the product's own code, `edgexnas.device.power` and
`edgexnas.device.benchmark`.
Writes OUTPUT.md and OUTPUT.json.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgexnas.device.benchmark.device_state import observe_device, throttling
from edgexnas.device.benchmark.energy import EnergyResult, measure_energy
from edgexnas.device.benchmark.energy_protocol import EnergyProtocol
from edgexnas.device.benchmark.latency import LatencyResult, measure_latency
from edgexnas.device.benchmark.load import Load
from edgexnas.device.power import open_power_meter
from edgexnas.host.models import BraggNN, count_parameters, mlp_bragg
from edgexnas.host.ptycho_models import PtychoNN, mlp_ptycho

Networks = dict[str, Callable[[], nn.Module]]

PAIRS: dict[str, tuple[tuple[int, ...], Networks]] = {
    "Bragg peaks": (
        (1, 11, 11),
        {
            "BraggNN 64-32-16-8": lambda: BraggNN((64, 32, 16, 8)),
            "mlpBragg 99×1": lambda: mlp_bragg(99, 1),
        },
    ),
    "Ptychography": (
        (1, 64, 64),
        {
            "PtychoNN": PtychoNN,
            "mlpPtycho 256×2": lambda: mlp_ptycho(256, 2),
        },
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="two files, .md and .json")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--load", type=float, default=60.0, help="seconds of each load window")
    parser.add_argument("--idle", type=float, default=60.0, help="seconds of each idle window")
    parser.add_argument("--blocks", type=int, default=5, help="load windows of a network")
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    meter = open_power_meter("nvml")
    protocol = EnergyProtocol(
        load_s=options.load, idle_s=options.idle, blocks=options.blocks,
        warm_up_s=0.5, lead_s=0.5, settle_s=0.8, period_s=0.05,
    )  # fmt: skip
    before = observe_device(nvml=True)
    faults: list[str] = []
    rows: list[dict[str, Any]] = []
    notes: list[str] = []

    def hot() -> None:
        faults.extend(throttling(before, observe_device(nvml=True)))

    for title, (shape, networks) in PAIRS.items():
        models = {name: build().eval() for name, build in networks.items()}
        chosen = {name: fastest_graph(m, (options.batch, *shape)) for name, m in models.items()}
        loads = [Load(name, replay, options.batch) for name, (replay, _) in chosen.items()]
        latencies, reports = [], []
        for repeat in range(options.repeats):
            print(f"{title}, repeat {repeat + 1}", flush=True)
            latencies.append(measure_latency(loads))
            reports.append(measure_energy(loads, meter, protocol, progress=print, after_block=hot))
            faults.extend(reports[-1].faults)
            notes = list(reports[-1].notes)
        for number, (name, model) in enumerate(models.items()):
            results = [report.results[number] for report in reports]
            times = [latency[number] for latency in latencies]
            rows.append(row(title, name, count_parameters(model), chosen[name][1], times, results))
        # After each pair, so that a run that is cut off leaves what it has.
        content = {
            "device": dataclasses.asdict(before),
            "device_after": dataclasses.asdict(observe_device(nvml=True)),
            "meter": meter.description,
            "protocol": dataclasses.asdict(protocol),
            "faults": sorted(set(faults)),
            "notes": notes,
            "rows": rows,
        }
        options.output.with_suffix(".json").write_text(json.dumps(content, indent=1))
        page = markdown(content, options.batch)
        options.output.with_suffix(".md").write_text(page)
    print(page)


def fastest_graph(model: nn.Module, shape: tuple[int, ...]) -> tuple[Callable[[], object], str]:
    """Capture a network in both memory layouts; return the faster one's replay and its name."""
    torch.backends.cudnn.benchmark = True
    layouts = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
    replays = {name: graph(copy.deepcopy(model), shape, kind) for name, kind in layouts.items()}
    times: dict[str, list[float]] = {name: [] for name in replays}
    for _ in range(20):
        for name, replay in replays.items():
            began = time.perf_counter()
            for _ in range(10):
                replay()
            times[name].append(time.perf_counter() - began)
    name = min(times, key=lambda name: statistics.median(times[name]))
    medians = {key: f"{100 * statistics.median(value):.4f} ms" for key, value in times.items()}
    print(type(model).__name__, medians, flush=True)
    return replays[name], name


def graph(
    model: nn.Module, shape: tuple[int, ...], layout: torch.memory_format
) -> Callable[[], object]:
    """Capture a float16 network with its copies as one CUDA graph; return its replay."""
    model = model.half().cuda().to(memory_format=layout)
    inputs = torch.zeros(shape, dtype=torch.float16, device="cuda").to(memory_format=layout)
    pinned = torch.empty_like(inputs, device="cpu", pin_memory=True)
    pinned.copy_(torch.rand(shape))
    stream = torch.cuda.Stream()
    with torch.inference_mode(), torch.cuda.stream(stream):
        for _ in range(5):
            inputs.copy_(pinned, non_blocking=True)
            outputs = model(inputs)
        results = torch.empty_like(outputs, device="cpu", pin_memory=True)
        torch.cuda.synchronize()
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured, stream=stream):
            inputs.copy_(pinned, non_blocking=True)
            outputs = model(inputs)
            results.copy_(outputs, non_blocking=True)

    # The graph holds addresses only: what lies there must live as long as it is replayed.
    alive = (model, pinned, inputs, outputs, results)

    def replay() -> None:
        assert alive
        with torch.cuda.stream(stream):
            captured.replay()
        stream.synchronize()

    replay()
    if not torch.isfinite(results.float()).all():
        raise SystemExit("a network gave a number that is not finite")
    return replay


def row(
    title: str,
    name: str,
    parameters: int,
    layout: str,
    latencies: list[LatencyResult],
    results: list[EnergyResult],
) -> dict[str, Any]:
    first, last = results[0], results[-1]
    return {
        "task": title,
        "name": name,
        "parameters": parameters,
        "layout": layout,
        "latency": [dataclasses.asdict(latency) for latency in latencies],
        "energy": [dataclasses.asdict(result) for result in results],
        "total_agrees": agree(
            first.total_mj, first.total_half_width_mj, last.total_mj, last.total_half_width_mj
        ),
        "marginal_agrees": agree(
            first.marginal_mj,
            first.marginal_half_width_mj,
            last.marginal_mj,
            last.marginal_half_width_mj,
        ),
    }


def agree(a: float, width_a: float, b: float, width_b: float) -> bool:
    """Whether two repeats differ by no more than their intervals together allow."""
    return abs(a - b) <= math.hypot(width_a, width_b)


def markdown(content: dict[str, Any], batch: int) -> str:
    gpu, protocol = content["device"]["gpu"], content["protocol"]
    lines = [
        f"{gpu['name']}, driver {gpu['driver']}, "
        f"SM clock {gpu['clocks_mhz'].get('sm')} MHz before; "
        f"torch {torch.__version__}, float16 CUDA graphs with copies in and out, batch {batch}, "
        "each in the faster of both memory layouts with cuDNN's fastest algorithms. "
        f"Idle {protocol['idle_s']:g} s, load {protocol['load_s']:g} s, "
        f"{protocol['blocks']} load windows of each network and repeat in turns (A B B A); "
        "375 runs of 10 for the latency. Energies are of one inference of the batch, ± half of "
        "the 95 % interval.",
        "",
        "| network | parameters | layout | latency ms | p99 ms | repeat | power W | idle W | "
        "total mJ | above idle mJ | total mJ an item |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for entry in content["rows"]:
        for number, energy in enumerate(entry["energy"], start=1):
            latency = entry["latency"][number - 1]
            lines.append(
                f"| {entry['name']} | {entry['parameters']:,} | {entry['layout']} | "
                f"{latency['mean_ms']:.4f} ± "
                f"{latency['half_width_ms']:.4f} | {latency['p99_ms']:.4f} | {number} | "
                f"{energy['power_w']:.1f} | {energy['idle_w']:.1f} | {energy['total_mj']:.3f} ± "
                f"{energy['total_half_width_mj']:.3f} | {energy['marginal_mj']:.3f} ± "
                f"{energy['marginal_half_width_mj']:.3f} | "
                f"{energy['total_mj'] / energy['items']:.4f} |"
            )
    lines.append("")
    for entry in content["rows"]:
        words = {True: "agree", False: "DO NOT agree"}
        lines.append(
            f"* {entry['name']}: repeats {words[entry['total_agrees']]} in total and "
            f"{words[entry['marginal_agrees']]} above idle."
        )
    lines += [f"* {note}" for note in content["notes"]]
    lines += [f"* FAULT: {fault}" for fault in content["faults"]] or [
        "* No throttling, no lost reading."
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
