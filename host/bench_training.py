"""Evaluations per hour of `optimize` against a plain DataLoader loop over the same networks.

    python host/bench_training.py PEAKS --output docs/results/training.md

Both train the same configurations, in the same order, for the same epochs, on the same peaks.
The plain loop is what one writes first: a Dataset that turns each patch at random in
`__getitem__`, a DataLoader, batches moved to the device, Adam, one network after the other. With
or without loader processes, with one or all of torch's threads: the fastest way is taken.
`optimize` trains in worker processes, on data that stay on the device.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from edgexnas.demo.markdown import hardware
from edgexnas.host import (
    SPACES,
    Configuration,
    PeakDataset,
    SearchResult,
    SearchSpace,
    Split,
    optimize,
)
from edgexnas.host.networks.bragg_models import LEVELS
from edgexnas.host.training.bragg_criterion import score_offsets
from edgexnas.host.training.settings import training_device


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


def pinball(predicted: torch.Tensor, target: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Compute the loss as one writes it down."""
    error = target.unsqueeze(2) - predicted
    return torch.maximum(levels * error, (levels - 1) * error).mean()


def plain_training(
    space: SearchSpace,
    configuration: Configuration,
    dataset: PeakDataset,
    split: Split,
    device: torch.device,
    loaders: int,
) -> float:
    """Train one network the plain way and return its validation error in px."""
    x, y = dataset.inputs(), dataset.targets_px
    options: dict[str, Any] = {
        "num_workers": loaders, "persistent_workers": loaders > 0,
        "pin_memory": device.type == "cuda",
    }  # fmt: skip
    train = DataLoader(
        TurnedPatches(x[split.train], y[split.train], turn=True),
        int(configuration["batch_size"]), shuffle=True, drop_last=True, **options,
    )  # fmt: skip
    check = DataLoader(
        TurnedPatches(x[split.validation], y[split.validation], turn=False), 512, **options
    )
    model = space.build(configuration).to(device)
    optimiser = torch.optim.Adam(model.parameters(), lr=float(configuration["learning_rate"]))
    epochs = int(configuration["epochs"])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * len(train))
    levels = torch.tensor(LEVELS, device=device)
    best = float("inf")
    for _ in range(epochs):
        for patches, offsets in train:
            patches, offsets = (t.to(device, non_blocking=True) for t in (patches, offsets))
            optimiser.zero_grad()
            pinball(model(patches), offsets, levels).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
        with torch.no_grad():
            pairs = [
                (model(patches.to(device)).cpu().numpy(), offsets.numpy())
                for patches, offsets in check
            ]
        predicted, target = (np.concatenate(part) for part in zip(*pairs, strict=True))
        best = min(best, score_offsets(predicted, target, LEVELS)["error"])
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peaks", type=Path, help="labelled peaks, from `edgexnas label`")
    parser.add_argument("--evaluations", type=int, default=16)
    parser.add_argument("--spaces", nargs="+", default=["mlpBragg", "cnnBragg"])
    parser.add_argument("--epochs", type=int, default=8, help="of every network")
    parser.add_argument(
        "--plain-epochs",
        type=int,
        help="of the plain loop, whose time then counts as many times as these fit into --epochs",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the first round's networks")
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[os.cpu_count() or 1], help="one row for each"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path, help="Markdown file; only printed if not given")
    options = parser.parse_args()
    dataset = PeakDataset.load(options.peaks)
    split = dataset.split()
    device = training_device(options.device)

    lines = [
        "| space | plain loop | workers | `optimize` | ratio | of it starting workers | after "
        "that | median error plain / ours, px |",
        "|---" * 8 + "|",
    ]
    for name in options.spaces:
        space = SPACES[name].narrow(epochs=(options.epochs, options.epochs))
        rounds = []
        for seed in range(options.seed, options.seed + options.rounds):
            rounds.append(compare(space, dataset, split, options, device, seed))
            print(name, "round", seed, rounds[-1], flush=True)
        for number, workers in enumerate(options.workers):
            same = [outcome.ours[number] for outcome in rounds]
            ratios = [o.seconds / ours.seconds for o, ours in zip(rounds, same, strict=True)]
            after = [
                o.seconds / (ours.seconds - ours.start)
                for o, ours in zip(rounds, same, strict=True)
            ]
            hourly = 3600 * median(o.networks for o in rounds)
            lines.append(
                f"| {name} | {hourly / median(o.seconds for o in rounds):,.0f}/h | {workers} | "
                f"{hourly / median(o.seconds for o in same):,.0f}/h | {median(ratios):.1f}× "
                f"({min(ratios):.1f}–{max(ratios):.1f}) | {median(o.start for o in same):.1f} s | "
                f"{median(after):.1f}× | {median(o.error for o in rounds):.4f} / "
                f"{median(o.error for o in same):.4f} |"
            )
    part = f" --plain-epochs {options.plain_epochs}" if options.plain_epochs else ""
    where = torch.cuda.get_device_name(device) + " and " if device.type == "cuda" else ""
    text = (
        f"`python host/bench_training.py {options.peaks.name} --evaluations {options.evaluations} "
        f"--epochs {options.epochs} --spaces {' '.join(options.spaces)} "
        f"--workers {' '.join(map(str, options.workers))} --rounds {options.rounds} "
        f"--seed {options.seed} "
        f"--device {options.device}{part}`: "
        f"{len(split.train)} patches, networks of at most 20,000 parameters from random search, "
        f"{where}{hardware()}, medians of {options.rounds} rounds (least–most), starting the "
        "workers included, each round both ways one after the other.\n\n" + "\n".join(lines) + "\n"
    )
    print(text)
    if options.output is not None:
        options.output.write_text(f"# Evaluations per hour\n\n{text}")


class Ours(NamedTuple):
    """What `optimize` took with some number of workers, and how long the first was not ready."""

    seconds: float
    start: float
    error: float


class Outcome(NamedTuple):
    """What the plain loop took for the same networks, those that diverged in ours left out."""

    networks: int
    seconds: float
    error: float
    ours: list[Ours]


def compare(
    space: SearchSpace,
    dataset: PeakDataset,
    split: Split,
    options: argparse.Namespace,
    device: torch.device,
    seed: int,
) -> Outcome:
    """Compare both ways over equal configurations."""
    ours = []
    for workers in options.workers:
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            result: SearchResult = optimize(
                "bragg",
                data=dataset,
                space=space,
                objectives=("error", "parameters"),
                constraints={"parameters": 20_000},
                search="random",
                max_evals=options.evaluations,
                workers=workers,
                seed=seed,
                output=Path(folder) / "run",
                device=str(device),
                progress=False,
            )
            seconds = time.perf_counter() - started
        candidates = result.candidates
        start = min(trial.finished - trial.seconds for trial in result.trials)
        error = median(candidate.metrics["error"] for candidate in candidates)
        ours.append(Ours(seconds, start, error))
        print(workers, "workers:", ours[-1], len(candidates), "candidates", flush=True)
    part = options.plain_epochs or options.epochs
    space = space.extend(SPACES["mlpBragg"]["epochs"], name=space.name)
    configurations = [dict(candidate.configuration) | {"epochs": part} for candidate in candidates]

    def train(way: tuple[int, int], configuration: Configuration) -> float:
        loaders, threads = way
        torch.set_num_threads(threads)
        return plain_training(space, configuration, dataset, split, device, loaders)

    # The first one warms up and tells which way is fastest: (loader processes, torch's threads).
    threads = torch.get_num_threads()
    # On a GPU the threads have nothing to compute.
    ways = [(0, 1), (0, 1), (2, 1)]
    ways += [(0, threads)] if device.type == "cpu" else []
    tried = {way: seconds_of(train, way, configurations[0]) for way in ways}
    way = min(tried, key=lambda way: tried[way])
    started = time.perf_counter()
    errors = [train(way, configuration) for configuration in configurations]
    plain = time.perf_counter() - started
    torch.set_num_threads(threads)
    print("plain way:", way, "of", tried)
    error = median(errors) if part == options.epochs else float("nan")
    return Outcome(len(candidates), plain * options.epochs / part, error, ours)


def seconds_of(call: Callable[..., object], *arguments: object) -> float:
    started = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
