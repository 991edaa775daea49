"""Frames of any detector: what a pixel expects, what a detector makes of it, and the bounds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgexnas.simulate.varied_frames import (
    HALF_PX,
    FrameConditions,
    Spots,
    draw_conditions,
    draw_spots,
    expected_windows,
    simulate_frame,
)

QUIET = FrameConditions(photons=2.0)


def spots(count: int = 1, **changes: Any) -> Spots:
    columns: dict[str, Any] = {
        "positions_px": np.tile([[30.2, 40.7]], (count, 1)),
        "photons": np.full(count, 1000.0),
        "fwhm_px": np.tile([[2.4, 2.0]], (count, 1)),
        "angle_rad": np.zeros(count),
        "mixing": np.zeros(count),
        "exponent": np.ones(count),
    }
    return Spots(**{**columns, **changes})


def test_a_gaussian_expects_its_volume_with_its_centre_at_the_spot() -> None:
    window, _, _ = expected_windows(spots(), 1.0)
    volume = 1000 * 2.4 * 2.0 * np.pi / (4 * np.log(2))
    assert window.sum() == pytest.approx(volume, rel=2e-3)
    span = np.arange(-HALF_PX, HALF_PX + 1)
    centre = [float((window[0].sum(axis=1 - axis) @ span) / window.sum()) for axis in (0, 1)]
    assert centre == pytest.approx([0.2, -0.3], abs=2e-3)


def test_a_pixel_without_area_expects_the_profile_at_its_centre() -> None:
    window, _, _ = expected_windows(spots(positions_px=np.array([[30.0, 40.0]])), 0.0)
    assert window[0, HALF_PX, HALF_PX] == pytest.approx(1000)
    # Half a full width away along the long axis, which lies along the columns.
    assert window[0, HALF_PX, HALF_PX + 1] == pytest.approx(1000 * 0.5 ** (1 / 1.2) ** 2, rel=1e-3)


@pytest.mark.parametrize("exponent", [1.0, 1.15])
def test_slopes_are_the_derivatives_of_what_is_expected(exponent: float) -> None:
    step = 1e-2
    shape = {"mixing": np.array([0.4]), "exponent": np.array([exponent])}
    _, down, across = expected_windows(spots(**shape), 1.0)
    for axis, slope in ((0, down), (1, across)):
        moved = []
        for sign in (1, -1):
            place = np.array([[30.2, 40.7]])
            place[0, axis] += sign * step
            moved.append(expected_windows(spots(positions_px=place, **shape), 1.0)[0])
        inner = slice(HALF_PX - 5, HALF_PX + 6)
        difference = (moved[0] - moved[1])[:, inner, inner] / (2 * step)
        assert np.abs(difference - slope).max() < 0.02 * np.abs(slope).max()


def test_zero_suppression_and_saturation_bound_what_is_left() -> None:
    rng = np.random.default_rng(0)
    conditions = replace(QUIET, threshold=20.0, saturation=400.0)
    counts = simulate_frame(conditions, spots(), rng, side=96).counts
    assert counts.max() == 400
    assert counts[counts > 0].min() > 22
    assert (counts == 0).mean() > 0.99


def test_counts_beyond_32_bits_saturate() -> None:
    bright = replace(QUIET, gain=1e7)
    counts = simulate_frame(bright, spots(), np.random.default_rng(0), side=96).counts
    assert counts.min() >= 0
    assert counts.max() == 2**31 - 1


def test_the_bound_is_what_the_best_estimate_reaches() -> None:
    """Of a Gaussian without background, whose best estimate of the place is the centroid."""
    rng = np.random.default_rng(1)
    lone = replace(QUIET, photons=1e-6)
    spot = spots(positions_px=np.array([[30.0, 40.0]]), fwhm_px=np.array([[2.5, 2.5]]))
    span = np.arange(25, 36)
    rows = []
    for _ in range(300):
        taken = simulate_frame(lone, spot, rng, side=96)
        patch = taken.counts[25:36, 35:46].astype(float)
        rows.append(patch.sum(axis=1) @ span / patch.sum())
    assert np.std(rows) == pytest.approx(taken.bounds_px[0, 0], rel=0.15)


def test_equal_seeds_draw_equal_frames_and_other_seeds_other_ones() -> None:
    def frame(seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        conditions = draw_conditions(rng)
        return simulate_frame(conditions, draw_spots(rng, conditions), rng).counts

    assert np.array_equal(frame(3), frame(3))
    assert not np.array_equal(frame(3), frame(4))
