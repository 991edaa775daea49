"""What peaks are like, which are unfamiliar, and what becomes of their intervals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgexnas.bragg import CENTRE, PeakFlag, scale_patches
from edgexnas.bundle import (
    Distribution,
    Familiarity,
    IntervalCalibration,
    TrainingData,
    Widening,
)
from edgexnas.familiarity import (
    PEAK_QUANTITIES,
    PeakChecks,
    compiled_checks,
    measure_peaks,
    reason_name,
    reference_checks,
)
from edgexnas.familiarity.quantities import ALONE, COUNTED

LEVELS = (0.05, 0.5, 0.95)
FREE = Widening(
    interval=1, disagreement=4, narrow_disagreement=4, noise=3, narrowness=2, floor_px=0.02
)


def spots(
    count: int, *, sigma: tuple[float, float] = (0.9, 0.9), height: float = 900.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """(n, 11, 11) float32 counts of noisy Gaussian spots, and their true offsets (n, 2)."""
    rng = np.random.default_rng(seed)
    truth = rng.uniform(-0.5, 0.5, (count, 2))
    along = np.arange(11) - CENTRE
    row, col = (
        np.exp(-((along - truth[:, axis, None]) ** 2) / (2 * sigma[axis] ** 2)) for axis in (0, 1)
    )
    expected = height * row[:, :, None] * col[:, None, :] + 2
    counts = np.maximum(rng.poisson(expected) - 2.0, 0).astype(np.float32)
    return counts, truth.astype(np.float32)


def predicted(truth: np.ndarray, half: float = 0.05) -> np.ndarray:
    """(n, 2, 3) quantiles of a network that knows the truth."""
    return np.stack([truth - half, truth, truth + half], axis=2).astype(np.float32)


def calibration(**fields) -> IntervalCalibration:
    whole = {
        "level": 0.9, "snr_edges": (), "width_edges_px": (), "factors": ((1.0,),),
        "counts": ((9,),), "widening": FREE,
    }  # fmt: skip
    return IntervalCalibration(**{**whole, **fields})


def training(limits: dict[str, tuple[float | None, float | None]] | None = None, **fields):
    rows = tuple(
        Distribution(
            name=name, unit="1", levels=(0.5,), quantiles=(0.0,), n=9,
            low=(limits or {}).get(name, (None, None))[0],
            high=(limits or {}).get(name, (None, None))[1],
        )
        for name in PEAK_QUANTITIES
    )  # fmt: skip
    return TrainingData(n=9, quantities=rows, **fields)


def judged(counts, offsets, data=None, calibrated=None, *, known: bool = True):
    """Judge peaks; return quantiles, flags and reasons."""
    checks = PeakChecks(calibrated, data, levels=LEVELS, precision="float32")
    offsets, flags = offsets.copy(), np.zeros(len(counts), np.uint8)
    heights = np.ascontiguousarray(counts[:, CENTRE, CENTRE])
    found = checks.judge(scale_patches(counts), heights, offsets, flags, counts=known)
    assert found.unfamiliar == np.count_nonzero(found.reasons)
    return offsets, flags, found.reasons


def measured(counts, offsets) -> dict[str, np.ndarray]:
    values, _ = measure_peaks(scale_patches(counts), counts[:, CENTRE, CENTRE], offsets, 1)
    return dict(zip(PEAK_QUANTITIES, values.T, strict=True))


@pytest.mark.parametrize("sigma", [(0.6, 0.6), (0.9, 1.4), (2.2, 2.0)])
def test_the_windowed_centroid_finds_a_peak_where_the_network_did_not(sigma):
    counts, truth = spots(300, sigma=sigma)
    wrong = predicted(truth + 0.4)
    _, own = measure_peaks(scale_patches(counts), counts[:, 5, 5], wrong, 1)
    # It lies within a tenth of a pixel of the truth, 0.4 px from what it began with.
    assert np.median(np.abs(own[:, :, 0] - 0.4)) < 0.1


def test_the_noise_of_the_centroid_is_what_it_errs_by():
    counts, truth = spots(2000, height=60)
    _, own = measure_peaks(scale_patches(counts), counts[:, 5, 5], predicted(truth), 1)
    # The median of normal errors is 0.67 of their standard deviation.
    assert 0.4 < np.median(own[:, :, 0]) / np.median(own[:, :, 1]) < 1.1


def test_quantities_mean_what_they_are_called():
    round_, truth = spots(200)
    value = measured(round_, predicted(truth))
    # The window takes a fifth of a Gaussian's width.
    assert np.median(value["width_px"]) == pytest.approx(0.8 * 2.355 * 0.9, rel=0.05)
    assert abs(np.median(value["elongation"])) < 0.03
    assert np.median(value["interval_px"]) == pytest.approx(0.05)
    np.testing.assert_array_equal(value["height_counts"], round_[:, CENTRE, CENTRE])
    long, there = spots(200, sigma=(1.4, 0.8))
    assert np.median(measured(long, predicted(there))["elongation"]) > 0.2
    faint, there = spots(200, height=40)
    assert np.median(measured(faint, predicted(there))["noise"]) > 2 * np.median(value["noise"])
    assert np.median(value["gain_counts"]) == pytest.approx(0.4, abs=0.3)
    cut = np.where(round_ > 100, round_, 0)
    assert (measured(cut, predicted(truth))["empty"] > value["empty"]).all()
    far = measured(round_, predicted(truth + 0.05))
    assert np.median(far["disagreement"]) > np.median(value["disagreement"])


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    number=st.integers(1, 40),
    levels=st.sampled_from([2, 3, 5]),
    empty=st.booleans(),
)
def test_compiled_and_numpy_give_the_same_bits(seed, number, levels, empty):
    rng = np.random.default_rng(seed)
    patches = rng.random((number, 121), np.float32) ** 4
    patches[rng.random((number, 121)) < 0.5] = 0
    offsets = np.sort(rng.normal(0, 0.7, (number, 2, levels)), axis=2).astype(np.float32)
    if empty:
        # A patch without counts, and an interval without a width.
        patches[0], offsets[0] = 0, offsets[0, :, :1]
    middle, counted = int(rng.integers(0, levels)), int(rng.choice([9, 11]))
    linear = rng.normal(size=counted).astype(np.float32)
    form = np.triu(rng.normal(size=(counted, counted))).astype(np.float32)

    def given() -> list:
        return [
            patches.reshape(-1), np.float32(1) + patches[:, 60] * 900, offsets.copy(), middle,
            counted, np.array([[1.2, 0.8], [0.5, 2.0]], np.float32), np.array([20], np.float32),
            np.array([2], np.float32), np.array([1, 4, 2, 3, 2, 0.01], np.float32),
            np.array([[-3] * 11, [4, *[2] * 8, 500, 90]], np.float32),
            np.stack([np.zeros(counted), np.ones(counted), linear]).astype(np.float32), form,
            np.float32(3), np.float32(0.7), 3, *np.zeros((2, number), np.uint8),
            np.zeros((number, 3), np.float32),
        ]  # fmt: skip

    one, other = given(), given()
    count = compiled_checks.check_peaks(*one, *compiled_checks.scratch_to_check())
    assert count == reference_checks.check_peaks(*other)
    for index in (2, 15, 16):
        np.testing.assert_array_equal(one[index], other[index])


@pytest.mark.parametrize("number", [1, 64, 150])
def test_compiled_and_numpy_measure_the_same_bits(number):
    counts, truth = spots(number, sigma=(0.9, 1.3), seed=number)
    offsets = predicted(truth + 0.02)
    values, _ = measure_peaks(scale_patches(counts), counts[:, CENTRE, CENTRE], offsets, 1)
    for peak in {0, number // 3, number - 1}:
        # What lies exactly on both limits is inside.
        limits = {
            name: (float(v), float(v))
            for name, v in zip(PEAK_QUANTITIES, values[peak], strict=True)
        }
        reasons = judged(counts, offsets, training(limits))[2]
        assert reasons[peak] == 0
        assert np.count_nonzero(reasons) == number - 1


def test_the_factor_of_a_group_moves_both_ends_away_from_the_position():
    counts, truth = spots(50)
    groups = calibration(snr_edges=(1e-3,), factors=((9.0,), (2.0,)), counts=((0,), (9,)))
    quantiles, flags, reasons = judged(counts, predicted(truth), calibrated=groups)
    np.testing.assert_allclose(quantiles[:, :, 2] - quantiles[:, :, 0], 0.2, rtol=1e-5)
    np.testing.assert_array_equal(quantiles[:, :, 1], truth)
    assert not flags.any()
    assert not reasons.any()


def test_a_precision_has_factors_of_its_own():
    own = calibration(by_precision=({"precision": "int8", "factors": ((3.0,),)},))
    assert own.factors_of("int8") == ((3.0,),)
    assert own.factors_of("float16") == own.factors


def test_a_peak_outside_a_limit_is_flagged_named_and_widened():
    counts, truth = spots(40)
    counts[7], truth[7] = spots(1, sigma=(2.5, 2.5))[0][0], 0
    data = training({"width_px": (1.0, 2.5)})
    quantiles, flags, reasons = judged(counts, predicted(truth), data, calibration())
    assert [reason_name(code) for code in reasons[reasons > 0]] == ["width_px"]
    assert np.flatnonzero(flags).tolist() == [7]
    assert flags[7] == PeakFlag.UNFAMILIAR
    widths = quantiles[:, :, 2] - quantiles[:, :, 0]
    assert (widths[7] > 0.1).all()
    np.testing.assert_allclose(np.delete(widths, 7, axis=0), 0.1, rtol=1e-4)


def test_an_unfamiliar_interval_reaches_to_where_the_peak_is():
    counts, truth = spots(200)
    data = training({"height_counts": (1e6, None)})
    quantiles, _, reasons = judged(counts, predicted(truth + 0.3), data, calibration())
    assert (reasons > 0).all()
    held = (quantiles[:, :, 0] <= truth) & (truth <= quantiles[:, :, 2])
    assert held.mean() > 0.9


def test_counts_of_scaled_patches_are_not_judged():
    counts, truth = spots(20)
    data = training({"height_counts": (1e6, None)})
    assert judged(counts, predicted(truth), data)[2].all()
    assert not judged(counts, predicted(truth), data, known=False)[2].any()


def test_quantities_that_are_familiar_one_by_one_may_not_be_so_together():
    counts, truth = spots(20)
    width = PEAK_QUANTITIES.index("width_px")

    def score(names: tuple[str, ...]) -> Familiarity:
        linear = np.eye(len(names))[width] * 5
        form = (-1.0, *linear, *np.zeros(len(names) * (len(names) + 1) // 2))
        centre = 2.0 * np.eye(len(names))[width]
        return Familiarity(
            quantities=names, centre=tuple(centre), scale=(1.0,) * len(names), score=form, limit=0
        )

    data = training(familiarity=(score(COUNTED), score(ALONE)))
    wide = measured(counts, predicted(truth))["width_px"] > 2.2
    for known in (True, False):
        reasons = judged(counts, predicted(truth), data, known=known)[2]
        assert {reason_name(code) for code in reasons[reasons > 0]} <= {"several together"}
        np.testing.assert_array_equal(reasons > 0, wide)


@pytest.mark.parametrize(("odd", "all_of_it"), [(2, False), (9, True)])
def test_a_frame_of_which_too_much_is_unfamiliar_is_so_as_a_whole(odd, all_of_it):
    counts, truth = spots(30)
    counts[:odd] = spots(odd, sigma=(2.5, 2.5))[0]
    data = training({"width_px": (1.0, 2.5)}, frame_share=0.15, frame_least=3)
    reasons = judged(counts, predicted(truth), data)[2]
    assert np.count_nonzero(reasons) == (30 if all_of_it else odd)
    if all_of_it:
        assert {reason_name(code) for code in reasons[odd:]} == {"the whole frame"}


def test_patches_without_contrast_are_judged_too():
    flat = np.zeros((3, 11, 11), np.float32)
    quantiles, _, reasons = judged(flat, predicted(np.zeros((3, 2))), training(), calibration())
    assert np.isfinite(quantiles).all()
    assert len(reasons) == 3


@pytest.mark.parametrize("loop", ["compiled", "numpy"])
@pytest.mark.parametrize("lost", ["patch", "row", "both"])
def test_a_peak_that_is_no_number_is_unfamiliar(loop, lost, monkeypatch):
    counts, truth = spots(2)
    offsets, flags = predicted(truth), np.zeros(2, np.uint8)
    scaled = scale_patches(counts)
    if lost != "row":
        scaled[0] = np.nan
    if lost != "patch":
        offsets[0, 0] = np.nan
    checks = PeakChecks(calibration(), training({"noise": (0, 1)}), levels=LEVELS, precision="int8")
    if loop == "numpy":
        monkeypatch.setattr(checks, "_loop", reference_checks.check_peaks)
    found = checks.judge(scaled, np.full(2, 900, np.float32), offsets, flags)
    assert (found.reasons > 0).tolist() == [True, False]
    assert (flags & PeakFlag.UNFAMILIAR > 0).tolist() == [True, False]


def test_no_peaks_are_no_work():
    nothing = np.empty((0, 11, 11), np.float32)
    quantiles, _, reasons = judged(nothing, np.empty((0, 2, 3), np.float32), training())
    assert len(quantiles) == len(reasons) == 0
