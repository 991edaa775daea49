"""A CUDA session: a GPU's context, one stream for copies and one for everything else, memory."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any

import numpy.typing as npt

from edgexnas.device.cuda.buffers import DeviceBuffer, StagedBuffer
from edgexnas.device.cuda.context import Closable
from edgexnas.device.cuda.graph import CudaCallError, CudaGraph, capture_graph
from edgexnas.device.cuda.pinned_memory import PinnedMemory
from edgexnas.device.cuda.primary_context import hold_context
from edgexnas.device.process_bound import ProcessBound
from edgexnas.errors import EngineError

__all__ = ["CudaSession"]

NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING: the stream does not wait for work that others put in the default one."""


class CudaSession(ProcessBound):
    """Work on one GPU: streams, buffers and graphs, freed together.

    The context is the GPU's primary one, which torch, cupy and TensorRT use too; all sessions of a
    process share it. Any thread may use a session inside `current()`; one at a time uses a stream.

    Parameters
    ----------
    device
        Number of the GPU, from 0.

    Attributes
    ----------
    name
        Of the GPU, such as "NVIDIA H100 80GB HBM3".
    capability
        Compute capability, such as "SM87".
    integrated
        Whether CPU and GPU share memory, as on a Jetson.
    driver
        CUDA version that the driver offers, such as "13.0".
    copies
        Stream (`pycuda.driver.Stream`) for copies from the host.
    compute
        Stream for everything else; graphs are captured on it.
    pinned
        Pinned host memory for frames.
    device_bytes
        Device memory allocated through this session and not freed yet.
    driver_module
        `pycuda.driver`, for calls that are not here; make them inside `current()`.
    lost
        Whether the GPU failed for good; open sessions in a fresh process then.

    Raises
    ------
    EngineError
        If there is no such GPU or it cannot be used.
    MissingDependencyError
        If pycuda is not installed.
    """

    what = "this CUDA session"

    def __init__(self, device: int = 0) -> None:
        self._held = hold_context(device)
        self.driver_module: Any = self._held.driver
        # By id, because resources need not be hashable; in order of creation, for `close`.
        self._resources: dict[int, Closable] = {}
        self._counting = threading.Lock()
        self._closed = False
        self.device_bytes = 0
        self._staged_bytes = 0
        self.pinned = PinnedMemory(self)
        self.name = f"GPU {device}"
        self._current = _Current(self)
        gpu, driver = self._held.device, self.driver_module
        with self.current():
            self.name = str(gpu.name())
            self.capability = "SM{}{}".format(*gpu.compute_capability())
            self.integrated = bool(gpu.get_attribute(driver.device_attribute.INTEGRATED))
            version = int(driver.get_driver_version())
            self.driver = f"{version // 1000}.{version % 1000 // 10}"
            # Two, because uploads run beside kernels only in another stream than theirs.
            self.copies: Any = driver.Stream(NON_BLOCKING)
            self.compute: Any = driver.Stream(NON_BLOCKING)
        # Weakly: a session that nobody refers to any more must not live until the process ends.
        self._held.sessions.add(self)

    @property
    def lost(self) -> bool:
        """Whether the GPU failed for good in this process."""
        return self._held.failure is not None

    @property
    def host_bytes(self) -> int:
        """Pinned and mapped host memory allocated through this session and not freed yet."""
        return self._staged_bytes + self.pinned.nbytes

    def current(self) -> AbstractContextManager[None]:
        """Make the context current in this thread for a with-block; blocks may nest.

        Don't leave a generator suspended inside: pycuda aborts a process whose thread ends with a
        context still current.

        Raises
        ------
        EngineError
            If the session is closed, or a call of pycuda or cuda-bindings fails in the block.
        """
        return self._current

    def device_buffer(
        self, shape: tuple[int, ...], dtype: npt.DTypeLike, *, stream: Any | None = None
    ) -> DeviceBuffer:
        """Allocate device memory for an array, zeroed.

        Parameters
        ----------
        shape, dtype
            Of the array.
        stream
            Where it is zeroed, and which is waited for; None for `compute`.

        Raises
        ------
        EngineError
            If the GPU has not enough memory left.
        """
        with self.current():
            buffer = DeviceBuffer(self, tuple(shape), dtype)
            self.keep(buffer, device_bytes=buffer.nbytes)
            stream = stream or self.compute
            buffer.fill_zero(stream)
            stream.synchronize()
        return buffer

    def staged_buffer(
        self, shape: tuple[int, ...], dtype: npt.DTypeLike, *, mapped: bool | None = None
    ) -> StagedBuffer:
        """Allocate host memory that the GPU can access.

        Parameters
        ----------
        shape, dtype
            Of the array; `upload` and `download` count items along its first axis.
        mapped
            One memory for both sides; None for what suits the GPU: mapped where it is integrated.

        Raises
        ------
        EngineError
            If host or GPU has not enough memory left.
        """
        with self.current():
            buffer = StagedBuffer(
                self,
                tuple(shape),
                dtype,
                mapped=self.integrated if mapped is None else mapped,
            )
            self.keep(
                buffer,
                device_bytes=0 if buffer.mapped else buffer.nbytes,
                host_bytes=buffer.nbytes,
            )
        return buffer

    def stream(self) -> Any:
        """Make another `pycuda.driver.Stream`, for work beside what `compute` does.

        Let go of it inside `releasing()`.
        """
        with self.current():
            return self.driver_module.Stream(NON_BLOCKING)

    def event(self, *, timing: bool = False) -> Any:
        """Make a `pycuda.driver.Event`; without timing it costs less."""
        # Timing makes an event store a time stamp, which the two events of each frame don't need.
        flags = self.driver_module.event_flags
        with self.current():
            return self.driver_module.Event(flags.DEFAULT if timing else flags.DISABLE_TIMING)

    def capture(self, work: Callable[[Any], None]) -> CudaGraph:
        """Record what `work(compute)` puts into the stream `compute`, to be launched as one.

        Run `work` once before and wait for it, because libraries set themselves up at their first
        call. It must neither wait nor take memory.

        Raises
        ------
        EngineError
            If the work cannot be recorded.
        MissingDependencyError
            If cuda-bindings is not installed.
        """
        graph = capture_graph(self, work)
        self.keep(graph)
        return graph

    def module(self, image: bytes) -> Any:
        """Load compiled kernels (cubin, fatbin or PTX): a `pycuda.driver.Module`.

        Raises
        ------
        EngineError
            If the image is not for this GPU.
        """
        with self.current():
            return self.driver_module.module_from_buffer(image)

    def synchronize(self) -> None:
        """Wait until both streams are done.

        Raises
        ------
        EngineError
            If the GPU failed meanwhile.
        """
        with self.current():
            self.copies.synchronize()
            self.compute.synchronize()

    def free_bytes(self) -> tuple[int, int]:
        """Return the GPU's free and whole memory, in bytes."""
        with self.current():
            free, total = self.driver_module.mem_get_info()
        return int(free), int(total)

    def close(self) -> None:
        """Wait for the GPU, then free every graph, buffer and stream; closing again does nothing.

        A GPU that failed is not waited for, and closing never raises because of it. A forked
        child leaves all of it to its parent.
        """
        if self._closed or self.elsewhere:
            return
        # A GPU that failed answers every wait with the same error.
        if not self.lost:
            with contextlib.suppress(EngineError):
                self.synchronize()
        # Graphs go before the buffers that they use: the last made is the first freed.
        for resource in reversed(list(self._resources.values())):
            resource.close()
        with self.releasing():
            del self.copies, self.compute
        self._closed = True

    def __enter__(self) -> CudaSession:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "lost" if self.lost else self.capability
        return f"<CudaSession: {self.name}, {state}>"

    def keep(self, resource: Closable, *, device_bytes: int = 0, host_bytes: int = 0) -> None:
        """Close a resource with the session, unless it closes before."""
        with self._counting:
            self._resources[id(resource)] = resource
            self.device_bytes += device_bytes
            self._staged_bytes += host_bytes

    def forget(self, resource: Closable, *, device_bytes: int = 0, host_bytes: int = 0) -> None:
        """Count a resource as freed; resources call it when they close."""
        with self._counting:
            if self._resources.pop(id(resource), None) is not None:
                self.device_bytes -= device_bytes
                self._staged_bytes -= host_bytes

    @contextmanager
    def releasing(self) -> Iterator[None]:
        """Make the context current for freeing, which a GPU that failed must not stop."""
        driver = self.driver_module
        try:
            # A context is current for one thread, and any thread may use a session: so at each use.
            self._held.context.push()
        except driver.Error:
            # Without its context there is nothing left to free; pycuda drops what it held.
            with contextlib.suppress(driver.Error):
                yield
            return
        try:
            with contextlib.suppress(driver.Error):
                yield
        finally:
            with contextlib.suppress(driver.Error):
                driver.Context.pop()

    def note_failure(self, error: Exception) -> EngineError:
        """Make one sentence of a failed call, and find out whether the GPU still works."""
        driver = self.driver_module
        if isinstance(error, driver.MemoryError):
            return EngineError(
                f"{self.name} has not enough memory left ({error}); take smaller batches or stop "
                "other processes on it"
            )
        try:
            # Errors of a call go with it; those of the GPU stay, and any later call shows them.
            driver.Context.synchronize()
        except driver.Error:
            self._held.failure = str(error)
            return EngineError(f"{self.name} failed ({error}); start the process again")
        return EngineError(f"{self.name} rejected a call ({error})")


class _Current:
    """The with-block of `CudaSession.current`; it has no state, so that blocks may nest."""

    def __init__(self, session: CudaSession) -> None:
        self._session = session

    def __enter__(self) -> None:
        session = self._session
        session.require_own_process()
        if session._closed:
            raise EngineError(f"this CUDA session on {session.name} is closed; open another")
        try:
            session._held.context.push()
        except session.driver_module.Error as error:
            session._held.failure = str(error)
            raise EngineError(
                f"{session.name} failed ({error}); start the process again"
            ) from error

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        session = self._session
        driver = session.driver_module
        failure = None
        if error is not None and isinstance(error, (driver.Error, CudaCallError)):
            failure = session.note_failure(error)
        try:
            driver.Context.pop()
        except driver.Error as second:
            failure = failure or session.note_failure(second)
        if failure is not None:
            raise failure from error
