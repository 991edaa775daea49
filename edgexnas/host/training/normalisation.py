"""Batch normalisation that is there while a network trains and gone when it is used.

Deep stacks of plain convolutions hardly leave the mean answer by themselves. Normalised between a
convolution and its ReLU (Ioffe, Szegedy, ICML 2015) they learn at once. Afterwards the
normalisation is a scale and an offset, which the convolution takes over: the network has its own
layers and number of parameters again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

__all__ = ["normalised"]

SETTLING_BATCHES = 32
"""Batches from which the statistics of finished weights are taken."""


@contextmanager
def normalised(model: nn.Module) -> Iterator[Callable[[Callable[[], object]], None]]:
    """Put batch normalisation behind each convolution that a ReLU follows, for the block's time.

    Yields
    ------
    A function that takes the statistics of the weights as they are, from 32 calls of what it is
    given, which must run the network on one batch; call it when training is done. What was not
    settled so is folded with its running statistics.
    """
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []
    before: dict[str, nn.Sequential] = {}
    stacks = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Sequential)]
    for name, stack in stacks:
        layers: list[nn.Module] = []
        for index, layer in enumerate(stack):
            layers.append(layer)
            followed = index + 1 < len(stack) and isinstance(stack[index + 1], nn.ReLU)
            if isinstance(layer, nn.Conv2d) and followed:
                norm = nn.BatchNorm2d(layer.out_channels).to(layer.weight.device)
                # Taken away again by the normalisation, so that rounding errors alone move it.
                layer.bias = None
                pairs.append((layer, norm))
                layers.append(norm)
        if len(layers) > len(stack) and name:
            before[name] = stack
            model.set_submodule(name, nn.Sequential(*layers).train(stack.training))

    def settle(run: Callable[[], object]) -> None:
        for _, norm in pairs:
            norm.reset_running_stats()
            # A plain mean over all batches from here on.
            norm.momentum = None
        with torch.no_grad():
            for _ in range(SETTLING_BATCHES):
                run()

    try:
        yield settle
    finally:
        # Also after an exception, so that the caller gets its own layers back.
        for conv, norm in pairs:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            conv.weight, bias = fuse_conv_bn_weights(
                conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps,
                norm.weight, norm.bias,
            )  # fmt: skip
            # The fused bias requires no gradient, because the layer had none to take it from.
            conv.bias = bias.requires_grad_()
        for name, stack in before.items():
            model.set_submodule(name, stack)
