"""How the cost of peaks grows: with frame size, peaks, batch, services on one machine and nodes.

    python device/bench_scaling.py runs/demo --output docs/results

Takes the bundle and keys that `make demo` leaves. Medians of CPU time of one core over rounds that
are interleaved, so that whatever else the machine does falls on all alike. A plane through the
frames of up to four megapixels, ms = a + b * megapixels + c * peaks, is checked with a larger one.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from made_frames import spotty_frame

from edgexnas.demo.markdown import hardware
from edgexnas.device import PeakPredictor
from edgexnas.whole_files import write_whole

CASES = [(512, 100), (1024, 100), (2048, 100), (2048, 500), (2048, 2000), (1024, 500), (4096, 2000)]
"""Side of the frame in pixels, spots; the last one is not fitted but predicted."""
BATCHES = (1, 8, 32, 128, 512)
SERVICES = (1, 2, 4)
ROUNDS = 15
SECONDS = 6.0
TASKS = 400
EXTRAPOLATED = [
    ("EIGER2 4M, 100 peaks", 2068 * 2162, 100, 560),
    ("EIGER2 16M, 1,000 peaks", 4148 * 4362, 1000, 130),
    ("JUNGFRAU 4M, 500 peaks", 4_194_304, 500, 2000),
]
"""Frames of known detectors: pixels, peaks that we assume, frames a second."""

Row = dict[str, Any]


def medians(tasks: dict[Any, Callable[[], object]]) -> dict[Any, float]:
    """Median milliseconds of CPU time of each task, in interleaved rounds."""
    times: dict[Any, list[float]] = {name: [] for name in tasks}
    for turn in range(ROUNDS + 2):
        for name, task in tasks.items():
            began = time.thread_time()
            task()
            if turn >= 2:
                times[name].append((time.thread_time() - began) * 1e3)
    return {name: statistics.median(taken) for name, taken in times.items()}


def opened(demo: Path, batch: int = 512) -> PeakPredictor:
    return PeakPredictor(
        demo / "bragg.edgex", trust=demo / "keys", engine="onnxruntime", batch=batch
    )


def by_frame(demo: Path) -> list[Row]:
    """Time frames of each size and number of spots."""
    tasks: dict[tuple[int, int], Callable[[], object]] = {}
    rows = []
    for side, spots in CASES:
        frame, _ = spotty_frame((side, side), spots, seed=side + spots)
        predictor = opened(demo)
        predictor.calibrate_background([frame])
        peaks = len(predictor.process(frame))
        rows.append({"side_px": side, "megapixels": side * side / 1e6, "peaks": peaks})
        tasks[side, spots] = partial(predictor.process, frame)
    taken = medians(tasks)
    for row, case in zip(rows, CASES, strict=True):
        row["ms"] = round(taken[case], 3)
    return rows


def plane(rows: list[Row]) -> list[float]:
    """Fit ms = a + b * megapixels + c * peaks, each row weighted by its own time."""
    terms = np.array([[1.0, row["megapixels"], row["peaks"]] for row in rows])
    ms = np.array([row["ms"] for row in rows])
    fit, *_ = np.linalg.lstsq(terms / ms[:, None], np.ones(len(ms)), rcond=None)
    return [round(float(term), 6) for term in fit]


def by_batch(demo: Path) -> list[Row]:
    """Time the network alone."""
    patches = np.random.default_rng(0).random((max(BATCHES), 11, 11), np.float32)
    tasks: dict[int, Callable[[], object]] = {}
    for batch in BATCHES:
        predictor = opened(demo, batch)
        tasks[batch] = partial(predictor.predict, patches[:batch])
    return [
        {"batch": batch, "us_a_patch": round(ms * 1e3 / batch, 3)}
        for batch, ms in medians(tasks).items()
    ]


def one_service(demo: Path, ready: Any, found: Any) -> None:
    """Process one frame again and again for a while."""
    frame, _ = spotty_frame((2048, 2048), 500, seed=0)
    predictor = opened(demo)
    predictor.calibrate_background([frame])
    predictor.process(frame)
    ready.wait()
    began, before, frames = time.monotonic(), time.process_time(), 0
    while time.monotonic() - began < SECONDS:
        predictor.process(frame)
        frames += 1
    found.put((frames, time.process_time() - before))


def by_services(demo: Path) -> list[Row]:
    """Time a frame while so many processes work at once."""
    start = multiprocessing.get_context("spawn")
    rows = []
    for services in SERVICES:
        ready, found = start.Barrier(services), start.Queue()
        workers = [
            start.Process(target=one_service, args=(demo, ready, found)) for _ in range(services)
        ]
        for worker in workers:
            worker.start()
        counts = [found.get() for _ in workers]
        for worker in workers:
            worker.join()
        frames, cpu_s = (sum(column) for column in zip(*counts, strict=True))
        rows.append({"services": services, "cpu_ms_a_frame": round(cpu_s / frames * 1e3, 3)})
    return rows


def by_nodes(demo: Path) -> Row:
    """Time what a cluster adds: a task without work, and the start of a worker."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    nothing = ray.remote(lambda: None)
    ray.get([nothing.remote() for _ in range(8)])
    began = time.process_time()
    ray.get([nothing.remote() for _ in range(TASKS)])
    task_ms = (time.process_time() - began) / TASKS * 1e3
    ray.shutdown()
    code = "import sys, pathlib, bench_scaling; bench_scaling.opened(pathlib.Path(sys.argv[1]))"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-c", code, demo.resolve()], cwd=Path(__file__).parent, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    open_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"task_ms": round(task_ms, 3), "open_s": round(open_s, 1)}


def page(found: dict[str, Any]) -> str:
    """Write the page."""
    a, b, c = found["plane"]
    last = found["frames"][-1]
    expected = a + b * last["megapixels"] + c * last["peaks"]
    lines = [
        "# How cost grows",
        "",
        f"`python device/bench_scaling.py runs/{found['demo']}` on {found['hardware']}, which did "
        "other work too: medians of CPU time, frames in memory, onnxruntime INT8, one thread "
        "of each process.",
        "",
        "| frame, pixels | peaks | ms |",
        "|---|---:|---:|",
        *(
            f"| {row['side_px']}×{row['side_px']} | {row['peaks']:,} | {row['ms']:.2f} |"
            for row in found["frames"]
        ),
        "",
        f"**ms = {a:.2f} + {b:.2f} × megapixels + {c * 1e3:.2f} × thousand peaks**, fitted to all "
        f"but the last, for which it says {expected:.1f}.",
        "",
        "| patches at once | µs a patch |",
        "|---:|---:|",
        *(f"| {row['batch']} | {row['us_a_patch']:.2f} |" for row in found["batches"]),
        "",
        "| services at once, one frame of 500 peaks each | ms a frame |",
        "|---:|---:|",
        *(f"| {row['services']} | {row['cpu_ms_a_frame']:.2f} |" for row in found["services"]),
        "",
        "## Extrapolated",
        "",
        "Assumed: the formula, cores as fast as these, nothing else on them; decoding comes on "
        "top ([about 0.8 ms a megapixel](decoding.md)).",
        "",
        "| detector | frames/s | ms a frame | cores |",
        "|---|---:|---:|---:|",
        *(
            f"| {row['detector']} | {row['frames_a_second']:,} | {row['ms']:.1f} | "
            f"{row['cores']:.1f} |"
            for row in found["extrapolated"]
        ),
        "",
        "Nodes of a Ray cluster share scans: a task costs its driver "
        f"{found['nodes']['task_ms']:.1f} ms of CPU, a worker's start {found['nodes']['open_s']} s"
        ". Where a scan takes a minute, a hundred workers keep the driver busy for "
        f"{found['nodes']['task_ms'] / 600:.2%} of the time; the file system is not measured.",
        "",
    ]
    return "\n".join(lines)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("demo", type=Path, help="folder that `make demo` left")
    parser.add_argument("--output", type=Path, required=True, help="folder of the page")
    options = parser.parse_args()
    found: dict[str, Any] = {"demo": options.demo.name, "hardware": hardware()}
    found["frames"] = by_frame(options.demo)
    found["plane"] = plane(found["frames"][:-1])
    found["batches"] = by_batch(options.demo)
    found["services"] = by_services(options.demo)
    found["nodes"] = by_nodes(options.demo)
    a, b, c = found["plane"]
    found["extrapolated"] = []
    for detector, pixels, peaks, rate in EXTRAPOLATED:
        ms = round(a + b * pixels / 1e6 + c * peaks, 3)
        row = {"detector": detector, "frames_a_second": rate, "ms": ms, "cores": ms * rate / 1e3}
        found["extrapolated"].append(row)
    options.output.mkdir(parents=True, exist_ok=True)
    write_whole(options.output / "scaling.json", (json.dumps(found, indent=1) + "\n").encode())
    write_whole(options.output / "scaling.md", page(found).encode())


if __name__ == "__main__":
    main()
