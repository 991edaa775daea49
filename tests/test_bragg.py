"""The rules of patches, coordinates, scaling and decoding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgexnas.bragg import (
    CENTRE,
    PATCH_SIZE,
    PeakFlag,
    as_patches,
    centroid,
    cut_patches,
    decode_offsets,
    from_braggnn,
    neighbour_pairs,
    scale_patches,
)
from edgexnas.errors import InputError

COUNTS = st.floats(0, 2.0**30, width=32)
PATCHES = hnp.arrays(np.float32, st.tuples(st.integers(0, 3), st.just(11), st.just(11)),
                     elements=COUNTS)  # fmt: skip
POSITIONS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), unique=True, max_size=30)


def pseudo_voigt(
    row: float, col: float, *, height: float = 1000, fwhm: float = 2.5, mixing: float = 0.5,
    shape: tuple[int, int] = (40, 40),
) -> np.ndarray:  # fmt: skip
    """Sample a round pseudo-Voigt peak on a frame."""
    rows, cols = np.indices(shape)
    distance = 4 * ((rows - row) ** 2 + (cols - col) ** 2) / fwhm**2
    return height * (mixing / (1 + distance) + (1 - mixing) * np.exp(-np.log(2) * distance))


def brightest(*peaks: tuple[float, float]) -> np.ndarray:
    return np.array(sorted((round(row), round(col)) for row, col in peaks), np.int32)


@given(PATCHES)
@settings(max_examples=50, deadline=None)
def test_scaling_twice_equals_scaling_once(patches):
    once = scale_patches(patches)
    np.testing.assert_array_equal(scale_patches(once), once)


@given(PATCHES)
@settings(max_examples=50, deadline=None)
def test_scaled_patches_span_zero_to_one_or_are_zero(patches):
    for raw, scaled in zip(patches, scale_patches(patches), strict=True):
        assert scaled.min() == 0
        assert scaled.max() == (1 if raw.max() > raw.min() else 0)


def test_a_patch_is_centred_on_the_brightest_pixel():
    frame = np.arange(40 * 40, dtype=np.uint16).reshape(40, 40)
    counts = cut_patches(frame, brightest((20, 12))).counts
    np.testing.assert_array_equal(counts[0], frame[15:26, 7:18])


def test_what_lies_below_the_background_is_zero():
    frame = np.full((40, 40), 7, np.uint16)
    background = np.full((40, 40), 10, np.float32)
    assert not cut_patches(frame, brightest((20, 20)), background=background).counts.any()


def test_negative_marks_of_gaps_do_not_reach_a_patch():
    frame = np.full((40, 40), -2, np.int32)
    frame[20, 20] = 100
    assert cut_patches(frame, brightest((20, 20))).counts.min() == 0


@pytest.mark.parametrize("peak", [(4, 20), (35, 20), (20, 4), (20, 35)])
def test_a_patch_over_the_edge_is_flagged_and_filled_with_zero(peak):
    frame = np.ones((40, 40), np.uint16)
    patches = cut_patches(frame, brightest(peak))
    assert patches.flags[0] == PeakFlag.EDGE
    assert patches.counts[0].sum() == 11 * 10


def test_a_patch_that_touches_the_edge_from_inside_is_not_flagged():
    patches = cut_patches(np.ones((40, 40), np.uint16), brightest((5, 5), (34, 34)))
    assert not patches.flags.any()


def test_masked_pixels_are_zero_and_flagged():
    frame, mask = np.ones((40, 40), np.uint16), np.zeros((40, 40), np.bool_)
    frame[22, 18], mask[22, 18] = 65535, True
    patches = cut_patches(frame, brightest((20, 20)), mask=mask)
    assert patches.flags[0] == PeakFlag.MASKED
    assert patches.counts[0].max() == 1
    assert patches.counts[0, 7, 3] == 0


@given(st.floats(4, 8), st.floats(0, 6.28), st.floats(0.6, 1.6))
@settings(max_examples=40, deadline=None)
def test_two_touching_peaks_are_cleaned_of_each_other(distance, angle, ratio):
    second = (20 + round(distance * np.sin(angle)), 20 + round(distance * np.cos(angle)))
    first_part = pseudo_voigt(20, 20, fwhm=2)
    both = first_part + pseudo_voigt(*second, fwhm=2, height=1000 * ratio)
    maxima = brightest((20, 20), second)
    patches = cut_patches(both, maxima)
    me = int(np.flatnonzero((maxima == 20).all(axis=1))[0])
    other = maxima[1 - me] - maxima[me] + CENTRE
    assert (patches.flags == PeakFlag.OVERLAP).all()
    assert patches.counts[me, CENTRE, CENTRE] == pytest.approx(both[20, 20])
    if ((other >= 0) & (other < PATCH_SIZE)).all():
        assert patches.counts[me, other[0], other[1]] == 0


def test_cleaning_brings_the_centroid_of_a_touching_peak_home():
    frame = pseudo_voigt(20, 20, fwhm=2) + pseudo_voigt(20, 25, fwhm=2)
    maxima = brightest((20, 20), (20, 25))
    alone = cut_patches(frame, maxima[:1]).counts
    cleaned = cut_patches(frame, maxima).counts[:1]
    assert abs(centroid(cleaned)[0, 1] - CENTRE) < 0.4
    assert abs(centroid(alone)[0, 1] - CENTRE) > 1


def test_a_sloping_background_leaves_the_basins_of_equal_pixels_alone():
    frame = np.zeros((40, 40), np.uint16)
    frame[20, 20] = 100
    frame[20, 24:26] = 50
    background = np.tile(np.linspace(2, 0, 40, dtype=np.float32), (40, 1))
    patches = cut_patches(frame, brightest((20, 20), (20, 24)), background=background)
    np.testing.assert_array_equal(patches.counts[0, CENTRE, CENTRE + 4 :], [0, 0])


def test_peaks_eleven_pixels_apart_do_not_overlap_and_ten_do():
    frame = np.ones((40, 40), np.uint16)
    assert not cut_patches(frame, brightest((20, 10), (20, 21))).flags.any()
    assert (cut_patches(frame, brightest((20, 10), (20, 20))).flags == PeakFlag.OVERLAP).all()


@given(POSITIONS)
@settings(max_examples=60, deadline=None)
def test_neighbour_pairs_are_all_pairs_within_reach_once(positions):
    maxima = np.array(sorted(positions), np.int32).reshape(-1, 2)
    expected = {
        (i, j)
        for i in range(len(maxima))
        for j in range(i + 1, len(maxima))
        if np.abs(maxima[i] - maxima[j]).max() <= 10
    }
    found = [(int(i), int(j)) for i, j in neighbour_pairs(maxima)]
    assert len(found) == len(set(found))
    assert set(found) == expected


def test_no_peak_gives_no_patch():
    patches = cut_patches(np.ones((40, 40), np.uint16), np.empty((0, 2), np.int32))
    assert patches.counts.shape == (0, 11, 11)
    assert patches.flags.shape == (0,)


def test_the_centroid_is_row_then_column():
    patch = np.zeros((1, 11, 11), np.float32)
    patch[0, 3, 7] = patch[0, 3, 8] = 5
    np.testing.assert_allclose(centroid(patch), [[3, 7.5]])


def test_the_centroid_of_an_empty_patch_is_its_centre():
    np.testing.assert_array_equal(centroid(np.zeros((2, 11, 11), np.float32)), CENTRE)


def test_decoding_adds_the_centre_and_the_origin():
    offsets = np.array([[[-0.5, 0.25, 0.75], [-1.0, -0.5, 0.0]]], np.float32)
    decoded = decode_offsets(offsets, (0.05, 0.5, 0.95), np.array([[100, 200]], np.int32))
    np.testing.assert_allclose(decoded.positions_px, [[105.25, 204.5]])
    np.testing.assert_allclose(decoded.intervals_px, [[1.25, 1.0]])
    np.testing.assert_allclose(decoded.quantiles_px[0, 0], [104.5, 105.25, 105.75])


def test_braggnn_output_is_column_first_and_a_fraction_of_the_side():
    np.testing.assert_allclose(from_braggnn([[7 / 11, 3 / 11]]), [[3, 7]], rtol=1e-6)


@pytest.mark.parametrize("shape", [(2, 11, 11), (2, 1, 11, 11), (0, 11, 11)])
def test_patches_come_with_or_without_a_channel(shape):
    patches = as_patches(np.ones(shape, np.uint16))
    assert patches.shape == (shape[0], 11, 11)
    assert patches.dtype == np.float32


@pytest.mark.parametrize("shape", [(11, 11), (2, 3, 11, 11), (2, 11, 12), (121,)])
def test_patches_of_another_shape_are_refused_by_that_shape(shape):
    with pytest.raises(InputError, match=str(shape)[1:-1]):
        as_patches(np.ones(shape))


def test_a_patch_with_nan_is_refused_by_its_number():
    patches = np.ones((4, 11, 11), np.float32)
    patches[2, 5, 5] = np.nan
    with pytest.raises(InputError, match="patch 2 holds NaN"):
        as_patches(patches)


def test_complex_patches_are_refused():
    with pytest.raises(InputError, match="complex"):
        as_patches(np.ones((1, 11, 11), np.complex64))
