"""The eight images of a patch that a mirrored network reads, and the average of what it says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgexnas.bragg import PATCH_SIZE

if TYPE_CHECKING:
    from onnx import NodeProto

__all__ = ["IMAGES", "averaged", "image_places"]

IMAGES = 8
"""Of a patch: itself and its transpose, these mirrored across columns, across rows, and both."""

Array = npt.NDArray[Any]


def image_places() -> Array:
    """Tell which pixel of a patch each pixel of its images is: (968,), image by image."""
    place = np.arange(PATCH_SIZE**2).reshape(PATCH_SIZE, PATCH_SIZE)
    both = np.stack([place, place.T])
    mirrored = [both, both[:, :, ::-1], both[:, ::-1], both[:, ::-1, ::-1]]
    return np.stack(mirrored).reshape(-1)


def averaged(
    end: NodeProto,
    producer: Callable[[str], NodeProto | None],
    constants: Mapping[str, Array],
    cut: list[NodeProto],
) -> NodeProto | None:
    """Return what an average over the images reads: all images' quantiles, image by image.

    What the images say that are mirrored along the coordinate has the other sign, and its quantiles
    in the other order.

    Parameters
    ----------
    end
        The node that may end such an average.
    producer
        Finds the node that makes a value.
    constants
        The graph's constants by name.
    cut
        Takes the nodes of the average.

    Returns
    -------
    The node before the average; None where `end` ends none.
    """
    found: list[NodeProto] = []

    def before(name: str, kind: str) -> NodeProto | None:
        node = producer(name)
        if node is None or node.op_type != kind:
            return None
        found.append(node)
        return node

    def numbers(node: NodeProto, first: int = 1) -> list[list[int]]:
        given = [constants.get(name) for name in node.input[first:]]
        return [[] if array is None else array.reshape(-1).tolist() for array in given]

    def part(name: str, begin: int) -> NodeProto | None:
        """Sum two of the four mirrors, from `begin` on."""
        total = before(name, "ReduceSum")
        piece = None if total is None else before(total.input[0], "Slice")
        if total is None or piece is None or numbers(total) != [[1]]:
            return None
        kept = any(a.name == "keepdims" and a.i == 0 for a in total.attribute)
        starts, ends, axes, *steps = numbers(piece)
        sliced = ([starts[0]], min(ends[0], 4), axes, steps) == ([begin], begin + 2, [1], [[1]])
        return producer(piece.input[0]) if kept and sliced else None

    factors = [name for name in end.input if name in constants]
    values = [name for name in end.input if name not in constants]
    if end.op_type != "Mul" or len(factors) != 1 or constants[factors[0]].size != 1:
        return None
    difference = before(values[0], "Sub")
    if difference is None or float(constants[factors[0]].reshape(())) != 0.25:
        return None
    kept, flip = part(difference.input[0], 0), before(difference.input[1], "Slice")
    turned = None if flip is None else part(flip.input[0], 2)
    if kept is None or flip is None or turned is not kept or kept.op_type != "Reshape":
        return None
    shape = constants.get(kept.input[1])
    starts, ends, axes, *steps = numbers(flip)
    reversed_levels = starts == [-1] and ends[0] < -PATCH_SIZE and (axes, steps) == ([2], [[-1]])
    if shape is None or shape.size != 4 or shape.tolist()[1:3] != [4, 2] or not reversed_levels:
        return None
    cut += [end, *found, kept]
    return producer(kept.input[0])
