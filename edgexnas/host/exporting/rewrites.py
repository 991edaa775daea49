"""Networks rewritten so that a GPU runs fewer and larger kernels, without a change of function.

A network this small waits for launches, not for arithmetic. Each rewrite takes a trained network
and returns another that computes the same up to the rounding of sums, or None where it has nothing
to rewrite. Which of them pay is measured: see `edgexnas.host.measuring.recipe_search`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from edgexnas.errors import ConfigurationError
from edgexnas.host.networks.bragg_models import BraggNN, NonLocalBlock, ResidualConvolution
from edgexnas.host.networks.ptycho_models import CnnPtycho, Doubling, PtychoNN

__all__ = ["REWRITES", "FoldedAttention", "TwinDecoders", "rewrite", "rewritten"]

Rewrite = Callable[[nn.Module], "nn.Module | None"]

ALIGNED = 16
"""Channels of attention are padded to this: tensor cores and vector loads take no fewer."""


def rewrite(model: nn.Module, name: str) -> nn.Module | None:
    """Rewrite a network by one of `REWRITES`; it is left as it is.

    Returns
    -------
    A network in evaluation mode of the same function, or None if the rewrite does not apply.
    """
    # A copy, because a rewrite may take parts of the network over.
    rewritten = REWRITES[name](copy.deepcopy(model).cpu().eval())
    return None if rewritten is None else rewritten.eval()


def rewritten(model: nn.Module, name: str | None) -> nn.Module:
    """Rewrite a network that the rewrite is known to apply to; None leaves it alone."""
    if name is None:
        return model
    other = rewrite(model, name)
    if other is None:
        raise ConfigurationError(
            f"rewrite {name!r} does not apply to a {type(model).__name__}; leave it out"
        )
    return other


# Ptychography: two decoders as one


class TwinDecoders(nn.Module):
    """A network for ptychography whose two decoders are one of twice the channels.

    The first convolution of both reads the same features, so it is one of twice the filters. The
    others have a block of weights for each decoder: as two groups, or with zeros between.
    """

    def __init__(
        self, before: nn.Module, decoder: nn.Sequential, scale: Tensor, offset: Tensor
    ) -> None:
        super().__init__()
        self.before, self.decoder = before, decoder
        self.scale: Tensor
        self.offset: Tensor
        self.register_buffer("scale", scale)
        self.register_buffer("offset", offset)

    def forward(self, patterns: Tensor) -> Tensor:
        """Amplitude and phase (n, 2, 64, 64) from patterns (n, 1, 64, 64)."""
        raw = torch.tanh(self.decoder(self.before(patterns)))
        return raw * self.scale + self.offset


class _Twice(nn.Module):
    """Gives both decoders the features, where the first layer of theirs adds to its own input."""

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat([features, features], dim=1)


class _ChannelGains(nn.Module):
    """x + α · ReLU(conv(x)) with a gain for each channel."""

    def __init__(self, convolution: nn.Conv2d, gain: Tensor) -> None:
        super().__init__()
        self.convolution = convolution
        self.gain = nn.Parameter(gain)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gain * torch.relu(self.convolution(x))


def _twins(model: nn.Module, *, grouped: bool) -> TwinDecoders | None:
    if not isinstance(model, PtychoNN | CnnPtycho):
        return None
    amplitude, phase = list(model.amplitude), list(model.phase)
    # Decoders of unlike depth have different stages.
    if [type(part) for part in amplitude] != [type(part) for part in phase]:
        return None
    parts: list[nn.Module] = []
    shared = True
    for one, other in zip(amplitude, phase, strict=True):
        if isinstance(one, nn.Conv2d) and isinstance(other, nn.Conv2d):
            parts.append(_stacked(one, other) if shared else _blocks(one, other, grouped=grouped))
            shared = False
        elif isinstance(one, ResidualConvolution) and isinstance(other, ResidualConvolution):
            if shared:
                parts.append(_Twice())
                shared = False
            convolution = _blocks(one.convolution, other.convolution, grouped=grouped)
            gains = [part.gain.detach().expand(part.convolution.out_channels)
                     for part in (one, other)]  # fmt: skip
            parts.append(_ChannelGains(convolution, torch.cat(gains)[:, None, None]))
        else:
            parts.append(one)
    last = parts[-1]
    assert isinstance(last, nn.Conv2d)
    assert last.bias is not None
    with torch.no_grad():
        # sigmoid(x) = ½ tanh(x/2) + ½, so that one function serves both channels.
        last.weight[:1] /= 2
        last.bias[:1] /= 2
    before = nn.Sequential(model.contrast, model.shadow, model.encoder)
    scale = torch.tensor([0.5, math.pi]).reshape(1, 2, 1, 1)
    offset = torch.tensor([0.5, 0.0]).reshape(1, 2, 1, 1)
    return TwinDecoders(before, nn.Sequential(*parts), scale, offset)


def _convolution(weight: Tensor, bias: Tensor | None, *, groups: int = 1) -> nn.Conv2d:
    """Build a stride-1 convolution that keeps the size of images."""
    filters, channels, side, _ = weight.shape
    convolution = nn.Conv2d(
        channels * groups, filters, side, padding=side // 2, groups=groups, bias=bias is not None
    )
    with torch.no_grad():
        convolution.weight.copy_(weight)
        if bias is not None and convolution.bias is not None:
            convolution.bias.copy_(bias)
    return convolution


def _both_biases(one: nn.Conv2d, other: nn.Conv2d) -> Tensor:
    assert one.bias is not None
    assert other.bias is not None
    return torch.cat([one.bias, other.bias]).detach()


def _stacked(one: nn.Conv2d, other: nn.Conv2d) -> nn.Conv2d:
    """Make one of two convolutions of one input."""
    return _convolution(torch.cat([one.weight, other.weight]).detach(), _both_biases(one, other))


def _blocks(one: nn.Conv2d, other: nn.Conv2d, *, grouped: bool) -> nn.Conv2d:
    """Make one of two convolutions of two halves of the channels."""
    bias = _both_biases(one, other)
    if grouped:
        return _convolution(torch.cat([one.weight, other.weight]).detach(), bias, groups=2)
    filters, channels = one.weight.shape[:2]
    weight = torch.zeros(2 * filters, 2 * channels, *one.weight.shape[2:])
    weight[:filters, :channels] = one.weight.detach()
    weight[filters:, channels:] = other.weight.detach()
    return _convolution(weight, bias)


# Ptychography: fewer channels through the last doubling


class _TapsBeforeDoubling(nn.Sequential):
    """A doubling and the 3×3 convolution of few filters behind it, with the channels summed first.

    Doubling is linear and alike in every channel. So each of the nine taps sums its channels at
    the low resolution (a 1×1 convolution), nine images a filter are doubled in place of all
    channels, and a fixed 3×3 convolution shifts and adds them. Edges are those of the original.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        weight = convolution.weight.detach()
        filters, _, side, _ = weight.shape
        taps = side * side
        # (filter, tap) in a row, a tap being (row, col).
        sums = weight.flatten(2).transpose(1, 2).flatten(0, 1)[:, :, None, None]
        shifts = torch.zeros(filters, filters, taps, side, side)
        for tap in range(taps):
            shifts[range(filters), range(filters), tap, tap // side, tap % side] = 1.0
        assert convolution.bias is not None
        super().__init__(
            _convolution(sums, None, groups=convolution.groups),
            Doubling(),
            _convolution(shifts.flatten(1, 2), convolution.bias.detach()),
        )


def _with_taps_first(decoder: nn.Sequential) -> nn.Sequential | None:
    *before, doubling, last = decoder
    if not isinstance(doubling, Doubling) or not isinstance(last, nn.Conv2d):
        return None
    # Nine images a filter must be fewer than the channels that they stand for.
    if 9 * last.out_channels >= last.in_channels:
        return None
    return nn.Sequential(*before, *_TapsBeforeDoubling(last))


def _taps_first(model: nn.Module) -> nn.Module | None:
    if not isinstance(model, PtychoNN | CnnPtycho):
        return None
    amplitude, phase = _with_taps_first(model.amplitude), _with_taps_first(model.phase)
    if amplitude is None or phase is None:
        return None
    model.amplitude, model.phase = amplitude, phase
    return model


def _twins_with_taps_first(model: nn.Module, *, grouped: bool) -> nn.Module | None:
    twins = _twins(model, grouped=grouped)
    if twins is None:
        return None
    decoder = _with_taps_first(twins.decoder)
    if decoder is None:
        return None
    twins.decoder = decoder
    return twins


# Bragg peaks: attention of low rank


class FoldedAttention(nn.Module):
    """A 3×3 convolution and the non-local block behind it, as attention over the 3×3 windows.

    Nothing but sums stands between the patch and the scores, and between the weights of attention
    and the block's result. With p the nine pixels of a window, θ = A p + a and φ = B p + b the
    score of i and j is, but for what i alone adds and softmax takes away,

        θ_i · φ_j = (p_i, 1) · (AᵀB; aᵀB) p_j,

    and since the weights of attention add up to 1, the block's result is W p_i + V p̄_i + c with p̄
    the weighted mean of windows. So attention runs over ten channels in place of 32, and one 1×1
    convolution stands for five convolutions.
    """

    def __init__(self, first: nn.Conv2d, block: NonLocalBlock) -> None:
        super().__init__()
        with torch.no_grad():
            (w1, b1), (wt, bt), (wp, _), (wg, bg), (wo, bo) = (
                _as_matrix(layer) for layer in (first, block.theta, block.phi, block.g, block.out)
            )
            taps = w1.shape[1]
            query_bias, key = wt @ b1 + bt, wp @ w1
            key_rows = torch.cat([(wt @ w1).T @ key, (query_bias @ key)[None]])
            constant = b1 + wo @ (wg @ b1 + bg) + bo
            # Pixels of the window, and a 1 for what the query's bias adds.
            queries = torch.eye(ALIGNED, taps, dtype=w1.dtype)
            ones = torch.zeros(ALIGNED, dtype=w1.dtype)
            ones[taps] = 1
            keys = torch.zeros(ALIGNED, taps, dtype=w1.dtype)
            keys[: taps + 1] = key_rows
            both = torch.cat([queries, keys]).reshape(2 * ALIGNED, 1, *first.kernel_size)
            mixing = torch.zeros(len(w1), 2 * ALIGNED, dtype=w1.dtype)
            mixing[:, :taps], mixing[:, ALIGNED : ALIGNED + taps] = w1, wo @ wg @ w1
        self.windows = nn.Conv2d(1, 2 * ALIGNED, both.shape[2])
        self.mixing = nn.Conv2d(2 * ALIGNED, len(w1), 1)
        with torch.no_grad():
            self.windows.weight.copy_(both)
            assert self.windows.bias is not None
            self.windows.bias.copy_(torch.cat([ones, torch.zeros_like(ones)]))
            self.mixing.weight.copy_(mixing[:, :, None, None])
            assert self.mixing.bias is not None
            self.mixing.bias.copy_(constant)

    def forward(self, patches: Tensor) -> Tensor:
        """(n, 1, h, w) → (n, filters, h − 2, w − 2)."""
        images = self.windows(patches)
        # Windows in rows: TensorRT takes product, softmax and product in this form for one kernel.
        rows = images.flatten(2).transpose(1, 2)
        windows, keys = rows[:, :, :ALIGNED], rows[:, :, ALIGNED:]
        weights = torch.softmax(windows @ keys.transpose(1, 2), dim=-1)
        together = torch.cat([windows, weights @ windows], dim=2)
        result: Tensor = self.mixing(together.transpose(1, 2).reshape(images.shape))
        return result


def _as_matrix(layer: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Weight (filters, inputs) and bias (filters,) in float64, in which products are folded."""
    assert layer.bias is not None
    return layer.weight.double().flatten(1), layer.bias.double()


def _folded_attention(model: nn.Module) -> BraggNN | None:
    if not isinstance(model, BraggNN):
        return None
    first, block, *rest = model.features
    if not isinstance(first, nn.Conv2d) or not isinstance(block, NonLocalBlock):
        return None
    model.features = nn.Sequential(FoldedAttention(first, block), *rest)
    return model


REWRITES: Mapping[str, Rewrite] = MappingProxyType(
    {
        "twin-groups": lambda model: _twins(model, grouped=True),
        "twin-blocks": lambda model: _twins(model, grouped=False),
        "taps-first": _taps_first,
        "twin-groups-taps-first": lambda model: _twins_with_taps_first(model, grouped=True),
        "twin-blocks-taps-first": lambda model: _twins_with_taps_first(model, grouped=False),
        "folded-attention": _folded_attention,
    }
)
"""By name. Groups multiply no zeros, blocks suit tensor cores: which is the faster is measured."""
