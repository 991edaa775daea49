"""Search strategies: what they share, and what is particular to each."""

from __future__ import annotations

import math
import statistics

import pytest

from edgexnas.errors import ConfigurationError
from edgexnas.host.networks.spaces import SPACES, Choice, Configuration
from edgexnas.host.search.strategies import (
    STRATEGIES,
    Outcome,
    SearchProblem,
    Strategy,
    make_strategy,
)
from edgexnas.host.search.strategies.evolution import crowding_distance, front_ranks

SPACE = SPACES["mlpBragg"].narrow(epochs=(1, 9))
LIMIT = 5000
BUDGET = 14
QUICK = {"cbo": {"candidates": 300}}


def problem(seed: int = 0, *, objectives: int = 2) -> SearchProblem:
    return SearchProblem(SPACE, objectives, seed, lambda c: SPACE.size(c).parameters <= LIMIT)


def values_of(configuration: Configuration, objectives: int = 2) -> tuple[float, ...]:
    """A smooth problem: the learning rate should be 0.03, and few units are better."""
    rate = abs(math.log10(float(configuration["learning_rate"]) / 0.03))
    return (rate / 2 + 0.1, math.log10(float(configuration["units"])) / 3)[:objectives]


def make(name: str, seed: int = 0, *, objectives: int = 2, **options: object) -> Strategy:
    options = QUICK.get(name, {}) | options
    return make_strategy(name, problem(seed, objectives=objectives), options)


def run(strategy: Strategy, count: int, objectives: int = 2) -> list[Configuration]:
    for _ in range(count):
        proposal = strategy.ask()
        configuration = proposal.configuration
        outcome = Outcome(configuration, values_of(configuration, objectives), {1: 0.5, 3: 0.3})
        strategy.tell(proposal.number, outcome)
    return strategy.asked


@pytest.fixture(scope="module")
def asked() -> dict[str, list[Configuration]]:
    return {name: run(make(name), BUDGET) for name in STRATEGIES}


every = pytest.mark.parametrize("name", STRATEGIES)


@every
def test_all_start_from_the_same_points_for_one_seed(
    name: str, asked: dict[str, list[Configuration]]
) -> None:
    def architectures(name: str) -> list[Configuration]:
        return [c | {"epochs": 0} for c in asked[name][: 2 * len(SPACE.free) + 1]]

    assert architectures(name) == architectures("random")


@every
def test_no_proposal_breaks_a_constraint_or_leaves_the_space(
    name: str, asked: dict[str, list[Configuration]]
) -> None:
    assert all(SPACE.validate(c) == c for c in asked[name])
    assert max(SPACE.size(c).parameters for c in asked[name]) <= LIMIT


@every
def test_nothing_is_proposed_twice(name: str, asked: dict[str, list[Configuration]]) -> None:
    assert all(a not in asked[name][:index] for index, a in enumerate(asked[name]))


@every
def test_a_replayed_search_goes_on_as_if_it_had_never_stopped(
    name: str, asked: dict[str, list[Configuration]]
) -> None:
    resumed = make(name)
    for configuration in asked[name][: BUDGET - 2]:
        proposal = resumed.replay(dict(configuration))
        outcome = Outcome(configuration, values_of(configuration), {1: 0.5, 3: 0.3})
        resumed.tell(proposal.number, outcome)
    assert run(resumed, 2)[-2:] == asked[name][-2:]


@every
@pytest.mark.parametrize(
    "values", [(0.1, "none"), (1, 0.5, 2), (True, "half", 3)], ids=["word", "float", "switch"]
)
def test_a_choice_of_mixed_values_keeps_their_types(
    name: str, values: tuple[bool | int | float | str, ...]
) -> None:
    space = SPACE.extend(Choice("drop", values), name="mixed")
    mixed = SearchProblem(space, 2, 0, lambda _: True)
    strategy = make_strategy(name, mixed, QUICK.get(name, {}) | {"initial": 4})
    for configuration in run(strategy, 9):
        assert space.validate(configuration) == configuration
        replayed = make_strategy(name, mixed, QUICK.get(name, {}) | {"initial": 4})
        assert replayed.replay(dict(configuration)).configuration == configuration


@every
def test_another_seed_gives_other_points(name: str) -> None:
    first, second = (make(name, seed).ask() for seed in (0, 1))
    assert first.configuration != second.configuration


@every
def test_one_objective_works_and_proposals_may_overlap(name: str) -> None:
    # Without a constraint: Optuna's Gaussian process takes seconds for each proposal it rejects.
    free = SearchProblem(SPACE, 1, 0, lambda _: True)
    strategy = make_strategy(name, free, QUICK.get(name, {}) | {"initial": 3})
    run(strategy, 4, objectives=1)
    open_proposals = [strategy.ask() for _ in range(3)]
    assert len({str(p.configuration) for p in open_proposals}) == 3
    for proposal in reversed(open_proposals):
        strategy.tell(proposal.number, Outcome(proposal.configuration, (0.5,)))
    assert strategy.pending == []


@pytest.mark.parametrize("name", ["cbo", "evolution", "optuna-tpe"])
def test_what_learns_proposes_better_points_than_random_search(name: str) -> None:
    def mean(name: str) -> float:
        proposed = run(make(name, 3, objectives=1), 24, objectives=1)
        return statistics.mean(values_of(c)[0] for c in proposed[11:])

    assert mean(name) < 0.8 * mean("random")


@pytest.mark.parametrize("surrogate", ["ET", "RF"])
def test_forests_can_take_the_place_of_the_gaussian_process(surrogate: str) -> None:
    options = {"surrogate": surrogate, "initial": 4, "candidates": 50}
    assert len(run(make_strategy("cbo", problem(), options), 7)) == 7


def test_a_space_with_words_and_fixed_values_can_be_searched() -> None:
    space = SPACE.extend(Choice("kind", ("a", "b")), name="own").narrow(units=3, layers=1)
    for name in STRATEGIES:
        strategy = make_strategy(name, SearchProblem(space, 2, 0), {"initial": 3})
        assert {c["units"] for c in run(strategy, 5)} == {3}


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("grid", {}, "search 'grid' is unknown"),
        ("random", {"kappa": 1}, "no option 'kappa'"),
        ("cbo", {"surrogate": "GBRT"}, "surrogate is 'GBRT'"),
        ("cbo", {"kappa": 0}, "kappa is 0"),
        ("cbo", {"initial": 0}, "initial is 0"),
        ("evolution", {"tournament": 99}, "tournament is 99"),
        ("hyperband", {"margin": 1}, "margin 1"),
        ("optuna-nsga2", {"population": 1}, "population is 1"),
    ],
)
def test_a_wrong_name_or_option_is_refused(
    name: str, options: dict[str, object], named: str
) -> None:
    with pytest.raises(ConfigurationError, match=named):
        make_strategy(name, problem(), options)


def test_a_tiny_feasible_part_is_still_found() -> None:
    tight = SearchProblem(SPACE, 1, 0, lambda c: SPACE.size(c).parameters <= 140)
    assert SPACE.size(tight.initial_points(1)[0]).parameters <= 140


def test_an_infeasible_space_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="mlpBragg has no point"):
        SearchProblem(SPACE, 1, 0, lambda _: False).initial_points(1)


def sized(units: int) -> Configuration:
    return SPACE.smallest | {"units": units, "epochs": 9}


def test_hyperband_stops_what_two_smaller_networks_beat_clearly() -> None:
    strategy = make_strategy("hyperband", problem(), {"brackets": 1})
    for units, error in ((5, 0.1), (6, 0.2), (50, 0.01), (60, 0.01)):
        proposal = strategy.replay(sized(units))
        strategy.tell(proposal.number, Outcome(sized(units), (0.5, 0.5), {1: error}))
    # Only the two smaller ones count: the second best of them was 0.2, a fifth below 0.25.
    assert strategy.replay(sized(20)).stop_above == {1: pytest.approx(0.25)}
    assert strategy.replay(sized(4)).stop_above == {}


def test_hyperband_looks_later_in_later_brackets() -> None:
    strategy = make_strategy("hyperband", problem(), {"rivals": 1})
    proposal = strategy.replay(sized(1))
    strategy.tell(proposal.number, Outcome(sized(1), (0.5, 0.5), {1: 0.1, 3: 0.1}))
    rungs = [sorted(strategy.replay(sized(9)).stop_above) for _ in range(3)]
    assert rungs == [[3], [3], [1, 3]]


def test_evolution_ranks_fronts_and_prefers_empty_neighbourhoods() -> None:
    import numpy as np

    values = np.array([[0, 4], [4, 0], [1, 1], [2, 2], [1.1, 1]])
    assert front_ranks(values) == [0, 0, 0, 2, 1]
    crowding = crowding_distance(values)
    assert crowding[0] == crowding[1] == math.inf
    assert crowding[3] > crowding[2]
