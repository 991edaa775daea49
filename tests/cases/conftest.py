"""A bundle whose network is the centroid, frames with a known answer, and scans."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from edgexnas.bundle import generate_keys
from edgexnas.device import PeakPredictor
from edgexnas.scans import Scan
from edgexnas.simulate import PtychographySettings, simulate_scan
from edgexnas.testing import write_centroid_bundle

SPOTS = ((40.3, 50.2, 900.0), (90.7, 160.4, 700.0), (150.2, 80.8, 800.0), (200.5, 200.1, 600.0))
"""(row, col, counts) on every frame of `stack`."""

HC = 1.986445857e-25
ENERGY_J, DISTANCE_M, PIXEL_M = 8.8e3 * 1.602176634e-19, 1.0, 55e-6


def frame(
    seed: int = 0, spots: tuple[tuple[float, float, float], ...] = SPOTS, level: float = 10.0
) -> np.ndarray:
    """(256, 256) uint16, round spots of 3 px on a flat background with Poisson noise."""
    rows, cols = np.mgrid[:256, :256]
    image = np.full((256, 256), level)
    for row, col, height in spots:
        image += height * np.exp(-((rows - row) ** 2 + (cols - col) ** 2) / 3.246)
    return np.random.default_rng(seed).poisson(image).astype(np.uint16)


def stack(count: int = 6, **options: Any) -> np.ndarray:
    return np.stack([frame(seed=number, **options) for number in range(count)])


def write_frames(path: Path, frames: np.ndarray, **datasets: Any) -> Path:
    """Write frames where NeXus has them; keys of others are paths with __ for /."""
    with h5py.File(path, "w") as file:
        file["entry/data/data"] = frames
        for name, values in datasets.items():
            file[name.replace("__", "/")] = values
    return path


def write_cxi(
    path: Path, scan: Scan, *, sign: float = 1.0, change: Callable[[Any], None] | None = None
) -> Path:
    count, height, width = scan.patterns.shape
    step = HC / ENERGY_J * DISTANCE_M / (np.array([height, width]) * PIXEL_M)
    metres = np.zeros((count, 3))
    metres[:, 1::-1] = sign * scan.positions_px * step
    with h5py.File(path, "w") as file:
        file["cxi_version"] = 160
        file["entry_1/data_1/data"] = scan.patterns
        file["entry_1/sample_1/geometry_1/translation"] = metres
        file["entry_1/instrument_1/source_1/energy"] = ENERGY_J
        detector = file.create_group("entry_1/instrument_1/detector_1")
        detector["distance"] = DISTANCE_M
        detector["x_pixel_size"] = detector["y_pixel_size"] = PIXEL_M
        if change is not None:
            change(file)
    return path


def small_scan(side_px: int = 60) -> Scan:
    return simulate_scan(PtychographySettings(scan_shape_px=(side_px, side_px)), seed=3)


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    generate_keys(folder)
    return folder


@pytest.fixture(scope="session")
def bundle_path(keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_centroid_bundle(
        tmp_path_factory.mktemp("bundle") / "centroid.edgex",
        signing_key=keys / "edgexnas.key.pem",
        precisions=("float32",),
    )


@pytest.fixture
def predictor(bundle_path: Path, keys: Path) -> Iterator[PeakPredictor]:
    with PeakPredictor(
        bundle_path, trust=keys, engine="onnxruntime", precision="float32"
    ) as opened:
        yield opened


@pytest.fixture
def peaks_of(predictor: PeakPredictor) -> Callable[[Any], dict[int, int]]:
    """`peaks_of(source)` gives the number of peaks on each frame that has some."""

    def count(source: Any) -> dict[int, int]:
        found = {peaks.frame_number: len(peaks) for peaks in predictor.stream(source)}
        return {number: peaks for number, peaks in found.items() if peaks}

    return count
