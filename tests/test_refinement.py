"""Refinement by physics: what sweeps of rPIE with a known probe make of an object."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgexnas.errors import ConfigurationError, InputError
from edgexnas.ptycho import (
    ORIENTATIONS,
    ObjectImage,
    PatternStore,
    Refiner,
    oriented,
    patch_errors,
)
from edgexnas.scans import Scan, window_offset
from edgexnas.simulate import PtychographySettings, simulate_scan

SETTINGS = PtychographySettings(scan_shape_px=(60, 70), step_px=10)
SCAN = simulate_scan(SETTINGS, seed=3)
MIDDLE = slice(40, 100)


def flat(scan: Scan) -> ObjectImage:
    """An object of amplitude 0.8 and no phase under the scan's patches."""
    assert scan.truth is not None
    shape = scan.truth.shape
    return ObjectImage(np.full(shape, 0.8, np.complex64), np.ones(shape, np.float32), 0)


def stored(scan: Scan, **options: Any) -> PatternStore:
    rows, cols = scan.patterns.shape[1:]
    store = PatternStore((rows, cols), mask=scan.mask, **options)
    for number, pattern in enumerate(scan.patterns):
        usable = pattern if scan.mask is None else np.where(scan.mask, 0, pattern)
        store.add(number, usable)
        store.place(number, scan.positions_px[number])
    return store


def phase_error(image: ObjectImage, truth: np.ndarray) -> float:
    """Mean phase error in the middle, after the best constant."""
    pair = [np.stack([np.abs(v), np.angle(v)]) for v in (image.values, truth)]
    here, there = (p[None, :, MIDDLE, MIDDLE].astype(np.float32) for p in pair)
    return patch_errors(here, there).phase_rad


def test_sweeps_bring_a_flat_object_to_the_truth_and_the_residual_to_the_noise() -> None:
    refined = Refiner(SCAN.probe).refine(flat(SCAN), stored(SCAN), 25)
    assert phase_error(flat(SCAN), SCAN.truth) > 0.3
    assert phase_error(refined.image, SCAN.truth) < 0.04
    assert refined.residuals.shape == refined.seconds.shape == (26,)
    assert refined.residuals[0] > 10 * refined.residuals[-1]
    assert (np.diff(refined.seconds) > 0).all()
    assert refined.patterns == len(SCAN)


def test_the_residual_is_the_misfit_of_amplitudes_as_a_share_of_the_light() -> None:
    scan = simulate_scan(replace(SETTINGS, jitter_px=0.0), seed=3)
    truth = ObjectImage(scan.truth, np.ones(scan.truth.shape, np.float32), 0)
    residual = Refiner(scan.probe).refine(truth, stored(scan), 1).residuals[0]
    models = []
    for row, col in scan.positions_px.astype(int):
        far = np.fft.fft2(scan.probe * scan.truth[row : row + 64, col : col + 64], norm="ortho")
        models.append(np.fft.fftshift(np.square(np.abs(far)).sum(axis=0)))
    assert (scan.positions_px % 1 == 0).all()
    misfit = np.square(np.sqrt(np.array(models)) - np.sqrt(scan.patterns)).sum()
    assert residual == pytest.approx(misfit / scan.patterns.sum(), rel=0.01)


def test_the_probe_takes_the_power_of_the_patterns() -> None:
    # Rounding alone decides phases where a flat object sends no light, so not to the last digit.
    one, other = (Refiner(f * SCAN.probe).refine(flat(SCAN), stored(SCAN), 3) for f in (1, 1e-30))
    np.testing.assert_allclose(one.residuals, other.residuals, rtol=0.02)


def test_masked_pixels_hold_whatever_they_like() -> None:
    mask = np.zeros((64, 64), bool)
    mask[30:34, 40:50] = True
    spoilt = np.where(mask, np.uint16(60_000), SCAN.patterns.astype(np.uint16))
    scan = replace(SCAN, patterns=spoilt, mask=mask)
    refined = Refiner(SCAN.probe).refine(flat(scan), stored(scan), 25)
    assert phase_error(refined.image, SCAN.truth) < 0.05


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_patterns_of_a_turned_detector_are_turned_back(orientation: Any) -> None:
    # A mirrored pattern has its middle one pixel off, as a mirrored detector's has.
    seen = np.ascontiguousarray(oriented(SCAN.patterns, orientation, inverse=True))
    straight = stored(SCAN)
    turned = stored(replace(SCAN, patterns=seen), orientation=orientation)
    for one, other in zip(straight.placed()[0], turned.placed()[0], strict=True):
        np.testing.assert_array_equal(one, other)


@given(number=st.integers(0, 7), rows=st.integers(1, 4), cols=st.integers(1, 4))
def test_an_orientation_is_undone_by_its_inverse(number: int, rows: int, cols: int) -> None:
    images = np.arange(2 * rows * cols).reshape(2, rows, cols)
    there = oriented(images, ORIENTATIONS[number])
    np.testing.assert_array_equal(oriented(there, ORIENTATIONS[number], inverse=True), images)


def test_the_eight_orientations_differ() -> None:
    image = np.arange(9).reshape(3, 3)
    assert len({oriented(image, name).tobytes() for name in ORIENTATIONS}) == 8


def test_patterns_without_a_position_take_no_part() -> None:
    store = stored(SCAN)
    store.add(len(SCAN), SCAN.patterns[0])
    store.place(len(SCAN), np.full(2, np.nan))
    assert Refiner(SCAN.probe).refine(flat(SCAN), store, 1).patterns == len(SCAN)


@pytest.mark.parametrize("sweeps", [0, -1, 1.5, True, 1001])
def test_an_impossible_number_of_sweeps_is_rejected(sweeps: Any) -> None:
    with pytest.raises(ConfigurationError, match="specify a whole number of sweeps"):
        Refiner(SCAN.probe).refine(flat(SCAN), stored(SCAN), sweeps)


def test_patterns_of_another_detector_than_the_probes_are_rejected() -> None:
    probe = np.ones((1, 128, 128), np.complex64)
    with pytest.raises(InputError, match=r"patterns have shape \(64, 64\) and the probe"):
        Refiner(probe).refine(flat(SCAN), stored(SCAN), 1)


def test_more_patterns_than_there_is_memory_for_are_rejected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("edgexnas.ptycho.refinement.MOST_BYTES", 3 * 64 * 64 * 2)
    with pytest.raises(InputError, match="which hold 3"):
        stored(SCAN)


@pytest.mark.parametrize("count", [np.nan, np.inf, -1.0, 1e10])
def test_a_pattern_that_is_no_counts_is_rejected_by_its_number(count: float) -> None:
    pattern = SCAN.patterns[0].astype(np.float32)
    pattern[3, 4] = count
    with pytest.raises(InputError, match=r"pattern 7 holds a count that is .* mask the pixels"):
        PatternStore((64, 64)).add(7, pattern)


def test_patterns_without_light_are_rejected() -> None:
    store = PatternStore((64, 64))
    for number in range(2):
        store.add(number, np.zeros((64, 64), np.uint16))
        store.place(number, SCAN.positions_px[number])
    with pytest.raises(InputError, match="none of the 2 patterns holds light"):
        Refiner(SCAN.probe).refine(flat(SCAN), store, 1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_object_or_a_probe_that_is_not_finite_is_rejected(value: float) -> None:
    probe, start = SCAN.probe.copy(), flat(SCAN)
    probe[0, 3, 4] = start.values[3, 4] = value
    with pytest.raises(InputError, match="the object holds values that are not finite"):
        Refiner(SCAN.probe).refine(start, stored(SCAN), 1)
    with pytest.raises(InputError, match="specify complex"):
        Refiner(probe)


def test_a_residual_that_is_not_finite_is_never_returned() -> None:
    start = flat(SCAN)
    start.values[:] = 1e30
    with np.errstate(all="ignore"), pytest.raises(InputError, match=r"the object is|residual of"):
        Refiner(SCAN.probe).refine(start, stored(SCAN), 1)


def test_a_refinement_can_be_ended_early() -> None:
    # In the middle of a sweep: one over a large scan takes minutes.
    asked = iter([False, False, True])
    assert Refiner(SCAN.probe).refine(flat(SCAN), stored(SCAN), 5, stop=lambda: next(asked)) is None


def test_a_residual_that_rises_is_doubted() -> None:
    refined = Refiner(SCAN.probe).refine(flat(SCAN), stored(SCAN), 2)
    assert refined is not None
    assert refined.doubt is None
    risen = replace(refined, residuals=refined.residuals[::-1])
    assert risen.doubt is not None
    assert "raised the residual from" in risen.doubt


def test_patterns_that_hardly_overlap_are_doubted_though_the_residual_falls() -> None:
    apart = replace(SCAN, positions_px=7 * SCAN.positions_px, truth=np.ones((640, 700)))
    refined = Refiner(SCAN.probe).refine(flat(apart), stored(apart), 2)
    assert refined is not None
    assert refined.residuals[-1] < refined.residuals[0]
    assert refined.doubt is not None
    assert "hardly overlap" in refined.doubt


def test_windows_wider_than_patches_may_reach_over_the_object() -> None:
    settings = replace(SETTINGS, pattern_size=128, scan_shape_px=(40, 40))
    scan = simulate_scan(settings, seed=1)
    # What is stitched ends where patches do, 32 px inside of the windows.
    first = np.floor(scan.positions_px.min(axis=0)).astype(int)
    last = np.ceil(scan.positions_px.max(axis=0)).astype(int) + 64
    assert (first >= window_offset(128, 128)).all()
    shape = tuple(last - first)
    start = ObjectImage(
        np.full(shape, 0.8, np.complex64), np.ones(shape, np.float32), 0, (first[0], first[1])
    )
    refined = Refiner(scan.probe).refine(start, stored(scan), 20)
    assert refined.image.values.shape == shape
    here = scan.truth[first[0] : last[0], first[1] : last[1]]
    pair = [np.stack([np.abs(v), np.angle(v)])[None, :, 20:-20, 20:-20].astype(np.float32)
            for v in (refined.image.values, here)]  # fmt: skip
    # Rounding decides phases where a flat object sends no light: 0.048 to 0.068 for starts that
    # differ by a millionth.
    assert patch_errors(*pair).phase_rad < 0.1
