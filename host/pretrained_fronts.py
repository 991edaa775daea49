"""Error against size with equal steps for every network, with and without simulated peaks first.

    python host/pretrained_fronts.py PEAKS --name ruby --output docs/results

MLPs of the paper's space, from a list of sizes, and both BraggNN are trained in two ways, each
with the same number of steps, batches of 32, two learning rates and several seeds:

* *measured*: on the measured peaks alone;
* *simulated first*: on simulated peaks that imitate the series, labelled by the same fit, then on
  the measured ones at a third of the rate.

The rate and seed with the least error on the validation part count; figures are of the test part,
which no training and no choice has seen.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from torch import nn

from edgexnas.demo.markdown import hardware
from edgexnas.host import (
    BRAGGNN_DENSE,
    BraggNN,
    PeakDataset,
    TrainingData,
    TrainingSettings,
    classical_rows,
    count_parameters,
    label_frames,
    train,
)
from edgexnas.host.models import mlp_bragg
from edgexnas.host.training_criteria import evaluate_model
from edgexnas.simulate import HedmSettings, simulate_hedm

LOWER_ERROR, FEWER_PARAMETERS = 0.31, 0.8757
BATCH = 32
RATES = (1e-3, 3e-3)
RECIPES = ("measured", "simulated first")

# (units, layers), with the largest that fit under an eighth and the whole of both BraggNN.
SIZES = (
    (8, 2), (14, 2), (20, 2), (26, 2), (22, 3), (32, 1), (34, 2), (29, 3), (48, 2), (64, 2),
    (64, 3), (90, 2), (128, 2), (100, 3), (84, 4), (156, 2), (121, 3),
)  # fmt: skip

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    f"BraggNN {'-'.join(map(str, dense))}": lambda dense=dense: BraggNN(dense)  # type: ignore[misc]
    for dense in BRAGGNN_DENSE.values()
} | {f"mlpBragg {u}×{h}": lambda u=u, h=h: mlp_bragg(u, h) for u, h in SIZES}  # type: ignore[misc]


@dataclass(frozen=True)
class Run:
    """One trained network."""

    network: str
    recipe: str
    seed: int
    parameters: int
    validation_px: float
    test: dict[str, float]
    seconds: float


def simulated_peaks(seed: int, frames: int, grains: int) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs and fitted offsets of peaks on frames like those of the ruby series."""
    settings = HedmSettings.ruby_dexela(frames=frames, grains=grains)
    peaks = label_frames(simulate_hedm(settings, seed=seed))
    return peaks.inputs()[peaks.good], peaks.offsets_px[peaks.good]


def trained(
    network: str,
    recipe: str,
    rate: float,
    seed: int,
    peaks: Path,
    simulated: Path,
    steps: int,
    device: str,
) -> Run:
    """Train one network one way."""
    torch.set_num_threads(1)
    dataset = PeakDataset.load(peaks)
    split = dataset.split()
    measured = TrainingData.from_dataset(dataset, split, device)
    where = measured.device
    torch.manual_seed(seed)
    model = NETWORKS[network]()
    started = time.perf_counter()
    if recipe == "measured":
        result = train(model, measured, settings_for(measured, steps, rate, seed))
    else:
        with np.load(simulated) as file:
            x, y = (torch.from_numpy(file[name]).to(where) for name in ("x", "y"))
        first = TrainingData(x, y, measured.validation_x, measured.validation_y)
        train(model, first, settings_for(first, steps * 3 // 4, rate, seed))
        result = train(model, measured, settings_for(measured, steps // 4, rate / 3, seed))
    seconds = time.perf_counter() - started
    x, y = torch.from_numpy(dataset.inputs()), torch.from_numpy(dataset.targets_px)
    test = evaluate_model(result.model, x[split.test], y[split.test])
    return Run(
        network, recipe, seed, count_parameters(model), result.metrics["error"], test, seconds
    )


def settings_for(data: TrainingData, steps: int, rate: float, seed: int) -> TrainingSettings:
    epochs = max(1, round(steps / (len(data.train_x) // BATCH)))
    return TrainingSettings(epochs=epochs, batch_size=BATCH, learning_rate=rate, seed=seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peaks", type=Path, help="labelled peaks, from `edgexnas label`")
    parser.add_argument("--name", required=True, help="of the data, for file names and headings")
    parser.add_argument("--steps", type=int, default=24_000, help="of every training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--parts", type=int, default=8, help="of the simulation")
    parser.add_argument("--frames", type=int, default=10, help="of each part")
    parser.add_argument("--grains", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2, help="processes that train on the CPU")
    parser.add_argument("--gpu-workers", type=int, default=0, help="train BraggNN on the GPU")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    options = parser.parse_args()

    options.runs.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, context) as pool:
        parts = list(pool.map(
            simulated_peaks, range(options.parts), itertools.repeat(options.frames),
            itertools.repeat(options.grains),
        ))  # fmt: skip
        simulated = options.runs / f"{options.name}-simulated.npz"
        x, y = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        np.savez(simulated, x=x, y=y)
        print(len(x), "simulated peaks", flush=True)
        with ProcessPoolExecutor(max(1, options.gpu_workers), context) as gpu:
            runs = train_all(options, simulated, pool, gpu)
    (options.output / f"fronts-{options.name}-pretrained.md").write_text(
        report(options, len(x), runs)
    )


def train_all(
    options: argparse.Namespace,
    simulated: Path,
    pool: ProcessPoolExecutor,
    gpu: ProcessPoolExecutor,
) -> list[Run]:
    futures: list[Future[Run]] = []
    for seed, network, recipe, rate in itertools.product(
        range(options.seeds), NETWORKS, RECIPES, RATES
    ):
        on_gpu = options.gpu_workers > 0 and network.startswith("BraggNN")
        futures.append((gpu if on_gpu else pool).submit(
            trained, network, recipe, rate, seed, options.peaks, simulated, options.steps,
            "cuda" if on_gpu else "cpu",
        ))  # fmt: skip
    runs = []
    for future in as_completed(futures):
        run = future.result()
        print(
            f"{run.network:20s} {run.recipe:16s} {run.seed} {run.parameters:6d} "
            f"{run.validation_px:.4f} {run.test['error']:.4f} {run.seconds:.1f} s", flush=True,
        )  # fmt: skip
        runs.append(run)
    return runs


def report(options: argparse.Namespace, simulated: int, runs: list[Run]) -> str:
    """Write the page, and its figure beside it."""
    dataset = PeakDataset.load(options.peaks)
    split = dataset.split()
    chosen: dict[tuple[str, str], Run] = {}
    for run in sorted(runs, key=lambda run: run.validation_px):
        chosen.setdefault((run.network, run.recipe), run)
    draw(options.output / f"fronts-{options.name}-pretrained.png", chosen)
    names = sorted(
        {run.network for run in runs}, key=lambda n: (chosen[n, RECIPES[0]].parameters, n)
    )
    header = "| network | parameters |" + "".join(
        f" {recipe}: validation | test | all runs' test |" for recipe in RECIPES
    )
    lines = [header, "|---" * 8 + "|"]
    for name in names:
        cells = []
        for recipe in RECIPES:
            run = chosen[name, recipe]
            errors = [r.test["error"] for r in runs if (r.network, r.recipe) == (name, recipe)]
            cells.append(
                f"{run.validation_px:.4f} | {run.test['error']:.4f} | "
                f"{min(errors):.4f}–{max(errors):.4f}"
            )
        lines.append(f"| {name} | {run.parameters:,} | {' | '.join(cells)} |")
    lines += [
        f"| {row.name} | | | {row.mean_px:.4f} | | | {row.mean_px:.4f} | |"
        for row in classical_rows(dataset, split)
    ]
    claims = [
        claim
        for theirs, ours in (*zip(RECIPES, RECIPES, strict=True), RECIPES)
        for claim in claims_of(theirs, ours, chosen)
    ]
    command = (
        f"python host/pretrained_fronts.py {options.peaks.name} --name {options.name} "
        f"--steps {options.steps} --seeds {options.seeds} --parts {options.parts} "
        f"--frames {options.frames} --grains {options.grains} --workers {options.workers} "
        f"--gpu-workers {options.gpu_workers}"
    )
    gpu = f"{torch.cuda.get_device_name()} and " if options.gpu_workers else ""
    return (
        f"# Fronts with equal steps, with and without simulated peaks first: {options.name}\n\n"
        f"`{command}`, on {gpu}{hardware()}.\n\n"
        f"{len(split.train)} measured patches to train on and {simulated:,} simulated ones, which "
        f"imitate the series and are labelled by the same fit; {len(split.test)} measured patches "
        "to test on, from frames that nothing else has seen; mean distances to the fit in px. "
        f"Every network takes {options.steps:,} steps with batches of {BATCH}, in both recipes: "
        "on measured peaks alone, or three quarters of them on simulated peaks first. Of "
        f"{options.seeds} seeds with each of the rates {' and '.join(f'{r:g}' for r in RATES)} the "
        "one with the least validation error counts; the last column spans all of them.\n\n"
        + "\n".join(claims)
        + "\n\n"
        + "\n".join(lines)
        + f"\n\n![error against size](fronts-{options.name}-pretrained.png)\n"
    )  # fmt: skip


def claims_of(theirs: str, ours: str, chosen: dict[tuple[str, str], Run]) -> list[str]:
    """Answer the paper's two claims; networks are chosen on the validation part."""
    answers = []
    for baseline in (run for run in chosen.values() if run.network.startswith("BraggNN")):
        if baseline.recipe != theirs:
            continue
        rivals = [r for r in chosen.values() if r.recipe == ours and r.network.startswith("mlp")]
        fitting = [r for r in rivals if r.parameters <= baseline.parameters]
        small = [r for r in fitting if r.parameters <= (1 - FEWER_PARAMETERS) * baseline.parameters]
        for wanted, among, goal in (
            ("lower error", fitting, LOWER_ERROR), ("fewer parameters", small, 0.0),
        ):  # fmt: skip
            best = min(among, key=lambda run: run.validation_px)
            gain = 1 - best.test["error"] / baseline.test["error"]
            saved = 1 - best.parameters / baseline.parameters
            answers.append(
                f"* {baseline.network} ({theirs}) against {best.network} ({ours}), {wanted}: "
                f"**{'yes' if gain >= goal else 'no'}**, {abs(gain):.1%} "
                f"{'lower' if gain >= 0 else 'higher'} error with {saved:.1%} fewer parameters."
            )
    return answers


def draw(path: Path, chosen: dict[tuple[str, str], Run]) -> None:
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    for recipe, colour in zip(RECIPES, ("tab:gray", "tab:blue"), strict=True):
        for kind, marker in (("mlpBragg", "o"), ("BraggNN", "s")):
            runs = sorted(
                (r for r in chosen.values() if r.recipe == recipe and r.network.startswith(kind)),
                key=lambda run: run.parameters,
            )
            axes.plot(
                [run.parameters for run in runs], [run.test["error"] for run in runs],
                marker=marker, linestyle="-" if kind == "mlpBragg" else "none", color=colour,
                label=f"{kind}, {recipe}",
            )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="parameters", ylabel="test error, px")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
