"""An estimate of latency and energy on a Jetson AGX Orin, from the architecture alone.

    t = overhead + Σ (launch + max(macs / rate, bytes / bandwidth))
    E = static · t + per_mac · macs

over the layers of a network (the roofline of Williams, Waterman and Patterson, 2009, with a
constant for each launch). The constants are the least squares of the logarithms of the paper's
Table 2, INT8 at a batch of 32, over all its four rows, with our own counts of networks that stand
for the paper's, because it describes none of them layer by layer:

===================  ==============================  ==========  ==========
row                  counted as                      latency     energy
===================  ==============================  ==========  ==========
BraggNN              BraggNN 64-32-16-8              +1 %        −28 %
optimised Bragg      mlpBragg 50×5                   −2 %        +34 %
PtychoNN             PtychoNN, 1,247,074 parameters  −8 %        +1 %
optimised Ptycho     cnnPtycho 251, 1-2-1            +18 %       +3 %
===================  ==============================  ==========  ==========

The last two columns are what the estimate is off by. The paper's numbers of parameters match
neither public baseline. Its optimised network for ptychography, 1,708,150 parameters, may be any of
thousands of cnnPtycho; the one counted here has that size (1,708,810) and the least arithmetic of
these, 0.61 of PtychoNN's; others do up to seven times PtychoNN's, and would all be slower than the
row. Differences of two networks smaller than these errors mean nothing.
No Orin was measured: whatever comes from here is an estimate and says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgexnas.errors import ConfigurationError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["PAPER_TABLE_2", "CostModel", "LayerCost", "NetworkCost", "PaperRow", "count_cost"]


@dataclass(frozen=True)
class PaperRow:
    """A row of the paper's Table 2: measured there on a Jetson AGX Orin, INT8, batch 32."""

    name: str
    latency_ms: float
    energy_mj: float


PAPER_TABLE_2 = (
    PaperRow("BraggNN", 0.19, 4.38),
    PaperRow("optimised Bragg", 0.17, 1.94),
    PaperRow("PtychoNN", 1.69, 52.22),
    PaperRow("optimised Ptycho", 1.53, 44.21),
)


@dataclass(frozen=True)
class LayerCost:
    """What one kernel does for one item.

    Attributes
    ----------
    macs
        Multiply-accumulates.
    moved
        Elements of activations read and written.
    weights
        Elements of weights read, once a batch.
    """

    macs: float
    moved: float
    weights: float


@dataclass(frozen=True)
class NetworkCost:
    """What one inference of a network does, kernel by kernel."""

    layers: tuple[LayerCost, ...]

    @property
    def macs(self) -> float:
        """Multiply-accumulates for one item."""
        return sum(layer.macs for layer in self.layers)

    @property
    def launches(self) -> int:
        """Kernels, activations fused into what goes before."""
        return len(self.layers)


@dataclass(frozen=True)
class CostModel:
    """Constants of the estimate.

    Attributes
    ----------
    overhead_ms
        Start and end of an inference: enqueue, copies, synchronisation.
    launch_ms
        Each kernel.
    rate_macs_per_ms
        What INT8 kernels of these networks reach, 23 TOPS.
    bandwidth_bytes_per_ms
        204.8 GB/s by NVIDIA's data sheet of the 32 GB module.
    static_w
        Module power that does not depend on what runs.
    per_mac_mj
        Energy of each multiply-accumulate, what its data take included: a term for bytes moved
        comes out as 0 by the four rows.
    """

    overhead_ms: float = 0.156
    launch_ms: float = 0.00158
    rate_macs_per_ms: float = 1.136e10
    bandwidth_bytes_per_ms: float = 2.048e8
    static_w: float = 15.6
    per_mac_mj: float = 2.21e-9

    def latency_ms(self, cost: NetworkCost, batch: int = 32) -> float:
        """Estimate the latency of one inference of `batch` items in ms."""
        return self.overhead_ms + sum(self._layer_ms(layer, batch) for layer in cost.layers)

    def energy_mj(self, cost: NetworkCost, batch: int = 32) -> float:
        """Estimate the module energy of one inference of `batch` items in mJ."""
        return self.static_w * self.latency_ms(cost, batch) + self.per_mac_mj * cost.macs * batch

    def _layer_ms(self, layer: LayerCost, batch: int) -> float:
        # A roofline: a kernel takes as long as the slower of arithmetic and memory.
        arithmetic = layer.macs * batch / self.rate_macs_per_ms
        # A byte for each weight and activation in INT8; weights are read once a batch.
        memory = (layer.moved * batch + layer.weights) / self.bandwidth_bytes_per_ms
        return self.launch_ms + max(arithmetic, memory)


def count_cost(model: nn.Module, input_shape: tuple[int, ...]) -> NetworkCost:
    """Count the kernels of one inference, and what each does for one item.

    Layers with weights and up- and down-sampling are a kernel each; a non-linearity is fused into
    what goes before, as inference libraries do. Matrix products outside of layers, as in attention,
    count as what `torch.matmul` multiplies.

    Parameters
    ----------
    input_shape
        Of one item, such as (1, 11, 11).

    Raises
    ------
    ConfigurationError
        If the network does no arithmetic that could be counted.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    layers: list[LayerCost] = []

    class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
        """Sees every operator that is run."""

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            layer = _cost_of(str(func).split(".")[1], args, result)
            if layer is not None:
                layers.append(layer)
            return result

    was_training = model.training
    with torch.inference_mode(), Counter():  # type: ignore[no-untyped-call]
        model.eval()(torch.zeros(1, *input_shape))
    model.train(was_training)
    if not layers:
        raise ConfigurationError(
            f"{type(model).__name__} does nothing that costs can be counted of"
        )
    return NetworkCost(tuple(layers))


KERNELS = (
    "upsample_bilinear2d", "upsample_nearest2d", "max_pool2d_with_indices", "avg_pool2d",
    "_softmax", "cat", "cumsum",
)  # fmt: skip
"""Operators without multiplications that still are a kernel."""


def _cost_of(name: str, args: tuple[Any, ...], result: Any) -> LayerCost | None:
    """Cost of one operator for a batch of one; None if it is fused or free."""
    import torch

    tensors = [a for a in _flat(args) if isinstance(a, torch.Tensor)]
    output = result[0] if isinstance(result, tuple | list) else result
    if not isinstance(output, torch.Tensor) or not tensors:
        return None
    moved = float(tensors[0].numel() + output.numel())
    if name in ("convolution", "_convolution", "mkldnn_convolution", "conv2d"):
        weight = tensors[1]
        return LayerCost(output.numel() * weight[0].numel(), moved, weight.numel())
    if name in ("addmm", "linear", "mkldnn_linear"):
        # addmm's first tensor is the bias.
        first, second = (tensors[1], tensors[2]) if name == "addmm" else tensors[:2]
        moved = float(first.numel() + output.numel())
        return LayerCost(output.numel() * first.shape[-1], moved, second.numel())
    if name in ("mm", "bmm", "matmul"):
        first, second = tensors[:2]
        macs = output.numel() * first.shape[-1]
        # Neither operand is a weight, so both move for every item of a batch.
        return LayerCost(macs, moved + second.numel(), 0)
    if name in KERNELS:
        return LayerCost(0, moved, 0)
    return None


def _flat(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        else:
            yield value
