"""The simulated far-field HEDM series: geometry, counts, defects and truth."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from edgexnas.errors import ConfigurationError
from edgexnas.frames import ArrayFrames, Truth, load_truth, open_frames
from edgexnas.simulate import HedmSettings, SimulatedSeries, save_series, simulate_hedm
from edgexnas.simulate.background_noise import BackgroundNoise
from edgexnas.simulate.crystal import MATERIALS, random_rotations, reciprocal_vectors
from edgexnas.simulate.spot_profile import HALF_WINDOWS_PX, expected_counts

CLEAN: dict[str, Any] = {
    "background_counts": 0.0,
    "readout_noise": 0.0,
    "stray_events": 0.0,
    "dead_pixel_fraction": 0.0,
    "hot_pixel_fraction": 0.0,
    "saturation": 65_535,
}


def small(**changes: Any) -> HedmSettings:
    defaults: dict[str, Any] = {"shape": (256, 256), "frames": 6, "pixel_mm": 0.8, "grains": 20}
    return HedmSettings(**{**defaults, **changes})


@pytest.fixture(scope="module")
def series() -> SimulatedSeries:
    return simulate_hedm(small(), seed=7)


def spot(**changes: float) -> Truth:
    """One spot of 1000 counts, round and Gaussian unless changed."""
    values: dict[str, float] = dict.fromkeys(Truth.__dataclass_fields__, 0)
    values |= {"row": 50.0, "col": 60.0, "counts": 1000, "fwhm_major_px": 2, "fwhm_minor_px": 2}
    return Truth.from_columns({name: np.array([v]) for name, v in (values | changes).items()})


class TestGeometry:
    def test_spots_lie_on_the_rings_of_braggs_law(self) -> None:
        settings = small(sample_radius_mm=0.0, material="nickel")
        truth = simulate_hedm(settings).truth
        centre_row, centre_col = settings.centre_px
        radius = np.hypot(truth.row - centre_row, truth.col - centre_col) * settings.pixel_mm
        theta = np.arctan2(radius, settings.distance_mm) / 2
        # |hkl|² of a face-centred cubic crystal, from nλ = 2 d sin θ.
        squared = (2 * 3.5238 * np.sin(theta) / settings.wavelength) ** 2
        np.testing.assert_allclose(squared, np.rint(squared), atol=1e-6)
        assert set(np.rint(squared).astype(int)) <= {
            *(3, 4, 8, 11, 12, 16, 19, 20, 24, 27, 32, 35, 36, 40, 43, 44, 48, 51, 52, 56, 59),
            *(64, 67, 68, 72, 75, 76, 80, 83, 84, 88, 91, 96, 99, 100),
        }

    def test_grains_off_the_axis_move_their_spots_off_the_rings(self) -> None:
        ideal = simulate_hedm(small(sample_radius_mm=0.0)).truth
        real = simulate_hedm(small(sample_radius_mm=0.3)).truth
        assert not np.isin(real.row, ideal.row).all()

    def test_a_reflection_is_brightest_on_the_frame_at_its_angle(
        self, series: SimulatedSeries
    ) -> None:
        truth = series.truth
        assert series.omega_deg is not None
        for reflection in np.unique(truth.reflection):
            rows = truth.select(truth.reflection == reflection)
            brightest = rows.frame[np.argmax(rows.counts)]
            start, end = series.omega_deg[rows.frame].T
            own = rows.frame[(start <= rows.omega_deg) & (rows.omega_deg < end)]
            assert brightest in own or not len(own)

    def test_a_reflection_spreads_over_neighbouring_frames(self, series: SimulatedSeries) -> None:
        frames: dict[int, list[int]] = {}
        for reflection, frame in zip(series.truth.reflection, series.truth.frame, strict=True):
            frames.setdefault(int(reflection), []).append(int(frame))
        assert all(max(f) - min(f) == len(f) - 1 <= 4 for f in frames.values())
        assert Counter(map(len, frames.values()))[2] > 0

    def test_a_full_turn_ends_where_it_began(self) -> None:
        settings = small(frames=360, omega_step_deg=1.0, grains=1, mosaic_quantiles_deg=(1.0, 1.5))
        truth = simulate_hedm(settings).truth
        on = {
            int(r): set(truth.frame[truth.reflection == r]) for r in truth.reflection[:50].tolist()
        }
        assert any({0, 359} <= frames for frames in on.values())

    def test_no_reflection_of_corundum_breaks_its_extinction_rules(self) -> None:
        material = MATERIALS["ruby"]
        hkl = reciprocal_vectors(material, 0.8) @ np.linalg.inv(material.reciprocal()).T
        h, k, el = np.rint(hkl).astype(int).T
        assert ((-h + k + el) % 3 == 0).all()
        assert (el[h * k * (h + k) == 0] % 2 == 0).all()
        # 012, the first line of corundum, has d = 3.479 Å (ICDD 10-0173).
        longest = 1 / np.linalg.norm(hkl @ material.reciprocal().T, axis=1).min()
        assert longest == pytest.approx(3.48, abs=0.005)

    def test_orientations_are_rotations(self) -> None:
        rotations = random_rotations(50, np.random.default_rng(0))
        np.testing.assert_allclose(
            rotations @ rotations.transpose(0, 2, 1), np.tile(np.eye(3), (50, 1, 1)), atol=1e-12
        )
        np.testing.assert_allclose(np.linalg.det(rotations), 1)

    def test_orientations_have_no_preferred_direction(self) -> None:
        mean = random_rotations(20_000, np.random.default_rng(0)).mean(axis=0)
        assert np.abs(mean).max() < 0.02


class TestProfile:
    @pytest.mark.parametrize("offset", [0.0, 0.25, -0.4])
    def test_the_centroid_is_where_the_truth_says(self, offset: float) -> None:
        patch = expected_counts(spot(row=50 + offset, col=60 - offset), 10)[0].astype(float)
        axis = np.arange(-10, 11)
        assert patch.sum(axis=1) @ axis / patch.sum() == pytest.approx(offset, abs=2e-3)
        assert patch.sum(axis=0) @ axis / patch.sum() == pytest.approx(-offset, abs=2e-3)

    def test_a_pixel_expects_the_mean_over_its_area(self) -> None:
        fine = (np.arange(101) - 50) / 101
        q = (fine[:, None] ** 2 + fine[None, :] ** 2) / 1.2**2
        exact = 1000 * np.exp(-4 * np.log(2) * q).mean()
        patch = expected_counts(spot(fwhm_major_px=1.2, fwhm_minor_px=1.2), 6)
        assert patch[0, 6, 6] == pytest.approx(exact, rel=2e-3)

    def test_the_angle_turns_the_major_axis_from_columns_to_rows(self) -> None:
        flat = expected_counts(spot(fwhm_major_px=4, angle_rad=0), 10)[0]
        steep = expected_counts(spot(fwhm_major_px=4, angle_rad=np.pi / 2), 10)[0]
        np.testing.assert_allclose(steep, flat.T, rtol=1e-3, atol=1e-3)
        assert flat[10, 12] > flat[12, 10]
        diagonal = expected_counts(spot(fwhm_major_px=4, angle_rad=np.pi / 4), 10)[0]
        assert diagonal[12, 12] > diagonal[12, 8]

    def test_a_gaussian_has_fallen_to_half_at_half_its_width(self) -> None:
        patch = expected_counts(spot(fwhm_major_px=10, fwhm_minor_px=10), 24)[0]
        assert patch[24, 29] / patch[24, 24] == pytest.approx(0.5, abs=0.01)

    @pytest.mark.parametrize("half", HALF_WINDOWS_PX)
    def test_tails_end_smoothly_at_the_window(self, half: int) -> None:
        patch = expected_counts(spot(mixing=1.0), half)[0]
        assert patch[half, -1] == 0
        steps = np.abs(np.diff(patch[half, half + 4 :]))
        assert (steps[1:] <= steps[:-1] * 1.5 + 0.5).all()


class TestCounts:
    def test_frames_expect_what_the_truth_says(self) -> None:
        settings = small(**CLEAN, grains=5, frames=2)
        frame = simulate_hedm(settings)[0]
        expected = np.zeros(settings.shape)
        spots = simulate_hedm(settings).truth.of_frame(0)
        padded = np.pad(expected, 12)
        for (row, col), patch in zip(
            np.rint(spots.positions_px).astype(int), expected_counts(spots, 12), strict=True
        ):
            padded[row : row + 25, col : col + 25] += patch
        expected = padded[12:-12, 12:-12]
        lit = expected > 20
        deviation = (frame[lit] - expected[lit]) / np.sqrt(expected[lit])
        assert lit.sum() > 100
        assert abs(deviation.mean()) < 0.2
        assert deviation.std() == pytest.approx(1, abs=0.15)

    def test_the_background_is_poisson_plus_readout_noise(self) -> None:
        noise = BackgroundNoise(np.full((512, 512), 20.0), counts_per_photon=1, readout_noise=1.5)
        counts = noise.draw(np.random.default_rng(0))
        # 1/12 is what rounding the readout noise to whole counts adds.
        variance = 20 + 1.5**2 + 1 / 12
        assert counts.mean() == pytest.approx(20, abs=0.05)
        assert counts.var() == pytest.approx(variance, rel=0.01)
        skew = ((counts - counts.mean()) ** 3).mean() / counts.var() ** 1.5
        assert skew == pytest.approx(20 / variance**1.5, abs=0.02)

    def test_the_tails_of_the_background_are_not_cut(self) -> None:
        noise = BackgroundNoise(np.full((1024, 1024), 9.0), counts_per_photon=1, readout_noise=0)
        counts = noise.draw(np.random.default_rng(1))
        # Poisson: P(n ≥ 25 | 9) = 1.43e-5, below the resolution of 16 bits.
        assert (counts >= 25).sum() == pytest.approx(1.43e-5 * 1024**2, abs=13)

    def test_the_background_follows_its_map(self) -> None:
        series = simulate_hedm(
            small(grains=0, background_counts=50.0, background_slope=0.5, stray_events=0.0)
        )
        usable = ~series.mask if series.mask is not None else np.ones(series.shape, bool)
        mean = np.mean(list(series), axis=0)
        assert mean[:64][usable[:64]].mean() < mean[-64:][usable[-64:]].mean()
        deviation = (mean - series.background)[usable]
        assert abs(deviation.mean()) < 0.1

    def test_gain_multiplies_the_noise(self) -> None:
        expected = np.full((256, 256), 100.0)
        counts = BackgroundNoise(expected, counts_per_photon=4, readout_noise=0).draw(
            np.random.default_rng(0)
        )
        assert counts.mean() == pytest.approx(100, abs=0.5)
        assert counts.var() == pytest.approx(400, rel=0.03)

    def test_counts_stop_at_saturation(self) -> None:
        series = simulate_hedm(small(saturation=500))
        truth = series.truth.of_frame(0)
        assert series[0].max() == 500
        assert truth.saturated.any()
        bright = truth.select(truth.saturated & ~truth.masked)
        row, col = np.rint(bright.positions_px).astype(int).T
        assert (series[0][row, col] > 350).all()

    def test_zero_suppression_records_only_what_exceeds_the_threshold(self) -> None:
        frame = simulate_hedm(small(sparse_threshold=100.0))[0]
        assert frame[frame > 0].min() == 101
        assert (frame == 0).mean() > 0.9

    def test_stray_photons_light_single_pixels(self) -> None:
        settings = small(**{**CLEAN, "stray_events": 200.0, "grains": 0})
        frame = simulate_hedm(settings)[0]
        assert (frame > 0).sum() == pytest.approx(200, abs=50)
        assert frame[frame > 0].mean() == pytest.approx(100, abs=25)


class TestDetector:
    def test_masked_pixels_read_zero_or_saturation(self) -> None:
        series = simulate_hedm(small(dead_pixel_fraction=0.01, hot_pixel_fraction=0.01))
        assert series.mask is not None
        assert set(np.unique(series[0][series.mask])) == {0, 16_000}
        assert series.mask.mean() == pytest.approx(0.02, abs=0.005)

    def test_gaps_between_modules_are_masked(self) -> None:
        series = simulate_hedm(small(module_shape=(100, 120), gap_px=6, dead_pixel_fraction=0))
        assert series.mask is not None
        assert series.mask[100:106].all()
        assert series.mask[:, 120:126].all()
        assert not series.mask[:100, :120].all()
        assert series[0][102].max() == 0

    def test_the_truth_marks_patches_with_a_masked_pixel(self) -> None:
        series = simulate_hedm(small(dead_pixel_fraction=0.003))
        assert series.mask is not None
        padded = np.pad(series.mask, 5)
        centres = np.rint(series.truth.positions_px).astype(int)
        touched = [padded[row : row + 11, col : col + 11].any() for row, col in centres]
        assert 0 < np.mean(touched) < 1
        np.testing.assert_array_equal(series.truth.masked, touched)

    def test_a_perfect_detector_has_no_mask(self) -> None:
        assert simulate_hedm(small(**CLEAN)).mask is None


class TestTruth:
    def test_it_is_sorted_by_frame_and_place(self, series: SimulatedSeries) -> None:
        truth = series.truth
        keys = list(zip(truth.frame, truth.row, truth.col, strict=True))
        assert keys == sorted(keys)
        assert truth.frame.min() >= 0
        assert truth.frame.max() < len(series)

    def test_centres_lie_on_the_frame(self, series: SimulatedSeries) -> None:
        rows, columns = series.shape
        row, col = np.rint(series.truth.positions_px).astype(int).T
        assert ((row >= 0) & (row < rows) & (col >= 0) & (col < columns)).all()

    def test_overlap_means_a_visible_neighbour_within_ten_pixels(
        self, series: SimulatedSeries
    ) -> None:
        truth = series.truth.of_frame(1)
        centres = np.rint(truth.positions_px).astype(int)
        near = (np.abs(centres[:, None] - centres[None]) <= 10).all(axis=-1) & truth.visible
        np.fill_diagonal(near, False)
        assert truth.overlap.any()
        np.testing.assert_array_equal(truth.overlap, near.any(axis=1))

    def test_visible_spots_rise_five_sigmas_above_the_background(
        self, series: SimulatedSeries
    ) -> None:
        truth = series.truth
        row, col = np.rint(truth.positions_px).astype(int).T
        sigma = np.sqrt(series.background[row, col] + 1.5**2)
        assert 0 < truth.visible.mean() < 1
        assert (truth.counts[truth.visible] >= 5 * sigma[truth.visible]).all()

    def test_widths_and_angles_are_in_range(self, series: SimulatedSeries) -> None:
        truth = series.truth
        assert (truth.fwhm_major_px >= truth.fwhm_minor_px).all()
        mean = np.sqrt(truth.fwhm_major_px * truth.fwhm_minor_px)
        assert mean.min() >= 1.2 - 1e-5
        assert mean.max() <= 3.0 + 1e-5
        assert (np.abs(truth.angle_rad) <= np.pi / 2 + 1e-6).all()


class TestDeterminism:
    def test_equal_seeds_give_equal_frames(self, series: SimulatedSeries) -> None:
        again = simulate_hedm(small(), seed=7)
        np.testing.assert_array_equal(again[3], series[3])

    def test_a_frame_does_not_depend_on_what_was_read_before(self, series: SimulatedSeries) -> None:
        last = series[5]
        for _ in series:
            pass
        np.testing.assert_array_equal(series[5], last)

    def test_another_seed_gives_other_frames(self, series: SimulatedSeries) -> None:
        assert (simulate_hedm(small(), seed=8)[0] != series[0]).mean() > 0.5

    def test_two_frames_have_different_noise(self, series: SimulatedSeries) -> None:
        assert (series[0] != series[1]).mean() > 0.5


class TestSettings:
    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"frames": 0}, "frames is 0"),
            ({"frames": 2000}, r"500°; choose at most a turn"),
            ({"shape": (5, 100)}, r"shape is \(5, 100\)"),
            ({"material": "unobtainium"}, "choose one of nickel, ruby"),
            ({"saturation": 70_000}, "saturation is 70000"),
            ({"fwhm_quantiles_px": (3.0, 1.0)}, "two or more increasing values"),
            ({"mixing_quantiles": (0.0, 1.5)}, "mixing_quantiles"),
            ({"energy_kev": float("nan")}, "energy_kev is nan"),
        ],
    )
    def test_a_value_out_of_range_is_refused_by_name(
        self, changes: dict[str, Any], reason: str
    ) -> None:
        with pytest.raises(ConfigurationError, match=reason):
            HedmSettings(**changes)

    def test_quantiles_cut_a_distribution_into_equal_parts(self) -> None:
        settings = small(frames=60, peak_quantiles=(10.0, 1000.0, 2000.0))
        truth = simulate_hedm(settings).truth
        brightest = np.zeros(truth.reflection.max() + 1)
        np.maximum.at(brightest, truth.reflection, truth.counts)
        assert (brightest[brightest > 0] > 1000).mean() == pytest.approx(0.5, abs=0.1)


class TestSaving:
    def test_a_saved_series_is_read_back_whole(
        self, series: SimulatedSeries, tmp_path: Path
    ) -> None:
        path = save_series(series, tmp_path / "sim.h5")
        with open_frames(path) as read:
            np.testing.assert_array_equal(np.stack(list(read)), np.stack(list(series)))
            np.testing.assert_array_equal(read.omega_deg, series.omega_deg)
            np.testing.assert_array_equal(read.mask, series.mask)
            assert read.dtype == series.dtype
        truth = load_truth(path)
        assert truth is not None
        for name, column in series.truth.columns().items():
            np.testing.assert_array_equal(truth.columns()[name], column)
            assert truth.columns()[name].dtype == column.dtype

    def test_it_is_nexus(self, series: SimulatedSeries, tmp_path: Path) -> None:
        with h5py.File(save_series(series, tmp_path / "sim.h5")) as file:
            entry = file[file.attrs["default"]]
            data = entry[entry.attrs["default"]]
            signal = data[data.attrs["signal"]]
            assert signal.chunks == (1, *series.shape)
            assert entry["instrument/detector/data"] == signal
            assert entry["instrument/detector"].attrs["NX_class"] == "NXdetector"

    def test_frames_without_truth_angles_and_mask_can_be_saved(self, tmp_path: Path) -> None:
        stack = np.random.default_rng(0).normal(size=(2, 20, 30)).astype(np.float32)
        path = save_series(ArrayFrames(stack), tmp_path / "plain.h5")
        with open_frames(path) as read:
            np.testing.assert_array_equal(np.stack(list(read)), stack)
            assert read.mask is None
            assert read.omega_deg is None
            assert read.truth is None

    def test_a_failure_leaves_the_old_file_and_nothing_else(self, tmp_path: Path) -> None:
        path = save_series(ArrayFrames(np.ones((1, 20, 30))), tmp_path / "plain.h5")
        before = path.read_bytes()
        closed = ArrayFrames(np.zeros((1, 20, 30)))
        closed.close()
        with pytest.raises(OSError, match="is closed"):
            save_series(closed, path)
        assert [file.name for file in tmp_path.iterdir()] == ["plain.h5"]
        assert path.read_bytes() == before

    def test_a_missing_folder_is_refused(self, series: SimulatedSeries, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="name a file in an existing folder"):
            save_series(series, tmp_path / "none" / "sim.h5")
