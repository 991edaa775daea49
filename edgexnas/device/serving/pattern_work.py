"""Diffraction patterns: patches of the object, stitched while the scan runs.

Where the engine runs on a GPU, patterns are checked, binned and stitched there too; elsewhere the
finding stage checks and bins them in its threads.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgexnas.device.ptycho.intake import PatternIntake
from edgexnas.device.ptycho.stitching import ObjectStitcher
from edgexnas.device.serving.series_run import FrameTask, SeriesRun
from edgexnas.device.serving.settings import PipelineSettings
from edgexnas.device.sinks.results import ObjectSnapshot
from edgexnas.errors import ConfigurationError, EdgexnasError
from edgexnas.ptycho import PATTERN_SIZE

if TYPE_CHECKING:
    from edgexnas.device.ptycho.gpu_pipeline import PatternPipeline
    from edgexnas.device.ptycho.lanes import PatternLanes

__all__ = ["PatternWork"]

USUAL_DTYPES = (np.uint16, np.uint32)

SNAPSHOT_SHARE = 10
"""A snapshot is taken no oftener than this many times its own duration."""

UNKNOWN = np.full(2, np.nan)


@dataclass(slots=True)
class _ScanState:
    intake: PatternIntake
    stitcher: ObjectStitcher
    lock: threading.Lock = field(default_factory=threading.Lock)
    opened: bool = False
    pipeline: PatternPipeline | None = None
    newest: int = -1
    changed: bool = False
    next_s: float = 0.0


class PatternWork:
    """The steps from diffraction patterns to an object image.

    Parameters
    ----------
    lanes
        Of the predictor of patches.
    settings
        The size of an object pixel, and how often to show the object.

    Raises
    ------
    ConfigurationError
        If the size of an object pixel is not given.
    """

    def __init__(self, lanes: PatternLanes, settings: PipelineSettings) -> None:
        if settings.object_pixel_m is None:
            raise ConfigurationError(
                "object_pixel_m is not given, and scan positions come in metres; give the (row, "
                "col) size of an object pixel, λ·z / (H·p)"
            )
        self._lanes = lanes
        self._settings = settings
        self._pixel_m = settings.object_pixel_m

    def warm_up(self) -> None:
        """Predict from an empty pattern, and stitch its patch.

        On a GPU this compiles the kernels for the dtypes that detectors usually have.
        """
        stitcher = self._lanes.stitcher()
        for dtype in USUAL_DTYPES:
            intake = self._lanes.intake()
            side = PATTERN_SIZE if intake.mask is None else len(intake.mask)
            pattern = intake.accept(np.zeros((side, side), dtype), 0)
            pipeline = self._lanes.open_pipeline(intake, pattern)
            if pipeline is None:
                patches = self._lanes.predict_admitted(intake.binned(pattern, 0)[None])
            else:
                patches, _ = self._lanes.predict_in(pipeline, [pattern])
                self._lanes.engine.release(pipeline)
            stitcher.add(0, patches.amplitude[0], patches.phase_rad[0], np.zeros(2))
        stitcher.image()
        stitcher.close()

    def begin(self, run: SeriesRun) -> None:
        """Make an empty object for the scan."""
        intake = self._lanes.intake(run.start.mask)
        run.work = _ScanState(intake, self._lanes.stitcher())

    def prepare(self, task: FrameTask) -> list[FrameTask]:
        """Check a pattern and bin it, or leave that to the GPU."""
        state: _ScanState = task.run.work
        assert task.pixels is not None
        try:
            with state.lock:
                accepted = state.intake.accept(task.pixels, task.number)
                if not state.opened:
                    state.pipeline = self._lanes.open_pipeline(state.intake, accepted)
                    state.opened = True
                on_cpu = state.pipeline is None
                task.prepared = state.intake.binned(accepted, task.number) if on_cpu else accepted
        except EdgexnasError as error:
            task.error = str(error)
        return [task]

    def release(self, run: SeriesRun, *, now_ns: int) -> list[FrameTask]:
        """Give none: no pattern is held back."""
        return []

    def size(self, task: FrameTask) -> int:
        """Give 1."""
        return 1

    def predict(self, tasks: list[FrameTask]) -> None:
        """Predict the patches of all patterns together, those of each series on its own."""
        # Those that are tuples were predicted before another series made the engine fail.
        left = [task for task in tasks if not isinstance(task.prepared, tuple)]
        for run in dict.fromkeys(task.run for task in left):
            self._predict_series(run.work, [task for task in left if task.run is run])

    def place(self, task: FrameTask) -> None:
        """Stitch a patch into the object."""
        state: _ScanState = task.run.work
        amplitude, phase_rad = task.prepared
        task.prepared = None
        self._place_readings(task.run, task.number)
        given = task.position_m
        position = UNKNOWN.copy() if given is None else self._in_pixels(given)
        position = state.stitcher.add(task.number, amplitude, phase_rad, position)
        state.newest, state.changed = task.number, True
        task.result = task.with_result(
            amplitude=amplitude,
            phase_rad=phase_rad,
            position_px=(float(position[0]), float(position[1])),
        )

    def snapshot(self, run: SeriesRun, *, final: bool) -> ObjectSnapshot | None:
        """Show the object if it has changed, every `snapshot_s`."""
        state: _ScanState = run.work
        now = time.monotonic()
        self._place_readings(run, state.newest)
        if final:
            state.stitcher.finish()
        elif not state.changed or now < state.next_s:
            return None
        if state.newest < 0:
            return None
        image = state.stitcher.image()
        took = time.monotonic() - now
        state.next_s = now + max(self._settings.snapshot_s, SNAPSHOT_SHARE * took)
        state.changed = False
        return ObjectSnapshot(run.series, state.newest, image, final)

    def end(self, run: SeriesRun) -> None:
        """Give back what the scan took of the GPU."""
        state: _ScanState | None = run.work
        if state is None:
            return
        state.stitcher.close()
        if state.pipeline is not None:
            self._lanes.engine.release(state.pipeline)

    def _predict_series(self, state: _ScanState, tasks: list[FrameTask]) -> None:
        bad: tuple[int, ...] = ()
        prepared = [task.prepared for task in tasks]
        if state.pipeline is None:
            patches = self._lanes.predict_admitted(np.stack(prepared))
        else:
            patches, bad = self._lanes.predict_in(state.pipeline, prepared)
        for index, task in enumerate(tasks):
            if index in bad:
                task.error = str(state.intake.fault(task.prepared, task.number))
            task.prepared = patches.amplitude[index], patches.phase_rad[index]

    def _place_readings(self, run: SeriesRun, number: int) -> None:
        state: _ScanState = run.work
        while run.readings:
            reading = run.readings.popleft()
            state.stitcher.place(reading.number, self._in_pixels(reading.position_m))
            state.changed |= reading.number <= number

    def _in_pixels(self, position_m: tuple[float, float]) -> npt.NDArray[np.float64]:
        return np.array(position_m, np.float64) / self._pixel_m
