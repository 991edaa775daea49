"""Factors that make intervals hold as often as they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from edgexnas.host.exporting.conformal import (
    conformal_factor,
    group_factors,
    group_of,
    interval_scores,
    wilson,
)

SCORES = npst.arrays(np.float64, st.integers(1, 200), elements=st.floats(0, 1e6))
LEVELS = st.floats(0.01, 0.99)


@given(SCORES, LEVELS)
def test_the_factor_covers_the_rank_that_a_fresh_score_needs(scores, level):
    factor = conformal_factor(scores, level)
    rank = math.ceil((len(scores) + 1) * level - 1e-9)
    assert np.count_nonzero(scores <= factor) >= min(rank, len(scores))
    # And no more than it needs: the next smaller score would not do.
    assert np.count_nonzero(scores < factor) < min(rank, len(scores))


@given(SCORES, LEVELS, LEVELS)
def test_a_higher_level_never_narrows(scores, one, other):
    low, high = sorted((one, other))
    assert conformal_factor(scores, low) <= conformal_factor(scores, high)


@given(SCORES, LEVELS, st.floats(0.5, 100))
def test_the_factor_scales_with_the_scores(scores, level, scale):
    assert conformal_factor(scores * scale, level) == pytest.approx(
        conformal_factor(scores, level) * scale
    )


@given(st.integers(20, 300), st.floats(0.5, 0.95), st.integers(0, 1000))
def test_calibrated_intervals_hold_fresh_errors_of_any_distribution(number, level, seed):
    rng = np.random.default_rng(seed)
    held = []
    for _ in range(60):
        errors = np.abs(rng.standard_cauchy(number + 200))
        held.append((errors[number:] <= conformal_factor(errors[:number], level)).mean())
    # The mean over calibrations is at least the level; this much below it is chance.
    assert np.mean(held) > level - 4 * np.sqrt(level * (1 - level) / (60 * number)) - 0.01


def test_an_end_of_the_interval_scores_one():
    quantiles = np.array([[[-0.1, 0.0, 0.3], [1.0, 2.0, 4.0]]])
    assert interval_scores(quantiles, np.array([[-0.1, 4.0]]), 1).tolist() == [[1, 1]]
    assert interval_scores(quantiles, np.array([[0.15, 1.5]]), 1).tolist() == [[0.5, 0.5]]


def test_a_small_group_has_the_factor_of_its_row_and_then_of_all():
    rng = np.random.default_rng(0)
    rows, cols = np.array([0] * 300 + [1] * 20), np.array([0] * 250 + [1] * 50 + [0] * 20)
    scores = rng.random((320, 2)) * np.where(rows == 1, 5, 1)[:, None]
    factors, counts = group_factors(scores, rows, cols, (2, 2), level=0.9, fewest=100)
    of_row = conformal_factor(scores[:300], 0.9)
    assert factors[0, 1] == of_row
    assert factors[0, 0] == conformal_factor(scores[:250], 0.9)
    assert (factors[1] == conformal_factor(scores, 0.9)).all()
    assert counts.tolist() == [[250, 50], [20, 0]]


def test_a_value_on_an_edge_belongs_above_it():
    assert group_of(np.array([1.0, 2.0, 3.0]), np.array([2.0])).tolist() == [0, 1, 1]
    assert group_of(np.array([1.0]), np.array([])).tolist() == [0]


@given(st.integers(1, 5000), st.floats(0, 1))
def test_the_interval_of_a_share_holds_it_and_stays_a_share(n, share):
    low, high = wilson(share, n)
    assert 0 <= low <= share + 1e-12
    assert share - 1e-12 <= high <= 1


def test_the_interval_of_a_share_is_that_of_the_textbook():
    assert wilson(0.9, 200) == pytest.approx((0.8505, 0.9344), abs=1e-4)
