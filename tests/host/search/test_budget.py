"""A budget in time: how it is written, what it is spent on, and what a run keeps to."""

from __future__ import annotations

import io
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgexnas.cli import main
from edgexnas.errors import ConfigurationError
from edgexnas.host.data.peak_dataset import PeakDataset
from edgexnas.host.data.ptycho_dataset import PtychoDataset
from edgexnas.host.exporting.quantisation_aware import rounded_error
from edgexnas.host.measuring.objectives import OBJECTIVES
from edgexnas.host.networks.search_space import ModelSize
from edgexnas.host.networks.spaces import SPACES
from edgexnas.host.search.budget import SLOT_FACTOR, TimeShares, parse_budget
from edgexnas.host.search.evaluation import (
    CALIBRATION_ITEMS,
    EvaluationRequest,
    evaluate,
    evaluation_context,
)
from edgexnas.host.search.journal import Trial
from edgexnas.host.search.ladder import Job, Ladder, ranked
from edgexnas.host.search.optimization import OVERTIME_S, SearchResult, optimize
from edgexnas.host.search.plan import LEAST_STEPS, make_plan
from edgexnas.host.search.priors import Prior, find_prior
from edgexnas.host.search.result import front_of
from edgexnas.host.search.run_folder import checkpoint_path, load_run_dataset
from edgexnas.host.search.step_cost import StepCost
from edgexnas.host.search.strategies import SearchProblem
from edgexnas.host.search.synthetic_data import repeat_measured
from edgexnas.host.training.bragg_criterion import evaluate_model
from edgexnas.host.training.loop import LATER_MAY_ERR, train

TWO = (OBJECTIVES["error"], OBJECTIVES["parameters"])
SMALL = SPACES["mlpBragg"].narrow(units=(2, 16), layers=(1, 2))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30min", 1800), ("2h", 7200), ("1h30min", 5400), ("1 h 30 min", 5400),
     ("0.5h", 1800), ("600", 600), (600, 600), (12.5, 12.5), ("2H", 7200), ("1d", 86400)],
)  # fmt: skip
def test_a_budget_is_seconds_or_text_with_units(text: Any, seconds: float) -> None:
    assert parse_budget(text) == seconds


@pytest.mark.parametrize(
    "wrong", ["", "soon", "9", 5, -60, "30 minuets", "min", "1h30", "-5min", float("nan"),
              float("inf"), True, None, [60]],
)  # fmt: skip
def test_what_is_no_budget_is_rejected_by_its_value(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"budget is .*specify"):
        parse_budget(wrong)


@given(st.floats(10, 1e6))
def test_a_budget_is_divided_within_itself(budget: float) -> None:
    shares = TimeShares.of(budget)
    assert 0 < shares.search_end_s < shares.end_s < budget
    assert shares.slots_s[-1] <= budget / 15 + 1e-3
    assert all(b == pytest.approx(SLOT_FACTOR * a, abs=0.01)
               for a, b in zip(shares.slots_s, shares.slots_s[1:], strict=False))  # fmt: skip
    # Preparation and the first training leave time for more.
    assert shares.preparation_s + shares.slots_s[0] < shares.search_end_s


def done(number: int, error: float, parameters: float, slot: float, **more: Any) -> Trial:
    metrics = {"error": error, "parameters": parameters}
    return Trial(number, "mlpBragg", {}, "done", metrics=metrics, order=number, slot_s=slot, **more)


def ladder(budget: float = 600, workers: int = 2) -> Ladder:
    return Ladder(TimeShares.of(budget), TWO, workers)


def of_steps(number: int, steps: int, slot: float) -> Trial:
    trial = done(number, 0.1, 1000, slot)
    trial.metrics["steps"] = steps
    return trial


@pytest.mark.parametrize(("half", "rung"), [(190, 1), (210, 0)])
def test_new_networks_begin_with_a_longer_slot_where_few_steps_tell_nothing(
    half: int, rung: int
) -> None:
    rungs = ladder()
    slots = rungs.shares.slots_s
    steps = (40, 50, half, half, 900, 1000)
    trials = {n: of_steps(n, each, slots[0]) for n, each in enumerate(steps)}
    # Two of them are too few to say so.
    assert rungs.next({n: trials[n] for n in (0, 1)}, 1, 60.0) == Job("search", slots[0])
    job = rungs.next(trials, 1, 60.0)
    assert job is not None
    assert job.seconds == slots[1]
    # What was trained too briefly does not go on.
    assert (job.parent is None) == (rung == 1)


def test_the_longest_slot_is_the_last_one_to_begin_with() -> None:
    rungs = ladder()
    slots = rungs.shares.slots_s
    trials = {n: of_steps(n, 20, slots[n // 6]) for n in range(6 * len(slots))}
    assert rungs.next(trials, 1, 60.0) == Job("search", slots[-1])


def test_the_best_third_goes_on_and_small_networks_are_among_it() -> None:
    rungs = ladder()
    first = rungs.shares.slots_s[0]
    # Number 4 errs three times as much as number 0 and is a hundred times smaller.
    errors = [(0.01, 50_000), (0.02, 60_000), (0.03, 70_000), (0.04, 80_000), (0.03, 500),
              (0.2, 90_000)]  # fmt: skip
    trials = {n: done(n, e, p, first) for n, (e, p) in enumerate(errors)}
    chosen = []
    for number in (6, 7):
        job = rungs.next(trials, 1, 60.0)
        assert job is not None
        assert job.parent is not None
        assert job.seconds == rungs.shares.slots_s[1]
        chosen.append(job.parent)
        trials[number] = Trial(number, "mlpBragg", {}, slot_s=job.seconds, parent=job.parent)
    assert chosen == [0, 4]
    # Two of six went on; a third one only when more have had their first slot.
    job = rungs.next(trials, 2, 60.0)
    assert job is not None
    assert (job.parent, job.repeats, job.seconds) == (None, None, first)


def test_what_errs_much_more_does_not_go_on_however_small_it_is() -> None:
    rungs = ladder()
    first = rungs.shares.slots_s[0]
    trials = {n: done(n, 0.01, 5000, first) for n in range(5)}
    # On the front, because nothing is smaller.
    trials[5] = done(5, 0.05, 10, first)
    going_on = []
    while (job := rungs.next(trials, 1, 10.0)) is not None and job.parent is not None:
        going_on.append(job.parent)
        number = len(trials)
        trials[number] = replace(done(number, 0.01, 5000, job.seconds), parent=job.parent)
    assert going_on
    assert 5 not in going_on


def test_nothing_starts_that_would_end_after_the_search() -> None:
    rungs = ladder()
    first, second = rungs.shares.slots_s[:2]
    trials = {n: done(n, 0.01 * (n + 1), 1000, first) for n in range(3)}
    end = rungs.shares.search_end_s
    job = rungs.next(trials, 1, end - second + 0.1)
    assert job is not None
    assert job.parent is None
    assert rungs.next(trials, 1, end - first + 0.1) is None
    assert not rungs.finals_began


@pytest.mark.parametrize(
    ("workers", "shares"),
    [(1, [0.5, 0.25, 0.25]), (2, [1, 0.5, 0.5]), (3, [1] * 3), (4, [1] * 4), (16, [1] * 16)],
)
def test_the_best_finalist_has_a_worker_to_itself_and_spare_ones_train_anew(
    workers: int, shares: list[float]
) -> None:
    rungs = ladder(workers=workers)
    slots = rungs.shares.slots_s
    trials = {n: done(n, 0.005 * 1.2**n, 60_000 / 3**n, slots[-1]) for n in range(3)}
    # The smallest of all errs four times as much as the best.
    trials[3] = done(3, 0.0201, 50, slots[-1])
    jobs = []
    while (job := rungs.next(trials, 0, 300.0)) is not None:
        jobs.append(job)
    left = rungs.shares.end_s - 300.0
    assert [job.seconds / left for job in jobs] == pytest.approx(shares)
    assert {job.stage for job in jobs} == {"final"}
    assert [job.parent for job in jobs[:3]] == [0, 2, 1]
    assert [job.repeats for job in jobs[3:]] == [[0, 2, 1][n % 3] for n in range(len(jobs) - 3)]


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("begun", [1, 2])
def test_finalists_of_a_resumed_run_have_the_time_they_would_have_had(
    workers: int, begun: int
) -> None:
    first = ladder(workers=workers)
    trials = {n: done(n, 0.005 * 1.2**n, 60_000 / 3**n, first.shares.slots_s[-1]) for n in range(3)}
    jobs = []
    while (job := first.next(trials, 0, 300.0)) is not None:
        jobs.append(job)
    for number, job in enumerate(jobs[:begun], start=3):
        trials[number] = done(number, 0.004, 60_000, job.seconds, stage="final", parent=job.parent)
    resumed, rest = ladder(workers=workers), []
    while (job := resumed.next(trials, 0, 450.0)) is not None:
        rest.append(job)
    assert [(j.parent, j.repeats) for j in rest] == [(j.parent, j.repeats) for j in jobs[begun:]]
    assert [j.seconds for j in rest] == pytest.approx([j.seconds for j in jobs[begun:]])


@pytest.mark.parametrize("workers", [1, 2])
def test_the_next_best_has_the_time_of_a_finalist_that_failed(workers: int) -> None:
    rungs = ladder(workers=workers)
    trials = {n: done(n, 0.005 * 1.1**n, 60_000 / 2**n, rungs.shares.slots_s[-1]) for n in range(5)}
    first = [rungs.next(trials, 0, 300.0) for _ in range(3)]
    for number, job in enumerate(first, start=5):
        assert job is not None
        trials[number] = done(number, 0.004, 60_000, job.seconds, stage="final", parent=job.parent)
    finalists = {job.parent for job in first if job}
    # All have begun and none has failed.
    assert rungs.next(trials, 0, 400.0) is None
    for failed, number in enumerate((6, 8)):
        trials[number] = Trial(number, "mlpBragg", {}, "failed", reason="diverged", stage="final",
                               parent=trials[number].parent)  # fmt: skip
        for resumed in (rungs, ladder(workers=workers)):
            job = resumed.next(trials, 0, 400.0)
            assert job is not None
            assert (job.stage, job.seconds) == ("final", rungs.shares.end_s - 400.0)
        parent = job.parent
        assert parent == min(set(range(5)) - finalists)
        finalists.add(parent)
        assert rungs.next(trials, 0, rungs.shares.end_s - 0.1) is None
        trials[8 + failed] = done(8 + failed, 0.004, 60_000, 1.0, stage="final", parent=parent)
        # One for each that failed.
        assert rungs.next(trials, 0, 401.0) is None


def test_a_network_that_fails_after_a_late_start_is_followed_by_another() -> None:
    rungs = ladder()
    first, late = rungs.shares.slots_s[0], rungs.shares.search_end_s + 1.0
    trials: dict[int, Trial] = {}
    for number in range(2):
        job = rungs.next(trials, 0, late)
        assert job is not None
        assert (job.stage, job.seconds, job.parent) == ("search", first, None)
        trials[number] = Trial(number, "mlpBragg", {}, slot_s=first)
        # While it runs nothing is begun beside it.
        assert rungs.next(trials, 1, late) is None
        trials[number] = replace(trials[number], status="failed", reason="diverged", order=number)
    trials[2] = done(2, 0.01, 5_000, first)
    job = rungs.next(trials, 0, late)
    assert job is not None
    assert (job.stage, job.parent) == ("final", 2)
    del trials[2]
    assert ladder().next(trials, 0, rungs.shares.end_s - 0.5 * first) is None


def test_a_finalist_beside_the_best_is_much_smaller_and_errs_little_more() -> None:
    rungs = ladder()
    last = rungs.shares.slots_s[-1]
    sizes = [(0.0045, 12_500), (0.005, 5_100), (0.0058, 2_400), (0.0088, 300), (0.0046, 12_000)]
    trials = {n: done(n, e, p, last) for n, (e, p) in enumerate(sizes)}
    jobs = [rungs.next(trials, 0, 300.0) for _ in range(3)]
    assert [job and job.parent for job in jobs] == [0, 2, 1]


def test_the_order_is_best_error_first_then_what_adds_most_hypervolume() -> None:
    positions = [(0.5, 0.5), (0.1, 0.9), (0.9, 0.1), (0.6, 0.6), (0.11, 0.89)]
    assert ranked(positions, 3) == [1, 0, 2]
    assert ranked(positions, 9)[-1] == 3
    assert ranked(positions, 9, front_only=True) == [1, 0, 2, 4]
    assert ranked([(0.3,), (0.2,)], 5) == [1, 0]
    assert ranked([], 2) == []


@given(st.floats(1e-6, 1e-3), st.floats(0, 1e-8), st.floats(1e-13, 1e-10))
def test_step_costs_are_learned_from_measured_ones(a: float, b: float, c: float) -> None:
    cost = StepCost()
    rng = random.Random(0)
    sizes = [ModelSize(rng.randrange(100, 10**6), rng.randrange(100, 10**7)) for _ in range(12)]
    assert cost.predict(sizes[0], 8) is None
    for number, size in enumerate(sizes):
        batch = (8, 32, 128)[number % 3]
        cost.observe(size, batch, a + b * size.parameters + c * size.macs * batch)
    new = ModelSize(40_000, 500_000)
    expected = a + b * new.parameters + c * new.macs * 64
    assert cost.predict(new, 64) == pytest.approx(expected, rel=0.01)


def test_networks_that_could_not_take_enough_steps_are_not_proposed(
    tiny_peaks: PeakDataset, tmp_path: Path
) -> None:
    plan = make_plan(
        "bragg", data=tiny_peaks, space="paper", objectives=("error",), constraints=None,
        search="random", search_options=None, evaluator="serial", workers=None, budget=60,
        synthetic=None, max_evals=None, timeout=None, time_limit_s=None, output=tmp_path / "run",
        resume=False, epochs=None, measure=None, device="cpu", patience=None, signing_key=None,
        seed=0, memory_limit_gb=None, keep_checkpoints="pareto", ray_address=None,
    )  # fmt: skip
    assert [space.name for space in plan.spaces] == ["mlpBragg", "cnnBragg"]
    assert not plan.priors
    cost = StepCost(known=(1e-4, 1e-9, 1e-11))
    for strategy in plan.strategies(cost, first_slot_s=0.5):
        space = strategy.problem.space
        for _ in range(50):
            drawn = strategy.ask().configuration
            step = cost.predict(space.size(drawn), int(drawn["batch_size"]))
            assert step is not None
            assert step * LEAST_STEPS <= 0.5
    # A machine on which no network can: the smallest is left.
    for strategy in plan.strategies(StepCost(known=(1.0, 0, 0)), first_slot_s=0.5):
        assert strategy.ask().configuration == strategy.problem.space.smallest


def test_a_prior_draws_near_good_networks_and_leaves_nothing_out() -> None:
    space = SPACES["mlpBragg"]
    prior = Prior(({"units": 30, "layers": 3, "batch_size": 64, "learning_rate": 0.01},))
    rng = random.Random(0)
    drawn = [prior.sample(space, rng) for _ in range(400)]
    near = [c for c in drawn if 15 <= int(c["units"]) <= 60 and c["batch_size"] == 64]
    assert len(near) > 150
    assert max(int(c["units"]) for c in drawn) > 500
    assert all(space.validate(c) == c for c in drawn)


@pytest.mark.parametrize("name", ["mlpBraggMirrored"])
def test_what_is_shipped_fits_its_space_and_the_narrowed_ones(name: str) -> None:
    prior = find_prior(SPACES[name])
    assert prior is not None
    rng = random.Random(0)
    narrow = SPACES[name].narrow(learning_rate=(1e-3, 1e-2), name="mine")
    narrowed = find_prior(narrow)
    for chosen, space in ((prior, SPACES[name]), (narrowed, narrow)):
        problem = SearchProblem(space, 2, 0, prior=chosen)
        assert all(space.validate(c) == c for c in (problem.draw(rng) for _ in range(50)))


def test_a_search_with_a_prior_begins_with_its_best_networks() -> None:
    space = SPACES["mlpBragg"].narrow(epochs=1000)
    best = {"units": 30, "layers": 3, "batch_size": 64, "learning_rate": 0.01}
    prior = Prior((best, best | {"units": 999}, best | {"units": 5}))
    problem = SearchProblem(space, 2, 0, lambda c: int(c["units"]) < 900, prior)
    points = problem.initial_points(6)
    assert len(points) == 6
    assert points[0] == best | {"epochs": 1000}
    assert points[1] == best | {"epochs": 1000, "units": 5}
    assert all(space.validate(c) == c for c in points)


def test_what_is_shipped_is_what_its_script_makes_of_the_recorded_runs(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[3]
    script, made = root / "host" / "learn_priors.py", tmp_path / "learned.json"
    subprocess.run([sys.executable, script, "learn", "--output", made], check=True)
    assert made.read_text() == (root / "edgexnas/host/search/learned.json").read_text()


def test_finalists_of_a_search_by_int8_error_learn_to_live_with_rounding(
    tiny_peaks: PeakDataset,
) -> None:
    split = tiny_peaks.split()
    context = replace(evaluation_context(tiny_peaks, split, device="cpu"), int8=True)
    space = SPACES["mlpBraggMirrored"]
    configuration = {"units": 8, "layers": 2, "batch_size": 16, "learning_rate": 1e-2, "epochs": 9}
    request = EvaluationRequest(0, space, configuration, seed=0, seconds=1.0)
    first = evaluate(request, context)
    assert first.reason == ""
    going_on = replace(request, weights=first.checkpoint, rounded_share=0.5, seconds=2.0)
    second = evaluate(going_on, context)
    assert second.reason == ""
    assert set(second.metrics) == set(first.metrics)
    # What is said is said of the weights that are kept, which are plain ones.
    assert second.checkpoint is not None
    model = space.build(configuration)
    kept = torch.load(io.BytesIO(second.checkpoint), weights_only=True)["weights"]
    model.load_state_dict(kept)
    data = context.training_data
    error = rounded_error(model.eval(), data, data.train_x[:CALIBRATION_ITEMS])
    assert error == pytest.approx(second.metrics["int8_error"])
    scores = evaluate_model(model, data.validation_x, data.validation_y)
    assert scores["error"] == pytest.approx(second.metrics["error"])


@pytest.mark.parametrize(("int8", "expected"), [(True, 0.5), (False, 1.0)])
def test_where_no_rounding_is_scored_all_of_the_time_is_for_training(
    tiny_peaks: PeakDataset, monkeypatch: pytest.MonkeyPatch, int8: bool, expected: float
) -> None:
    context = replace(evaluation_context(tiny_peaks, tiny_peaks.split(), device="cpu"), int8=int8)
    given: list[float | None] = []

    def spy(*arguments: Any, **options: Any) -> Any:
        given.append(arguments[2].seconds)
        return train(*arguments, **options)

    monkeypatch.setattr("edgexnas.host.training.loop.train", spy)
    configuration = {"units": 4, "layers": 2, "batch_size": 16, "learning_rate": 1e-2, "epochs": 9}
    request = EvaluationRequest(
        0, SPACES["mlpBragg"], configuration, seed=0, seconds=1.0, rounded_share=0.5
    )
    assert evaluate(request, context).reason == ""
    assert given == [expected]


class Ticks:
    """A clock that goes on a little each time that it is read.

    By it a search takes as long on every machine, whatever else that does.
    """

    def __init__(self, tick_s: float = 0.001) -> None:
        self.now, self._tick_s = 0.0, tick_s

    def __call__(self) -> float:
        self.now += self._tick_s
        return self.now


@contextmanager
def ticking(clock: Ticks) -> Iterator[None]:
    """Let searches and trainings read a clock."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic", clock)
        patch.setitem(train.__kwdefaults__, "clock", clock)
        # By this clock a first slot has a hundred steps.
        patch.setattr("edgexnas.host.search.ladder.TELLING_STEPS", 50)
        yield


def budgeted(
    data: PeakDataset | Path, output: Path, clock: Ticks | None = None, **changes: Any
) -> SearchResult:
    options: dict[str, Any] = {
        "space": SMALL, "search": "random", "evaluator": "serial", "budget": 10, "device": "cpu",
        "synthetic": 0,
    }  # fmt: skip
    with ticking(clock or Ticks()):
        return optimize("bragg", **{"data": data, "output": output} | options | changes)


@pytest.fixture(scope="module")
def searched(
    tiny_peaks: PeakDataset, tmp_path_factory: pytest.TempPathFactory
) -> tuple[SearchResult, float]:
    """A search with a budget of 10 s, and how many seconds it took."""
    clock = Ticks()

    def evaluated(wanted: EvaluationRequest, context: Any) -> Any:
        result = evaluate(wanted, context)
        # Scoring and saving take time, too.
        clock.now += 0.2
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgexnas.host.search.evaluators.evaluate", evaluated)
        result = budgeted(tiny_peaks, tmp_path_factory.mktemp("searched") / "run", clock)
    return result, clock.now


def test_a_search_ends_about_when_its_budget_does_and_trains_finalists_on(
    searched: tuple[SearchResult, float],
) -> None:
    result, took_s = searched
    assert took_s < 10 + OVERTIME_S
    table = result.table()
    finals = table[table["stage"] == "final"]
    assert len(finals) >= 2
    assert finals["parent"].notna().all()
    assert set(finals["parent"]) <= set(table[table["stage"] == "search"]["trial"])
    searched = table[table["stage"] == "search"]
    assert searched["slot_s"].max() <= 10 / 15 + 0.01
    assert (searched["seconds"] < searched["slot_s"] + 2).all()
    assert result.best("int8_error").checkpoint is not None
    went_on = searched[searched["parent"].notna()]
    errors = dict(zip(table["trial"], table["error"], strict=True))
    # Training on keeps the best weights, or later ones that err hardly more.
    assert all(row.error <= LATER_MAY_ERR * errors[int(row.parent)] for row in went_on.itertuples())
    again = SearchResult.load(result.folder)
    assert again.best("int8_error").trial == result.best("int8_error").trial


def test_one_network_is_trained_however_long_the_start_took(
    tiny_peaks: PeakDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgexnas.host.search.optimization._BudgetedRun._elapsed", lambda _: 1000.0)
    result = budgeted(tiny_peaks, tmp_path / "run")
    assert [(t.stage, t.status) for t in result.trials] == [("search", "done")]
    assert result.best("int8_error").checkpoint is not None


def test_a_slot_that_is_rounded_for_the_journal_begins(
    tiny_peaks: PeakDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1000 times the first slot of 151 s, 1.007, is less than 1007 in floating point.
    first = TimeShares.of(151).slots_s[0]
    assert math.floor(1000 * first) / 1000 < first
    shares = TimeShares(10.0, (first,), 3.0, 5.0, 0.5)
    monkeypatch.setattr(TimeShares, "of", lambda _: shares)
    assert budgeted(tiny_peaks, tmp_path / "run").trials[0].status == "done"


@pytest.mark.parametrize("lost", [False, True])
def test_a_training_that_had_no_time_to_end_goes_on_from_its_weights_in_an_ended_run(
    tiny_peaks: PeakDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    place = tmp_path / "run"
    run = "edgexnas.host.search.optimization._BudgetedRun"
    with monkeypatch.context() as patched:
        patched.setattr(f"{run}.close", lambda _: None)
        first = budgeted(tiny_peaks, place)
    front = {candidate.trial for candidate in front_of(first.candidates, first.objectives)}
    parent = next(t for t in first.trials if t.status == "done" and t.number not in front)
    number = len(first.trials)
    begun = {
        "event": "start", "trial": number, "space": parent.space, "slot_s": 0.2,
        "configuration": parent.configuration, "stage": "final", "parent": parent.number,
    }  # fmt: skip
    with (place / "journal.jsonl").open("a") as file:
        file.write(json.dumps(begun) + "\n")
    # No time is left: the run ends, and keeps the weights of its front and these.
    monkeypatch.setattr(f"{run}._until_end", lambda _: 0.0)
    budgeted(tiny_peaks, place, resume=True)
    kept = {int(path.stem) for path in (place / "checkpoints").glob("*.pt")}
    assert kept == front | {parent.number}
    if lost:
        checkpoint_path(place, parent.number).unlink()
    seen: list[bool] = []

    def spy(wanted: EvaluationRequest, context: Any) -> Any:
        seen.append(wanted.weights is not None)
        return evaluate(wanted, context)

    monkeypatch.setattr("edgexnas.host.search.evaluators.evaluate", spy)
    # More time on the clock of a session that begins again.
    left = iter([1.0] * 6)
    monkeypatch.setattr(f"{run}._until_end", lambda _: next(left, 0.0))
    again = budgeted(tiny_peaks, place, resume=True)
    assert again.trials[-1].number == number
    assert again.trials[-1].status == "done"
    assert seen == [not lost]
    assert (f"trial {number} trains anew" in (place / "search.log").read_text()) == lost


def test_patterns_are_searched_within_a_budget_too(
    tiny_patterns: PtychoDataset, tmp_path: Path
) -> None:
    with ticking(Ticks(0.005)):
        result = optimize(
            "ptycho", data=tiny_patterns, output=tmp_path / "run", budget=12, search="random",
            space=SPACES["mlpPtycho"].narrow(units=(2, 8), layers=(1, 2)), evaluator="serial",
            device="cpu",
        )  # fmt: skip
    assert max(t.finished for t in result.trials) < 12 + OVERTIME_S
    assert [objective.name for objective in result.objectives] == ["error", "parameters"]


def test_an_export_of_it_says_what_it_does(
    searched: tuple[SearchResult, float], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = searched[0].folder
    assert main(["keys", "generate", "--output", str(tmp_path / "keys"), "--name", "beam"]) == 0
    capfd.readouterr()
    arguments = ["export", str(run), "--output", str(tmp_path / "a.edgex"), "--signing-key",
                 str(tmp_path / "keys" / "beam.key.pem"), "--maximum-loss", "9"]  # fmt: skip
    assert main(arguments) == 0
    told = capfd.readouterr().err
    steps = ["float32 and float16", "quantising it to INT8", "scoring it on the test part"]
    assert [told.count(step) for step in steps] == [1, 1, 1]


def test_a_killed_run_goes_on_with_what_is_left_of_its_budget(
    tiny_peaks: PeakDataset, tmp_path: Path
) -> None:
    data, run = tiny_peaks.save(tmp_path / "peaks.h5"), tmp_path / "run"
    script = (
        "import itertools, os, signal, time\n"
        "from edgexnas.host.search import evaluators\n"
        "from edgexnas.host.search.optimization import optimize\n"
        "from edgexnas.host.networks.spaces import SPACES\n"
        "from edgexnas.host.training.loop import train\n"
        "reads, evaluations, evaluate = itertools.count(), itertools.count(), evaluators.evaluate\n"
        "time.monotonic = train.__kwdefaults__['clock'] = lambda: 0.001 * next(reads)\n"
        "def killed(*given):\n"
        "    if next(evaluations) == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return evaluate(*given)\n"
        "evaluators.evaluate = killed\n"
        "space = SPACES['mlpBragg'].narrow(units=(2, 16), layers=(1, 2))\n"
        f"optimize('bragg', data={str(data)!r}, output={str(run)!r}, space=space, search='random',"
        " evaluator='serial', budget=20, device='cpu', synthetic=0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script])
    assert done.returncode == -signal.SIGKILL
    spent = max(t.finished for t in SearchResult.load(run).trials)
    clock = Ticks()
    result = budgeted(data, run, clock, budget=20, resume=True)
    assert clock.now < 20 - spent + OVERTIME_S
    assert result.kept == 2
    assert {t.stage for t in result.trials} == {"search", "final"}
    with pytest.raises(Exception, match=r"budget 20\.0, not 30"):
        budgeted(data, run, budget=30, resume=True)


@pytest.mark.parametrize(
    "other", [{"max_evals": 5}, {"timeout": 60}, {"epochs": 3}, {"patience": 2},
              {"time_limit_s": 3}, {"search": "hyperband"}],
)  # fmt: skip
def test_a_budget_goes_with_no_other_bound(
    tiny_peaks: PeakDataset, tmp_path: Path, other: dict[str, Any]
) -> None:
    with pytest.raises(ConfigurationError, match="budget"):
        budgeted(tiny_peaks, tmp_path / "run", **other)


def test_bragg_networks_are_compared_with_int8_rounding(
    tiny_peaks: PeakDataset, tmp_path: Path
) -> None:
    result = budgeted(tiny_peaks, tmp_path / "run")
    assert [objective.name for objective in result.objectives] == ["int8_error", "parameters"]
    for candidate in result.candidates:
        # Rounding may help by chance, but not by much.
        assert candidate.metrics["int8_error"] > 0.8 * candidate.metrics["error"]
    best = result.best("int8_error")
    assert best in result.pareto


def test_synthetic_peaks_fill_the_training_part_and_are_kept_for_the_export(
    simulated_peaks: PeakDataset, tmp_path: Path
) -> None:
    before = simulated_peaks.split()
    wanted = len(before.train) + 2000
    result = budgeted(simulated_peaks, tmp_path / "run", budget=None, max_evals=1, epochs=1,
                      synthetic=wanted)  # fmt: skip
    assert result.dataset is not None
    after = result.dataset.split()
    assert len(after.train) == wanted
    for part in ("calibration", "validation", "test"):
        assert len(getattr(after, part)) == len(getattr(before, part))
    again = SearchResult.load(tmp_path / "run")
    assert again.description["data"] == simulated_peaks.digest
    assert (
        load_run_dataset(tmp_path / "run", simulated_peaks.digest).digest == result.dataset.digest
    )


def test_measured_peaks_are_a_fifth_of_what_a_training_sees(tiny_peaks: PeakDataset) -> None:
    measured = evaluation_context(tiny_peaks, tiny_peaks.split())
    own = len(measured.train_x)
    synthetic = np.zeros((40 * own, 1, 11, 11), np.float32)
    filled = replace(
        measured,
        train_x=np.concatenate([measured.train_x, synthetic]),
        train_y=np.concatenate([measured.train_y, np.zeros((40 * own, 2), np.float32)]),
    )
    seen = repeat_measured(filled, measured)
    share = np.mean(seen.train_x.any(axis=(1, 2, 3)))
    assert share == pytest.approx(0.2, abs=0.005)
    assert len(seen.train_y) == len(seen.train_x)
    assert np.array_equal(seen.train_x[-own:], measured.train_x)
    assert seen.validation_x is measured.validation_x


def test_an_interrupt_names_resume_and_lines_tell_what_happens(
    tiny_peaks: PeakDataset, tmp_path: Path
) -> None:
    data = tiny_peaks.save(tmp_path / "peaks.h5")
    command = [sys.executable, "-m", "edgexnas.cli", "optimize", "bragg", "--data", str(data),
               "--output", str(tmp_path / "run"), "--budget", "10min", "--search", "random",
               "--evaluator", "serial"]  # fmt: skip
    # Where a script runs the tests in the background, it lets them ignore this signal.
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=dict(os.environ),
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    ) as process:  # fmt: skip
        try:
            journal = tmp_path / "run" / "journal.jsonl"
            while not journal.exists() or journal.read_bytes().count(b'"start"') < 1:
                assert process.poll() is None
                time.sleep(0.05)
            told: str | None = None
            while told is None:
                # Again, as a user would: Python loses an interrupt that comes while a weak
                # reference ends.
                process.send_signal(signal.SIGINT)
                with suppress(subprocess.TimeoutExpired):
                    _, told = process.communicate(timeout=60)
        finally:
            process.kill()
    # A shell says 130 of both: `python -m` ends by the signal itself where that came while source
    # text ran, such as that of a dataclass that is being made.
    assert process.returncode in {130, -signal.SIGINT}, told
    assert f"continue with: edgexnas {' '.join(command[3:])} --resume" in " ".join(told.split())
    first = json.loads(journal.read_text().splitlines()[0])
    assert first["budget"] == 600
