"""Learn from runs with a budget where the next one should begin: `learned.json` of the package.

    python host/learn_priors.py imitate imitation.h5
    python host/learn_priors.py search imitation.h5 runs/all
    python host/learn_priors.py search imitation.h5 runs/mirrored --seed 1 \
        --space mlpBraggMirrored --units 16 128 --layers 1 4
    python host/learn_priors.py record runs/all runs/mirrored
    python host/learn_priors.py learn

Peaks are simulated in the image of the ruby series and labelled by their fits, so that no measured
data that a search is judged on has had a say. `record` keeps what was trained in
`host/learned_runs.json`, and `learn` needs nothing else. Of each run and space the networks count
that are on the front of what was trained longest, or near it; and of all trainings what a step
took.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgexnas.demo.markdown import hardware
from edgexnas.host import SPACES, SearchResult, label_frames, optimize
from edgexnas.host.search.step_cost import StepCost
from edgexnas.host.training.settings import training_device
from edgexnas.simulate import HedmSettings, simulate_hedm

RECORDS = Path(__file__).with_name("learned_runs.json")
LEARNED = Path(__file__).parent.parent / "edgexnas" / "host" / "search" / "learned.json"

BEST = 8
"""Networks of each space and run."""

NEAR_BEST, NEAR_FRONT = 2.0, 1.3
"""How many times the error of the best, and of the best that is no larger, they may have."""

Row = dict[str, Any]


def imitate(output: Path, frames: int) -> None:
    """Label simulated frames like the ruby series by their fits."""
    settings = HedmSettings.ruby_dexela(
        shape=(1024, 1024), beam_centre_px=(512.0, -600.0), frames=frames, grains=250
    )
    peaks = label_frames(simulate_hedm(settings, seed=5))
    # Against the truth all networks err alike, by the noise; against the fits they differ.
    replace(peaks, truth_px=None).save(output)


def search(options: argparse.Namespace) -> None:
    """Search with a budget, in the whole of the default spaces or in a part of one."""
    narrowed: Any = {name: tuple(getattr(options, name)) for name in ("units", "layers")
                if getattr(options, name)}  # fmt: skip
    space = None if options.space is None else SPACES[options.space].narrow(**narrowed)
    optimize(
        "bragg", data=options.peaks, output=options.run, space=space, budget=options.budget,
        seed=options.seed,
    )  # fmt: skip


def record(folders: list[Path], device: str, note: str) -> None:
    """Keep what runs trained: configuration, time, steps, size and error of each network."""
    runs = []
    for folder in folders:
        result = SearchResult.load(folder)
        first = result.objectives[0].name
        rows = [
            {
                "trial": t.number, "space": t.space,
                "configuration": {
                    name: round(value, 6) if isinstance(value, float) else value
                    for name, value in t.configuration.items() if name != "epochs"
                },
                "slot_s": t.slot_s, "steps": int(t.metrics["steps"]), "parent": t.parent,
                "parameters": int(t.metrics["parameters"]), first: round(t.metrics[first], 6),
            }
            for t in result.trials if t.status == "done"
        ]  # fmt: skip
        runs.append({
            "run": folder.name, "hardware": f"{hardware()}{note and '; ' + note}",
            "device": training_device(device).type, "error": first, "trials": rows,
        })  # fmt: skip
    text = ",\n".join(
        json.dumps({**run, "trials": None})[: -len("null}")]
        + "[\n  "
        + ",\n  ".join(map(json.dumps, run["trials"]))
        + "]}"
        for run in runs
    )
    RECORDS.write_text(f"[{text}]\n", encoding="utf-8")


def good_networks(trials: list[Row], space: str, error: str) -> list[Row]:
    """Return the trainings of networks of a space that a run found best."""
    own = [t for t in trials if t["space"] == space]
    # Of a network that went on, its last training alone; its first ones say less.
    went_on = {t["parent"] for t in own}
    last = sorted((t for t in own if t["trial"] not in went_on), key=lambda t: t[error])
    found: list[Row] = []
    for row in last:
        smaller = min(o[error] for o in last if o["parameters"] <= row["parameters"])
        near = row[error] <= min(NEAR_BEST * last[0][error], NEAR_FRONT * smaller)
        if near and row["configuration"] not in [known["configuration"] for known in found]:
            found.append(row)
    return found[:BEST]


def learned(runs: list[dict[str, Any]]) -> str:
    """Make the content of `learned.json` from the records of runs."""
    spaces: dict[str, list[tuple[float, Row]]] = {}
    costs: dict[str, StepCost] = {}
    least = min(t[run["error"]] for run in runs for t in run["trials"])
    for run in runs:
        for name in sorted({row["space"] for row in run["trials"]}):
            own = [row for row in run["trials"] if row["space"] == name]
            # A space that comes nowhere near the best has nothing to teach.
            if min(row[run["error"]] for row in own) > NEAR_BEST * least:
                continue
            good = good_networks(own, name, run["error"])
            known = [(row[run["error"]], row["configuration"]) for row in good]
            spaces.setdefault(name, []).extend(known)
        cost = costs.setdefault(run["device"], StepCost())
        for row in run["trials"]:
            if row["steps"]:
                size = SPACES[row["space"]].size(row["configuration"] | {"epochs": 1})
                seconds = row["slot_s"] / row["steps"]
                cost.observe(size, row["configuration"]["batch_size"], seconds)
    head = {
        "learned_from": [run["run"] for run in runs],
        "hardware": runs[0]["hardware"],
        "step_seconds": {
            device: [float(f"{c:.3g}") for c in cost.coefficients]
            for device, cost in costs.items()
            if cost.coefficients is not None
        },
    }
    rows = [
        f"  {json.dumps(name)}: [\n   "
        # The best ones first: a search begins with them.
        + ",\n   ".join(json.dumps(c) for _, c in sorted(points, key=lambda point: point[0]))
        + "]"
        for name, points in sorted(spaces.items())
    ]
    return json.dumps(head)[:-1] + ',\n "spaces": {\n' + ",\n".join(rows) + "\n }}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    stages = parser.add_subparsers(dest="stage", required=True)
    stage = stages.add_parser("imitate", help="simulate and label peaks")
    stage.add_argument("output", type=Path)
    stage.add_argument("--frames", type=int, default=480)
    stage = stages.add_parser("search", help="search on them")
    stage.add_argument("peaks", type=Path)
    stage.add_argument("run", type=Path)
    stage.add_argument("--budget", default="10min")
    stage.add_argument("--seed", type=int, default=0)
    stage.add_argument("--space", help="one space; otherwise the default ones")
    stage.add_argument("--units", type=int, nargs=2, help="range in that space")
    stage.add_argument("--layers", type=int, nargs=2, help="range in that space")
    stage = stages.add_parser("record", help="keep what runs trained")
    stage.add_argument("runs", type=Path, nargs="+", help="run folders of optimize with a budget")
    stage.add_argument("--device", default="cpu", help="where they trained")
    stage.add_argument("--note", default="", help="on the hardware")
    stage = stages.add_parser("learn", help="write learned.json from what was kept")
    stage.add_argument("--output", type=Path, default=LEARNED)
    options = parser.parse_args()
    if options.stage == "imitate":
        imitate(options.output, options.frames)
    elif options.stage == "search":
        search(options)
    elif options.stage == "record":
        record(options.runs, options.device, options.note)
    else:
        options.output.write_text(learned(json.loads(RECORDS.read_text())), encoding="utf-8")


if __name__ == "__main__":
    main()
