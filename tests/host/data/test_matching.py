"""The rules by which found peaks are compared with known ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgexnas.errors import ConfigurationError
from edgexnas.host.data.matching import detection_scores, match_peaks

POINTS = hnp.arrays(
    np.float64, st.tuples(st.integers(0, 15), st.just(2)), elements=st.integers(0, 12)
)


def test_the_nearest_pair_is_made_first():
    assert match_peaks([[0, 0], [0, 1]], [[0, 1.4]], 3).tolist() == [[1, 0]]


@given(POINTS, POINTS)
@settings(max_examples=80, deadline=None)
def test_pairs_are_one_to_one_and_within_the_radius(found, reference):
    pairs = match_peaks(found, reference, 2.5)
    assert len(set(pairs[:, 0])) == len(set(pairs[:, 1])) == len(pairs)
    assert (np.linalg.norm(found[pairs[:, 0]] - reference[pairs[:, 1]], axis=1) <= 2.5).all()


@given(POINTS, POINTS)
@settings(max_examples=80, deadline=None)
def test_no_two_unmatched_points_are_within_the_radius(found, reference):
    pairs = match_peaks(found, reference, 2.5)
    left = np.delete(found, pairs[:, 0], axis=0)
    right = np.delete(reference, pairs[:, 1], axis=0)
    assert (np.linalg.norm(left[:, None] - right, axis=2) > 2.5).all()


def test_scores_are_shares_of_reference_and_found():
    scores = detection_scores([[0, 0], [5, 5.5], [9, 9]], [[0, 0], [5, 5], [20, 20], [30, 0]], 1)
    assert (scores.matched, scores.recall, scores.precision) == (2, 0.5, 2 / 3)
    assert scores.distance_px[0] == 0.25


def test_without_peaks_scores_are_not_a_number():
    scores = detection_scores([], [], 1)
    assert math.isnan(scores.recall)
    assert math.isnan(scores.precision)


def test_a_radius_that_is_not_positive_is_refused():
    with pytest.raises(ConfigurationError, match="radius is 0"):
        match_peaks([[0, 0]], [[0, 0]], 0)
