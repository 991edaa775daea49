"""Learn from runs with a budget where the next one should begin: `learned.json` of the package.

    python host/learn_priors.py RUN... --output edgexnas/host/search/learned.json

Of each run and space the networks count that are on the front of what was trained longest, then
those that add most beside them; and of all trainings what a step took. Runs on simulated data
alone, so that no measured data that a search is judged on has had a say.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from edgexnas.demo.markdown import hardware
from edgexnas.host import SPACES, SearchResult
from edgexnas.host.search.ladder import ranked
from edgexnas.host.search.step_cost import StepCost
from edgexnas.host.training.settings import training_device

BEST = 8
"""Networks of each space and run."""

MOST_LAYERS = 3
"""Rounding to INT8 adds up from layer to layer, which runs by the error in float do not see."""

NEAR_BEST, NEAR_FRONT = 2.0, 1.3
"""How many times the error of the best, and of the best that is no larger, they may have."""


def good_networks(result: SearchResult, space: str) -> list[dict[str, Any]]:
    """Return configurations of a space that a run found best."""
    trials = [t for t in result.trials if t.space == space and t.status == "done"]
    # Of a network that went on, its last training alone; its first ones say less.
    went_on = {t.parent for t in trials}
    last = [t for t in trials if t.number not in went_on]
    least = min((t.metrics["error"] for t in last), default=0.0)
    last = [
        t
        for t in last
        if t.metrics["error"] <= NEAR_BEST * least
        and t.metrics["error"]
        <= NEAR_FRONT
        * min(
            o.metrics["error"] for o in last if o.metrics["parameters"] <= t.metrics["parameters"]
        )
    ]
    positions = [tuple(o.position(t.metrics[o.name]) for o in result.objectives) for t in last]
    found: list[dict[str, Any]] = []
    for place in ranked(positions, len(last)):
        configuration = {
            name: round(value, 6) if isinstance(value, float) else value
            for name, value in last[place].configuration.items()
            if name != "epochs"
        }
        if configuration not in found and int(configuration.get("layers", 0)) <= MOST_LAYERS:
            found.append(configuration)
    return found[:BEST]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="run folders of optimize with a budget")
    parser.add_argument("--device", default="cpu", help="where they trained")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    spaces: dict[str, list[dict[str, Any]]] = {}
    cost = StepCost()
    for folder in options.runs:
        result = SearchResult.load(folder)
        for name in sorted({trial.space for trial in result.trials}):
            known = spaces.setdefault(name, [])
            known += [c for c in good_networks(result, name) if c not in known]
        for trial in result.trials:
            if trial.status == "done" and trial.metrics.get("steps"):
                cost.observe(
                    SPACES[trial.space].size(trial.configuration),
                    int(trial.configuration["batch_size"]),
                    trial.slot_s / trial.metrics["steps"],
                )
    coefficients = cost.coefficients
    kind = training_device(options.device).type
    steps = {} if coefficients is None else {kind: [float(f"{c:.3g}") for c in coefficients]}
    head = {"learned_from": [folder.name for folder in options.runs], "hardware": hardware(),
            "step_seconds": steps}  # fmt: skip
    rows = [
        f"  {json.dumps(name)}: [\n   " + ",\n   ".join(map(json.dumps, points)) + "]"
        for name, points in sorted(spaces.items())
    ]
    text = json.dumps(head)[:-1] + ',\n "spaces": {\n' + ",\n".join(rows) + "\n }}\n"
    options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
