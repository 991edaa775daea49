"""The page of what `equal_fronts.py` trained: the paper's two claims, a table and a figure.

python host/equal_fronts_page.py runs/fronts-ruby-steps.jsonl PEAKS --output docs/results
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np

from edgexnas.host import PeakDataset, classical_rows

LOWER_ERROR, FEWER_PARAMETERS = 0.31, 0.8757
RECIPES = ("measured", "drawn")
BASELINE = "BraggNN"
COLOURS = dict(zip(RECIPES, ("tab:gray", "tab:blue"), strict=True))
MARKERS = {"mlpBragg": "o", "mlpBraggSymmetric": "D", "cnnBragg": "^", "BraggNN": "s"}


def kind_of(network: str) -> str:
    """Take the kind of a network, with a marker of its own, from its name."""
    return network.split()[0]


@dataclass(frozen=True)
class Run:
    """One trained network."""

    network: str
    recipe: str
    seed: int
    rate: float
    parameters: int
    validation_px: float
    test: dict[str, float]
    seconds: float
    device: str
    steps: int
    batch: int


@dataclass(frozen=True)
class Entry:
    """A network trained one way, at its best rate, over the seeds."""

    network: str
    recipe: str
    parameters: int
    rate: float
    validation_px: float
    test: tuple[float, ...]

    @property
    def test_px(self) -> float:
        """Mean over the seeds."""
        return float(np.mean(self.test))


def entries_of(runs: list[Run]) -> dict[tuple[str, str], Entry]:
    """Choose the rate of each network and recipe by the validation part."""
    chosen: dict[tuple[str, str], Entry] = {}
    key = lambda run: (run.network, run.recipe, run.rate)  # noqa: E731
    for (network, recipe, rate), group in itertools.groupby(sorted(runs, key=key), key):
        same = list(group)
        entry = Entry(
            network, recipe, same[0].parameters, rate,
            float(np.mean([run.validation_px for run in same])),
            tuple(run.test["error"] for run in same),
        )  # fmt: skip
        known = chosen.get((network, recipe))
        if known is None or entry.validation_px < known.validation_px:
            chosen[network, recipe] = entry
    return chosen


def write_page(record: Path, peaks: Path, output: Path) -> None:
    """Write the page, and its figure beside it."""
    made, *rest = (json.loads(line) for line in record.read_text(encoding="utf-8").splitlines())
    runs, title = [Run(**line) for line in rest], record.stem
    name = title.removeprefix("fronts-").rpartition("-")[0]
    dataset = PeakDataset.load(peaks)
    split = dataset.split()
    chosen = entries_of(runs)
    draw(output / f"{title}.png", chosen)
    header = "| network | parameters |" + "".join(
        f" {recipe}: rates | validation | test | of the seeds |" for recipe in RECIPES
    )
    lines = [header, "|---" * 10 + "|"]
    sizes = {(entry.parameters, entry.network) for entry in chosen.values()}
    for parameters, network in sorted(sizes):
        cells = []
        for recipe in RECIPES:
            entry = chosen.get((network, recipe))
            if entry is None:
                cells.append(" | | | ")
                continue
            rates = sorted(
                {r.rate for r in runs if (r.network, r.recipe) == (network, recipe)},
                key=lambda rate: (rate != entry.rate, rate),
            )
            tried = f"**{rates[0]:g}**" + "".join(f", {rate:g}" for rate in rates[1:])
            cells.append(
                f"{tried} | {entry.validation_px:.4f} | {entry.test_px:.4f} | "
                f"{min(entry.test):.4f}–{max(entry.test):.4f} ({len(entry.test)})"
            )
        lines.append(f"| {network} | {parameters:,} | {' | '.join(cells)} |")
    lines += [
        f"| {row.name} | | | | {row.mean_px:.4f} | | | | {row.mean_px:.4f} | |"
        for row in classical_rows(dataset, split)
    ]
    against = {"fit": "pseudo-Voigt fit", "truth": "simulated truth"}[dataset.against]
    budget = (
        f"Every network takes {made['steps']:,} steps with batches of {made['batch']}."
        if made["budget"] is None
        else f"Every training may take {made['budget']:g} s of CPU time on one thread."
    )
    (output / f"{title}.md").write_text(
        f"# Fronts of error against size with equal {'time' if made['budget'] else 'steps'}: "
        f"{name}\n\n"
        f"`{made['command']}`, on {made['hardware']}.\n\n"
        f"{len(split.train)} measured patches train, alone or with {made['drawn']:,} synthetic "
        f"ones (\"drawn\"); {len(split.test)} from other frames test; "
        f"mean distances to the {against} in px. {budget} "
        "Means over seeds; rates, networks and recipes are chosen by validation.\n\n"
        f"Goals: at least {LOWER_ERROR:.0%} lower error at no more parameters, and at least "
        f"{FEWER_PARAMETERS:.2%} fewer parameters at no higher error.\n\n"
        + "\n".join(claims_of(chosen))
        + "\n\n"
        + "\n".join(lines)
        + f"\n\n![error against size]({title}.png)\n",
        encoding="utf-8",
    )  # fmt: skip


def claims_of(chosen: dict[tuple[str, str], Entry]) -> list[str]:
    """Answer the paper's two claims for each BraggNN and space.

    Recipes, and the network of a space, are chosen on the validation part.
    """
    lines = []
    for name in dict.fromkeys(e.network for e in chosen.values() if kind_of(e.network) == BASELINE):
        baseline = preferred(e for e in chosen.values() if e.network == name)
        for space in MARKERS:
            ours = [
                e
                for e in chosen.values()
                if kind_of(e.network) == space != BASELINE and "centroid" not in e.network
            ]
            fitting = [e for e in ours if e.parameters <= baseline.parameters]
            few = (1 - FEWER_PARAMETERS) * baseline.parameters
            small = [e for e in fitting if e.parameters <= few]
            for wanted, rivals, goal in (
                ("lower error", fitting, LOWER_ERROR), ("fewer parameters", small, 0.0),
            ):  # fmt: skip
                if not rivals:
                    continue
                best = preferred(rivals)
                gain = 1 - best.test_px / baseline.test_px
                saved = 1 - best.parameters / baseline.parameters
                lines.append(
                    f"| {name} ({baseline.recipe}) | {wanted} | {best.network} ({best.recipe}) | "
                    f"{'**yes**' if gain >= goal else 'no'} | {-gain:+.1%} | {-saved:+.1%} |"
                )
    return [
        "| against | goal | network | reached | error | parameters |", "|---" * 6 + "|", *lines
    ]  # fmt: skip


def preferred(entries: Iterable[Entry]) -> Entry:
    """Choose by the validation part."""
    return min(entries, key=lambda entry: entry.validation_px)


def draw(path: Path, chosen: dict[tuple[str, str], Entry]) -> None:
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    for recipe, colour in COLOURS.items():
        for kind, marker in MARKERS.items():
            entries = sorted(
                (
                    e
                    for e in chosen.values()
                    if e.recipe == recipe
                    and kind_of(e.network) == kind
                    and "centroid" not in e.network
                ),
                key=lambda entry: entry.parameters,
            )
            if not entries:
                continue
            axes.plot(
                [entry.parameters for entry in entries], [entry.test_px for entry in entries],
                marker=marker, linestyle="-" if kind.startswith("mlp") else "none", color=colour,
                label=f"{kind}, {recipe}",
            )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="parameters", ylabel="test error, px")
    axes.grid(alpha=0.3, which="both")
    if axes.lines:
        figure.legend(loc="outside upper center", ncols=3, fontsize="small")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("record", type=Path, help="what equal_fronts.py left in its --runs")
    parser.add_argument("peaks", type=Path, help="the labelled peaks that it was given")
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    write_page(options.record, options.peaks, options.output)


if __name__ == "__main__":
    main()
