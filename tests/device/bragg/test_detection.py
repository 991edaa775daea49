"""What a device uses where user, detector, bundle and frames say different things."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgexnas.bragg import PeakFlag
from edgexnas.bundle import BraggPreprocessing, Bundle, Manifest
from edgexnas.bundle import PeakDetection as BundleDetection
from edgexnas.device import PeakPredictor, Predictor
from edgexnas.device.bragg.detection import bundle_detection
from edgexnas.errors import ConfigurationError, InputError
from edgexnas.frames import ArrayFrames
from edgexnas.peak_finding import DetectionOptions, FinderReport, FinderSettings

pytest.importorskip("onnxruntime", reason="onnxruntime is the extra «device»")

HOT = (50, 20)


@pytest.fixture
def series(spot_frame: Callable[..., Any]) -> Any:
    """(6, 96, 128) uint16: spots of 2000 counts that move, clipped at 1500, and a hot pixel."""
    frames = np.stack([spot_frame([[20 + 5 * k, 60], [70, 20 + 9 * k]], seed=k) for k in range(6)])
    np.minimum(frames, 1500, out=frames)
    frames[:, HOT[0], HOT[1]] = 900
    return frames


def report_of(predictor: PeakPredictor, source: Any) -> FinderReport:
    list(predictor.stream(source))
    assert predictor.finder_report is not None
    return predictor.finder_report


@pytest.mark.parametrize(
    ("given", "stated", "said", "used", "origin"),
    [
        (900.0, 1100.0, 1300.0, 900, "option"),
        (None, 1100.0, 1300.0, 1100, "detector"),
        (None, None, 1300.0, 1300, "settings"),
        (None, None, None, 1500, "frames"),
    ],
)
def test_saturation_is_the_user_s_then_the_detector_s_the_bundle_s_and_what_frames_show(
    make_bundle: Any, keys: Any, series: Any, given: Any, stated: Any, said: Any, used: Any,
    origin: str,
) -> None:  # fmt: skip
    path = make_bundle(detection=BundleDetection(saturation=said))
    with PeakPredictor(path, trust=keys, saturation=given) as predictor:
        report = report_of(predictor, ArrayFrames(series, saturation=stated))
    assert (report.saturation, report.saturation_from.value) == (used, origin)


def test_least_counts_of_the_training_detector_are_no_default(
    bragg_manifest: Callable[..., Manifest],
) -> None:
    trained = BraggPreprocessing(finder=FinderSettings(minimum_counts=20, noise_sigmas=6))
    manifest = bragg_manifest(preprocessing=trained)
    settings, options = bundle_detection(manifest, DetectionOptions(), masked=False)
    assert (settings.minimum_counts, settings.noise_sigmas, options.finds_hot) == (None, 6, True)


def test_a_bundle_s_record_of_detection_is_the_default(
    bragg_manifest: Callable[..., Manifest],
) -> None:
    said = BundleDetection(minimum_counts=12, threshold_sigma=7, mask_isolated_pixels=False)
    settings, options = bundle_detection(
        bragg_manifest(detection=said), DetectionOptions(), masked=False
    )
    assert (settings.minimum_counts, settings.noise_sigmas, options.finds_hot) == (12, 7, False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mask", np.zeros((96, 128), np.bool_)),
        ("saturation", 100),
        ("minimum_counts", 1),
        ("threshold", 4),
    ],
)
def test_an_option_that_the_bundle_does_not_let_be_set_is_refused_by_name(
    make_bundle: Any, keys: Any, name: str, value: Any
) -> None:
    path = make_bundle(detection=BundleDetection(adaptable=()))
    with pytest.raises(ConfigurationError, match=f"{name} is given, and bundle centroid"):
        Predictor(path, trust=keys, **{name: value})


@pytest.mark.parametrize(
    ("name", "value"), [("saturation", 0.0), ("minimum_counts", -1.0), ("threshold", np.nan)]
)
def test_an_option_out_of_range_is_refused_by_name(bundle: Bundle, name: str, value: float) -> None:
    with pytest.raises(ConfigurationError, match=f"^{name} is {value}; give"):
        PeakPredictor(bundle, **{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [{"minimum_counts": 1600}, {"threshold": 900}, {"saturation": 1600, "threshold": 900}],
)
def test_peaks_below_the_limit_that_is_set_are_not_found(
    bundle: Bundle, series: Any, options: Any
) -> None:
    with PeakPredictor(bundle, **options) as predictor:
        assert [len(peaks) for peaks in predictor.stream(series)] == [0] * 6
        assert predictor.finder_report is not None
        assert predictor.finder_report.threshold_counts > 1500


def test_a_hot_pixel_is_masked_and_counted_unless_it_is_kept(bundle: Bundle, series: Any) -> None:
    counted = []
    for kept in (None, True, False):
        with PeakPredictor(bundle, mask_hot=kept) as predictor:
            counted.append(report_of(predictor, series).hot_pixels)
    assert counted == [1, 1, 0]


def test_a_mask_is_used_beside_the_series_own(bundle: Bundle, series: Any) -> None:
    own, stated = np.zeros((2, 96, 128), np.bool_)
    own[60:], stated[:60] = True, True
    with PeakPredictor(bundle, mask=own) as predictor:
        peaks = list(predictor.stream(series))
        assert {len(found) for found in peaks} == {1}
        with pytest.raises(InputError, match="leaves no pixel"):
            list(predictor.stream(ArrayFrames(series, mask=stated)))


def test_a_saturation_that_is_set_decides_which_peaks_are_flagged(
    bundle: Bundle, series: Any
) -> None:
    flagged = []
    for saturation in (1400, 1600):
        with PeakPredictor(bundle, saturation=saturation) as predictor:
            flags = np.concatenate([peaks.flags for peaks in predictor.stream(series)])
        flagged.append(bool((flags & PeakFlag.SATURATED).any()))
    assert flagged == [True, False]


@pytest.mark.parametrize("how", ["series", "iterable", "process"])
def test_what_was_used_is_logged_once(
    bundle: Bundle, series: Any, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "edgexnas.device.bragg")
    with PeakPredictor(bundle, threshold=7) as predictor:
        if how == "process":
            for frame in series:
                predictor.process(frame)
        else:
            list(predictor.stream(series if how == "series" else iter(series)))
        said = [line for line in caplog.messages if "threshold" in line]
        assert len(said) == 1
        assert str(predictor.finder_report) in said[0]
