"""The kernel that checks, bins and scales diffraction patterns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgexnas.device.kernels.kernel_set import KernelSet
from edgexnas.errors import ConfigurationError
from edgexnas.ptycho import PATTERN_SIZE

if TYPE_CHECKING:
    from edgexnas.device.cache import EngineCache
    from edgexnas.device.cuda import CudaSession

__all__ = ["NO_BAD_PIXEL", "PatternKernels"]

THREADS = 1024

NO_BAD_PIXEL = np.iinfo(np.int32).max
"""What stands where a pattern has no pixel to reject."""

SIGNATURES = {"bin_and_scale": "PPPiiifPP"}


class PatternKernels:
    """What happens to the patterns of one detector, on device memory.

    Parameters
    ----------
    session
        The session to run in.
    dtype
        Of the patterns.
    shape
        (H, W) of a pattern.
    factor
        Pixels of the detector along each axis that become one; `shape` holds 64 × `factor` or more.
    intensity_scale
        As of `edgexnas.ptycho.scale_patterns`.
    mask
        (H, W) bool, True where a pixel counts as 0; None for nowhere.
    saturation
        As of `edgexnas.ptycho.check_counts`.
    cache
        Where compiled kernels are kept; None for nowhere.

    Raises
    ------
    ConfigurationError
        If there are no kernels for the dtype, or the patterns are too small for the factor.
    EngineError
        If the kernels cannot be compiled, or the GPU has not enough memory.
    """

    def __init__(
        self,
        session: CudaSession,
        dtype: npt.DTypeLike,
        shape: tuple[int, int],
        factor: int,
        intensity_scale: float,
        *,
        mask: npt.NDArray[np.bool_] | None = None,
        saturation: float | None = None,
        cache: EngineCache | None = None,
    ) -> None:
        if factor < 1 or min(shape) < PATTERN_SIZE * factor:
            raise ConfigurationError(
                f"patterns of {shape} cannot be binned by {factor}; "
                f"specify {PATTERN_SIZE} × factor pixels or more along each axis"
            )
        self._binning = (*shape, factor, np.float32(intensity_scale))
        self._kernels = KernelSet(session, "patterns.cu", dtype, SIGNATURES, cache=cache)
        try:
            # In device memory, because the type of an argument would depend on the pixels' type.
            self._most = self._kernels.uploaded(most_counts(dtype, saturation)).pointer
            self._mask = 0
            if mask is not None:
                self._mask = self._kernels.uploaded(mask.astype(np.uint8)).pointer
        except BaseException:
            self.close()
            raise

    def enqueue_scale(self, patterns: int, number: int, scaled: int, bad: int, stream: Any) -> None:
        """Put checks, binning and scaling into a stream; the context is current.

        Parameters
        ----------
        patterns
            Device address of (number, H, W) counts.
        scaled
            Device address for (number, 64, 64) float32; see `bin_patterns` and `scale_patterns`.
        bad
            Device address for (number,) int32: the first pixel of each pattern that
            `check_counts` rejects, row · W + column, or `NO_BAD_PIXEL`.
        """
        self._kernels.launch(
            "bin_and_scale", number, THREADS, stream, patterns, self._mask, self._most,
            *self._binning, scaled, bad,
        )  # fmt: skip

    def close(self) -> None:
        """Free the device memory; closing again does nothing."""
        self._kernels.close()


def most_counts(dtype: npt.DTypeLike, saturation: float | None) -> npt.NDArray[Any]:
    """Return the largest count that `check_counts` lets through, as (1,) of the dtype."""
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        given = np.array([np.inf if saturation is None else saturation], dtype)
        # The kernel compares with ≤, and a count that equals the saturation is saturated.
        below: npt.NDArray[Any] = np.nextafter(given, -np.inf, dtype=dtype)
        return below
    largest = int(np.iinfo(dtype).max)
    # Unsigned types mark overflow with their largest value; signed ones have no such custom.
    limit = largest + (dtype.kind == "i") if saturation is None else saturation
    return np.array([int(min(largest, np.ceil(limit) - 1))], dtype)
