"""Record learning curves of many networks, for `replay_searches.py` to search in.

    python host/record_curves.py PEAKS --output docs/results/curves-ruby.json

Networks are drawn from their spaces, half of them by the spaces' own priors and half from where
networks of a few thousand parameters lie. Each is trained for 0.4, then 1.2, 3.6 and 10.8 s of CPU
time on one thread, each time on from the weights it has and with its learning rate falling to 0 at
the end, as `optimize(..., budget=...)` trains them. CPU time, so that other work on the machine
changes little.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

import torch

from edgexnas.demo.markdown import hardware
from edgexnas.host import SPACES, Configuration, PeakDataset, SearchSpace, with_synthetic_peaks
from edgexnas.host.training.bragg_criterion import evaluate_model
from edgexnas.host.training.loop import DivergedError, train
from edgexnas.host.training.settings import TrainingData, TrainingSettings

COUNTS = {"mlpBraggSmooth": 12, "mlpBraggSymmetric": 12, "mlpBragg": 12, "cnnBragg": 8,
          "mlpBraggMirrored": 12}  # fmt: skip

SLOTS = (0.4, 1.2, 3.6, 10.8)

LIKELY: dict[str, dict[str, Any]] = {
    "mlpBraggSmooth": {"units": (10, 160), "layers": (1, 4), "learning_rate": (2e-3, 2e-2),
                       "batch_size": (64, 128, 256)},
    "mlpBraggMirrored": {"units": (10, 80), "layers": (1, 4), "learning_rate": (3e-3, 3e-2)},
    "mlpBraggSymmetric": {"units": (10, 160), "layers": (1, 4), "learning_rate": (1e-3, 2e-2)},
    "mlpBragg": {"units": (10, 160), "layers": (1, 4), "learning_rate": (1e-3, 2e-2)},
    "cnnBragg": {"filters": (4, 24), "layers": (2, 6), "learning_rate": (1e-3, 1e-2)},
}  # fmt: skip


def draws(seed: int) -> list[tuple[SearchSpace, Configuration]]:
    """Networks of every space, in turns, so that a part of them is of all spaces too."""
    rng = random.Random(seed)
    rows: list[tuple[float, SearchSpace, Configuration]] = []
    for name, count in COUNTS.items():
        for number in range(count):
            space = SPACES[name]
            drawn = (space.narrow(**LIKELY[name]) if number % 2 else space).sample(rng)
            rows.append(((number + 0.5) / count, space, drawn))
    return [(space, drawn) for _, space, drawn in sorted(rows, key=lambda row: row[0])]


def recorded(
    space: SearchSpace, configuration: Configuration, data: TrainingData, seed: int, test: Any
) -> dict[str, Any]:
    """Train one network slot by slot."""
    size = space.size(configuration)
    torch.manual_seed(seed)
    model = space.build(configuration)
    slots: list[dict[str, Any]] = []
    for number, seconds in enumerate(SLOTS):
        settings = TrainingSettings(
            batch_size=int(configuration["batch_size"]),
            learning_rate=float(configuration["learning_rate"]),
            seed=seed + number,
            seconds=seconds,
            device="cpu",
        )
        try:
            result = train(model, data, settings, clock=time.process_time)
        except DivergedError:
            break
        slots.append({
            "steps": result.steps,
            "curve": [round(m["error"], 5) for m in result.history[::4]],
            "validation_px": round(result.metrics["error"], 6),
            "test_px": round(evaluate_model(result.model, *test)["error"], 6),
        })  # fmt: skip
        model = result.model
    return {
        "space": space.name, "configuration": configuration, "parameters": size.parameters,
        "macs": size.macs, "slots": slots,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peaks", type=Path, help="labelled peaks, from `edgexnas label`")
    parser.add_argument("--synthetic", type=int, default=100_000, help="peaks drawn in addition")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--spaces", nargs="+", default=list(COUNTS), help="of those to record")
    parser.add_argument("--output", type=Path, required=True, help="JSON; appended to if there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    dataset = PeakDataset.load(options.peaks)
    measured = len(dataset.split().train)
    if options.synthetic:
        dataset = with_synthetic_peaks(dataset, options.synthetic)
    split = dataset.split()
    data = TrainingData.from_dataset(dataset, split, "cpu")
    x, y = torch.from_numpy(dataset.inputs()), torch.from_numpy(dataset.targets_px)
    rows = json.loads(options.output.read_text())["rows"] if options.output.exists() else []
    for number, (space, configuration) in enumerate(draws(options.seed)):
        known = any(r["configuration"] == configuration and r["space"] == space.name for r in rows)
        if known or space.name not in options.spaces:
            continue
        row = recorded(space, configuration, data, options.seed + 1000 * number,
                       (x[split.test], y[split.test]))  # fmt: skip
        rows.append(row)
        print(number, space.name, row["parameters"], [s["validation_px"] for s in row["slots"]],
              flush=True)  # fmt: skip
        head = {
            "command": f"python host/record_curves.py {options.peaks.name} --synthetic "
            f"{options.synthetic} --seed {options.seed}",
            "hardware": hardware(), "measured": measured, "patches": len(split.train),
            "slots_s": SLOTS,
        }  # fmt: skip
        lines = ",\n".join(json.dumps(row) for row in rows)
        options.output.write_text(f'{json.dumps(head)[:-1]}, "rows": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
