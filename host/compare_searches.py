"""Figure 2 redone: search strategies on real trainings, from the same initial points.

    python host/compare_searches.py PEAKS --runs runs/figure2 --output docs/results

Every strategy searches mlpBragg for four objectives with every seed: error, quantile loss,
parameters, and the latency that the cost model estimates, which goes with the number of layers more
than with that of parameters. A strategy's runs differ from another's of the same seed only in what
is proposed after the shared initial points. Runs that exist are continued, so the comparison can be
stopped and taken up again.
"""

from __future__ import annotations

import argparse
import itertools
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from scipy.stats import wilcoxon

from edgexnas.demo.markdown import hardware
from edgexnas.host import SPACES, SearchResult, optimize
from edgexnas.host.measuring.objectives import Objective, hypervolume_curve
from edgexnas.host.reporting.figures import hypervolume_figure, save_figure

STRATEGIES: dict[str, tuple[str, dict[str, object]]] = {
    "DeepHyper CBO, GP + UCB": ("cbo", {"surrogate": "GP"}),
    "DeepHyper CBO, extra trees + UCBd": ("cbo", {"surrogate": "ET"}),
    "Optuna TPE": ("optuna-tpe", {}),
    "Optuna NSGA-II": ("optuna-nsga2", {}),
    "random": ("random", {}),
}
SPACE = SPACES["mlpBragg"].narrow(units=(1, 256), layers=(1, 6), epochs=(1, 30))

# The scale on which hypervolumes are compared: from what nothing reaches to what a constant has.
SCALE = tuple(
    Objective(name, kind, "", best, worst, "")  # type: ignore[arg-type]
    for name, kind, best, worst in (
        ("error", "learned", 0.005, 0.5),
        ("quantile_loss", "learned", 0.001, 0.1),
        ("parameters", "exact", 1e2, 1e6),
        # The space's networks take 0.161 to 0.171 ms by the estimate, most of it overhead.
        ("latency", "measured", 0.158, 0.175),
    )
)
MARKS = (25, 50, 100)


def run(job: tuple[str, int, Path, Path, int]) -> tuple[str, int]:
    """Run one strategy with one seed in this process."""
    import torch

    torch.set_num_threads(1)
    name, seed, peaks, folder, evaluations = job
    search, options = STRATEGIES[name]
    optimize(
        "bragg",
        data=peaks,
        space=SPACE,
        objectives=[objective.name for objective in SCALE],
        measure="model",
        search=search,
        search_options=options,
        max_evals=evaluations,
        evaluator="serial",
        seed=seed,
        output=place(folder, name, seed),
        resume=True,
        progress=False,
    )
    return name, seed


def place(folder: Path, name: str, seed: int) -> Path:
    letters = "".join(letter if letter.isalnum() else "-" for letter in name)
    return folder / f"{letters}-{seed}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peaks", type=Path, help="labelled peaks, from `edgexnas label`")
    parser.add_argument("--runs", type=Path, default=Path("runs/figure2"))
    parser.add_argument("--evaluations", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    # Seeds go first, so that a comparison that is stopped early still compares like with like.
    jobs = [
        (name, seed, options.peaks, options.runs, options.evaluations)
        for seed, name in itertools.product(range(options.seeds), STRATEGIES)
    ]
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        for name, seed in pool.map(run, jobs):
            print(f"{name}, seed {seed}: done", flush=True)
    curves = {
        name: [curve(place(options.runs, name, seed)) for seed in range(options.seeds)]
        for name in STRATEGIES
    }
    save_figure(hypervolume_figure(curves), options.output / "figure2.png")
    text = report(curves, options)
    (options.output / "figure2.md").write_text(text)
    print(text)


def curve(folder: Path) -> list[float]:
    """Hypervolume after each evaluation, on the scale of this comparison."""
    result = SearchResult.load(folder, spaces=(SPACE,))
    rows = [
        {o.name: t.metrics[o.name] for o in SCALE} if t.status == "done" else None
        for t in result.trials
    ]
    return hypervolume_curve(rows, SCALE)


def report(curves: dict[str, list[list[float]]], options: argparse.Namespace) -> str:
    marks = [mark for mark in MARKS if mark <= options.evaluations]
    final = {name: np.array([c[-1] for c in seeds]) for name, seeds in curves.items()}
    lines = [
        "| search | " + " | ".join(f"after {mark}" for mark in marks) + " | beats random | "
        "p against random | p against CBO, GP |",
        "|---" * (len(marks) + 4) + "|",
    ]
    default = next(iter(final))
    for name, seeds in sorted(curves.items(), key=lambda item: -final[item[0]].mean()):
        cells = []
        for mark in marks:
            values = np.array([c[mark - 1] for c in seeds])
            cells.append(f"{values.mean():.4f} ± {values.std(ddof=1):.4f}")
        wins = int((final[name] > final["random"]).sum())
        cells.append("" if name == "random" else f"{wins}/{len(seeds)}")
        cells += [p_value(final[name], final["random"]), p_value(final[name], final[default])]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return (
        "# Search strategies on real trainings\n\n"
        f"`python host/compare_searches.py {options.peaks.name} --evaluations "
        f"{options.evaluations} --seeds {options.seeds}`\n\n"
        f"{options.evaluations} evaluations of mlpBragg, {options.seeds} seeds, on {hardware()}. "
        "Hypervolume (mean ± standard deviation over seeds) in the logarithms of the objectives; "
        "larger is better. p: two-sided Wilcoxon signed-rank test over seeds, "
        f"not corrected for multiple tests; it cannot fall below {2 / 2**options.seeds:.2g}.\n\n"
        + "\n".join(lines)
        + "\n\n![hypervolume against evaluations](figure2.png)\n"
    )


def p_value(one: np.ndarray, other: np.ndarray) -> str:
    return "" if np.array_equal(one, other) else f"{wilcoxon(one, other).pvalue:.3f}"


if __name__ == "__main__":
    main()
