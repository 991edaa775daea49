"""Frames to peak positions on a GPU: copy, kernels, network and decoding as one CUDA graph."""

from __future__ import annotations

import contextlib
import logging
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from edgexnas.bragg import PATCH_SIZE, Peaks
from edgexnas.device.engines.engine_cache import EngineCache, default_cache_folder
from edgexnas.device.kernels.peak_kernels import HEADER_ITEMS, NO_BAD_PIXEL, PeakKernels
from edgexnas.errors import (
    ConfigurationError,
    EngineError,
    InputError,
    MissingDependencyError,
)

if TYPE_CHECKING:
    from edgexnas.device.cuda import CudaGraph, StagedBuffer
    from edgexnas.device.engines.device_engine import DeviceEngine
    from edgexnas.peak_finding import PeakFinder

__all__ = ["FramePipeline", "open_frame_pipeline"]

SLOTS = 2
LEAST_ROOM = 512
ROOM_FACTOR = 2
"""The network runs for 512, 1,024, 2,048, ... peaks: as few as the last frames needed."""

LARGE_BYTES = 1 << 20
"""Frames from here on are copied by several threads, because one core cannot fill the bus."""

Frame = npt.NDArray[Any]

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Slot:
    """One frame's place: where the host writes it, and where the GPU writes its peaks."""

    frame: StagedBuffer
    outputs: dict[str, StagedBuffer]
    uploaded: Any
    done: Any
    graphs: dict[int, CudaGraph] = field(default_factory=dict)
    room: int = 0
    number: int = 0


class FramePipeline:
    """Find the peaks of frames and predict their positions, with two frames in flight.

    While the GPU works on one frame the next is copied to it. The host memory of each frame is
    pinned, or mapped where CPU and GPU share memory; positions are written to mapped host memory.

    ::

        pipeline.submit(frames[0])
        for frame in frames[1:]:
            pipeline.submit(frame)
            use(pipeline.result())
        use(pipeline.result())

    Parameters
    ----------
    engine
        The network, on the GPU.
    finder
        The rules, the background and the mask.
    dtype
        Of the frames.
    levels
        The network's quantile levels.
    cache
        Where compiled kernels are kept; None for nowhere.
    graph
        Whether the work is recorded once and replayed as a CUDA graph.
    copy_threads
        Threads that copy frames to pinned memory; None for up to 4, one for each core. Frames
        written to `next_frame()` need none.

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
        finder: PeakFinder,
        dtype: npt.DTypeLike,
        *,
        levels: Sequence[float],
        cache: EngineCache | None = None,
        graph: bool = True,
        copy_threads: int | None = None,
    ) -> None:
        self._engine = engine
        self._session = engine.session
        self._shape = finder.shape
        self._levels = len(levels)
        self._middle = int(np.argmin(np.abs(np.asarray(levels) - 0.5)))
        self._rooms = _rooms(finder.settings.capacity)
        self._room = self._rooms[0]
        self._dtype = np.dtype(dtype)
        self._slots: list[_Slot] = []
        self._free: deque[_Slot] = deque()
        self._flying: deque[_Slot] = deque()
        self._closed = False
        self._copiers: ThreadPoolExecutor | None = None
        threads = min(4, os.cpu_count() or 1) if copy_threads is None else copy_threads
        if threads > 1:
            # This thread copies too; the others start with the first large frame.
            self._copiers = ThreadPoolExecutor(threads - 1, "edgexnas-copy")
        self._parts = threads
        self._kernels = PeakKernels(self._session, finder, dtype, spare=engine.batch, cache=cache)
        try:
            offsets = (finder.settings.capacity + engine.batch, *engine.output_shape)
            self._offsets = self._session.device_buffer(offsets, np.float32)
            for _ in range(SLOTS):
                self._slots.append(self._slot(finder.settings.capacity))
                self._prepare(self._slots[-1], graph)
        except BaseException:
            self.close()
            raise
        self._free.extend(self._slots)

    @property
    def in_flight(self) -> int:
        """Number of frames submitted whose peaks have not been taken."""
        return len(self._flying)

    def next_frame(self) -> Frame:
        """Give the memory of the next frame, to be written in place before `submit`.

        Raises
        ------
        EngineError
            If every slot is in flight, or the pipeline is closed.
        """
        if not self._free:
            raise EngineError(
                "this pipeline is closed; open another"
                if self._closed
                else f"all {SLOTS} frames are in flight; take a result first"
            )
        return self._free[0].frame.array

    def submit(self, frame: Frame | None = None, *, number: int = 0) -> None:
        """Start work on a frame; returns before it is done.

        Parameters
        ----------
        frame
            (H, W) of the pipeline's dtype, copied; None for what is in `next_frame()`.
        number
            Number of the frame in its series.

        Raises
        ------
        InputError
            If shape or dtype are others.
        EngineError
            If every slot is in flight, the pipeline is closed, or the GPU fails.
        """
        memory = self.next_frame()
        if frame is not None:
            if frame.shape != self._shape or frame.dtype != self._dtype:
                raise InputError(
                    f"the frame has shape {frame.shape} and dtype {frame.dtype}; this pipeline "
                    f"takes {self._shape} and {self._dtype}"
                )
            self._copy(frame, memory)
        slot, session = self._free[0], self._session
        slot.room, slot.number = self._room, number
        with session.current():
            slot.frame.upload(session.copies)
            slot.uploaded.record(session.copies)
            session.compute.wait_for_event(slot.uploaded)
            self._launch(slot)
        self._flying.append(self._free.popleft())

    def result(self) -> Peaks:
        """Wait for the oldest frame submitted and give its peaks.

        Raises
        ------
        InputError
            If a usable pixel of the frame is NaN or infinite.
        EngineError
            If nothing is in flight, or the GPU fails.
        """
        if not self._flying:
            raise EngineError("nothing is in flight; submit a frame first")
        slot = self._flying[0]
        with self._session.current():
            slot.done.synchronize()
            found, kept, bad = self._header(slot)
            if kept > slot.room:
                # The frame held far more peaks than those before it: once more, with room.
                slot.room = self._room_for(kept)
                self._launch(slot)
                slot.done.synchronize()
        self._free.append(self._flying.popleft())
        # Less room only where far less is needed, so that it does not change with each frame.
        if kept > self._room or 2 * kept <= self._room:
            self._room = self._room_for(kept + kept // 4)
        if bad != NO_BAD_PIXEL:
            row, col = divmod(bad, self._shape[1])
            raise InputError(
                f"pixel (row {row}, col {col}) of the frame is NaN or infinite; "
                "mask it or set it to 0"
            )
        arrays = {name: buffer.array[:kept].copy() for name, buffer in slot.outputs.items()}
        return Peaks(
            positions_px=arrays["positions"],
            intervals_px=arrays["intervals"],
            quantiles_px=arrays["quantiles"],
            maxima=arrays["maxima"],
            intensities=arrays["intensities"],
            flags=arrays["flags"],
            frame_number=slot.number,
            overflow=found - kept,
        )

    def process(self, frame: Frame, *, number: int = 0) -> Peaks:
        """Find the peaks of one frame and wait for them; see `submit` and `result`."""
        self.submit(frame, number=number)
        return self.result()

    def close(self) -> None:
        """Wait for the GPU and free all memory but the engine's; closing again does nothing."""
        if self._closed:
            return
        self._closed = True
        if self._copiers is not None:
            self._copiers.shutdown()
        session = self._session
        if not session.lost:
            # A GPU that fails is not waited for; what it held is freed all the same.
            with contextlib.suppress(EngineError):
                session.synchronize()
        self._free.clear()
        self._flying.clear()
        while self._slots:
            slot = self._slots.pop()
            for graph in slot.graphs.values():
                graph.close()
            for buffer in (slot.frame, *slot.outputs.values()):
                buffer.close()
            with session.releasing():
                slot.uploaded = slot.done = None
        self._kernels.close()
        if hasattr(self, "_offsets"):
            self._offsets.close()

    def _copy(self, frame: Frame, memory: Frame) -> None:
        if self._copiers is None or frame.nbytes < LARGE_BYTES:
            np.copyto(memory, frame)
            return
        edges = np.linspace(0, len(frame), self._parts + 1).astype(int).tolist()
        parts = [slice(low, high) for low, high in pairwise(edges)]
        others = [self._copiers.submit(np.copyto, memory[part], frame[part]) for part in parts[1:]]
        np.copyto(memory[parts[0]], frame[parts[0]])
        for other in others:
            other.result()

    def _slot(self, capacity: int) -> _Slot:
        session = self._session
        layouts: dict[str, tuple[tuple[int, ...], npt.DTypeLike]] = {
            "positions": ((capacity, 2), np.float32),
            "intervals": ((capacity, 2), np.float32),
            "quantiles": ((capacity, 2, self._levels), np.float32),
            "maxima": ((capacity, 2), np.int32),
            "intensities": ((capacity,), np.float32),
            "flags": ((capacity,), np.uint8),
            "header": ((HEADER_ITEMS,), np.int32),
        }
        # Mapped everywhere: only the peaks that a frame has are written, whatever the capacity.
        outputs = {
            name: session.staged_buffer(*layout, mapped=True) for name, layout in layouts.items()
        }
        frame = session.staged_buffer(self._shape, self._dtype)
        return _Slot(frame, outputs, session.event(), session.event())

    def _prepare(self, slot: _Slot, graph: bool) -> None:
        """Run the work once on an empty frame, and record it for each room."""
        session = self._session
        with session.current():
            slot.frame.upload(session.compute)
            for room in self._rooms:
                self._work(slot, room, session.compute)
            session.compute.synchronize()
            for room in self._rooms if graph else ():
                slot.graphs[room] = session.capture(self._recorded(slot, room))

    def _recorded(self, slot: _Slot, room: int) -> Callable[[Any], None]:
        return lambda stream: self._work(slot, room, stream)

    def _work(self, slot: _Slot, room: int, stream: Any) -> None:
        """Put into the stream what leads from the slot's frame to its outputs."""
        self._kernels.enqueue_find(slot.frame.pointer, stream)
        batch, engine = self._engine.batch, self._engine
        input_bytes = 4 * PATCH_SIZE**2
        output_bytes = 4 * int(np.prod(engine.output_shape))
        for start in range(0, room, batch):
            engine.enqueue(
                self._kernels.scaled.pointer + start * input_bytes,
                self._offsets.pointer + start * output_bytes,
                min(batch, room - start),
                stream,
            )
        pointers = {name: buffer.pointer for name, buffer in slot.outputs.items()}
        self._kernels.enqueue_decode(
            self._offsets.pointer, self._levels, self._middle, pointers, stream
        )

    def _launch(self, slot: _Slot) -> None:
        graph = slot.graphs.get(slot.room)
        if graph is None:
            self._work(slot, slot.room, self._session.compute)
        else:
            graph.launch()
        slot.done.record(self._session.compute)

    def _header(self, slot: _Slot) -> tuple[int, int, int]:
        found, kept, bad = slot.outputs["header"].array.tolist()
        return found, kept, bad

    def _room_for(self, count: int) -> int:
        return next((room for room in self._rooms if room >= count), self._rooms[-1])


def open_frame_pipeline(
    engine: DeviceEngine,
    finder: PeakFinder,
    dtype: npt.DTypeLike,
    *,
    levels: Sequence[float],
    cache: str | os.PathLike[str] | Literal[False] | None = None,
) -> FramePipeline | None:
    """Open a pipeline; None, with a warning that says why, where frames must stay on the CPU.

    Parameters
    ----------
    engine, finder, dtype, levels
        As of `FramePipeline`.
    cache
        Folder where compiled kernels are kept, None for the usual one, False for none.

    Raises
    ------
    EngineError
        If the GPU failed for good.
    """
    try:
        kept = None
        if cache is not False:
            kept = EngineCache(default_cache_folder() if cache is None else Path(cache))
        return FramePipeline(engine, finder, dtype, levels=levels, cache=kept)
    except (EngineError, ConfigurationError, MissingDependencyError) as error:
        if engine.session.lost:
            raise
        _log.warning("peaks are found on the CPU, because %s", error)
        return None


def _rooms(capacity: int) -> tuple[int, ...]:
    """For how many peaks the network can run: a few numbers up to the capacity."""
    rooms = []
    room = LEAST_ROOM
    while room < capacity:
        rooms.append(room)
        room *= ROOM_FACTOR
    return (*rooms, capacity)
