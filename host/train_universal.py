"""Find and train the network of the universal bundle, on simulated frames alone.

    python host/train_universal.py train --output runs/universal --seconds 540
    python host/train_universal.py export --output runs/universal --signing-key release.key.pem

`train` draws frames in processes of its own, lets `optimize` search a network on the first of
them, and trains it on with all. It may be stopped at any time and goes on where it was. `export`
quantises, calibrates and signs what it left.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import logging
import math
import multiprocessing
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgexnas.bragg import CENTRE, scale_patches
from edgexnas.host import optimize
from edgexnas.host.data.peak_labels import acceptable
from edgexnas.host.data.pseudo_voigt import fit_pseudo_voigt
from edgexnas.host.data.varied_peaks import VariedPeaks, draw_varied_peaks, varied_dataset
from edgexnas.host.exporting.bundle_export import Origin, export_bundle
from edgexnas.host.exporting.quantisation_aware import _activation_scales, _rounding
from edgexnas.host.networks.bragg_models import LEVELS, count_parameters
from edgexnas.host.networks.hyperparameters import Choice, Integer, Real
from edgexnas.host.networks.spaces import SPACES
from edgexnas.host.networks.symmetric_mlp import mlp_bragg_smooth
from edgexnas.whole_files import write_whole

SHARD_FRAMES = 32
SHARP_PX = 0.04
"""The search looks at peaks whose place can be known better than this: on others all networks err
alike."""

FLOOR_PX = 0.003
"""Added to a peak's Cramér-Rao bound to give the unit of its error: far below it nobody asks."""

FARTHEST_PX = 0.6
"""A fit further from the truth than this has found something else."""

EXPORT_SEED = 1_000_003

FOLDS = 4
"""Ways to reflect a patch; transposing it changes nothing for these networks."""

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
    export.add_argument("--frames", type=int, default=600)
    export.add_argument("--maximum-loss", type=float, default=0.1)
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


@dataclass
class Clock:
    """Time since the start."""

    seconds: float
    started: float = 0.0

    def __post_init__(self) -> None:
        self.started = time.monotonic()

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.seconds - (time.monotonic() - self.started)

    @property
    def share(self) -> float:
        """Share that is over."""
        return 1 - self.left / self.seconds


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


def read_shard(path: Path) -> VariedPeaks:
    with np.load(path) as file:
        return VariedPeaks(*(file[field.name] for field in fields(VariedPeaks)))


def joined(parts: list[VariedPeaks]) -> VariedPeaks:
    return VariedPeaks(
        *(np.concatenate([getattr(p, field.name) for p in parts]) for field in fields(VariedPeaks))
    )


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


# Training


@dataclass
class Pool:
    """Labelled peaks on the training device; `compared` are those that results are told of."""

    x: Tensor
    fitted: Tensor
    true: Tensor
    weight: Tensor
    compared: Tensor

    @classmethod
    def of(cls, peaks: VariedPeaks, device: str) -> Pool:
        """Label peaks: positions by the fit, intervals by the truth."""
        known = np.isfinite(peaks.true_px).all(axis=1)
        counts, true = peaks.counts[known], peaks.true_px[known]
        bounds = peaks.bounds_px[known]
        fit = fit_pseudo_voigt(counts, device=device, batch=1 << 15 if device != "cpu" else 4096)
        fitted = (fit.positions_px - CENTRE).astype(np.float32)
        usable = acceptable(fit) & (np.linalg.norm(fitted - true, axis=1) < FARTHEST_PX)
        fitted = np.where(usable[:, None], fitted, true)
        weight = 1 / (np.minimum(bounds, 1) + FLOOR_PX)
        compared = usable & (peaks.flags[known] == 0)
        arrays = (scale_patches(counts)[:, None], fitted, true, weight, compared)
        return cls(*(torch.from_numpy(a.astype(np.float32)).to(device) for a in arrays))

    def __len__(self) -> int:
        return len(self.x)

    def joined(self, other: Pool) -> Pool:
        """Add others."""
        return Pool(
            *(torch.cat([getattr(self, f.name), getattr(other, f.name)]) for f in fields(Pool))
        )


class Training:
    """Trains on what there is, which grows, with a rate that falls to 0 when the time is over."""

    def __init__(
        self, network: nn.Module, chosen: dict[str, int], folder: Path, options: argparse.Namespace
    ) -> None:
        self.folder, self.options, self.chosen = folder, options, chosen
        self.device = options.device
        self.network = network.to(self.device).train()
        # Rounding moves them to other names, so that their order is kept here.
        self.weights = dict(network.named_parameters())
        self.average = [p.detach().clone() for p in self.weights.values()]
        self.rounding = ExitStack()
        self.rounded = False
        self.levels = torch.tensor(LEVELS, device=self.device)
        self.signs = torch.tensor([[1, 1], [-1, 1], [1, -1], [-1, -1]], device=self.device)
        self.rate = torch.tensor(0.0, device=self.device)
        on_gpu = self.device != "cpu"
        self.optimiser = torch.optim.Adam(
            self.weights.values(), lr=self.rate if on_gpu else 0.0, fused=True, capturable=on_gpu
        )
        self.pool: Pool | None = None
        self.taken: set[str] = set()
        self.steps = 0
        self.best = math.inf
        if (folder / "network.pt").exists():
            kept = torch.load(folder / "network.pt", map_location=self.device)
            if kept["chosen"] == chosen:
                self.network.load_state_dict(kept["raw"])
                self.average = [p.detach().clone() for p in self.weights.values()]
                log.info("going on from an earlier run")
        self.validation = Pool.of(draw_varied_peaks(150, seed=options.seed + 1), self.device)

    def run(self, clock: Clock, enough: Callable[[], None]) -> None:
        """Take steps until the time is over."""
        began = clock.left
        step: Callable[[], None] | None = None
        round_s = max(8.0, began / 40)
        while not list(self.options.shards.glob("*.npz")) and clock.left > 6:
            time.sleep(0.5)
        while clock.left > 6:
            if clock.share > self.options.draw:
                enough()
            rounds = clock.share > 1 - self.options.rounded
            if rounds and not self.rounded and self.pool is not None:
                self._round()
                step = None
            # What comes late would be fitted for little.
            if (not rounds and self._take_shards()) or step is None:
                # A graph knows the pool by its address.
                step = self._make_step()
            end = max(6.0, clock.left - round_s)
            while clock.left > end:
                for _ in range(20):
                    progress = 1 - (clock.left - 6) / (began - 6)
                    warm = min(1.0, self.steps / 500)
                    share = 0.5 * (1 + math.cos(math.pi * min(progress, 1)))
                    self._set_rate(self.options.rate * warm * share)
                    step()
                    self.steps += 1
                if self.device != "cpu":
                    torch.cuda.synchronize()
            self._score(clock)

        self.rounding.close()

    def _round(self) -> None:
        """From now on all layers but the first and the last see INT8, as in the bundle."""
        assert self.pool is not None
        self._keep("float.pt", math.nan)
        with torch.no_grad():
            torch._foreach_copy_(list(self.weights.values()), self.average)
        dense = [m for m in self.network.modules() if isinstance(m, nn.Linear)][1:-1]
        scales = _activation_scales(self.network, dense, self.pool.x[:65_536], 0.9999)
        self.rounding.enter_context(_rounding(dense, scales))
        self.rounded = True

    def _take_shards(self) -> bool:
        fresh = []
        for path in sorted(self.options.shards.glob("*.npz")):
            if path.name not in self.taken:
                self.taken.add(path.name)
                fresh.append(read_shard(path))
        if not fresh:
            return False
        pool = Pool.of(joined(fresh), self.device)
        self.pool = pool if self.pool is None else self.pool.joined(pool)
        return True

    def _set_rate(self, rate: float) -> None:
        if self.device == "cpu":
            self.optimiser.param_groups[0]["lr"] = rate
        else:
            self.rate.fill_(rate)

    def _loss(self, index: Tensor) -> Tensor:
        assert self.pool is not None
        pool = self.pool
        x, fitted, true, weight = (
            part[index] for part in (pool.x, pool.fitted, pool.true, pool.weight)
        )
        # A quarter of the batch as it is, and one for each way to reflect it.
        quarters = x.unflatten(0, (FOLDS, -1)).unbind()
        axes: tuple[list[int], ...] = ([], [2], [3], [2, 3])
        x = torch.cat([part.flip(way) for part, way in zip(quarters, axes, strict=True)])
        signs = self.signs.repeat_interleave(len(index) // FOLDS, dim=0)
        fitted, true = fitted * signs, true * signs
        predicted = self.network(x)
        target = torch.stack([true, fitted, true], dim=2)
        error = target - predicted
        loss = torch.maximum(self.levels * error, (self.levels - 1) * error)
        # The median tells the position; the other two only how far to trust it.
        return (loss.mean(dim=2) * weight).mean() + (loss[:, :, 1] * weight).mean()

    def _plain_step(self, index: Tensor) -> None:
        self.optimiser.zero_grad(set_to_none=False)
        self._loss(index).backward()
        self.optimiser.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, list(self.weights.values()), 1e-3)

    def _make_step(self) -> Callable[[], None]:
        assert self.pool is not None
        count, batch = len(self.pool), self.options.batch
        index = torch.randint(0, count, (batch,), device=self.device)
        if self.device == "cpu":
            return lambda: self._plain_step(torch.randint(0, count, (batch,)))
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream())
        self._set_rate(0.0)
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._plain_step(index)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        replay: Callable[[], None] = graph.replay
        try:
            with torch.cuda.graph(graph):
                self._plain_step(index)
        except RuntimeError as error:
            log.warning("no CUDA graph, steps run one by one: %s", error)
            replay = functools.partial(self._plain_step, index)

        def step() -> None:
            index.copy_(torch.randint(0, count, (batch,), device=self.device))
            replay()

        return step

    def _score(self, clock: Clock) -> None:
        """Score the averaged weights on frames of another seed, and keep them."""
        own = list(self.weights.values())
        raw = [p.detach().clone() for p in own]
        with torch.no_grad():
            torch._foreach_copy_(own, self.average)
        self.network.eval()
        with torch.inference_mode():
            out = torch.cat([self.network(part) for part in self.validation.x.split(8192)])
        v = self.validation
        bound = (1 / v.weight - FLOOR_PX).square().sum(1).sqrt()
        apart = (out[:, :, 1] - v.fitted).norm(dim=1)
        errs = (out[:, :, 1] - v.true).norm(dim=1)
        fits = (v.fitted - v.true).norm(dim=1)
        bins = []
        for low in (1e-3, 3e-3, 1e-2, 3e-2, 1e-1):
            here = (bound >= low) & (bound < 3.3 * low) & (v.compared > 0)
            if here.sum() > 20:
                medians = [round(float(e[here].median()), 4) for e in (errs, fits, apart)]
                bins.append([low, *medians])
        score = float((errs / (bound + FLOOR_PX)).mean())
        with torch.no_grad():
            torch._foreach_copy_(own, raw)
        self.network.train()
        self._keep("network.pt", score)
        line = {"left_s": round(clock.left), "steps": self.steps, "score": round(score, 4),
                "peaks": 0 if self.pool is None else len(self.pool), "bins": bins}  # fmt: skip
        with (self.folder / "training.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        log.info("%s", line)

    def _keep(self, name: str, score: float) -> None:
        average = dict(zip(self.weights, (a.cpu().clone() for a in self.average), strict=True))
        raw = {key: value.detach().cpu().clone() for key, value in self.weights.items()}
        kept = {"chosen": self.chosen, "average": average, "raw": raw, "score": score}
        fresh = self.folder / f"{name}.fresh"
        torch.save(kept, fresh)
        os.replace(fresh, self.folder / name)


# Export


def export_command(options: argparse.Namespace) -> None:
    """Quantise, calibrate, score and sign, on frames of a third seed."""
    kept = torch.load(options.output / "network.pt", map_location="cpu")
    chosen = kept["chosen"]
    network = mlp_bragg_smooth(chosen["units"], chosen["layers"])
    network.load_state_dict(kept["average"])
    peaks = draw_varied_peaks(options.frames, seed=EXPORT_SEED)
    dataset = varied_dataset(peaks, options.frames)
    # Every frame is of another detector, so that blocks need nothing between them.
    split = dataset.split(guard=0, fractions=(0.25, 0.125, 0.25))
    sharp = np.linalg.norm(peaks.bounds_px, axis=1) < SHARP_PX / 4
    # INT8 must not cost what only shows on peaks whose place can be known well.
    split = replace(split, validation=split.validation[sharp[split.validation]])
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
        maximum_loss=options.maximum_loss,
    )
    log.info("%s: INT8 loses %.1f %%", report.path, 100 * report.int8_loss)


if __name__ == "__main__":
    main()
