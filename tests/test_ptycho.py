from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgexnas import ptycho
from edgexnas.errors import ConfigurationError, InputError


def smooth_object(height: int, width: int) -> np.ndarray:
    row, col = np.mgrid[:height, :width]
    phase = 0.5 * np.sin(row / 9.0) * np.cos(col / 7.0)
    amplitude = 1 + 0.2 * np.cos(row / 11.0 + col / 13.0)
    return (amplitude * np.exp(1j * phase)).astype(np.complex64)


def cut(obj: np.ndarray, positions: np.ndarray) -> np.ndarray:
    return np.stack([obj[r : r + 64, c : c + 64] for r, c in positions.astype(int)])


def test_patterns_with_a_channel_axis_are_accepted() -> None:
    assert ptycho.as_patterns(np.ones((3, 1, 64, 64), np.uint16)).shape == (3, 64, 64)


@pytest.mark.parametrize(
    "patterns",
    [
        np.zeros((2, 128, 128)),
        np.zeros((64, 64)),
        np.full((1, 64, 64), -1.0),
        np.full((1, 64, 64), np.nan),
        np.zeros((1, 64, 64), complex),
    ],
    ids=["size", "axes", "negative", "nan", "complex"],
)
def test_unusable_patterns_are_refused(patterns: np.ndarray) -> None:
    with pytest.raises(InputError):
        ptycho.as_patterns(patterns)


def test_binning_keeps_every_count_around_the_direct_beam() -> None:
    pattern = np.zeros((1, 200, 180), np.uint16)
    pattern[0, 100, 90] = 7
    binned = ptycho.bin_patterns(pattern, 2)
    assert binned.sum() == 7
    assert binned[0, 32, 32] == 7


def test_binning_refuses_a_detector_that_is_too_small() -> None:
    with pytest.raises(InputError, match="needs"):
        ptycho.bin_patterns(np.zeros((1, 100, 100)), 2)


def test_the_intensity_scale_becomes_one_at_the_input() -> None:
    assert ptycho.scale_patterns(np.full((1, 64, 64), 400, np.float32), 400.0).max() == 1


def test_an_intensity_scale_of_zero_is_refused() -> None:
    with pytest.raises(ConfigurationError):
        ptycho.scale_patterns(np.ones((1, 64, 64), np.float32), 0.0)


@given(st.floats(-3.1, 3.1))
def test_a_global_phase_is_removed(phase: float) -> None:
    obj = smooth_object(64, 64)
    turned = (obj * np.exp(1j * phase)).astype(np.complex64)
    np.testing.assert_allclose(ptycho.align_phase(turned, obj), obj, atol=1e-5)


def test_patches_cut_from_an_object_are_stitched_back_to_it() -> None:
    obj = smooth_object(100, 120)
    positions = np.array([[r, c] for r in range(0, 36, 7) for c in range(0, 56, 5)])
    canvas = ptycho.ObjectCanvas((100, 120))
    canvas.add(cut(obj, positions), positions)
    image = canvas.image()
    covered = image.coverage > 0
    np.testing.assert_allclose(image.values[covered], obj[covered], atol=1e-5)
    assert covered.mean() > 0.9


def test_a_fraction_of_a_pixel_moves_the_patch_by_that_fraction() -> None:
    patch = np.zeros((1, 64, 64), np.complex64)
    patch[0, 32, 32] = 1
    canvas = ptycho.ObjectCanvas((80, 80), weight=np.ones((64, 64), np.float32))
    canvas.add(patch, [[3.25, 4.5]])
    total = np.abs(canvas.image().values)
    row, col = np.mgrid[:80, :80]
    assert (total * row).sum() / total.sum() == pytest.approx(35.25)
    assert (total * col).sum() / total.sum() == pytest.approx(36.5)


@given(st.integers(1, 9))
def test_the_image_does_not_depend_on_batching(batch: int) -> None:
    rng = np.random.default_rng(1)
    obj = smooth_object(100, 100)
    positions = rng.uniform(0, 35, (10, 2))
    patches = cut(obj, positions)
    whole, parts = ptycho.ObjectCanvas((100, 100)), ptycho.ObjectCanvas((100, 100))
    whole.add(patches, positions)
    for at in range(0, 10, batch):
        parts.add(patches[at : at + batch], positions[at : at + batch])
    assert np.array_equal(whole.image().values, parts.image().values)


def test_patches_without_a_usable_position_are_counted_and_skipped() -> None:
    canvas = ptycho.ObjectCanvas((100, 100))
    positions = [[np.nan, 3], [-1, 0], [0, 80], [5, 5]]
    canvas.add(np.ones((4, 64, 64), np.complex64), positions)
    image = canvas.image()
    assert image.skipped == 3
    assert image.coverage[0, 0] == 0


def test_positions_of_another_number_than_patches_are_refused() -> None:
    with pytest.raises(InputError, match="positions"):
        ptycho.ObjectCanvas((100, 100)).add(np.ones((2, 64, 64), np.complex64), [[0, 0]])


@pytest.mark.real
def test_the_real_siemens_star_survives_cutting_and_stitching(real_data: Path) -> None:
    reference = np.load(real_data / "siemens_star_velociprobe" / "derived_rpie_reference.npz")
    obj, positions = reference["object"], np.round(reference["positions_rc"]) + 32
    canvas = ptycho.ObjectCanvas(obj.shape)
    canvas.add(cut(obj, positions).astype(np.complex64), positions)
    image = canvas.image()
    covered = image.coverage > 0
    np.testing.assert_allclose(image.values[covered], obj[covered], atol=1e-4)
    assert image.skipped == 0


def patches(amplitude: float, phase_rad: float) -> np.ndarray:
    flat = np.full((2, 2, 64, 64), amplitude, np.float32)
    flat[:, 1] = phase_rad
    return flat


def test_patches_that_differ_by_constant_phases_have_no_phase_error() -> None:
    reference = np.random.default_rng(0).random((2, 2, 64, 64), np.float32)
    turned = reference.copy()
    turned[0, 1] += 1
    turned[1, 1] -= 2
    assert ptycho.patch_errors(turned, reference).phase_rad < 1e-6


def test_the_constant_phase_is_that_of_align_phase() -> None:
    rng = np.random.default_rng(0)
    guess, truth = rng.random((2, 1, 2, 64, 64), np.float32)
    aligned = ptycho.align_phase(ptycho.to_complex(*guess[0]), ptycho.to_complex(*truth[0]))
    expected = np.abs(np.angle(aligned * np.exp(-1j * truth[0, 1]))).mean()
    assert ptycho.patch_errors(guess, truth).phase_rad == pytest.approx(expected, rel=1e-4)


def test_phase_errors_go_the_short_way_round() -> None:
    wrapped = patches(1.0, 0.0)
    wrapped[:, 1, :32], wrapped[:, 1, 32:] = np.pi - 0.1, -np.pi + 0.1
    errors = ptycho.patch_errors(wrapped, patches(1.0, 0.0))
    assert errors.phase_rad == pytest.approx(0.1, rel=1e-4)


def test_amplitude_errors_are_shares_of_the_mean() -> None:
    errors = ptycho.patch_errors(patches(0.6, 0.0), patches(0.5, 0.0))
    assert errors.amplitude == pytest.approx(0.2, rel=1e-5)


@pytest.mark.parametrize(
    ("guess", "reference"),
    [
        (patches(1, 0), patches(1, 0)[:1]),
        (patches(1, 0)[:0], patches(1, 0)[:0]),
        (patches(1, 0), patches(0, 0)),
    ],
)
def test_patches_that_cannot_be_compared_are_refused(
    guess: np.ndarray, reference: np.ndarray
) -> None:
    with pytest.raises(InputError, match="give"):
        ptycho.patch_errors(guess, reference)
