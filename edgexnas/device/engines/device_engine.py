"""Engines that work on device memory, and how one runs on arrays of the host."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from edgexnas.device.engines.engine import Engine, check_inputs
from edgexnas.errors import EngineError, InputError, MissingDependencyError

if TYPE_CHECKING:
    from edgexnas.device.cuda import CudaGraph, CudaSession, StagedBuffer

__all__ = ["DeviceEngine", "HostRuns", "OnSession", "ladder", "least_size"]

FloatArray = npt.NDArray[np.float32]

_log = logging.getLogger(__name__)

SMALL_BATCH = 32
"""A batch between 1 and the largest: the size of the paper's latency protocol."""


class DeviceEngine(Engine, Protocol):
    """An engine that reads and writes device memory, in a stream.

    It is used from one thread at a time, and runs one after the other.
    """

    @property
    def session(self) -> CudaSession:
        """The session whose GPU it runs on."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one item of the input: (1, 11, 11) for Bragg peaks; float32, C order."""

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one item of the output: (2, q) for Bragg peaks; float32, C order."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Batch sizes that it runs, ascending; the last is `batch`."""

    @property
    def any_count(self) -> bool:
        """Whether `enqueue` takes any count at once, beyond `batch` too, and heeds `kept`."""

    def size_of(self, count: int) -> int:
        """Return the least of `sizes` that holds `count` items.

        Raises
        ------
        InputError
            If there is none.
        """

    def enqueue(self, inputs: int, outputs: int, count: int, stream: Any, *, kept: int = 0) -> None:
        """Put one run into a stream; it can be recorded in a CUDA graph.

        Parameters
        ----------
        inputs, outputs
            Device addresses of `size_of(count)` items each; what lies behind the first `count`
            inputs is computed too and means nothing.
        count
            Number of items.
        stream
            A `pycuda.driver.Stream`.
        kept
            Device address of an int32: items beyond that many mean nothing, and an engine of
            `any_count` leaves them out. 0 for none.

        Raises
        ------
        EngineError
            If the engine is closed, the library rejects the call, or the GPU fails.
        """


def ladder(batch: int) -> tuple[int, ...]:
    """Choose batch sizes: few, because each costs a build, and close enough for small batches."""
    # A set, because batch may be 1 or 32 itself.
    return tuple(sorted({1, min(SMALL_BATCH, batch), batch}))


def least_size(sizes: tuple[int, ...], count: int) -> int:
    """Return the least of ascending sizes that holds `count` items.

    Raises
    ------
    InputError
        If there is none.
    """
    for size in sizes:
        if 1 <= count <= size:
            return size
    raise InputError(f"the engine got {count} items; specify 1 to {sizes[-1]}")


class HostRuns:
    """Runs a device engine on arrays of the host: pinned or mapped buffers, one graph a size.

    Each size's upload, run and download are one CUDA graph where they can be recorded; where they
    cannot, they are put into the stream one by one, and a warning says why.

    Parameters
    ----------
    engine
        The engine; opening runs every size once, so that libraries set themselves up.
    graph
        Whether to record graphs.

    Attributes
    ----------
    recorded
        Whether all sizes run as CUDA graphs.
    buffer_bytes
        Memory of the buffers that the GPU works on.

    Raises
    ------
    EngineError
        If the GPU has not enough memory, or the engine fails.
    """

    def __init__(self, engine: DeviceEngine, *, graph: bool = True) -> None:
        self._engine = engine
        self._session = engine.session
        self._graphs: dict[int, CudaGraph] = {}
        self._inputs = self._session.staged_buffer((engine.batch, *engine.input_shape), np.float32)
        # None until it is allocated, because `close` also runs where that fails.
        self._outputs: StagedBuffer | None = None
        try:
            self._outputs = self._session.staged_buffer(
                (engine.batch, *engine.output_shape), np.float32
            )
            for size in engine.sizes:
                # Libraries allocate and compile at their first run, which no capture survives.
                with self._session.current():
                    self._enqueue(size, self._session.compute)
                    self._session.compute.synchronize()
            if graph:
                self._record()
        except BaseException:
            self.close()
            raise
        self.recorded = bool(self._graphs)
        self.buffer_bytes = self._inputs.nbytes + self._outputs.nbytes

    def _record(self) -> None:
        try:
            for size in self._engine.sizes:
                self._graphs[size] = self._session.capture(partial(self._enqueue, size))
        except (EngineError, MissingDependencyError) as error:
            _log.warning("the engine runs without a CUDA graph, because %s", error)
            # All sizes or none, so that latency does not depend on the batch by surprise.
            self._forget_graphs()
            if self._session.lost:
                raise

    def _enqueue(self, size: int, stream: Any) -> None:
        assert self._outputs is not None
        self._inputs.upload(stream, size)
        self._engine.enqueue(self._inputs.pointer, self._outputs.pointer, size, stream)
        self._outputs.download(stream, size)

    def run(self, inputs: FloatArray) -> FloatArray:
        """Run the model on (n, ...) float32 items, 1 ≤ n ≤ `batch`; see `Engine.run`."""
        engine = self._engine
        if self._outputs is None:
            raise EngineError(f"this {engine.name} engine is closed; open a new one")
        check_inputs(inputs, engine.input_shape, engine.batch)
        count = len(inputs)
        # What lies behind `count` is left from earlier runs; it is computed and never returned.
        size = engine.size_of(count)
        self._inputs.array[:count] = inputs
        stream = self._session.compute
        with self._session.current():
            graph = self._graphs.get(size)
            if graph is None:
                self._enqueue(size, stream)
            else:
                graph.launch()
            stream.synchronize()
        # The next run writes to the same buffer.
        result: FloatArray = self._outputs.array[:count].copy()
        return result

    def close(self) -> None:
        """Free buffers and graphs; closing again does nothing."""
        self._forget_graphs()
        self._inputs.close()
        if self._outputs is not None:
            self._outputs.close()
            self._outputs = None

    def _forget_graphs(self) -> None:
        while self._graphs:
            self._graphs.popitem()[1].close()


class OnSession:
    """What engines on a CUDA session share: runs on arrays of the host, and closing.

    A subclass sets `name`, `session`, `sizes` and `_runs`, and frees what else it holds in
    `_release`.

    Attributes
    ----------
    owns_session
        Whether closing the engine closes the session.
    discard_built
        Removes what the engine was built from out of the cache that it came from.
    """

    name: str
    session: CudaSession
    sizes: tuple[int, ...]
    owns_session = False

    def __init__(self) -> None:
        self.discard_built: Callable[[], None] = _nothing
        self._runs: HostRuns | None = None

    def size_of(self, count: int) -> int:
        """Return the least of `sizes` that holds `count` items; see `DeviceEngine.size_of`."""
        return least_size(self.sizes, count)

    def run(self, inputs: FloatArray) -> FloatArray:
        """Run the model on (n, ...) float32 items, 1 ≤ n ≤ `batch`; see `Engine.run`."""
        if self._runs is None:
            raise EngineError(f"this {self.name} engine is closed; open a new one")
        return self._runs.run(inputs)

    def close(self) -> None:
        """Release the model, and the session if the engine owns it; closing again does nothing."""
        self._release()
        if self.owns_session:
            self.session.close()

    def _release(self) -> None:
        if self._runs is not None:
            self._runs.close()
            self._runs = None


def _nothing() -> None:
    """Discard what no cache holds."""
