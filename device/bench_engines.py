"""Latency and memory of the engine stage on a GPU, with and without a CUDA graph.

    python device/bench_engines.py --output docs/results

The paper's protocol: 375 times the mean of 10 runs of a batch of 32, from host memory to host
memory. TensorRT is not needed: torch stands in for it, and the page says so.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch_stand_in import TorchStandIn

from edgexnas.bragg import PATCH_SIZE
from edgexnas.bundle import Precision
from edgexnas.device.cuda import CudaSession, DoubleBuffer, Slot
from edgexnas.device.engines.device_engine import HostRuns
from edgexnas.host.networks.bragg_models import BraggNN, CnnBragg, MlpBragg, count_parameters
from edgexnas.host.networks.ptycho_models import CnnPtycho, MlpPtycho, PtychoNN
from edgexnas.ptycho import PATTERN_SIZE
from edgexnas.whole_files import write_whole

BATCH, REPEATS, RUNS = 32, 375, 10
PRECISIONS: tuple[Precision, ...] = ("float16", "float32")
PATCH, PATTERN = (1, PATCH_SIZE, PATCH_SIZE), (1, PATTERN_SIZE, PATTERN_SIZE)

NETWORKS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "mlpBragg 50×1": (lambda: MlpBragg(50, 1), PATCH),
    "mlpBragg 50×5": (lambda: MlpBragg(50, 5), PATCH),
    "cnnBragg 32×6": (lambda: CnnBragg(32, 6), PATCH),
    "BraggNN": (lambda: BraggNN(), PATCH),
    "mlpPtycho 256×1": (lambda: MlpPtycho(256, 1), PATTERN),
    "cnnPtycho 32×6+4+4": (lambda: CnnPtycho(32, 6, 4, 4), PATTERN),
    "PtychoNN": (lambda: PtychoNN(), PATTERN),
}


def latencies_us(run: Any) -> list[float]:
    """375 means of 10 runs, in µs a run."""
    for _ in range(RUNS):
        run()
    means = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        for _ in range(RUNS):
            run()
        means.append((time.perf_counter() - started) / RUNS * 1e6)
    return means


def summary(means: list[float]) -> dict[str, float]:
    ordered = sorted(means)
    return {
        "median": round(statistics.median(means), 2),
        "p99": round(ordered[int(0.99 * len(ordered))], 2),
        "least": round(ordered[0], 2),
    }


def measured(name: str, precision: Precision) -> dict[str, Any]:
    """One network: agreement with the CPU, latencies by turns, memory, start."""
    build, shape = NETWORKS[name]
    torch.manual_seed(0)
    network = build()
    inputs = np.random.default_rng(0).random((BATCH, *shape), np.float32)
    with torch.inference_mode():
        expected = network(torch.from_numpy(inputs)).numpy()
    row: dict[str, Any] = {
        "network": name,
        "precision": precision,
        "parameters": count_parameters(network),
    }
    with CudaSession() as session:
        engine = TorchStandIn(network, shape, session=session, precision=precision)
        runs: dict[str, HostRuns | TorchStandIn] = {
            "plain": HostRuns(engine, graph=False),
            "graph": engine,
        }
        outputs = {kind: run.run(inputs) for kind, run in runs.items()}
        row["largest difference to the CPU"] = float(np.abs(outputs["graph"] - expected).max())
        row["graph equals plain"] = bool(np.array_equal(outputs["graph"], outputs["plain"]))
        row["recorded"] = engine.describe()["cuda_graph"]
        for kind, run in runs.items():
            row[f"{kind} µs"] = summary(latencies_us(lambda run=run: run.run(inputs)))
        row["device only µs"] = summary(device_latencies_us(engine, session))
        row["device memory bytes"] = engine.device_memory_bytes
        row["start s"] = round(engine.seconds, 3)
        for run in runs.values():
            run.close()
    return row


def device_latencies_us(engine: TorchStandIn, session: CudaSession) -> list[float]:
    """Time the graph of the engine alone, on device memory, 10 launches to one wait."""
    source = session.device_buffer((BATCH, *engine.input_shape), np.float32)
    target = session.device_buffer((BATCH, *engine.output_shape), np.float32)
    graph = session.capture(
        lambda stream: engine.enqueue(source.pointer, target.pointer, BATCH, stream)
    )
    means = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        for _ in range(RUNS):
            graph.launch()
        session.synchronize()
        means.append((time.perf_counter() - started) / RUNS * 1e6)
    for thing in (graph, source, target):
        thing.close()
    return means


def copies(session: CudaSession) -> dict[str, float]:
    """Frames of 2048×2048 uint16 through the double buffer, against the bandwidth of one copy."""
    shape = (2048, 2048)
    frame = np.random.default_rng(0).integers(0, 1000, shape).astype(np.uint16)
    buffer = session.staged_buffer(shape, np.uint16, mapped=False)
    buffer.array[:] = frame
    seconds = []
    with session.current():
        for _ in range(50):
            started = time.perf_counter()
            buffer.upload(session.copies)
            session.copies.synchronize()
            seconds.append(time.perf_counter() - started)
    buffer.close()
    limit = 1 / statistics.median(seconds)

    def work(slot: Slot, stream: Any) -> None:
        driver = session.driver_module
        driver.memcpy_dtoh_async(slot.outputs["corner"].array, slot.input.pointer, stream)

    rates = {}
    for filled in ("in place", "copied by the host"):
        double = DoubleBuffer(session, (shape, np.uint16), {"corner": ((64,), np.uint16)}, work)
        for slot in double.slots:
            slot.input.array[:] = frame
        done, started = 0, time.perf_counter()
        while time.perf_counter() < started + 1:
            if double.in_flight == 2:
                assert (double.result()["corner"] == frame[0, :64]).all()
                done += 1
            double.submit(None if filled == "in place" else frame)
        rates[filled] = done / (time.perf_counter() - started)
        double.close()
    return {
        "frames/s that one pinned copy allows": round(limit, 1),
        "GB/s of one pinned copy": round(frame.nbytes * limit / 1e9, 2),
        "frames/s, frame written in place": round(rates["in place"], 1),
        "frames/s, frame copied by the host": round(rates["copied by the host"], 1),
    }


def first_start(name: str) -> dict[str, float]:
    """Time the parts of a first start in this process, in seconds."""
    build, shape = NETWORKS[name]
    network = build()
    started = time.perf_counter()
    with CudaSession() as session:
        opened = time.perf_counter()
        engine = TorchStandIn(network, shape, session=session, tuned=False)
        ready = time.perf_counter()
        engine.run(np.zeros((BATCH, *shape), np.float32))
        finished = time.perf_counter()
        engine.close()
    return {
        "context": round(opened - started, 3),
        "engine, graphs recorded": round(ready - opened, 3),
        "first run": round(finished - ready, 4),
    }


def in_fresh_process(name: str) -> dict[str, float]:
    """Time a first start in a process of its own."""
    command = [sys.executable, __file__, "--output", ".", "--start", name]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return found


def page(found: dict[str, Any]) -> str:
    """Lay out what was measured as docs/results/gpu-engines.md."""
    same = "yes" if all(row.get("graph equals plain", True) for row in found["rows"]) else "NO"
    lines = [
        "# The engine stage on a GPU",
        "",
        f"`python device/bench_engines.py --output docs/results` on one {found['GPU']} "
        f"({found['capability']}, driver for CUDA {found['CUDA driver']}), torch {found['torch']}.",
        "",
        "**TensorRT does not run here**: torch stands in for it (`device/torch_stand_in.py`). "
        "Context, pinned buffers, streams, copies and graphs are edgexnas' own.",
        "",
        f"## Latency of a batch of {BATCH}",
        "",
        f"From host memory to host memory: {REPEATS} times the mean of {RUNS} runs, median and "
        "99th percentile in µs. Random weights. Memory without the CUDA context.",
        "",
        "| network | parameters | arithmetic | without graph | with graph | gain | device only "
        "| MiB |",
        "|---|---|---|---|---|---|---|---|",
        *map(row_of, found["rows"]),
        "",
        f"With and without a graph identical: {same}. Largest difference to the CPU: "
        f"{difference(found['rows'])}.",
        "",
        "## First start",
        "",
        "A fresh process each, in seconds, without importing torch:",
        "",
        "| network | context | engine opened, graphs recorded | first run |",
        "|---|---|---|---|",
        *(start_of(name, parts) for name, parts in found["first start, s"].items()),
        "",
        "## Double buffer",
        "",
        "2048×2048 uint16 frames, one frame uploaded while the one before is worked on:",
        "",
        "| what | value |",
        "|---|---|",
        *(f"| {name} | {value:,} |" for name, value in found["double buffer"].items()),
        "",
    ]
    return "\n".join(lines)


def row_of(row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"| {row['network']} | | {row['precision']} | failed: {row['failed']} | | | | |"
    plain, graph, device = (row[f"{kind} µs"] for kind in ("plain", "graph", "device only"))
    return (
        f"| {row['network']} | {row['parameters']:,} | {row['precision']} "
        f"| {plain['median']:.0f} (p99 {plain['p99']:.0f}) "
        f"| {graph['median']:.0f} (p99 {graph['p99']:.0f}) "
        f"| {plain['median'] / graph['median']:.1f}× | {device['median']:.0f} "
        f"| {row['device memory bytes'] / 2**20:.0f} |"
    )


def difference(rows: list[dict[str, Any]]) -> str:
    precisions = sorted({row["precision"] for row in rows if "failed" not in row})
    largest = {
        precision: max(
            row["largest difference to the CPU"]
            for row in rows
            if row["precision"] == precision and "failed" not in row
        )
        for precision in precisions
    }
    return " and ".join(f"{value:.1g} in {name}" for name, value in largest.items())


def start_of(name: str, parts: dict[str, float]) -> str:
    return f"| {name} | " + " | ".join(f"{seconds:.3g}" for seconds in parts.values()) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for gpu-engines.json")
    parser.add_argument("--start", choices=NETWORKS, help="only time a first start of this one")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument(
        "--add", action="store_true", help="only add latencies to what the folder's file holds"
    )
    options = parser.parse_args()
    if options.start:
        print(json.dumps(first_start(options.start)))
        return
    options.output.mkdir(parents=True, exist_ok=True)
    kept = options.output / "gpu-engines.json"
    if options.add:
        found = json.loads(kept.read_text(encoding="utf-8"))
    else:
        found = surroundings()
        print(json.dumps(found, indent=1, ensure_ascii=False), flush=True)
    rows = {(row["network"], row["precision"]): row for row in found["rows"]}
    for precision, name in itertools.product(options.precisions, options.networks):
        try:
            row = measured(name, precision)
        except Exception as error:
            row = {"network": name, "precision": precision, "failed": repr(error)}
        print(json.dumps(row, ensure_ascii=False), flush=True)
        rows[name, precision] = row
        # Kept at once: all of them take minutes.
        found["rows"] = sorted(rows.values(), key=place)
        text = json.dumps(found, indent=1, ensure_ascii=False)
        write_whole(kept, (text + "\n").encode())
        write_whole(kept.with_suffix(".md"), page(found).encode())


def surroundings() -> dict[str, Any]:
    """Say what it runs on, and time starts and copies."""
    starts = {name: in_fresh_process(name) for name in ("BraggNN", "PtychoNN")}
    with CudaSession() as session:
        return {
            "GPU": session.name,
            "capability": session.capability,
            "CUDA driver": session.driver,
            "torch": torch.__version__,
            "first start, s": starts,
            "double buffer": copies(session),
            "rows": [],
        }


def place(row: dict[str, Any]) -> tuple[int, int]:
    """Give a row's place in the table."""
    return PRECISIONS.index(row["precision"]), list(NETWORKS).index(row["network"])


if __name__ == "__main__":
    main()
