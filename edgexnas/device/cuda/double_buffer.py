"""Two slots in turn: while the GPU works on one frame, the next one is copied to it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

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
    """

    number: int
    input: StagedBuffer
    outputs: Mapping[str, StagedBuffer]
    _uploaded: Any
    _done: Any
    _graph: CudaGraph | None = None


class DoubleBuffer:
    """Upload on one stream while the other one computes, with one CUDA graph for each slot.

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
        `slot.outputs[...]`, downloads included; it neither waits nor takes memory.
    graph
        Whether `work` is recorded once for each slot and launched as a CUDA graph.
    slots
        Number of frames that may be in flight.

    Raises
    ------
    EngineError
        If the GPU has not enough memory, or the work cannot be recorded.
    MissingDependencyError
        If `graph` is asked for and cuda-bindings is not installed.
    """

    def __init__(
        self,
        session: CudaSession,
        inputs: Layout,
        outputs: Mapping[str, Layout],
        work: Callable[[Slot, Any], None],
        *,
        graph: bool = True,
        slots: int = 2,
    ) -> None:
        self._session = session
        self._work = work
        self._free: deque[Slot] = deque()
        self._flying: deque[Slot] = deque()
        self._slots: list[Slot] = []
        try:
            for number in range(slots):
                self._slots.append(self._slot(number, inputs, outputs))
                self._prepare(self._slots[-1], graph)
        except BaseException:
            self.close()
            raise
        self._free.extend(self._slots)

    def _slot(self, number: int, inputs: Layout, outputs: Mapping[str, Layout]) -> Slot:
        session = self._session
        return Slot(
            number,
            session.staged_buffer(*inputs),
            {name: session.staged_buffer(*layout) for name, layout in outputs.items()},
            session.event(),
            session.event(),
        )

    def _prepare(self, slot: Slot, graph: bool) -> None:
        """Run the work once on zeros, so that whatever it sets up is there; then record it."""
        session = self._session
        with session.current():
            slot.input.upload(session.compute)
            self._work(slot, session.compute)
            session.compute.synchronize()
            if graph:
                slot._graph = session.capture(lambda stream: self._work(slot, stream))

    @property
    def in_flight(self) -> int:
        """Number of frames submitted whose result has not been taken."""
        return len(self._flying)

    def submit(
        self, array: npt.ArrayLike | None = None, *, fill: Callable[[Array], None] | None = None
    ) -> None:
        """Start work on one frame; returns before it is done.

        Parameters
        ----------
        array
            The frame, copied into the slot's host memory.
        fill
            Instead of `array`: called with that memory, to write the frame in place.

        Raises
        ------
        EngineError
            If every slot is in flight (take a result first), it is closed, or the GPU fails.
        InputError
            If the frame has another shape or dtype.
        """
        if not self._free:
            raise EngineError(
                f"all {len(self._slots)} slots are in flight or closed; take a result first"
            )
        slot = self._free[0]
        if fill is not None:
            fill(slot.input.array)
        else:
            frame, place = np.asarray(array), slot.input
            if frame.shape != place.shape or frame.dtype != place.dtype:
                raise InputError(
                    f"a slot for {place.dtype} {place.shape} got {frame.dtype} {frame.shape}"
                )
            place.array[...] = frame
        session = self._session
        with session.current():
            slot.input.upload(session.copies)
            slot._uploaded.record(session.copies)
            session.compute.wait_for_event(slot._uploaded)
            if slot._graph is not None:
                slot._graph.launch()
            else:
                self._work(slot, session.compute)
            slot._done.record(session.compute)
        self._flying.append(self._free.popleft())

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
        if not self._flying:
            raise EngineError("nothing is in flight; submit a frame first")
        slot = self._flying[0]
        with self._session.current():
            slot._done.synchronize()
        self._free.append(self._flying.popleft())
        return {name: buffer.array for name, buffer in slot.outputs.items()}

    def close(self) -> None:
        """Wait for the GPU and free all memory; closing again does nothing."""
        if not self._session.lost and self._flying:
            with self._session.current():
                self._session.compute.synchronize()
        self._free.clear()
        self._flying.clear()
        while self._slots:
            slot = self._slots.pop()
            if slot._graph is not None:
                slot._graph.close()
            for buffer in (slot.input, *slot.outputs.values()):
                buffer.close()
            with self._session.releasing():
                slot._uploaded = slot._done = None
