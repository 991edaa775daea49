"""The rules by which peaks are found, and what a background is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgexnas.bragg import PeakFlag
from edgexnas.errors import ConfigurationError, InputError
from edgexnas.peak_finding import (
    Background,
    FinderSettings,
    PeakFinder,
    SaturationOrigin,
    background_numbers,
    estimate_background,
)
from edgexnas.simulate.detectors import DETECTOR_KINDS, DetectorFrames, simulate_detector

SHAPE = (64, 80)
FLAT = Background(np.full(SHAPE, 10, np.float32), np.full(SHAPE, 3, np.float32))
SPOT = np.array([[20, 90, 25], [80, 200, 70], [30, 60, 20]])
REAL_DTYPES = [np.uint8, np.uint16, np.int16, np.uint32, np.int32, np.int64, np.uint64, np.float32,
               ">u2"]  # fmt: skip


def frame_with(*spots: tuple[int, int], level: int = 10, dtype: object = np.uint16) -> np.ndarray:
    frame = np.full(SHAPE, level, dtype)
    for row, col in spots:
        frame[row - 1 : row + 2, col - 1 : col + 2] += SPOT.astype(frame.dtype)
    return frame


def found(frame: np.ndarray, *, background: Background | None = FLAT, mask=None, **options):
    finder = PeakFinder(
        FinderSettings(**options), shape=frame.shape, background=background, mask=mask
    )
    return finder.find(frame)


def maxima(frame: np.ndarray, **options) -> list[tuple[int, int]]:
    return [(int(row), int(col)) for row, col in found(frame, **options).maxima]


@pytest.mark.parametrize("dtype", REAL_DTYPES)
def test_every_real_dtype_gives_the_same_peaks(dtype):
    frame = frame_with((20, 30), (40, 50), dtype=dtype)
    assert maxima(frame) == [(20, 30), (40, 50)]


def test_peaks_are_sorted_by_row_then_column():
    assert maxima(frame_with((40, 10), (10, 60), (10, 20))) == [(10, 20), (10, 60), (40, 10)]


def test_the_threshold_is_exceeded_not_reached():
    frame = np.zeros(SHAPE, np.uint16)
    frame[30, 30:32] = frame[31, 30] = 20
    assert maxima(frame, background=None, minimum_counts=20) == []
    frame[30, 30:32] = frame[31, 30] = 21
    assert maxima(frame, background=None, minimum_counts=20) == [(30, 30)]


def test_the_larger_of_counts_and_noise_sets_the_threshold():
    loud = replace(FLAT, noise=np.full(SHAPE, 50, np.float32))
    assert maxima(frame_with((20, 30)), background=loud) == []
    assert maxima(frame_with((20, 30)), minimum_counts=250) == []
    assert maxima(frame_with((20, 30)), minimum_counts=199) == []


def test_of_equal_pixels_the_first_in_raster_order_is_the_peak():
    frame = np.zeros(SHAPE, np.uint16)
    frame[30:32, 30:32] = 500
    assert maxima(frame, background=None) == [(30, 30)]


def test_of_two_maxima_within_two_pixels_the_brighter_wins():
    frame = np.zeros(SHAPE, np.uint16)
    frame[29:32, 28:35] = 300
    frame[30, 30], frame[30, 32] = 400, 1000
    assert maxima(frame, background=None) == [(30, 32)]


def test_fewer_lit_pixels_than_the_minimum_are_no_peak():
    frame = np.zeros(SHAPE, np.uint16)
    frame[30, 30:32] = 5000
    assert maxima(frame, background=None) == []
    assert maxima(frame, background=None, minimum_pixels=2) == [(30, 30)]


def test_a_bump_on_a_straight_slope_is_no_peak():
    frame = np.tile(np.arange(80, dtype=np.uint16) * 100 + 1000, (64, 1))
    frame[30, 30] += 250
    assert maxima(frame) == []


@pytest.mark.parametrize("direction", [(0, 1), (1, 0), (1, 1), (1, -1)])
def test_a_bump_on_the_crest_of_a_ring_is_no_peak(direction):
    rows, cols = np.indices(SHAPE)
    across = (direction[1] * (rows - 30) - direction[0] * (cols - 40)) / np.hypot(*direction)
    frame = (1000 * np.exp(-(across**2) / 4)).astype(np.uint16)
    frame[30, 40] += 60
    assert (30, 40) not in maxima(frame)


def test_the_threshold_follows_the_noise_unless_counts_are_asked_for():
    quiet = Background(np.zeros(SHAPE, np.float32), np.full(SHAPE, 0.5, np.float32))
    frame = np.zeros(SHAPE, np.uint16)
    frame[29:32, 29:32] = [[2, 5, 3], [6, 14, 5], [3, 6, 2]]
    assert maxima(frame, background=quiet) == [(30, 30)]
    assert maxima(frame, background=quiet, minimum_counts=20) == []


def ring_frame(seed: int, **options: float) -> np.ndarray:
    """Rings of several widths and heights around one centre, as counted."""
    rows, cols = np.indices((220, 260))
    radius = np.hypot(rows - 90, cols - 120)
    expected = np.full(radius.shape, 5.0)
    for r, height, width in ((40, 400, 1.2), (65, 60, 2.0), (90, 3000, 1.5), (125, 150, 3.0)):
        expected += height * np.exp(-((radius - r) ** 2) / (2 * width**2))
    for row, col, height in options.get("spots", ()):
        expected += height * np.exp(-((rows - row) ** 2 + (cols - col) ** 2) / 3)
    return np.random.default_rng(seed).poisson(expected).astype(np.uint16)


@pytest.mark.parametrize("seed", range(3))
def test_the_crests_of_powder_rings_are_no_peaks(seed):
    frame = ring_frame(seed)
    background = estimate_background([frame])
    assert len(maxima(frame, background=background, ridge_fraction=1.0)) > 5
    assert maxima(frame, background=background) == []


@pytest.mark.parametrize("suppressed", [5, 8, 10, 12, 15, 18, 25])
def test_noise_that_passes_zero_suppression_is_no_peak(suppressed):
    random = np.random.default_rng(7)
    frames = random.poisson(10, (4, 128, 128)).astype(np.uint16)
    rows, cols = np.mgrid[16:128:32, 16:128:32].reshape(2, -1)
    for row, col in zip(rows, cols, strict=True):
        frames[:, row - 1 : row + 2, col - 1 : col + 2] += SPOT.astype(np.uint16)
    frames[frames <= suppressed] = 0
    background = estimate_background(frames)
    counts = [len(found(frame, background=background)) for frame in frames]
    assert min(counts) >= len(rows)
    assert max(counts) <= len(rows) + 1


def test_a_spot_on_a_ring_is_a_peak():
    frame = ring_frame(1, spots=[(90, 160, 4000), (90, 55, 900), (180, 120, 20_000)])
    found = maxima(frame, background=estimate_background([frame]))
    assert len(found) == 3
    for spot in ((90, 160), (90, 55), (180, 120)):
        assert min(abs(np.array(found) - spot).max(axis=1)) <= 1


@pytest.mark.parametrize("radius", [0.8, 1.5, 2.5, 4, 7])
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_a_saturated_plateau_is_one_peak_at_its_centre(radius, dtype):
    rows, cols = np.indices(SHAPE)
    distance = np.hypot(rows - 30.2, cols - 40.3)
    frame = np.clip(14_000 * np.exp((radius - distance) / 2), 0, 14_000).astype(dtype)
    peaks = found(frame, saturation=14_000)
    assert peaks.maxima.tolist() == [[30, 40]]
    assert peaks.flags[0] & PeakFlag.SATURATED


def test_a_saturated_plateau_whose_centre_is_below_the_threshold_is_no_peak():
    frame = np.zeros(SHAPE, np.uint16)
    frame[29:32, 29:32] = 1000
    frame[30, 30] = 950
    assert maxima(frame, background=None, saturation=1000, minimum_counts=940) == [(30, 30)]
    assert maxima(frame, background=None, saturation=1000, minimum_counts=960) == []


def test_a_saturated_area_larger_than_a_spot_is_no_peak():
    frame = np.full(SHAPE, 10, np.uint16)
    frame[20:30, 20:36] = 65535
    assert maxima(frame) == []


def test_a_lone_saturated_pixel_is_no_peak():
    frame = np.full(SHAPE, 10, np.uint16)
    frame[20, 20] = 65535
    assert maxima(frame) == []


@given(st.integers(0, SHAPE[0] - 1), st.integers(0, SHAPE[1] - 1))
@settings(max_examples=60, deadline=None)
def test_a_peak_is_found_wherever_it_lies(row, col):
    wide = np.pad(np.full(SHAPE, 10, np.uint16), 1)
    wide[row : row + 3, col : col + 3] += SPOT.astype(np.uint16)
    assert maxima(wide[1:-1, 1:-1].copy()) == [(row, col)]


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_pixels_near_a_mask_are_judged_like_all_others(seed):
    noise = np.random.default_rng(seed).poisson(30, SHAPE).astype(np.uint16)
    noise[::9, ::7] += 300
    loose = {"minimum_counts": 0, "noise_sigmas": 1, "snr": 3, "prominence_sigmas": 1}
    mask = np.zeros(SHAPE, np.bool_)
    mask[:, 0::6] = True
    hidden = np.where(mask, 0, noise).astype(np.uint16)
    assert maxima(noise, mask=mask, **loose) == maxima(hidden, mask=mask, **loose)


def test_a_hot_masked_pixel_neither_is_nor_hides_a_peak():
    frame, mask = frame_with((20, 30)), np.zeros(SHAPE, np.bool_)
    frame[21, 31] = frame[50, 50] = 65535
    mask[21, 31] = mask[50, 50] = True
    peaks = found(frame, mask=mask)
    assert peaks.maxima.tolist() == [[20, 30]]
    assert peaks.flags.tolist() == [PeakFlag.MASKED]


def test_a_peak_in_the_corner_is_flagged_edge():
    frame = np.full(SHAPE, 10, np.uint16)
    frame[:2, :2] = [[300, 100], [100, 50]]
    peaks = found(frame)
    assert peaks.maxima.tolist() == [[0, 0]]
    assert peaks.flags.tolist() == [PeakFlag.EDGE]


@pytest.mark.parametrize(("dtype", "saturation"), [(np.uint16, None), (np.int32, 60000)])
def test_a_saturated_pixel_anywhere_in_the_patch_is_flagged(dtype, saturation):
    frame = frame_with((20, 30), dtype=dtype)
    assert found(frame, saturation=saturation).flags.tolist() == [0]
    frame[24, 34] = 65535
    assert found(frame, saturation=saturation).flags[0] & PeakFlag.SATURATED


def test_intensities_are_counts_above_background():
    np.testing.assert_array_equal(found(frame_with((20, 30))).intensities, [200])


def test_beyond_the_capacity_the_brightest_stay_and_the_rest_is_counted():
    frame = frame_with((10, 10), (20, 40), (40, 20))
    frame[20, 40] += 100
    frame[40, 20] += 50
    peaks = found(frame, capacity=2)
    assert peaks.maxima.tolist() == [[20, 40], [40, 20]]
    assert peaks.overflow == 1


def test_an_empty_frame_has_no_peaks():
    peaks = found(np.zeros(SHAPE, np.uint16))
    assert len(peaks) == 0
    assert peaks.counts.shape == (0, 11, 11)


def test_a_finder_remembers_nothing_of_earlier_frames():
    finder = PeakFinder(shape=SHAPE, background=FLAT)
    finder.find(frame_with((20, 30)))
    assert finder.find(frame_with((40, 50))).maxima.tolist() == [[40, 50]]


def test_a_frame_that_is_a_view_gives_the_peaks_of_its_copy():
    wide = np.repeat(frame_with((20, 30)), 2, axis=1)
    assert maxima(wide[:, ::2]) == [(20, 30)]


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (np.zeros((64, 81), np.uint16), r"shape \(64, 81\)"),
        (np.zeros(SHAPE, np.complex64), "complex64"),
        (np.where(np.indices(SHAPE).sum(0) == 5, np.nan, 0), r"row 0, col 5\) .* NaN"),
    ],
)
def test_a_frame_that_cannot_be_used_is_refused_by_what_is_wrong(frame, message):
    with pytest.raises(InputError, match=message):
        PeakFinder(shape=SHAPE).find(frame)


def test_nan_is_allowed_under_the_mask():
    frame, mask = frame_with((20, 30), dtype=np.float32), np.zeros(SHAPE, np.bool_)
    frame[21, 31], mask[21, 31] = np.nan, True
    peaks = found(frame, mask=mask)
    assert peaks.maxima.tolist() == [[20, 30]]
    assert np.isfinite(peaks.counts).all()


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(ConfigurationError, match=r"mask has shape \(80, 64\)"):
        PeakFinder(shape=SHAPE, mask=np.zeros(SHAPE[::-1], np.bool_))


@pytest.mark.parametrize(
    "option",
    [{"snr": -1.0}, {"minimum_counts": float("nan")}, {"minimum_pixels": 10}, {"capacity": 0},
     {"saturation": 0.0}, {"ridge_fraction": 0.0}],
)  # fmt: skip
def test_settings_out_of_range_are_refused_by_name(option):
    with pytest.raises(ConfigurationError, match=next(iter(option))):
        FinderSettings(**option)


def test_simulated_peaks_are_found_with_few_mistakes():
    generator = np.random.default_rng(3)
    rows, cols = np.indices((256, 256))
    truth = np.stack(np.meshgrid(np.arange(16, 250, 24), np.arange(16, 250, 24)), -1).reshape(-1, 2)
    frame = np.full((256, 256), 5.0)
    for row, col in truth:
        height = 10 ** generator.uniform(2, 4)
        frame += height * np.exp(-((rows - row) ** 2 + (cols - col) ** 2) / 3)
    frame = generator.poisson(frame).astype(np.uint16)
    peaks = found(frame, background=estimate_background([frame])).maxima
    near = np.abs(peaks[:, None] - truth).max(axis=2) <= 1
    assert near.any(axis=0).mean() > 0.97
    assert near.any(axis=1).mean() > 0.97


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("masked", [False, True])
def test_the_background_of_counted_values_is_that_of_values_one_by_one(
    seed: int, dtype: type, masked: bool
) -> None:
    rng = np.random.default_rng(seed)
    frames = rng.poisson(rng.uniform(0, 60, (70, 90)), (3, 70, 90)).astype(dtype)
    frames[rng.random(frames.shape) < 0.01] = np.iinfo(dtype).max
    mask = rng.random((70, 90)) < 0.1 if masked else None
    counted = estimate_background(frames, mask=mask)
    one_by_one = estimate_background(frames.astype(np.int32), mask=mask)
    np.testing.assert_allclose(counted.level, one_by_one.level, rtol=1e-6)
    np.testing.assert_allclose(counted.noise, one_by_one.noise, rtol=1e-6)


def test_a_background_follows_a_slope_and_ignores_peaks():
    generator = np.random.default_rng(0)
    slope = np.linspace(50, 150, 256)[:, None] * np.ones((1, 192))
    stack = generator.poisson(slope, (3, 256, 192)).astype(np.uint16)
    stack[:, ::16, ::16] = 60000
    background = estimate_background(stack)
    assert np.abs(background.level - slope)[20:-20].max() < 4
    assert np.abs(background.noise / np.sqrt(slope) - 1)[20:-20].max() < 0.25


@pytest.mark.parametrize("mean", [0.05, 0.5, 2.5])
def test_a_background_of_few_counts_is_not_quantised(mean):
    frame = np.random.default_rng(1).poisson(mean, (256, 256)).astype(np.uint16)
    background = estimate_background([frame])
    assert background.level.mean() == pytest.approx(mean, rel=0.15)
    assert background.noise.mean() == pytest.approx(np.sqrt(mean), rel=0.15)


def test_a_zero_suppressed_frame_has_no_background():
    frame = np.zeros((96, 96), np.uint16)
    frame[40:43, 40:43] = 500
    background = estimate_background([frame])
    assert not background.level.any()
    assert not background.noise.any()


def counted_frames(kind: str, frames: int, seed: int) -> DetectorFrames:
    return simulate_detector(
        DETECTOR_KINDS[kind], shape=(256, 300), frames=frames, spots=60, seed=seed
    )


@pytest.mark.parametrize("kind", DETECTOR_KINDS)
def test_default_settings_serve_every_kind_of_detector(kind):
    made = counted_frames(kind, 6, 11)
    finder = PeakFinder(
        shape=made.mask.shape,
        background=estimate_background(made.frames, mask=made.mask),
        mask=made.mask,
    )
    true = right = peaks = found = saturated = flagged = 0
    for frame, seen, other, full in zip(
        made.frames, made.positions_px, made.other_px, made.saturated, strict=True
    ):
        result = finder.find(frame)
        distance = np.linalg.norm(result.maxima[:, None] - np.concatenate([seen, other]), axis=2)
        near = distance <= 2
        true, right = true + len(seen), right + int(near[:, : len(seen)].any(axis=0).sum())
        peaks, found = peaks + len(result), found + int(near.any(axis=1).sum())
        over = (result.flags & np.uint8(PeakFlag.SATURATED)) > 0
        saturated += int(full.sum())
        flagged += int((near[:, : len(seen)] & over[:, None]).any(axis=0)[full].sum())
    assert true > 150
    assert right / true >= 0.97
    assert found / peaks >= 0.97
    assert flagged >= 0.99 * saturated
    assert (saturated > 0) == ("saturating" in kind)


def test_saturation_is_seen_where_many_pixels_share_the_largest_value():
    made = counted_frames("saturating at 14,000", 3, 5)
    background = estimate_background(made.frames)
    assert background.saturation == 14_000
    report = PeakFinder(shape=made.mask.shape, background=background).used(np.uint16)
    assert (report.saturation, report.saturation_from) == (14_000, SaturationOrigin.FRAMES)
    told = PeakFinder(
        FinderSettings(saturation=9000), shape=made.mask.shape, background=background
    ).used(np.uint16)
    assert (told.saturation, told.saturation_from) == (9000, SaturationOrigin.SETTINGS)


@pytest.mark.parametrize("mean", [0.05, 1, 30, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_no_saturation_is_seen_in_counting_noise(mean, seed):
    frames = np.random.default_rng(seed).poisson(mean, (3, 200, 200)).astype(np.uint16)
    assert estimate_background(frames).saturation is None


def test_pixels_that_fire_alone_are_masked_and_counted_unless_switched_off():
    made = simulate_detector(
        replace(DETECTOR_KINDS["counting with gaps"], hot_fraction=3e-4),
        shape=(256, 300), frames=16, spots=20, seed=2,
    )  # fmt: skip
    background = estimate_background(made.frames, mask=made.mask)
    assert background.hot is not None
    assert not (background.hot & ~made.hot).any()
    assert (background.hot & made.hot).sum() > 0.9 * made.hot.sum()
    finder = PeakFinder(shape=made.mask.shape, background=background, mask=made.mask)
    assert finder.used(np.uint16).hot_pixels == background.hot.sum()
    assert finder.used(np.uint16).masked_pixels == (background.hot | made.mask).sum()
    assert estimate_background(made.frames, mask=made.mask, find_hot=False).hot is None


@pytest.mark.parametrize("kind", DETECTOR_KINDS)
def test_no_pixel_is_masked_where_a_peak_stays_through_a_static_series(kind):
    settings = replace(DETECTOR_KINDS[kind], hot_fraction=0.0)
    made = simulate_detector(settings, shape=(256, 300), frames=12, spots=80, seed=4, static=True)
    assert estimate_background(made.frames, mask=made.mask).hot is None


@pytest.mark.parametrize(("later", "warned"), [(600, True), (110, False)])
def test_frames_whose_level_moves_by_more_than_their_noise_are_warned_of(later, warned, caplog):
    rng = np.random.default_rng(0)
    frames = [rng.poisson(level, (64, 64)).astype(np.uint16) for level in (100, 100, later, later)]
    estimate_background(frames)
    assert ("background of frames differs by" in caplog.text) is warned


def test_masked_pixels_do_not_enter_the_background():
    frame, mask = np.full((96, 96), 7, np.uint16), np.zeros((96, 96), np.bool_)
    frame[:40], mask[:40] = 65535, True
    np.testing.assert_allclose(estimate_background([frame], mask=mask).level, 7)


@pytest.mark.parametrize(
    ("frames", "mask"),
    [
        ([], None),
        ([np.zeros(SHAPE), np.zeros((4, 4))], None),
        ([np.zeros(SHAPE)], np.ones(SHAPE, np.bool_)),
        ([np.zeros(SHAPE), np.full(SHAPE, np.nan)], None),
        ([np.full(SHAPE, np.inf, np.float32)], np.zeros(SHAPE, np.bool_)),
    ],
)
def test_a_background_needs_frames_of_one_shape_with_usable_pixels(frames, mask):
    with pytest.raises(InputError):
        estimate_background(frames, mask=mask)


@pytest.mark.parametrize(
    ("total", "shape", "numbers"),
    [
        (160, (64, 64), range(5, 160, 10)),
        (3, (64, 64), [0, 1, 2]),
        (1, (64, 64), [0]),
        (100, (2048, 2048), [12, 37, 62, 87]),
        (1440, (3888, 3072), [720]),
        (5, (16384, 16384), [2]),
    ],
)
def test_the_background_is_shown_by_sixteen_frames_spread_evenly_fewer_where_they_are_large(
    total, shape, numbers
):
    assert background_numbers(total, shape, np.uint16).tolist() == list(numbers)
