"""Which pixels are gaps, which counts are saturated, and what a frame of one value is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgexnas.errors import InputError
from edgexnas.frames import ArrayFrames
from edgexnas.frames.gaps import constant_gaps, filler_value
from edgexnas.frames.saturation import estimate_plateau, header_saturation

RNG = np.random.default_rng(3)


def counts(number: int = 4, dtype: Any = np.uint16, level: float = 10.0) -> np.ndarray:
    return RNG.poisson(level, (number, 64, 80)).astype(dtype)


def spot(height: float, row: int = 30, col: int = 40) -> np.ndarray:
    rows, cols = np.mgrid[:64, :80]
    return height * np.exp(-((rows - row) ** 2 + (cols - col) ** 2) / 4)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (np.int32, -1),
        (np.int32, -2),
        (np.int16, -(2**15)),
        (np.int32, 2**31 - 1),
        (np.uint8, 255),
        (np.uint16, 65535),
        (np.uint16, 65534),
        (np.uint32, 2**32 - 1),
        (np.uint32, 65535),
        (np.float32, -1),
        (np.float32, np.nan),
        (np.float64, 2**32 - 1),
    ],
)
@pytest.mark.parametrize("number", [1, 4])
def test_a_constant_in_a_gap_is_masked_in_any_dtype(dtype: Any, value: float, number: int) -> None:
    frames = counts(number, dtype)
    frames[:, 20:24] = value
    frames[:, 50, 60] = value
    gaps = constant_gaps(frames)
    assert gaps is not None
    expected = np.zeros((64, 80), bool)
    expected[20:24] = expected[50, 60] = True
    np.testing.assert_array_equal(gaps, expected)


@pytest.mark.parametrize("number", [1, 4])
@pytest.mark.parametrize("subtracted", [False, True])
def test_gaps_between_modules_that_hold_0_are_masked(number: int, *, subtracted: bool) -> None:
    frames = counts(number, np.float32) - (10.5 if subtracted else 0)
    expected = np.zeros((64, 80), bool)
    expected[20:24] = expected[:, 50:52] = True
    frames[:, expected] = 0
    np.testing.assert_array_equal(constant_gaps(frames), expected)


@pytest.mark.parametrize("number", [1, 2, 16])
@pytest.mark.parametrize("level", [0.02, 0.5, 2.0, 10.0])
@pytest.mark.parametrize("fading", [False, True])
def test_zeros_that_are_counted_are_no_gaps(number: int, level: float, *, fading: bool) -> None:
    rows, cols = np.mgrid[:64, :80]
    beam = np.exp(-np.hypot(rows - 32, cols - 40) / 6) if fading else np.ones((64, 80))
    spots = sum(spot(50, row, col) for row in (12, 40) for col in (15, 45, 70))
    frames = RNG.poisson(10 * level * beam + spots, (number, 64, 80)).astype(np.uint16)
    assert constant_gaps(frames) is None


@pytest.mark.parametrize("spread", [0.6, 1.0, 5.0, 100.0])
@pytest.mark.parametrize("number", [1, 4])
def test_negative_counts_that_spread_are_measured(spread: float, number: int) -> None:
    frames = np.rint(RNG.normal(0, spread, (number, 64, 80))).astype(np.int32)
    gaps = constant_gaps(frames)
    assert gaps is None or gaps.mean() < 1e-3


def test_a_saturated_peak_that_stays_is_no_gap() -> None:
    frames = np.minimum(counts() + spot(200_000), 65535).astype(np.uint16)
    frames[:, 50:53] = 65535
    gaps = constant_gaps(frames)
    assert gaps is not None
    assert np.unique(np.nonzero(gaps)[0]).tolist() == [50, 51, 52]


def test_gaps_come_beside_the_mask_that_is_given() -> None:
    frames = counts(dtype=np.int32)
    frames[:, 5] = -1
    given = np.zeros((64, 80), bool)
    given[9, 9] = True
    mask = ArrayFrames(frames, mask=given).mask
    assert mask is not None
    assert mask.sum() == 81


def test_what_a_masked_array_masks_is_not_used() -> None:
    frames = np.ma.masked_array(counts(), mask=False)
    frames[2, 7, 8] = np.ma.masked
    series = ArrayFrames(frames)
    assert series.mask is not None
    assert np.argwhere(series.mask).tolist() == [[7, 8]]


@pytest.mark.parametrize(
    ("value", "dtype", "named"),
    [
        (65535, np.uint16, "65535"),
        (-1, np.int32, "-1"),
        (np.nan, np.float32, "NaN"),
        (0, np.uint16, None),
        (7, np.uint16, None),
    ],
)
def test_a_frame_of_one_impossible_value_is_filler(value: float, dtype: Any, named: Any) -> None:
    assert filler_value(np.full((64, 80), value, dtype)) == named
    assert filler_value(counts(1, dtype)[0]) is None


def test_a_stated_fill_value_is_filler_too() -> None:
    assert filler_value(np.full((64, 80), 7, np.uint16), fill=7) == "7"


@pytest.mark.parametrize("limit", [4095.0, 14_000.0, 60_000.0])
def test_flat_tops_show_from_where_pixels_are_saturated(limit: float) -> None:
    frames = np.minimum(counts() + spot(4 * limit), limit).astype(np.float32)
    assert estimate_plateau(frames) == limit


@pytest.mark.parametrize("height", [0, 300, 40_000])
def test_peaks_that_are_not_cut_off_show_none(height: float) -> None:
    assert estimate_plateau(counts() + spot(height).astype(np.uint16)) is None


@pytest.mark.parametrize(
    "header",
    [
        {"_array_data.header_contents": "# Detector: PILATUS\r\n# Count_cutoff 1500 counts"},
        {"imageDescription": "# Count_cutoff 1500 counts\n"},
        {"CCD_IMAGE_SATURATION": "1500"},
        {"SATURATED_VALUE": "1500.0"},
    ],
)
def test_headers_of_images_say_from_where_pixels_are_saturated(header: Any) -> None:
    assert header_saturation(header) == 1500


def test_a_header_that_says_nothing_gives_none() -> None:
    assert header_saturation({"Dim_1": "2048", "Saturation_correction": "no"}) is None


def test_a_masked_frame_by_itself_is_refused_for_its_mask_would_be_lost() -> None:
    from edgexnas.device.bragg.detection import PeakDetection
    from edgexnas.device.sources.pixels import as_pixels
    from edgexnas.peak_finding import FinderSettings

    frame = np.ma.masked_array(counts(1)[0], mask=False)
    frame[3, 4] = np.ma.masked
    for admit in (PeakDetection(FinderSettings()).admit, as_pixels):
        with pytest.raises(InputError, match="masked array, whose mask would be lost"):
            admit(frame)
