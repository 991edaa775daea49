"""Patterns of a scan to an object on a GPU, composed of what edgexnas has for it.

Not part of the package: `Predictor.stream` bins and stitches on the CPU. It shows what the kernels
and the double buffer make of a scan, for checks and timings.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgexnas.device.cuda import DoubleBuffer, Slot
from edgexnas.device.kernels import PatternKernels
from edgexnas.ptycho import PATTERN_SIZE, ObjectImage


class PatternPipeline:
    """Binning, scaling, network and weighted stitching as one CUDA graph.

    Parameters
    ----------
    engine
        Takes (n, 1, 64, 64) and gives amplitude and phase, (n, 2, 64, 64).
    pattern_shape, dtype
        Of one pattern.
    factor
        Pixels binned into one along each axis.
    intensity_scale
        As of `edgexnas.ptycho.scale_patterns`.
    canvas
        (H, W) of the object in pixels.
    number
        Patterns that are worked on together.
    """

    def __init__(
        self,
        engine: Any,
        *,
        pattern_shape: tuple[int, int],
        dtype: Any,
        factor: int,
        intensity_scale: float,
        canvas: tuple[int, int],
        number: int = 32,
    ) -> None:
        session = engine.session
        self._engine = engine
        self._binning = (pattern_shape, factor, intensity_scale)
        self._number = number
        self._kernels = PatternKernels(session, dtype, shape=canvas)
        side = PATTERN_SIZE
        self._scaled = session.device_buffer((number, 1, side, side), np.float32)
        self._places = [session.staged_buffer((number, 2), np.float64) for _ in range(2)]
        for places in self._places:
            places.array[:] = np.nan
        self._turn = 0
        self.buffer = DoubleBuffer(
            session,
            ((number, *pattern_shape), dtype),
            {"patches": ((number, 2, side, side), np.float32)},
            self._work,
        )

    def _work(self, slot: Slot, stream: Any) -> None:
        shape, factor, scale = self._binning
        places, patches = self._places[slot.number], slot.outputs["patches"]
        places.upload(stream)
        self._kernels.enqueue_scale(
            slot.input.pointer, self._number, shape, factor, scale, self._scaled.pointer, stream
        )
        self._engine.enqueue(self._scaled.pointer, patches.pointer, self._number, stream)
        patches.download(stream)
        self._kernels.enqueue_stitch(patches.pointer, places.pointer, self._number, stream)

    def submit(self, patterns: np.ndarray | None, positions: np.ndarray) -> None:
        """Start work on `number` patterns; None for those that the slot holds already."""
        if self.buffer.in_flight < len(self._places):
            self._places[self._turn].array[:] = positions
        self.buffer.submit(patterns)
        self._turn = 1 - self._turn

    def result(self) -> np.ndarray:
        """Wait for the oldest patterns and give their patches, (n, 2, 64, 64)."""
        return self.buffer.result()["patches"]

    def image(self) -> ObjectImage:
        """Give the object as it stands."""
        return self._kernels.image()

    def close(self) -> None:
        """Free all memory but the engine's."""
        self.buffer.close()
        self._kernels.close()
        for buffer in (self._scaled, *self._places):
            buffer.close()
