"""Frames of Bragg peaks: the background from the first ones, then peaks and their positions.

Where the engine runs on a GPU, the finding stage does everything there, frame by frame; elsewhere
it finds peaks in its threads, and the engine runs for several frames together.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from edgexnas.bragg import Peaks
from edgexnas.device.bragg.detection import PeakDetection, refuse_nan
from edgexnas.device.serving.series_run import FrameTask, SeriesRun
from edgexnas.device.serving.settings import MEBIBYTE, PipelineSettings
from edgexnas.device.sinks.results import FrameResult, ObjectSnapshot
from edgexnas.errors import EdgexnasError, InputError
from edgexnas.peak_finding import enough_background

if TYPE_CHECKING:
    from edgexnas.device.bragg.gpu_pipeline import FramePipeline
    from edgexnas.device.bragg.predictor import PeakPredictor
    from edgexnas.peak_finding import PeakFinder

__all__ = ["PeakWork"]

_log = logging.getLogger("edgexnas.device.serving")


USUAL_DTYPES = (np.uint16, np.uint32)

SPARE_MIB = 256
"""Most pinned memory for decoded frames: nothing else can have it, and a Jetson has 8 GiB."""


@dataclass(slots=True)
class _Calibration:
    """A series' detection, and the first frames, which wait until its background is known."""

    detection: PeakDetection
    lock: threading.Lock = field(default_factory=threading.Lock)
    held: list[FrameTask] = field(default_factory=list)
    done: bool = False
    # A finder has a scratch buffer, so each thread gets its own.
    finders: dict[int, PeakFinder] = field(default_factory=dict)
    pipeline: FramePipeline | None = None


class PeakWork:
    """The steps from frames to Bragg peaks.

    Parameters
    ----------
    predictor
        What predicts positions.
    settings
        How many first frames show the background.
    """

    def __init__(self, predictor: PeakPredictor, settings: PipelineSettings) -> None:
        self._predictor = predictor
        self._settings = settings

    def warm_up(self) -> None:
        """Find and locate a peak in a frame of each dtype that detectors usually have.

        The first call of the finder for a dtype compiles it, or loads what was compiled before;
        so does opening a pipeline on a GPU.
        """
        for dtype in USUAL_DTYPES:
            detection = self._predictor.detection()
            rows, cols = detection.shape or (64, 64)
            frame = np.zeros((rows, cols), dtype)
            frame[rows // 2, cols // 2] = 1000
            detection.calibrate([frame])
            pipeline = self._predictor.open_pipeline(detection.finder([frame]), frame.dtype)
            if pipeline is None:
                self._predictor.locate([detection.find(frame)], [0])
            else:
                self._predictor.process_in(pipeline, frame, 0)
                self._predictor.close_pipeline(pipeline)

    def begin(self, run: SeriesRun) -> None:
        """Make a detection for the series."""
        detection = self._predictor.detection(run.start.mask)
        if detection.shape is None:
            detection.shape = run.start.shape
        detection.dtype = run.start.dtype
        detection.saturation = run.start.saturation
        run.work = _Calibration(detection)

    def prepare(self, task: FrameTask) -> list[FrameTask]:
        """Find the peaks of a frame, or hold it back for the background."""
        state: _Calibration = task.run.work
        assert task.pixels is not None
        if state.done:
            return self._find_all(state, [task])
        with state.lock:
            if not state.done:
                try:
                    state.detection.admit(task.pixels)
                except InputError as error:
                    task.error = str(error)
                    return [task]
                state.held.append(task)
                if not self._enough(state.held):
                    return []
                return self._calibrated(state)
        return self._find_all(state, [task])

    def release(self, run: SeriesRun, *, now_ns: int) -> list[FrameTask]:
        """Do with the first frames that are there, once the wait for more is over."""
        state: _Calibration = run.work
        if state.done or not state.held:
            return []
        with state.lock:
            if not state.held:
                return []
            all_here = run.over and len(state.held) >= run.in_stages
            waited_ns = now_ns - state.held[0].arrival_ns
            if all_here or waited_ns >= self._settings.background_wait_ms * 1e6:
                return self._calibrated(state)
        return []

    def size(self, task: FrameTask) -> int:
        """Give the number of peaks, or a whole batch for a frame that need not wait for others."""
        if isinstance(task.prepared, Peaks):
            return self._predictor.engine.batch
        return 0 if task.prepared is None else len(task.prepared)

    def predict(self, tasks: list[FrameTask]) -> None:
        """Predict the positions of all peaks together, where the finding stage has not."""
        left = [task for task in tasks if not isinstance(task.prepared, Peaks)]
        if left:
            located = self._predictor.locate(
                [task.prepared for task in left], [task.number for task in left]
            )
            for task, peaks in zip(left, located, strict=True):
                task.prepared = peaks
        for task in tasks:
            peaks, task.prepared = task.prepared, None
            task.result = FrameResult(
                task.run.series, task.number, task.arrival_ns, task.timestamp_s, peaks
            )

    def place(self, task: FrameTask) -> None:
        """Do nothing: frames do not depend on each other."""

    def snapshot(self, run: SeriesRun, *, final: bool) -> ObjectSnapshot | None:
        """Give none: nothing grows over a series of peaks."""
        return None

    def end(self, run: SeriesRun) -> None:
        """Give back what the series took of the GPU."""
        state: _Calibration | None = run.work
        run.memory = None
        if state is not None and state.pipeline is not None:
            self._predictor.close_pipeline(state.pipeline)

    def spare_frames(self, nbytes: int) -> int:
        """How many frames of a size are lent to decoders at once.

        As many as each worker is at, has before it and decodes, and some that are shown, within
        `SPARE_MIB`; but one for each of these. Any more are decoded elsewhere, and copied.
        """
        wanted = 3 * self._settings.workers + 4
        return min(wanted, max(4, SPARE_MIB * MEBIBYTE // nbytes))

    def _enough(self, held: list[FrameTask]) -> bool:
        settings = self._settings
        pixels = held[0].pixels
        assert pixels is not None
        return len(held) >= enough_background(
            pixels.nbytes,
            frames=settings.background_frames,
            total_bytes=settings.background_mib * MEBIBYTE,
        )

    def _calibrated(self, state: _Calibration) -> list[FrameTask]:
        """Estimate the background from the frames held back, and find their peaks."""
        held, state.held = state.held, []
        usable = [task for task in held if self._shows_background(state.detection, task)]
        if usable:
            state.detection.calibrate([_pixels(task) for task in usable])
            first = _pixels(usable[0])
            finder = state.detection.finder([first])
            try:
                state.pipeline = self._predictor.open_pipeline(
                    finder, first.dtype, spare_frames=self.spare_frames(first.nbytes)
                )
            except EdgexnasError as error:
                for task in usable:
                    task.error = str(error)
                return sorted(held)
            state.done = True
            run = usable[0].run
            if state.pipeline is not None:
                run.memory = state.pipeline.lend
            _log.info("%s: background from %d frames", run.series, len(usable))
        refused = [task for task in held if task.error is not None]
        return sorted(refused + self._find_all(state, usable))

    @staticmethod
    def _shows_background(detection: PeakDetection, task: FrameTask) -> bool:
        try:
            refuse_nan(_pixels(task), detection.mask)
        except InputError as error:
            task.error = str(error)
        return task.error is None

    def _find_all(self, state: _Calibration, tasks: list[FrameTask]) -> list[FrameTask]:
        for task in tasks:
            pixels = _pixels(task)
            try:
                admitted = state.detection.admit(pixels)
                if state.pipeline is not None:
                    task.prepared = self._predictor.process_in(
                        state.pipeline, admitted, task.number
                    )
                    continue
                finder = state.finders.get(threading.get_ident())
                if finder is None:
                    finder = state.detection.finder([admitted])
                    state.finders[threading.get_ident()] = finder
                task.prepared = finder.find(admitted)
            except EdgexnasError as error:
                task.error = str(error)
        return tasks


def _pixels(task: FrameTask) -> Any:
    assert task.pixels is not None
    return task.pixels
