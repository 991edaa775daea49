"""The accuracy gate: an engine is checked on the reference vectors of its bundle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgexnas.errors import EngineAccuracyError, EngineError
from edgexnas.ptycho import patch_errors

if TYPE_CHECKING:
    from edgexnas.bundle import Bundle
    from edgexnas.device.engines.engine import Engine

__all__ = ["EngineProof", "ObjectProof", "prove_engine"]

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class EngineProof:
    """How far an engine's positions lie from the float32 reference positions.

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


@dataclass(frozen=True, slots=True)
class ObjectProof:
    """How far an engine's patches of the object lie from the float32 reference patches.

    Attributes
    ----------
    measured_rad
        Mean absolute phase difference in radians, after each patch's constant is removed.
    allowed_rad
        The gate: the largest phase difference that the manifest allows for this precision.
    measured_amplitude
        Mean absolute amplitude difference, as a share of the mean reference amplitude.
    allowed_amplitude
        The gate of the amplitude; None where the manifest has none.
    vectors
        Number of reference vectors.
    """

    measured_rad: float
    allowed_rad: float
    measured_amplitude: float
    allowed_amplitude: float | None
    vectors: int


def prove_engine(engine: Engine, bundle: Bundle) -> EngineProof | ObjectProof:
    """Run a bundle's reference inputs through an engine and compare with its gate.

    The distance of positions is the Euclidean one, sqrt(Δrow² + Δcol²), between a quantile and its
    reference, averaged over all quantiles and vectors; patches of an object are compared by
    `edgexnas.ptycho.patch_errors`. The host measures both alike when it sets the gate.

    Raises
    ------
    EngineAccuracyError
        If the mean distance exceeds the gate, or an output is not finite; the message names the
        measured and the allowed distance.
    EngineError
        If the engine fails or gives another shape.
    """
    expected = bundle.reference["output"]
    outputs = run_in_batches(engine, bundle.reference["input"], expected.shape[1:])
    if outputs.shape != expected.shape:
        raise EngineError(
            f"the {engine.precision} model of bundle {bundle.manifest.model_id} gives shape "
            f"{outputs.shape}, its reference has {expected.shape}; export the bundle again"
        )
    prove = _check_patches if bundle.manifest.task == "ptycho" else _check_positions
    return prove(engine, bundle, outputs, expected)


def _check_positions(
    engine: Engine, bundle: Bundle, outputs: FloatArray, expected: FloatArray
) -> EngineProof:
    allowed = float(getattr(bundle.manifest.gate, engine.precision))
    # Axis 1 is (row, col): one distance for each vector and quantile, as the exporter measures it.
    measured = float(np.linalg.norm(outputs - expected, axis=1).mean(dtype=np.float64))
    _check_gate(measured, allowed, " px", engine, bundle)
    return EngineProof(measured, allowed, len(expected))


def _check_patches(
    engine: Engine, bundle: Bundle, outputs: FloatArray, expected: FloatArray
) -> ObjectProof:
    gate = bundle.manifest.gate
    allowed_rad = float(getattr(gate, engine.precision))
    limits = gate.amplitude
    allowed_amplitude = None if limits is None else float(getattr(limits, engine.precision))
    # An engine that gives NaN is rejected below, in words.
    with np.errstate(invalid="ignore"):
        measured = patch_errors(outputs, expected)
    _check_gate(measured.phase_rad, allowed_rad, " rad", engine, bundle)
    if allowed_amplitude is not None:
        unit = " of the mean amplitude"
        _check_gate(measured.amplitude, allowed_amplitude, unit, engine, bundle)
    return ObjectProof(
        measured.phase_rad, allowed_rad, measured.amplitude, allowed_amplitude, len(expected)
    )


def _check_gate(measured: float, allowed: float, unit: str, engine: Engine, bundle: Bundle) -> None:
    # Stated so that NaN, which compares false with everything, is rejected.
    if not measured <= allowed:
        raise EngineAccuracyError(
            f"the {engine.precision} engine of {engine.name} deviates by {measured:.4g}{unit} from "
            f"the reference of bundle {bundle.manifest.model_id}, which allows "
            f"{allowed:.4g}{unit}; use another precision or engine"
        )


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
    # The last run may be short: engines pad to a size that they were built for.
    starts = range(0, len(inputs), engine.batch)
    runs = [engine.run(inputs[start : start + engine.batch]) for start in starts]
    return runs[0] if len(runs) == 1 else np.concatenate(runs)
