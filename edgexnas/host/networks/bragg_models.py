"""Networks for Bragg peaks: the BraggNN baseline, plain MLPs and plain CNNs.

All take scaled patches (n, 1, 11, 11) float32 and return offsets (n, 2, q) float32: for (row, col)
the q quantiles of the peak's offset from the patch's centre pixel, in pixels.

Every size is counted over all trainable parameters. With one level (the median alone) the counts
are the published ones: BraggNN 33,172 (dense 16-8-4-2) and 45,394 (64-32-16-8), a 121-50-2 MLP
6,202 (6,150 without biases).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from edgexnas.bragg import PATCH_SIZE
from edgexnas.errors import ConfigurationError

__all__ = [
    "BRAGGNN_DENSE",
    "LEVELS",
    "BraggNN",
    "CnnBragg",
    "MlpBragg",
    "QuantileHead",
    "count_macs",
    "count_parameters",
]

LEVELS = (0.05, 0.5, 0.95)
"""Default quantile levels: the median is the position, the outer two are a 90 % interval."""

BRAGGNN_DENSE = {"small": (16, 8, 4, 2), "large": (64, 32, 16, 8)}
"""Dense layers of BraggNN: as shipped with its weights, and as in its class default."""

RESIDUAL_FROM = 9
"""Convolution layers from which plain stacks stop training and skips are switched on."""


class QuantileHead(nn.Module):
    """A linear layer whose outputs are quantiles, increasing by construction.

    The layer predicts the middle quantile and the spacings between neighbours; softplus
    keeps the spacings positive, so quantiles never cross.

    Input (n, features); output (n, 2, q). With `coordinates` = 1 it predicts one of them, and
    takes (2n, features): row and column of the first patch, of the second, and so on.
    """

    def __init__(
        self, features: int, levels: Sequence[float] = LEVELS, *, coordinates: int = 2
    ) -> None:
        super().__init__()
        check_levels(levels)
        self.count = len(levels)
        self.middle = middle_of(levels)
        self.linear = nn.Linear(features, coordinates * self.count)
        # Spacings start near 0.1 px; from softplus(0) = 0.7 px the interval takes long to narrow.
        nn.init.constant_(self.linear.bias, -2.0)
        with torch.no_grad():
            # Outputs are (coordinate, quantile) in a row, so middles lie one count apart.
            self.linear.bias[self.middle :: self.count] = 0.0
        source, quantile = torch.arange(self.count)[:, None], torch.arange(self.count)[None, :]
        above = (source > self.middle) & (source <= quantile) | (source == self.middle)
        below = (source < self.middle) & (source >= quantile)
        self.signs: Tensor
        # Not part of a checkpoint.
        self.register_buffer("signs", above.float() - below.float(), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """Return the quantiles of (row, col)."""
        raw = self.linear(features).reshape(-1, 2, self.count)
        # Exported graphs take the way below: operations that every runtime has.
        if self.training and torch.is_grad_enabled():
            together: Tensor = _Quantiles.apply(raw, self.signs, self.middle)  # type: ignore[no-untyped-call]
            return together
        spacing = nn.functional.softplus(raw)
        # Slices and additions instead of cumsum: every runtime fuses them, and q is small.
        quantiles = [raw[:, :, self.middle : self.middle + 1]]
        for index in range(self.middle + 1, self.count):
            quantiles.append(quantiles[-1] + spacing[:, :, index : index + 1])
        for index in range(self.middle - 1, -1, -1):
            quantiles.insert(0, quantiles[0] - spacing[:, :, index : index + 1])
        return torch.cat(quantiles, dim=2)


class _Quantiles(torch.autograd.Function):
    """What `QuantileHead` computes, in few calls and with its gradient in closed form.

    A quantile is the middle one plus or minus the spacings on the way, so with the middle kept in
    its place among the spacings it is one product with a matrix of 1, −1 and 0.
    """

    @staticmethod
    def forward(ctx: Any, raw: Tensor, signs: Tensor, middle: int) -> Tensor:
        spacing = nn.functional.softplus(raw)
        # The middle quantile itself, and no spacing: it may have either sign.
        spacing[:, :, middle] = raw[:, :, middle]
        ctx.save_for_backward(raw, signs)
        ctx.middle = middle
        return spacing @ signs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        raw, signs = ctx.saved_tensors
        of_spacing = gradients[0] @ signs.t()
        # softplus's own beta and threshold.
        of_raw = torch.ops.aten.softplus_backward(of_spacing, raw, 1.0, 20.0)
        of_raw[:, :, ctx.middle] = of_spacing[:, :, ctx.middle]
        return of_raw, None, None


def middle_of(levels: Sequence[float]) -> int:
    """Index of the level that serves as the position: the one nearest 0.5."""
    return min(range(len(levels)), key=lambda index: abs(levels[index] - 0.5))


def check_levels(levels: Sequence[float]) -> None:
    """Reject quantile levels that are not increasing within (0, 1)."""
    increasing = all(a < b for a, b in pairwise(levels))
    if not levels or not increasing or levels[0] <= 0 or levels[-1] >= 1:
        raise ConfigurationError(
            f"quantile levels are {tuple(levels)}; specify increasing numbers between 0 and 1, "
            "such as (0.05, 0.5, 0.95)"
        )


class NonLocalBlock(nn.Module):
    """Self-attention over the pixels of a feature map, added to it.

    As in BraggNN's published code: no scaling of the scores by the square root of the width.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // 2
        self.theta = nn.Conv2d(channels, inner, 1)
        self.phi = nn.Conv2d(channels, inner, 1)
        self.g = nn.Conv2d(channels, inner, 1)
        self.out = nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return x plus attention; shape unchanged."""
        theta = self.theta(x).flatten(2).transpose(1, 2)
        scores = torch.softmax(theta @ self.phi(x).flatten(2), dim=-1)
        mixed = (scores @ self.g(x).flatten(2).transpose(1, 2)).transpose(1, 2)
        result: Tensor = x + self.out(mixed.reshape(x.shape[0], -1, x.shape[2], x.shape[3]))
        return result


def dense_stack(features: int, widths: Sequence[int]) -> tuple[nn.Sequential, int]:
    """Linear layers with LeakyReLU, and the number of features that leave them."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(features, width), nn.LeakyReLU(0.01)]
        features = width
    return nn.Sequential(*layers), features


class BraggNN(nn.Module):
    """The baseline of Liu et al., IUCrJ 9, 104 (2022), with a quantile head.

    Three unpadded 3×3 convolutions (64, 32, 8 filters) with a non-local block after the first,
    then dense layers. The non-local block sees the first convolution before its activation, as in
    the published code.
    """

    def __init__(
        self, dense: Sequence[int] = BRAGGNN_DENSE["small"], levels: Sequence[float] = LEVELS
    ) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 64, 3),
            NonLocalBlock(64),
            nn.LeakyReLU(0.01),
            nn.Conv2d(64, 32, 3),
            nn.LeakyReLU(0.01),
            nn.Conv2d(32, 8, 3),
            nn.LeakyReLU(0.01),
            nn.Flatten(),
        )
        self.dense, width = dense_stack(8 * (PATCH_SIZE - 6) ** 2, dense)
        self.head = QuantileHead(width, levels)
        for module in (*self.features.modules(), *self.dense.modules()):
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, patches: Tensor) -> Tensor:
        """Offsets (n, 2, q) in pixels from patches (n, 1, 11, 11)."""
        offsets: Tensor = self.head(self.dense(self.features(patches)))
        return offsets


def hidden_layers(width: int, units: int, layers: int) -> list[nn.Module]:
    """Linear layers of `units` with ReLU, the first of them from `width` features."""
    widths = [width, *[units] * layers]
    return [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]


class MlpBragg(nn.Module):
    """121 pixels → `layers` hidden layers of `units` with ReLU → quantiles."""

    def __init__(self, units: int, layers: int, levels: Sequence[float] = LEVELS) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Flatten(), *hidden_layers(PATCH_SIZE**2, units, layers))
        self.head = QuantileHead(units, levels)
        he_init(self.hidden)

    def forward(self, patches: Tensor) -> Tensor:
        """Offsets (n, 2, q) in pixels from patches (n, 1, 11, 11)."""
        offsets: Tensor = self.head(self.hidden(patches))
        return offsets


class ResidualConvolution(nn.Module):
    """x + α · ReLU(conv(x)) with α learned from 0 (ReZero, Bachlechner et al. 2020)."""

    def __init__(self, filters: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(filters, filters, 3, padding=1)
        # At 0 the block is the identity, so depth costs nothing at the start of a training.
        self.gain = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Shape unchanged."""
        return x + self.gain * torch.relu(self.convolution(x))


STAGES = 3
"""Stages of a stack of convolutions; each ends in a change of resolution."""


def convolution_stages(
    channels: int, filters: int, layers: int, resize: nn.Module
) -> list[nn.Module]:
    """Deal padded 3×3 convolutions as evenly as possible to three stages that end in `resize`.

    From 9 layers on those between equal widths are ReZero residuals.
    """
    parts: list[nn.Module] = []
    for stage in range(STAGES):
        for _ in range(layers // STAGES + (stage < layers % STAGES)):
            if layers >= RESIDUAL_FROM and channels == filters:
                parts.append(ResidualConvolution(filters))
            else:
                parts += [nn.Conv2d(channels, filters, 3, padding=1), nn.ReLU()]
            channels = filters
        parts.append(resize)
    return parts


class CnnBragg(nn.Module):
    """`layers` padded 3×3 convolutions of `filters` in three stages, then BraggNN's dense head.

    Unpadded convolutions would leave nothing of an 11×11 patch after five layers, so all are
    padded; they are dealt as evenly as possible to three stages, with 2×2 max-pooling after the
    first two (11 → 5 → 2 pixels). From 9 layers on, all but the first of each width are ReZero
    residuals, because plain stacks stop training somewhere between 8 and 16 layers.
    """

    def __init__(self, filters: int, layers: int, levels: Sequence[float] = LEVELS) -> None:
        super().__init__()
        stages = convolution_stages(1, filters, layers, nn.MaxPool2d(2))
        # 2×2 pixels are left after two poolings; the third would leave one.
        self.features = nn.Sequential(*stages[:-1], nn.Flatten())
        self.dense, width = dense_stack(filters * 4, BRAGGNN_DENSE["large"])
        self.head = QuantileHead(width, levels)
        he_init(self.features)
        he_init(self.dense)

    def forward(self, patches: Tensor) -> Tensor:
        """Offsets (n, 2, q) in pixels from patches (n, 1, 11, 11)."""
        offsets: Tensor = self.head(self.dense(self.features(patches)))
        return offsets


def he_init(module: nn.Module) -> None:
    """He initialisation for layers followed by (leaky) ReLU; biases 0."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
            assert part.bias is not None
            nn.init.zeros_(part.bias)


def count_parameters(model: nn.Module) -> int:
    """Count all trainable parameters, biases included."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def count_macs(model: nn.Module, input_shape: Sequence[int] = (1, PATCH_SIZE, PATCH_SIZE)) -> int:
    """Multiply-accumulates of one item, counted by torch on the meta device.

    Parameters
    ----------
    input_shape
        Shape of one item without the batch axis.
    """
    from torch.utils.flop_counter import FlopCounterMode

    training = model.training
    with torch.device("meta"):
        item = torch.empty((1, *input_shape))
    meta = {
        name: torch.empty_like(tensor, device="meta")
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }
    try:
        model.eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            # On stand-ins without memory; the network itself stays where it is.
            torch.func.functional_call(model, meta, (item,))
    finally:
        model.train(training)
    # The counter takes a multiply-accumulate for two operations.
    return int(counter.get_total_flops()) // 2
