"""Record learning curves of many networks, for `replay_searches.py` to search in.

    python host/record_curves.py PEAKS --output docs/results/curves-ruby.json

Networks are drawn from their spaces, half of them as a search draws them, from what earlier runs
found good where there is any, and half from where networks of a few thousand parameters lie; of a
space with earlier runs, their best networks come first. Each is trained for 0.4, then 1.2, 3.6 and
10.8 s of CPU time on one thread, each time on from the weights it has and with its learning rate
falling to 0 at the end, as `optimize(..., budget=...)` trains them. CPU time, so that other work on
the machine changes little; with ``--workers`` several are trained at once.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from edgexnas.demo.markdown import hardware
from edgexnas.host import SPACES, Configuration, PeakDataset, SearchSpace, with_synthetic_peaks
from edgexnas.host.search.priors import find_prior
from edgexnas.host.training.bragg_criterion import evaluate_model
from edgexnas.host.training.loop import DivergedError, train
from edgexnas.host.training.settings import TrainingData, TrainingSettings

COUNTS = {"mlpBraggSymmetric": 12, "mlpBragg": 12, "cnnBragg": 8,
          "mlpBraggMirrored": 40}  # fmt: skip

SLOTS = (0.4, 1.2, 3.6, 10.8)

LIKELY: dict[str, dict[str, Any]] = {
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
        space = SPACES[name]
        prior = find_prior(space)
        best = [] if prior is None else prior.best(space, count // 4, rng)
        for number in range(count):
            if number < len(best):
                drawn = best[number]
            elif number % 2:
                drawn = space.narrow(**LIKELY[name]).sample(rng)
            else:
                drawn = space.sample(rng) if prior is None else prior.sample(space, rng)
            rows.append(((number + 0.5) / count, space, drawn))
    return [(space, drawn) for _, space, drawn in sorted(rows, key=lambda row: row[0])]


Given = tuple[TrainingData, tuple[torch.Tensor, torch.Tensor]]
"""What trains and validates, and the test part."""

given: Given | None = None


def load(path: Path, synthetic: int) -> int:
    """Load what trainings of this process are given; return how many measured peaks train."""
    global given
    torch.set_num_threads(1)
    dataset = PeakDataset.load(path)
    measured = len(dataset.split().train)
    if synthetic:
        dataset = with_synthetic_peaks(dataset, synthetic)
    split = dataset.split()
    data = TrainingData.from_dataset(dataset, split, "cpu")
    x, y = torch.from_numpy(dataset.inputs()), torch.from_numpy(dataset.targets_px)
    given = data, (x[split.test], y[split.test])
    return measured


def recorded(name: str, configuration: Configuration, seed: int) -> dict[str, Any]:
    """Train one network slot by slot."""
    assert given is not None
    space, (data, test) = SPACES[name], given
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
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    measured = load(options.peaks, options.synthetic)
    assert given is not None
    head = {
        "command": f"python host/record_curves.py {options.peaks.name} --synthetic "
        f"{options.synthetic} --seed {options.seed}",
        "hardware": hardware(), "measured": measured, "patches": len(given[0].train_x),
        "slots_s": SLOTS,
    }  # fmt: skip
    rows = json.loads(options.output.read_text())["rows"] if options.output.exists() else []
    known = [(row["space"], row["configuration"]) for row in rows]
    # Forked, so that they share what is loaded.
    with ProcessPoolExecutor(options.workers, mp_context=get_context("fork")) as pool:
        waiting = [
            pool.submit(recorded, space.name, configuration, options.seed + 1000 * number)
            for number, (space, configuration) in enumerate(draws(options.seed))
            if (space.name, configuration) not in known and space.name in options.spaces
        ]
        for done in as_completed(waiting):
            row = done.result()
            rows.append(row)
            print(row["space"], row["parameters"], [s["validation_px"] for s in row["slots"]],
                  flush=True)  # fmt: skip
            lines = ",\n".join(json.dumps(row) for row in rows)
            options.output.write_text(f'{json.dumps(head)[:-1]}, "rows": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
