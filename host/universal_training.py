"""Training of the universal network: what it learns from, and how long; see `train_universal`."""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import time
from argparse import Namespace
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from edgexnas.bragg import CENTRE, scale_patches
from edgexnas.host.data.peak_labels import acceptable
from edgexnas.host.data.pseudo_voigt import fit_pseudo_voigt
from edgexnas.host.data.varied_peaks import VariedPeaks, draw_varied_peaks
from edgexnas.host.exporting.quantisation_aware import activation_scales, rounding
from edgexnas.host.networks.bragg_models import LEVELS
from edgexnas.host.training.bragg_criterion import predict_offsets

FLOOR_PX = 0.003
"""Added to a peak's Cramér-Rao bound to give the unit of its error: far below it nobody asks."""

FARTHEST_PX = 0.6
"""A fit further from the truth than this has found something else."""

MOST_SHARDS = 100

FOLDS = 4
"""Ways to reflect a patch; transposing it changes nothing for these networks."""

log = logging.getLogger("universal")


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


def read_shard(path: Path) -> VariedPeaks:
    with np.load(path) as file:
        return VariedPeaks(*(file[field.name] for field in fields(VariedPeaks)))


def joined(parts: list[VariedPeaks]) -> VariedPeaks:
    return VariedPeaks(
        *(np.concatenate([getattr(p, field.name) for p in parts]) for field in fields(VariedPeaks))
    )


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
        self, network: nn.Module, chosen: dict[str, int], folder: Path, options: Namespace
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
            late = rounds and self.pool is not None
            if (not late and self._take_shards()) or step is None:
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
        scales = activation_scales(self.network, dense, self.pool.x[:65_536], 0.9999)
        self.rounding.enter_context(rounding(dense, scales))
        self.rounded = True

    def _take_shards(self) -> bool:
        fresh: list[VariedPeaks] = []
        for path in sorted(self.options.shards.glob("*.npz")):
            # Fits take their time; what is left comes with the next round.
            if path.name not in self.taken and len(fresh) < MOST_SHARDS:
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
        quarters = x.chunk(FOLDS)
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
        self._loss(index).backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, list(self.weights.values()), 1e-3)

    def _make_step(self) -> Callable[[], None]:
        assert self.pool is not None
        count, batch = len(self.pool), self.options.batch
        index = torch.randint(0, count, (batch,), device=self.device)
        if self.device == "cpu":
            return lambda: self._plain_step(torch.randint(0, count, (batch,)))
        stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
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
        own: list[Tensor] = list(self.weights.values())
        raw = [p.detach().clone() for p in own]
        with torch.no_grad():
            torch._foreach_copy_(own, self.average)
        self.network.eval()
        out = predict_offsets(self.network, self.validation.x)
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
