from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgexnas.device.ptycho import phase_components
from edgexnas.device.ptycho.stitching import MOST_PIXELS, ObjectStitcher
from edgexnas.ptycho import ObjectCanvas, align_phase

SIDE = 64


def cut(obj: Any, positions: Any) -> Any:
    rows_cols = np.asarray(positions).astype(int)
    return np.stack([obj[row : row + SIDE, col : col + SIDE] for row, col in rows_cols])


def turned(patches: Any, *, seed: int = 0) -> Any:
    """Each patch with a phase constant of its own."""
    phases = np.random.default_rng(seed).uniform(-np.pi, np.pi, len(patches))
    return (patches * np.exp(1j * phases)[:, None, None]).astype(np.complex64)


def stitched(patches: Any, positions: Any, **options: Any) -> ObjectStitcher:
    stitcher = ObjectStitcher(**options)
    for number, (patch, position) in enumerate(zip(patches, positions, strict=True)):
        stitcher.add(number, *parts_of(patch), np.asarray(position, np.float64))
    return stitcher


def parts_of(patch: Any) -> tuple[Any, Any]:
    """Amplitude and phase."""
    return np.abs(patch).astype(np.float32), np.angle(patch).astype(np.float32)


@pytest.fixture
def raster(visible: ModuleType) -> Any:
    """Object, whole-pixel positions, and the patches there."""
    seen, positions = visible.visible_object(), visible.visible_scan().positions_px
    return seen, positions, cut(seen, positions)


def test_the_phase_constant_of_each_patch_is_aligned_with_those_before(raster: Any) -> None:
    seen, positions, patches = raster
    image = stitched(turned(patches), positions).image()
    np.testing.assert_allclose(align_phase(image.values, seen), seen, atol=1e-4)


def test_without_alignment_phase_constants_would_cancel_the_object(raster: Any) -> None:
    seen, positions, patches = raster
    canvas = ObjectCanvas((120, 120))
    canvas.add(turned(patches), positions)
    assert np.abs(canvas.image().values).mean() < 0.6 * np.abs(seen).mean()


def test_a_patch_that_hardly_overlaps_keeps_its_own_phase(raster: Any) -> None:
    patches = turned(raster[2][:2])
    image = stitched(patches, [(0, 0), (60, 60)]).image()
    np.testing.assert_allclose(image.values[80:, 80:], patches[1][20:, 20:], atol=1e-5)


@given(st.integers(-500, 500), st.integers(-500, 500), st.floats(0, 1))
def test_only_the_origin_depends_on_where_the_scan_lies(row: int, col: int, part: float) -> None:
    patches = np.ones((3, SIDE, SIDE), np.complex64)
    places = np.array([[0, 0], [40, -25], [-30.0, 20.5]])
    image = stitched(patches, places + np.array([row, col])).image()
    expected = stitched(patches, places).image()
    assert image.origin_px == (row - 30, col - 25)
    np.testing.assert_array_equal(image.values, expected.values)
    moved = stitched(patches, places + part).image()
    assert moved.coverage.sum() == pytest.approx(expected.coverage.sum(), rel=1e-4)


@given(st.permutations(range(12)))
def test_what_is_covered_does_not_depend_on_the_order(order: list[int]) -> None:
    rng = np.random.default_rng(3)
    positions = rng.uniform(0, 300, (12, 2))[order]
    patches = rng.normal(size=(12, SIDE, SIDE, 2)).view(np.complex128)[..., 0].astype(np.complex64)
    image = stitched(patches, positions).image()
    canvas = ObjectCanvas((400, 400))
    canvas.add(patches, positions)
    where = tuple(slice(o, o + n) for o, n in zip(image.origin_px, image.values.shape, strict=True))
    np.testing.assert_allclose(image.coverage, canvas.image().coverage[where], rtol=1e-6)


def test_components_are_turned_to_fit_where_a_patch_joins_them(raster: Any) -> None:
    seen, _, _ = raster
    positions = [(0, 0), (30, 0), (0, 54), (30, 54), (15, 27)]
    stitcher = stitched(turned(cut(seen, positions)), positions)
    image = stitcher.image()
    covered = np.where(image.coverage > 0, seen[:94], 0)
    np.testing.assert_allclose(align_phase(image.values, covered), covered, atol=1e-4)


def test_so_many_components_and_no_more_take_memory(raster: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(phase_components, "MOST_COMPONENTS", 3)
    stitcher = stitched(np.stack([raster[2][0]] * 6), [(100 * k, 0) for k in range(6)])
    assert len(stitcher.components._components) == 3
    assert (stitcher.image().coverage > 0).sum() == 6 * SIDE * SIDE


@given(st.lists(st.sampled_from(["placed", "late", "early", "never"]), max_size=40))
def test_the_counts_add_up_whatever_comes(kinds: list[str]) -> None:
    stitcher, patch = ObjectStitcher(most_waiting=3), np.ones((SIDE, SIDE), np.complex64)
    parts = parts_of(patch)
    for number, kind in enumerate(kinds):
        position = np.array([number, 0.0])
        if kind == "early":
            stitcher.place(number, position)
        stitcher.add(number, *parts, position if kind == "placed" else np.full(2, np.nan))
    for number, kind in enumerate(kinds):
        if kind == "late":
            stitcher.place(number, np.array([number, 0.0]))
    assert stitcher.counts.waiting <= 3
    stitcher.finish()
    counts = stitcher.counts
    assert counts.patches == len(kinds) == counts.stitched + counts.missing
    assert counts.stitched >= kinds.count("placed") + kinds.count("early")
    assert stitcher.image().skipped == counts.missing


def test_positions_before_their_patches_are_kept_within_the_bound() -> None:
    stitcher = ObjectStitcher(most_waiting=2)
    for number in range(4):
        stitcher.place(number, np.array([number, 0.0]))
    assert stitcher.counts.unused_positions == 2
    stitcher.finish()
    assert stitcher.counts.unused_positions == 4


def test_a_second_reading_of_a_position_is_not_used(raster: Any) -> None:
    patches = raster[2][:1]
    stitcher = stitched(patches, [(np.nan, np.nan)])
    stitcher.place(0, np.array([5.0, 5.0]))
    stitcher.place(0, np.array([9.0, 9.0]))
    assert stitcher.image().origin_px == (5, 5)
    assert (stitcher.counts.stitched, stitcher.counts.unused_positions) == (1, 1)


def test_a_far_position_takes_no_memory_and_the_scan_goes_on(raster: Any) -> None:
    far = float(MOST_PIXELS)
    stitcher = stitched(raster[2][:3], [(0, 0), (far, -far), (9, 0)])
    assert stitcher.image().values.shape == (73, 64)
    assert (stitcher.counts.stitched, stitcher.counts.outside) == (2, 1)


@pytest.mark.real
def test_a_real_object_survives_cutting_turning_and_stitching(real_data: Path) -> None:
    reference = np.load(real_data / "siemens_star_velociprobe" / "derived_rpie_reference.npz")
    obj, positions = reference["object"], np.round(reference["positions_rc"]) + 32
    image = stitched(turned(cut(obj, positions)), positions).image()
    (row, col), (height, width) = image.origin_px, image.values.shape
    seen = np.where(image.coverage > 0, obj[row : row + height, col : col + width], 0)
    np.testing.assert_allclose(align_phase(image.values, seen), seen, atol=1e-3)


@pytest.mark.real
def test_errors_of_the_patches_do_not_add_up_over_a_real_scan(real_data: Path) -> None:
    reference = np.load(real_data / "siemens_star_velociprobe" / "derived_rpie_reference.npz")
    obj, positions = reference["object"], np.round(reference["positions_rc"]) + 32
    errors = np.random.default_rng(0).normal(0, 0.15, (len(positions), 8, 8))
    rough = np.kron(errors, np.ones((1, 8, 8)))
    patches = turned(cut(obj, positions) * np.exp(1j * rough))
    image = stitched(patches, positions).image()
    (row, col), (height, width) = image.origin_px, image.values.shape
    seen = np.where(image.coverage > 1, obj[row : row + height, col : col + width], 0)
    strayed = np.angle(align_phase(image.values, seen) * seen.conj())
    assert np.abs(strayed[seen != 0]).mean() < 0.08
