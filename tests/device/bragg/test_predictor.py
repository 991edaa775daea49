from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from edgexnas.bragg import CENTRE, PeakFlag, centroid
from edgexnas.bundle import Bundle, Gate, generate_keys
from edgexnas.device import PeakPredictor, Predictor, prove_engine
from edgexnas.device.bragg.predictor import lanes_of
from edgexnas.device.sources import open_event_source
from edgexnas.errors import (
    ConfigurationError,
    EngineAccuracyError,
    EngineError,
    InputError,
    SourceError,
    TrustError,
)
from edgexnas.frames import ArrayFrames, open_frames

pytest.importorskip("onnxruntime", reason="onnxruntime is the extra «device»")


@pytest.fixture
def predictor(bundle: Bundle) -> Iterator[PeakPredictor]:
    with Predictor(bundle) as opened:
        yield opened


@pytest.fixture
def series(spot_frame: Callable[..., Any]) -> Any:
    """(5, 96, 128) uint16: one spot that moves 5 px down from frame to frame."""
    return np.stack([spot_frame([[20.25 + 5 * k, 60.5]], seed=k) for k in range(5)])


class TestOpening:
    def test_a_path_with_trusted_keys_is_verified_and_proven(
        self, bundle_path: Path, keys: Path
    ) -> None:
        with Predictor(bundle_path, trust=keys) as predictor:
            assert predictor.manifest.model_id == "centroid"
            assert predictor.proof.vectors == 64
            assert 0 < predictor.proof.measured_px <= predictor.proof.allowed_px == 0.05

    def test_a_bundle_signed_by_a_stranger_is_refused(
        self, bundle_path: Path, tmp_path: Path
    ) -> None:
        generate_keys(tmp_path)
        with pytest.raises(TrustError):
            Predictor(bundle_path, trust=tmp_path)

    def test_a_path_without_trust_is_refused(self, bundle_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="trust is missing for"):
            Predictor(bundle_path)

    def test_trust_beside_a_verified_bundle_is_refused(self, bundle: Bundle, keys: Path) -> None:
        with pytest.raises(ConfigurationError, match="verified already"):
            Predictor(bundle, trust=keys)

    def test_an_engine_beyond_the_gate_is_refused_with_both_distances(
        self, make_bundle: Callable[..., Path], keys: Path
    ) -> None:
        path = make_bundle(gate=Gate(unit="px", float32=1e-3, float16=1e-3, int8=1e-3))
        message = r"deviates by 0\.00\d+ px from the reference .* allows 0\.001 px"
        with pytest.raises(EngineAccuracyError, match=message):
            Predictor(path, trust=keys)

    def test_an_engine_that_gives_nan_is_refused(self, bundle: Bundle) -> None:
        reference = dict(bundle.reference)
        reference["input"] = np.full_like(reference["input"], np.nan)
        with pytest.raises(EngineAccuracyError, match="deviates by nan px"):
            Predictor(replace(bundle, reference=reference), precision="float32")

    def test_a_model_of_another_shape_than_its_reference_is_refused(self, bundle: Bundle) -> None:
        reference = dict(bundle.reference)
        reference["output"] = reference["output"][:, :, :2]
        with pytest.raises(EngineError, match=r"gives shape \(64, 2, 3\).*\(64, 2, 2\)"):
            Predictor(replace(bundle, reference=reference))

    def test_the_application_of_the_bundle_chooses_the_predictor(
        self, predictor: PeakPredictor
    ) -> None:
        assert type(predictor) is PeakPredictor

    @pytest.mark.parametrize("mask", [np.zeros((4, 4)), np.zeros(4, np.bool_)])
    def test_a_mask_that_is_no_bool_image_is_refused(self, bundle: Bundle, mask: Any) -> None:
        with pytest.raises(InputError, match="the mask has shape"):
            Predictor(bundle, mask=mask)


class TestPredict:
    @pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
    def test_positions_are_those_of_the_model(
        self, bundle: Bundle, gaussian_patches: Callable[..., Any], precision: Any
    ) -> None:
        patches = gaussian_patches(100)
        with Predictor(bundle, precision=precision) as predictor:
            found = predictor.predict(patches)
        gate = getattr(bundle.manifest.gate, precision)
        assert np.linalg.norm(found.positions_px - centroid(patches), axis=1).mean() < gate
        np.testing.assert_allclose(found.intervals_px, 0.2, atol=1e-4)

    @pytest.mark.parametrize("batch", [1, 7, 100, 1024])
    def test_the_batch_size_does_not_change_the_answer(
        self, bundle: Bundle, gaussian_patches: Callable[..., Any], batch: int
    ) -> None:
        patches = gaussian_patches(100)
        with Predictor(bundle, batch=batch) as one, Predictor(bundle, batch=32) as other:
            found, expected = one.predict(patches), other.predict(patches)
        np.testing.assert_allclose(found.quantiles_px, expected.quantiles_px, atol=1e-5)

    def test_no_patches_give_no_positions(self, predictor: PeakPredictor) -> None:
        found = predictor.predict(np.empty((0, 11, 11)))
        assert found.positions_px.shape == found.intervals_px.shape == (0, 2)
        assert found.quantiles_px.shape == (0, 2, 3)

    def test_unscaled_counts_with_a_channel_axis_give_the_same(
        self, predictor: PeakPredictor, gaussian_patches: Callable[..., Any]
    ) -> None:
        patches = gaussian_patches(10)
        found = predictor.predict(3 * patches[:, None])
        expected = predictor.predict(patches)
        np.testing.assert_allclose(found.positions_px, expected.positions_px, atol=1e-4)

    @pytest.mark.parametrize(
        ("patches", "message"),
        [
            (np.zeros((2, 11, 11), np.complex64), "dtype complex64"),
            (np.zeros((2, 9, 9)), r"shape \(2, 9, 9\)"),
            (np.stack([np.zeros((11, 11)), np.full((11, 11), np.nan)]), "patch 1 holds NaN"),
        ],
    )
    def test_bad_patches_are_refused_by_what_is_wrong(
        self, predictor: PeakPredictor, patches: Any, message: str
    ) -> None:
        with pytest.raises(InputError, match=message):
            predictor.predict(patches)

    def test_threads_that_share_a_predictor_get_their_own_answers(
        self, predictor: PeakPredictor, gaussian_patches: Callable[..., Any]
    ) -> None:
        tasks = [gaussian_patches(50 + seed, seed=seed) for seed in range(4)]
        expected = [predictor.predict(task).positions_px for task in tasks]
        found: dict[int, list[Any]] = {}

        def work(number: int) -> None:
            found[number] = [predictor.predict(tasks[number]).positions_px for _ in range(50)]

        workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        for number, answers in found.items():
            assert all(np.array_equal(answer, expected[number]) for answer in answers)


class TestProcess:
    def test_spots_are_found_in_frame_coordinates(
        self, predictor: PeakPredictor, spot_frame: Callable[..., Any], truth_px: Any
    ) -> None:
        peaks = predictor.process(spot_frame())
        np.testing.assert_array_equal(peaks.maxima, np.round(truth_px))
        assert np.linalg.norm(peaks.positions_px - truth_px, axis=1).max() < 0.05
        assert (peaks.flags == 0).all()

    def test_a_frame_is_predicted_as_its_patches_are(
        self, predictor: PeakPredictor, spot_frame: Callable[..., Any]
    ) -> None:
        predictor.calibrate_background([spot_frame()])
        peaks = predictor.process(spot_frame())
        patch = spot_frame()[15:26, 26:37].astype(np.float32) - 5
        found = predictor.predict(np.maximum(patch, 0)[None])
        np.testing.assert_allclose(
            peaks.positions_px[0], found.positions_px[0] + peaks.maxima[0] - CENTRE, atol=0.02
        )

    def test_a_frame_without_peaks_gives_none(
        self, predictor: PeakPredictor, spot_frame: Callable[..., Any]
    ) -> None:
        peaks = predictor.process(spot_frame([]))
        assert len(peaks) == 0
        assert peaks.quantiles_px.shape == (0, 2, 3)

    def test_frames_are_numbered_from_0_or_as_told(
        self, predictor: PeakPredictor, spot_frame: Callable[..., Any]
    ) -> None:
        frame = spot_frame()
        numbers = [predictor.process(frame).frame_number for _ in range(2)]
        numbers += [predictor.process(frame, frame_number=7).frame_number]
        numbers += [predictor.process(frame).frame_number]
        assert numbers == [0, 1, 7, 8]

    def test_the_first_frame_shows_the_background(
        self, predictor: PeakPredictor, spot_frame: Callable[..., Any]
    ) -> None:
        predictor.process(spot_frame(level=100))
        assert len(predictor.process(spot_frame([], level=100, seed=1))) == 0
        (bright,) = predictor.process(spot_frame([[40, 60]], level=5, seed=2)).intensities
        assert bright == pytest.approx(2000 + 5 - 100, abs=200)

    def test_calibration_shows_the_background_instead(
        self, predictor: PeakPredictor, spot_frame: Callable[..., Any]
    ) -> None:
        predictor.process(spot_frame(level=100))
        predictor.calibrate_background(spot_frame(level=5)[None])
        (bright,) = predictor.process(spot_frame([[40, 60]], level=5, seed=2)).intensities
        assert bright == pytest.approx(2000, abs=200)

    def test_frames_located_together_are_predicted_as_one_by_one(
        self, bundle: Bundle, series: Any
    ) -> None:
        with PeakPredictor(bundle, batch=2) as predictor:
            frames = [*series, np.zeros_like(series[0])]
            lanes = lanes_of(predictor)
            finder = lanes.detection().finder(frames)
            located = lanes.locate([finder.find(frame) for frame in frames], range(6))
            predictor.calibrate_background(frames)
            for number, peaks in enumerate(located):
                alone = predictor.process(frames[number], frame_number=number)
                assert peaks.frame_number == number
                np.testing.assert_array_equal(peaks.maxima, alone.maxima)
                np.testing.assert_allclose(peaks.quantiles_px, alone.quantiles_px, atol=1e-5)
        assert [len(peaks) for peaks in located] == [1, 1, 1, 1, 1, 0]

    def test_calibration_needs_a_frame(self, predictor: PeakPredictor) -> None:
        with pytest.raises(InputError, match="no frames to calibrate with"):
            predictor.calibrate_background([])

    def test_a_frame_of_another_shape_is_refused(
        self, predictor: PeakPredictor, spot_frame: Callable[..., Any]
    ) -> None:
        predictor.process(spot_frame())
        with pytest.raises(InputError, match=r"\(96, 127\), this predictor's .* \(96, 128\)"):
            predictor.process(spot_frame()[:, 1:])

    def test_a_mask_fixes_the_shape_of_the_first_frame(
        self, bundle: Bundle, spot_frame: Callable[..., Any]
    ) -> None:
        predictor = Predictor(bundle, mask=np.zeros((96, 129), np.bool_))
        with predictor, pytest.raises(InputError, match=r"has \(96, 129\)"):
            predictor.process(spot_frame())

    def test_a_frame_of_another_dtype_is_refused(
        self, predictor: PeakPredictor, spot_frame: Callable[..., Any]
    ) -> None:
        predictor.process(spot_frame())
        with pytest.raises(InputError, match="dtype float32, the frames before it had uint16"):
            predictor.process(spot_frame().astype(np.float32))

    @pytest.mark.parametrize(
        "frame", [np.zeros((4, 4), np.complex64), np.zeros(4), np.zeros((0, 4))]
    )
    def test_what_is_no_image_of_real_numbers_is_refused(
        self, predictor: PeakPredictor, frame: Any
    ) -> None:
        with pytest.raises(InputError, match="expected \\(H, W\\) real numbers"):
            predictor.process(frame)

    @pytest.mark.parametrize("frames_before", [0, 1])
    def test_a_nan_is_refused_by_its_pixel(
        self, predictor: PeakPredictor, spot_frame: Callable[..., Any], frames_before: int
    ) -> None:
        frame = spot_frame().astype(np.float32)
        for _ in range(frames_before):
            predictor.process(frame)
        bad = frame.copy()
        bad[12, 34] = np.nan
        with pytest.raises(InputError, match="row 12, col 34"):
            predictor.process(bad)

    @pytest.mark.parametrize("number", [0, 4])
    @pytest.mark.parametrize("form", [list, ArrayFrames])
    def test_a_nan_in_a_series_is_refused_by_its_frame(
        self, predictor: PeakPredictor, spot_frame: Callable[..., Any], number: int, form: Any
    ) -> None:
        frames = np.stack([spot_frame().astype(np.float32)] * 6)
        frames[number, 12, 34] = np.nan
        with pytest.raises(InputError, match=f"^frame {number}: .*row 12, col 34"):
            list(predictor.stream(form(frames)))

    def test_a_masked_nan_is_not_used(
        self, bundle: Bundle, spot_frame: Callable[..., Any], truth_px: Any
    ) -> None:
        frame, mask = spot_frame().astype(np.float32), np.zeros((96, 128), np.bool_)
        frame[24, 34], mask[24, 34] = np.nan, True
        with Predictor(bundle, mask=mask) as predictor:
            peaks = predictor.process(frame)
        assert len(peaks) == len(truth_px)
        assert peaks.flags.tolist() == [PeakFlag.MASKED, 0, 0]


class TestStream:
    @pytest.mark.parametrize("form", ["path", "array", "series", "list", "generator"])
    def test_every_kind_of_source_gives_its_frames_in_order(
        self, predictor: PeakPredictor, series: Any, tmp_path: Path, form: str
    ) -> None:
        np.save(tmp_path / "scan.npy", series)
        sources = {
            "path": tmp_path / "scan.npy",
            "array": series,
            "series": ArrayFrames(series),
            "list": list(series),
            "generator": (frame for frame in series),
        }
        peaks = list(predictor.stream(sources[form]))
        assert [found.frame_number for found in peaks] == list(range(5))
        rows = [found.positions_px[0, 0] for found in peaks]
        np.testing.assert_allclose(rows, 20.25 + 5 * np.arange(5), atol=0.05)

    def test_a_series_shows_its_background_by_frames_spread_over_it(
        self, predictor: PeakPredictor, spot_frame: Callable[..., Any]
    ) -> None:
        frames = np.stack([spot_frame([[40, 60]], level=300)] + [spot_frame([], level=5)] * 10)
        (bright,) = next(iter(predictor.stream(frames))).intensities
        assert bright > 2200
        (bright,) = next(iter(predictor.stream(iter(frames)))).intensities
        assert bright < 2200

    def test_calibration_holds_for_streams(
        self, predictor: PeakPredictor, spot_frame: Callable[..., Any]
    ) -> None:
        predictor.calibrate_background([spot_frame(level=5)])
        (bright,) = next(iter(predictor.stream([spot_frame([[40, 60]], level=300)]))).intensities
        assert bright > 2200

    def test_the_masks_of_series_and_predictor_are_both_used(
        self, bundle: Bundle, series: Any
    ) -> None:
        above, below = np.zeros((2, *series.shape[1:]), np.bool_)
        above[:26], below[36:] = True, True
        with Predictor(bundle, mask=above) as predictor:
            stream = predictor.stream(ArrayFrames(series[::2], mask=below))
            assert [len(found) for found in stream] == [0, 1, 0]

    def test_only_a_series_that_was_opened_here_is_closed(
        self, predictor: PeakPredictor, series: Any, tmp_path: Path
    ) -> None:
        np.save(tmp_path / "scan.npy", series)
        with open_frames(tmp_path / "scan.npy") as mine:
            assert len(list(predictor.stream(mine))) == 5
            assert mine[0].shape == (96, 128)

    @pytest.mark.parametrize("empty", [[], np.empty((0, 96, 128), np.uint16)])
    def test_an_empty_source_is_refused(self, predictor: PeakPredictor, empty: Any) -> None:
        with pytest.raises(SourceError, match=r"no frames"):
            list(predictor.stream(empty))

    def test_a_missing_file_is_refused_when_the_stream_is_asked_for(
        self, predictor: PeakPredictor, tmp_path: Path
    ) -> None:
        with pytest.raises(SourceError, match=r"no file .*scan\.h5"):
            predictor.stream(tmp_path / "scan.h5")

    def test_a_url_gives_the_frames_of_one_series_with_their_numbers(
        self, predictor: PeakPredictor
    ) -> None:
        url = "sim://hedm?shape=96x128&frames=4&series=2&peaks=10"
        assert [peaks.frame_number for peaks in predictor.stream(url)] == [0, 1, 2, 3]

    def test_an_open_source_gives_the_frames_of_one_series_too(
        self, predictor: PeakPredictor
    ) -> None:
        source = open_event_source("sim://hedm?shape=96x128&frames=4&peaks=10")
        assert [peaks.frame_number for peaks in predictor.stream(source)] == [0, 1, 2, 3]
        assert source.status()["frames"] == 4

    def test_a_wrong_url_is_refused_when_the_stream_is_asked_for(
        self, predictor: PeakPredictor
    ) -> None:
        with pytest.raises(ConfigurationError, match="has no parameter 'rates'; it knows shape"):
            predictor.stream("sim://hedm?rates=5")

    def test_what_is_no_source_is_refused(self, predictor: PeakPredictor) -> None:
        with pytest.raises(ConfigurationError, match="source is int"):
            predictor.stream(5)  # type: ignore[arg-type]

    def test_a_frame_that_differs_ends_the_stream_with_its_error(
        self, predictor: PeakPredictor, series: Any
    ) -> None:
        stream = predictor.stream([series[0], series[1][:, 1:]])
        assert next(stream).frame_number == 0
        with pytest.raises(InputError, match=r"\(96, 127\)"):
            next(stream)

    @pytest.mark.real
    def test_real_peaks_lie_where_an_independent_finder_has_their_centroids(
        self, predictor: PeakPredictor, real_data: Path
    ) -> None:
        folder = real_data / "hexrd_ruby_dexela"
        with open_frames(folder / "ruby_ff1_framecache.npz") as frames:
            found = list(predictor.stream(frames[number] for number in range(40)))
        distances_px = []
        with h5py.File(folder / "hexrd_spots_file.h5") as spots:
            for peaks in found:
                good = peaks.positions_px[peaks.flags == 0]
                centroids = spots[f"ff1/{peaks.frame_number}"][...].reshape(-1, 9)[:, :2]
                pairs = np.linalg.norm(good[:, None] - centroids, axis=2)
                distances_px += pairs.min(axis=1, initial=np.inf).tolist()
        assert len(distances_px) > 20
        assert np.median(distances_px) < 0.05
        assert np.percentile(distances_px, 90) < 0.3


class TestClosing:
    def test_closing_twice_does_nothing_more(self, bundle: Bundle) -> None:
        predictor = Predictor(bundle)
        predictor.close()
        predictor.close()
        assert "closed" in repr(predictor)

    def test_leaving_the_context_closes(self, bundle: Bundle) -> None:
        with Predictor(bundle) as predictor:
            pass
        with pytest.raises(EngineError, match="closed"):
            prove_engine(predictor.engine, bundle)

    @pytest.mark.parametrize("method", ["predict", "process", "stream", "calibrate_background"])
    def test_a_closed_predictor_is_refused_in_every_method(
        self, bundle: Bundle, method: str
    ) -> None:
        predictor = Predictor(bundle)
        predictor.close()
        with pytest.raises(EngineError, match="this predictor is closed"):
            getattr(predictor, method)(np.zeros((0, 11, 11)))

    def test_closing_ends_a_stream_that_runs(self, bundle: Bundle, series: Any) -> None:
        predictor = Predictor(bundle)
        stream = predictor.stream(series)
        next(stream)
        predictor.close()
        with pytest.raises(EngineError, match="this predictor is closed"):
            next(stream)
