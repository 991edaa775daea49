"""What an inference engine is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from edgexnas.errors import InputError

if TYPE_CHECKING:
    from edgexnas.bundle import Precision

__all__ = ["Engine", "check_inputs"]

FloatArray = npt.NDArray[np.float32]


class Engine(Protocol):
    """One model of a bundle, ready to run.

    An engine may reuse its buffers between runs: use it from one thread at a time.
    """

    @property
    def name(self) -> str:
        """What runs it: "onnxruntime", "onnxruntime-cuda", "tensorrt", "tensorrt_rtx"."""

    @property
    def precision(self) -> Precision:
        """Arithmetic of the model."""

    @property
    def batch(self) -> int:
        """Largest number of items that one run takes."""

    reason: str
    """Why this engine was chosen, in one sentence."""

    def run(self, inputs: FloatArray) -> FloatArray:
        """Run the model on 1 to `batch` items.

        Parameters
        ----------
        inputs
            (n, ...) float32, the network's input; for Bragg peaks (n, 1, 11, 11), scaled.

        Returns
        -------
        (n, ...) float32, a new array; for Bragg peaks (n, 2, q), offsets in px.

        Raises
        ------
        InputError
            If the shape or the dtype is another.
        EngineError
            If the engine is closed or the library fails.
        """

    def describe(self) -> dict[str, str | int]:
        """Say what runs: library, version, precision, batch, threads, and why."""

    def close(self) -> None:
        """Release the model; closing again does nothing."""


def check_inputs(inputs: FloatArray, item_shape: tuple[int, ...], batch: int) -> None:
    """Reject what an engine cannot run.

    Raises
    ------
    InputError
        If it is not (n, ...) float32 with n from 1 to `batch`.
    """
    if inputs.shape[1:] != item_shape or not 1 <= len(inputs) <= batch:
        raise InputError(
            f"the engine got an array of shape {inputs.shape}; "
            f"expected (n, {', '.join(map(str, item_shape))}), n from 1 to {batch}"
        )
    # Converted silently, float64 would cost a copy of each batch that nobody asked for.
    if inputs.dtype != np.float32:
        raise InputError(f"the engine got dtype {inputs.dtype}; expected float32")
