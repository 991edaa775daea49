"""The kernels that bin and scale patterns, and stitch patches into an object."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgexnas.device.kernels.kernel_set import KernelSet
from edgexnas.errors import ConfigurationError
from edgexnas.ptycho import PATTERN_SIZE, ObjectImage, hann_weight

if TYPE_CHECKING:
    from edgexnas.device.cuda import CudaSession
    from edgexnas.device.engines.engine_cache import EngineCache

__all__ = ["PatternKernels"]

THREADS = 256
AREA = PATTERN_SIZE**2

SIGNATURES = {
    "bin_and_scale": "PiiiifP",
    "weigh_patches": "PPi",
    "stitch_patches": "PPPiiiPP",
    "finish_object": "PPiPP",
}


class PatternKernels:
    """What happens to patterns and patches of an object, on device memory.

    The canvas has a fixed shape; patches are added in their order, so that the object does not
    depend on how they were batched.

    Parameters
    ----------
    session
        The session to run in.
    dtype
        Of the patterns.
    shape
        (H, W) of the canvas in object pixels, larger than a patch.
    weight
        (64, 64) weight of a patch's pixels; None for a raised cosine.
    cache
        Where compiled kernels are kept; None for nowhere.

    Raises
    ------
    ConfigurationError
        If there are no kernels for the dtype, or the canvas is too small.
    EngineError
        If the kernels cannot be compiled, or the GPU has not enough memory.
    """

    def __init__(
        self,
        session: CudaSession,
        dtype: npt.DTypeLike,
        *,
        shape: tuple[int, int],
        weight: npt.NDArray[np.float32] | None = None,
        cache: EngineCache | None = None,
    ) -> None:
        if min(shape) <= PATTERN_SIZE:
            raise ConfigurationError(
                f"canvas has shape {shape}; it must be larger than a patch, 64×64"
            )
        self._session = session
        self.shape = shape
        self._kernels = KernelSet(session, "patterns.cu", dtype, SIGNATURES, cache=cache)
        buffer = self._kernels.buffer
        try:
            self._weight = buffer((PATTERN_SIZE, PATTERN_SIZE), np.float32)
            self._weight.upload(np.asarray(hann_weight() if weight is None else weight, np.float32))
            self._sums = buffer((*shape, 2), np.float64)
            self._weights = buffer(shape, np.float64)
            self._values = buffer((*shape, 2), np.float32)
            self._coverage = buffer(shape, np.float32)
        except BaseException:
            self.close()
            raise

    def enqueue_scale(
        self,
        patterns: int,
        number: int,
        shape: tuple[int, int],
        factor: int,
        intensity_scale: float,
        scaled: int,
        stream: Any,
    ) -> None:
        """Put binning and scaling into a stream; see `bin_patterns` and `scale_patterns`.

        Parameters
        ----------
        patterns, scaled
            Device addresses of (number, H, W) counts and of (number, 64, 64) float32.
        shape
            (H, W) of the patterns, at least 64 × `factor` each.
        """
        if factor < 1 or min(shape) < PATTERN_SIZE * factor:
            raise ConfigurationError(
                f"patterns of {shape} cannot be binned by {factor}; "
                f"give {PATTERN_SIZE} × factor pixels or more along each axis"
            )
        self._call(
            "bin_and_scale", number * AREA, stream, patterns, number, *shape, factor,
            np.float32(intensity_scale), scaled,
        )  # fmt: skip

    def enqueue_stitch(self, patches: int, positions: int, number: int, stream: Any) -> None:
        """Put stitching into a stream; see `ObjectCanvas.add`.

        Parameters
        ----------
        patches
            Device address of (number, 2, 64, 64) float32 amplitude and phase, overwritten.
        positions
            Device address of (number, 2) float64, (row, col) from the canvas's first pixel.
        """
        self._call("weigh_patches", number * AREA, stream, patches, self._weight.pointer, number)
        self._call(
            "stitch_patches", self.shape[0] * self.shape[1], stream, patches, self._weight.pointer,
            positions, number, *self.shape, self._sums.pointer, self._weights.pointer,
        )  # fmt: skip

    def image(self) -> ObjectImage:
        """Return the object as it stands; how many patches were skipped is not counted here."""
        pixels = self.shape[0] * self.shape[1]
        with self._session.current():
            self._call(
                "finish_object", pixels, self._session.compute, self._sums.pointer,
                self._weights.pointer, pixels, self._values.pointer, self._coverage.pointer,
            )  # fmt: skip
        values = self._values.download().view(np.complex64)[..., 0]
        return ObjectImage(values, self._coverage.download(), skipped=0)

    def close(self) -> None:
        """Free the device memory; closing again does nothing."""
        self._kernels.close()

    def _call(self, name: str, items: int, stream: Any, *arguments: Any) -> None:
        self._kernels.launch(name, -(-items // THREADS), THREADS, stream, *arguments)
