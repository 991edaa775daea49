"""The kernels that weigh patches, fit them to a canvas, and make an object of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgexnas.device.kernels.kernel_set import KernelSet
from edgexnas.ptycho import PATTERN_SIZE, hann_weight

if TYPE_CHECKING:
    from edgexnas.device.cache import EngineCache
    from edgexnas.device.cuda import CudaSession

__all__ = ["CanvasMemory", "ObjectKernels"]

THREADS = 256
# The most that a block can have: patches are fitted one after the other, by one block.
FIT_THREADS = 1024
AREA = PATTERN_SIZE**2
# At a fraction of a pixel a patch reaches one row and one column further.
SPREAD_AREA = (PATTERN_SIZE + 1) ** 2

# By the codes of Python's `struct`: P a pointer, i int, f float, d double.
SIGNATURES = {
    "weigh_patches": "PPiP",
    "fit_patches": "PPPifiiPPP",
    "add_patch": "PPPffiPP",
    "absorb_canvas": "PPiiiiddiiPP",
    "finish_object": "PPiPP",
}


class CanvasMemory(NamedTuple):
    """Where a canvas lies.

    Attributes
    ----------
    height, width
        In pixels.
    sums, weights
        Device addresses of (height, width, 2) and (height, width) float64.
    """

    height: int
    width: int
    sums: int
    weights: int


class ObjectKernels:
    """What happens to patches and canvases, on device memory; the context is current in all calls.

    A place is (row, col, row part, col part), float64: the whole pixel of a patch's first pixel on
    the canvas, and what it lies beyond it.

    Parameters
    ----------
    session
        The session to run in.
    cache
        Where compiled kernels are kept; None for nowhere.

    Raises
    ------
    EngineError
        If the kernels cannot be compiled, or the GPU has not enough memory.
    """

    def __init__(self, session: CudaSession, *, cache: EngineCache | None = None) -> None:
        # The dtype of pixels plays no part in these.
        self._kernels = KernelSet(session, "object.cu", np.float32, SIGNATURES, cache=cache)
        weight = hann_weight().astype(np.float32)
        self._weight = self._kernels.uploaded(weight).pointer

    def enqueue_weigh(self, patches: int, number: int, weighted: int, stream: Any) -> None:
        """Put the weighing of patches into a stream.

        Parameters
        ----------
        patches
            Device address of (number, 2, 64, 64) float32: amplitude, and phase in radians.
        weighted
            Device address for (number, 2, 64, 64) float32: real and imaginary part.
        """
        self._call(
            "weigh_patches", number * AREA, stream, patches, self._weight, number, weighted
        )  # fmt: skip

    def enqueue_fit(
        self,
        weighted: int,
        places: int,
        number: int,
        canvas: CanvasMemory,
        report: int,
        stream: Any,
        *,
        least: float,
    ) -> None:
        """Put into a stream: compare patches and add them, turned to fit, until one does not.

        Parameters
        ----------
        weighted, places
            Device addresses of (number, 2, 64, 64) float32 and of (number, 4) float64.
        least
            Share of a patch's weight that must lie on covered pixels for it to be added; beyond 1
            to compare only. Patches that may be added lie on the canvas as a whole.
        report
            Device address for 4 float64: how many were added, and of the last one compared what
            `edgexnas.ptycho.ObjectCanvas.compare` gives: real, imaginary, share.
        """
        self._kernels.launch(
            "fit_patches", 1, FIT_THREADS, stream, weighted, self._weight, places, number,
            np.float32(least), canvas.height, canvas.width, canvas.sums, canvas.weights, report,
        )  # fmt: skip

    def enqueue_add(
        self, weighted: int, place: int, turn: complex, canvas: CanvasMemory, stream: Any
    ) -> None:
        """Put into a stream: add one patch that lies on the canvas, times `turn` on the circle."""
        self._call(
            "add_patch", SPREAD_AREA, stream, weighted, self._weight, place,
            # In float32, as the CPU implementation turns patches, so that both give the same sums.
            np.float32(turn.real), np.float32(turn.imag), canvas.width, canvas.sums,
            canvas.weights,
        )  # fmt: skip

    def enqueue_absorb(
        self,
        other: CanvasMemory,
        offset: tuple[int, int],
        turn: complex,
        canvas: CanvasMemory,
        stream: Any,
    ) -> None:
        """Put into a stream: add what lies on a canvas of another one, times `turn` on the circle.

        Parameters
        ----------
        offset
            (row, col) of the other's first pixel on the canvas.
        """
        self._call(
            "absorb_canvas", other.height * other.width, stream, other.sums, other.weights,
            other.height, other.width, *offset, turn.real, turn.imag, canvas.height, canvas.width,
            canvas.sums, canvas.weights,
        )  # fmt: skip

    def enqueue_finish(self, canvas: CanvasMemory, values: int, coverage: int, stream: Any) -> None:
        """Put into a stream: the object's (height, width) complex64, and its coverage, float32."""
        pixels = canvas.height * canvas.width
        self._call(
            "finish_object", pixels, stream, canvas.sums, canvas.weights, pixels, values, coverage
        )  # fmt: skip

    def close(self) -> None:
        """Free the device memory; closing again does nothing."""
        self._kernels.close()

    def _call(self, name: str, items: int, stream: Any, *arguments: Any) -> None:
        self._kernels.launch(name, -(-items // THREADS), THREADS, stream, *arguments)
