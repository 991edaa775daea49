"""Frames of Bragg peaks: the background from the first ones, then all through lanes."""

from __future__ import annotations

import logging
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgexnas.device.bragg.detection import refuse_nan
from edgexnas.device.serving.series_run import FrameTask, SeriesRun, TaskLane
from edgexnas.device.serving.settings import MEBIBYTE, PipelineSettings
from edgexnas.device.serving.stage_times import StageTimes
from edgexnas.device.sinks.results import FrameFlag, ObjectSnapshot, SeriesKey
from edgexnas.errors import EdgexnasError, InputError
from edgexnas.familiarity.tally import FEWEST_TOLD, FOREIGN_SHARE
from edgexnas.peak_finding import enough_background

if TYPE_CHECKING:
    from edgexnas.bragg import Peaks
    from edgexnas.device.bragg.lanes import NumberedFrame, PeakLane, PeakLanes
    from edgexnas.device.serving.kept_backgrounds import KeptBackgrounds

__all__ = ["PeakWork"]

USUAL_DTYPES: tuple[type[np.generic], ...] = (np.uint16, np.uint32)

SPARE_MIB = 256
"""Most pinned memory for decoded frames: nothing else can have it, and a Jetson has 8 GiB."""

_log = logging.getLogger("edgexnas.device.serving")


class PeakWork:
    """What a service does with frames of Bragg peaks.

    Parameters
    ----------
    lanes
        Of the predictor of positions.
    settings
        How many first frames show the background.
    times
        Where durations go.
    bundle_digest
        Whose predictor it is.
    kept
        Where the background of each series is kept for a restart; None for nowhere.
    """

    replaces_within_series = True

    def __init__(
        self,
        lanes: PeakLanes,
        settings: PipelineSettings,
        times: StageTimes,
        *,
        bundle_digest: str = "",
        kept: KeptBackgrounds | None = None,
    ) -> None:
        self.bundle_digest = bundle_digest
        self.kept = kept
        self.lanes = lanes
        self.settings = settings
        self.times = times
        self.workers = 1 if lanes.engine.on_device else settings.workers

    def warm_up(self) -> None:
        """Find and locate a peak in a frame of each dtype that detectors usually have.

        The first call of the finder for a dtype compiles it, or loads what was compiled before;
        so does opening a lane on a GPU.
        """
        for dtype in USUAL_DTYPES:
            detection = self.lanes.detection()
            rows, cols = detection.shape or (64, 64)
            frame = np.zeros((rows, cols), dtype)
            frame[rows // 2, cols // 2] = 1000
            detection.calibrate([frame])
            with closing(self.lanes.open(detection, [frame])) as lane:
                lane.submit([lane.check(frame, 0)])
                lane.result()

    def begin(self, run: SeriesRun) -> PeakSeries:
        """Make a detection for the series."""
        return PeakSeries(self, run)

    def spare_frames(self, nbytes: int) -> int:
        """How many frames of a size are lent to decoders at once.

        As many as each decoder is at and has done, the lane is at, and some that are shown, within
        `SPARE_MIB`; but one for each of these. Any more are decoded elsewhere, and copied.
        """
        wanted = 3 * self.settings.workers + 4
        return min(wanted, max(4, SPARE_MIB * MEBIBYTE // nbytes))


class PeakSeries:
    """One series: its first frames wait until its background is known."""

    def __init__(self, work: PeakWork, run: SeriesRun) -> None:
        self._work = work
        self._run = run
        self._detection = detection = work.lanes.detection(run.start.mask)
        if detection.shape is None:
            detection.shape = run.start.shape
        detection.dtype = run.start.dtype
        detection.saturation = run.start.saturation
        self._key = SeriesKey.of(run.series, run.start.identity, work.bundle_digest)
        self._lock = threading.Lock()
        self._held: list[FrameTask] = []
        self._lanes: dict[int, TaskLane[NumberedFrame, dict[int, Peaks]]] = {}
        self._first: PeakLane | None = None
        self._frame: npt.NDArray[Any] | None = None

    def ready(self, task: FrameTask) -> list[FrameTask]:
        """Hold a frame back until there are enough of them to show the background."""
        if self._frame is not None:
            return [task]
        with self._lock:
            if self._frame is not None:
                return [task]
            try:
                pixels = self._detection.admit(_pixels(task))
            except InputError as error:
                task.error = str(error)
                return [task]
            if not self._held:
                self._go_on()
            self._held.append(task)
            settings = self._work.settings
            enough = enough_background(
                pixels.nbytes,
                frames=settings.background_frames,
                total_bytes=settings.background_mib * MEBIBYTE,
            )
            known = self._detection.calibrated
            return self._calibrated() if known or len(self._held) >= enough else []

    def release(self, *, now_ns: int) -> list[FrameTask]:
        """Do with the first frames that are there, once the wait for more is over."""
        if not self._held:
            return []
        with self._lock:
            if not self._held:
                return []
            all_here = self._run.over and len(self._held) >= self._run.in_stages
            replaced = self._run.work is not self
            waited_ns = now_ns - self._held[0].arrival_ns
            if all_here or replaced or waited_ns >= self._work.settings.background_wait_ms * 1e6:
                return self._calibrated()
        return []

    def lane(self, worker: int) -> TaskLane[NumberedFrame, dict[int, Peaks]]:
        """Give a worker's lane; see `SeriesWork.lane`."""
        lane = self._lanes.get(worker)
        if lane is None:
            with self._lock:
                assert self._frame is not None
                opened, self._first = self._first, None
                opened = opened or self._work.lanes.open(self._detection, [self._frame])
                lane = self._lanes[worker] = TaskLane(opened, _keep, self._work.times)
        return lane

    def place(self, task: FrameTask) -> None:
        """Do nothing: frames do not depend on each other."""

    def snapshot(self, *, final: bool) -> ObjectSnapshot | None:
        """Give none: nothing grows over a series of peaks."""
        return None

    def afterwards(self) -> None:
        """Give none: peaks are not refined."""

    def end(self) -> None:
        """Give back what the series took of the GPU."""
        if self._run.work is self:
            self._run.memory = None
        for lane in (self._first, *self._lanes.values()):
            if lane is not None:
                lane.close()

    def _calibrated(self) -> list[FrameTask]:
        """Learn the background from the frames held back, if need be, and open the first lane."""
        held, self._held = sorted(self._held), []
        usable = [task for task in held if self._shows_background(task)]
        if not usable:
            return held
        first = _pixels(usable[0])
        try:
            if not self._detection.calibrated:
                self._calibrate(usable)
            self._first = self._work.lanes.open(
                self._detection,
                [_pixels(task) for task in usable],
                spare_frames=self._work.spare_frames(first.nbytes),
                announce=self._run.series,
            )
        except EdgexnasError as error:
            for task in usable:
                task.error = str(error)
            return held
        if self._run.work is self:
            self._run.memory = self._first.memory
        # An empty one of the same kind: the detector's own may lie in memory that is lent.
        self._frame = np.empty_like(first)
        self._run.detection = str(self._detection.used)
        _log.info("%s: %s", self._run.series, self._run.detection)
        return held

    def _go_on(self) -> None:
        """Use the background with which an earlier run has processed frames of the series."""
        kept, detection = self._work.kept, self._detection
        if kept is None or detection.calibrated or not self._run.ledger.stored_before:
            return
        assert detection.shape is not None
        detection.background = kept.find(self._key, detection.mask, detection.shape)
        if detection.calibrated:
            _log.info("%s: background as before the restart", self._run.series)

    def _calibrate(self, usable: list[FrameTask]) -> None:
        """Estimate the background from these frames, and keep it before one is processed."""
        detection = self._detection
        detection.calibrate([_pixels(task) for task in usable])
        _log.info("%s: background from %d frames", self._run.series, len(usable))
        if self._work.kept is not None and detection.background is not None:
            self._work.kept.keep(detection.background, self._key, detection.mask)

    def _shows_background(self, task: FrameTask) -> bool:
        try:
            refuse_nan(_pixels(task), self._detection.mask)
        except InputError as error:
            task.error = str(error)
        return task.error is None


def _keep(task: FrameTask, peaks: dict[int, Peaks], index: int) -> None:
    found = peaks[index]
    many = np.count_nonzero(found.unfamiliar) > FOREIGN_SHARE * len(found)
    flags = FrameFlag.UNFAMILIAR if many and len(found) >= FEWEST_TOLD else 0
    task.result = task.with_result(peaks=found, flags=int(flags))


def _pixels(task: FrameTask) -> npt.NDArray[Any]:
    assert task.pixels is not None
    return task.pixels
