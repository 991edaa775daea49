"""The steps of a Bragg network, as the fused engine computes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy.typing as npt

from edgexnas.errors import EngineError

__all__ = ["Activation", "Attention", "Head", "Layer", "Network", "Pool", "UnsuitableNetworkError"]

Array = npt.NDArray[Any]
Activation = Literal["none", "relu", "leaky", "silu"]

PATCHES = "patches"
"""Name of the input among the values that steps read."""


class UnsuitableNetworkError(EngineError):
    """A network that the fused engine does not know, or that does not fit this GPU."""


@dataclass(frozen=True)
class Layer:
    """A convolution or a dense layer with what follows each of its sums.

    A sum becomes ``then(added + gain * activation(sum))``, or ``activation(sum)`` where nothing is
    added.

    Attributes
    ----------
    name
        Of its output, as in the graph.
    source
        Name of the value that it reads.
    weights
        (outputs, inputs, kernel rows, kernel columns): float32, or int8 where it is quantised. A
        dense layer behind a map has a kernel as large as the map.
    bias
        (outputs,) float32.
    scales
        (outputs,) float32: what an int8 weight of 1 stands for; None where it is not quantised.
    input_scale
        What an int8 input of 1 stands for; None where it is not quantised.
    padding
        Rows and columns of zeros around its input: 0 or 1.
    added_scale
        What an int8 value of 1 in what is added stands for; None where that is not quantised.
    """

    name: str
    source: str
    weights: Array
    bias: Array
    scales: Array | None = None
    input_scale: float | None = None
    padding: int = 0
    activation: Activation = "none"
    slope: float = 0.0
    added: str | None = None
    added_scale: float | None = None
    gain: float = 1.0
    then: Activation = "none"

    @property
    def outputs(self) -> int:
        """Number of output channels."""
        return int(self.weights.shape[0])

    @property
    def quantised(self) -> bool:
        """Whether its products are of int8."""
        return self.scales is not None


@dataclass(frozen=True)
class Attention:
    """softmax(θ φᵀ) g over the pixels of a map; θ, φ and g lie side by side in `source`.

    Attributes
    ----------
    inner
        Channels of each of the three.
    """

    name: str
    source: str
    inner: int


@dataclass(frozen=True)
class Pool:
    """The largest of 2×2 pixels."""

    name: str
    source: str


@dataclass(frozen=True)
class Head:
    """How the last layer's outputs become quantiles of (row, col).

    Attributes
    ----------
    source
        The last layer's output.
    levels
        Number of quantile levels.
    middle
        Which of them the network predicts itself; the others follow by spacings.
    centroid
        The least sum of squares of the centroid that is added; None where none is.
    """

    source: str
    levels: int
    middle: int
    centroid: float | None = None


@dataclass(frozen=True)
class Network:
    """The steps of a network, in order.

    Attributes
    ----------
    steps
        What is computed; each reads values that come before it.
    head
        The end.
    images
        How many images of a patch it runs for, row and column in turn: 1 for the patch alone, from
        which both coordinates come; 2 for it and its transpose; 8 for these and their mirror
        images, over which it averages.
    """

    steps: tuple[Layer | Attention | Pool, ...]
    head: Head
    images: int = 1

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The steps that have weights."""
        return tuple(step for step in self.steps if isinstance(step, Layer))
