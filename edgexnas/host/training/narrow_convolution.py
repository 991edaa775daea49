"""Convolutions and pooling of small images with few channels, laid out with the batch innermost.

A convolution library spends some hundred microseconds on each call of a 3×3 convolution with a
handful of channels, whatever it computes. Here a layer gathers the pixels under its kernel into a
matrix and multiplies once. With the batch innermost, (channels, rows, columns, batch) in memory,
that gathering copies whole runs, and element-wise operations keep the layout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["NarrowConvolutions", "batch_innermost"]

Call = Callable[[], object]
Report = Callable[[Call, list[Tensor], list[Tensor]], None]

aten = torch.ops.aten

LAYERS = {
    aten.convolution.default,
    aten.convolution_backward.default,
    aten.max_pool2d_with_indices.default,
    aten.max_pool2d_with_indices_backward.default,
}

WIDEST = 48
"""From more channels on, the library's own convolution is the faster one."""


def batch_innermost(tensor: Tensor) -> Tensor:
    """View (n, c, h, w) of new memory with the same shape and the batch innermost."""
    n, c, h, w = tensor.shape
    return tensor.new_empty((c, h, w, n)).permute(3, 0, 1, 2)


class NarrowConvolutions:
    """Computes the layers that it can, and reports each call so that it can be repeated.

    Parameters
    ----------
    record
        Takes a call, the tensors that it reads and the tensors that it fills.
    """

    def __init__(self, record: Report) -> None:
        self._record = record
        self._columns: dict[tuple[int, int, int], Tensor] = {}

    def run(self, func: Any, args: tuple[Any, ...]) -> Any:
        """Return what `func` would, or None if it is left to the library."""
        if func not in LAYERS or args[0].device.type != "cpu":
            return None
        if func is aten.convolution.default and _fits(*args[:2], *args[3:]):
            return self._forward(args[0], args[1], args[2], args[4][0])
        if func is aten.convolution_backward.default and _fits(*args[1:3], *args[4:10]):
            return self._backward(args[0], args[1], args[2], args[5][0], args[10])
        if func is aten.max_pool2d_with_indices.default and args[0].ndim == 4:
            return self._pool(func, args[0], args[1:])
        if func is aten.max_pool2d_with_indices_backward.default:
            return self._pool_backward(func, *args)
        return None

    def _do(self, call: Call, reads: list[Tensor], fills: list[Tensor]) -> None:
        call()
        self._record(call, reads, fills)

    def _gather(self, x: Tensor, kernel: int, padding: int) -> Tensor:
        """Copy the pixels under each kernel position: (c·k·k, rows·columns·n)."""
        n, c, h, w = x.shape
        framed = x.new_zeros((c, h + 2 * padding, w + 2 * padding, n))
        # A replay copies the inside alone: the zeros around it are written once, here.
        inside = framed[:, padding : padding + h, padding : padding + w].permute(3, 0, 1, 2)
        self._do(lambda: inside.copy_(x), [x], [framed])
        rows, columns = (side + 2 * padding - kernel + 1 for side in (h, w))
        plane, row, column, _ = framed.stride()
        # Windows overlap in memory; the copy lays them side by side.
        under = framed.as_strided(
            (c, kernel, kernel, rows, columns, n), (plane, row, column, row, column, 1)
        )
        gathered = torch.empty_like(under, memory_format=torch.contiguous_format)
        self._do(lambda: gathered.copy_(under), [framed], [gathered])
        return gathered.view(c * kernel**2, rows * columns * n)

    def _forward(self, x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
        n, _, h, w = x.shape
        filters, _, kernel, _ = weight.shape
        gathered = self._gather(x, kernel, padding)
        # The weights' gradient needs the same columns; it finds them by the input's address.
        self._columns[x.data_ptr(), weight.data_ptr(), padding] = gathered
        rows, columns = (side + 2 * padding - kernel + 1 for side in (h, w))
        result = x.new_empty((filters, rows * columns * n))
        flat = weight.view(filters, -1)
        if bias is None:
            self._do(lambda: torch.mm(flat, gathered, out=result), [weight, gathered], [result])
        else:
            column = bias.unsqueeze(1)
            self._do(
                lambda: torch.addmm(column, flat, gathered, out=result),
                [bias, weight, gathered],
                [result],
            )
        return result.view(filters, rows, columns, n).permute(3, 0, 1, 2)

    def _backward(
        self, grad: Tensor, x: Tensor, weight: Tensor, padding: int, wanted: list[bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        filters, channels, kernel, _ = weight.shape
        inner = grad.permute(1, 2, 3, 0)
        if not inner.is_contiguous():
            copied = batch_innermost(grad)
            self._do(lambda: copied.copy_(grad), [grad], [copied])
            inner = copied.permute(1, 2, 3, 0)
        flat = inner.view(filters, -1)
        of_x = of_weight = of_bias = None
        if wanted[0]:
            n, _, h, w = x.shape
            # At stride 1 the input's gradient is a convolution as well, padded by k - 1 - p.
            gathered = self._gather(inner.permute(3, 0, 1, 2), kernel, kernel - 1 - padding)
            # The kernel turned by 180°, with its channels in the place of its filters.
            index = torch.arange(weight.numel()).view(filters, channels, kernel**2)
            index = index.flip(2).transpose(0, 1).reshape(channels, -1)
            turned = weight.new_empty(index.shape)
            self._do(lambda: torch.take(weight, index, out=turned), [weight], [turned])
            result = x.new_empty((channels, h * w * n))
            self._do(lambda: torch.mm(turned, gathered, out=result), [turned, gathered], [result])
            of_x = result.view(channels, h, w, n).permute(3, 0, 1, 2)
        if wanted[1]:
            of_weight = torch.empty_like(weight, memory_format=torch.contiguous_format)
            gathered_t = self._columns[x.data_ptr(), weight.data_ptr(), padding].t()
            matrix = of_weight.view(filters, -1)
            self._do(lambda: torch.mm(flat, gathered_t, out=matrix), [flat, gathered_t], [matrix])
        if wanted[2]:
            of_bias = weight.new_empty(filters)
            total = of_bias
            self._do(lambda: torch.sum(flat, 1, out=total), [flat], [of_bias])
        return of_x, of_weight, of_bias

    def _pool(self, func: Any, x: Tensor, rest: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        # Pooling does not mind which axis is the batch; swapped, this is the channels-last layout.
        inner = x
        if not x.permute(1, 2, 3, 0).is_contiguous():
            inner = batch_innermost(x)
            self._do(lambda: inner.copy_(x), [x], [inner])
        swapped = inner.transpose(0, 1)
        largest, index = func(swapped, *rest)
        out = func._overloadpacket.out
        self._record(
            lambda: out(swapped, *rest, out=largest, indices=index), [inner], [largest, index]
        )
        return largest.transpose(0, 1), index.transpose(0, 1)

    def _pool_backward(self, func: Any, grad: Tensor, x: Tensor, *rest: Any) -> Tensor:
        *settings, index = rest
        swapped = (grad.transpose(0, 1), x.transpose(0, 1))
        swapped_index = index.transpose(0, 1)
        result = func(*swapped, *settings, swapped_index)
        out = func._overloadpacket.grad_input
        self._record(
            lambda: out(*swapped, *settings, swapped_index, grad_input=result),
            [grad, x, index],
            [result],
        )
        of_x: Tensor = result.transpose(0, 1)
        return of_x


def _fits(
    x: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> bool:
    """Whether it is a plain square convolution of few channels."""
    if weight.ndim != 4 or not weight.is_contiguous() or transposed or groups != 1:
        return False
    kernel = weight.shape[2]
    return (
        weight.shape[3] == kernel
        and max(weight.shape[:2]) <= WIDEST
        and set(stride) == {1}
        and set(dilation) == {1}
        and padding[0] == padding[-1] < kernel
    )
