"""CPU time of one evaluation: our training against the plain DataLoader loop, one thread each.

    python host/bench_step_cpu.py PEAKS

CPU time hardly depends on what else the machine does, so this needs no machine to itself. With a
worker on each of n cores `optimize` then does n times the ratio, for the plain loop trains one
network after the other. Networks come from random search, as in `host/bench_training.py`.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import numpy as np
import torch
from bench_training import plain_training

from edgexnas.demo.markdown import hardware
from edgexnas.host import SPACES, PeakDataset, TrainingData, TrainingSettings, train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peaks", type=Path, help="labelled peaks, from `edgexnas label`")
    parser.add_argument("--evaluations", type=int, default=12)
    parser.add_argument("--spaces", nargs="+", default=["mlpBragg", "cnnBragg"])
    parser.add_argument("--epochs", type=int, default=4, help="of every network")
    options = parser.parse_args()
    torch.set_num_threads(1)
    dataset = PeakDataset.load(options.peaks)
    split = dataset.split()
    cpu = torch.device("cpu")
    data = TrainingData.from_dataset(dataset, split, "cpu")
    print(f"on {hardware()}")
    for name in options.spaces:
        space, rng = SPACES[name].narrow(epochs=options.epochs), random.Random(0)
        seconds: list[np.ndarray] = []
        while len(seconds) < options.evaluations + 1:
            configuration = space.sample(rng)
            if space.size(configuration).parameters > 20_000:
                continue
            settings = TrainingSettings(
                epochs=options.epochs, batch_size=int(configuration["batch_size"]), device="cpu",
                learning_rate=1e-3,
            )  # fmt: skip
            configuration["learning_rate"] = 1e-3
            times = [time.process_time()]
            plain_training(space, configuration, dataset, split, cpu, 0)
            times.append(time.process_time())
            train(space.build(configuration), data, settings)
            times.append(time.process_time())
            seconds.append(np.diff(times))
        # The first one warms up.
        plain, ours = np.array(seconds[1:]).T
        ratios = plain / ours
        print(
            f"| {name} | {options.epochs} | {plain.sum():.2f} s | {ours.sum():.2f} s | "
            f"{plain.sum() / ours.sum():.1f}× | {np.median(ratios):.1f}× "
            f"({ratios.min():.1f}–{ratios.max():.1f}) |"
        )


if __name__ == "__main__":
    main()
