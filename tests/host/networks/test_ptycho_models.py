"""Networks for ptychography."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from edgexnas.host.networks.bragg_models import ResidualConvolution, count_parameters
from edgexnas.host.networks.ptycho_models import CnnPtycho, MlpPtycho, PtychoNN, Shadow, doubled


def test_ptychonn_has_the_published_number_of_parameters() -> None:
    assert count_parameters(PtychoNN()) == 1_247_074


@pytest.mark.parametrize(
    "model", [PtychoNN(2), MlpPtycho(3, 2), CnnPtycho(2, 1, 1, 1), CnnPtycho(1, 4, 9, 2)]
)
def test_amplitude_is_a_share_and_phase_an_angle(model: torch.nn.Module) -> None:
    image = model(torch.rand(2, 1, 64, 64, generator=torch.manual_seed(0)) * 100)
    assert image.shape == (2, 2, 64, 64)
    assert 0 <= image[:, 0].min() <= image[:, 0].max() <= 1
    assert image[:, 1].abs().max() <= math.pi


def test_layers_are_dealt_evenly_to_three_stages() -> None:
    encoder = CnnPtycho(2, 5, 1, 1).encoder
    kinds = "".join(type(layer).__name__[0] for layer in encoder if type(layer).__name__ != "ReLU")
    assert kinds == "CCMCCMCM"


def test_deep_stacks_have_skips_and_shallow_ones_have_none() -> None:
    model = CnnPtycho(3, 9, 8, 8)
    assert any(isinstance(layer, ResidualConvolution) for layer in model.encoder)
    assert not any(isinstance(layer, ResidualConvolution) for layer in model.amplitude)


def test_every_weight_of_a_deep_network_gets_a_gradient() -> None:
    torch.manual_seed(0)
    model = CnnPtycho(2, 30, 30, 30)
    for part in model.modules():
        if isinstance(part, ResidualConvolution):
            torch.nn.init.constant_(part.gain, 0.1)
    model(torch.rand(1, 1, 64, 64)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.encoder[0].weight.grad.abs().max() > 0


def shadows(magnification: int, turned: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Patterns that show the phase of their patches in their middle, as small as told."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand((40, 1, 16, 16), generator=generator)
    phase = torch.nn.functional.interpolate(coarse, scale_factor=4.0, mode="bilinear")
    small = torch.nn.functional.avg_pool2d(phase, magnification)
    margin = (64 - 64 // magnification) // 2
    patterns = torch.nn.functional.pad(small, (margin,) * 4)
    if turned:
        patterns = patterns.flip((2, 3))
    return patterns, torch.cat([torch.ones_like(phase), phase], dim=1)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("magnification", [1, 2, 4])
def test_a_pattern_is_laid_over_the_patch_that_it_shows(magnification: int, turned: bool) -> None:
    patterns, targets = shadows(magnification, turned)
    shadow = Shadow()
    shadow.fit(patterns, targets)
    laid = shadow(patterns)[:, 0].flatten()
    assert shadow.choice.tolist() == [magnification, int(turned), 1]
    assert np.corrcoef(laid.numpy(), targets[:, 1].flatten().numpy())[0, 1] > 0.95


def test_a_fresh_shadow_changes_nothing_and_a_fitted_one_stays() -> None:
    patterns, targets = shadows(2, False)
    shadow = Shadow()
    assert torch.equal(shadow(patterns), patterns)
    shadow.fit(patterns, targets)
    shadow.fit(*shadows(1, True))
    assert shadow.choice.tolist() == [2, 0, 1]


def test_the_choice_of_a_shadow_is_loaded_with_the_weights() -> None:
    patterns, targets = shadows(4, True)
    model = CnnPtycho(2, 3, 3, 3)
    model.shadow.fit(patterns, targets)
    loaded = CnnPtycho(2, 3, 3, 3)
    loaded.load_state_dict(model.state_dict())
    assert torch.equal(loaded(patterns), model(patterns))
    assert not torch.equal(CnnPtycho(2, 3, 3, 3)(patterns), model(patterns))


def test_no_magnification_leaves_light_outside() -> None:
    patterns, targets = shadows(2, False)
    rim = patterns.clone()
    rim[:, :, :8] = 3 * torch.rand((40, 1, 8, 64), generator=torch.Generator().manual_seed(1))
    shadow = Shadow()
    shadow.fit(rim, targets)
    assert shadow.choice[0] == 1


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 1, 1, 5)])
def test_doubling_by_neighbours_is_bilinear(shape: tuple[int, ...]) -> None:
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.interpolate(images, scale_factor=2.0, mode="bilinear")
    torch.testing.assert_close(doubled(images), expected)
