"""Detection, labels and splits on measured frames."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from scipy.optimize import least_squares

from edgexnas.bragg import PATCH_SIZE, PeakFlag, centroid
from edgexnas.bundle import generate_keys
from edgexnas.frames import open_frames
from edgexnas.host import TrainingData, TrainingSettings, train, with_synthetic_peaks
from edgexnas.host.data.matching import match_peaks
from edgexnas.host.data.peak_dataset import PeakDataset
from edgexnas.host.data.peak_labels import label_frames
from edgexnas.host.exporting.bundle_export import export_bundle
from edgexnas.host.networks.symmetric_mlp import mlp_bragg_symmetric

pytestmark = pytest.mark.real

RADIUS_PX = 3.0
"""A found peak and a spot of hexrd are the same within this distance."""


@pytest.fixture(scope="module")
def ruby(real_data: Path) -> PeakDataset:
    """Label one panel of the ruby series: 1440 frames, zero-suppressed at 150 counts."""
    torch.set_num_threads(1)
    with open_frames(real_data / "hexrd_ruby_dexela" / "ruby_ff1_framecache.npz") as series:
        return label_frames(series)


@pytest.fixture(scope="module")
def spots(real_data: Path) -> dict[str, np.ndarray]:
    """List hexrd's own spots of that panel, found by connected components."""
    with h5py.File(real_data / "hexrd_ruby_dexela" / "hexrd_spots_file.h5") as file:
        tables = [(int(key), table[()].reshape(-1, 9)) for key, table in file["ff1"].items()]
    rows = np.concatenate([table for _, table in tables])
    frame = np.repeat([key for key, _ in tables], [len(table) for _, table in tables])
    return {"frame": frame, "px": rows[:, :2], "side": rows[:, 2], "max": rows[:, 7]}


@pytest.fixture(scope="module")
def pairs(ruby: PeakDataset, spots: dict[str, np.ndarray]) -> np.ndarray:
    """Pair peaks and spots on the same frame: (k, 2) indices."""
    matched = []
    for frame in range(ruby.frames):
        ours, theirs = np.flatnonzero(ruby.frame == frame), np.flatnonzero(spots["frame"] == frame)
        near = match_peaks(ruby.maxima[ours], spots["px"][theirs], RADIUS_PX)
        matched.append(np.column_stack([ours[near[:, 0]], theirs[near[:, 1]]]))
    return np.concatenate(matched)


def test_nearly_every_spot_of_hexrd_wider_than_two_pixels_is_found(spots, pairs):
    hit = np.isin(np.arange(len(spots["side"])), pairs[:, 1])
    assert (spots["side"] >= 3).sum() > 1500
    assert hit[spots["side"] >= 3].mean() > 0.99
    assert hit[spots["side"] >= 4].mean() > 0.999


def test_bright_spots_are_found_whatever_their_size(spots, pairs):
    hit = np.isin(np.arange(len(spots["max"])), pairs[:, 1])
    assert hit[spots["max"] >= 1000].mean() > 0.98


def test_nearly_every_peak_is_a_spot_of_hexrd_or_merged_into_one(ruby, pairs):
    alone = np.setdiff1d(np.arange(len(ruby)), pairs[:, 0])
    assert len(alone) / len(ruby) < 0.05
    # hexrd takes touching spots for one; the further maxima are what it has no entry for.
    merged = ruby.flags[alone] & np.uint8(PeakFlag.OVERLAP) > 0
    assert len(alone) - merged.sum() <= 5


def test_fits_agree_with_centroids_of_an_independent_program(ruby, spots, pairs):
    good = pairs[ruby.good[pairs[:, 0]]]
    fitted = (ruby.maxima + ruby.offsets_px)[good[:, 0]]
    distance = np.linalg.norm(fitted - spots["px"][good[:, 1]], axis=1)
    p50, p75, p95 = np.percentile(distance, [50, 75, 95])
    assert (p50 < 0.05, p75 < 0.08, p95 < 0.15) == (True, True, True)


def test_most_peaks_give_a_good_label(ruby):
    single = (ruby.flags == 0).sum()
    assert ruby.good.sum() > 1600
    assert ruby.good.sum() / single > 0.95


def test_no_reflection_is_in_two_parts(ruby):
    split = ruby.split()
    part = np.full(len(ruby), -1)
    for number, name in enumerate(("train", "calibration", "validation", "test")):
        part[getattr(split, name)] = number
    kept = np.flatnonzero(part >= 0)
    near = np.abs(ruby.maxima[kept][:, None] - ruby.maxima[kept][None]).max(axis=2) <= 3
    apart = np.abs(ruby.frame[kept][:, None].astype(int) - ruby.frame[kept][None])
    neighbours = near & (np.minimum(apart, ruby.frames - apart) <= 2)
    assert neighbours.sum() > len(kept)
    assert (part[kept][:, None] == part[kept][None])[neighbours].all()


def test_a_split_of_the_ruby_series_has_peaks_for_every_part(ruby):
    split = ruby.split()
    assert len(split.train) > 800
    assert min(len(split.calibration), len(split.validation), len(split.test)) > 100


def test_positions_equal_those_of_scipy(ruby):
    chosen = np.flatnonzero(ruby.good)[::9]
    rows, cols = np.indices((PATCH_SIZE, PATCH_SIZE))

    def model(p: np.ndarray) -> np.ndarray:
        height, level, row, col, first, second, angle, mixing = p
        along = (cols - col) * np.cos(angle) + (rows - row) * np.sin(angle)
        aside = (rows - row) * np.cos(angle) - (cols - col) * np.sin(angle)
        distance = 4 * ((along / first) ** 2 + (aside / second) ** 2)
        gauss = np.exp(-np.log(2) * distance)
        return level + height * (mixing / (1 + distance) + (1 - mixing) * gauss)

    bounds = ([0, -1, 2, 2, 0.5, 0.5, -4, 0], [5, 1, 8, 8, 16, 16, 4, 1])
    start = [1, 0, 5, 5, 2, 2.2, 0.1, 0.5]
    distances = []
    for index in chosen:
        data = ruby.counts[index] / ruby.counts[index].max()
        own = least_squares(lambda p, d=data: (model(p) - d).ravel(), start, bounds=bounds)
        distances.append(np.linalg.norm(own.x[2:4] - 5 - ruby.offsets_px[index]))
    assert len(chosen) > 180
    assert np.median(distances) < 0.001
    assert np.percentile(distances, 95) < 0.02


def test_the_fit_is_not_the_centroid(ruby):
    moved = np.linalg.norm(centroid(ruby.counts) - 5 - ruby.offsets_px, axis=1)[ruby.good]
    assert 0.01 < np.median(moved) < 0.1


@pytest.mark.parametrize(
    ("name", "fewest", "most"),
    [
        ("raw_bragg_frames/F2K_Seb_Lyso0675.edf.bz2", 100, 1000),
        ("raw_bragg_frames/GE_aSI_detector_image_1529.bz2", 13, 100),
    ],
)
def test_dense_frames_give_as_many_good_labels_as_were_counted_by_hand(
    real_data, name, fewest, most
):
    pytest.importorskip("fabio")
    with open_frames(real_data / name) as series:
        assert fewest <= label_frames(series).good.sum() <= most


def test_hardly_a_smooth_powder_ring_is_taken_for_peaks(real_data):
    with open_frames(real_data / "nexus_detector_files" / "AgBehenate_228.hdf5") as series:
        dataset = label_frames(series)
    assert len(dataset) < 100
    assert dataset.good.sum() <= 10


def test_few_of_the_grains_on_a_spotty_powder_ring_become_labels(real_data):
    # Its rings are real spots, thousands of them, but nearly all touch their neighbours.
    with open_frames(real_data / "nexus_detector_files" / "ceria_Pilatus2M_powder.hdf5") as series:
        dataset = label_frames(series)
    assert len(dataset) > 1000
    assert dataset.good.sum() < 120


@pytest.mark.long
def test_a_network_as_accurate_as_8_bit_patches_exports_within_the_default_loss(ruby, tmp_path):
    """mlpBraggSymmetric, trained for seconds; plain INT8 loses 12 to 25 %."""
    key, _ = generate_keys(tmp_path, name="beam")
    more = with_synthetic_peaks(ruby, 20_000, device="cpu")
    data = TrainingData.from_dataset(more, more.split(), "cpu")
    torch.manual_seed(0)
    network = mlp_bragg_symmetric(129, 2)
    train(network, data, TrainingSettings(epochs=73, batch_size=128, learning_rate=3e-3))
    report = export_bundle(
        tmp_path / "ruby.edgex", model=network, dataset=ruby, split=ruby.split(),
        architecture="mlpBraggSymmetric", signing_key=key, fine_tune=None,
    )  # fmt: skip
    float32, int8 = (
        next(row.mean_px for row in report.manifest.accuracy if row.precision == precision)
        for precision in ("float32", "int8")
    )
    assert float32 < 0.006
    assert int8 < 0.006
