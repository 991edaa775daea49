"""Compare a search that measures latency with one that counts parameters, at equal error.

    python host/measured_latency.py peaks.h5 --output docs/results/measured-latency.md

Two searches with the same budget, space and seeds, which differ in their second objective only:
parameters, or latency measured on this machine by `edgexnas bench`. Afterwards the fronts of both
are measured by one protocol. A second call with the same --runs only measures these again.
With --gpu, latency is that of a float16 CUDA graph in torch, in the searches and afterwards.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgexnas.bundle import generate_keys
from edgexnas.demo.markdown import hardware
from edgexnas.host import SearchResult, optimize
from edgexnas.host.bench_transports import LocalBench
from edgexnas.host.candidate_bundle import make_candidate_bundle
from edgexnas.host.result import Candidate
from edgexnas.host.spaces import SPACES

COUNTED, MEASURED = "parameters", "latency, measured here"
BATCH = 32
SPACE = SPACES["cnnBragg"].narrow(
    filters=(2, 24), layers=(1, 10), epochs=(10, 20), batch_size=(16, 32),
    learning_rate=(0.001, 0.02),
)  # fmt: skip
AGAIN = ["--precision", "float32", "--runs", "60", "--calls", "20", "--sweep", "32"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peaks", type=Path, help="labelled peaks, from edgexnas label")
    parser.add_argument("--output", type=Path, help="Markdown file; only printed if not given")
    parser.add_argument("--runs", type=Path, help="folder that keeps the runs")
    parser.add_argument("--evaluations", type=int, default=16, help="of each search")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--search", default="cbo")
    parser.add_argument("--gpu", action="store_true", help="latency on this machine's GPU")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = options.runs or Path(tempfile.mkdtemp(prefix="measured-latency-"))
    rivals: dict[str, dict[str, Any]] = {
        COUNTED: {"objectives": ("error", "parameters")},
        MEASURED: {
            "objectives": ("error", "latency"),
            "measure": gpu_latency if options.gpu else "local?runs=40&calls=10",
        },
    }
    results: dict[str, list[SearchResult]] = {}
    for seed in range(options.seeds):
        for name, rival in rivals.items():
            place = folder / f"{name.split(',')[0]}-{seed}"
            result = optimize(
                "bragg", data=options.peaks, output=place, space=SPACE, seed=seed,
                resume=True, max_evals=options.evaluations, evaluator="serial", device="cpu",
                progress=False, keep_checkpoints="all", search=options.search, **rival,
            )  # fmt: skip
            print(f"{name}, seed {seed}: {len(result.candidates)} networks", flush=True)
            results.setdefault(name, []).append(result)
    latencies = measure_fronts(results, gpu=options.gpu)
    page = markdown(results, latencies, options)
    print(page)
    if options.output is not None:
        options.output.write_text(page)


def gpu_latency(model: nn.Module) -> dict[str, float]:
    """Median latency in ms of a batch, as a CUDA graph in the faster memory layout."""
    from bench_energy_gpu import fastest_graph

    from edgexnas.device.benchmark import Load, measure_latency

    replay, _ = fastest_graph(copy.deepcopy(model), (BATCH, 1, 11, 11))
    (result,) = measure_latency([Load("", replay, BATCH)], runs=60, calls=20)
    return {"latency": result.p50_ms}


def measure_fronts(results: dict[str, list[SearchResult]], *, gpu: bool) -> dict[str, float]:
    """Latency in ms of each architecture on any front of error against the second objective."""
    with tempfile.TemporaryDirectory() as trust:
        key, _ = generate_keys(Path(trust))
        wanted = {
            architecture(candidate): (result, candidate)
            for runs in results.values()
            for result in runs
            for candidate in result.pareto
        }
        measured = {}
        for name, (result, candidate) in wanted.items():
            model = result.model(candidate)
            if gpu:
                measured[name] = gpu_latency(model)["latency"]
                continue
            bundle = make_candidate_bundle(model, "bragg", "float32", key)
            options = [*AGAIN, "--energy", "off"]
            report = LocalBench().bench(bundle.raw, trust, options)
            measured[name] = float(report["bundles"][0]["latency"]["p50_ms"])
        return measured


def architecture(candidate: Candidate) -> str:
    configuration = candidate.configuration
    width = configuration.get("units", configuration.get("filters"))
    return f"{candidate.space.removesuffix('Bragg')} {width}×{configuration['layers']}"


def fastest(
    runs: list[SearchResult], seed: int, most_error: float, latencies: dict[str, float]
) -> tuple[float, Candidate] | None:
    """Find the fastest network of a search's front whose error is small enough."""
    fits = [
        (latencies[architecture(c)], c)
        for c in runs[seed].pareto
        if c.objectives["error"] <= most_error
    ]
    return min(fits, key=lambda pair: pair[0], default=None)


def markdown(
    results: dict[str, list[SearchResult]],
    latencies: dict[str, float],
    options: argparse.Namespace,
) -> str:
    first, second = COUNTED, MEASURED
    where = (
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, float16 CUDA graphs"
        if options.gpu
        else "float32 in onnxruntime, one thread"
    )
    lines = [
        "# Latency as an objective, measured where the network runs",
        "",
        f"`python host/measured_latency.py {options.peaks.name} --evaluations "
        f"{options.evaluations} --seeds {options.seeds} --search {options.search}"
        f"{' --gpu' if options.gpu else ''}` on {hardware()}. Space "
        "cnnBragg, filters 2–24, layers 1–10, 10–20 epochs, "
        f"{options.evaluations} evaluations a search, the same for both; the searches differ in "
        "their second objective alone. "
        f"Latency: median of 60 runs of 20 inferences of a batch of 32 ({where}), of all fronts "
        "alike, after the searches. At each error that either front reaches, the "
        "fastest network of each front that is at least as good:",
        "",
        f"| seed | error at most px | with {first}: network, ms | with {second}: network, ms | "
        "faster by |",
        "|---|---|---|---|---|",
    ]
    ratios = []
    for seed in range(options.seeds):
        errors = sorted(
            {c.objectives["error"] for runs in results.values() for c in runs[seed].pareto}
        )
        for error in errors:
            a = fastest(results[first], seed, error, latencies)
            b = fastest(results[second], seed, error, latencies)
            if a is None or b is None:
                continue
            ratios.append(a[0] / b[0])
            lines.append(
                f"| {seed} | {error:.4f} | {architecture(a[1])}, {a[0]:.3f} | "
                f"{architecture(b[1])}, {b[0]:.3f} | {a[0] / b[0]:.2f}× |"
            )
    if ratios:
        lines += [
            "",
            "Both searches start from the same random points, so much of their fronts is the same. "
            f"Geometric mean over these errors {statistics.geometric_mean(ratios):.2f}×, median "
            f"{statistics.median(ratios):.2f}×, most {max(ratios):.2f}×; faster in "
            f"{sum(r > 1.005 for r in ratios)}, equal in "
            f"{sum(0.995 <= r <= 1.005 for r in ratios)}, slower in "
            f"{sum(r < 0.995 for r in ratios)} of {len(ratios)}.",
        ]
    for name, runs in results.items():
        failed = sum(len(run.trials) - len(run.candidates) for run in runs)
        lines.append(f"Search with {name}: {failed} evaluations failed.")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
