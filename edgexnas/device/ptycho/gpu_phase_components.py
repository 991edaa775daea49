"""Phase components on a GPU: weighing, fitting and adding for many patches by one launch."""

from __future__ import annotations

import cmath
import contextlib
import math
import weakref
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from edgexnas.device.kernels.object_kernels import CanvasMemory, ObjectKernels
from edgexnas.device.ptycho.phase_components import (
    LEAST_OVERLAP,
    Extent,
    HostComponents,
    PhaseComponent,
    PhaseComponents,
    Position,
)
from edgexnas.errors import EngineError
from edgexnas.ptycho import PATTERN_SIZE, FloatArray, ObjectCanvas, ObjectImage

if TYPE_CHECKING:
    from edgexnas.device.cache import EngineCache
    from edgexnas.device.cuda import CudaSession

__all__ = ["GpuComponents"]

COMPARE_ONLY = 2.0
"""An overlap that no patch has, so that none is added."""

Queue = list[tuple[Position, Extent]]
"""Positions of patches, and the whole pixels that each covers."""

PATCH_BYTES = 2 * PATTERN_SIZE**2 * 4


@dataclass(frozen=True, slots=True)
class QueuedPatch:
    """A weighted patch in device memory, and by which number on the circle it is turned.

    Attributes
    ----------
    index
        Of the patch among those queued.
    position
        (row, col) of its first pixel in object pixels.
    turn
        What its values are multiplied by.
    """

    index: int
    position: Position
    turn: complex = 1.0

    def turned(self, phase_rad: float) -> QueuedPatch:
        """Add a constant to the phase."""
        return QueuedPatch(self.index, self.position, self.turn * cmath.exp(1j * phase_rad))


class GpuCanvas:
    """A canvas in device memory; see `edgexnas.ptycho.ObjectCanvas`."""

    def __init__(self, memory: _Memory, shape: tuple[int, int], origin_px: tuple[int, int]) -> None:
        self._memory = memory
        self._origin = origin_px
        self._take(shape)
        memory.canvases.add(self)

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) in object pixels."""
        return self._where.height, self._where.width

    @property
    def origin_px(self) -> tuple[int, int]:
        """(row, col) of the first pixel in the coordinates of the positions."""
        return self._origin

    def add_spread(self, patch: QueuedPatch) -> None:
        """Add a patch that lies on the canvas as a whole."""
        memory = self._memory
        with memory.session.current():
            memory.upload_places([patch.position], self._origin)
            memory.kernels.enqueue_add(
                memory.weighted_at(patch.index), memory.places.pointer, patch.turn, self._where,
                memory.stream,
            )  # fmt: skip
            # The next patch's place is written where this one's is read.
            memory.stream.synchronize()

    def compare(self, patch: QueuedPatch) -> tuple[complex, float]:
        """Compare a patch, which may reach over the canvas, with what is there."""
        self._fit(patch.index, [patch.position], COMPARE_ONLY)
        # Waits: which phase component a patch belongs to is decided on the host.
        _, real, imaginary, overlap = self._memory.reported()
        return complex(real, imaginary), overlap

    def start_to_fit(self, first: int, positions: list[Position]) -> None:
        """Begin to add queued patches, turned to fit, until one overlaps too little.

        `added` waits for it and gives their number; nothing else is done with the canvas before.

        Parameters
        ----------
        first
            Index of the first among those queued.
        positions
            Of them all; they lie on the canvas as a whole.
        """
        self._fit(first, positions, LEAST_OVERLAP)

    def added(self) -> int:
        """Wait for `start_to_fit` and give the number of patches added."""
        return int(self._memory.reported()[0])

    def extend(self, before: tuple[int, int], after: tuple[int, int]) -> None:
        """Put (rows, cols) of empty pixels before the first and after the last pixel."""
        (height, width), old, buffers = self.shape, self._where, (self._sums, self._weights)
        self._take((height + before[0] + after[0], width + before[1] + after[1]))
        self._origin = self._origin[0] - before[0], self._origin[1] - before[1]
        # A copy of what there was: growing in place is not possible in device memory.
        self._absorb(old, before, 0.0)
        for buffer in buffers:
            buffer.close()

    def absorb(self, other: GpuCanvas, turn_rad: float) -> None:
        """Add what lies here of another canvas, after its phase is turned by a constant."""
        (row, col), (own_row, own_col) = other._origin, self._origin
        self._absorb(other._where, (row - own_row, col - own_col), turn_rad)

    def image(self) -> ObjectImage:
        """Return the object as it stands now."""
        memory, session, shape = self._memory, self._memory.session, self.shape
        with ExitStack() as opened:
            values = session.device_buffer(shape, np.complex64, stream=memory.stream)
            opened.callback(values.close)
            coverage = session.device_buffer(shape, np.float32, stream=memory.stream)
            opened.callback(coverage.close)
            with session.current():
                memory.kernels.enqueue_finish(
                    self._where, values.pointer, coverage.pointer, memory.stream
                )
            return ObjectImage(
                values.download(memory.stream), coverage.download(memory.stream), 0, self._origin
            )

    def to_host(self) -> ObjectCanvas:
        """Copy the canvas to host memory."""
        stream = self._memory.stream
        return ObjectCanvas.of(
            self._sums.download(stream), self._weights.download(stream), self._origin
        )

    def close(self) -> None:
        """Free the canvas; closing again does nothing."""
        self._memory.canvases.discard(self)
        self._sums.close()
        self._weights.close()

    def _take(self, shape: tuple[int, int]) -> None:
        """Take memory of this shape; if there is not enough, what there was stays as it is."""
        session, stream = self._memory.session, self._memory.stream
        sums = session.device_buffer(shape, np.complex128, stream=stream)
        try:
            self._weights = session.device_buffer(shape, np.float64, stream=stream)
        except BaseException:
            sums.close()
            raise
        self._sums = sums
        self._where = CanvasMemory(*shape, sums.pointer, self._weights.pointer)

    def _fit(self, first: int, positions: list[Position], least: float) -> None:
        memory = self._memory
        with memory.session.current():
            memory.upload_places(positions, self._origin)
            memory.kernels.enqueue_fit(
                memory.weighted_at(first), memory.places.pointer, len(positions), self._where,
                memory.report.pointer, memory.stream, least=least,
            )  # fmt: skip

    def _absorb(self, other: CanvasMemory, offset: tuple[int, int], turn_rad: float) -> None:
        memory = self._memory
        turn = complex(math.cos(turn_rad), math.sin(turn_rad))
        with memory.session.current():
            memory.kernels.enqueue_absorb(other, offset, turn, self._where, memory.stream)
            # Whoever is absorbed may be freed next.
            memory.stream.synchronize()


class _Memory:
    """Stream, kernels and memory of all canvases of one object."""

    def __init__(self, session: CudaSession, most: int, cache: EngineCache | None) -> None:
        self.session = session
        self.canvases: set[GpuCanvas] = set()
        self._opened = ExitStack()
        try:
            self.stream = session.stream()
            self.kernels = ObjectKernels(session, cache=cache)
            self._opened.callback(self.kernels.close)
            shape = (most, 2, PATTERN_SIZE, PATTERN_SIZE)
            # One is written to while the other is copied and worked on.
            self.patches, self._others = (session.staged_buffer(shape, np.float32) for _ in "ab")
            self._opened.callback(self.patches.close)
            self._opened.callback(self._others.close)
            self.places = session.staged_buffer((most, 4), np.float64)
            self._opened.callback(self.places.close)
            # Mapped: four numbers are read at once, where a copy would be one more call.
            self.report = session.staged_buffer((4,), np.float64, mapped=True)
            self._opened.callback(self.report.close)
            self._weighted = session.device_buffer(shape, np.float32)
            self._opened.callback(self._weighted.close)
        except BaseException:
            self.close()
            raise

    def weighted_at(self, index: int) -> int:
        """Device address of a queued patch, weighted."""
        return int(self._weighted.pointer) + index * PATCH_BYTES

    def weigh(self, number: int) -> None:
        """Put into the stream: copy and weigh the patches queued in `patches`, which changes."""
        with self.session.current():
            self.patches.upload(self.stream, number)
            self.kernels.enqueue_weigh(
                self.patches.pointer, number, self._weighted.pointer, self.stream
            )
        # The next patches are written beside the copy of these; `_settle` waits before the third.
        self.patches, self._others = self._others, self.patches

    def reported(self) -> list[float]:
        """Wait for what is in the stream and give the last report."""
        with self.session.current():
            self.stream.synchronize()
        return list(self.report.array.tolist())

    def upload_places(self, positions: list[Position], origin_px: tuple[int, int]) -> None:
        """Put into the stream: copy where patches lie on a canvas."""
        # Apart and in float64: large coordinates leave float32 too few digits of the fraction.
        whole, part = np.floor(positions), np.remainder(positions, 1)
        places = self.places.array[: len(positions)]
        places[:, :2], places[:, 2:] = whole - origin_px, part
        self.places.upload(self.stream, len(positions))

    def close(self) -> None:
        """Free everything; closing again does nothing."""
        if not self.session.lost and hasattr(self, "stream"):
            # A GPU that fails is not waited for; what it held is freed all the same.
            with contextlib.suppress(EngineError), self.session.current():
                self.stream.synchronize()
        for canvas in list(self.canvases):
            canvas.close()
        self._opened.close()
        with self.session.releasing():
            self.__dict__.pop("stream", None)


class _Running(NamedTuple):
    """Pending kernel launch: patches from `at` on fitted to a phase component."""

    queue: Queue
    at: int
    home: PhaseComponent[QueuedPatch]
    run: Queue


class GpuComponents(PhaseComponents[QueuedPatch]):
    """Phase components in device memory.

    Patches are queued. Once many are, or something is asked, they are copied to the device and
    weighed together; as long as they lie on one component, one launch fits and adds them all.

    They have a stream of their own, and may be used beside an engine on the same GPU.

    Parameters
    ----------
    session
        The session to run in.
    most
        Patches that are worked on together.
    cache
        Where compiled kernels are kept; None for nowhere.

    Raises
    ------
    EngineError
        If the kernels cannot be compiled, or the GPU has not enough memory.
    """

    def __init__(
        self, session: CudaSession, *, most: int = 32, cache: EngineCache | None = None
    ) -> None:
        super().__init__()
        self._most = most
        self._memory = _Memory(session, most, cache)
        # Who drops a scan half way need not know that it was on a GPU.
        self._release = weakref.finalize(self, self._memory.close)
        self._release.atexit = False
        self._queue: Queue = []
        self._running: _Running | None = None

    def add(
        self, amplitude: FloatArray, phase_rad: FloatArray, position: Position, extent: Extent
    ) -> None:
        """Stitch a patch, now or later; see `PhaseComponents.add`.

        Raises
        ------
        EngineError
            If the GPU fails, has not enough memory, or these are closed.
        """
        self._require_open()
        place = self._memory.patches.array[len(self._queue)]
        place[0], place[1] = amplitude, phase_rad
        self._queue.append((position.copy(), extent))
        if len(self._queue) == self._most:
            self._settle()

    def image(self, used: Extent, skipped: int) -> ObjectImage:
        """Return the object as it stands now; see `PhaseComponents.image`.

        Raises
        ------
        EngineError
            If the GPU fails, has not enough memory, or these are closed.
        """
        self._settle()
        self._finish()
        return super().image(used, skipped)

    def to_host(self) -> HostComponents:
        """Return the same components in host memory; these are closed then.

        Raises
        ------
        EngineError
            If the GPU fails, or these are closed.
        """
        self._settle()
        self._finish()
        host = HostComponents()
        moved = {
            component: PhaseComponent(_gpu(component).to_host(), component.used, component.patches)
            for component in self._components
        }
        for component, copy in moved.items():
            copy.links = {moved[other]: link for other, link in component.links.items()}
        # Links are kept: phase components that are not joined yet go on gathering evidence.
        host._components = list(moved.values())
        self.close()
        return host

    def close(self) -> None:
        """Free all device memory; closing again does nothing."""
        self._release()

    def _settle(self) -> None:
        """Stitch what is queued; the last of it may still run, until `_finish`."""
        self._require_open()
        self._finish()
        queue, self._queue = self._queue, []
        if queue:
            self._memory.weigh(len(queue))
            self._stitch(queue, 0)

    def _finish(self) -> None:
        """Wait for what runs, and stitch what it has left over."""
        while self._running is not None:
            self._stitch(*self._looked_at(self._running))

    def _stitch(self, queue: Queue, at: int) -> None:
        while at < len(queue):
            home, run, room = self._on_one_component(queue[at:])
            if home is None:
                at = self._join_one(queue, at)
                continue
            home.make_room(room)
            _gpu(home).start_to_fit(at, [position for position, _ in run])
            self._running = _Running(queue, at, home, run)
            if at + len(run) == len(queue):
                # Looked at once more patches are there, so that nobody waits for the GPU.
                return
            queue, at = self._looked_at(self._running)

    def _looked_at(self, running: _Running) -> tuple[Queue, int]:
        """Wait for a run, and join the patch that ended it to whatever it fits."""
        self._running = None
        queue, at, home, run = running
        added = _gpu(home).added()
        for _, extent in run[:added]:
            home.used = home.used.joined(extent)
        home.patches += added
        at += added
        return queue, self._join_one(queue, at) if added < len(run) else at

    def _join_one(self, queue: Queue, at: int) -> int:
        position, extent = queue[at]
        self.join(QueuedPatch(at, position), extent)
        return at + 1

    def _on_one_component(
        self, queue: Queue
    ) -> tuple[PhaseComponent[QueuedPatch] | None, Queue, Extent]:
        """Return the one component that the first patches lie on, if any, with them and its room.

        A patch that no component is near, or several, ends them.
        """
        home, run, room = None, [], queue[0][1]
        for item in queue:
            near = [component for component in self._components if component.used.touches(item[1])]
            if home is not None and home not in near and room.touches(item[1]):
                near.append(home)
            # With several near it takes comparing, which `join` does one patch at a time.
            if len(near) != 1 or home not in (None, near[0]):
                break
            room = (near[0].used if home is None else room).joined(item[1])
            home = near[0]
            run.append(item)
        return home, run, room

    def _require_open(self) -> None:
        if not self._release.alive:
            session = self._memory.session
            raise EngineError(
                f"the object was on {session.name}, which "
                f"{'failed' if session.lost else 'has given its memory back'}; open another stream"
            )

    def _new_canvas(self, shape: tuple[int, int], origin_px: tuple[int, int]) -> GpuCanvas:
        return GpuCanvas(self._memory, shape, origin_px)

    def _drop(self, component: PhaseComponent[QueuedPatch]) -> None:
        _gpu(component).close()


def _gpu(component: PhaseComponent[QueuedPatch]) -> GpuCanvas:
    assert isinstance(component.canvas, GpuCanvas)
    return component.canvas
