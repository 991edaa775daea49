"""Patterns per second through `Predictor`, beside torch and the iterative solver on one core.

    python host/bench_ptycho.py runs/ptycho --scan siemens-star-small.npz.bz2 \
        --output docs/results/ptycho-speed.md

Takes the bundles and weights that `ptycho_accuracy.py star` leaves. Rounds are interleaved, so that
whatever else the machine does falls on all rivals alike; medians over rounds are reported. The
iterative solver makes whole sweeps over the scan in each round; its rate is that of as many sweeps
as the labels took.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from ptycho_accuracy import BASELINE, build

from edgexnas.bundle import PtychoPreprocessing
from edgexnas.demo.markdown import hardware
from edgexnas.device import PtychoPredictor
from edgexnas.host import reconstruct
from edgexnas.ptycho import bin_patterns, scale_patterns
from edgexnas.scans import Scan, open_scan

BATCHES = (1, 8, 32)
SWEEPS = 50
"""Sweeps that the labels took."""
CLAIM = 300
"""The paper's factor between the network and iterations."""

Task = Callable[[], object]


@dataclass(frozen=True)
class Rival:
    """A way to treat patterns, for one network and batch."""

    network: str
    way: str
    batch: int
    patterns: int
    task: Task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, help="folder that ptycho_accuracy.py star left")
    parser.add_argument("--scan", type=Path, required=True, help="the measured star")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="Markdown file; only printed if not given")
    options = parser.parse_args()
    torch.set_num_threads(1)

    scan = open_scan(options.scan)
    names = sorted((p.stem for p in options.runs.glob("*.edgex")), key=lambda n: n != BASELINE)
    rivals = [r for name in names for r in rivals_of(name, options.runs, scan)]
    iterative = Rival("rPIE", "iterative", 0, len(scan), lambda: reconstruct(scan, iterations=1))
    seconds = measure([*rivals, iterative], options.rounds)
    sweep = statistics.median(seconds[iterative])
    rates = {r: r.patterns / statistics.median(seconds[r]) for r in rivals}
    text = page(options, rates, sweep, len(scan))
    print(text)
    if options.output is not None:
        options.output.write_text(text)


def rivals_of(name: str, runs: Path, scan: Scan) -> list[Rival]:
    """Predictor in both precisions, and torch eager, at each batch size."""
    bundle, keys = runs / f"{name}.edgex", runs / "keys"
    model = build(name)
    model.load_state_dict(torch.load(runs / f"{name}.pt", weights_only=True))
    model.eval()
    patterns = bin_patterns(scan.patterns[:64], scan.patterns.shape[1] // 64)
    rivals = []
    for batch in BATCHES:
        some = patterns[: max(batch, 8)]
        for precision in ("int8", "float32"):
            predictor = PtychoPredictor(
                bundle, trust=keys, precision=precision, batch=batch, threads=1
            )
            rivals.append(
                Rival(name, f"Predictor {precision}", batch, len(some),
                      partial(predictor.predict, some))
            )  # fmt: skip
        preprocessing = predictor.manifest.preprocessing
        assert isinstance(preprocessing, PtychoPreprocessing)
        scale = preprocessing.intensity_scale

        def eager(x: np.ndarray = some, size: int = batch, counts: float = scale) -> None:
            scaled = torch.from_numpy(scale_patterns(x, counts)[:, None])
            with torch.inference_mode():
                for part in torch.split(scaled, size):
                    model(part)

        rivals.append(Rival(name, "torch eager", batch, len(some), eager))
    return rivals


def measure(rivals: Sequence[Rival], rounds: int) -> dict[Rival, list[float]]:
    """Seconds of each rival in each round, after one round that does not count."""
    seconds: dict[Rival, list[float]] = {rival: [] for rival in rivals}
    for number in range(rounds + 1):
        for rival in rivals:
            started = time.perf_counter()
            rival.task()
            if number:
                seconds[rival].append(time.perf_counter() - started)
    return seconds


def page(
    options: argparse.Namespace, rates: dict[Rival, float], sweep_s: float, patterns: int
) -> str:
    iterative = patterns / (sweep_s * SWEEPS)
    networks = list(dict.fromkeys(r.network for r in rates))
    known = all((options.runs / f"{network}.json").exists() for network in networks)
    untrained = "" if known else " The weights were random: they do not change the speed."
    ways = list(dict.fromkeys(r.way for r in rates))
    lines = [
        "# Ptychography: patterns per second",
        "",
        f"`python host/bench_ptycho.py runs/{options.runs.name} --scan {options.scan.name} "
        f"--rounds {options.rounds}`: "
        f"one of {hardware()}, {options.rounds} interleaved rounds, medians. "
        f"torch {torch.__version__}.",
        "",
        f"The iterative solver (rPIE on torch, 3 modes, 128×128 windows) takes {sweep_s:.2f} s a "
        f"sweep over {patterns} patterns: **{iterative:.2f} patterns/s** for the {SWEEPS} sweeps "
        "of the labels. Predictor includes checks and scaling of the counts and the decoding of "
        "patches, not the stitching." + untrained,
        "",
        "| network | way | " + " | ".join(f"batch {b}" for b in BATCHES) + " | × iterative |",
        "|---|---|" + "---:|" * (len(BATCHES) + 1),
    ]
    for network in networks:
        for way in ways:
            own = [rates[r] for r in rates if (r.network, r.way) == (network, way)]
            cells = " | ".join(f"{rate:,.0f}/s" for rate in own)
            lines.append(f"| {network} | {way} | {cells} | {own[-1] / iterative:,.0f} |")
    fastest = max(rates.items(), key=lambda item: item[1])
    lines += [
        "",
        f"The paper claims {CLAIM} times the iterative solver. Here, on one core and against "
        f"{SWEEPS} sweeps: " + "; ".join(claim(n, rates, iterative) for n in networks) + ". "
        f"Fastest of all: {fastest[0].network}, {fastest[0].way}, batch {fastest[0].batch}. On a "
        "CPU the INT8 graph runs as float32 with rounding, so it is no measure of INT8 arithmetic.",
    ]
    return "\n".join(lines) + "\n"


def claim(network: str, rates: dict[Rival, float], iterative: float) -> str:
    """Answer for one network, in its fastest way through `Predictor`."""
    best = max(v for r, v in rates.items() if r.network == network and "Predictor" in r.way)
    factor = best / iterative
    return f"{network} **{'yes' if factor >= CLAIM else 'no'}**, {factor:,.0f} times"


if __name__ == "__main__":
    main()
