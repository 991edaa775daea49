"""Find and train the network of the universal bundle, on simulated frames alone.

    python host/train_universal.py train --output runs/universal --seconds 540
    python host/train_universal.py export --output runs/universal --signing-key release.key.pem

`train` draws frames in processes of its own, lets `optimize` search a network on the first of
them, and trains it on with all. It may be stopped at any time and goes on where it was. `export`
quantises, calibrates and signs what it left.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import multiprocessing
import os
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from universal_training import Clock, Training, joined, read_shard

from edgexnas.host import PeakDataset, optimize
from edgexnas.host.data.varied_peaks import draw_varied_peaks, varied_dataset
from edgexnas.host.exporting.bundle_export import Origin, export_bundle
from edgexnas.host.exporting.bundling import make_bundling
from edgexnas.host.exporting.closest_recipe import closest_recipe
from edgexnas.host.networks.bragg_models import count_parameters
from edgexnas.host.networks.hyperparameters import Choice, Integer, Real
from edgexnas.host.networks.spaces import SPACES
from edgexnas.host.networks.symmetric_mlp import mlp_bragg_smooth
from edgexnas.whole_files import write_whole

SHARD_FRAMES = 32
SHARP_PX = 0.04
"""The search looks at peaks whose place can be known better than this: on others all networks err
alike."""

EXPORT_SEED = 1_000_003

log = logging.getLogger("universal")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="draw, search and train")
    training.add_argument("--output", type=Path, required=True)
    training.add_argument("--shards", type=Path, help="folder of drawn frames, for several runs")
    training.add_argument("--seconds", type=float, default=540, help="for everything")
    training.add_argument("--search", type=float, default=90, help="seconds of the search")
    training.add_argument("--draw", type=float, default=0.6, help="share of the time to draw in")
    training.add_argument("--processes", type=int, default=8)
    training.add_argument("--workers", type=int, default=3, help="of the search")
    training.add_argument("--search-frames", type=int, default=1024, help="that it trains on")
    training.add_argument("--evaluations", type=int, default=24, help="of the search, at most")
    training.add_argument("--epochs", type=int, default=60, help="of each of them")
    training.add_argument("--strategy", default="cbo", help="of the search")
    training.add_argument("--device", default="cuda")
    training.add_argument("--batch", type=int, default=16_384)
    training.add_argument("--rate", type=float, default=2e-3)
    training.add_argument("--rounded", type=float, default=0.3, help="share of it with INT8")
    training.add_argument("--parameters", type=int, default=75_000)
    training.add_argument("--network", help="UNITSxLAYERS, without a search")
    training.add_argument("--seed", type=int, default=0)
    training.set_defaults(run=train_command)
    export = commands.add_parser("export", help="quantise, calibrate and sign")
    export.add_argument("--output", type=Path, required=True)
    export.add_argument("--bundle", type=Path, default=Path("edgexnas/bundle/universal.edgex"))
    export.add_argument("--signing-key", type=Path, required=True)
    export.add_argument("--frames", type=int, default=2000)
    export.add_argument("--peaks", type=Path, help="file of the peaks to quantise and score with")
    export.set_defaults(run=export_command)
    options = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s")
    for name in ("universal", "edgexnas"):
        logging.getLogger(name).setLevel(logging.INFO)
    options.run(options)


def train_command(options: argparse.Namespace) -> None:
    clock = Clock(options.seconds)
    folder: Path = options.output
    folder.mkdir(parents=True, exist_ok=True)
    options.shards = options.shards or folder / "shards"
    options.shards.mkdir(parents=True, exist_ok=True)
    stop = multiprocessing.get_context("spawn").Event()
    drawers = start_drawing(options.shards, options, stop)
    try:
        units, layers = chosen_network(folder, options, clock)
        network = mlp_bragg_smooth(units, layers)
        log.info("network %d×%d, %d parameters", units, layers, count_parameters(network))
        Training(network, {"units": units, "layers": layers}, folder, options).run(
            clock, lambda: stop.set()
        )
    finally:
        stop.set()
        for process in drawers:
            process.join(20)


# Frames


def start_drawing(folder: Path, options: argparse.Namespace, stop: Any) -> list[Any]:
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(
            target=draw_shards,
            args=(str(folder), options.seed, number, options.processes, stop),
            daemon=True,
        )
        for number in range(options.processes)
    ]
    for process in processes:
        process.start()
    return processes


def draw_shards(folder: str, seed: int, number: int, processes: int, stop: Any) -> None:
    """Draw every so many shards that are not there, until it is enough."""
    torch.set_num_threads(1)
    shard = number
    while not stop.is_set():
        path = Path(folder) / f"{shard:06d}.npz"
        if not path.exists():
            peaks = draw_varied_peaks(SHARD_FRAMES, seed=seed, first=shard * SHARD_FRAMES)
            fresh = path.with_suffix(f".{number}.fresh")
            with fresh.open("wb") as file:
                np.savez(file, **{f.name: getattr(peaks, f.name) for f in fields(peaks)})
            os.replace(fresh, path)
        shard += processes


# Search


def chosen_network(folder: Path, options: argparse.Namespace, clock: Clock) -> tuple[int, int]:
    """Search units and layers; or take what is given, or what an earlier run found."""
    if options.network:
        units, layers = (int(part) for part in options.network.split("x"))
        return units, layers
    kept = folder / "chosen.json"
    if kept.exists():
        found = json.loads(kept.read_text())
        return found["units"], found["layers"]
    shards = options.search_frames // SHARD_FRAMES
    paths = [options.shards / f"{number:06d}.npz" for number in range(shards)]
    while not all(path.exists() for path in paths) and clock.left > options.search * 2:
        time.sleep(0.5)
    there = [path for path in paths if path.exists()]
    peaks = joined([read_shard(path) for path in there])
    log.info("searching on %d peaks", len(peaks))
    dataset = varied_dataset(peaks, options.search_frames, device=options.device)
    sharp = np.linalg.norm(peaks.bounds_px, axis=1) < SHARP_PX
    # The bound of a peak that nothing is known of is NaN, which is not sharp.
    dataset = replace(dataset, good=dataset.good & sharp)
    space = replace(
        SPACES["mlpBraggSmooth"].narrow(),
        hyperparameters=(
            Integer("units", 64, 256, "log-uniform"),
            Integer("layers", 2, 4, "log-uniform"),
            Choice("batch_size", (128, 256, 512, 1024)),
            Real("learning_rate", 5e-4, 1e-2, "log-uniform"),
            Integer("epochs", options.epochs, options.epochs, "log-uniform"),
        ),
    )
    result = optimize(
        "bragg",
        data=dataset,
        space=space,
        objectives=("error", "parameters"),
        constraints={"parameters": options.parameters},
        search=strategy(options.strategy),
        max_evals=options.evaluations,
        timeout=options.search,
        workers=options.workers,
        device=options.device,
        output=folder / "search",
        seed=options.seed,
        synthetic=0,
        resume=(folder / "search").exists(),
        progress=False,
    )
    best = result.best("error")
    found = {name: int(best.configuration[name]) for name in ("units", "layers")}
    described = {**found, "trial": best.trial, "evaluations": len(result.candidates),
                 "search": strategy(options.strategy), "error": best.metrics["error"]}  # fmt: skip
    write_whole(kept, json.dumps(described).encode())
    log.info("chosen: %s", described)
    return found["units"], found["layers"]


def strategy(name: str) -> str:
    """Fall back on evolution where DeepHyper is not installed."""
    if name == "cbo" and importlib.util.find_spec("deephyper") is None:
        return "evolution"
    return name


# Export


def export_command(options: argparse.Namespace) -> None:
    """Quantise, calibrate, score and sign, on frames of a third seed."""
    kept = torch.load(options.output / "network.pt", map_location="cpu")
    chosen = kept["chosen"]
    network = mlp_bragg_smooth(chosen["units"], chosen["layers"])
    network.load_state_dict(kept["average"])
    dataset, bounds = export_peaks(options.peaks or options.output / "export.h5", options.frames)
    # Every frame is of another detector, so that blocks need nothing between them.
    split = dataset.split(guard=0, fractions=(0.25, 0.125, 0.25))
    sharp = split.validation[bounds[split.validation] < SHARP_PX / 4]
    x = dataset.inputs()
    to_calibrate = make_bundling("bragg", (0.05, 0.5, 0.95)).to_calibrate(split.calibration)
    found = options.output / "chosen.json"
    search = json.loads(found.read_text()) if found.exists() else {}
    report = export_bundle(
        options.bundle,
        model=network,
        dataset=dataset,
        split=split,
        architecture="mlpBraggSmooth",
        signing_key=options.signing_key,
        model_id="universal",
        origin=Origin(search=search.get("search"), trial=search.get("trial"), configuration=chosen),
        fine_tune=None,
        choice=closest_recipe(
            network, x[to_calibrate], x[sharp], dataset.targets_px[sharp], middle=1
        ),
    )
    log.info("%s: INT8 loses %.1f %%", report.path, 100 * report.int8_loss)


def export_peaks(path: Path, frames: int) -> tuple[PeakDataset, npt.NDArray[np.floating[Any]]]:
    """Draw labelled peaks and the bounds of their distances, or read those of before."""
    bounds_path = path.with_suffix(".bounds.npy")
    if not bounds_path.exists():
        peaks = draw_varied_peaks(frames, seed=EXPORT_SEED)
        varied_dataset(peaks, frames).save(path)
        np.save(bounds_path, np.hypot(*peaks.bounds_px.T))
    return PeakDataset.load(path), np.load(bounds_path)


if __name__ == "__main__":
    main()
