"""What a fitted pseudo-Voigt promises."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares

from edgexnas.errors import InputError
from edgexnas.host.data.pseudo_voigt import _first_guess, _profile, fit_pseudo_voigt


def patch(
    row=5.2, col=4.7, *, height=1000.0, major=3.0, minor=2.0, angle=0.4, mixing=0.3, level=0.0
) -> np.ndarray:
    """Sample a peak as the module's docstring writes it, but from widths and angle."""
    rows, cols = np.indices((11, 11))
    along = (cols - col) * np.cos(angle) + (rows - row) * np.sin(angle)
    aside = -(cols - col) * np.sin(angle) + (rows - row) * np.cos(angle)
    distance = 4 * ((along / major) ** 2 + (aside / minor) ** 2)
    profile = mixing / (1 + distance) + (1 - mixing) * np.exp(-np.log(2) * distance)
    return (level + height * profile)[None]


@given(
    row=st.floats(4, 6), col=st.floats(4, 6), height=st.floats(50, 1e5), minor=st.floats(1.2, 3),
    ratio=st.floats(1.1, 1.8), angle=st.floats(-1.5, 1.5), mixing=st.floats(0.05, 0.95),
    level=st.floats(0, 20),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_a_peak_without_noise_is_recovered(row, col, height, minor, ratio, angle, mixing, level):
    counts = patch(row, col, height=height, major=minor * ratio, minor=minor, angle=angle,
                   mixing=mixing, level=level)  # fmt: skip
    fit = fit_pseudo_voigt(counts)
    assert fit.converged[0]
    np.testing.assert_allclose(fit.positions_px, [[row, col]], atol=1e-3)
    np.testing.assert_allclose(fit.fwhm_px, [[minor * ratio, minor]], rtol=0.01)
    np.testing.assert_allclose(fit.mixing, mixing, atol=0.02)
    turn = (fit.angle_rad[0] - angle + np.pi / 2) % np.pi - np.pi / 2
    assert abs(turn) < 0.02


def test_height_and_background_are_in_counts():
    fit = fit_pseudo_voigt(patch(height=800, level=30))
    np.testing.assert_allclose([fit.amplitude[0], fit.background[0]], [800, 30], rtol=1e-3)


def test_the_jacobian_is_the_derivative_of_the_model():
    generator = torch.Generator().manual_seed(0)
    middle = torch.tensor([0.1, 1.0, 5.2, 4.7, 0.5, 0.1, 0.4, 0.4], dtype=torch.float64)
    theta = middle + 0.05 * torch.rand(3, 8, generator=generator, dtype=torch.float64)
    _, jacobian = _profile(theta)
    for column in range(8):
        step = torch.zeros(8, dtype=torch.float64)
        step[column] = 1e-6
        slope = (_profile(theta + step)[0] - _profile(theta - step)[0]) / 2e-6
        torch.testing.assert_close(jacobian[:, :, column], slope, atol=1e-7, rtol=1e-6)


def test_positions_equal_those_of_scipy_on_noisy_peaks():
    generator = np.random.default_rng(0)
    counts = np.concatenate(
        [patch(*generator.uniform(4.5, 5.5, 2), height=h) for h in (200, 500, 5000)]
    )
    counts = generator.poisson(counts + 5).astype(np.float64) - 5
    fit = fit_pseudo_voigt(counts)
    for data, position in zip(counts.reshape(3, -1), fit.positions_px, strict=True):
        scaled = torch.as_tensor(data / data.max())[None]
        start = _first_guess(scaled, torch.ones_like(scaled))[0].numpy()
        own = least_squares(
            lambda p, d=scaled[0]: (_profile(torch.as_tensor(p)[None])[0][0] - d).numpy(),
            start,
            bounds=([-1, 0, 2, 2, 0.05, -2, 0.05, 0], [1, 5, 8, 8, 2, 2, 2, 1]),
        )
        np.testing.assert_allclose(position, own.x[2:4], atol=2e-3)


def test_counting_noise_moves_a_bright_peak_by_hundredths_of_a_pixel():
    generator = np.random.default_rng(1)
    truth = generator.uniform(4.5, 5.5, (64, 2))
    counts = generator.poisson(np.concatenate([patch(*p, height=5000) for p in truth]) + 3)
    fit = fit_pseudo_voigt(counts.astype(np.float32))
    assert np.median(np.linalg.norm(fit.positions_px - truth, axis=1)) < 0.02
    assert (fit.r2 > 0.99).all()


def test_the_batch_size_never_changes_a_result():
    generator = np.random.default_rng(2)
    counts = np.concatenate([patch(*generator.uniform(4, 6, 2)) for _ in range(7)])
    whole, parts = fit_pseudo_voigt(counts), fit_pseudo_voigt(counts, batch=2)
    for item in fields(whole):
        np.testing.assert_allclose(getattr(parts, item.name), getattr(whole, item.name), atol=1e-9)


def test_pixels_that_may_not_be_used_do_not_matter():
    counts, usable = patch(), np.ones((1, 11, 11), np.bool_)
    counts[0, 4, 8], usable[0, 4, 8] = 1e6, False
    fit = fit_pseudo_voigt(counts, mask=usable)
    np.testing.assert_allclose(fit.positions_px, [[5.2, 4.7]], atol=1e-3)
    assert fit.r2[0] > 0.999


def test_too_few_usable_pixels_do_not_converge():
    usable = np.zeros((1, 11, 11), np.bool_)
    usable[0, 5, 2:9] = True
    assert not fit_pseudo_voigt(patch(), mask=usable).converged[0]


@pytest.mark.parametrize("value", [0.0, 5.0])
def test_a_patch_without_contrast_gives_finite_numbers_and_no_quality(value):
    fit = fit_pseudo_voigt(np.full((1, 11, 11), value, np.float32))
    assert fit.r2[0] == -np.inf
    assert np.isfinite(fit.positions_px).all()
    assert np.isfinite(fit.fwhm_px).all()


def test_parameters_stay_within_their_limits_on_noise():
    counts = np.random.default_rng(3).poisson(5, (50, 11, 11))
    fit = fit_pseudo_voigt(counts)
    assert (np.abs(fit.positions_px - 5) <= 3).all()
    assert ((fit.mixing >= 0) & (fit.mixing <= 1)).all()
    assert (fit.fwhm_px[:, 0] >= fit.fwhm_px[:, 1]).all()


def test_no_patch_gives_no_fit():
    assert len(fit_pseudo_voigt(np.empty((0, 11, 11), np.float32))) == 0


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(InputError, match=r"mask has shape \(1, 9, 9\)"):
        fit_pseudo_voigt(patch(), mask=np.ones((1, 9, 9), np.bool_))


def test_profiles_are_the_model_that_was_fitted():
    counts = np.concatenate([patch(), patch(5.0, 5.3, major=2.4, angle=-1.2, level=40)])
    np.testing.assert_allclose(fit_pseudo_voigt(counts).profiles(), counts, atol=1.0)
