"""Convolutions as matrix products give what torch's own give."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgexnas.host.training.recorded_step import Recording


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("channels", "filters", "kernel", "padding", "side"),
    [(1, 4, 3, 1, 11), (4, 6, 3, 0, 11), (3, 3, 3, 1, 2), (2, 5, 1, 0, 7), (2, 3, 5, 2, 6)],
)
def test_values_and_gradients_are_those_of_torch(
    channels: int, filters: int, kernel: int, padding: int, side: int, bias: bool
) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(channels, filters, kernel, padding=padding, bias=bias)
    x = torch.rand(7, channels, side, side, requires_grad=True)
    wanted = [x, *layer.parameters()]
    expected = layer(x)
    seed = torch.rand_like(expected)
    gradients = torch.autograd.grad(expected, wanted, seed)
    with Recording() as recording:
        result = layer(x)
        again = torch.autograd.grad(result, wanted, seed)
    assert recording.narrow > 0
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(again, gradients, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [2, 3])
def test_pooling_passes_gradients_to_the_same_pixels(size: int) -> None:
    x = torch.randint(0, 3, (4, 2, 11, 11)).float().requires_grad_()
    pooled = nn.functional.max_pool2d(x, size)
    seed = torch.rand_like(pooled)
    (expected,) = torch.autograd.grad(pooled, x, seed)
    with Recording() as recording:
        again = nn.functional.max_pool2d(x, size)
        (result,) = torch.autograd.grad(again, x, seed)
    assert recording.narrow > 0
    assert torch.equal(again, pooled)
    assert torch.equal(result, expected)


@pytest.mark.parametrize(
    "layer",
    [nn.Conv2d(4, 4, 3, stride=2), nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, (3, 1)),
     nn.Conv2d(4, 64, 3), nn.Conv2d(4, 4, 3, padding=1, dilation=2),
     nn.ConvTranspose2d(4, 4, 3)],
)  # fmt: skip
def test_other_convolutions_are_left_to_torch(layer: nn.Module) -> None:
    x = torch.rand(2, 4, 9, 9)
    expected = layer(x)
    with Recording() as recording:
        result = layer(x)
    assert recording.narrow == 0
    assert torch.equal(result, expected)
