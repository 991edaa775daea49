"""The lanes for detector frames: peaks are found and located on the CPU, or all on a GPU."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgexnas.bragg import CENTRE, Peaks, decode_offsets, scale_patches
from edgexnas.detector_mask import Mask, merged_masks
from edgexnas.device.bragg.announcement import compare_noise, peak_announcement
from edgexnas.device.bragg.detection import PeakDetection, naming_frame
from edgexnas.device.engines.build_progress import build_progress
from edgexnas.device.lane import Lane, Outcome, drive
from edgexnas.device.shared_engine import SharedEngine
from edgexnas.errors import EdgexnasError, InputError, SourceError
from edgexnas.frames.series import existing_frames, existing_numbers
from edgexnas.peak_finding import (
    DetectionOptions,
    FinderSettings,
    background_numbers,
    refuse_nan,
)

if TYPE_CHECKING:
    from edgexnas.device.announcement import Announcement
    from edgexnas.device.bragg.gpu_pipeline import FramePipeline
    from edgexnas.device.engines.device_engine import DeviceEngine
    from edgexnas.device.sources.compression import FrameMemory
    from edgexnas.device.sources.series_frames import SeriesFrames
    from edgexnas.familiarity import PeakChecks
    from edgexnas.frames import FrameSeries
    from edgexnas.peak_finding import FoundPeaks, PeakFinder

__all__ = ["NumberedFrame", "PeakLane", "PeakLanes", "stream_frames", "stream_series"]

SPARE_FRAMES = 4
"""One is decoded while the one before it is still held where it was taken and where it was given.
"""

MOST_FRAMES = 8
"""Frames of a group on the CPU: handing frames from thread to thread one by one costs as much as
the network does, and half of that is won back by groups of 8."""

GROUP_BYTES = 16 * 2**20
"""Most pixels of a group: the first of large frames is not to wait for peaks of many others."""

Frame = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]

_log = logging.getLogger(__name__)


class NumberedFrame(NamedTuple):
    """A frame that was checked.

    Attributes
    ----------
    number
        Of the frame in its series.
    pixels
        (H, W) of the lane's shape and dtype.
    """

    number: int
    pixels: Frame


class PeakLanes:
    """Opens lanes for the frames of one predictor.

    Parameters
    ----------
    engine
        The network.
    finder
        What counts as a peak where neither options nor the detector say otherwise.
    options
        What the user sets.
    levels
        The network's quantile levels.
    checks
        What the bundle knows of intervals and of familiar peaks; None for nothing.
    mask
        (H, W) bool, True where a pixel must not be used.
    """

    def __init__(
        self,
        engine: SharedEngine,
        *,
        finder: FinderSettings,
        levels: Sequence[float],
        checks: PeakChecks | None = None,
        options: DetectionOptions | None = None,
        mask: Mask | None = None,
    ) -> None:
        self.engine = engine
        self.checks = checks
        self._settings = finder
        self._options = options
        self._levels = levels
        self._mask = mask

    def detection(self, mask: Mask | None = None) -> PeakDetection:
        """Make a peak detection for one series, with this mask beside the predictor's.

        Raises
        ------
        InputError
            If the masks differ in shape.
        """
        return PeakDetection(self._settings, self._options, mask=merged_masks(self._mask, mask))

    def open(
        self,
        detection: PeakDetection,
        frames: Sequence[Frame],
        *,
        mask: Mask | None = None,
        saturation: float | None = None,
        spare_frames: int = 0,
        announce: str | None = None,
    ) -> PeakLane:
        """Open a lane: on the GPU where the engine runs on one, else on the CPU.

        Where no GPU lane can be had, for want of memory or of kernels for the dtype, that is
        logged.

        Parameters
        ----------
        detection
            Has admitted the frames.
        frames
            They show the background, unless the detection is calibrated; on a CPU they also show,
            before the first result, whether their peaks are like those of the training data.
        mask
            The series' own mask, beside the detection's.
        saturation
            Counts from which the series says that a pixel is saturated; None if it does not.
        spare_frames
            Frames that `memory` of a GPU lane can lend at once.
        announce
            What is logged to be unlike the training data as soon as that shows, once; None to log
            nothing.

        Raises
        ------
        InputError
            If a frame holds a NaN.
        EngineError
            If the engine is closed or the GPU failed for good.
        """
        finder = detection.finder(frames, mask=mask, saturation=saturation)
        dtype = frames[0].dtype

        def create(engine: DeviceEngine) -> FramePipeline:
            # Only predictors on a GPU load what it needs.
            from edgexnas.device.bragg.gpu_pipeline import FramePipeline

            return FramePipeline(
                engine,
                finder,
                dtype,
                levels=self._levels,
                checks=self.checks,
                cache=self.engine.cache,
                spare_frames=spare_frames,
            )

        pipeline = self.engine.keep_on_gpu("peaks are found on the CPU", create)
        told = None
        if announce is not None and self.checks is not None:
            told = peak_announcement(announce)
            compare_noise(announce, detection.used, self.checks.frame_noise)
        if pipeline is not None:
            return GpuPeakLane(self.engine, pipeline, detection, told)
        with build_progress(f"the peak finder is compiled for {dtype} frames"):
            finder.prepare(dtype)
            # Lanes of other threads may be opened now, or patches predicted.
            checks = None if self.checks is None else self.checks.copy()
            if checks is not None:
                checks.prepare()
        if told is not None and len(frames) > 1:
            for frame in frames:
                found = finder.find(frame, scaled=True)
                told.add(self.locate([found], [0], checks)[0].reasons)
        return CpuPeakLane(self, finder, detection, told)

    def offsets(self, patches: FloatArray) -> FloatArray:
        """(n, 11, 11) scaled patches → (n, 2, q) offsets from the patch centres, in px."""
        return self.engine.run(patches[:, None], (2, len(self._levels)))

    def locate(
        self,
        found: Sequence[FoundPeaks],
        numbers: Sequence[int],
        checks: PeakChecks | None = None,
    ) -> list[Peaks]:
        """Predict the positions of peaks found on several frames, in shared runs of the engine.

        Parameters
        ----------
        checks
            Judges the peaks of each frame; None leaves that out.

        Raises
        ------
        EngineError
            If the engine is closed or fails.
        """
        if not found:
            return []
        # A finder scales patches on its way, and scaling again changes nothing but takes time.
        patches = [p.counts if p.scaled else scale_patches(p.counts) for p in found]
        offsets_px = self.offsets(patches[0] if len(found) == 1 else np.concatenate(patches))
        ends = np.cumsum([len(peaks) for peaks in found])[:-1]
        parts = [offsets_px] if len(found) == 1 else np.split(offsets_px, ends)
        judged: list[npt.NDArray[np.uint8] | None] = [None] * len(found)
        if checks is not None:
            reasons = [
                checks.judge(scaled, peaks.intensities, part, peaks.flags).reasons
                for scaled, peaks, part in zip(patches, found, parts, strict=True)
            ]
            judged = list(reasons) if checks.judges else judged
        return list(map(self._placed, parts, found, numbers, judged))

    def _placed(
        self,
        offsets_px: FloatArray,
        found: FoundPeaks,
        number: int,
        reasons: npt.NDArray[np.uint8] | None,
    ) -> Peaks:
        placed = decode_offsets(offsets_px, self._levels, found.maxima - CENTRE)
        return Peaks(
            positions_px=placed.positions_px,
            intervals_px=placed.intervals_px,
            quantiles_px=placed.quantiles_px,
            maxima=found.maxima,
            intensities=found.intensities,
            flags=found.flags,
            frame_number=number,
            overflow=found.overflow,
            reasons=reasons,
        )


class PeakLane(Lane[NumberedFrame, dict[int, Peaks]]):
    """A lane for frames; it learned their shape and dtype when it was opened.

    Attributes
    ----------
    memory
        Lends pinned memory for frames, if it is on a GPU; None elsewhere.
    """

    memory: FrameMemory | None = None

    def __init__(self, detection: PeakDetection, told: Announcement | None) -> None:
        self._detection = detection
        self._told = told
        self._kind = detection.shape, detection.dtype

    def check(self, frame: npt.ArrayLike, number: int) -> NumberedFrame:
        """See `Lane.check`."""
        array = np.asarray(frame)
        # Compared here, because the full check costs more than is needed for every frame.
        if (array.shape, array.dtype) != self._kind:
            with naming_frame(number):
                self._detection.admit(array)
        return NumberedFrame(number, array)

    def _announce(self, located: Sequence[Peaks]) -> None:
        """Log that the peaks are unlike the training data, before anybody gets them."""
        if self._told is not None:
            for peaks in located:
                self._told.add(peaks.reasons)


class CpuPeakLane(PeakLane):
    """Finds the peaks of a group one after the other, and runs the network for all together."""

    ahead = 1
    most: int = MOST_FRAMES

    def __init__(
        self,
        lanes: PeakLanes,
        finder: PeakFinder,
        detection: PeakDetection,
        told: Announcement | None = None,
    ) -> None:
        super().__init__(detection, told)
        self._lanes = lanes
        # It has a scratch buffer, so that each lane needs its own.
        self._finder = finder
        self._checks = None if lanes.checks is None else lanes.checks.copy()
        self._submitted: deque[Sequence[NumberedFrame]] = deque()
        # Of pixels, not of peaks: how many peaks a frame has is only known once it is searched.
        frame_bytes = int(np.prod(finder.shape)) * np.dtype(detection.dtype).itemsize
        self.most = max(1, min(MOST_FRAMES, GROUP_BYTES // frame_bytes))
        self._batch = lanes.engine.engine.batch
        # Until a frame was searched, one is taken to fill a batch: the first result comes soonest.
        self._peaks = self._batch

    @property
    def group(self) -> int:
        """As many frames as fill the engine's batch, if each has as many peaks as the last."""
        return max(1, min(self.most, self._batch // max(1, self._peaks)))

    @property
    def in_flight(self) -> int:
        """See `Lane.in_flight`."""
        return len(self._submitted)

    def submit(self, frames: Sequence[NumberedFrame]) -> None:
        """See `Lane.submit`; the work is done when the result is taken."""
        self._lanes.engine.require_open()
        self._submitted.append(frames)

    def result(self) -> Outcome[dict[int, Peaks]]:
        """See `Lane.result`."""
        frames = self._submitted.popleft()
        faults: dict[int, EdgexnasError] = {}
        found: dict[int, FoundPeaks] = {}
        began = time.monotonic_ns()
        for index, (number, pixels) in enumerate(frames):
            try:
                # Scaled while it is cut, when the patch is in the cache.
                found[index] = self._finder.find(pixels, scaled=True)
            except InputError as error:
                faults[index] = InputError(f"frame {number}: {error}")
            else:
                self._peaks = len(found[index])
        done = time.monotonic_ns()
        located = self._lanes.locate(
            list(found.values()), [frames[index].number for index in found], self._checks
        )
        self._announce(located)
        stages = {"find": done - began, "network": time.monotonic_ns() - done}
        return Outcome(dict(zip(found, located, strict=True)), faults, stages)

    def close(self) -> None:
        """Do nothing: there is host memory only."""


class GpuPeakLane(PeakLane):
    """Leaves all to the GPU, which works on one frame while the next is copied to it."""

    group = most = 1

    def __init__(
        self,
        engine: SharedEngine,
        pipeline: FramePipeline,
        detection: PeakDetection,
        told: Announcement | None = None,
    ) -> None:
        super().__init__(detection, told)
        self._engine = engine
        self._pipeline = pipeline
        self._flying: deque[tuple[int, int]] = deque()
        # The lane keeps no reference: a frame returns to the pool when the last view of it goes.
        self.memory = pipeline.lend

    @property
    def ahead(self) -> int:
        """See `Lane.ahead`."""
        return self._pipeline.slots

    @property
    def in_flight(self) -> int:
        """See `Lane.in_flight`."""
        return len(self._flying)

    def submit(self, frames: Sequence[NumberedFrame]) -> None:
        """See `Lane.submit`."""
        ((number, pixels),) = frames
        began = time.monotonic_ns()
        with self._engine.in_turn():
            self._pipeline.submit(pixels, number=number)
        self._flying.append((number, began))

    def result(self) -> Outcome[dict[int, Peaks]]:
        """See `Lane.result`."""
        number, began = self._flying.popleft()
        results: dict[int, Peaks] = {}
        faults: dict[int, EdgexnasError] = {}
        try:
            with naming_frame(number), self._engine.in_turn():
                results[0] = self._pipeline.result()
        except InputError as error:
            faults[0] = error
        else:
            self._announce([results[0]])
        return Outcome(results, faults, {"gpu": time.monotonic_ns() - began})

    def close(self) -> None:
        """See `Lane.close`."""
        self._engine.release(self._pipeline)


def stream_series(
    lanes: PeakLanes, detection: PeakDetection, series: FrameSeries, *, close: bool
) -> Iterator[Peaks]:
    """Process the frames of a series in order, and close it if asked to."""
    try:
        there = existing_numbers(series)
        # A calibrated detection needs one frame all the same, which shows shape and dtype.
        numbers = there[:1].tolist()
        if not detection.calibrated:
            numbers = there[background_numbers(len(there), series.shape, series.dtype)].tolist()
        frames: list[Frame] = []
        with detection.undone_if_refused():
            for number, frame in existing_frames(series, numbers, quiet=True):
                with naming_frame(number):
                    frames.append(detection.admit(frame))
                    if not detection.calibrated:
                        refuse_nan(frames[-1], merged_masks(detection.mask, series.mask))
        # A series of the caller's own may say nothing of it.
        saturation = getattr(series, "saturation", None)
        lane = lanes.open(
            detection,
            frames,
            mask=series.mask,
            saturation=saturation,
            announce=str(series.source),
        )
        _log.info("%s: %s", series.source, detection.used)
        with closing(lane):
            del frames
            numbered = existing_frames(series)
            yield from _peaks(lanes.engine, lane, numbered, read_ahead=True)
    finally:
        if close:
            series.close()


def stream_frames(
    lanes: PeakLanes,
    detection: PeakDetection,
    frames: Iterator[tuple[int, npt.ArrayLike]],
    series: SeriesFrames | None = None,
) -> Iterator[Peaks]:
    """Process numbered frames one by one: the next one may come late.

    Parameters
    ----------
    frames
        The first one shows the background.
    series
        What they are of, if a source brings them: it knows their mask once the first is there, and
        decodes those after it where a GPU reads them.

    Raises
    ------
    SourceError
        If there are none.
    """
    first = next(frames, None)
    if first is None:
        raise SourceError("the source gave no frames; specify at least one")
    number, frame = first
    with naming_frame(number), detection.undone_if_refused():
        admitted = detection.admit(frame)
        lane = lanes.open(
            detection,
            [admitted],
            mask=None if series is None else series.mask,
            saturation=None if series is None else series.saturation,
            spare_frames=0 if series is None else SPARE_FRAMES,
            announce="frames" if series is None else series.source.url,
        )
    _log.info("%s: %s", "frames" if series is None else series.source.url, detection.used)
    with closing(lane):
        if series is not None:
            # From here on frames are decoded into pinned memory, and no thread copies them again.
            series.memory = lane.memory
        numbered = chain(iter([(number, admitted)]), frames)
        # One pinned frame held here would be missing in the pool for as long as the stream runs.
        del first, frame, admitted
        yield from _peaks(lanes.engine, lane, numbered, read_ahead=False)


def _peaks(
    engine: SharedEngine,
    lane: PeakLane,
    frames: Iterator[tuple[int, npt.ArrayLike]],
    *,
    read_ahead: bool,
) -> Iterator[Peaks]:
    # A live source: a frame that is here must not wait for one that may never come.
    groups = _groups(lane, frames, lane.most if read_ahead else 1)
    for outcome in drive(lane, groups, read_ahead=read_ahead):
        # A stream ends with its first fault, and what lies behind it in the group is not delivered.
        first = min(outcome.faults, default=None)
        for index, peaks in outcome.results.items():
            if first is None or index < first:
                # A closed predictor ends a stream also in the middle of a group.
                engine.require_open()
                yield peaks
        if first is not None:
            raise outcome.faults[first]


def _groups(
    lane: PeakLane, frames: Iterator[tuple[int, npt.ArrayLike]], most: int
) -> Iterator[list[NumberedFrame]]:
    group: list[NumberedFrame] = []
    try:
        for number, frame in frames:
            group.append(lane.check(frame, number))
            if len(group) == most:
                yield group
                group = []
    except EdgexnasError:
        # Those before the fault come first.
        if group:
            yield group
        raise
    if group:
        yield group
