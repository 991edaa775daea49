"""The kernels by which patterns that do not overlap correct an object."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgexnas.device.kernels.kernel_set import KernelSet
from edgexnas.errors import ConfigurationError

if TYPE_CHECKING:
    from edgexnas.device.cache import EngineCache
    from edgexnas.device.cuda import CudaSession

__all__ = ["ItemsMemory", "ObjectMemory", "ProbeMemory", "RefineKernels", "refine_definitions"]

THREADS = 256

MOST_WIDTH = 4
"""Most rows or columns of a block: few, for a launch of one pattern shall fill the GPU."""

MOST_BYTES = 48 << 10
"""Shared memory that a block has everywhere without asking for more."""

# What a block takes beside its lines.
SUM_BYTES = 2 * THREADS * 8

SIGNATURES = {
    "enter_rows": "PPiPPP",
    "compare_columns": "PPPPiPP",
    "leave_rows": "PPPPiP",
}


class ItemsMemory(NamedTuple):
    """Patterns of one launch.

    Attributes
    ----------
    pointer
        Device address of (patterns, 4) int32: row and column of the window's first pixel, which of
        the 16 probes, and the number of the pattern.
    patterns
        How many.
    """

    pointer: int
    patterns: int


class ObjectMemory(NamedTuple):
    """Where the object lies: device address of (height, width) complex64, and its width."""

    pointer: int
    width: int


class ProbeMemory(NamedTuple):
    """Device addresses of the 16 shifted probes and their steps, (16, modes, H, W) complex64."""

    probes: int
    steps: int


def refine_definitions(side: int, modes: int) -> dict[str, str]:
    """Return the macros that fit the source to patterns of one size.

    Raises
    ------
    ConfigurationError
        If patterns of that size and so many modes are none that the kernels do.
    """
    rest = side
    for factor in (2, 3, 5):
        while rest % factor == 0 and rest > 1:
            rest //= factor
    if rest != 1:
        raise ConfigurationError(
            f"the kernels transform sides with factors 2, 3 and 5, and patterns have {side} rows"
        )
    for width in (4, 2, 1):
        lines = 2 * modes * width * (side + 1) * 8
        fits = lines + side * 8 + SUM_BYTES <= MOST_BYTES
        if fits and width <= MOST_WIDTH and side % width == 0:
            return {"SIDE": str(side), "MODES": str(modes), "WIDTH": str(width)}
    raise ConfigurationError(
        f"rows of {side} pixels in {modes} modes of a probe do not fit into the "
        f"{MOST_BYTES >> 10} KiB of a block"
    )


class RefineKernels:
    """Steps of rPIE on device memory; the context is current in all calls.

    Waves are (patterns of a launch, modes, H, W) complex64, and sums (all patterns, `groups`, 2)
    float64: the model's light on usable pixels, and Σ(√I - √model)².

    Parameters
    ----------
    session
        The session to run in.
    shape
        (H, W) of a pattern: square.
    modes
        Of the probe.
    cache
        Where compiled kernels are kept; None for nowhere.

    Attributes
    ----------
    groups
        Sums of each pattern.

    Raises
    ------
    ConfigurationError
        If there are no kernels for that shape and so many modes.
    EngineError
        If the kernels cannot be compiled, or the GPU has not enough memory.
    """

    def __init__(
        self,
        session: CudaSession,
        shape: tuple[int, int],
        modes: int,
        *,
        cache: EngineCache | None = None,
    ) -> None:
        side = shape[0]
        if side != shape[1]:
            raise ConfigurationError(
                f"the kernels are for square patterns, and those have shape {shape}"
            )
        macros = refine_definitions(side, modes)
        self.groups = side // int(macros["WIDTH"])
        self._kernels = KernelSet(
            session, "refine.cu", None, SIGNATURES, definitions=macros, cache=cache
        )
        turns = np.exp(-2j * np.pi * np.arange(side) / side).astype(np.complex64)
        self._turns = self._kernels.uploaded(turns).pointer

    def enqueue_enter(
        self, items: ItemsMemory, target: ObjectMemory, probe: ProbeMemory, waves: int, stream: Any
    ) -> None:
        """Put into a stream: rows of probe · object, transformed, to the waves."""
        self._launch(
            "enter_rows", items, stream, items.pointer, target.pointer, target.width,
            probe.probes, self._turns, waves,
        )  # fmt: skip

    def enqueue_compare(
        self,
        items: ItemsMemory,
        roots: int,
        masked: int,
        waves: int,
        sums: int,
        stream: Any,
        *,
        correct: bool,
    ) -> None:
        """Put into a stream: columns transformed and compared with the patterns.

        Parameters
        ----------
        roots
            Device address of (all patterns, H, W) float16, the direct beam at (0, 0).
        masked
            Device address of (H, W) uint8 like them, not 0 where a pixel is unusable.
        correct
            Whether waves get the amplitudes of the patterns and are transformed back.
        """
        self._launch(
            "compare_columns", items, stream, items.pointer, roots, masked, self._turns,
            int(correct), waves, sums,
        )  # fmt: skip

    def enqueue_leave(
        self, items: ItemsMemory, target: ObjectMemory, probe: ProbeMemory, waves: int, stream: Any
    ) -> None:
        """Put into a stream: corrected waves transformed back and added to the object.

        Windows of one launch share no pixel.
        """
        self._launch(
            "leave_rows", items, stream, items.pointer, waves, probe.steps, self._turns,
            target.width, target.pointer,
        )  # fmt: skip

    def close(self) -> None:
        """Free the device memory; closing again does nothing."""
        self._kernels.close()

    def _launch(self, name: str, items: ItemsMemory, stream: Any, *arguments: Any) -> None:
        self._kernels.launch(name, items.patterns * self.groups, THREADS, stream, *arguments)
