"""The paper's two claims for ptychography, with seeds: networks against PtychoNN in equal time.

    python host/ptycho_accuracy.py star train --scan siemens-star-small.npz.bz2 --device cuda \
        --networks PtychoNN cnnPtycho-64-6-6-6 ... --seconds 120 --no-fine-tune --seed 0
    python host/ptycho_claims.py "the star=runs/star" "simulated scans=runs/simulated" \
        --hardware "..." --command "..." --page docs/results/ptycho-claims.md

The networks are chosen by the mean of their validation errors over the seeds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from ptycho_accuracy import BASELINE, LOWER_ERROR, SMALLER, Trained, trained

T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}
"""Two-sided 95 % quantile of Student's t by the number of seeds."""


def gathered(runs: Path) -> dict[str, list[Trained]]:
    """Gather the records of each network, one for each seed that all of them have."""
    folders = [runs, *sorted(runs.glob("seed-*"))]
    rows = [{network.name: network for network in trained(folder)} for folder in folders]
    names = set.intersection(*(set(row) for row in rows))
    return {name: [row[name] for row in rows] for name in sorted(names)}


def interval(values: list[float]) -> tuple[float, float]:
    """Mean of paired values and half the width of its 95 % interval."""
    if len(values) not in T_95:
        return mean(values), float("nan")
    return mean(values), T_95[len(values)] * float(np.std(values, ddof=1)) / len(values) ** 0.5


def claims(found: dict[str, list[Trained]]) -> list[dict[str, Any]]:
    """Answer both claims by the networks that validation chooses."""
    baseline = found[BASELINE]
    size = baseline[0].parameters
    answers = []
    for claim, largest, wanted in (
        ("lower error at no more parameters", size, -LOWER_ERROR),
        ("fewer parameters at no higher error", (1 - SMALLER) * size, 0.0),
    ):
        fitting = {n: r for n, r in found.items() if n != BASELINE and r[0].parameters <= largest}
        if not fitting:
            continue
        name = min(fitting, key=lambda n: mean(r.validation_rad for r in fitting[n]))
        change, half = interval(
            [r.test_rad / b.test_rad - 1 for r, b in zip(fitting[name], baseline, strict=True)]
        )
        answers.append({
            "claim": claim, "network": name, "parameters": fitting[name][0].parameters,
            "smaller": 1 - fitting[name][0].parameters / size, "error": change, "interval": half,
            "reached": bool(change + half <= wanted), "mean_reached": bool(change <= wanted),
        })  # fmt: skip
    return answers


def page(whole: dict[str, Any]) -> str:
    """Write of each case the table of all networks, then both answers."""
    lines = [
        "# The paper's two claims for ptychography", "",
        f"{whole['command']}, on {whole['hardware']}. Held-out quarters, phase error in rad; "
        "answers with 95 % intervals over the seeds.",
    ]  # fmt: skip
    for case, content in whole["cases"].items():
        lines += [
            "", f"## {case[0].upper()}{case[1:]}, {content['seeds']} seeds", "",
            "| network | parameters | steps | validation | test (least–most) |",
            "|---|---:|---:|---:|---:|",
        ]  # fmt: skip
        for name, row in content["networks"].items():
            lines.append(
                f"| {name} | {row['parameters']:,} | {mean(row['steps']):,.0f} | "
                f"{mean(row['validation_rad']):.4f} | {mean(row['test_rad']):.4f} "
                f"({min(row['test_rad']):.4f}–{max(row['test_rad']):.4f}) |"
            )
        lines.append("")
        for answer in content["claims"]:
            told = "yes" if answer["reached"] else "by the mean" if answer["mean_reached"] else "no"
            lines.append(
                f"* **{answer['claim']}: {told}**; {answer['network']}, {answer['smaller']:.1%} "
                f"fewer parameters, error {answer['error']:+.1%} ± {answer['interval']:.1%}."
            )
    goals = f"{LOWER_ERROR:.2%} lower error, {SMALLER:.2%} fewer parameters"
    return "\n".join([*lines, "", f"The paper's figures: {goals}.", ""])


def case_of(runs: Path) -> dict[str, Any]:
    """Gather what one run folder says."""
    found = gathered(runs)
    kept = ("steps", "validation_rad", "test_rad", "seconds")
    by_size = sorted(found.items(), key=lambda item: item[1][0].parameters)
    return {
        "seeds": len(found[BASELINE]),
        "networks": {
            name: {"parameters": rows[0].parameters}
            | {key: [round(getattr(row, key), 5) for row in rows] for key in kept}
            for name, rows in by_size
        },
        "claims": claims(found),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="+", metavar="NAME=RUNS", help="of ptycho_accuracy.py")
    parser.add_argument("--hardware", required=True)
    parser.add_argument("--command", required=True, help="how the networks were trained")
    parser.add_argument("--page", type=Path, required=True, help="Markdown, and JSON beside it")
    options = parser.parse_args()
    cases = dict(case.split("=", 1) for case in options.cases)
    whole = {
        "command": options.command, "hardware": options.hardware,
        "cases": {name: case_of(Path(runs)) for name, runs in cases.items()},
    }  # fmt: skip
    options.page.with_suffix(".json").write_text(json.dumps(whole, indent=1) + "\n")
    options.page.write_text(page(whole))


if __name__ == "__main__":
    main()
