from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest

from edgexnas.bundle import AmplitudeGate, Bundle, Gate, open_bundle
from edgexnas.device import PeakPredictor, PositionReading, Predictor, PtychoPredictor
from edgexnas.device.ptycho.predictor import lanes_of
from edgexnas.errors import (
    ConfigurationError,
    EngineAccuracyError,
    EngineError,
    InputError,
    RefinementError,
    SourceError,
)
from edgexnas.ptycho import ObjectImage, align_phase
from edgexnas.scans import Scan
from edgexnas.simulate import PtychographySettings, simulate_scan

pytest.importorskip("onnxruntime", reason="onnxruntime is the extra «device»")

MakeBundle = Callable[..., Bundle]
NAN = (np.nan, np.nan)


@pytest.fixture(scope="module")
def make_ptycho(
    visible: ModuleType, keys: Path, tmp_path_factory: pytest.TempPathFactory
) -> MakeBundle:
    """Write and open a bundle; fields of the manifest can be given."""

    def make(**changes: Any) -> Bundle:
        path = tmp_path_factory.mktemp("ptycho") / "visible.edgex"
        visible.write_visible_bundle(path, signing_key=keys / "edgexnas.key.pem", **changes)
        return open_bundle(path, trust=keys)

    return make


@pytest.fixture(scope="module")
def bundle(make_ptycho: MakeBundle) -> Bundle:
    return make_ptycho()


@pytest.fixture
def predictor(bundle: Bundle) -> Iterator[PtychoPredictor]:
    with PtychoPredictor(bundle, precision="float32", batch=8) as opened:
        yield opened


@pytest.fixture
def scan(visible: ModuleType) -> Scan:
    return visible.visible_scan()


def pairs(scan: Scan) -> list[Any]:
    return list(zip(scan.patterns, scan.positions_px, strict=True))


def changed(scan: Scan, **changes: Any) -> Any:
    """A scan that `Scan` itself would not let through."""
    fields = {"patterns": scan.patterns, "positions_px": scan.positions_px, "mask": None}
    return SimpleNamespace(**(fields | {"source": "scan.h5"} | changes))


def one_at(row_px: float) -> Any:
    """(35, 2) positions, the first of them at (row_px, 0) and all others at (0, 0)."""
    positions = np.zeros((35, 2))
    positions[0, 0] = row_px
    return positions


def stitched(predictor: PtychoPredictor, source: Any) -> ObjectImage:
    stream = predictor.stream(source)
    assert list(stream)
    return stream.image()


def equal(image: ObjectImage, other: ObjectImage) -> bool:
    same = np.array_equal(image.coverage, other.coverage) and image.origin_px == other.origin_px
    return same and np.allclose(image.values, other.values, atol=1e-5)


class TestOpening:
    @pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
    def test_a_ptychography_bundle_is_proven_in_rad_and_in_relative_amplitude(
        self, make_ptycho: MakeBundle, precision: Any
    ) -> None:
        amplitude = AmplitudeGate(float32=1e-4, float16=0.01, int8=0.02)
        gate = Gate(unit="rad", float32=1e-4, float16=0.01, int8=0.02, amplitude=amplitude)
        with Predictor(make_ptycho(gate=gate), precision=precision) as predictor:
            assert isinstance(predictor, PtychoPredictor)
            proof = predictor.proof
        assert proof.measured_rad <= proof.allowed_rad == getattr(gate, precision)
        assert proof.allowed_amplitude is not None
        assert proof.measured_amplitude <= proof.allowed_amplitude == getattr(amplitude, precision)
        assert proof.vectors == 8

    def test_an_engine_beyond_the_phase_gate_is_refused_with_both_numbers(
        self, make_ptycho: MakeBundle
    ) -> None:
        tight = make_ptycho(gate=Gate(unit="rad", float32=1e-4, float16=1e-4, int8=1e-4))
        message = r"deviates by 0\.00\d+ rad from the reference .* allows 0\.0001 rad"
        with pytest.raises(EngineAccuracyError, match=message):
            Predictor(tight)

    def test_an_engine_beyond_the_amplitude_gate_is_refused_with_both_numbers(
        self, make_ptycho: MakeBundle
    ) -> None:
        amplitude = AmplitudeGate(float32=1e-4, float16=1e-4, int8=1e-4)
        tight = make_ptycho(
            gate=Gate(unit="rad", float32=0.4, float16=0.4, int8=0.4, amplitude=amplitude)
        )
        message = r"deviates by 0\.00\d+ of the mean amplitude .* allows 0\.0001 of the mean"
        with pytest.raises(EngineAccuracyError, match=message):
            Predictor(tight)

    def test_a_constant_phase_is_no_distance_from_the_reference(self, bundle: Bundle) -> None:
        reference = {name: array.copy() for name, array in bundle.reference.items()}
        reference["output"][:, 1] += 1
        with PtychoPredictor(replace(bundle, reference=reference)) as predictor:
            assert predictor.proof.measured_rad < 0.02

    def test_an_engine_that_gives_nan_is_refused(self, bundle: Bundle) -> None:
        reference = dict(bundle.reference)
        reference["input"] = np.full_like(reference["input"], np.nan)
        with pytest.raises(EngineAccuracyError, match="deviates by nan rad"):
            Predictor(replace(bundle, reference=reference), precision="float32")

    def test_a_bundle_of_another_application_is_refused_by_name(
        self, bundle: Bundle, make_bundle: Callable[..., Path], keys: Path
    ) -> None:
        with pytest.raises(ConfigurationError, match=r"visible is for ptycho; .* serves bragg"):
            PeakPredictor(bundle)
        with pytest.raises(ConfigurationError, match=r"centroid is for bragg; .* serves ptycho"):
            PtychoPredictor(make_bundle(), trust=keys)

    @pytest.mark.parametrize("method", ["process", "calibrate_background"])
    def test_what_only_frames_of_peaks_have_is_refused(
        self, predictor: PtychoPredictor, method: str
    ) -> None:
        with pytest.raises(ConfigurationError, match=f"is for ptycho, and {method} is for frames"):
            getattr(predictor, method)(np.zeros((64, 64)))

    @pytest.mark.parametrize("option", ["minimum_counts", "threshold", "mask_hot"])
    def test_an_option_of_peaks_is_refused_by_name(self, bundle: Bundle, option: str) -> None:
        with pytest.raises(ConfigurationError, match=f"{option} is for Bragg peaks, and bundle"):
            Predictor(bundle, **{option: 1})  # type: ignore[call-overload]

    @pytest.mark.parametrize("saturation", [0, -1.0, np.nan])
    def test_a_saturation_that_is_no_count_is_refused(
        self, bundle: Bundle, saturation: float
    ) -> None:
        with pytest.raises(ConfigurationError, match="saturation is"):
            PtychoPredictor(bundle, saturation=saturation)

    def test_patterns_checked_one_by_one_are_predicted_alike(
        self, bundle: Bundle, visible: ModuleType
    ) -> None:
        patterns = visible.visible_scan().patterns[:3]
        with PtychoPredictor(bundle) as predictor:
            lanes = lanes_of(predictor)
            intake = lanes.intake()
            lane = lanes.open(intake, intake.accept(patterns[0], 0))
            # A lane keeps what it needs of a pattern when it checks it.
            scratch = patterns[0].copy()
            checked = []
            for number, pattern in enumerate(patterns):
                scratch[...] = pattern
                checked.append(lane.check(scratch, number))
            lane.submit(checked)
            stepwise = lane.result().results
            np.testing.assert_array_equal(stepwise.values, predictor.predict(patterns).values)


class TestPredict:
    @pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
    def test_patches_are_those_of_the_model(
        self, bundle: Bundle, scan: Scan, precision: Any
    ) -> None:
        seen = np.sqrt(scan.patterns / 10_000)
        with PtychoPredictor(bundle, precision=precision) as predictor:
            patches = predictor.predict(scan.patterns)
        np.testing.assert_allclose(patches.amplitude, seen, atol=0.005)
        np.testing.assert_allclose(patches.phase_rad, 2 * seen - 1, atol=0.01)
        assert patches.amplitude.dtype == patches.phase_rad.dtype == np.float32

    @pytest.mark.parametrize("batch", [1, 7, 1024])
    def test_the_batch_size_does_not_change_the_answer(
        self, bundle: Bundle, predictor: PtychoPredictor, scan: Scan, batch: int
    ) -> None:
        with PtychoPredictor(bundle, precision="float32", batch=batch) as other:
            found = other.predict(scan.patterns)
        expected = predictor.predict(scan.patterns[:, None])
        np.testing.assert_allclose(found.values, expected.values, atol=1e-6)

    def test_no_patterns_give_no_patches(self, predictor: PtychoPredictor) -> None:
        patches = predictor.predict(np.empty((0, 64, 64), np.uint16))
        assert len(patches) == 0
        assert patches.phase_rad.shape == (0, 64, 64)

    @pytest.mark.parametrize(
        ("pattern", "message"),
        [
            (np.zeros((128, 128)), r"shape \(1, 128, 128\).*bin_patterns"),
            (np.zeros((64, 63)), r"shape \(1, 64, 63\)"),
            (np.zeros((64, 64), np.complex64), "dtype complex64"),
            (np.full((64, 64), -1, np.int16), "pattern 0 holds -1 at row 0, col 0"),
            (np.full((64, 64), np.nan), "pattern 0 holds nan at row 0, col 0"),
            (np.full((64, 64), np.inf), "pattern 0 holds inf at row 0, col 0"),
            (np.full((64, 64), 2**16 - 1, np.uint16), "pattern 0 holds 65535 .* are saturated"),
        ],
    )
    def test_bad_patterns_are_refused_by_what_is_wrong(
        self, predictor: PtychoPredictor, pattern: Any, message: str
    ) -> None:
        with pytest.raises(InputError, match=message):
            predictor.predict(pattern[None])

    def test_a_saturation_level_can_be_given(self, bundle: Bundle) -> None:
        pattern = np.zeros((1, 64, 64))
        pattern[0, 5, 6] = 1000
        with PtychoPredictor(bundle, saturation=1001) as predictor:
            predictor.predict(pattern)
        predictor = PtychoPredictor(bundle, saturation=1000)
        with (
            predictor,
            pytest.raises(InputError, match=r"holds 1000.0 at row 5, col 6, .*from 1000"),
        ):
            predictor.predict(pattern)

    def test_a_masked_pixel_counts_as_zero_whatever_it_holds(self, bundle: Bundle) -> None:
        pattern = np.full((1, 64, 64), 100, np.uint16)
        mask = np.zeros((64, 64), np.bool_)
        pattern[0, 5, 6], mask[5, 6] = 2**16 - 1, True
        with PtychoPredictor(bundle, mask=mask, precision="float32") as predictor:
            amplitude = predictor.predict(pattern).amplitude
        assert amplitude[0, 5, 6] == 0
        assert amplitude[0, 5, 7] == pytest.approx(0.1)

    def test_a_mask_of_another_shape_is_refused(self, bundle: Bundle, scan: Scan) -> None:
        predictor = PtychoPredictor(bundle, mask=np.zeros((128, 128), np.bool_))
        with predictor, pytest.raises(InputError, match=r"the mask \(128, 128\)"):
            predictor.predict(scan.patterns)

    def test_a_closed_predictor_is_refused(self, bundle: Bundle, scan: Scan) -> None:
        predictor = PtychoPredictor(bundle)
        stream = predictor.stream(scan)
        predictor.close()
        for method in (lambda: predictor.predict(scan.patterns), lambda: next(stream)):
            with pytest.raises(EngineError, match="this predictor is closed"):
                method()
        with pytest.raises(EngineError, match="this predictor is closed"):
            predictor.stream(scan)


class TestStream:
    def test_the_patches_of_a_scan_are_stitched_to_the_object(
        self, visible: ModuleType, predictor: PtychoPredictor, scan: Scan
    ) -> None:
        image = stitched(predictor, scan)
        seen = visible.visible_object()
        assert image.values.shape == seen.shape
        assert image.origin_px == (0, 0)
        np.testing.assert_allclose(align_phase(image.values, seen), seen, atol=1e-4)
        assert (image.coverage > 0).all()

    @pytest.mark.parametrize("form", ["path", "list", "generator"])
    def test_every_kind_of_source_gives_the_same_image(
        self, predictor: PtychoPredictor, scan: Scan, tmp_path: Path, form: str
    ) -> None:
        path = tmp_path / "scan.npz"
        tike = np.fft.ifftshift(scan.patterns, axes=(1, 2))[None]
        np.savez(path, data=tike, scan=scan.positions_px[None])
        sources = {"path": path, "list": pairs(scan), "generator": iter(pairs(scan))}
        image, expected = stitched(predictor, sources[form]), stitched(predictor, scan)
        np.testing.assert_array_equal(image.values, expected.values)

    def test_patches_come_in_order_with_their_numbers_and_positions(
        self, predictor: PtychoPredictor, scan: Scan
    ) -> None:
        found = list(predictor.stream(scan))
        assert [len(patches) for patches in found] == [8, 8, 8, 8, 3]
        numbers = np.concatenate([patches.frame_numbers for patches in found])
        np.testing.assert_array_equal(numbers, np.arange(35))
        positions = np.concatenate([patches.positions_px for patches in found])
        np.testing.assert_array_equal(positions, scan.positions_px)
        expected = predictor.predict(scan.patterns[8:16])
        np.testing.assert_array_equal(found[1].phase_rad, expected.phase_rad)

    @pytest.mark.parametrize("batch", [1, 3, 32])
    def test_the_image_does_not_depend_on_batching_whatever_is_late_or_missing(
        self, bundle: Bundle, predictor: PtychoPredictor, scan: Scan, batch: int
    ) -> None:
        items: list[Any] = pairs(scan)
        for number in (3, 4, 11, 12, 20):
            items[number] = (scan.patterns[number], None)
        items[25] = (scan.patterns[25], scan.positions_px[24])
        items.insert(30, PositionReading(4, tuple(scan.positions_px[4])))
        items.insert(13, PositionReading(11, tuple(scan.positions_px[11])))
        items.insert(2, PositionReading(20, tuple(scan.positions_px[20])))
        with PtychoPredictor(bundle, precision="float32", batch=batch) as other:
            assert equal(stitched(other, items), stitched(predictor, items))

    def test_a_snapshot_grows_and_later_patches_leave_it_alone(
        self, predictor: PtychoPredictor, scan: Scan
    ) -> None:
        stream = predictor.stream(scan)
        assert stream.image().values.shape == (0, 0)
        next(stream)
        snapshot = stream.image()
        kept = snapshot.values.copy()
        list(stream)
        np.testing.assert_array_equal(snapshot.values, kept)
        assert snapshot.values.shape == (73, 118)
        assert stream.image().coverage.sum() > 4 * snapshot.coverage.sum()

    def test_a_late_position_places_its_patch(self, predictor: PtychoPredictor, scan: Scan) -> None:
        items: list[Any] = pairs(scan)
        items[7] = (scan.patterns[7], NAN)
        items.append(PositionReading(7, tuple(scan.positions_px[7])))
        stream = predictor.stream(items)
        assert np.isnan(next(stream).positions_px[7]).all()
        assert stream.counts.waiting == 1
        list(stream)
        assert stream.counts.stitched == 35
        assert equal(stream.image(), stitched(predictor, scan))

    def test_a_position_that_comes_before_its_pattern_is_used(
        self, predictor: PtychoPredictor, scan: Scan
    ) -> None:
        early = [PositionReading(n, tuple(p)) for n, p in enumerate(scan.positions_px)]
        stream = predictor.stream([*early, *((pattern, None) for pattern in scan.patterns)])
        np.testing.assert_array_equal(next(stream).positions_px, scan.positions_px[:8])
        list(stream)
        assert equal(stream.image(), stitched(predictor, scan))

    def test_every_patch_ends_in_exactly_one_count(
        self, predictor: PtychoPredictor, scan: Scan
    ) -> None:
        items: list[Any] = pairs(scan)
        items[3] = (scan.patterns[3], NAN)
        items[9] = (scan.patterns[9], scan.positions_px[8])
        items[12] = (scan.patterns[12], (np.inf, 0))
        items[13] = (scan.patterns[13], (1e300, 0))
        items[14] = (scan.patterns[14], (1e6, 1e6))
        items += [PositionReading(0, (1, 1)), PositionReading(99, (1, 1))]
        stream = predictor.stream(items)
        list(stream)
        counts = stream.counts
        assert (counts.patches, counts.stitched, counts.waiting) == (35, 30, 0)
        assert (counts.missing, counts.repeated, counts.outside) == (1, 1, 3)
        assert counts.unused_positions == 2
        assert stream.image().skipped == 5

    def test_so_many_patches_wait_and_no_more(self, predictor: PtychoPredictor, scan: Scan) -> None:
        items: list[Any] = [(pattern, None) for pattern in scan.patterns]
        items += [PositionReading(n, tuple(p)) for n, p in enumerate(scan.positions_px)]
        stream = predictor.stream(items, most_waiting=5)
        list(stream)
        counts = stream.counts
        assert (counts.stitched, counts.missing, counts.unused_positions) == (5, 30, 30)

    def test_larger_patterns_are_binned(self, predictor: PtychoPredictor, scan: Scan) -> None:
        fine = np.kron(scan.patterns, np.full((1, 2, 2), 0.25, np.float32))
        image = stitched(predictor, replace(scan, patterns=fine))
        np.testing.assert_allclose(image.values, stitched(predictor, scan).values, atol=1e-5)

    def test_the_masks_of_scan_and_predictor_are_both_used(
        self, bundle: Bundle, scan: Scan
    ) -> None:
        above, below = np.zeros((2, 64, 64), np.bool_)
        above[0], below[-1] = True, True
        with PtychoPredictor(bundle, mask=above) as predictor:
            patches = next(predictor.stream(replace(scan, mask=below)))
        assert patches.amplitude[:, [0, -1]].max() == 0
        assert patches.amplitude[:, 1:-1].min() > 0

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"patterns": np.empty((0, 64, 64))}, "scan.h5 has no patterns"),
            ({"positions_px": np.zeros((34, 2))}, r"35 patterns and positions of shape \(34, 2\)"),
            ({"positions_px": np.full((35, 2), np.nan)}, "no position that is a number"),
            ({"positions_px": one_at(np.inf)}, "pattern 0 at an infinite position"),
            ({"positions_px": one_at(1e6)}, r"pattern 0 at \(1e\+06, 0\)"),
            ({"positions_px": one_at(1e-6)}, "looks like metres"),
            ({"positions_px": one_at(0.1)}, "looks like metres or millimetres"),
        ],
    )
    def test_a_scan_that_cannot_be_placed_is_refused_before_it_starts(
        self, predictor: PtychoPredictor, scan: Scan, changes: Any, message: str
    ) -> None:
        with pytest.raises(SourceError, match=message):
            predictor.stream(changed(scan, **changes))

    @pytest.mark.parametrize(
        ("item", "message"),
        [
            ((np.zeros((65, 65)), (0, 0)), r"pattern 2 has shape \(65, 65\); expected squares"),
            ((np.zeros((64, 64, 1)), (0, 0)), r"pattern 2 has shape \(64, 64, 1\)"),
            ((np.zeros((128, 128), np.float32), (0, 0)), "patterns of one detector"),
            ((np.zeros((64, 64), np.uint16), (0, 0)), "dtype uint16, .* before it had float32"),
            ((np.full((64, 64), -3, np.float32), (0, 0)), "pattern 2 holds -3.0 at row 0"),
            ((np.ones((64, 64), np.float32), (0, 0, 0)), r"position of pattern 2 has shape \(3,\)"),
            (np.zeros((64, 64)), "item 2 of the iterable is not a pair"),
        ],
    )
    def test_a_bad_item_ends_the_stream_after_those_before_it(
        self, predictor: PtychoPredictor, scan: Scan, item: Any, message: str
    ) -> None:
        stream = predictor.stream([*pairs(scan)[:2], item])
        assert next(stream).frame_numbers.tolist() == [0, 1]
        with pytest.raises(InputError, match=message):
            next(stream)
        assert stream.image().values.shape == (64, 73)

    @pytest.mark.parametrize("source", [[], [PositionReading(0, (0.0, 0.0))]])
    def test_an_iterable_without_patterns_is_refused(
        self, predictor: PtychoPredictor, source: Any
    ) -> None:
        with pytest.raises(SourceError, match="gave no patterns"):
            list(predictor.stream(source))

    def test_what_is_no_source_is_refused(self, predictor: PtychoPredictor, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="source is int"):
            predictor.stream(5)  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="cam://GE1 has the unknown scheme"):
            predictor.stream("cam://GE1", object_pixel_m=(1e-8, 1e-8))
        with pytest.raises(SourceError, match=r"scan\.h5"):
            predictor.stream(tmp_path / "scan.h5")

    def test_positions_in_metres_need_the_size_of_an_object_pixel(
        self, predictor: PtychoPredictor
    ) -> None:
        with pytest.raises(ConfigurationError, match="object_pixel_m is not given; specify the"):
            predictor.stream("sim://ptycho")

    def test_an_axis_may_run_the_other_way(self, predictor: PtychoPredictor) -> None:
        url = "sim://ptycho?frames=4"
        ways = []
        for size in ((1e-8, 1e-8), (1e-8, -1e-8)):
            found = list(predictor.stream(url, object_pixel_m=size))
            ways.append(np.concatenate([patches.positions_px for patches in found]))
        np.testing.assert_allclose(ways[1], ways[0] * (1, -1))

    @pytest.mark.parametrize("size", [(1e-8,), (1e-8, 0.0), (1e-8, np.nan), (10.0, 10.0), "ab"])
    def test_a_size_that_is_no_object_pixels_is_refused(
        self, predictor: PtychoPredictor, size: Any
    ) -> None:
        with pytest.raises(ConfigurationError, match=r"object_pixel_m is .*; specify the"):
            predictor.stream("sim://ptycho", object_pixel_m=size)

    def test_positions_in_object_pixels_need_no_size(
        self, predictor: PtychoPredictor, scan: Scan
    ) -> None:
        with pytest.raises(ConfigurationError, match=r"object_pixel_m is .* would be ignored"):
            predictor.stream(scan, object_pixel_m=(1e-8, 1e-8))

    @pytest.mark.parametrize("most", [-1, 1.5, True])
    def test_a_number_of_waiting_patches_that_is_none_is_refused(
        self, predictor: PtychoPredictor, scan: Scan, most: Any
    ) -> None:
        with pytest.raises(ConfigurationError, match="most_waiting is"):
            predictor.stream(scan, most_waiting=most)

    @pytest.mark.real
    def test_a_real_scan_is_placed_whole(self, bundle: Bundle, real_data: Path) -> None:
        path = real_data / "siemens_star_velociprobe" / "siemens-star-small.npz.bz2"
        with PtychoPredictor(bundle) as predictor:
            stream = predictor.stream(path)
            list(stream)
        assert (stream.counts.patches, stream.counts.stitched) == (516, 516)
        assert (stream.image().coverage > 0).mean() > 0.9


@pytest.fixture(scope="module")
def diffracted() -> Scan:
    """A small scan whose patterns are far fields."""
    settings = PtychographySettings(scan_shape_px=(40, 50), step_px=10)
    return simulate_scan(settings, seed=3)


@pytest.fixture(scope="module")
def with_probe(make_ptycho: MakeBundle, diffracted: Scan) -> Bundle:
    return make_ptycho(probe=diffracted.probe)


def test_a_refined_stream_has_the_networks_object_the_refined_one_and_every_residual(
    with_probe: Bundle, diffracted: Scan
) -> None:
    with PtychoPredictor(with_probe, precision="float32", batch=8) as predictor:
        stream = predictor.stream(diffracted, refine=12)
        assert stream.refinement is None
        for _ in stream:
            pass
        plain = stitched(predictor, diffracted)
    refinement = stream.refinement
    assert refinement is not None
    np.testing.assert_array_equal(stream.image().values, plain.values)
    assert refinement.image.values.shape == plain.values.shape
    assert refinement.image.origin_px == plain.origin_px
    assert len(refinement.residuals) == len(refinement.seconds) == 13
    assert refinement.residuals[-1] < 0.05 * refinement.residuals[0]
    assert refinement.patterns == len(diffracted)


def test_patterns_are_let_go_once_the_object_is_refined(
    with_probe: Bundle, diffracted: Scan
) -> None:
    with PtychoPredictor(with_probe, precision="float32", batch=8) as predictor:
        stream = predictor.stream(diffracted, refine=1)
        kept = weakref.ref(stream._refined)
        assert list(stream)
        gc.collect()
        assert kept() is None
    assert stream.refinement is not None


def test_a_scan_that_fails_lets_its_patterns_go_and_is_not_refined(
    with_probe: Bundle, diffracted: Scan
) -> None:
    def broken() -> Iterator[tuple[Any, Any]]:
        yield from zip(diffracted.patterns, diffracted.positions_px, strict=True)
        raise SourceError("the detector stopped")

    with PtychoPredictor(with_probe, precision="float32", batch=8) as predictor:
        stream = predictor.stream(broken(), refine=1)
        kept = weakref.ref(stream._refined)
        with pytest.raises(SourceError, match="the detector stopped"):
            list(stream)
        gc.collect()
        assert kept() is None
        assert next(stream, None) is None
    assert stream.counts.stitched == len(diffracted)
    assert stream.refinement is None


def test_late_positions_refine_as_those_that_come_with_their_patterns(
    with_probe: Bundle, diffracted: Scan
) -> None:
    late = [(pattern, None) for pattern in diffracted.patterns]
    late += [
        PositionReading(number, tuple(position))
        for number, position in enumerate(diffracted.positions_px.tolist())
    ]
    residuals = []
    with PtychoPredictor(with_probe, precision="float32", batch=8) as predictor:
        for source in (diffracted, late):
            stream = predictor.stream(source, refine=2)
            assert list(stream)
            assert stream.refinement is not None
            residuals.append(stream.refinement.residuals)
    np.testing.assert_allclose(*residuals, rtol=1e-3)


def test_a_bundle_without_a_probe_refines_nothing(
    predictor: PtychoPredictor, diffracted: Scan
) -> None:
    with pytest.raises(ConfigurationError, match="holds no probe, which refine=3 needs"):
        predictor.stream(diffracted, refine=3)


def test_dark_live_patterns_are_stitched_and_their_refinement_fails_once(
    with_probe: Bundle, diffracted: Scan
) -> None:
    dark = [(0 * p, at) for p, at in zip(diffracted.patterns, diffracted.positions_px, strict=True)]
    with PtychoPredictor(with_probe, precision="float32", batch=8) as predictor:
        stream = predictor.stream(dark, refine=1)
        with pytest.raises(RefinementError, match="the object is stitched and not refined"):
            list(stream)
        assert next(stream, None) is None
    assert stream.counts.stitched == len(dark)
    assert stream.image().values.size
    assert stream.refinement is None


def test_patterns_that_were_binned_before_are_not_refined(
    with_probe: Bundle, diffracted: Scan
) -> None:
    wide = replace(diffracted, patterns=np.repeat(np.repeat(diffracted.patterns, 2, 1), 2, 2),
                   probe=None, truth=None)  # fmt: skip
    with (
        PtychoPredictor(with_probe, precision="float32", batch=8) as predictor,
        pytest.raises(InputError, match=r"have shape \(128, 128\) and the probe of the bundle"),
    ):
        list(predictor.stream(wide, refine=1))


@pytest.mark.parametrize("suffix", ["npz", "h5"])
def test_a_refined_object_is_saved_with_the_networks_and_a_picture_of_both(
    with_probe: Bundle, diffracted: Scan, tmp_path: Path, suffix: str
) -> None:
    with PtychoPredictor(with_probe, precision="float32", batch=8) as predictor:
        stream = predictor.stream(diffracted, refine=2)
        assert list(stream)
    paths = stream.save(tmp_path / f"object.{suffix}")
    names = {"object-phase.png", "object-amplitude.png", "object-refinement.png"}
    assert {path.name for path in paths} == names | {f"object.{suffix}"}
    assert stream.refinement is not None
    if suffix == "npz":
        with np.load(paths[0]) as kept:
            found, before = np.abs(kept["object"]), np.abs(kept["network"])
            np.testing.assert_array_equal(kept["residuals"], stream.refinement.residuals)
    else:
        with h5py.File(paths[0]) as file:
            found = file["entry/object/amplitude"][()]
            before = file["entry/network/amplitude"][()]
            assert file["entry/refinement/seconds"].shape == (3,)
    np.testing.assert_allclose(found, np.abs(stream.refinement.image.values), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(before, np.abs(stream.image().values), rtol=1e-4, atol=1e-5)
