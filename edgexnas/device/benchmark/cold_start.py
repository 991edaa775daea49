"""Time from the start of a process to its first result, in a process of its own.

Also the program of that process: ``python -m edgexnas.device.benchmark.cold_start OPTIONS``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgexnas.errors import EngineError

__all__ = ["ColdStart", "measure_cold_start"]

LIMIT_S = 900.0
"""Building a TensorRT plan takes minutes."""


@dataclass(frozen=True)
class ColdStart:
    """A fresh process up to its first result.

    Attributes
    ----------
    total_ms
        From starting the interpreter to the first result.
    open_ms
        Of it, verifying the bundle, opening and checking the engine.
    first_ms
        Of it, the first inference.
    """

    total_ms: float
    open_ms: float
    first_ms: float


def measure_cold_start(
    bundle: Path,
    trust: str | Path,
    *,
    engine: str,
    precision: str,
    batch: int,
    threads: int | None,
) -> ColdStart:
    """Start a process that opens a bundle and infers once.

    Raises
    ------
    EngineError
        If the process fails; with what it said.
    """
    options = {
        "bundle": str(bundle), "trust": str(trust), "engine": engine, "precision": precision,
        "batch": batch, "threads": threads,
    }  # fmt: skip
    # A process: imports, numba's cache and CUDA's context are part of what a user waits for.
    command = [sys.executable, "-m", __name__, json.dumps(options)]
    began = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired as error:
        raise EngineError(
            f"a fresh process gave no result from {bundle} in {LIMIT_S:.0f} s; run edgexnas predict"
        ) from error
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["nothing"]
        raise EngineError(f"a fresh process failed on {bundle} ({said[-1]}); run edgexnas predict")
    # The last line, whatever libraries print before it.
    told = json.loads(done.stdout.splitlines()[-1])
    # The monotonic clock is the machine's, the same in both processes.
    return ColdStart(1e3 * (told.pop("ended_s") - began), **told)


def _first_result(options: dict[str, Any]) -> dict[str, float]:
    from edgexnas.bundle import open_bundle
    from edgexnas.device.predictor import Predictor

    began = time.monotonic()
    bundle = open_bundle(options.pop("bundle"), trust=options.pop("trust"))
    inputs = bundle.reference["input"][: options["batch"]].copy()
    # Imports are over here; they count to `total_ms` alone.
    with Predictor(bundle, **options) as predictor:
        opened = time.monotonic()
        predictor.engine.run(inputs)
        ended = time.monotonic()
    parts = ColdStart(0.0, 1e3 * (opened - began), 1e3 * (ended - opened))
    return {"ended_s": ended, **{k: v for k, v in asdict(parts).items() if k != "total_ms"}}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_first_result(json.loads(sys.argv[1]))) + "\n")
