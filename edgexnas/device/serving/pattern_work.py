"""Diffraction patterns: patches of the object, stitched while the scan runs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgexnas.device.ptycho.announcement import scan_announcement
from edgexnas.device.serving.series_run import FrameTask, SeriesRun, TaskLane
from edgexnas.device.serving.settings import PipelineSettings
from edgexnas.device.serving.stage_times import StageTimes
from edgexnas.device.sinks.results import FrameFlag, ObjectSnapshot
from edgexnas.errors import ConfigurationError, EdgexnasError
from edgexnas.familiarity.pattern_checks import NOT_LOOKED_AT
from edgexnas.ptycho import PATTERN_SIZE

if TYPE_CHECKING:
    from edgexnas.device.ptycho.lanes import NumberedPattern, PatternLanes
    from edgexnas.device.ptycho.refining import ScanRefiner
    from edgexnas.ptycho import ObjectImage, ObjectPatches, Refinement

__all__ = ["PatternWork"]

_log = logging.getLogger(__name__)

USUAL_DTYPES: tuple[type[np.generic], ...] = (np.uint16, np.uint32)

SNAPSHOT_SHARE = 10
"""A snapshot is taken no oftener than this many times its own duration."""

UNKNOWN = np.full(2, np.nan)


class PatternWork:
    """What a service does with diffraction patterns.

    Parameters
    ----------
    lanes
        Of the predictor of patches.
    settings
        The size of an object pixel, and how often to show the object.
    times
        Where durations go.
    refiner
        Refines the object of each scan after its last pattern; None for not.

    Raises
    ------
    ConfigurationError
        If the size of an object pixel is not given.
    """

    # An object of two networks' patches would be neither's.
    replaces_within_series = False

    def __init__(
        self,
        lanes: PatternLanes,
        settings: PipelineSettings,
        times: StageTimes,
        refiner: ScanRefiner | None = None,
    ) -> None:
        if settings.object_pixel_m is None:
            raise ConfigurationError(
                "object_pixel_m is not given, and scan positions come in metres; give the (row, "
                "col) size of an object pixel, λ·z / (H·p)"
            )
        self.lanes = lanes
        self.pixel_m = settings.object_pixel_m
        self.snapshot_s = settings.snapshot_s
        self.times = times
        self.refiner = refiner
        self.workers = 1 if lanes.engine.on_device else settings.workers

    def warm_up(self) -> None:
        """Predict from an empty pattern, and stitch its patch.

        On a GPU this compiles the kernels for the dtypes that detectors usually have.
        """
        stitcher = self.lanes.stitcher()
        for dtype in USUAL_DTYPES:
            intake = self.lanes.intake()
            side = PATTERN_SIZE if intake.mask is None else len(intake.mask)
            pattern = intake.accept(np.zeros((side, side), dtype), 0)
            with closing(self.lanes.open(intake, pattern)) as lane:
                lane.submit([lane.check(pattern, 0)])
                patches = lane.result().results
            stitcher.add(0, patches.amplitude[0], patches.phase_rad[0], np.zeros(2))
        stitcher.image()
        stitcher.close()

    def begin(self, run: SeriesRun) -> PatternSeries:
        """Make an empty object for the scan."""
        self.lanes.compare_pixel(self.pixel_m, run.series)
        return PatternSeries(self, run)


class PatternSeries:
    """One scan, and the object that its patches are stitched to."""

    def __init__(self, work: PatternWork, run: SeriesRun) -> None:
        self._work = work
        self._run = run
        self._intake = work.lanes.intake(run.start.mask)
        self._stitcher = work.lanes.stitcher()
        self._kept = None if work.refiner is None else work.refiner.scan()
        if self._kept is not None:
            self._stitcher.on_stitched = self._kept.place
        self._image: ObjectImage | None = None
        self._lock = threading.Lock()
        self._lanes: dict[int, TaskLane[NumberedPattern, ObjectPatches]] = {}
        self._pattern: npt.NDArray[Any] | None = None
        self._newest = -1
        self._announcement = scan_announcement(run.series)
        self._changed = False
        self._next_s = 0.0

    def ready(self, task: FrameTask) -> list[FrameTask]:
        """Check shape and dtype, which the first pattern of a scan decides."""
        assert task.pixels is not None
        try:
            with self._lock:
                accepted = self._intake.accept(task.pixels, task.number)
                if self._kept is not None:
                    if self._pattern is None:
                        self._kept.begin(accepted.shape, self._intake)
                    self._kept.keep(task.number, accepted)
                if self._pattern is None:
                    self._pattern = accepted
        except EdgexnasError as error:
            task.error = str(error)
        return [task]

    def release(self, *, now_ns: int) -> list[FrameTask]:
        """Give none: no pattern is held back."""
        return []

    def lane(self, worker: int) -> TaskLane[NumberedPattern, ObjectPatches]:
        """Give a worker's lane; see `SeriesWork.lane`."""
        lane = self._lanes.get(worker)
        if lane is None:
            with self._lock:
                assert self._pattern is not None
                opened = self._work.lanes.open(self._intake, self._pattern)
                lane = self._lanes[worker] = TaskLane(opened, _keep, self._work.times)
        return lane

    def place(self, task: FrameTask) -> None:
        """Stitch a patch into the object."""
        result = task.result
        assert result is not None
        assert result.amplitude is not None
        assert result.phase_rad is not None
        self._place_readings(task.number)
        given = task.position_m
        position = UNKNOWN.copy() if given is None else self._in_pixels(given)
        row, col = self._stitcher.add(
            task.number, result.amplitude, result.phase_rad, position
        ).tolist()
        self._newest, self._changed = task.number, True
        task.result = task.with_result(
            amplitude=result.amplitude,
            phase_rad=result.phase_rad,
            position_px=(row, col),
            flags=result.flags,
            reason=result.reason,
        )
        if result.reason is not None and not self._announcement.done:
            self._announcement.add(np.array([result.reason], np.uint8))

    def snapshot(self, *, final: bool) -> ObjectSnapshot | None:
        """Show the object if it has changed, every `snapshot_s`."""
        now = time.monotonic()
        self._place_readings(self._newest)
        if final:
            self._stitcher.finish()
        elif not self._changed or now < self._next_s:
            return None
        if self._newest < 0:
            return None
        image = self._stitcher.image()
        took = time.monotonic() - now
        self._next_s = now + max(self._work.snapshot_s, SNAPSHOT_SHARE * took)
        self._changed = False
        if final:
            self._image = image
        return ObjectSnapshot(self._run.series, self._newest, image, final)

    def afterwards(self) -> Callable[[threading.Event], ObjectSnapshot | None] | None:
        """Refine the object; see `SeriesWork.afterwards`."""
        kept, image = self._kept, self._image
        if kept is None or image is None:
            return None
        series, newest = self._run.series, self._newest

        def refine(stop: threading.Event) -> ObjectSnapshot | None:
            refinement = kept.refine(image, stop=stop.is_set)
            if refinement is None:
                return None
            _log.info("%s", sentence_of(series, refinement))
            if refinement.doubt is not None:
                _log.warning("%s: %s", series, refinement.doubt)
            return ObjectSnapshot(series, newest, image, True, refinement)

        return refine

    def end(self) -> None:
        """Give back what the scan took of the GPU."""
        self._stitcher.close()
        for lane in self._lanes.values():
            lane.close()

    def _place_readings(self, number: int) -> None:
        while self._run.readings:
            reading = self._run.readings.popleft()
            self._stitcher.place(reading.number, self._in_pixels(reading.position_m))
            self._changed |= reading.number <= number

    def _in_pixels(self, position_m: tuple[float, float]) -> npt.NDArray[np.float64]:
        return np.array(position_m, np.float64) / self._work.pixel_m


def sentence_of(series: str, refinement: Refinement) -> str:
    """Say what a refinement came to."""
    residuals, seconds = refinement.residuals, refinement.seconds
    return (
        f"refined {series} by {len(residuals) - 1} sweeps over {refinement.patterns} patterns in "
        f"{seconds[-1]:.2f} s on {refinement.device}: residual {residuals[0]:.2%} of the light "
        f"before, {residuals[-1]:.2%} after"
    )


def _keep(task: FrameTask, patches: ObjectPatches, index: int) -> None:
    reason = NOT_LOOKED_AT if patches.reasons is None else int(patches.reasons[index])
    looked_at = reason != NOT_LOOKED_AT
    task.result = task.with_result(
        amplitude=patches.amplitude[index],
        phase_rad=patches.phase_rad[index],
        flags=int(FrameFlag.UNFAMILIAR) if looked_at and reason else 0,
        reason=reason if looked_at else None,
    )
