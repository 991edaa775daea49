"""Time how long a predictor takes to open, in fresh processes: docs/results/engine-start.md.

    python device/bench_start.py BUNDLE KEYS > docs/results/engine-start.md

Where TensorRT runs, "auto" is TensorRT, and the last row shows the start from its cache; elsewhere
it is onnxruntime.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PARTS = ("opening", "whole")

PROGRAM = """
import json, sys, time
started = time.perf_counter()
import numpy as np
from edgexnas.device import Predictor
bundle, keys, cache, precision = sys.argv[1:]
imported = time.perf_counter()
with Predictor(bundle, trust=keys, precision=precision, cache=cache) as predictor:
    opened = time.perf_counter()
    shape = predictor.manifest.inputs[0].shape
    predictor.predict(np.ones((1, *shape[1:]), np.float32) + np.eye(shape[-1], dtype=np.float32))
    print(json.dumps({
        "whole": time.perf_counter() - started,
        "opening": opened - imported,
        "engine": predictor.engine.describe()["engine"],
        "precision": predictor.engine.precision,
        "version": predictor.engine.describe()["version"],
        "model": f"{predictor.manifest.architecture}, {predictor.manifest.parameters:,} parameters",
        "trials": [[t.precision, t.median_ms, t.runs] for t in predictor.precision_trials],
    }))
"""


def starts(bundle: str, keys: str, cache: str, precision: str, count: int) -> list[dict[str, Any]]:
    command = [sys.executable, "-c", PROGRAM, bundle, keys, cache, precision]
    runs = [subprocess.run(command, capture_output=True, text=True) for _ in range(count)]
    for run in runs:
        if run.returncode:
            sys.exit(run.stderr)
    return [json.loads(run.stdout) for run in runs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("keys", help="folder of *.pub.pem files")
    parser.add_argument("--starts", type=int, default=5, help="of each kind")
    options = parser.parse_args()
    bundle, keys = options.bundle, options.keys
    starts(bundle, keys, tempfile.mkdtemp(), "int8", 1)  # The files come from memory afterwards.
    rows: dict[str, list[dict[str, Any]]] = {
        "INT8": [],
        "auto, first start": [],
        "auto, from the cache": [],
    }
    for _ in range(options.starts):
        cache = tempfile.mkdtemp()
        rows["INT8"] += starts(bundle, keys, cache, "int8", 1)
        rows["auto, first start"] += starts(bundle, keys, cache, "auto", 1)
        rows["auto, from the cache"] += starts(bundle, keys, cache, "auto", 1)
    print(page(rows))


def page(rows: dict[str, list[dict[str, Any]]]) -> str:
    first = rows["INT8"][0]
    trials = rows["auto, first start"][0]["trials"]
    lines = [
        "# How long a predictor takes to open",
        "",
        f"`python device/bench_start.py BUNDLE KEYS > docs/results/engine-start.md` on {cpu()}, "
        f"one thread an engine: {first['engine']} {first['version']}, {first['model']}. Medians of "
        f"{len(rows['INT8'])} starts, each in a process of its own; files come from memory.",
        "",
        "| start | engine | opening, s | from the process's first line to a prediction, s |",
        "|---|---|---|---|",
    ]
    for name, runs in rows.items():
        opening, whole = (statistics.median(run[part] for run in runs) for part in PARTS)
        what = " or ".join(sorted({f"{run['engine']} {run['precision']}" for run in runs}))
        lines.append(f"| {name} | {what} | {opening:.2f} | {whole:.2f} |")
    lines += [
        "",
        "Opening verifies the signature, loads the model and checks it against the reference "
        'vectors; "auto" loads both models, and times them in its first start.',
        "",
        "| start | " + " | ".join(f"{t[0]}, ms a batch" for t in trials) + " |",
        "|---" * (1 + len(trials)) + "|",
    ]
    for number, run in enumerate(rows["auto, first start"], 1):
        lines.append(f"| {number} | " + " | ".join(f"{t[1]:.3f}" for t in run["trials"]) + " |")
    return "\n".join(lines)


def cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    model = next((line.split(":", 1)[1] for line in lines if line.startswith("model name")), "")
    return f"{os.cpu_count()} cores of {model.strip() or platform.machine()}"


if __name__ == "__main__":
    main()
