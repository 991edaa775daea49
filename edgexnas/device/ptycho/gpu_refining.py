"""Sweeps of rPIE on a GPU: patterns that do not overlap together, all others in their order."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgexnas.device.kernels.refine_kernels import (
    ItemsMemory,
    ObjectMemory,
    ProbeMemory,
    RefineKernels,
)
from edgexnas.errors import EngineError
from edgexnas.ptycho.sweeps import STEPS_A_PIXEL, LaidScan, ShiftedProbes, order_of

if TYPE_CHECKING:
    from edgexnas.device.cache import EngineCache
    from edgexnas.device.cuda import CudaSession, DeviceBuffer

__all__ = ["GpuRefiner", "GpuSweeps", "steps_of"]

ComplexArray = npt.NDArray[np.complex64]
Order = npt.NDArray[np.integer]

MOST_TOGETHER = 64
"""Most patterns of one launch; their waves take 128 kB a mode each, of 128×128."""

CELL_PX = 8
"""Overlap is looked for in squares of so many pixels: each pattern costs a look at all of its."""

STEPS_AT_ONCE = 16
"""Steps that are launched before somebody who ends or closes it is heard: less than a ms."""

ITEM_BYTES = 16


class GpuRefiner:
    """Makes sweeps on one GPU, for patterns of one size and probes of so many modes.

    Parameters
    ----------
    session
        The session to run in.
    shape
        (H, W) of a pattern.
    modes
        Of the probe.
    cache
        Where compiled kernels are kept; None for nowhere.

    Raises
    ------
    ConfigurationError
        If there are no kernels for that.
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
        self.session, self.shape, self.modes = session, shape, modes
        # Whoever closes the engine while an object is refined waits for the step that runs.
        self._lock = threading.RLock()
        self._open: set[GpuSweeps] = set()
        self._closed = False
        self.kernels = RefineKernels(session, shape, modes, cache=cache)

    def begin(self, scan: LaidScan) -> GpuSweeps:
        """Take the memory for a scan and copy its patterns.

        Raises
        ------
        EngineError
            If the GPU fails, has not enough memory, or this is closed.
        """
        with self.working():
            sweeps = GpuSweeps(self, scan)
            self._open.add(sweeps)
        return sweeps

    @contextmanager
    def working(self) -> Iterator[None]:
        """Keep the GPU's memory from being freed for a with-block, in which its context is current.

        Raises
        ------
        EngineError
            If this is closed or was made before a fork, or the GPU fails.
        """
        # Before the lock, which a thread that the fork left behind may hold for ever.
        self.session.require_own_process()
        with self._lock:
            if self._closed:
                raise EngineError("the predictor is closed")
            with self.session.current():
                yield

    def forget(self, sweeps: GpuSweeps) -> None:
        """Free what sweeps hold; again does nothing, and neither does it in a forked child."""
        if self.session.elsewhere:
            return
        with self._lock:
            if sweeps in self._open:
                self._open.remove(sweeps)
                sweeps.free()

    def close(self) -> None:
        """Free all of it; sweeps that are under way fail then.

        Closing again does nothing, and neither does it in a forked child.
        """
        if self.session.elsewhere:
            return
        with self._lock:
            self._closed = True
            for sweeps in list(self._open):
                self.forget(sweeps)
            self.kernels.close()


class GpuSweeps:
    """Sweeps through one scan on a GPU; see `edgexnas.ptycho.sweeps.Sweeps`.

    Patterns that share no pixel of the object do not see each other, so that the object is that of
    one pattern after the other, but for rounding. Made by `GpuRefiner.begin`.
    """

    def __init__(self, owner: GpuRefiner, scan: LaidScan) -> None:
        self._owner, self._scan = owner, scan
        session, shape = owner.session, owner.shape
        side = shape[0]
        self._parts = scan.parts @ (STEPS_A_PIXEL, 1)
        self._shifted: tuple[ComplexArray, ShiftedProbes] | None = None
        self._together = min(MOST_TOGETHER, len(scan))
        self._opened = ExitStack()
        try:
            self._stream = session.stream()

            def buffer(shape: tuple[int, ...], dtype: npt.DTypeLike) -> DeviceBuffer:
                made = session.device_buffer(shape, dtype, stream=self._stream)
                self._opened.callback(made.close)
                return made

            self._roots = buffer((len(scan), side, side), np.float16)
            self._masked = buffer(shape, np.uint8)
            self._object = buffer(scan.canvas.shape, np.complex64)
            self._waves = buffer((self._together, owner.modes, *shape), np.complex64)
            kept = (STEPS_A_PIXEL**2, owner.modes, *shape)
            self._probes, self._steps = (buffer(kept, np.complex64) for _ in "ab")
            self._sums = buffer((len(scan), owner.kernels.groups, 2), np.float64)
            self._items = session.staged_buffer((len(scan), 4), np.int32)
            self._opened.callback(self._items.close)
            self._object.upload(scan.canvas, self._stream)
            if scan.masked is not None:
                self._masked.upload(scan.masked.astype(np.uint8), self._stream)
            for first in range(0, len(scan), MOST_TOGETHER):
                some = np.stack(scan.roots[first : first + MOST_TOGETHER])
                self._copy(some, self._roots.pointer + first * some[0].nbytes)
        except BaseException:
            self.free()
            raise
        self._target = ObjectMemory(self._object.pointer, scan.canvas.shape[1])
        self._probe = ProbeMemory(self._probes.pointer, self._steps.pointer)

    @property
    def device(self) -> str:
        """See `Sweeps.device`."""
        return self._owner.session.name

    def use(self, probe: ComplexArray, scale: float) -> None:
        """See `Sweeps.use`."""
        # Shifted once for all scales: that takes longer than a sweep does here.
        if self._shifted is None or self._shifted[0] is not probe:
            self._shifted = probe, ShiftedProbes(probe)
        size = np.float32(scale)
        for part in np.unique(self._parts).tolist():
            shifted = self._shifted[1].at(*divmod(part, STEPS_A_PIXEL))
            at = part * shifted.probe.nbytes
            with self._owner.working():
                self._copy(shifted.probe * size, self._probe.probes + at)
                self._copy(shifted.step / size, self._probe.steps + at)

    def measure(self) -> tuple[float, float]:
        """See `Sweeps.measure`."""
        numbers = np.arange(len(self._scan))
        with self._owner.working():
            self._arrange(numbers)
            for first in range(0, len(numbers), self._together):
                self._enqueue(first, min(self._together, len(numbers) - first), correct=False)
        return self._summed()

    def sweep(self, number: int, stop: Callable[[], bool] | None) -> float | None:
        """See `Sweeps.sweep`; `stop` is asked every few steps."""
        order = order_of(len(self._scan), number)
        arranged, starts = steps_of(self._scan.places, self._owner.shape[0], order)
        with self._owner.working():
            self._arrange(arranged)
        for step in range(0, len(starts) - 1, STEPS_AT_ONCE):
            if stop is not None and stop():
                return None
            with self._owner.working():
                for first, end in itertools.pairwise(starts[step : step + STEPS_AT_ONCE + 1]):
                    for at in range(first, end, self._together):
                        self._enqueue(at, min(self._together, end - at), correct=True)
        return self._summed()[1]

    def canvas(self) -> ComplexArray:
        """See `Sweeps.canvas`."""
        with self._owner.working():
            return self._object.download(self._stream)

    def close(self) -> None:
        """See `Sweeps.close`."""
        self._owner.forget(self)

    def free(self) -> None:
        """Wait for the GPU and free its memory."""
        session = self._owner.session
        if not session.lost and hasattr(self, "_stream"):
            with contextlib.suppress(EngineError), session.current():
                self._stream.synchronize()
        self._opened.close()
        with session.releasing():
            self.__dict__.pop("_stream", None)

    def _arrange(self, numbers: Order) -> None:
        """Put into the stream: copy in which order patterns are taken."""
        items = self._items.array
        items[:, :2] = self._scan.places[numbers]
        items[:, 2], items[:, 3] = self._parts[numbers], numbers
        self._items.upload(self._stream)

    def _enqueue(self, first: int, count: int, *, correct: bool) -> None:
        """Put into the stream: one step of arranged patterns that share no pixel."""
        kernels, waves, stream = self._owner.kernels, self._waves.pointer, self._stream
        items = ItemsMemory(self._items.pointer + first * ITEM_BYTES, count)
        kernels.enqueue_enter(items, self._target, self._probe, waves, stream)
        kernels.enqueue_compare(
            items, self._roots.pointer, self._masked.pointer, waves, self._sums.pointer, stream,
            correct=correct,
        )  # fmt: skip
        if correct:
            kernels.enqueue_leave(items, self._target, self._probe, waves, stream)

    def _summed(self) -> tuple[float, float]:
        with self._owner.working():
            light, misfit = self._sums.download(self._stream).sum(axis=(0, 1)).tolist()
        return light, misfit

    def _copy(self, array: npt.NDArray[Any], pointer: int) -> None:
        driver = self._owner.session.driver_module
        driver.memcpy_htod_async(pointer, np.ascontiguousarray(array), self._stream)
        # Before the array goes: it is copied from where it lies.
        self._stream.synchronize()


def steps_of(places: npt.NDArray[np.integer], side: int, order: Order) -> tuple[Order, list[int]]:
    """Arrange patterns in steps, each of patterns that share no pixel.

    A pattern comes in the step after the last one that has a pattern which overlaps it and comes
    before it in `order`, so that patterns that overlap keep their order.

    Parameters
    ----------
    places
        (n, 2) int: first pixel of each window on the canvas.
    side
        Rows and columns of a window.
    order
        (n,) numbers of patterns, one after the other.

    Returns
    -------
    (n,) numbers of patterns, step after step, and where steps begin and the last ends.
    """
    first, last = places // CELL_PX, (places + side - 1) // CELL_PX + 1
    newest = np.zeros(last.max(axis=0), np.int32)
    steps = np.empty(len(order), np.int32)
    # As numbers of Python: for two of them numpy takes many times longer.
    windows = np.concatenate([first, last], axis=1)[order].tolist()
    for index, (row, col, row_end, col_end) in enumerate(windows):
        area = newest[row:row_end, col:col_end]
        steps[index] = step = int(area.max()) + 1
        area[...] = step
    arranged = order[np.argsort(steps, kind="stable")]
    return arranged, [0, *np.cumsum(np.bincount(steps)[1:]).tolist()]
