"""The rules of phase retrieval, on scans whose object is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from edgexnas.errors import ConfigurationError, InputError
from edgexnas.host.data.phase_retrieval import Reconstruction, reconstruct
from edgexnas.host.data.ptycho_labels import check_scan, doubt
from edgexnas.ptycho import align_phase
from edgexnas.scans import Scan
from edgexnas.simulate import PtychographySettings, diffract, simulate_scan

SETTINGS = PtychographySettings(object_kind="cells", scan_shape_px=(60, 60), step_px=7, jitter_px=1)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def scan() -> Scan:
    return simulate_scan(SETTINGS, seed=2)


@pytest.fixture(scope="module")
def found(scan: Scan) -> Reconstruction:
    return reconstruct(scan, iterations=20)


def phase_error(found: Reconstruction, scan: Scan) -> float:
    """Mean absolute phase error where the light is, in radians.

    A tilt, which object and beam may exchange, is no error.
    """
    offset = (scan.positions_px - found.positions_px)[0].astype(int)
    first = np.maximum(-offset, 0) + 32
    last = np.minimum(found.object.shape, scan.truth.shape - offset) - 32
    ours = found.object[first[0] : last[0], first[1] : last[1]]
    first, last = first + offset, last + offset
    truth = scan.truth[first[0] : last[0], first[1] : last[1]]
    error = np.angle(align_phase(ours, truth) * truth.conj())
    plane = np.stack([np.ones(error.size), *(axis.ravel() for axis in np.indices(error.shape))], 1)
    error = error.ravel() - plane @ np.linalg.lstsq(plane, error.ravel(), rcond=None)[0]
    return float(np.abs(error).mean())


def test_the_object_is_found_where_the_light_was(scan: Scan, found: Reconstruction) -> None:
    assert phase_error(found, scan) < 0.03


def test_the_error_falls_to_that_of_the_true_object(scan: Scan, found: Reconstruction) -> None:
    model = diffract(scan.truth, scan.probe, scan.window_corners_px)
    noise = np.square(np.sqrt(scan.patterns) - np.sqrt(model)).sum() / scan.patterns.sum()
    assert found.error_history[-1] < 1.05 * noise
    assert found.error_history[-1] < 0.2 * found.error_history[0]


def test_wrong_positions_explain_no_patterns_and_right_ones_do(
    scan: Scan, found: Reconstruction
) -> None:
    assert found.explains
    positions = scan.positions_px
    shuffled = np.random.default_rng(0).permutation(positions)
    for wrong in (positions[:, ::-1], positions.sum(axis=0) - positions, shuffled):
        assert not reconstruct(replace(scan, positions_px=wrong), iterations=6).explains


def test_patterns_that_differ_by_noise_alone_are_not_judged(scan: Scan) -> None:
    few = np.random.default_rng(0).poisson(scan.patterns.mean(axis=0) / 100, scan.patterns.shape)
    found = reconstruct(replace(scan, patterns=few), iterations=3)
    assert found.photon_noise == pytest.approx(found.mean_pattern_error, rel=0.05)
    assert found.explains


def test_normalised_patterns_are_judged_without_the_noise_of_photons(scan: Scan) -> None:
    normalised = replace(scan, patterns=scan.patterns / scan.patterns.max())
    right = reconstruct(normalised, iterations=12)
    assert not right.counted
    assert right.explains
    shuffled = np.random.default_rng(0).permutation(scan.positions_px)
    wrong = reconstruct(replace(normalised, positions_px=shuffled), iterations=6)
    assert not wrong.explains
    assert "normalised" in doubt(normalised, wrong)


def test_patterns_that_are_all_the_same_explain_no_object(scan: Scan) -> None:
    same = np.broadcast_to(scan.patterns.mean(axis=0), scan.patterns.shape)
    assert not reconstruct(replace(scan, patterns=same), iterations=3).explains


def test_patterns_that_share_no_light_are_rejected_before_any_work(scan: Scan) -> None:
    apart = replace(scan, positions_px=scan.positions_px * 20, truth=None)
    for refuse in (check_scan, reconstruct):
        with pytest.raises(InputError, match=r"too far to overlap in windows of 64 px; specify"):
            refuse(apart)


def test_modes_are_orthogonal_and_carry_the_photons(scan: Scan, found: Reconstruction) -> None:
    flat = found.probe.reshape(3, -1)
    gram = np.abs(flat @ flat.conj().T)
    power = np.diag(gram)
    assert (np.diff(power) < 0).all()
    np.testing.assert_allclose(gram - np.diag(power), 0, atol=1e-3 * power[0])


def test_the_amplitude_fits_between_0_and_1(found: Reconstruction) -> None:
    lit = found.illumination > 0.05 * np.median(found.illumination[found.illumination > 0])
    assert np.percentile(np.abs(found.object[lit]), 99.9) == pytest.approx(0.95, abs=0.01)


def test_equal_seeds_give_equal_objects(scan: Scan) -> None:
    first, second = (reconstruct(scan, iterations=2, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first.object, second.object)


def test_a_pattern_without_a_position_is_left_out(scan: Scan) -> None:
    positions = scan.positions_px.copy()
    positions[5] = np.nan
    spoilt = scan.patterns.copy()
    spoilt[5] = 9999
    kept = np.arange(len(scan)) != 5
    without = replace(scan, patterns=scan.patterns[kept], positions_px=positions[kept])
    unknown = replace(scan, patterns=spoilt, positions_px=positions)
    first, second = (reconstruct(item, iterations=2) for item in (without, unknown))
    np.testing.assert_array_equal(first.object, second.object)
    assert np.isnan(second.positions_px[5]).all()


def test_masked_pixels_do_no_harm() -> None:
    scan = simulate_scan(replace(SETTINGS, hot_pixel_fraction=0.01, beam_stop_px=2), seed=2)
    assert phase_error(reconstruct(scan, iterations=20), scan) < 0.03


def test_without_a_first_probe_the_fit_is_nearly_as_good(scan: Scan, found: Reconstruction) -> None:
    blind = reconstruct(replace(scan, probe=None), iterations=20)
    assert blind.error_history[-1] < 2 * found.error_history[-1]


def test_progress_is_told_after_each_sweep(scan: Scan) -> None:
    told: list[tuple[int, int]] = []
    reconstruct(scan, iterations=2, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 2), (2, 2)]


def test_a_scan_without_any_position_is_refused(scan: Scan) -> None:
    nowhere = replace(scan, positions_px=np.full_like(scan.positions_px, np.nan))
    with pytest.raises(InputError, match="no known position"):
        reconstruct(nowhere)


def test_positions_that_span_an_impossible_area_are_refused(scan: Scan) -> None:
    with pytest.raises(InputError, match="more than any scan"):
        reconstruct(replace(scan, positions_px=scan.positions_px * 1e40))


def test_a_negative_count_is_refused_by_its_pixel(scan: Scan) -> None:
    patterns = scan.patterns.astype(np.int64)
    patterns[3, 4, 5] = -1
    with pytest.raises(InputError, match="row 4, col 5"):
        reconstruct(replace(scan, patterns=patterns))


@pytest.mark.parametrize("option", [{"iterations": 0}, {"modes": 0}])
def test_options_out_of_range_are_refused(scan: Scan, option) -> None:
    with pytest.raises(ConfigurationError, match="specify 1 or more"):
        reconstruct(scan, **option)
