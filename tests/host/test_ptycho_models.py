"""Networks for ptychography."""

from __future__ import annotations

import math

import pytest
import torch

from edgexnas.host.models import ResidualConvolution, count_parameters
from edgexnas.host.ptycho_models import CnnPtycho, MlpPtycho, PtychoNN


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


def test_skips_can_be_switched_on_and_off() -> None:
    def skips(model: CnnPtycho) -> int:
        return sum(isinstance(module, ResidualConvolution) for module in model.modules())

    assert skips(CnnPtycho(3, 12, 12, 12, rezero=False)) == 0
    assert skips(CnnPtycho(3, 3, 3, 3, rezero=True)) == 2 + 3 + 3


def test_every_weight_of_a_deep_network_gets_a_gradient() -> None:
    torch.manual_seed(0)
    model = CnnPtycho(2, 30, 30, 30)
    for part in model.modules():
        if isinstance(part, ResidualConvolution):
            torch.nn.init.constant_(part.gain, 0.1)
    model(torch.rand(1, 1, 64, 64)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.encoder[0].weight.grad.abs().max() > 0
