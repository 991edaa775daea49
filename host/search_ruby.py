"""What a search with a budget finds on real peaks, beside BraggNN trained for as long.

    python host/search_ruby.py PEAKS --runs runs/ruby --seeds 0 1 2
    python host/search_ruby.py PEAKS --runs runs/ruby --page docs/results

For each seed the command line's own `optimize` and `export` run as processes, then BraggNN 16-8-4-2
trains for the same time on each core: on the measured patches and on these with synthetic ones, the
better by validation counts. With ``--steps before`` a search of 0.2.0's kind, networks trained once
for the epochs that are proposed, has the same time too. What exists is not repeated, so seeds and
steps can be run one by one, or side by side on cores of their own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from edgexnas.bundle import open_bundle
from edgexnas.demo.markdown import hardware
from edgexnas.host import PeakDataset, SearchResult, optimize, with_synthetic_peaks
from edgexnas.host.networks.bragg_models import BraggNN, count_parameters
from edgexnas.host.search.budget import parse_budget
from edgexnas.host.training.bragg_criterion import evaluate_model
from edgexnas.host.training.loop import train
from edgexnas.host.training.settings import TrainingData, TrainingSettings

SMALL = 4_200
BRAGGNN_RATE, BRAGGNN_BATCH = 3e-3, 32


def run(command: list[str], log: Path) -> dict[str, float]:
    """Run a command of edgexnas; return its wall time and the CPU time of its processes."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    with log.open("a") as file:
        subprocess.run(
            [sys.executable, "-m", "edgexnas.cli", *command], stdout=file, stderr=file, check=True
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": round(time.monotonic() - began, 1), "cpu_s": round(cpu, 1)}


def searched(peaks: Path, folder: Path, seed: int, budget: str) -> dict[str, Any]:
    """Search by the command line, and export the best network and the best small one."""
    place, log = folder / f"seed-{seed}", folder / f"seed-{seed}.log"
    took = run(
        ["optimize", "bragg", "--data", str(peaks), "--output", str(place), "--budget", budget,
         "--seed", str(seed)], log,
    )  # fmt: skip
    result = SearchResult.load(place)
    small = [c for c in result.candidates if c.metrics["parameters"] <= SMALL]
    first = result.objectives[0].name
    chosen = {"best": result.best(first)}
    if small:
        chosen["small"] = min(small, key=lambda c: c.objectives[first])
    networks = {}
    for name, candidate in chosen.items():
        bundle = folder / f"seed-{seed}-{name}.edgex"
        command = ["export", str(place), "--trial", str(candidate.trial), "--output", str(bundle),
                   "--signing-key", str(folder / "keys" / "search.key.pem")]  # fmt: skip
        try:
            export, limit = run(command, log), "default"
        except subprocess.CalledProcessError:
            # INT8 loses more than an export allows by itself.
            export, limit = run([*command, "--maximum-loss", "9"], log), "lifted"
        opened = open_bundle(bundle, trust=folder / "keys")
        errors = {
            row.precision: row.mean_px
            for row in opened.manifest.accuracy
            if row.precision is not None
        }
        made = opened.manifest.quantisation
        assert made is not None
        networks[name] = {
            "space": candidate.space, "configuration": dict(candidate.configuration),
            "parameters": int(candidate.metrics["parameters"]),
            "validation_px": candidate.metrics["error"],
            "int8_validation_px": candidate.metrics.get("int8_error"), "test_px": errors,
            "float_layers": list(made.float_layers),
            "fine_tuned": made.method == "qat", "export": export, "limit_of_loss": limit,
        }  # fmt: skip
    stages = [t.stage for t in result.trials]
    return took | {
        "trainings": len(stages), "finalists": stages.count("final"),
        "failed": dict(result.failures), "networks": networks,
    }  # fmt: skip


def trained(job: tuple[Path, int, float]) -> dict[str, Any]:
    """Train BraggNN for a time on one core."""
    path, seed, seconds = job
    torch.set_num_threads(1)
    dataset = PeakDataset.load(path)
    split = dataset.split()
    data = TrainingData.from_dataset(dataset, split, "cpu")
    torch.manual_seed(seed)
    settings = TrainingSettings(
        batch_size=BRAGGNN_BATCH, learning_rate=BRAGGNN_RATE, seconds=seconds, seed=seed,
        device="cpu",
    )  # fmt: skip
    began = time.process_time()
    result = train(BraggNN(), data, settings)
    x, y = torch.from_numpy(dataset.inputs()), torch.from_numpy(dataset.targets_px)
    return {
        "patches": len(data.train_x), "steps": result.steps,
        "cpu_s": round(time.process_time() - began, 1),
        "validation_px": result.metrics["error"],
        "test_px": evaluate_model(result.model, x[split.test], y[split.test])["error"],
    }  # fmt: skip


def braggnn(peaks: Path, folder: Path, seed: int, seconds: float) -> list[dict[str, Any]]:
    """Train BraggNN on measured and on measured and synthetic patches, side by side."""
    filled = folder / f"synthetic-{seed}.h5"
    if not filled.exists():
        with_synthetic_peaks(PeakDataset.load(peaks), 100_000, seed=seed).save(filled)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        return list(pool.map(trained, [(peaks, seed, seconds), (filled, seed, seconds)]))


def before(peaks: Path, folder: Path, seed: int, seconds: float) -> dict[str, Any]:
    """Search as 0.2.0 did by default, for the same time."""
    result = optimize(
        "bragg", data=peaks, output=folder / f"before-{seed}", resume=True, seed=seed,
        space=("mlpBraggSymmetric", "mlpBragg", "cnnBragg"), max_evals=100, workers=2,
        timeout=seconds,
    )  # fmt: skip
    dataset = PeakDataset.load(peaks)
    split, best = dataset.split(), result.best("error")
    x, y = torch.from_numpy(dataset.inputs()), torch.from_numpy(dataset.targets_px)
    small = [c for c in result.candidates if c.metrics["parameters"] <= SMALL]
    rows = {"best": best} | (
        {"small": min(small, key=lambda c: c.objectives["error"])} if small else {}
    )
    return {
        "ended": len(result.trials),
        "networks": {
            name: {
                "space": c.space, "parameters": int(c.metrics["parameters"]),
                "configuration": dict(c.configuration), "validation_px": c.objectives["error"],
                "test_px": evaluate_model(result.model(c), x[split.test], y[split.test])["error"],
            }
            for name, c in rows.items()
        },
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peaks", type=Path, help="labelled peaks, from `edgexnas label`")
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="*", default=[])
    parser.add_argument("--budget", default="10min")
    parser.add_argument(
        "--steps", nargs="*", choices=("search", "braggnn", "before"), default=["search", "braggnn"]
    )
    parser.add_argument("--hardware", help="where the runs were made, if not here; for the page")
    parser.add_argument(
        "--also", nargs=2, action="append", metavar=("RUNS", "WHERE"), help="more, for the page"
    )
    parser.add_argument("--page", type=Path, help="folder for search-ruby.json and .md")
    options = parser.parse_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    keys = options.runs / "keys"
    if not keys.exists():
        run(["keys", "generate", "--output", str(keys), "--name", "search"],
            options.runs / "keys.log")  # fmt: skip
    seconds = parse_budget(options.budget)
    for seed in options.seeds:
        made: dict[str, Callable[[], Any]] = {
            "search": partial(searched, options.peaks, options.runs, seed, options.budget),
            "braggnn": partial(braggnn, options.peaks, options.runs, seed, seconds),
            "before": partial(before, options.peaks, options.runs, seed, seconds),
        }
        for name in options.steps:
            record = options.runs / f"seed-{seed}-{name}.json"
            if not record.exists():
                record.write_text(json.dumps(made[name](), indent=1) + "\n")
                print(record.read_text(), flush=True)
    if options.page is not None:
        groups = [(options.runs, options.hardware or hardware()), *(options.also or [])]
        whole = {
            "command": f"python host/search_ruby.py {options.peaks.name} --budget "
            f"{options.budget} --seeds ...",
            "groups": [{"where": where, "seeds": recorded(Path(runs))} for runs, where in groups],
        }
        (options.page / "search-ruby.json").write_text(json.dumps(whole, indent=1) + "\n")
        (options.page / "search-ruby.md").write_text(page(whole))


def recorded(runs: Path) -> list[dict[str, Any]]:
    """Read what each seed came to."""
    return [
        {"seed": seed}
        | {
            name: json.loads(path.read_text())
            for name in ("search", "braggnn", "before")
            if (path := runs / f"seed-{seed}-{name}.json").exists()
        }
        for seed in sorted(int(p.name.split("-")[1]) for p in runs.glob("seed-*-search.json"))
    ]


def page(whole: dict[str, Any]) -> str:
    """One table for each place where searches ran."""
    lines = [
        "# A search of ten minutes on real peaks", "",
        f"`{whole['command']}`. Ruby, mean test error in px against the pseudo-Voigt fit; networks "
        "chosen by validation; *INT8* as exported, with the number of its layers in float, the "
        "centroid's among them.", "",
    ]  # fmt: skip
    for group in whole["groups"]:
        lines += [f"On {group['where']}:", "", *table(group["seeds"]), ""]
    return "\n".join(lines)


def table(seeds: list[dict[str, Any]]) -> list[str]:
    """Tables of the seeds of one place, and which goals they reach."""
    braggnn_size = count_parameters(BraggNN())
    lines = [
        "| seed | wall / CPU s | trainings | network | parameters | float32 | INT8 | layers in "
        "float |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for record in seeds:
        found = record["search"]
        for name, network in found["networks"].items():
            sizes = network["configuration"]
            shape = f"{sizes.get('units', sizes.get('filters'))}×{sizes['layers']}"
            kind = {"best": "best", "small": f"best of ≤ {SMALL:,}"}[name]
            lines.append(
                f"| {record['seed']} | {found['wall_s']:.0f} / {found['cpu_s']:.0f} | "
                f"{found['trainings']} | {kind}: {network['space']} {shape} | "
                f"{network['parameters']:,} | {network['test_px']['float32']:.4f} | "
                f"**{network['test_px']['int8']:.4f}** | {len(network['float_layers'])} |"
            )
    if any("braggnn" in record for record in seeds):
        lines += ["", "| seed | BraggNN 16-8-4-2, "
              f"{braggnn_size:,} parameters, trained for as long | measured patches | with "
              "synthetic ones |", "|---|---|---|---|"]  # fmt: skip
    for record in seeds:
        if "braggnn" in record:
            rows = record["braggnn"]
            best = min(rows, key=lambda row: row["validation_px"])
            lines.append(
                f"| {record['seed']} | **{best['test_px']:.4f}** by validation | "
                f"{rows[0]['test_px']:.4f} | {rows[1]['test_px']:.4f} |"
            )
    others = [record for record in seeds if "before" in record]
    if others:
        lines += ["", "| seed | a search of 0.2.0's kind, for as long | networks ended | "
                  "parameters | float32 |", "|---|---|---|---|---|"]  # fmt: skip
        for record in others:
            for name, network in record["before"]["networks"].items():
                lines.append(
                    f"| {record['seed']} | {name}: {network['space']} | "
                    f"{record['before']['ended']} | {network['parameters']:,} | "
                    f"{network['test_px']:.4f} |"
                )
    goals = [("best", 0.004, "≤ 0.004 px"), ("small", 0.006, f"≤ 0.006 px at ≤ {SMALL:,}")]
    lines += [""]
    for name, bound, text in goals:
        errors = [r["search"]["networks"][name]["test_px"]["int8"]
                  for r in seeds if name in r["search"]["networks"]]  # fmt: skip
        if errors:
            met = sum(error <= bound for error in errors)
            lines.append(
                f"* INT8 {text}: {'**reached**' if met == len(errors) == len(seeds) else 'missed'} "
                f"({met} of {len(seeds)} seeds; mean {mean(errors):.4f}, worst "
                f"{np.max(errors):.4f})."
            )
    pairs = [
        (r["search"]["networks"]["best"]["test_px"]["int8"],
         min(r["braggnn"], key=lambda row: row["validation_px"])["test_px"])
        for r in seeds if "braggnn" in r
    ]  # fmt: skip
    if pairs:
        won = sum(ours < theirs for ours, theirs in pairs)
        lines.append(f"* Better than BraggNN: {won} of {len(pairs)} seeds.")
    return lines


if __name__ == "__main__":
    main()
