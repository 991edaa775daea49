"""Small learnable tasks for the host's tests."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgexnas.host.data.peak_dataset import PeakDataset
from edgexnas.host.data.peak_labels import label_frames
from edgexnas.host.data.ptycho_dataset import PtychoDataset
from edgexnas.host.data.scan_regions import scan_regions
from edgexnas.host.training.settings import TrainingData
from edgexnas.simulate import HedmSettings, simulate_hedm


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Keep torch from fighting over two cores, and sums in one order."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def gaussian_task() -> TrainingData:
    """Gaussian spots at random offsets: 512 to train on and 256 to validate on."""
    generator = torch.Generator().manual_seed(0)
    offsets = torch.rand(768, 2, generator=generator) - 0.5
    axis = torch.arange(11.0) - 5
    row = (axis[None, :, None] - offsets[:, 0, None, None]) ** 2
    col = (axis[None, None, :] - offsets[:, 1, None, None]) ** 2
    spots = torch.exp(-(row + col) / 2)[:, None]
    spots = (spots + 0.02 * torch.rand(spots.shape, generator=generator)).clamp(0, 1)
    return TrainingData(spots[:512], offsets[:512], spots[512:], offsets[512:])


@pytest.fixture(scope="session")
def tiny_peaks() -> PeakDataset:
    """960 Gaussian peaks at random offsets on 96 frames."""
    rng = np.random.default_rng(0)
    count, frames = 960, 96
    offsets = rng.uniform(-0.5, 0.5, (count, 2)).astype(np.float32)
    axis = np.arange(11.0) - 5
    row = (axis[None, :, None] - offsets[:, 0, None, None]) ** 2
    col = (axis[None, None, :] - offsets[:, 1, None, None]) ** 2
    counts = 1000 * np.exp(-(row + col) / 2) + rng.uniform(0, 20, (count, 11, 11))
    return PeakDataset(
        counts=counts.astype(np.float32),
        offsets_px=offsets,
        maxima=rng.integers(6, 250, (count, 2)).astype(np.int32),
        frame=np.sort(rng.integers(0, frames, count)).astype(np.int32),
        flags=np.zeros(count, np.uint8),
        r2=np.ones(count, np.float32),
        good=np.ones(count, np.bool_),
        frames=frames,
        shape=(256, 256),
        source="Gaussian peaks",
    )


@pytest.fixture(scope="session")
def tiny_patterns() -> PtychoDataset:
    """600 patterns of a smooth random object under a defocused Gaussian probe, with the truth."""
    rng = np.random.default_rng(0)
    row, col = np.mgrid[-32:32, -32:32]
    probe = np.exp(-(row**2 + col**2) / 600 + 0.01j * (row**2 + 0.5 * col**2))
    fields = np.fft.fft2(rng.normal(size=(2, 300, 300)))
    near = np.exp(-(np.fft.fftfreq(300)[:, None] ** 2 + np.fft.fftfreq(300) ** 2) * 3000)
    amplitude, phase = (field / field.std() for field in np.fft.ifft2(fields * near).real)
    sample = np.stack([0.7 + 0.05 * amplitude, 0.3 * phase]).astype(np.float32)
    positions = rng.integers(0, 300 - 64, (600, 2))
    targets = np.stack([sample[:, r : r + 64, c : c + 64] for r, c in positions])
    field = probe * targets[:, 0] * np.exp(1j * targets[:, 1])
    far = np.abs(np.fft.fftshift(np.fft.fft2(field, norm="ortho"), axes=(1, 2))) ** 2
    return PtychoDataset(
        patterns=rng.poisson(1000 * far).astype(np.float32),
        targets=targets,
        positions_px=positions.astype(np.float64),
        region=scan_regions(positions.astype(np.float64)),
        intensity_scale=1000.0,
        source="a smooth random object",
        against="truth",
    )


@pytest.fixture(scope="session")
def simulated_peaks() -> PeakDataset:
    """Labelled peaks of 48 simulated frames, with the truth."""
    series = simulate_hedm(HedmSettings(shape=(768, 768), frames=48, grains=60), seed=3)
    return label_frames(series)
