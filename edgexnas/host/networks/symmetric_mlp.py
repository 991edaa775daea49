"""A small network for Bragg peaks that is given what it need not learn: symmetry and a centroid.

Two things leave it less to learn than a plain MLP of as many parameters has; what they bring is in
``docs/results/fronts-ruby-time.md``:

* **One network for both coordinates.** The column of a peak is the row of the transposed patch, so
  the same weights serve twice.
* **The centroid is added to what the network predicts**, see `FromCentroid`.

A position is a smooth function of a patch, and a smooth activation, SiLU, approximates it with
fewer units than ReLU.

A mirrored network is given all of the symmetry: the position of a mirrored peak is the mirrored
position. What it says of a patch's eight images is turned back and averaged, so that nothing of it
is to be learned, and what INT8 rounds off in eight ways is averaged too. The weights stay as many;
the arithmetic is four times that of a symmetric network.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgexnas.bragg import CENTRE, PATCH_SIZE
from edgexnas.errors import ConfigurationError
from edgexnas.host.networks.bragg_models import LEVELS, QuantileHead, he_init, hidden_layers

__all__ = [
    "Centroid",
    "FromCentroid",
    "MirroredMlp",
    "SymmetricMlp",
    "mlp_bragg_mirrored",
    "mlp_bragg_smooth",
    "mlp_bragg_symmetric",
]


class Centroid(nn.Module):
    """Centroid of the inner 5×5 pixels by the squares of their intensities; nothing is learned.

    Squares and the small window keep out background and neighbours: of twelve powers and windows
    these left the least for a network to learn. Where the window is dark the centroid is 0.

    Input (n, 1, 11, 11) scaled to [0, 1]; output (n, 2, 1), (row, col) in pixels from the centre.
    """

    REACH = 2

    def __init__(self) -> None:
        super().__init__()
        along = torch.arange(-self.REACH, self.REACH + 1, dtype=torch.float32)
        row, column = torch.meshgrid(along, along, indexing="ij")
        moments = torch.stack([row, column, torch.ones_like(row)], dim=2)
        self.moments: Tensor
        # Not part of a checkpoint.
        self.register_buffer("moments", moments.reshape(-1, 3), persistent=False)

    def forward(self, patches: Tensor) -> Tensor:
        """Return the centroids of patches."""
        inner = slice(CENTRE - self.REACH, CENTRE + self.REACH + 1)
        intensities = patches[:, 0, inner, inner].flatten(1)
        sums = (intensities * intensities) @ self.moments
        # Large enough for float16, and far below the 1 that the brightest pixel alone gives.
        return (sums[:, :2] / (sums[:, 2:] + 2.0**-10)).unsqueeze(2)


class FromCentroid(nn.Module):
    """Adds the intensity centroid to what a network predicts, so that it learns the rest.

    A centroid is a quotient, and a network of sums and thresholds spends many units on dividing.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.centroid = Centroid()

    def forward(self, patches: Tensor) -> Tensor:
        """Offsets (n, 2, q) in pixels from patches (n, 1, 11, 11)."""
        offsets: Tensor = self.network(patches) + self.centroid(patches)
        return offsets


class SymmetricMlp(nn.Module):
    """`layers` hidden layers of `units` for one coordinate, used for row and column.

    Transposing a patch swaps the quantiles of row and column exactly.

    Parameters
    ----------
    activation
        What follows each hidden layer: ReLU, or SiLU, which is smooth.
    """

    def __init__(
        self,
        units: int,
        layers: int,
        levels: Sequence[float] = LEVELS,
        *,
        activation: type[nn.ReLU] | type[nn.SiLU] = nn.ReLU,
    ) -> None:
        super().__init__()
        hidden = hidden_layers(PATCH_SIZE**2, units, layers)
        self.hidden = nn.Sequential(
            *(activation() if isinstance(part, nn.ReLU) else part for part in hidden)
        )
        self.head = QuantileHead(units, levels, coordinates=1)
        he_init(self.hidden)

    def forward(self, patches: Tensor) -> Tensor:
        """Offsets (n, 2, q) in pixels from patches (n, 1, 11, 11)."""
        both = torch.cat([patches, patches.transpose(2, 3)], dim=1)
        offsets: Tensor = self.head(self.hidden(both.reshape(-1, PATCH_SIZE**2)))
        return offsets


class MirroredMlp(nn.Module):
    """`layers` hidden layers of `units` with SiLU for one coordinate of a patch's eight images.

    A patch mirrored or transposed has its quantiles mirrored or transposed exactly.

    Parameters
    ----------
    levels
        Quantile levels that lie alike on both sides of 0.5, for a mirror image swaps them.
    """

    def __init__(self, units: int, layers: int, levels: Sequence[float] = LEVELS) -> None:
        super().__init__()
        pairs = zip(levels, reversed(levels), strict=True)
        if any(abs(low + high - 1) > 1e-6 for low, high in pairs):
            raise ConfigurationError(
                f"quantile levels are {tuple(levels)}; specify levels that lie alike on both sides "
                "of 0.5, such as (0.05, 0.5, 0.95), because a mirror image swaps them"
            )
        self.hidden = nn.Sequential(
            *(
                nn.SiLU() if isinstance(part, nn.ReLU) else part
                for part in hidden_layers(PATCH_SIZE**2, units, layers)
            )
        )
        self.head = QuantileHead(units, levels, coordinates=1)
        he_init(self.hidden)
        place = torch.arange(PATCH_SIZE**2).reshape(PATCH_SIZE, PATCH_SIZE)
        # A column is the row of the transposed patch. Mirrored along the other axis, a row stays
        # what it is; mirrored along its own, it turns its sign.
        both = torch.stack([place, place.t()])
        images = torch.stack([both, both.flip(2), both.flip(1), both.flip(1, 2)])
        self.images: Tensor
        # Not part of a checkpoint.
        self.register_buffer("images", images.flatten(), persistent=False)

    def forward(self, patches: Tensor) -> Tensor:
        """Offsets (n, 2, q) in pixels from patches (n, 1, 11, 11)."""
        images = torch.index_select(patches.flatten(1), 1, self.images).reshape(-1, PATCH_SIZE**2)
        offsets = self.head(self.hidden(images)).reshape(-1, 4, 2, self.head.count)
        kept, turned = offsets[:, :2].sum(dim=1), offsets[:, 2:].sum(dim=1)
        averaged: Tensor = (kept - turned.flip(2)) * 0.25
        return averaged


def mlp_bragg_symmetric(units: int, layers: int, levels: Sequence[float] = LEVELS) -> FromCentroid:
    """Build mlpBraggSymmetric: a `SymmetricMlp` that starts from the centroid."""
    return FromCentroid(SymmetricMlp(units, layers, levels))


def mlp_bragg_smooth(units: int, layers: int, levels: Sequence[float] = LEVELS) -> FromCentroid:
    """Build mlpBraggSmooth: mlpBraggSymmetric with SiLU in the place of ReLU."""
    return FromCentroid(SymmetricMlp(units, layers, levels, activation=nn.SiLU))


def mlp_bragg_mirrored(units: int, layers: int, levels: Sequence[float] = LEVELS) -> FromCentroid:
    """Build mlpBraggMirrored: a `MirroredMlp` that starts from the centroid."""
    return FromCentroid(MirroredMlp(units, layers, levels))
