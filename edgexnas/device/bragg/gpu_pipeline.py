"""Frames to peak positions on a GPU: copy, kernels, network and decoding as one CUDA graph."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgexnas.bragg import PATCH_SIZE, Peaks
from edgexnas.device.cuda import DoubleBuffer, PinnedPool
from edgexnas.device.kernels.check_kernels import CheckKernels
from edgexnas.device.kernels.peak_kernels import HEADER_ITEMS, NO_BAD_PIXEL, PeakKernels
from edgexnas.errors import (
    EngineError,
    InputError,
)

if TYPE_CHECKING:
    from edgexnas.device.cache import EngineCache
    from edgexnas.device.cuda import Slot
    from edgexnas.device.engines.device_engine import DeviceEngine
    from edgexnas.familiarity import PeakChecks
    from edgexnas.peak_finding import PeakFinder

__all__ = ["FramePipeline"]

LEAST_ROOM = 512
"""The network runs for 512, 768, 1,024, 1,536, 2,048, ... peaks: as few as the last frames needed,
and few enough numbers to record the work for each."""

SLOTS = 3
"""One frame is copied to the GPU while it works on another; a third waits, so that neither stops
while Python takes a result and submits the next frame."""

Frame = npt.NDArray[Any]

_log = logging.getLogger(__name__)


class FramePipeline:
    """Find the peaks of frames and predict their positions, with up to `SLOTS` frames in flight.

    While the GPU works on one frame the next is copied to it: from where it lies if that is in
    pinned memory of the session (`lend`, `CudaSession.pinned`), else by way of such memory.
    Positions are written to mapped host memory.

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
    checks
        What the bundle knows of intervals and of familiar peaks; None for nothing.
    cache
        Where compiled kernels are kept; None for nowhere.
    graph
        Whether the work is recorded once and replayed as a CUDA graph.
    copy_threads
        Threads that copy frames to pinned memory; None for one a core, up to 4. Frames that are
        in such memory need none.
    spare_frames
        Frames that `lend` can lend at once. Where the host has no memory left to pin it lends
        none, with a warning.

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
        checks: PeakChecks | None = None,
        cache: EngineCache | None = None,
        graph: bool = True,
        copy_threads: int | None = None,
        spare_frames: int = 0,
    ) -> None:
        self._engine = engine
        self._session = session = engine.session
        self._shape = finder.shape
        self._levels = len(levels)
        # Levels need not hold 0.5 exactly.
        self._middle = int(np.argmin(np.abs(np.asarray(levels) - 0.5)))
        self._capacity = capacity = finder.settings.capacity
        self._rooms = _rooms(capacity, engine)
        # The network's time grows with the room and not with the peaks, so it begins small.
        self._room = self._rooms[0]
        self._dtype = np.dtype(dtype)
        self._numbers: dict[int, int] = {}
        self._spare: PinnedPool | None = None
        # Closed in the reverse order: the graphs of the slots before the memory that they use.
        self._opened = ExitStack()
        try:
            self._kernels = PeakKernels(session, finder, dtype, spare=engine.batch, cache=cache)
            self._opened.callback(self._kernels.close)
            self._checks: CheckKernels | None = None
            self._judges = checks is not None and checks.judges
            if checks is not None:
                self._checks = CheckKernels(session, checks, capacity, cache=cache)
                self._opened.callback(self._checks.close)
            # The last batch may reach beyond the capacity by less than one batch.
            offsets = (capacity + engine.batch, *engine.output_shape)
            self._offsets = session.device_buffer(offsets, np.float32)
            self._opened.callback(self._offsets.close)
            self._frames = DoubleBuffer(
                session,
                (finder.shape, dtype),
                self._outputs(),
                self._work,
                sizes=self._rooms,
                graph=graph,
                # Only the peaks that a frame has are written, whatever the capacity.
                mapped_outputs=True,
                copy_threads=copy_threads,
                slots=SLOTS,
            )
            self._opened.callback(self._frames.close)
            if spare_frames:
                self._spare = self._pool(spare_frames)
        except BaseException:
            self.close()
            raise

    slots = SLOTS
    """Most frames in flight."""

    @property
    def in_flight(self) -> int:
        """Number of frames submitted whose peaks have not been taken."""
        return self._frames.in_flight

    def next_frame(self) -> Frame:
        """Return the memory of the next frame, to be written in place before `submit`.

        Raises
        ------
        EngineError
            If every slot is in flight, or the pipeline is closed.
        """
        return self._frames.next_input()

    def lend(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Frame | None:
        """Lend memory for a frame, from any thread; it comes back with the last reference to it.

        Parameters
        ----------
        shape, dtype
            Of the frame.

        Returns
        -------
        A frame with whatever is in it, for `submit`; None if all are out, the frame is none of
        this pipeline, or it is closed.
        """
        spare = self._spare
        if spare is None or (shape, dtype) != (spare.shape, spare.dtype):
            return None
        return spare.lend()

    def submit(self, frame: Frame | None = None, *, number: int = 0) -> None:
        """Start work on a frame; returns before it is done.

        Parameters
        ----------
        frame
            (H, W) of the pipeline's dtype. In pinned memory it must not be written to until its
            result is taken; any other is copied. None for what is in `next_frame()`.
        number
            Number of the frame in its series.

        Raises
        ------
        InputError
            If shape or dtype are others.
        EngineError
            If every slot is in flight, the pipeline is closed, or the GPU fails.
        """
        # How many peaks there will be is not known yet: the room is a guess from the frames before.
        slot = self._frames.submit(frame, size=self._room)
        self._numbers[slot.number] = number

    def result(self) -> Peaks:
        """Wait for the oldest frame submitted and give its peaks.

        If it fails, the frame is no longer in flight.

        Raises
        ------
        InputError
            If a usable pixel of the frame is NaN or infinite.
        EngineError
            If nothing is in flight, or the GPU fails.
        """
        slot = self._frames.oldest()
        try:
            self._frames.wait(slot)
            found, kept, bad = slot.outputs["header"].array.tolist()
            # Peaks beyond the room were found and cut; only the network has not seen them.
            if kept > slot.size:
                # The frame held far more peaks than those before it: once more, with room.
                self._frames.repeat(self._room_for(kept), slot)
            number = self._numbers[slot.number]
            arrays = {name: _copied(buffer.array[:kept]) for name, buffer in slot.outputs.items()}
        finally:
            self._frames.release(slot)
        # Less room only where far less is needed, so that it does not change with each frame.
        if kept > self._room or 2 * kept <= self._room:
            self._room = self._room_for(kept + kept // 8)
        # Looked at last: the slot is released and the room adapted, whatever the frame holds.
        if bad != NO_BAD_PIXEL:
            row, col = divmod(bad, self._shape[1])
            raise InputError(
                f"pixel (row {row}, col {col}) of the frame is NaN or infinite; "
                "mask it or set it to 0"
            )
        return Peaks(
            positions_px=arrays["positions"],
            intervals_px=arrays["intervals"],
            quantiles_px=arrays["quantiles"],
            maxima=arrays["maxima"],
            intensities=arrays["intensities"],
            flags=arrays["flags"],
            frame_number=number,
            overflow=found - kept,
            reasons=arrays["reasons"] if self._judges else None,
        )

    def process(self, frame: Frame, *, number: int = 0) -> Peaks:
        """Find the peaks of one frame and wait for them; see `submit` and `result`."""
        self.submit(frame, number=number)
        return self.result()

    def close(self) -> None:
        """Wait for the GPU and free all memory but the engine's; closing again does nothing."""
        self._opened.close()

    def _pool(self, count: int) -> PinnedPool | None:
        try:
            pool = PinnedPool(self._session, self._shape, self._dtype, count)
        except EngineError as error:
            if self._session.lost:
                raise
            _log.warning("frames are copied before they go to the GPU, because %s", error)
            return None
        self._opened.callback(pool.close)
        return pool

    def _outputs(self) -> dict[str, tuple[tuple[int, ...], npt.DTypeLike]]:
        capacity = self._capacity
        return {
            "positions": ((capacity, 2), np.float32),
            "intervals": ((capacity, 2), np.float32),
            "quantiles": ((capacity, 2, self._levels), np.float32),
            "maxima": ((capacity, 2), np.int32),
            "intensities": ((capacity,), np.float32),
            "flags": ((capacity,), np.uint8),
            "reasons": ((1 if self._checks is None else capacity,), np.uint8),
            "header": ((HEADER_ITEMS,), np.int32),
        }

    def _work(self, slot: Slot, stream: Any) -> None:
        """Put into the stream what leads from the slot's frame to its outputs."""
        self._kernels.enqueue_find(slot.input.pointer, stream)
        self._enqueue_network(slot.size, stream)
        pointers = {name: buffer.pointer for name, buffer in slot.outputs.items()}
        kernels = self._kernels
        if self._checks is not None:
            self._checks.enqueue(
                kernels.scaled.pointer, kernels.intensities.pointer, self._offsets.pointer,
                self._levels, kernels.header.pointer, kernels.flags.pointer, pointers["reasons"],
                stream,
            )  # fmt: skip
        self._kernels.enqueue_decode(
            self._offsets.pointer, self._levels, self._middle, pointers, stream
        )

    def _enqueue_network(self, size: int, stream: Any) -> None:
        engine = self._engine
        input_bytes = 4 * PATCH_SIZE**2
        output_bytes = 4 * int(np.prod(engine.output_shape))
        # The header's second number is that of the peaks kept, which the GPU alone knows by now.
        kept = self._kernels.header.pointer + 4
        each = size if engine.any_count else engine.batch
        for start in range(0, size, each):
            engine.enqueue(
                self._kernels.scaled.pointer + start * input_bytes,
                self._offsets.pointer + start * output_bytes,
                min(each, size - start),
                stream,
                kept=kept,
            )

    def _room_for(self, count: int) -> int:
        return next((room for room in self._rooms if room >= count), self._rooms[-1])


def _copied(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Copy a C-contiguous array without letting other threads in.

    numpy releases the interpreter's lock for each of its copies, and where the stages of a service
    are busy it takes longer to get back than to copy.
    """
    return np.ndarray(array.shape, array.dtype, buffer=bytearray(array))


def _rooms(capacity: int, engine: DeviceEngine) -> tuple[int, ...]:
    """For how many peaks the network can run: a few numbers up to the capacity."""
    # One that counts the peaks itself does no more for the capacity than for those that are there.
    if engine.any_count:
        return (capacity,)
    numbers = []
    octave = LEAST_ROOM
    while octave < capacity:
        # Steps of a half at most: beyond the first, no more than a third of the work is idle.
        numbers += [octave, octave + octave // 2]
        octave *= 2
    # An engine runs whole batches, so that the largest of several numbers may cost no more.
    numbers = [number for number in numbers if number < capacity] + [capacity]
    return tuple({_items(number, engine): number for number in numbers}.values())


def _items(number: int, engine: DeviceEngine) -> int:
    """How many items the engine computes for this number of peaks."""
    whole, rest = divmod(number, engine.batch)
    return whole * engine.batch + (engine.size_of(rest) if rest else 0)
