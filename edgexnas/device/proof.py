"""Prove an engine on the reference vectors that its bundle carries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgexnas.errors import EngineAccuracyError, EngineError

if TYPE_CHECKING:
    from edgexnas.bundle import Bundle
    from edgexnas.device.engine import Engine

__all__ = ["EngineProof", "prove_engine"]

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class EngineProof:
    """How far an engine's outputs lie from the float32 reference outputs.

    Attributes
    ----------
    measured_px
        Mean distance in pixels, over the reference vectors and quantiles.
    allowed_px
        The gate: the largest mean distance that the manifest allows for this precision.
    vectors
        Number of reference vectors.
    """

    measured_px: float
    allowed_px: float
    vectors: int


def prove_engine(engine: Engine, bundle: Bundle) -> EngineProof:
    """Run a Bragg bundle's reference inputs through an engine and compare with its gate.

    The distance is the Euclidean one, sqrt(Δrow² + Δcol²), between a quantile and its reference,
    averaged over all quantiles and vectors, as the host measures it when it sets the gate.

    Raises
    ------
    EngineAccuracyError
        If the mean distance exceeds the gate, or an output is not finite; the message names the
        measured and the allowed distance.
    EngineError
        If the engine fails or gives another shape.
    """
    allowed = float(getattr(bundle.manifest.gate, engine.precision))
    inputs, expected = bundle.reference["input"], bundle.reference["output"]
    outputs = run_in_batches(engine, inputs, expected.shape[1:])
    if outputs.shape != expected.shape:
        raise EngineError(
            f"the {engine.precision} model of bundle {bundle.manifest.model_id} gives shape "
            f"{outputs.shape}, its reference has {expected.shape}; export the bundle again"
        )
    measured = float(np.linalg.norm(outputs - expected, axis=1).mean(dtype=np.float64))
    # Stated so that NaN, which compares false with everything, is refused.
    if not measured <= allowed:
        raise EngineAccuracyError(
            f"the {engine.precision} engine of {engine.name} strays {measured:.4g} px from the "
            f"reference of bundle {bundle.manifest.model_id}, which allows {allowed:.4g} px; "
            "use another precision or engine"
        )
    return EngineProof(measured, allowed, len(inputs))


def run_in_batches(engine: Engine, inputs: FloatArray, item_shape: tuple[int, ...]) -> FloatArray:
    """Run any number of items, 0 included, in runs of at most `engine.batch`.

    Parameters
    ----------
    engine
        The engine to run.
    inputs
        (n, ...) float32.
    item_shape
        Shape of one item of the output.

    Returns
    -------
    float32 of shape (n,) + `item_shape`.
    """
    if len(inputs) == 0:
        return np.empty((0, *item_shape), np.float32)
    starts = range(0, len(inputs), engine.batch)
    runs = [engine.run(inputs[start : start + engine.batch]) for start in starts]
    return runs[0] if len(runs) == 1 else np.concatenate(runs)
