"""Objectives, constraints, fronts and hypervolumes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgexnas.errors import ConfigurationError
from edgexnas.host.measuring.objectives import (
    OBJECTIVES,
    check_constraints,
    hypervolume,
    hypervolume_curve,
    pareto_front,
    resolve_objectives,
    violation,
)
from edgexnas.host.networks.search_space import ModelSize

PAIR = resolve_objectives(("error", "parameters"))
ROWS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)), max_size=12)


def middle(name: str) -> float:
    objective = OBJECTIVES[name]
    return float(np.sqrt(objective.best * objective.worst))


def test_an_unknown_objective_is_refused_with_those_there_are() -> None:
    with pytest.raises(
        ConfigurationError, match=r"'accuracy' is unknown; specify one of \['error'"
    ):
        resolve_objectives(("accuracy",))


@pytest.mark.parametrize("names", ["error", (), ("error", "error")])
def test_objectives_are_a_sequence_of_different_names(names: tuple[str, ...]) -> None:
    with pytest.raises(ConfigurationError, match="objectives are"):
        resolve_objectives(names)


@pytest.mark.parametrize("name", ["latency", "energy"])
def test_latency_and_energy_need_a_source(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"'{name}' has no source; specify measure="):
        resolve_objectives((name,))
    assert resolve_objectives((name,), measure=lambda _: {name: 1.0})[0].kind == "measured"


def test_an_error_cannot_be_a_hard_constraint() -> None:
    with pytest.raises(ConfigurationError, match="'error' is known only after training"):
        check_constraints({"error": 0.1})


@pytest.mark.parametrize("bound", [0, -1, True, "many", float("nan")])
def test_a_bound_is_a_positive_number(bound: float) -> None:
    with pytest.raises(ConfigurationError, match="parameters is"):
        check_constraints({"parameters": bound})


def test_a_violated_constraint_is_named_with_both_numbers() -> None:
    assert violation({"parameters": 100}, ModelSize(101, 7)) == "parameters 101 > 100"
    assert violation({"parameters": 100, "latency": 2}, ModelSize(100, 7)) is None
    assert violation({"latency": 2}, {"latency": float("nan")}) == "latency nan > 2"


@given(rows=ROWS)
def test_the_front_is_what_no_other_row_dominates(rows: list[tuple[int, ...]]) -> None:
    def dominates(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
        return all(x <= y for x, y in zip(a, b, strict=True)) and a != b

    expected = [not any(dominates(other, row) for other in rows) for row in rows]
    assert pareto_front(np.array(rows).reshape(-1, 3)).tolist() == expected


def test_a_result_in_the_middle_of_both_scales_dominates_a_quarter() -> None:
    row = {name: middle(name) for name in ("error", "parameters")}
    assert hypervolume([row], PAIR) == pytest.approx(0.25)


def test_a_result_beyond_the_worst_adds_nothing_and_moves_nothing() -> None:
    row = {name: middle(name) for name in ("error", "parameters")}
    bad = {"error": 1e6, "parameters": 200}
    assert hypervolume([row, bad], PAIR) == pytest.approx(0.25)
    assert hypervolume([bad], PAIR) == 0


def test_the_curve_rises_only_with_a_better_front() -> None:
    row = {name: middle(name) for name in ("error", "parameters")}
    worse = {name: 2 * value for name, value in row.items()}
    better = {name: value / 2 for name, value in row.items()}
    curve = hypervolume_curve([None, row, worse, None, better], PAIR)
    assert curve[0] == 0
    assert curve[1] == curve[2] == curve[3] == pytest.approx(0.25)
    assert curve[4] == pytest.approx(hypervolume([better], PAIR))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e9])
def test_what_is_not_a_number_counts_as_the_worst(value: float) -> None:
    assert OBJECTIVES["error"].position(value) == 1
