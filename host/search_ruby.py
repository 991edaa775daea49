"""What a search with a budget finds on real peaks, beside BraggNN trained for as long.

    python host/search_ruby.py PEAKS --runs runs/ruby --seeds 0 1 2
    python host/search_ruby.py PEAKS --runs runs/ruby --page docs/results

For each seed the command line's own `optimize` and, in the step "search", `export` run as
processes, then BraggNN 16-8-4-2 trains for the same time on each core: on the measured patches and
on these with synthetic ones as a search has them, the better by validation counts. With ``--steps
before`` a search of 0.2.0's kind, networks trained once for the epochs that are proposed, has the
same time too. What exists is not repeated, so seeds and steps can be run one by one, or side by
side on cores of their own. A step that was stopped begins anew, but for the searches, which go on
with what is left of their time; their record says how many sessions they took, and times are of all
of them.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from scipy.stats import t

from edgexnas.bundle import open_bundle
from edgexnas.demo.markdown import hardware
from edgexnas.host import PeakDataset, SearchResult, optimize, with_synthetic_peaks
from edgexnas.host.networks.bragg_models import BraggNN, count_parameters
from edgexnas.host.search.budget import parse_budget
from edgexnas.host.search.evaluation import evaluation_context
from edgexnas.host.search.journal import read_journal
from edgexnas.host.search.synthetic_data import repeat_measured
from edgexnas.host.training.bragg_criterion import evaluate_model
from edgexnas.host.training.loop import train
from edgexnas.host.training.settings import TrainingSettings

SMALL = 4_200
LOWER_ERROR, SMALLER = 0.3103, 0.8757
"""Of the paper, against BraggNN."""
STEPS = ("optimize", "search", "measured", "synthetic", "before")
BRAGGNN_RATE, BRAGGNN_BATCH = 3e-3, 32
SYNTHETIC = 50_000
"""About as many as a search of ten minutes draws."""
BOTH = frozenset({"measured", "synthetic"})
"""Trainings of BraggNN: on measured patches, and with synthetic ones too."""


def run(command: list[str], log: Path, spent: Path | None = None) -> dict[str, float]:
    """Run a command of edgexnas; return its wall time and the CPU time of its processes.

    With a file of what was `spent` it is added, also by a command that is stopped: the time of all
    sessions, and their number.
    """
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    took: dict[str, float] = {}
    if spent is not None:
        took = json.loads(spent.read_text()) if spent.exists() else {"sessions": 0}
    try:
        with log.open("a") as file:
            subprocess.run(
                [sys.executable, "-m", "edgexnas.cli", *command],
                stdout=file, stderr=file, check=True,
            )  # fmt: skip
    finally:
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        seconds = {"wall_s": time.monotonic() - began, "cpu_s": cpu}
        took |= {name: round(took.get(name, 0.0) + s, 1) for name, s in seconds.items()}
        if spent is not None:
            took["sessions"] += 1
            spent.write_text(json.dumps(took))
    return took


def optimized(peaks: Path, folder: Path, seed: int, budget: str) -> dict[str, float]:
    """Search by the command line; go on with a search that was stopped."""
    place = folder / f"seed-{seed}"
    going_on = ["--resume"] if (place / "journal.jsonl").exists() else []
    return run(
        ["optimize", "bragg", "--data", str(peaks), "--output", str(place),
         "--budget", budget, "--seed", str(seed), *going_on],
        folder / f"seed-{seed}.log", folder / f"seed-{seed}-spent.json",
    )  # fmt: skip


def exported(folder: Path, seed: int) -> dict[str, Any]:
    """Export the best network and the best small one of a search, by the command line."""
    place, log = folder / f"seed-{seed}", folder / f"seed-{seed}.log"
    searched = folder / f"seed-{seed}-optimize.json"
    if not searched.exists():
        raise SystemExit(f"{searched} does not exist: take the step optimize before search")
    took: dict[str, Any] = json.loads(searched.read_text())
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


def braggnn(peaks: Path, seed: int, seconds: float, *, synthetic: bool) -> dict[str, Any]:
    """Train BraggNN for a CPU time on one core, of which drawing synthetic peaks is a part."""
    torch.set_num_threads(1)
    began = time.process_time()
    dataset = PeakDataset.load(peaks)
    split = dataset.split()
    context = evaluation_context(dataset, split, device="cpu")
    x, y = torch.from_numpy(dataset.inputs()), torch.from_numpy(dataset.targets_px)
    if synthetic:
        filled = with_synthetic_peaks(dataset, SYNTHETIC, seed=seed)
        both = evaluation_context(filled, filled.split(), device="cpu")
        context = repeat_measured(both, context)
    data = context.training_data
    torch.manual_seed(seed)
    settings = TrainingSettings(
        batch_size=BRAGGNN_BATCH, learning_rate=BRAGGNN_RATE, seed=seed, device="cpu",
        seconds=seconds - (time.process_time() - began),
    )  # fmt: skip
    result = train(BraggNN(), data, settings, clock=time.process_time)
    return {
        "patches": len(data.train_x), "steps": result.steps,
        "cpu_s": round(time.process_time() - began, 1),
        "validation_px": result.metrics["error"],
        "test_px": evaluate_model(result.model, x[split.test], y[split.test])["error"],
    }  # fmt: skip


def before(peaks: Path, folder: Path, seed: int, seconds: float) -> dict[str, Any]:
    """Search as 0.2.0 did by default, for the same time; go on with one that was stopped."""
    place = folder / f"before-{seed}"
    # A time-out is of one session.
    spent = 0.0
    if (place / "journal.jsonl").exists():
        spent = max((trial.finished for trial in read_journal(place)[1]), default=0.0)
    result = optimize(
        "bragg", data=peaks, output=place, resume=True, seed=seed,
        space=("mlpBraggSymmetric", "mlpBragg", "cnnBragg"), max_evals=100, workers=2,
        timeout=max(seconds - spent, 0.1),
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
        "--steps",
        nargs="*",
        choices=STEPS,
        default=STEPS[:4],
    )
    parser.add_argument("--hardware", help="where the runs were made, if not here; for the page")
    parser.add_argument(
        "--also", nargs=2, action="append", metavar=("RUNS", "WHERE"), help="more, for the page"
    )
    parser.add_argument("--page", type=Path, help="folder for search-ruby.json and .md")
    options = parser.parse_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    keys = options.runs / "keys"
    if "search" in options.steps and not keys.exists():
        run(["keys", "generate", "--output", str(keys), "--name", "search"],
            options.runs / "keys.log")  # fmt: skip
    seconds = parse_budget(options.budget)
    for seed in options.seeds:
        made: dict[str, Callable[[], Any]] = {
            "optimize": partial(optimized, options.peaks, options.runs, seed, options.budget),
            "search": partial(exported, options.runs, seed),
            "measured": partial(braggnn, options.peaks, seed, seconds, synthetic=False),
            "synthetic": partial(braggnn, options.peaks, seed, seconds, synthetic=True),
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
            for name in STEPS[1:]
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
    if any(record.keys() >= BOTH for record in seeds):
        lines += ["", "| seed | BraggNN 16-8-4-2, "
              f"{braggnn_size:,} parameters, trained for as long | measured patches | with "
              "synthetic ones |", "|---|---|---|---|"]  # fmt: skip
    for record in seeds:
        if record.keys() >= BOTH:
            lines.append(
                f"| {record['seed']} | **{best_braggnn(record):.4f}** by validation | "
                f"{record['measured']['test_px']:.4f} | {record['synthetic']['test_px']:.4f} |"
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
        (record["search"]["networks"], best_braggnn(record))
        for record in seeds
        if record.keys() >= BOTH
    ]
    if pairs:
        won = sum(ours["best"]["test_px"]["int8"] < theirs for ours, theirs in pairs)
        lines.append(f"* Better than BraggNN: {won} of {len(pairs)} seeds.")
        lines += claims(pairs, braggnn_size)
    return lines


def best_braggnn(record: dict[str, Any]) -> float:
    """Test error of the BraggNN that validation chooses."""
    rows = [record[name] for name in BOTH]
    return float(min(rows, key=lambda row: row["validation_px"])["test_px"])


def claims(pairs: list[tuple[dict[str, Any], float]], size: int) -> list[str]:
    """Answer the paper's two claims, INT8 networks of the search against BraggNN in float."""
    lines = []
    for name, largest, wanted, text in (
        ("best", size, -LOWER_ERROR, f"{LOWER_ERROR:.2%} lower error at no more parameters"),
        ("small", round((1 - SMALLER) * size), 0.0,
         f"{SMALLER:.2%} fewer parameters at no higher error"),
    ):  # fmt: skip
        changes = [
            ours[name]["test_px"]["int8"] / theirs - 1
            for ours, theirs in pairs
            if name in ours and ours[name]["parameters"] <= largest
        ]
        if len(changes) < len(pairs) or len(changes) < 2:
            lines.append(f"* {text}: not in every seed so small.")
            continue
        half = t.ppf(0.975, len(changes) - 1) * np.std(changes, ddof=1) / len(changes) ** 0.5
        if np.mean(changes) + half <= wanted:
            answer = "yes"
        else:
            answer = "by the mean" if np.mean(changes) <= wanted else "no"
        lines.append(
            f"* {text}: **{answer}**, error {np.mean(changes):+.0%} "
            f"± {half:.0%} over {len(changes)} seeds."
        )
    return lines


if __name__ == "__main__":
    main()
