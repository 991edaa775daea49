"""Compare a search that measures latency with one that counts parameters, at equal error.

    python host/measured_latency.py peaks.h5 --seeds 2 3 4 --runs runs --output page.md

Two searches a seed with the same budget and space, which differ in their second objective only:
parameters, or latency measured on this machine by `edgexnas bench`. After each seed the networks of
both fronts are timed in turns in one process, and the page is written. A call with the same --runs
goes on where another stopped, and calls for other seeds may run beside it on a GPU: one at a time
measures.
With --gpu, latency is that of a float16 CUDA graph in torch, in the searches and afterwards. With
--latencies it is what `host/gpu_latencies.py` measured on a GPU elsewhere, straight lines between
the numbers of filters that were measured.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgexnas.bundle import generate_keys
from edgexnas.demo.markdown import hardware
from edgexnas.device.benchmark import Load, measure_latency
from edgexnas.device.benchmark.intervals import half_width
from edgexnas.host import SearchResult, optimize
from edgexnas.host.measuring.candidate_bundle import make_candidate_bundle
from edgexnas.host.networks.spaces import SPACES
from edgexnas.host.search.result import Candidate
from edgexnas.whole_files import write_whole

COUNTED, MEASURED = "parameters", "latency"
BATCH = 32
SPACE = SPACES["cnnBragg"].narrow(
    filters=(2, 24), layers=(1, 10), epochs=(10, 20), batch_size=(16, 32),
    learning_rate=(0.001, 0.02),
)  # fmt: skip
RUNS, CALLS, SPREAD_S = 60, 20, 6
"""Of the timing after the searches."""

Times = dict[str, tuple[float, float]]
"""Architecture → median latency in ms, half-width of its 95 % interval."""


@dataclass(frozen=True)
class Level:
    """The fastest network of each front that errs no more than `error_px`."""

    seed: int
    error_px: float
    counted: str
    measured: str
    counted_ms: tuple[float, float]
    measured_ms: tuple[float, float]

    @property
    def ratio(self) -> float:
        """How many times faster the network of the search with latency is."""
        return self.counted_ms[0] / self.measured_ms[0]

    @property
    def verdict(self) -> str:
        """Faster or slower only where the intervals of two different networks say so."""
        (a, width_a), (b, width_b) = self.counted_ms, self.measured_ms
        if self.counted == self.measured or abs(a - b) <= math.hypot(width_a, width_b):
            return "equal"
        return "faster" if b < a else "slower"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peaks", type=Path, help="labelled peaks, from edgexnas label")
    parser.add_argument("--output", type=Path, help="Markdown file; only printed if not given")
    parser.add_argument("--runs", type=Path, help="folder that keeps the runs")
    parser.add_argument("--evaluations", type=int, default=12, help="of each search")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--search", default="cbo")
    parser.add_argument("--gpu", action="store_true", help="latency on this machine's GPU")
    parser.add_argument("--latencies", type=Path, help="of a GPU, from host/gpu_latencies.py")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = options.runs or Path(tempfile.mkdtemp(prefix="measured-latency-"))
    folder.mkdir(parents=True, exist_ok=True)
    levels: list[Level] = []
    failed = 0
    for number, seed in enumerate(options.seeds, start=1):
        kept = folder / f"levels-{seed}.json"
        if not kept.exists():
            counted, measured = (
                search(name, seed, folder, options) for name in (COUNTED, MEASURED)
            )
            if options.latencies is not None:
                table = LatencyTable(options.latencies)
                times = {
                    architecture(c): table.of(c.configuration["filters"], c.configuration["layers"])
                    for run in (counted, measured)
                    for c in run.pareto
                }
            else:
                times = time_fronts((counted, measured), folder if options.gpu else None)
            found = compare(seed, counted, measured, times)
            lost = sum(len(run.trials) - len(run.candidates) for run in (counted, measured))
            content = {"failed": lost, "levels": [asdict(level) for level in found]}
            write_whole(kept, json.dumps(content, indent=1).encode())
        content = json.loads(kept.read_text())
        failed += content["failed"]
        levels += [Level(**level) for level in content["levels"]]
        page = markdown(levels, options.seeds[:number], failed, options)
        if options.output is not None:
            write_whole(options.output, page.encode())
        print(page if number == len(options.seeds) else f"seed {seed} is compared", flush=True)


def search(objective: str, seed: int, folder: Path, options: argparse.Namespace) -> SearchResult:
    """Run one search, or go on with what an earlier call left of it."""
    measure: Any = f"local?runs=40&calls=10&batch={BATCH}"
    if options.latencies is not None:
        measure = LatencyTable(options.latencies).measure
    elif options.gpu:
        measure = gpu_latency(folder)
    result = optimize(
        "bragg", data=options.peaks, output=folder / f"{objective}-{seed}", space=SPACE, seed=seed,
        resume=True, max_evals=options.evaluations, evaluator="serial", device="cpu",
        progress=False, keep_checkpoints="all", search=options.search,
        objectives=("error", objective), measure=measure if objective == MEASURED else None,
    )  # fmt: skip
    print(f"{objective}, seed {seed}: {len(result.candidates)} networks", flush=True)
    return result


class LatencyTable:
    """Latencies of cnnBragg networks that were measured on a GPU elsewhere."""

    def __init__(self, path: Path) -> None:
        content = json.loads(path.read_text())
        self.device = str(content["device"])
        self._columns: dict[int, dict[int, tuple[float, float]]] = {}
        for name, pair in content["median_ms"].items():
            filters, layers = map(int, name.split("×"))
            self._columns.setdefault(layers, {})[filters] = tuple(pair)

    def of(self, filters: int, layers: int) -> tuple[float, float]:
        """Median latency in ms and half-width of its interval."""
        known = self._columns[layers]
        xs = sorted(known)
        value, width = (
            float(np.interp(filters, xs, [known[x][part] for x in xs])) for part in (0, 1)
        )
        return value, width

    def measure(self, model: nn.Module) -> dict[str, float]:
        """Look a network up, as a search's measure."""
        convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
        return {"latency": self.of(convolutions[0].out_channels, len(convolutions))[0]}


@contextmanager
def gpu_alone(folder: Path) -> Iterator[None]:
    """Keep other calls with the same folder from the GPU, so that seeds may run side by side."""
    with (folder / "gpu.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def gpu_latency(folder: Path) -> Callable[[nn.Module], dict[str, float]]:
    """Make a measure: median latency in ms as a CUDA graph in the faster memory layout."""
    from torch_graphs import fastest_graph

    def measure(model: nn.Module) -> dict[str, float]:
        with gpu_alone(folder):
            graph = fastest_graph(model, (BATCH, 1, 11, 11), rounds=5)
            load = Load("", graph.replay, BATCH)
            (result,) = measure_latency([load], runs=60, calls=20, spread_s=0.2)
        return {"latency": result.p50_ms}

    return measure


def time_fronts(results: Sequence[SearchResult], gpu: Path | None) -> Times:
    """Time each architecture of any front, all in turns in one process."""
    models = {
        architecture(candidate): result.model(candidate)
        for result in results
        for candidate in result.pareto
    }
    return _time_bundles(models) if gpu is None else _time_graphs(models, gpu)


def _time_graphs(models: Mapping[str, nn.Module], folder: Path) -> Times:
    from torch_graphs import fastest_graph

    with gpu_alone(folder):
        loads = [
            Load(name, fastest_graph(model, (BATCH, 1, 11, 11), rounds=5).replay, BATCH)
            for name, model in models.items()
        ]
        results = measure_latency(loads, runs=RUNS, calls=CALLS, spread_s=SPREAD_S)
    return {result.name: (result.p50_ms, result.p50_half_width_ms) for result in results}


def _time_bundles(models: Mapping[str, nn.Module]) -> Times:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        key, _ = generate_keys(folder)
        bundles = []
        for number, model in enumerate(models.values()):
            bundles.append(folder / f"{number}.edgex")
            bundles[-1].write_bytes(make_candidate_bundle(model, "bragg", "float32", key).raw)
        command = [
            sys.executable, "-m", "edgexnas.cli", "bench", *map(str, bundles),
            "--trust", place, "--json", "-", "--precision", "float32", "--threads", "1",
            "--batch", str(BATCH), "--runs", str(RUNS), "--calls", str(CALLS),
            "--spread", str(SPREAD_S), "--sweep", "--no-cold-start", "--energy", "off",
        ]  # fmt: skip
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    latencies = [bundle["latency"] for bundle in json.loads(done.stdout)["bundles"]]
    return {
        name: (latency["p50_ms"], latency["p50_half_width_ms"])
        for name, latency in zip(models, latencies, strict=True)
    }


def architecture(candidate: Candidate) -> str:
    return f"{candidate.configuration['filters']}×{candidate.configuration['layers']}"


def compare(seed: int, counted: SearchResult, measured: SearchResult, times: Times) -> list[Level]:
    """Compare two fronts at each error that either reaches, where both have a network."""
    errors = {c.objectives["error"] for run in (counted, measured) for c in run.pareto}
    levels = []
    for error in sorted(errors):
        a, b = (_fastest(run, error, times) for run in (counted, measured))
        if a is not None and b is not None:
            levels.append(Level(seed, error, a, b, times[a], times[b]))
    return levels


def _fastest(run: SearchResult, most_error: float, times: Times) -> str | None:
    fits = {architecture(c) for c in run.pareto if c.objectives["error"] <= most_error}
    return min(fits, key=lambda name: times[name][0], default=None)


def markdown(
    levels: Sequence[Level], seeds: Sequence[int], failed: int, options: argparse.Namespace
) -> str:
    where = (
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, float16 CUDA graphs"
        if options.gpu
        else "float32 in onnxruntime, one thread"
    )
    timing, table = f"median of {RUNS} runs of {CALLS} inferences, spread over {SPREAD_S} s,", ""
    if options.latencies is not None:
        timing, table = "median", f" --latencies {options.latencies.name}"
        where = f"float16 CUDA graphs on {LatencyTable(options.latencies).device}"
    lines = [
        f"`python host/measured_latency.py {options.peaks.name} --evaluations "
        f"{options.evaluations} --seeds {' '.join(map(str, options.seeds))} --search "
        f"{options.search}{' --gpu' if options.gpu else ''}{table}` on {hardware()}; latency: "
        f"{timing} of a batch of {BATCH} ({where}).",
        "",
        "| seed | errors compared | faster | equal | slower | faster by, geometric mean | most |",
        "|---|---|---|---|---|---|---|",
    ]
    by_seed = {seed: [level for level in levels if level.seed == seed] for seed in seeds}
    logs = []
    for seed, its in by_seed.items():
        ratios = [level.ratio for level in its] or [1.0]
        logs.append(statistics.fmean(map(math.log, ratios)))
        verdicts = [level.verdict for level in its]
        counts = " | ".join(str(verdicts.count(v)) for v in ("faster", "equal", "slower"))
        lines.append(
            f"| {seed} | {len(its)} | {counts} | {math.exp(logs[-1]):.2f}× | {max(ratios):.2f}× |"
        )
    verdicts = [level.verdict for level in levels]
    mean, width = statistics.fmean(logs), half_width(logs)
    low, high = (math.exp(mean + sign * width) for sign in (-1, 1))
    interval = f" (95 % interval over seeds {low:.2f}× to {high:.2f}×)" if len(logs) > 1 else ""
    lines += [
        "",
        f"Faster in {verdicts.count('faster')}, equal in {verdicts.count('equal')}, slower in "
        f"{verdicts.count('slower')} of {len(levels)}; geometric mean of the seeds "
        f"{math.exp(mean):.2f}×{interval}. {failed} evaluations failed. Where the networks differ:",
        "",
        "| seed | error at most px | with parameters: filters×layers, ms | "
        "with latency: filters×layers, ms | faster by |",
        "|---|---|---|---|---|",
    ]
    for level in levels:
        if level.counted != level.measured:
            a, b = level.counted_ms, level.measured_ms
            lines.append(
                f"| {level.seed} | {level.error_px:.4f} | {level.counted}, {a[0]:.4f} ± {a[1]:.4f} "
                f"| {level.measured}, {b[0]:.4f} ± {b[1]:.4f} | {level.ratio:.2f}×, "
                f"{level.verdict} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
