"""Diffraction patterns: patches of the object, stitched while the scan runs."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgexnas.device.pattern_intake import PatternIntake
from edgexnas.device.serving.results import FrameResult, ObjectSnapshot
from edgexnas.device.serving.series_run import FrameTask, SeriesRun
from edgexnas.device.serving.settings import PipelineSettings
from edgexnas.device.stitching import ObjectStitcher
from edgexnas.errors import ConfigurationError, EdgexnasError
from edgexnas.ptycho import PATTERN_SIZE, to_complex

if TYPE_CHECKING:
    from edgexnas.device.ptycho_predictor import PtychoPredictor

__all__ = ["PatternWork"]

SNAPSHOT_SHARE = 10
"""A snapshot is taken no oftener than this many times its own duration."""

UNKNOWN = np.full(2, np.nan)


@dataclass(slots=True)
class _ScanState:
    intake: PatternIntake
    lock: threading.Lock = field(default_factory=threading.Lock)
    stitcher: ObjectStitcher = field(default_factory=ObjectStitcher)
    newest: int = -1
    changed: bool = False
    next_s: float = 0.0


class PatternWork:
    """The steps from diffraction patterns to an object image.

    Parameters
    ----------
    predictor
        What predicts patches.
    settings
        The size of an object pixel, and how often to show the object.

    Raises
    ------
    ConfigurationError
        If the size of an object pixel is not given.
    """

    def __init__(self, predictor: PtychoPredictor, settings: PipelineSettings) -> None:
        if settings.object_pixel_m is None:
            raise ConfigurationError(
                "object_pixel_m is not given, and scan positions come in metres; give the (row, "
                "col) size of an object pixel, λ·z / (H·p)"
            )
        self._predictor = predictor
        self._settings = settings
        self._pixel_m = settings.object_pixel_m

    def warm_up(self) -> None:
        """Predict from an empty pattern."""
        self._predictor.predict_admitted(np.zeros((1, PATTERN_SIZE, PATTERN_SIZE), np.float32))

    def begin(self, run: SeriesRun) -> None:
        """Make an empty object for the scan."""
        run.work = _ScanState(self._predictor.intake(run.start.mask))

    def prepare(self, task: FrameTask) -> list[FrameTask]:
        """Check a pattern and bin it."""
        state: _ScanState = task.run.work
        assert task.pixels is not None
        try:
            with state.lock:
                task.prepared = state.intake.admit(task.pixels, task.number)
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
        """Predict the patches of all patterns together."""
        patches = self._predictor.predict_admitted(np.stack([task.prepared for task in tasks]))
        for index, task in enumerate(tasks):
            task.prepared = patches.amplitude[index], patches.phase_rad[index]

    def place(self, task: FrameTask) -> None:
        """Stitch a patch into the object."""
        state: _ScanState = task.run.work
        amplitude, phase_rad = task.prepared
        task.prepared = None
        self._place_readings(task.run, task.number)
        given = task.position_m
        position = UNKNOWN.copy() if given is None else self._in_pixels(given)
        position = state.stitcher.add(task.number, to_complex(amplitude, phase_rad), position)
        state.newest, state.changed = task.number, True
        task.result = FrameResult(
            task.run.series,
            task.number,
            task.arrival_ns,
            task.timestamp_s,
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
        """Do nothing: an object takes host memory only."""

    def _place_readings(self, run: SeriesRun, number: int) -> None:
        state: _ScanState = run.work
        while run.readings:
            reading = run.readings.popleft()
            state.stitcher.place(reading.number, self._in_pixels(reading.position_m))
            state.changed |= reading.number <= number

    def _in_pixels(self, position_m: tuple[float, float]) -> npt.NDArray[np.float64]:
        return np.array(position_m, np.float64) / self._pixel_m
