"""The real Siemens star: reading, phase retrieval and the baselines of its held-out quarter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import shift

from edgexnas.host.data.phase_retrieval import reconstruct
from edgexnas.host.data.ptycho_labels import label_scan
from edgexnas.host.data.scan_geometry import beam_offset_px, find_orientation
from edgexnas.host.exporting.ptycho_baselines import baseline_rows
from edgexnas.ptycho import ObjectImage, PatternStore, Refiner, align_phase, oriented
from edgexnas.scans import Scan, open_scan

pytestmark = pytest.mark.real

COVERED = slice(100, 366), slice(100, 363)
"""Where each pixel of the star was under the beam many times."""


@pytest.fixture(scope="module")
def folder(real_data: Path) -> Path:
    return real_data / "siemens_star_velociprobe"


@pytest.fixture(scope="module")
def star(folder: Path) -> Scan:
    return open_scan(folder / "siemens-star-small.npz.bz2")


def centroid(probe: np.ndarray) -> np.ndarray:
    """(row, col) of the light's centre."""
    light = (np.abs(probe) ** 2).sum(axis=0)
    return np.array([(axis * light).sum() for axis in np.indices(light.shape)]) / light.sum()


def test_the_star_opens_with_its_beam_in_the_middle(star: Scan) -> None:
    assert star.patterns.shape == (516, 128, 128)
    row, col = centroid(np.sqrt(star.patterns))
    assert abs(row - 64) < 4
    assert abs(col - 64) < 4
    middle = star.patterns[:, 32:96, 32:96].sum() / star.patterns.sum()
    assert middle == pytest.approx(0.955, abs=0.002)


def test_its_positions_are_those_of_the_reference(star: Scan, folder: Path) -> None:
    with np.load(folder / "derived_rpie_reference.npz") as reference:
        np.testing.assert_allclose(star.window_corners_px, reference["positions_rc"], atol=1e-3)


@pytest.mark.parametrize(
    ("iterations", "misfit", "limit_rad"),
    [(4, 0.0125, 0.09), pytest.param(30, 0.0100, 0.055, marks=pytest.mark.long)],
)
def test_phase_retrieval_agrees_with_the_reference(
    star: Scan, folder: Path, iterations: int, misfit: float, limit_rad: float
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    found = reconstruct(star, iterations=iterations)
    torch.set_num_threads(before)
    with np.load(folder / "derived_rpie_reference.npz") as reference:
        theirs, probe = reference["object"][COVERED], reference["probe"]
    # Object and beam may move together, so their common place is no error.
    moved = centroid(probe) - centroid(found.probe)
    ours = shift(found.object.real, moved) + 1j * shift(found.object.imag, moved)
    ours = align_phase(ours[COVERED], theirs)
    assert found.error_history[-1] < misfit
    apart = np.angle(ours * theirs.conj())
    # Nor is a tilt of the beam against the object, which is a ramp of phase.
    plane = np.stack([*np.indices(apart.shape).reshape(2, -1), np.ones(apart.size)], axis=1)
    ramp, *_ = np.linalg.lstsq(plane, apart.ravel(), rcond=None)
    assert np.abs(apart.ravel() - plane @ ramp).mean() < limit_rad
    ratio = np.abs(ours) / np.abs(theirs)
    assert (ratio / ratio.mean()).std() < 0.075


def test_the_baselines_of_the_right_quarter_are_known(star: Scan, folder: Path) -> None:
    with np.load(folder / "derived_rpie_reference.npz") as reference:
        dataset = label_scan(replace(star, truth=reference["object"]))
    split = dataset.split()
    assert (len(split.train), len(split.test)) == (230, 135)
    mean, ridge = baseline_rows(dataset, split)
    assert mean.phase_mae_rad == pytest.approx(0.354, abs=0.005)
    assert ridge.phase_mae_rad == pytest.approx(0.153, abs=0.005)


def test_its_orientation_is_found_with_the_zone_plates_beam_and_without(star: Scan) -> None:
    turned = np.ascontiguousarray(oriented(star.patterns, "transpose", inverse=True))
    with_probe, without = (
        find_orientation(replace(star, patterns=turned, probe=probe))
        for probe in (star.probe, None)
    )
    assert with_probe.orientation == without.orientation == "transpose"
    assert with_probe.by_probe
    assert not without.by_probe
    row, col = beam_offset_px(star)
    assert (row, col) == pytest.approx((-0.1, 3.0), abs=0.1)


def test_ten_sweeps_from_a_flat_object_with_a_known_probe_come_near_the_reference(
    star: Scan, folder: Path
) -> None:
    with np.load(folder / "derived_rpie_reference.npz") as kept:
        reference, probe, corners = kept["object"], kept["probe"], kept["positions_rc"]
    near = (np.abs(corners - np.median(corners, axis=0)) < 60).all(axis=1)
    store = PatternStore((128, 128))
    for number in np.flatnonzero(near):
        store.add(int(number), star.patterns[number])
        store.place(int(number), corners[number] + 32)
    flat = ObjectImage(np.ones_like(reference), np.ones(reference.shape, np.float32), 0)
    refined = Refiner(probe).refine(flat, store, 10)
    assert refined is not None
    rows, cols = (
        slice(int(low) + 40, int(high) + 88)
        for low, high in zip(corners[near].min(axis=0), corners[near].max(axis=0), strict=True)
    )
    ours = align_phase(refined.image.values[rows, cols], reference[rows, cols])
    # Reconstructions of the star by two seeds differ by 0.055 rad, and a flat object by 0.35.
    assert np.abs(np.angle(ours * reference[rows, cols].conj())).mean() < 0.08
    assert refined.residuals[-1] < 0.012
