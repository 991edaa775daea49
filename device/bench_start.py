"""Time how long a predictor takes to open, in fresh processes.

    python device/bench_start.py BUNDLE KEYS

Prints medians of 5 starts, in seconds: what a process does from its first line to the first
prediction, and opening alone. Where TensorRT runs, "auto" is TensorRT and the second row shows the
start from its cache; elsewhere it is onnxruntime.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile

STARTS = 5

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
    }))
"""


def starts(bundle: str, keys: str, cache: str, precision: str, count: int) -> list[dict[str, str]]:
    command = [sys.executable, "-c", PROGRAM, bundle, keys, cache, precision]
    runs = [subprocess.run(command, capture_output=True, text=True) for _ in range(count)]
    for run in runs:
        if run.returncode:
            sys.exit(run.stderr)
    return [json.loads(run.stdout) for run in runs]


def main(bundle: str, keys: str) -> None:
    starts(bundle, keys, tempfile.mkdtemp(), "int8", 1)  # The files come from memory afterwards.
    rows = {"INT8": [], "auto, first start": [], "auto, from the cache": []}
    for _ in range(STARTS):
        cache = tempfile.mkdtemp()
        rows["INT8"] += starts(bundle, keys, cache, "int8", 1)
        rows["auto, first start"] += starts(bundle, keys, cache, "auto", 1)
        rows["auto, from the cache"] += starts(bundle, keys, cache, "auto", 1)
    print("| start | engine | opening, s | process to first prediction, s |\n|---|---|---|---|")
    for name, runs in rows.items():
        opening, whole = (
            statistics.median(float(run[part]) for run in runs) for part in ("opening", "whole")
        )
        what = ", ".join(sorted({f"{run['engine']} {run['precision']}" for run in runs}))
        print(f"| {name} | {what} | {opening:.2f} | {whole:.2f} |")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: python {sys.argv[0]} BUNDLE KEYS")
    main(*sys.argv[1:])
