"""Adapt the universal bundle to real frames, and say what it was worth on frames held back.

    python host/adapt_real.py DATA ruby --budget 7min --output runs/adapted
    python host/universal_accuracy.py --page --adapted runs/adapted/ruby.json

DATA holds the real frames that docs/results/universal.md names. Writes the bundle, its keys and
figures as JSON. The frames that are held back have no say in what is kept.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path

from universal_accuracy import EIGER_FRAMES, SparseFrames

from edgexnas.bundle import AccuracyRow
from edgexnas.device.power.device_state import device_name
from edgexnas.frames import FrameSeries, open_frames
from edgexnas.host import adapt

SETS: dict[str, tuple[str, Callable[[Path], FrameSeries]]] = {
    "ruby": (
        "ruby, Dexela",
        lambda data: open_frames(data / "hexrd_ruby_dexela" / "ruby_ff1_framecache.npz"),
    ),
    "silicon": (
        "silicon, Eiger",
        lambda data: SparseFrames(
            data / "imaged11_silicon_eiger" / "silicon_fullscan_strong_sparse.h5", EIGER_FRAMES
        ),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder of real frames")
    parser.add_argument("set", choices=SETS, help="which of them")
    parser.add_argument("--budget", default="7min")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/adapted"), help="folder")
    parser.add_argument("--resume", action="store_true", help="go on with one that was stopped")
    options = parser.parse_args()
    name, opened = SETS[options.set]
    options.output.mkdir(parents=True, exist_ok=True)
    report = adapt(
        "universal",
        opened(options.data),
        output=options.output / f"{options.set}.edgex",
        budget=options.budget,
        threads=options.threads,
        seed=options.seed,
        resume=options.resume,
        progress=lambda line: print(line, flush=True),
    )
    figures = {
        "frames": name,
        "budget": options.budget,
        "cpu": device_name(Path("/")),
        "threads": options.threads,
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[1],
        "seconds": report.seconds,
        "labelled": report.frames,
        "peaks": report.peaks,
        "drawn": report.synthetic,
        "trained_on": report.adapted,
        "before": distances(report.before),
        "after": distances(report.after),
    }
    text = json.dumps(figures, indent=1) + "\n"
    (options.output / f"{options.set}.json").write_text(text)
    print(text)


def distances(row: AccuracyRow) -> dict[str, float | None]:
    return {"mean": row.mean_px, "p50": row.p50_px, "p75": row.p75_px, "p95": row.p95_px}


if __name__ == "__main__":
    main()
