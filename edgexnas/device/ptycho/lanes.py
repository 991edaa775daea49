"""The lanes for diffraction patterns: binned and predicted on the CPU, or all on a GPU."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgexnas.detector_mask import Mask
from edgexnas.device.lane import Lane, Outcome
from edgexnas.device.ptycho.intake import PatternIntake
from edgexnas.device.ptycho.stitching import MOST_WAITING, ObjectStitcher
from edgexnas.device.shared_engine import SharedEngine
from edgexnas.errors import EngineError
from edgexnas.familiarity.pattern_checks import NOT_LOOKED_AT
from edgexnas.ptycho import (
    PATTERN_SIZE,
    FloatArray,
    ObjectPatches,
    as_patterns,
    decode_patches,
    scale_patterns,
)

if TYPE_CHECKING:
    from edgexnas.device.engines.device_engine import DeviceEngine
    from edgexnas.device.ptycho.gpu_phase_components import GpuComponents
    from edgexnas.device.ptycho.gpu_pipeline import PatternPipeline
    from edgexnas.device.ptycho.refining import RefinedScan
    from edgexnas.familiarity import PatternChecks

__all__ = ["NumberedPattern", "PatternLane", "PatternLanes", "ScanLane"]

Pattern = npt.NDArray[Any]

SAME_PIXEL = 0.05
"""Sizes of object pixels that differ by less, as a share, are those of one set-up."""

_log = logging.getLogger(__name__)


class NumberedPattern(NamedTuple):
    """A pattern that was checked.

    Attributes
    ----------
    number
        Of the pattern in its scan.
    counts
        (64, 64) float32 on the CPU; (H, W) in pinned memory where a GPU checks and bins them.
    """

    number: int
    counts: Pattern


PatternLane = Lane[NumberedPattern, ObjectPatches]
"""A lane for patterns, which may be overwritten once they are checked."""


class PatternLanes:
    """Opens lanes for the patterns of one predictor.

    Parameters
    ----------
    engine
        The network.
    intake
        The predictor's own mask and limit of counts.
    intensity_scale
        As of `edgexnas.ptycho.scale_patterns`.
    checks
        Finds patterns unlike those of the training data; None where the bundle does not tell.
    pixel_m
        (row, col) size of an object pixel of the training data, in metres; None if unknown.
    """

    def __init__(
        self,
        engine: SharedEngine,
        *,
        intake: PatternIntake,
        intensity_scale: float,
        checks: PatternChecks | None = None,
        pixel_m: tuple[float, float] | None = None,
    ) -> None:
        self.engine = engine
        self._checks = checks
        self._pixel_m = pixel_m
        self._intake = intake
        self._intensity_scale = intensity_scale

    def intake(self, mask: Mask | None = None) -> PatternIntake:
        """Make a check of patterns for one scan, with this mask beside the predictor's.

        Raises
        ------
        InputError
            If the masks differ in shape.
        """
        return self._intake.beside(mask)

    def open(self, intake: PatternIntake, pattern: Pattern) -> PatternLane:
        """Open a lane: on the GPU where the engine runs on one, else on the CPU.

        Where no GPU lane can be had, for want of memory or of kernels for the dtype, that is
        logged.

        Parameters
        ----------
        intake
            The scan's, which has accepted its first pattern.
        pattern
            That pattern.

        Raises
        ------
        EngineError
            If the engine is closed or the GPU failed for good.
        """

        def create(engine: DeviceEngine) -> PatternPipeline:
            # Only predictors on a GPU load what it needs.
            from edgexnas.device.ptycho.gpu_pipeline import PatternPipeline

            rows, cols = pattern.shape
            return PatternPipeline(
                engine, (rows, cols), pattern.dtype, intensity_scale=self._intensity_scale,
                mask=intake.mask, saturation=intake.saturation, cache=self.engine.cache,
            )  # fmt: skip

        pipeline = self.engine.keep_on_gpu("patterns are binned on the CPU", create)
        if pipeline is not None:
            return GpuPatternLane(self, pipeline, intake)
        return CpuPatternLane(self, intake)

    def stitcher(self, most_waiting: int = MOST_WAITING) -> ObjectStitcher:
        """Make an empty object: on the GPU where the engine runs on one, else in host memory.

        Raises
        ------
        ConfigurationError
            If `most_waiting` is not a number from 0.
        EngineError
            If the engine is closed or the GPU failed for good.
        """
        stitcher = ObjectStitcher(most_waiting)

        def create(engine: DeviceEngine) -> GpuComponents:
            from edgexnas.device.ptycho.gpu_phase_components import GpuComponents

            return GpuComponents(engine.session, most=engine.batch, cache=self.engine.cache)

        components = self.engine.on_gpu("patches are stitched on the CPU", create)
        if components is not None:
            stitcher.components = components
        return stitcher

    def predict(self, patterns: npt.ArrayLike) -> ObjectPatches:
        """Check patterns and predict their patches; see `PtychoPredictor.predict`."""
        usable = self._intake.masked(np.asarray(patterns))
        return self.predict_checked(as_patterns(usable, saturation=self._intake.saturation))

    def compare_pixel(self, pixel_m: tuple[float, float] | None, source: str) -> None:
        """Log that the object pixels of a scan have another size than those of training."""
        known = self._pixel_m
        if pixel_m is None or known is None:
            return
        # Signs tell which way positions run, not how large a pixel is.
        ratios = [abs(here) / abs(there) for here, there in zip(pixel_m, known, strict=True)]
        if any(abs(ratio - 1) > SAME_PIXEL for ratio in ratios):
            _log.warning(
                "%s: object pixels are %.4g × %.4g nm and were %.4g × %.4g nm in the training "
                "data: the network sees another distance, wavelength or binning; do not trust "
                "the object",
                source,
                *(abs(size) * 1e9 for size in (*pixel_m, *known)),
            )

    def judged(
        self,
        patches: ObjectPatches,
        numbers: Sequence[int],
        binned: Callable[[int], FloatArray],
        *,
        bad: Sequence[int] = (),
    ) -> ObjectPatches:
        """Judge some of the patterns that patches were predicted from.

        Parameters
        ----------
        numbers
            (n,) of the patterns in their scan.
        binned
            Gives one of them, by its index here, as (64, 64) counts.
        bad
            Indices here of patterns that are none, which are left out.
        """
        if self._checks is None:
            return patches
        chosen = [
            index
            for index, number in enumerate(numbers)
            if self._checks.looks_at(number) and index not in bad
        ]
        reasons = np.full(len(numbers), NOT_LOOKED_AT, np.uint8)
        if chosen:
            counts = np.stack([binned(index) for index in chosen])
            amplitude, phase = patches.amplitude[chosen], patches.phase_rad[chosen]
            reasons[chosen] = self._checks.judge(counts, amplitude, phase)
        return replace(patches, reasons=reasons)

    def predict_checked(self, patterns: FloatArray) -> ObjectPatches:
        """Predict from checked (n, 64, 64) float32 patterns.

        Raises
        ------
        EngineError
            If the engine is closed or fails.
        """
        inputs = scale_patterns(patterns, self._intensity_scale)[:, None]
        return decode_patches(self.engine.run(inputs, (2, PATTERN_SIZE, PATTERN_SIZE)))


class CpuPatternLane:
    """Checks and bins patterns as they come, and runs the network when the result is taken."""

    ahead = 1

    def __init__(self, lanes: PatternLanes, intake: PatternIntake) -> None:
        self._lanes = lanes
        self._intake = intake
        self.group = self.most = lanes.engine.engine.batch
        self._binning_ns = 0
        self._submitted: deque[tuple[Sequence[NumberedPattern], int]] = deque()

    @property
    def in_flight(self) -> int:
        """See `Lane.in_flight`."""
        return len(self._submitted)

    def check(self, frame: npt.ArrayLike, number: int) -> NumberedPattern:
        """See `Lane.check`."""
        began = time.monotonic_ns()
        binned = self._intake.admit(frame, number)
        self._binning_ns += time.monotonic_ns() - began
        return NumberedPattern(number, binned)

    def submit(self, frames: Sequence[NumberedPattern]) -> None:
        """See `Lane.submit`; the work is done when the result is taken."""
        self._lanes.engine.require_open()
        # Binning happens in `check`; its time is reported with the group that it was for.
        self._submitted.append((frames, self._binning_ns))
        self._binning_ns = 0

    def result(self) -> Outcome[ObjectPatches]:
        """See `Lane.result`."""
        frames, binning_ns = self._submitted.popleft()
        began = time.monotonic_ns()
        patches = self._lanes.predict_checked(np.stack([frame.counts for frame in frames]))
        patches = self._lanes.judged(
            patches, [frame.number for frame in frames], lambda index: frames[index].counts
        )
        stages = {"bin": binning_ns, "network": time.monotonic_ns() - began}
        return Outcome(patches, {}, stages)

    def close(self) -> None:
        """Do nothing: there is host memory only."""


class GpuPatternLane:
    """Writes patterns to the GPU's memory as they come; it checks, bins and predicts them."""

    # One batch is computed while the next is written; results are taken in between.
    ahead = 2

    def __init__(
        self, lanes: PatternLanes, pipeline: PatternPipeline, intake: PatternIntake
    ) -> None:
        self._lanes, self._engine = lanes, lanes.engine
        self._pipeline, self._intake = pipeline, intake
        self.group = self.most = pipeline.batch
        self._checked = 0
        self._flying: deque[tuple[Sequence[NumberedPattern], int]] = deque()

    @property
    def in_flight(self) -> int:
        """See `Lane.in_flight`."""
        return len(self._flying)

    def check(self, frame: npt.ArrayLike, number: int) -> NumberedPattern:
        """See `Lane.check`; the counts themselves are checked on the GPU."""
        array = self._intake.accept(frame, number)
        try:
            place = self._pipeline.next_batch()[self._checked]
        except EngineError:
            # Which says so if the predictor is closed.
            self._engine.require_open()
            raise
        # Straight into the next batch's pinned memory: the caller's array is free from here on.
        place[...] = array
        # Only after the copy: a pattern that is rejected leaves its place to the next.
        self._checked += 1
        return NumberedPattern(number, place)

    def submit(self, frames: Sequence[NumberedPattern]) -> None:
        """See `Lane.submit`."""
        self._checked = 0
        began = time.monotonic_ns()
        with self._engine.in_turn():
            self._pipeline.submit(len(frames))
        self._flying.append((frames, began))

    def result(self) -> Outcome[ObjectPatches]:
        """See `Lane.result`."""
        frames, began = self._flying.popleft()

        def binned(index: int) -> FloatArray:
            return self._intake.binned(frames[index].counts, frames[index].number)

        with self._engine.in_turn():
            patches, bad = self._pipeline.result()
        # Here, before the next check writes over the patterns.
        patches = self._lanes.judged(patches, [frame.number for frame in frames], binned, bad=bad)
        faults = {
            index: self._intake.fault(frames[index].counts, frames[index].number) for index in bad
        }
        return Outcome(patches, faults, {"gpu": time.monotonic_ns() - began})

    def close(self) -> None:
        """See `Lane.close`."""
        self._engine.release(self._pipeline)


class ScanLane:
    """Opens the lane of a scan with its first pattern, whose dtype there may be no kernels for.

    Parameters
    ----------
    lanes
        Of the predictor.
    store
        Keeps the patterns to refine the object with; None to keep none.

    Attributes
    ----------
    lane
        None before the first pattern.
    """

    def __init__(self, lanes: PatternLanes, store: RefinedScan | None = None) -> None:
        self._lanes = lanes
        self._intake = lanes.intake()
        self._store = store
        self.lane: PatternLane | None = None

    def compare_pixel(self, pixel_m: tuple[float, float] | None, source: str) -> None:
        """Log that the object pixels of the scan have another size than those of training."""
        self._lanes.compare_pixel(pixel_m, source)

    def use_mask(self, mask: Mask | None) -> None:
        """Use a scan's own mask beside the predictor's.

        Raises
        ------
        InputError
            If the masks differ in shape.
        """
        self._intake = self._lanes.intake(mask)

    def check(self, pattern: npt.ArrayLike, number: int) -> NumberedPattern:
        """See `Lane.check`."""
        if self.lane is None:
            accepted = self._intake.accept(pattern, number)
            if self._store is not None:
                self._store.begin(accepted.shape, self._intake)
            self.lane = self._lanes.open(self._intake, accepted)
        checked = self.lane.check(pattern, number)
        if self._store is not None:
            self._store.keep(number, pattern)
        return checked

    def close(self) -> None:
        """Close the lane and let go of what keeps patterns; closing again does nothing."""
        self._store = None
        if self.lane is not None:
            self.lane.close()
