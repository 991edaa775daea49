"""Trainings per hour of one search on one GPU and on several of one host.

    python host/bench_gpus.py PEAKS --gpus 1 2 --output docs/results/search-gpus.json

The same networks of random search train for the same epochs, four workers a GPU, each number of
GPUs in a process of its own; the time is that of the whole call, the start of the workers included.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

WORKERS = 4
"""For each GPU."""


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Search on the GPUs that this process may see."""
    import torch

    from edgexnas.host import SPACES, optimize

    gpus = torch.cuda.device_count()
    space = SPACES[options.space].narrow(epochs=(options.epochs, options.epochs))
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        result = optimize(
            "bragg", data=options.peaks, space=space, objectives=("error", "parameters"),
            constraints={"parameters": 20_000}, search="random", seed=options.seed,
            max_evals=options.evaluations, workers=WORKERS * gpus, device="cuda",
            output=Path(folder) / "run", progress=False,
        )  # fmt: skip
        seconds = time.monotonic() - began
    return {
        "gpus": gpus, "gpu": torch.cuda.get_device_name(0), "workers": WORKERS * gpus,
        "seconds": round(seconds, 2),
        "until_first_s": round(min(t.finished - t.seconds for t in result.trials), 2),
        "ended": dict(Counter(t.status for t in result.trials)),
        "trainings_s": round(sum(t.seconds for t in result.trials), 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peaks", type=Path, help="labelled peaks, from `edgexnas label`")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 2], help="numbers to compare")
    parser.add_argument("--space", default="cnnBragg")
    parser.add_argument("--evaluations", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="JSON file, and Markdown beside it")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        print(json.dumps(measured(options)))
        return
    rows = []
    for count in options.gpus:
        visible = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(count)))}
        done = subprocess.run(
            [sys.executable, *sys.argv, "--alone"], env=os.environ | visible, check=True,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
    least = rows[0]["seconds"]
    for row in rows:
        row["times"] = round(least / row["seconds"], 2)
    whole = {
        "command": f"python host/bench_gpus.py {options.peaks.name} --space {options.space} "
        f"--evaluations {options.evaluations} --epochs {options.epochs} --seed {options.seed}",
        "rows": rows,
    }  # fmt: skip
    print(json.dumps(whole, indent=1))
    if options.output is not None:
        options.output.write_text(json.dumps(whole, indent=1) + "\n")
        options.output.with_suffix(".md").write_text(page(whole))


def page(whole: dict[str, Any]) -> str:
    """Table of the rows, with and without the start of the workers."""
    first, last = whole["rows"][0], whole["rows"][-1]

    def after(row: dict[str, Any]) -> float:
        return float(row["seconds"] - row["until_first_s"])

    lines = [
        "# One search on several GPUs of a host", "",
        f"`{whole['command']}`, on {last['gpus']} {last['gpu']}: the same trainings by random "
        "search, four workers a GPU, worker k on GPU k modulo their number.", "",
        "| GPUs | workers | trainings ended | seconds | until the first one began | ratio | "
        "ratio after that |", "|---:|---:|---:|---:|---:|---:|---:|",
        *(
            f"| {row['gpus']} | {row['workers']} | {row['ended'].get('done', 0)} | "
            f"{row['seconds']:.1f} | {row['until_first_s']:.1f} | "
            f"{first['seconds'] / row['seconds']:.2f}× | {after(first) / after(row):.2f}× |"
            for row in whole["rows"]
        ),
    ]  # fmt: skip
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
