"""Searches replayed on recorded learning curves: today's way, the ladder, and other samplers.

    python host/replay_searches.py docs/results/curves-ruby.json --output docs/results

The curves, from `record_curves.py`, are a table of networks with their validation error after each
slot of a ladder of times. A search asks its strategy as in earnest; a proposal stands for the
nearest network of its space in the table, and its training costs the recorded CPU time and nothing
else. Searches are sequential here: one worker.

With ``--runs`` the page ends with real searches beside, run folders named by their strategy:

    edgexnas optimize bragg --data PEAKS --budget 2min --seed 0 --search NAME --output RUNS/NAME

*Before* trains every network once for the epochs that are proposed, between 1 and 1000 on the
measured patches; its error is interpolated between the recorded times, and what would take longer
than the record counts, and costs, as long as the record. *Ladder* is `optimize(..., budget=...)`
without finalists.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import wilcoxon

from edgexnas.demo.markdown import hardware
from edgexnas.host import SPACES, Configuration, SearchResult, SearchSpace
from edgexnas.host.measuring.objectives import OBJECTIVES, hypervolume
from edgexnas.host.search.budget import TimeShares
from edgexnas.host.search.journal import Trial
from edgexnas.host.search.ladder import Ladder, choose_space
from edgexnas.host.search.priors import find_prior
from edgexnas.host.search.strategies import Outcome, Proposal, SearchProblem, make_strategy

OBJECTIVE_NAMES = ("error", "parameters")
TOLD = tuple(OBJECTIVES[name] for name in OBJECTIVE_NAMES)
# The package's scale ends at 0.01 px, which every good network passes.
SCALE = (dataclasses.replace(OBJECTIVES["error"], best=0.001), OBJECTIVES["parameters"])
SHARE = 0.9

BEFORE = ("mlpBraggSymmetric", "mlpBragg", "cnnBragg")
NOW = ("mlpBraggMirrored", "mlpBragg", "cnnBragg")

LADDERS: dict[str, tuple[str, tuple[str, ...], bool]] = {
    "ladder, DeepHyper CBO (the default)": ("cbo", NOW, True),
    "ladder, DeepHyper CBO, no priors": ("cbo", NOW, False),
    "ladder, DeepHyper CBO, spaces of before, no priors": ("cbo", BEFORE, False),
    "ladder, Optuna TPE": ("optuna-tpe", NOW, True),
    "ladder, Optuna GP": ("optuna-gp", NOW, True),
    "ladder, random": ("random", NOW, True),
}

RANDOM = "ladder, random"
SIGNIFICANT = 0.05

Row = dict[str, Any]


class Table:
    """Recorded networks by space."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.slots = [float(s) for s in content["slots_s"]]
        self.ends = list(itertools.accumulate(self.slots))
        self.measured = int(content["measured"])
        self.rows: dict[str, list[Row]] = {}
        for row in content["rows"]:
            # One that diverged at once has no error; a search would drop it.
            self.rows.setdefault(row["space"], []).append(row)

    def nearest(self, space: SearchSpace, wanted: Configuration, used: set[int]) -> int:
        """Return the row that is nearest on the space's own scales, an unused one if any is."""
        rows = self.rows[space.name]
        names = [p.name for p in space.hyperparameters if p.name != "epochs"]

        def distance(place: int) -> float:
            return sum(
                (space[n].to_unit(wanted[n]) - space[n].to_unit(rows[place]["configuration"][n]))
                ** 2
                for n in names
            )

        free = [place for place in range(len(rows)) if place not in used]
        return min(free or range(len(rows)), key=distance)

    def error(self, row: Row, seconds: float) -> float:
        """Error after a training of some length, between the recorded ones on both logarithms."""
        errors = [min(max(s["validation_px"], 1e-4), 1.0) for s in row["slots"]]
        if not errors:
            return 1.0
        ends = np.log(self.ends[: len(errors)])
        at = math.log(max(seconds, 1e-3))
        if at < ends[0] and len(errors) > 1:
            slope = (math.log(errors[1]) - math.log(errors[0])) / (ends[1] - ends[0])
            return min(1.0, math.exp(math.log(errors[0]) + min(slope, 0) * (at - ends[0])))
        return float(np.exp(np.interp(at, ends, np.log(errors))))

    def step_seconds(self, row: Row) -> float:
        """Seconds of a step, from the longest slot."""
        slot = len(row["slots"]) - 1
        return self.slots[slot] / max(row["slots"][slot]["steps"], 1) if slot >= 0 else 1.0


Curve = list[tuple[float, float]]
"""Training time spent, hypervolume."""


def followed(results: Iterator[tuple[float, dict[str, float]]], until: float) -> Curve:
    """Hypervolume after each training until a time is spent."""
    spent, rows, curve = 0.0, [], []
    for seconds, metrics in results:
        spent += seconds
        if spent > until:
            break
        rows.append(metrics)
        curve.append((spent, hypervolume(rows, SCALE)))
    return curve


def before(table: Table, seed: int, evaluations: int) -> Iterator[tuple[float, dict[str, float]]]:
    """Search as `optimize(..., max_evals=...)` does: every network once, spaces in turns."""
    spaces = [SPACES[name] for name in BEFORE]
    strategies = [make_strategy("cbo", SearchProblem(s, 2, seed)) for s in spaces]
    for number in range(evaluations):
        space, strategy = spaces[number % 3], strategies[number % 3]
        proposal = strategy.ask()
        wanted = proposal.configuration
        row = table.rows[space.name][table.nearest(space, wanted, set())]
        steps = int(wanted["epochs"]) * max(1, table.measured // int(wanted["batch_size"]))
        seconds = min(steps * table.step_seconds(row), table.ends[-1])
        metrics = {"error": table.error(row, seconds), "parameters": float(row["parameters"])}
        values = tuple(o.position(metrics[o.name]) for o in TOLD)
        strategy.tell(proposal.number, Outcome(wanted, values))
        yield seconds, metrics


def ladder(
    table: Table, seed: int, kind: tuple[str, tuple[str, ...], bool], until: float
) -> Iterator[tuple[float, dict[str, float]]]:
    """Search as `optimize(..., budget=...)` does before its finalists."""
    search, names, with_priors = kind
    shares = TimeShares(until * 2, tuple(table.slots), until, until * 2, 0.0)
    rungs = Ladder(shares, TOLD, 1)
    spaces = {name: SPACES[name].narrow(epochs=1000) for name in names}
    strategies = {
        name: make_strategy(search, SearchProblem(
            space, 2, seed, prior=find_prior(space) if with_priors else None))
        for name, space in spaces.items()
    }  # fmt: skip
    trials: dict[int, Trial] = {}
    proposals: dict[int, Proposal] = {}
    rows: dict[int, tuple[Row, int]] = {}
    used: dict[str, set[int]] = {name: set() for name in names}
    spent = 0.0
    while (job := rungs.next(trials, 1, spent)) is not None:
        number = len(trials)
        if job.parent is None:
            rng = random.Random(f"{seed}/{len(trials)}")
            name = choose_space(list(trials.values()), names, rng)
            proposals[number] = strategies[name].ask()
            place = table.nearest(spaces[name], proposals[number].configuration, used[name])
            used[name].add(place)
            rows[number] = table.rows[name][place], 0
        else:
            name = trials[job.parent].space
            proposals[number] = proposals[job.parent]
            rows[number] = rows[job.parent][0], rows[job.parent][1] + 1
        row, rung = rows[number]
        slots = row["slots"]
        # Training on keeps the best weights; what diverged has none.
        known = slots[: rung + 1] if rung < len(slots) else []
        error = min((s["validation_px"] for s in known), default=1.0)
        metrics = {"error": min(error, 1.0), "parameters": float(row["parameters"])}
        if known:
            metrics["steps"] = float(known[-1]["steps"])
        trials[number] = Trial(
            number, name, proposals[number].configuration, "done", metrics=metrics, order=number,
            slot_s=job.seconds, parent=job.parent,
        )  # fmt: skip
        values = tuple(o.position(metrics[o.name]) for o in TOLD)
        strategies[name].tell(
            proposals[number].number,
            Outcome(proposals[number].configuration, values,
                    fidelity=rungs.fidelity(job.seconds)),
        )  # fmt: skip
        spent += job.seconds
        yield job.seconds, metrics


def time_to(curve: Curve, level: float) -> float:
    """Training time until a hypervolume; infinite if it is not reached."""
    return next((spent for spent, reached in curve if reached >= level), math.inf)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("curves", type=Path, help="JSON of record_curves.py")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--evaluations", type=int, default=100, help="of the search of before")
    parser.add_argument("--only", action="append", help="a ladder by name; repeatable")
    parser.add_argument("--append", action="store_true", help="add ladders to what there is")
    parser.add_argument("--runs", type=Path, help="real searches, for the page alone")
    parser.add_argument("--where", default=hardware(), help="where these ran")
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    if options.runs is not None:
        add_runs(options.output, options.runs, options.where)
        return
    recorded = json.loads(options.curves.read_text())
    table = Table(recorded)
    rows: list[dict[str, Any]] = []
    place = options.output / "search-replay.json"
    known = json.loads(place.read_text())["seeds"] if options.append else []
    for seed in range(options.seeds):
        if seed < len(known):
            row = known[seed]
        else:
            old = followed(before(table, seed, options.evaluations), math.inf)
            row = {
                "seed": seed, "before_s": round(old[-1][0], 1),
                "before_final": round(old[-1][1], 4),
                "before_90_s": round(time_to(old, SHARE * old[-1][1]), 2), "ladders": {},
            }  # fmt: skip
        total, final = row["before_s"], row["before_final"]
        for name, kind in LADDERS.items():
            if name in row["ladders"] or (options.only and name not in options.only):
                continue
            began = time.process_time()
            curve = followed(ladder(table, seed, kind, total / 3), total / 3)
            row["ladders"][name] = {
                "to_90_s": round(time_to(curve, SHARE * final), 2),
                "final": round(curve[-1][1], 4),
                "at_tenth": round(max((h for s, h in curve if s <= total / 10), default=0.0), 4),
                "asking_s": round(time.process_time() - began, 1),
            }
        rows.append(row)
        print(json.dumps(row), flush=True)
    names = [name for name in LADDERS if all(name in row["ladders"] for row in rows)]
    summary = {name: summed(rows, name) for name in names}
    content = {
        "command": f"python host/replay_searches.py {options.curves.name} --seeds "
        f"{options.seeds} --evaluations {options.evaluations}",
        "networks": sum(len(rows) for rows in table.rows.values()),
        "evaluations": options.evaluations,
        "hardware": hardware(), "recorded_on": recorded["hardware"], "summary": summary,
        "seeds": rows,
    }  # fmt: skip
    place.write_text(json.dumps(content, indent=1) + "\n")
    (options.output / "search-replay.md").write_text(page(content))


def add_runs(output: Path, runs: Path, where: str) -> None:
    """Add real searches to the page that there is."""
    place = output / "search-replay.json"
    content = json.loads(place.read_text())
    rows = []
    for folder in sorted(path.parent for path in runs.glob("*/journal.jsonl")):
        result = SearchResult.load(folder)
        metrics = [t.metrics for t in result.trials if t.status == "done"]
        best = result.best("int8_error")
        rows.append({
            "search": folder.name, "budget_s": result.description["budget"],
            "trainings": len(result.trials), "int8_error": best.metrics["int8_error"],
            "parameters": int(best.metrics["parameters"]),
            "hypervolume": round(hypervolume(metrics, result.objectives), 4),
        })  # fmt: skip
    content["runs"] = {"where": where, "rows": rows}
    place.write_text(json.dumps(content, indent=1) + "\n")
    (output / "search-replay.md").write_text(page(content))


def summed(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Compare one ladder with the search of before over all seeds."""
    shares = np.array([r["ladders"][name]["to_90_s"] / r["before_s"] for r in rows])
    # A ladder that never gets there has taken all of its third.
    differences = np.minimum(shares, 1.0) - 0.1
    test = wilcoxon(differences, alternative="less") if len(rows) > 1 else None
    return {
        "median_share": float(np.median(shares)),
        "worst_share": float(shares.max()),
        "within_a_tenth": int((shares <= 0.1).sum()),
        "p": None if test is None else float(test.pvalue),
        "at_tenth": float(np.mean([r["ladders"][name]["at_tenth"] / r["before_final"]
                                   for r in rows])),
    }  # fmt: skip


def samplers_compared(rows: list[dict[str, Any]]) -> str:
    """Say whether any sampler needs another time than random proposals on the same ladder."""
    differ, alike = [], []
    for name, kind in LADDERS.items():
        same_but_sampler = kind[1:] == LADDERS[RANDOM][1:] and name != RANDOM
        if not same_but_sampler or not all(row["ladders"].keys() >= {name, RANDOM} for row in rows):
            continue
        # As in `summed`: one that never gets there has taken all of its time.
        shares = np.minimum(
            [[r["ladders"][n]["to_90_s"] / r["before_s"] for n in (name, RANDOM)] for r in rows], 1
        )
        change = shares[:, 0] - shares[:, 1]
        p = float(wilcoxon(change).pvalue) if change.any() else 1.0
        sampler = name.removeprefix("ladder, ").removesuffix(" (the default)")
        if p >= SIGNIFICANT:
            alike.append(f"{sampler} (p = {p:.2g})")
            continue
        kind_of = "shorter" if change.sum() < 0 else "longer"
        differ.append(f"{kind_of} for {sampler} (p = {p:.2g})")
    if not differ and not alike:
        return "Random proposals are not among these searches."
    parts = [f"the time is {', '.join(differ)}"] if differ else []
    parts += [f"no difference was found for {', '.join(alike)}"] if alike else []
    return (
        f"Against random proposals {'; '.join(parts)}: two-sided Wilcoxon signed-rank "
        f"tests over {len(rows)} seeds."
    )


def page(content: dict[str, Any]) -> str:
    rows, seeds = content["seeds"], len(content["seeds"])
    lines = [
        "# Searches replayed on recorded learning curves", "",
        f"`{content['command']}`, on {content['hardware']}; curves by `host/record_curves.py` in "
        f"`curves-ruby.json`, on {content['recorded_on']}.", "",
        f"{content['networks']} recorded networks, the best ones of earlier runs, which a search "
        "with priors asks for first, among them. Before: "
        f"{content['evaluations']} networks, each "
        "trained once as in 0.2.0, in "
        f"{min(r['before_s'] for r in rows):.0f} to {max(r['before_s'] for r in rows):.0f} s of "
        "training. Hypervolume in the logarithms of error (1 to 0.001 px) and "
        "parameters. p: one-sided Wilcoxon signed-rank test over the seeds that the share of "
        "training time is below a tenth.", "",
        "| search | training time to 90 % of the final hypervolume of before: median | worst | "
        "within a tenth | p | hypervolume at a tenth of the time |",
        "|---|---|---|---|---|---|",
        *(
            f"| {name} | {s['median_share']:.1%} | "
            + (f"{s['worst_share']:.1%}" if math.isfinite(s["worst_share"]) else "not reached")
            + f" | {s['within_a_tenth']}/{seeds} | "
            + (f"{s['p']:.3g}" if s["p"] is not None else "")
            + f" | {s['at_tenth']:.1%} of the final one before |"
            for name, s in content["summary"].items()
        ),
        "",
        f"{samplers_compared(rows)} Optuna's AutoSampler comes from a hub that could not be "
        "reached.",
        "",
    ]  # fmt: skip
    if "runs" in content:
        runs = content["runs"]["rows"]
        lines += [
            f"One real run each, `optimize bragg --budget {runs[0]['budget_s']:.0f}s --seed 0 "
            f"--search ...`, {content['runs']['where']}; INT8 error on the validation part:", "",
            "| search | trainings | INT8 error, px | parameters | hypervolume |",
            "|---|---:|---:|---:|---:|",
            *(
                f"| {r['search']} | {r['trainings']} | {r['int8_error']:.4f} | "
                f"{r['parameters']:,} | {r['hypervolume']:.3f} |"
                for r in runs
            ),
            "",
        ]  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    main()
