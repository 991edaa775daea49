"""Patterns to patches of the object on a GPU: copy, checks, binning and network as one graph."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgexnas.device.cuda import DoubleBuffer
from edgexnas.device.kernels.pattern_kernels import NO_BAD_PIXEL, PatternKernels
from edgexnas.ptycho import PATTERN_SIZE, ObjectPatches, decode_patches

if TYPE_CHECKING:
    from edgexnas.device.cache import EngineCache
    from edgexnas.device.cuda import Slot
    from edgexnas.device.engines.device_engine import DeviceEngine

__all__ = ["PatternPipeline"]

Pattern = npt.NDArray[Any]


class PatternPipeline:
    """Predict patches of the object from a detector's patterns, with two batches in flight.

    While the GPU works on one batch the next is copied to it. Patterns are written to memory that
    is pinned, or mapped where CPU and GPU share memory.

    Parameters
    ----------
    engine
        The network, on the GPU.
    shape, dtype
        (H, W) and dtype of a pattern: square, the side a multiple of 64.
    intensity_scale
        As of `edgexnas.ptycho.scale_patterns`.
    mask
        (H, W) bool, True where a pixel counts as 0; None for nowhere.
    saturation
        As of `edgexnas.ptycho.check_counts`.
    cache
        Where compiled kernels are kept; None for nowhere.
    graph
        Whether the work is recorded once and replayed as a CUDA graph.

    Attributes
    ----------
    batch
        Most patterns that are worked on together.

    Raises
    ------
    ConfigurationError
        If there are no kernels for the dtype.
    EngineError
        If the kernels cannot be compiled or recorded, or the GPU has not enough memory.
    """

    def __init__(
        self,
        engine: DeviceEngine,
        shape: tuple[int, int],
        dtype: npt.DTypeLike,
        *,
        intensity_scale: float,
        mask: npt.NDArray[np.bool_] | None = None,
        saturation: float | None = None,
        cache: EngineCache | None = None,
        graph: bool = True,
    ) -> None:
        self._engine = engine
        self.batch = engine.batch
        session, side = engine.session, PATTERN_SIZE
        self._counts: deque[int] = deque()
        self._opened = ExitStack()
        try:
            self._kernels = PatternKernels(
                session, dtype, shape, shape[0] // side, intensity_scale, mask=mask,
                saturation=saturation, cache=cache,
            )  # fmt: skip
            self._opened.callback(self._kernels.close)
            self._scaled = session.device_buffer((self.batch, 1, side, side), np.float32)
            self._opened.callback(self._scaled.close)
            self._batches = DoubleBuffer(
                session,
                ((self.batch, *shape), dtype),
                {
                    "patches": ((self.batch, 2, side, side), np.float32),
                    # The GPU tells only which pattern is wrong; why is found on the CPU, which has
                    # the words.
                    "bad": ((self.batch,), np.int32),
                },
                self._work,
                sizes=engine.sizes,
                graph=graph,
                # Patterns are written to pinned memory one by one, so that there is nothing to
                # copy.
                copy_threads=1,
            )
            self._opened.callback(self._batches.close)
        except BaseException:
            self.close()
            raise

    @property
    def in_flight(self) -> int:
        """Number of batches submitted whose patches have not been taken."""
        return self._batches.in_flight

    def next_batch(self) -> Pattern:
        """Return the memory of the next patterns, (batch, H, W), to be written before `submit`.

        Raises
        ------
        EngineError
            If every slot is in flight, or the pipeline is closed.
        """
        return self._batches.next_input()

    def submit(self, count: int) -> None:
        """Start work on the first patterns in `next_batch()`; returns before it is done.

        Parameters
        ----------
        count
            How many, from 1 to `batch`.

        Raises
        ------
        EngineError
            If every slot is in flight, the pipeline is closed, or the GPU fails.
        """
        self._batches.submit(size=self._engine.size_of(count), count=count)
        self._counts.append(count)

    def result(self) -> tuple[ObjectPatches, tuple[int, ...]]:
        """Wait for the oldest batch submitted and give its patches, one for each pattern.

        If it fails, the batch is no longer in flight.

        Returns
        -------
        The patches, and the indices of patterns that `edgexnas.ptycho.check_counts` rejects, whose
        patches mean nothing.

        Raises
        ------
        EngineError
            If nothing is in flight, or the GPU fails.
        """
        slot = self._batches.oldest()
        count = self._counts.popleft()
        try:
            self._batches.wait()
            bad = np.flatnonzero(slot.outputs["bad"].array[:count] != NO_BAD_PIXEL)
            # The slot is reused from the next line on.
            output = slot.outputs["patches"].array[:count].copy()
        finally:
            self._batches.release()
        return decode_patches(output), tuple(bad.tolist())

    def process(self, patterns: Sequence[Pattern]) -> tuple[ObjectPatches, tuple[int, ...]]:
        """Predict from up to `batch` patterns and wait for them; see `submit` and `result`."""
        memory = self.next_batch()
        for index, pattern in enumerate(patterns):
            memory[index] = pattern
        self.submit(len(patterns))
        return self.result()

    def close(self) -> None:
        """Wait for the GPU and free all memory but the engine's; closing again does nothing."""
        self._opened.close()

    def _work(self, slot: Slot, stream: Any) -> None:
        """Put into the stream what leads from the slot's patterns to its outputs."""
        patches, bad = slot.outputs["patches"], slot.outputs["bad"]
        self._kernels.enqueue_scale(
            slot.input.pointer, slot.size, self._scaled.pointer, bad.pointer, stream
        )
        self._engine.enqueue(self._scaled.pointer, patches.pointer, slot.size, stream)
        patches.download(stream, slot.size)
        bad.download(stream, slot.size)
