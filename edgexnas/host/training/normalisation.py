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
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

__all__ = ["normalised"]

SETTLING_BATCHES = 32
"""Batches from which the statistics of finished weights are taken."""


@contextmanager
def normalised(
    model: nn.Module, seen: Tensor | None = None
) -> Iterator[Callable[[Callable[[], object]], None]]:
    """Put batch normalisation behind each convolution that a ReLU follows, for the block's time.

    Parameters
    ----------
    seen
        Inputs by which the normalisation of trained weights begins as what they give already;
        None for fresh weights.

    Yields
    ------
    A function that takes the statistics of the weights as they are, from 32 calls of what it is
    given, which must run the network on one batch; call it when training is done. What was not
    settled so is folded with its running statistics.
    """
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []
    before: dict[str, nn.Sequential] = {}
    # A model that is a stack itself cannot be replaced, and stays as it is.
    stacks = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Sequential) and n]
    for name, stack in stacks:
        layers: list[nn.Module] = []
        for index, layer in enumerate(stack):
            layers.append(layer)
            followed = index + 1 < len(stack) and isinstance(stack[index + 1], nn.ReLU)
            if isinstance(layer, nn.Conv2d) and followed:
                norm = nn.BatchNorm2d(layer.out_channels).to(layer.weight.device)
                if seen is not None and layer.bias is not None:
                    norm.bias.data.copy_(layer.bias.data)
                # Taken away again by the normalisation, so that rounding errors alone move it.
                layer.bias = None
                pairs.append((layer, norm))
                layers.append(norm)
        if len(layers) > len(stack):
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
        if seen is not None:
            _begin_as_identity(model, [norm for _, norm in pairs], seen)
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


def _begin_as_identity(model: nn.Module, norms: list[nn.BatchNorm2d], seen: Tensor) -> None:
    """Give each normalisation the statistics of what it sees, and scale and offset that undo it."""

    def fit(norm: nn.BatchNorm2d, given: tuple[Tensor]) -> None:
        variance, mean = torch.var_mean(given[0], dim=(0, 2, 3), correction=0)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.weight.copy_((variance + norm.eps).sqrt())
        # It holds the bias of the layer before it.
        norm.bias.add_(mean)

    hooks = [norm.register_forward_pre_hook(fit) for norm in norms]
    training = model.training
    try:
        with torch.no_grad():
            # In evaluation each one gives what the layers behind it have seen so far.
            model.eval()(seen)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
