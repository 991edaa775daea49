"""The rules of simulated ptychography scans."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgexnas.errors import ConfigurationError, InputError
from edgexnas.simulate import PtychographySettings, diffract, simulate_scan
from edgexnas.simulate.ptychography import zone_plate_probe
from edgexnas.simulate.ptychography_objects import OBJECT_KINDS, thickness_map

SMALL = PtychographySettings(scan_shape_px=(40, 50), step_px=10)


def test_equal_seeds_give_equal_scans() -> None:
    first, second = simulate_scan(SMALL, seed=4), simulate_scan(SMALL, seed=4)
    np.testing.assert_array_equal(first.patterns, second.patterns)
    np.testing.assert_array_equal(first.positions_px, second.positions_px)


def test_another_seed_gives_another_object_and_other_noise() -> None:
    first, second = simulate_scan(SMALL, seed=4), simulate_scan(SMALL, seed=5)
    assert (first.truth != second.truth).any()
    assert (first.patterns != second.patterns).any()


@pytest.mark.parametrize("kind", OBJECT_KINDS)
def test_an_object_fills_part_of_its_area_between_nothing_and_full_thickness(kind) -> None:
    thickness = thickness_map(kind, (300, 280), np.random.default_rng(0))
    assert thickness.shape == (300, 280)
    assert 0 <= thickness.min() < 0.05
    assert 0.9 < thickness.max() <= 1
    assert 0.1 < thickness.mean() < 0.7


def test_full_thickness_has_the_transmission_and_the_phase_of_the_settings() -> None:
    settings = replace(SMALL, transmission=0.6, phase_shift_rad=0.9)
    truth = simulate_scan(settings).truth
    assert np.abs(truth).min() == pytest.approx(0.6, abs=0.02)
    assert np.angle(truth).max() == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize("scan", ["raster", "spiral", "random"])
def test_a_scan_covers_its_area_and_stays_inside(scan) -> None:
    settings = PtychographySettings(scan=scan, scan_shape_px=(120, 160), step_px=8)
    positions = simulate_scan(settings).positions_px
    assert (positions.min(axis=0) >= 2).all()
    assert (positions.max(axis=0) <= (122, 162)).all()
    cells = np.unique(((positions - 2) // (30, 40)).clip(0, 3), axis=0)
    assert len(cells) == 16
    assert len(positions) == pytest.approx(16 * 21, rel=0.15)


def test_without_an_object_a_pattern_holds_the_photons_of_the_settings() -> None:
    settings = replace(SMALL, transmission=1, phase_shift_rad=0, photons=1e5)
    patterns = simulate_scan(settings).patterns
    assert patterns.sum(axis=(1, 2)).mean() == pytest.approx(1e5, rel=0.01)


def test_counts_have_the_variance_of_photons() -> None:
    settings = PtychographySettings(
        transmission=1, phase_shift_rad=0, scan_shape_px=(150, 150), step_px=10, jitter_px=0
    )
    patterns = simulate_scan(settings).patterns.astype(float)
    mean, variance = patterns.mean(axis=0), patterns.var(axis=0)
    bright = mean > 20
    assert (variance[bright] / mean[bright]).mean() == pytest.approx(1, abs=0.05)


def test_the_modes_of_the_beam_are_orthogonal_and_share_the_photons() -> None:
    probe = zone_plate_probe(SMALL).reshape(3, -1)
    expected = np.diag(4e5 * np.array(SMALL.mode_powers))
    np.testing.assert_allclose(probe @ probe.conj().T, expected, atol=10)


def test_the_beam_is_as_wide_as_the_settings_say() -> None:
    for radius in (10.0, 22.0):
        settings = replace(SMALL, probe_radius_px=radius, mode_powers=(1.0,))
        light = (np.abs(zone_plate_probe(settings)) ** 2).sum(axis=0)
        away = np.hypot(*(np.indices((64, 64)) - 32))
        assert light[away <= radius + 4].sum() > 0.9 * light.sum()
        assert light[away <= radius - 4].sum() < 0.9 * light.sum()


def test_the_far_field_lies_within_the_aperture_around_pixel_32() -> None:
    flat = np.ones((70, 70), np.complex64)
    pattern = diffract(flat, zone_plate_probe(replace(SMALL, mode_powers=(1.0,))), [[2, 2]])[0]
    away = np.hypot(*(np.indices((64, 64)) - 32))
    assert pattern[away <= 0.15 * 64 + 2].sum() > 0.95 * pattern.sum()
    assert pattern[away < 0.4 * 0.15 * 64 - 2].sum() < 0.05 * pattern.sum()


def test_moving_beam_and_object_together_by_part_of_a_pixel_changes_nothing() -> None:
    rows = np.indices((80, 80))[0]
    sample = [np.exp(0.5j * np.sin(2 * np.pi * (rows + shift) / 20)) for shift in (0.0, 0.4)]
    probe = zone_plate_probe(replace(SMALL, probe_radius_px=12))
    here = diffract(sample[0].astype(np.complex64), probe, [[8.4, 8.0]])
    there = diffract(sample[1].astype(np.complex64), probe, [[8.0, 8.0]])
    np.testing.assert_allclose(here, there, atol=0.01 * here.max())


def test_a_window_off_the_object_is_refused() -> None:
    with pytest.raises(InputError, match="windows of 64×64"):
        diffract(np.ones((70, 70), np.complex64), zone_plate_probe(SMALL), [[7, 0]])


def test_beam_stop_and_hot_pixels_are_masked_and_read_what_they_would() -> None:
    scan = simulate_scan(replace(SMALL, beam_stop_px=3, hot_pixel_fraction=0.01))
    assert scan.mask is not None
    assert scan.mask[32, 32]
    assert (scan.patterns[:, 32, 32] == 0).all()
    read = scan.patterns[:, scan.mask]
    assert set(np.unique(read)) == {0, 65535}
    assert scan.patterns[:, ~scan.mask].max() < 65535


def test_patterns_of_128_pixels_show_the_same_patch() -> None:
    scan = simulate_scan(replace(SMALL, pattern_size=128))
    assert scan.patterns.shape[1:] == (128, 128)
    np.testing.assert_allclose(scan.window_corners_px.min(axis=0), 2, atol=1)


@pytest.mark.parametrize(
    "option",
    [
        {"object_kind": "tree"},
        {"transmission": 0.0},
        {"phase_shift_rad": 4.0},
        {"pattern_size": 100},
        {"scan": "zigzag"},
        {"probe_radius_px": 40.0},
        {"mode_powers": (0.5, 0.2)},
        {"photons": 0},
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(option) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(option))):
        PtychographySettings(**option)
