"""Figures 4 and 5 redone: fronts of error against size, with BraggNN trained alike.

    python host/pareto_fronts.py PEAKS --name ruby --braggnn-epochs 150 --output docs/results

Trains both sizes of BraggNN with each of two learning rates (the best on the validation part
counts), then searches mlpBragg and cnnBragg, where no network may train longer than BraggNN did,
and answers the paper's two claims on the test part, which neither search nor training has seen.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from edgexnas.bundle import AccuracyRow
from edgexnas.demo.markdown import hardware
from edgexnas.host import (
    BRAGGNN_DENSE,
    SPACES,
    BraggNN,
    PeakDataset,
    SearchResult,
    Split,
    TrainingData,
    TrainingSettings,
    classical_rows,
    count_parameters,
    distance_row,
    optimize,
    train,
)
from edgexnas.host.networks.bragg_models import LEVELS, middle_of
from edgexnas.host.reporting.figures import front_figure, save_figure

LOWER_ERROR, FEWER_PARAMETERS = 0.31, 0.8757
"""The paper's two claims: 31.03 % lower error; 87.57 % fewer parameters at no higher error."""

RATES = (1e-3, 3e-3)

# Table 1's ranges without what never trains: rates above 0.03, and few epochs.
NARROWED = {
    "mlpBragg": SPACES["mlpBragg"].narrow(
        units=(8, 256), layers=(1, 5), epochs=(50, 1000), learning_rate=(1e-3, 3e-2)
    ),
    "cnnBragg": SPACES["cnnBragg"].narrow(
        filters=(2, 32), layers=(2, 8), epochs=(20, 300), learning_rate=(1e-3, 3e-2)
    ),
}


@dataclass(frozen=True)
class Scored:
    """A network with its error on the validation part and its row on the test part."""

    name: str
    parameters: int
    validation_px: float
    seconds: float
    row: AccuracyRow


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peaks", type=Path, help="labelled peaks, from `edgexnas label`")
    parser.add_argument("--name", required=True, help="of the data, for file names and headings")
    parser.add_argument("--runs", type=Path, default=Path("runs/fronts"))
    parser.add_argument("--mlp-evaluations", type=int, default=40)
    parser.add_argument("--cnn-evaluations", type=int, default=12)
    parser.add_argument("--cnn-macs", type=int, default=400_000, help="larger ones are not tried")
    parser.add_argument("--braggnn-epochs", type=int, default=150)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    options = parser.parse_args()

    torch.set_num_threads(1)
    dataset = PeakDataset.load(options.peaks)
    split = dataset.split()
    baselines = [braggnn(size, dataset, split, options.braggnn_epochs) for size in BRAGGNN_DENSE]
    limit = round(min(baseline.seconds for baseline in baselines))
    searches = {
        "mlpBragg": search(options, "mlpBragg", options.mlp_evaluations, limit, {}),
        "cnnBragg": search(
            options, "cnnBragg", options.cnn_evaluations, limit, {"macs": options.cnn_macs}
        ),
    }
    seconds = {
        (space, trial.number): trial.seconds
        for space, result in searches.items()
        for trial in result.trials
    }
    candidates = [
        score(
            result.model(c),
            f"{c.space} #{c.trial}",
            c.metrics["error"],
            seconds[c.space, c.trial],
            dataset,
            split,
        )
        for result in searches.values()
        for c in result.pareto
    ]
    drawn = {
        b.name: {"error": b.validation_px, "parameters": float(b.parameters)} for b in baselines
    }
    for space, result in searches.items():
        figure = front_figure(result, x="parameters", y="error", baselines=drawn)
        save_figure(figure, options.output / f"front-{options.name}-{space}.png")
    text = report(options, dataset, split, baselines, candidates)
    (options.output / f"fronts-{options.name}.md").write_text(text)
    print(text)


def search(
    options: argparse.Namespace,
    space: str,
    evaluations: int,
    limit: float,
    constraints: dict[str, float],
) -> SearchResult:
    """Search one space; a run that exists is continued."""
    return optimize(
        "bragg",
        data=options.peaks,
        space=NARROWED[space],
        objectives=("error", "parameters"),
        constraints={"parameters": 45_394, **constraints},
        max_evals=evaluations,
        time_limit_s=limit,
        workers=options.workers,
        output=options.runs / f"{options.name}-{space}",
        resume=True,
    )


def braggnn(size: str, dataset: PeakDataset, split: Split, epochs: int) -> Scored:
    """Train a BraggNN with each learning rate and keep the best on the validation part."""
    data = TrainingData.from_dataset(dataset, split)
    results = []
    for rate in RATES:
        torch.manual_seed(0)
        settings = TrainingSettings(epochs=epochs, batch_size=32, learning_rate=rate, levels=LEVELS)
        results.append(train(BraggNN(BRAGGNN_DENSE[size]), data, settings))
    best = min(results, key=lambda result: result.metrics["error"])
    name = f"BraggNN {'-'.join(map(str, BRAGGNN_DENSE[size]))}"
    return score(best.model, name, best.metrics["error"], best.seconds, dataset, split)


def score(
    model: nn.Module,
    name: str,
    validation_px: float,
    seconds: float,
    dataset: PeakDataset,
    split: Split,
) -> Scored:
    with torch.inference_mode():
        offsets = model(torch.from_numpy(dataset.inputs()[split.test]))[:, :, middle_of(LEVELS)]
    row = distance_row(
        name,
        offsets.numpy(),
        dataset.targets_px[split.test],
        against=dataset.against,
        parameters=count_parameters(model),
    )
    return Scored(name, count_parameters(model), validation_px, seconds, row)


def report(
    options: argparse.Namespace,
    dataset: PeakDataset,
    split: Split,
    baselines: list[Scored],
    candidates: list[Scored],
) -> str:
    against = {"fit": "the pseudo-Voigt fit", "truth": "the simulated truth"}[dataset.against]
    lines = [
        "| network | parameters | training s | validation mean | test mean | p50 | p75 | p95 |"
    ]
    lines.append("|---" * 8 + "|")
    for item in (*baselines, *sorted(candidates, key=lambda c: c.parameters)):
        lines.append(
            f"| {item.name} | {item.parameters:,} | {item.seconds:.0f} | "
            f"{item.validation_px:.4f} | {cells(item.row)} |"
        )
    lines += [f"| {row.name} | | | | {cells(row)} |" for row in classical_rows(dataset, split)]
    claims = [claim for baseline in baselines for claim in claims_against(baseline, candidates)]
    return (
        f"# Fronts of error against size: {options.name}\n\n"
        f"`python host/pareto_fronts.py {options.peaks.name} --name {options.name} "
        f"--mlp-evaluations {options.mlp_evaluations} --cnn-evaluations {options.cnn_evaluations} "
        f"--cnn-macs {options.cnn_macs} --braggnn-epochs {options.braggnn_epochs}`, "
        f"on {hardware()}.\n\n"
        f"{len(split.train)} patches train, {len(split.test)} from other frames test; distances to "
        f"{against} in px. BraggNN: the better of {len(RATES)} rates, {options.braggnn_epochs} "
        "epochs. Every network trains on one thread and no longer than the faster BraggNN did.\n\n"
        + "\n".join(claims)
        + "\n\n"
        + "\n".join(lines)
        + "\n\n"
        + "\n\n".join(
            f"![{space}](front-{options.name}-{space}.png)" for space in ("mlpBragg", "cnnBragg")
        )
        + "\n"
    )


def cells(row: AccuracyRow) -> str:
    values = (row.mean_px, row.p50_px, row.p75_px, row.p95_px)
    return " | ".join(f"{value:.4f}" for value in values if value is not None)


def claims_against(baseline: Scored, candidates: list[Scored]) -> list[str]:
    """Answer both claims; networks are chosen on the validation part, judged on the test part."""
    known = baseline.row.mean_px or np.inf
    fitting = [c for c in candidates if c.parameters <= baseline.parameters]
    small = [c for c in fitting if c.parameters <= (1 - FEWER_PARAMETERS) * baseline.parameters]
    answers = []
    for wanted, among in (("lower error", fitting), ("fewer parameters", small)):
        if not among:
            answers.append(f"* **{baseline.name}, {wanted}: no**, no network is small enough.")
            continue
        best = min(among, key=lambda c: c.validation_px)
        gain = 1 - (best.row.mean_px or np.inf) / known
        saved = 1 - best.parameters / baseline.parameters
        reached = gain >= (LOWER_ERROR if wanted == "lower error" else 0)
        answers.append(
            f"* **{baseline.name}, {wanted}: {'yes' if reached else 'no'}**, {best.name} has "
            f"{abs(gain):.1%} {'lower' if gain >= 0 else 'higher'} error with {saved:.1%} fewer "
            "parameters."
        )
    return answers


if __name__ == "__main__":
    main()
