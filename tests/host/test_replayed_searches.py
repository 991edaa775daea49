"""What the page of replayed searches says of samplers follows from their times."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
TPE, GP = "ladder, Optuna TPE", "ladder, Optuna GP"


@pytest.fixture(scope="module")
def replay(load_module: Callable[[Path], ModuleType]) -> ModuleType:
    return load_module(ROOT / "host/replay_searches.py")


def seeds(replay: ModuleType, **times: float) -> list[dict[str, Any]]:
    """Ten seeds, in which each search takes so many times what random proposals take."""
    names = {"random": replay.RANDOM, "tpe": TPE, "gp": GP}
    return [
        {
            "before_s": 100.0,
            "ladders": {
                names[name]: {"to_90_s": (4.0 + seed) * share} for name, share in times.items()
            },
        }
        for seed in range(10)
    ]


def test_samplers_that_take_as_long_as_random_proposals_are_not_told_apart(
    replay: ModuleType,
) -> None:
    rows = seeds(replay, random=1.0, tpe=1.0, gp=1.0)
    # One seed goes the one way, one the other.
    rows[0]["ladders"][GP]["to_90_s"] += 1
    rows[1]["ladders"][GP]["to_90_s"] -= 1
    said = replay.samplers_compared(rows)
    assert said == (
        "Against random proposals no difference was found for Optuna TPE (p = 1), Optuna GP "
        "(p = 1): two-sided Wilcoxon signed-rank tests over 10 seeds."
    )


def test_samplers_that_are_faster_or_slower_are_named_with_their_p(replay: ModuleType) -> None:
    rows = seeds(replay, random=1.0, tpe=0.5, gp=float("inf"))
    said = replay.samplers_compared(rows)
    assert "is shorter for Optuna TPE (p = 0.002), longer for Optuna GP (p = 0.002)" in said
    assert "no difference" not in said
    mixed = replay.samplers_compared(seeds(replay, random=1.0, tpe=0.5, gp=1.0))
    assert "is shorter for Optuna TPE (p = 0.002); no difference was found for Optuna GP" in mixed


def test_without_random_proposals_nothing_is_said_of_them(replay: ModuleType) -> None:
    rows = seeds(replay, tpe=0.5)
    assert replay.samplers_compared(rows) == "Random proposals are not among these searches."
