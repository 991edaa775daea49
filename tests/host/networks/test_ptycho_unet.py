"""The U-Net for ptychography: sizes, sub-pixel convolution, skips, and its search space."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from edgexnas.host.exporting.onnx_export import to_onnx
from edgexnas.host.exporting.quantisation import run_onnx
from edgexnas.host.networks.bragg_models import count_macs, count_parameters
from edgexnas.host.networks.ptycho_models import FOLDS, PtychoNN, Shadow
from edgexnas.host.networks.ptycho_unet import PtychoUnet, spread_channels
from edgexnas.host.networks.spaces import SPACES

SPACE = SPACES["ptychoUnet"]


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize("skips", [False, True])
def test_every_choice_gives_amplitude_and_phase_of_a_patch(
    stride: int, separable: bool, skips: bool
) -> None:
    model = PtychoUnet(8, 9, 10, 2, stride, skips, separable).eval()
    with torch.no_grad():
        image = model(torch.randn(3, 1, 64, 64))
    assert image.shape == (3, 2, 64, 64)
    assert ((image[:, 0] >= 0) & (image[:, 0] <= 1)).all()
    assert (image[:, 1].abs() <= np.pi).all()


def test_channels_are_spread_as_by_pixel_shuffle() -> None:
    images = torch.randn(2, 18, 5, 4)
    torch.testing.assert_close(spread_channels(images, 3), nn.PixelShuffle(3)(images))


def test_skips_carry_what_the_narrow_part_drops() -> None:
    torch.manual_seed(0)
    models = [PtychoUnet(8, 8, 8, 1, 2, skips, False) for skips in (True, False)]
    for model in models:
        for layer in model.encoder3:
            if isinstance(layer, nn.Conv2d):
                nn.init.zeros_(layer.weight)
        nn.init.normal_(model.head.weight)
    one, other = torch.randn(2, 1, 1, 64, 64)
    with torch.no_grad():
        differ = [float((model(one) - model(other)).abs().max()) for model in models]
    assert differ[0] > 1e-3
    assert differ[1] == 0


def test_a_fifth_of_ptychonns_multiplications_and_a_third_of_its_parameters_are_in_the_space() -> (
    None
):
    model = SPACE.build(SPACE.smallest | {"width1": 32, "width2": 64, "width3": 128})
    baseline = PtychoNN()
    assert count_macs(model, (1, 64, 64)) < 0.2 * count_macs(baseline, (1, 64, 64))
    assert count_parameters(model) < 0.34 * count_parameters(baseline)


def test_separable_convolutions_take_a_fifth_of_the_multiplications() -> None:
    wide = SPACE.smallest | {"width1": 64, "width2": 128, "width3": 256}
    full, separable = (SPACE.size(wide | {"separable": value}).macs for value in (False, True))
    assert separable < full / 5


def test_every_network_that_is_drawn_builds_and_is_counted_right() -> None:
    rng = random.Random(0)
    for _ in range(20):
        drawn = SPACE.sample(rng)
        size, model = SPACE.size(drawn), SPACE.build(drawn)
        assert size.parameters == count_parameters(model)
        assert size.macs == count_macs(model, (1, 64, 64))


@pytest.mark.parametrize("fold", range(8))
def test_a_shadow_finds_which_way_the_pattern_lies(fold: int) -> None:
    patches = nn.functional.interpolate(torch.randn(200, 1, 16, 16), scale_factor=4)
    axes, exchanged = FOLDS[fold]
    # The inverse: exchanged first, then reversed.
    patterns = patches.transpose(2, 3) if exchanged else patches
    patterns = patterns.flip(axes) if axes else patterns
    shadow = Shadow()
    shadow.fit(patterns, torch.cat([torch.ones_like(patches), patches], 1))
    assert shadow.choice.tolist() == [1, fold, 1]
    torch.testing.assert_close(shadow(patterns), patches)


@pytest.mark.parametrize("fold", [1, 5, 6])
def test_an_exported_network_folds_as_the_trained_one_does(fold: int) -> None:
    torch.manual_seed(1)
    model = PtychoUnet(8, 8, 8, 1, 2, True, True)
    state = model.state_dict() | {"shadow.choice": torch.tensor([2, fold, 1])}
    model.load_state_dict(state)
    nn.init.normal_(model.head.weight, std=0.1)
    patterns = torch.rand(3, 1, 64, 64)
    onnx = to_onnx(model.eval(), patterns)
    with torch.no_grad():
        expected = model(patterns).numpy()
    np.testing.assert_allclose(run_onnx(onnx, patterns.numpy(), 3), expected, atol=1e-4)
