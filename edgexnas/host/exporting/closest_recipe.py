"""The INT8 recipe that changes a network for Bragg peaks least."""

from __future__ import annotations

import logging

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edgexnas.errors import QuantisationError
from edgexnas.host.exporting.onnx_export import to_onnx
from edgexnas.host.exporting.quantisation import Recipe, quantise, run_onnx
from edgexnas.host.exporting.recipe_choice import RecipeChoice

__all__ = ["closest_recipe"]

FloatArray = npt.NDArray[np.float32]

NEAR = 1.03
"""A recipe whose error is at most so many times that of float32 is near enough."""

WAYS = ("minmax", "percentile-99.99", "percentile-99.9")
IN_FLOAT = ((False, 1), (True, 1), (False, 2), (True, 2))
"""Whether the first layer stays in float, and how many of the last ones: few first."""

_log = logging.getLogger(__name__)


def closest_recipe(
    network: nn.Module, calibration: FloatArray, x: FloatArray, target: FloatArray, *, middle: int
) -> RecipeChoice:
    """Choose the recipe with the fewest layers in float that costs next to nothing, or the best.

    The export of a search lets INT8 cost a share of the error, which is mostly that of blurred and
    faint peaks. Rounding shows on peaks whose place can be known well, and there in the median.

    Parameters
    ----------
    network
        Trained, on the CPU.
    calibration
        (m, 1, 11, 11) scaled patches that ranges of activations are taken from: those that the
        export takes, see `Bundling.to_calibrate`.
    x, target
        (n, 1, 11, 11) patches to judge by and their (n, 2) offsets in pixels.
    middle
        Index of the quantile that is the position.

    Raises
    ------
    QuantisationError
        If no recipe can be made.
    """
    float32 = to_onnx(network.eval(), torch.from_numpy(x[:4]))

    def error(model: bytes) -> float:
        offsets = run_onnx(model, x)[:, :, middle]
        return float(np.median(np.linalg.norm(offsets - target, axis=1)))

    before = error(float32)
    best: tuple[float, Recipe] | None = None
    for first, last in IN_FLOAT:
        for way in WAYS:
            recipe = Recipe(calibration=way, float_first=first, float_layers=last)
            try:
                after = error(quantise(float32, calibration, recipe).model)
            # More layers in float may leave a shallow network nothing.
            except QuantisationError:
                if best is None:
                    raise
                continue
            _log.info("median %.5f px against %.5f in float32: %s", after, before, recipe)
            if best is None or after < best[0]:
                best = after, recipe
        if best is not None and best[0] <= NEAR * before:
            break
    assert best is not None
    reason = f"median {best[0]:.4f} px on the peaks it was judged by, float32 {before:.4f} px"
    return RecipeChoice(precision="int8", rewrite=None, int8=best[1], reason=reason, trials=())
