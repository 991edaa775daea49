"""Evaluations per hour of `optimize` against a plain DataLoader loop over the same networks.

    python host/bench_training.py PEAKS --output docs/results/training.md

Both train the same configurations, in the same order, for the same epochs, on the same peaks.
The plain loop is what one writes first: a Dataset that turns each patch at random in
`__getitem__`, a DataLoader, Adam, one network after the other with torch's own threads. `optimize`
trains in worker processes, one thread each, on data that stay in memory.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from edgexnas.demo.markdown import hardware
from edgexnas.host import SPACES, PeakDataset, SearchResult, SearchSpace, Split, optimize
from edgexnas.host.models import LEVELS
from edgexnas.host.training_criteria import quantile_loss, score_offsets

ROUNDS = 3


class TurnedPatches(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """One patch at a time, turned at random, as BraggNN's published training code does it."""

    def __init__(self, patches: np.ndarray, offsets: np.ndarray, *, turn: bool) -> None:
        self._patches, self._offsets, self._turn = patches, offsets, turn

    def __len__(self) -> int:
        return len(self._patches)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        patch, offset = self._patches[index], self._offsets[index]
        if self._turn:
            if random.random() < 0.5:
                patch, offset = patch.transpose(0, 2, 1), offset[::-1]
            for axis in (1, 2):
                if random.random() < 0.5:
                    patch, offset = np.flip(patch, axis), offset.copy()
                    offset[axis - 1] *= -1
        return torch.from_numpy(patch.copy()), torch.from_numpy(offset.astype(np.float32))


def plain_training(
    space: SearchSpace, configuration: dict[str, object], dataset: PeakDataset, split: Split
) -> float:
    """Train one network the plain way and return its validation error in px."""
    x, y = dataset.inputs(), dataset.targets_px
    size = int(configuration["batch_size"])
    train = DataLoader(
        TurnedPatches(x[split.train], y[split.train], turn=True), size, shuffle=True, drop_last=True
    )
    check = DataLoader(TurnedPatches(x[split.validation], y[split.validation], turn=False), 512)
    model = space.build(configuration)
    optimiser = torch.optim.Adam(model.parameters(), lr=float(configuration["learning_rate"]))
    epochs = int(configuration["epochs"])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * len(train))
    levels = torch.tensor(LEVELS)
    best = float("inf")
    for _ in range(epochs):
        for patches, offsets in train:
            optimiser.zero_grad()
            quantile_loss(model(patches), offsets, levels).backward()
            optimiser.step()
            schedule.step()
        with torch.no_grad():
            pairs = [(model(patches).numpy(), offsets.numpy()) for patches, offsets in check]
        predicted, target = (np.concatenate(part) for part in zip(*pairs, strict=True))
        best = min(best, score_offsets(predicted, target, LEVELS)["error"])
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peaks", type=Path, help="labelled peaks, from `edgexnas label`")
    parser.add_argument("--evaluations", type=int, default=16)
    parser.add_argument("--spaces", nargs="+", default=["mlpBragg", "cnnBragg"])
    parser.add_argument("--epochs", type=int, default=8, help="of every network")
    parser.add_argument("--output", type=Path, help="Markdown file; only printed if not given")
    options = parser.parse_args()
    dataset = PeakDataset.load(options.peaks)
    split = dataset.split()
    workers = os.cpu_count() or 1

    lines = [
        "| space | plain loop | optimize | ratio | median error plain / ours, px |",
        "|---|---|---|---|---|",
    ]
    for name in options.spaces:
        space = SPACES[name].narrow(epochs=(options.epochs, options.epochs))
        ratios = [compare(space, dataset, split, options.evaluations, workers, seed)
                  for seed in range(ROUNDS)]  # fmt: skip
        plain, ours, plain_error, our_error = np.median(np.array(ratios), axis=0)
        lines.append(
            f"| {name} | {plain:,.0f}/h | {ours:,.0f}/h | {ours / plain:.1f}× | "
            f"{plain_error:.4f} / {our_error:.4f} |"
        )
    text = (
        "# Evaluations per hour\n\n"
        f"`python host/bench_training.py {options.peaks.name} --evaluations {options.evaluations} "
        f"--epochs {options.epochs} --spaces {' '.join(options.spaces)}`: "
        f"{len(split.train)} patches, networks of at most 20,000 parameters from random search, "
        f"{hardware()}, medians of {ROUNDS} rounds, starting the workers included, each "
        "round both ways one after the other.\n\n" + "\n".join(lines) + "\n"
    )
    print(text)
    if options.output is not None:
        options.output.write_text(text)


def compare(
    space: SearchSpace,
    dataset: PeakDataset,
    split: Split,
    evaluations: int,
    workers: int,
    seed: int,
) -> tuple[float, float, float, float]:
    """Give evaluations per hour and median errors, plain and ours, over equal configurations."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        result: SearchResult = optimize(
            "bragg",
            data=dataset,
            space=space,
            objectives=("error", "parameters"),
            constraints={"parameters": 20_000},
            search="random",
            max_evals=evaluations,
            workers=workers,
            seed=seed,
            output=Path(folder) / "run",
            progress=False,
        )
        ours = time.perf_counter() - started
    candidates = result.candidates
    started = time.perf_counter()
    errors = [plain_training(space, dict(c.configuration), dataset, split) for c in candidates]
    plain = time.perf_counter() - started
    our_errors = [candidate.metrics["error"] for candidate in candidates]
    hourly = 3600 * len(candidates)
    return hourly / plain, hourly / ours, float(np.median(errors)), float(np.median(our_errors))


if __name__ == "__main__":
    main()
