"""What a ptychography network learns from, and how it is judged."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from edgexnas.host.data.ptycho_dataset import PtychoDataset
from edgexnas.host.networks.ptycho_models import Contrast, MlpPtycho
from edgexnas.host.training.loop import TrainingResult, train
from edgexnas.host.training.ptycho_criterion import PatchCriterion, phase_differences, symmetry
from edgexnas.host.training.settings import TrainingData, TrainingSettings
from edgexnas.ptycho import patch_errors

SETTINGS = TrainingSettings(epochs=30, batch_size=16, learning_rate=3e-3, device="cpu")


@pytest.fixture(scope="module")
def data(tiny_patterns: PtychoDataset) -> TrainingData:
    return TrainingData.from_dataset(tiny_patterns, tiny_patterns.split(), "cpu")


@pytest.fixture(scope="module")
def trained(data: TrainingData) -> TrainingResult:
    torch.manual_seed(0)
    return train(MlpPtycho(64, 1), data, SETTINGS)


def random_patches(seed: int, count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    patches = torch.rand((count, 2, 64, 64), generator=generator)
    patches[:, 1] = (patches[:, 1] - 0.5) * 2 * math.pi
    return patches


def turned(patches: Tensor, angle: float) -> Tensor:
    result = patches.clone()
    result[:, 1] = torch.remainder(result[:, 1] + angle + math.pi, 2 * math.pi) - math.pi
    return result


def test_a_network_learns_more_than_the_mean_patch(
    trained: TrainingResult, data: TrainingData
) -> None:
    mean = data.train_y.mean(0, keepdim=True).expand_as(data.validation_y)
    guess = patch_errors(mean.numpy(), data.validation_y.numpy())
    assert trained.metrics["error"] < 0.85 * guess.phase_rad


def test_scores_are_those_of_the_contract(trained: TrainingResult, data: TrainingData) -> None:
    with torch.no_grad():
        output = trained.model(data.validation_x).numpy()
    expected = patch_errors(output, data.validation_y.numpy())
    assert trained.metrics["error"] == pytest.approx(expected.phase_rad, rel=1e-4)
    assert trained.metrics["amplitude_error"] == pytest.approx(expected.amplitude, rel=1e-4)


@pytest.mark.parametrize("angle", [0.3, 2.0, -3.0])
def test_the_constant_phase_of_a_patch_costs_nothing(angle: float) -> None:
    target = random_patches(0)
    assert PatchCriterion().loss(turned(target, angle), target) < 1e-5


def test_each_patch_has_its_own_constant() -> None:
    target = random_patches(0, 2)
    predicted = torch.cat([turned(target[:1], 1.0), turned(target[1:], -2.0)])
    assert phase_differences(predicted, target).abs().max() < 1e-5


def test_phases_are_compared_the_short_way_round() -> None:
    target = torch.ones(1, 2, 64, 64)
    target[:, 1] = 0
    predicted = target.clone()
    predicted[:, 1, 0, 0] = 2 * math.pi - 0.1
    differences = phase_differences(predicted, target)
    assert float(differences[0, 0, 0]) == pytest.approx(-0.1, abs=1e-3)


def test_the_loss_adds_the_weighted_share_of_amplitude_error() -> None:
    target = random_patches(0)
    brighter = target.clone()
    brighter[:, 0] *= 1.1
    assert float(PatchCriterion(amplitude_weight=2.0).loss(brighter, target)) == pytest.approx(0.2)


@pytest.mark.parametrize("fold", range(8))
def test_each_symmetry_turns_the_pattern_with_its_object(fold: int) -> None:
    generator = torch.Generator().manual_seed(fold)
    target = torch.rand((1, 2, 64, 64), generator=generator)
    axis = torch.arange(-32.0, 32.0)
    radius2 = axis[:, None] ** 2 + axis**2
    # Dark at the rim, where mirroring about pixel 32 has nothing to put.
    probe = torch.polar(torch.exp(-radius2 / 72), 0.03 * radius2)

    def pattern(patch: Tensor) -> Tensor:
        wave = probe * torch.polar(patch[:, 0], patch[:, 1])
        return torch.fft.fftshift(torch.fft.fft2(wave), dim=(1, 2)).abs()[:, None]

    x, y = symmetry(pattern(target), target, fold)
    torch.testing.assert_close(pattern(y), x, rtol=0, atol=1e-4 * float(x.max()))


def test_the_eight_symmetries_are_all_different() -> None:
    one = random_patches(0, 1)[:, :1], random_patches(1, 1)
    assert len({symmetry(*one, fold)[0].numpy().tobytes() for fold in range(8)}) == 8


def test_training_takes_the_mean_pattern_away(trained: TrainingResult, data: TrainingData) -> None:
    contrast = trained.model.contrast
    assert isinstance(contrast, Contrast)
    seen = contrast(data.train_x)
    assert float(seen.mean(0).abs().max()) < 1e-4
    assert float(seen.square().mean()) == pytest.approx(1, rel=1e-4)


def test_the_mean_pattern_is_stored_with_the_weights_and_is_no_parameter(
    trained: TrainingResult, data: TrainingData
) -> None:
    buffer = io.BytesIO()
    torch.save(trained.model.state_dict(), buffer)
    buffer.seek(0)
    again = MlpPtycho(64, 1)
    again.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(again(data.validation_x), trained.model(data.validation_x))
    assert "contrast.mean" not in dict(again.named_parameters())


def test_patterns_without_contrast_stay_finite() -> None:
    contrast = Contrast()
    contrast.fit(torch.ones(4, 1, 64, 64))
    assert np.isfinite(contrast(torch.ones(1, 1, 64, 64)).numpy()).all()
