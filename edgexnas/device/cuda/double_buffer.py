"""Two slots in turn: while the GPU works on one frame, the next one is copied to it."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgexnas.device.cuda.host_copy import HostCopy
from edgexnas.errors import EngineError, InputError

if TYPE_CHECKING:
    from edgexnas.device.cuda.buffers import StagedBuffer
    from edgexnas.device.cuda.graph import CudaGraph
    from edgexnas.device.cuda.session import CudaSession

__all__ = ["DoubleBuffer", "Slot"]

Array = npt.NDArray[Any]
Layout = tuple[tuple[int, ...], npt.DTypeLike]


@dataclass(slots=True, eq=False)
class Slot:
    """One frame's place on host and device.

    Attributes
    ----------
    number
        From 0; work that needs memory of its own for each slot finds it by this.
    input
        Where the host writes and the device reads.
    outputs
        Where the device writes and the host reads, by name.
    size
        For how much the work is: one of the double buffer's `sizes`.
    """

    number: int
    input: StagedBuffer
    outputs: Mapping[str, StagedBuffer]
    size: int = 0
    _frame: Array | None = None
    _uploaded: Any = None
    _done: Any = None
    _graphs: dict[int, CudaGraph] = field(default_factory=dict)


class DoubleBuffer:
    """Upload on one stream while the other one computes, with CUDA graphs for each slot.

    ::

        buffer = DoubleBuffer(session, (shape, np.uint16), {"sums": ((8,), np.float32)}, work)
        buffer.submit(first)
        for frame in others:
            buffer.submit(frame)
            use(buffer.result()["sums"])
        use(buffer.result()["sums"])

    Parameters
    ----------
    session
        The session whose streams are used.
    inputs
        Shape and dtype of what is submitted.
    outputs
        Shape and dtype of each result.
    work
        `work(slot, stream)` puts into the stream what leads from `slot.input.pointer` to
        `slot.outputs[...]`, for `slot.size`, downloads included; it neither waits nor takes
        memory.
    sizes
        The sizes that `work` is recorded for; `submit` chooses one.
    graph
        Whether `work` is recorded once for each slot and size and launched as a CUDA graph.
    mapped_outputs
        Whether the device writes results into host memory directly: right where few bytes of
        large outputs are written. None for what suits the GPU.
    copy_threads
        Threads that copy frames; None for one a core, up to 4.
    slots
        Number of frames that may be in flight.

    Raises
    ------
    EngineError
        If the GPU has not enough memory, or the work cannot be recorded.
    MissingDependencyError
        If `graph` is requested and cuda-bindings is not installed.
    """

    def __init__(
        self,
        session: CudaSession,
        inputs: Layout,
        outputs: Mapping[str, Layout],
        work: Callable[[Slot, Any], None],
        *,
        sizes: Sequence[int] = (0,),
        graph: bool = True,
        mapped_outputs: bool | None = None,
        copy_threads: int | None = None,
        slots: int = 2,
    ) -> None:
        self._session = session
        self._work = work
        self._sizes = tuple(sizes)
        self._copy = HostCopy(copy_threads)
        self._free: deque[Slot] = deque()
        self._flying: deque[Slot] = deque()
        self._closed = False
        # Memory is taken here alone, so that no frame waits for an allocation.
        self.slots: list[Slot] = []
        try:
            for number in range(slots):
                slot = self._slot(number, inputs, outputs, mapped_outputs)
                self.slots.append(slot)
                self._prepare(slot, graph)
        except BaseException:
            self.close()
            raise
        self._free.extend(self.slots)

    def _slot(
        self, number: int, inputs: Layout, outputs: Mapping[str, Layout], mapped: bool | None
    ) -> Slot:
        session = self._session
        return Slot(
            number,
            session.staged_buffer(*inputs),
            {
                name: session.staged_buffer(*layout, mapped=mapped)
                for name, layout in outputs.items()
            },
            _uploaded=session.event(),
            _done=session.event(),
        )

    def _prepare(self, slot: Slot, graph: bool) -> None:
        """Run the work once on zeros, so that whatever it sets up is there; then record it."""
        session = self._session
        with session.current():
            slot.input.upload(session.compute)
            for slot.size in self._sizes:
                self._work(slot, session.compute)
            session.compute.synchronize()
            for slot.size in self._sizes if graph else ():
                slot._graphs[slot.size] = session.capture(lambda stream: self._work(slot, stream))

    @property
    def in_flight(self) -> int:
        """Number of frames submitted whose result has not been taken."""
        return len(self._flying)

    def next_input(self) -> Array:
        """Return the host memory of the next frame, to be written in place before `submit`.

        Raises
        ------
        EngineError
            If every slot is in flight (take a result first), or it is closed.
        """
        if not self._free:
            raise EngineError(
                "this double buffer is closed; open another"
                if self._closed
                else f"all {len(self.slots)} frames are in flight; take a result first"
            )
        return self._free[0].input.array

    def submit(
        self,
        frame: npt.ArrayLike | None = None,
        *,
        size: int | None = None,
        count: int | None = None,
    ) -> Slot:
        """Start work on one frame; returns before it is done.

        Parameters
        ----------
        frame
            In pinned memory of the session (`CudaSession.pinned`, C-contiguous): uploaded from
            where it lies, and not to be written to until its result is taken. Any other is copied
            into the slot's host memory, and on to the device part by part. None for what is in
            `next_input()`.
        size
            One of `sizes`; None for the first.
        count
            How many of the items of `next_input()`, along its first axis, are copied to the
            device; None for all.

        Returns
        -------
        The slot that the frame is in until `release`.

        Raises
        ------
        EngineError
            If every slot is in flight (take a result first), it is closed, or the GPU fails.
        InputError
            If the frame has another shape or dtype.
        """
        memory, session = self.next_input(), self._session
        slot = self._free[0]
        slot.size = self._sizes[0] if size is None else size
        if frame is None:
            with session.current():
                slot.input.upload(session.copies, count)
                return self._start(slot)
        given = np.asarray(frame)
        # A graph holds sizes as they were recorded; another dtype would be read as garbage.
        if given.shape != memory.shape or given.dtype != memory.dtype:
            raise InputError(
                f"the frame has shape {given.shape} and dtype {given.dtype}; "
                f"expected {memory.shape} and {memory.dtype}"
            )
        block = session.pinned.find(given)
        with session.current():
            if block is not None:
                # The GPU reads it later, so that it must not go before.
                slot._frame = given
                slot.input.upload_from(given, block, session.copies)
                return self._start(slot)
            # One part is uploaded while the next is copied; closed, so that no thread reads the
            # frame after.
            with contextlib.closing(self._copy.parts(given, memory)) as parts:
                for part in parts:
                    slot.input.upload(session.copies, part.stop, start=part.start)
            return self._start(slot)

    def _start(self, slot: Slot) -> Slot:
        session = self._session
        # The two streams meet here alone: this upload runs beside the previous frame's kernels.
        slot._uploaded.record(session.copies)
        session.compute.wait_for_event(slot._uploaded)
        self._launch(slot)
        # Moved only now: a submit that raised leaves its slot free, with nothing in flight.
        self._flying.append(self._free.popleft())
        return slot

    def _launch(self, slot: Slot) -> None:
        graph = slot._graphs.get(slot.size)
        if graph is None:
            self._work(slot, self._session.compute)
        else:
            graph.launch()
        # One event a slot: waiting for a frame must not wait for the one submitted after it.
        slot._done.record(self._session.compute)

    def oldest(self) -> Slot:
        """Return the slot of the oldest frame submitted, which may not be done yet.

        Raises
        ------
        EngineError
            If nothing is in flight.
        """
        if not self._flying:
            raise EngineError("nothing is in flight; submit a frame first")
        return self._flying[0]

    def wait(self, slot: Slot | None = None) -> Slot:
        """Wait for a frame submitted, the oldest by default; it stays in flight until `release`.

        Raises
        ------
        EngineError
            If it is not in flight, or the GPU fails.
        """
        slot = self._in_flight(slot)
        with self._session.current():
            slot._done.synchronize()
        return slot

    def repeat(self, size: int, slot: Slot | None = None) -> Slot:
        """Work on a frame submitted once more, for another size, and wait for it.

        Raises
        ------
        EngineError
            If it is not in flight, or the GPU fails.
        """
        slot = self.wait(slot)
        slot.size = size
        with self._session.current():
            self._launch(slot)
        return self.wait(slot)

    def release(self, slot: Slot | None = None) -> None:
        """Return the slot of a frame, the oldest by default, to another `submit`.

        Raises
        ------
        EngineError
            If it is not in flight.
        """
        slot = self._in_flight(slot)
        self._flying.remove(slot)
        # Its memory may be written to again, so that a lent frame goes back to its pool.
        slot._frame = None
        self._free.append(slot)

    def _in_flight(self, slot: Slot | None) -> Slot:
        if slot is None:
            return self.oldest()
        if slot not in self._flying:
            raise EngineError(
                "this double buffer is closed; open another"
                if self._closed
                else "this frame is not in flight; submit it first"
            )
        return slot

    def result(self) -> dict[str, Array]:
        """Wait for the oldest frame submitted and give its results.

        Returns
        -------
        Views of the slot's host memory, by name; the next `submit` may overwrite them.

        Raises
        ------
        EngineError
            If nothing is in flight, or the GPU fails.
        """
        slot = self.wait()
        self.release()
        return {name: buffer.array for name, buffer in slot.outputs.items()}

    def close(self) -> None:
        """Wait for the GPU and free all memory; closing again does nothing."""
        if self._closed:
            return
        self._closed = True
        # First, because its threads write to the slots' memory.
        self._copy.close()
        session = self._session
        if not session.lost:
            # A GPU that fails is not waited for; what it held is freed all the same.
            with contextlib.suppress(EngineError):
                session.synchronize()
        self._free.clear()
        self._flying.clear()
        while self.slots:
            slot = self.slots.pop()
            for graph in slot._graphs.values():
                graph.close()
            for buffer in (slot.input, *slot.outputs.values()):
                buffer.close()
            slot._frame = None
            with session.releasing():
                slot._uploaded = slot._done = None
