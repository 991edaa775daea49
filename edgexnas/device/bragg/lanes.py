"""Series of frames on their way through a predictor of peaks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgexnas.bragg import CENTRE, Peaks, decode_offsets, scale_patches
from edgexnas.device.bragg.detection import PeakDetection, naming_frame
from edgexnas.device.detector_mask import Mask, merged_masks
from edgexnas.device.engines.build_progress import build_progress
from edgexnas.device.shared_engine import SharedEngine
from edgexnas.errors import EdgexnasError, EngineError, SourceError
from edgexnas.frames.series import existing_frames, existing_numbers
from edgexnas.peak_finding import FinderSettings, background_numbers, refuse_nan

if TYPE_CHECKING:
    from edgexnas.device.bragg.gpu_pipeline import FramePipeline
    from edgexnas.device.engines.device_engine import DeviceEngine
    from edgexnas.device.sources.series_frames import SeriesFrames
    from edgexnas.frames import FrameSeries
    from edgexnas.peak_finding import FoundPeaks, PeakFinder

__all__ = ["FrameProcessor", "PeakLanes", "stream_frames", "stream_series"]

SPARE_FRAMES = 4
"""One is decoded while the one before it is still held where it was taken and where it was given.
"""

Frame = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]


class PeakLanes:
    """What frames of one predictor go through: peak finding, and an engine on CPU or GPU.

    Parameters
    ----------
    engine
        The network.
    finder
        What counts as a peak.
    levels
        The network's quantile levels.
    mask
        (H, W) bool, True where a pixel must not be used.
    """

    def __init__(
        self,
        engine: SharedEngine,
        *,
        finder: FinderSettings,
        levels: Sequence[float],
        mask: Mask | None = None,
    ) -> None:
        self.engine = engine
        self._settings = finder
        self._levels = levels
        self._mask = mask

    def detection(self, mask: Mask | None = None) -> PeakDetection:
        """Give a peak detection of its own to a series, with this mask beside the series'.

        Raises
        ------
        InputError
            If the masks differ in shape.
        """
        return PeakDetection(self._settings, mask=merged_masks(self._mask, mask))

    def locate(self, found: Sequence[FoundPeaks], numbers: Sequence[int]) -> list[Peaks]:
        """Predict the positions of peaks found on several frames, in shared runs of the engine.

        Parameters
        ----------
        found
            What a finder of `detection` found on each of n frames.
        numbers
            The n frame numbers.

        Returns
        -------
        The peaks of each frame, in the order given.

        Raises
        ------
        EngineError
            If the predictor is closed or the engine fails.
        """
        counts = [peaks.counts for peaks in found]
        offsets_px = self.offsets(counts[0] if len(counts) == 1 else np.concatenate(counts))
        ends = np.cumsum([len(peaks) for peaks in found])[:-1]
        split = np.split(offsets_px, ends)
        return list(map(self._placed, split, found, numbers))

    def open_pipeline(
        self, finder: PeakFinder, dtype: npt.DTypeLike, *, spare_frames: int = 0
    ) -> FramePipeline | None:
        """Take what a series' frames go through on the GPU; `close` gives it back at the latest.

        Parameters
        ----------
        finder
            Of `detection`, once the series' background is known.
        dtype
            Of the frames.
        spare_frames
            Frames that the pipeline can lend at once to who decodes them.

        Returns
        -------
        A pipeline for `process_in`; None where frames stay on the CPU: without an engine on a GPU,
        and, with a warning that says why, where no pipeline can be had.

        Raises
        ------
        EngineError
            If the predictor is closed or the GPU failed for good.
        """

        def take(engine: DeviceEngine) -> FramePipeline:
            # Only predictors on a GPU load what it needs.
            from edgexnas.device.bragg.gpu_pipeline import FramePipeline

            return FramePipeline(
                engine,
                finder,
                dtype,
                levels=self._levels,
                cache=self.engine.cache,
                spare_frames=spare_frames,
            )

        return self.engine.keep_on_gpu("peaks are found on the CPU", take)

    def process_in(
        self, pipeline: FramePipeline, frame: npt.NDArray[Any], frame_number: int
    ) -> Peaks:
        """Find the peaks of one frame and predict their positions, all on the GPU.

        Threads take turns; while one waits for the GPU another one's frame is copied there.

        Raises
        ------
        InputError
            If shape or dtype are not the pipeline's, or a usable pixel is NaN or infinite.
        EngineError
            If the predictor is closed or the GPU fails.
        """
        with pipeline.turns:
            with self.engine.in_turn():
                slot = pipeline.submit(frame, number=frame_number)
            # A failure shows again when the result is taken, which frees the slot.
            with suppress(EngineError):
                pipeline.wait(slot)
            with self.engine.in_turn():
                return pipeline.result(slot)

    def _placed(self, offsets_px: FloatArray, found: FoundPeaks, number: int) -> Peaks:
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
        )

    def offsets(self, counts: FloatArray) -> FloatArray:
        """(n, 11, 11) counts → (n, 2, q) offsets from the patch centres, in px."""
        return self.engine.run(scale_patches(counts)[:, None], (2, len(self._levels)))


class FrameProcessor:
    """What frames with one background go through: a pipeline on the GPU, or finder and engine.

    Parameters
    ----------
    lanes
        Of the predictor.
    finder
        The rules, the background and the mask.
    dtype
        Of the frames.
    spare_frames
        Frames that the pipeline can lend at once to who decodes them.

    Attributes
    ----------
    pipeline
        None where peaks are found on the CPU.

    Raises
    ------
    EngineError
        If the predictor is closed or the GPU failed for good.
    """

    def __init__(
        self,
        lanes: PeakLanes,
        finder: PeakFinder,
        dtype: np.dtype[Any],
        *,
        spare_frames: int = 0,
    ) -> None:
        self._lanes = lanes
        self._finder = finder
        self.pipeline: FramePipeline | None = lanes.open_pipeline(
            finder, dtype, spare_frames=spare_frames
        )
        if self.pipeline is None:
            with build_progress(f"the peak finder is compiled for {dtype} frames"):
                finder.prepare(dtype)

    def process(self, frame: Frame, number: int) -> Peaks:
        """Find the peaks of one admitted frame and predict their positions."""
        if self.pipeline is not None:
            with naming_frame(number):
                return self._lanes.process_in(self.pipeline, frame, number)
        with self._lanes.engine.in_turn():
            with naming_frame(number):
                found = self._finder.find(frame)
            return self._lanes.locate([found], [number])[0]

    def process_all(self, frames: Iterator[tuple[int, Frame]]) -> Iterator[Peaks]:
        """Process admitted frames; each is copied to a GPU while it works on the one before."""
        pipeline = self.pipeline
        if pipeline is None:
            for number, frame in frames:
                yield self.process(frame, number)
            return
        flying: deque[int] = deque()
        while True:
            try:
                following = next(frames, None)
            except EdgexnasError:
                # The frame before is good, and comes first.
                if flying:
                    yield self._taken(pipeline, flying)
                raise
            if following is None:
                break
            number, frame = following
            with self._lanes.engine.in_turn():
                pipeline.submit(frame, number=number)
            flying.append(number)
            if len(flying) == 2:
                yield self._taken(pipeline, flying)
        if flying:
            yield self._taken(pipeline, flying)

    def _taken(self, pipeline: FramePipeline, flying: deque[int]) -> Peaks:
        with naming_frame(flying.popleft()), self._lanes.engine.in_turn():
            return pipeline.result()

    def close(self) -> None:
        """Give the memory of frames on the GPU back; closing again does nothing."""
        if self.pipeline is not None:
            self._lanes.engine.release(self.pipeline)


def stream_series(
    lanes: PeakLanes, detection: PeakDetection, series: FrameSeries, *, close: bool
) -> Iterator[Peaks]:
    """Process the frames of a series in order, and close it if asked to."""
    processor: FrameProcessor | None = None
    try:
        with lanes.engine.in_turn():
            numbers = existing_numbers(series)[:1].tolist()
            if not detection.calibrated:
                there = existing_numbers(series)
                shown = background_numbers(len(there), series.shape, series.dtype)
                numbers = there[shown].tolist()
            frames: list[Frame] = []
            for number, frame in existing_frames(series, numbers, quiet=True):
                with naming_frame(number):
                    frames.append(detection.admit(frame))
                    if not detection.calibrated:
                        refuse_nan(frames[-1], detection.masked(series.mask))
            finder = detection.finder(frames, mask=series.mask)
            processor = FrameProcessor(lanes, finder, frames[0].dtype)
        del frames
        admitted = ((number, detection.admit(frame)) for number, frame in existing_frames(series))
        yield from processor.process_all(admitted)
    finally:
        if processor is not None:
            processor.close()
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
    processor: FrameProcessor | None = None
    try:
        for number, frame in frames:
            with lanes.engine.in_turn():
                with naming_frame(number):
                    admitted = detection.admit(frame)
                if processor is None:
                    mask = None if series is None else series.mask
                    with naming_frame(number):
                        finder = detection.finder([admitted], mask=mask)
                    spare = 0 if series is None else SPARE_FRAMES
                    processor = FrameProcessor(lanes, finder, admitted.dtype, spare_frames=spare)
                    if series is not None and processor.pipeline is not None:
                        series.memory = processor.pipeline.lend
                peaks = processor.process(admitted, number)
            yield peaks
    finally:
        if processor is not None:
            processor.close()
    if processor is None:
        raise SourceError("the source gave no frames; give at least one")
