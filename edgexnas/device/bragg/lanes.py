"""Series of frames on their way through a predictor of peaks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgexnas.bragg import Peaks
from edgexnas.device.bragg.detection import naming_frame
from edgexnas.device.engines.build_progress import build_progress
from edgexnas.errors import EdgexnasError, SourceError
from edgexnas.frames.series import existing_frames, existing_numbers
from edgexnas.peak_finding import background_numbers, refuse_nan

if TYPE_CHECKING:
    from edgexnas.device.bragg.detection import PeakDetection
    from edgexnas.device.bragg.gpu_pipeline import FramePipeline
    from edgexnas.device.bragg.predictor import PeakPredictor
    from edgexnas.device.sources.series_frames import SeriesFrames
    from edgexnas.frames import FrameSeries
    from edgexnas.peak_finding import PeakFinder

__all__ = ["FrameProcessor", "stream_frames", "stream_series"]

SPARE_FRAMES = 4
"""One is decoded while the one before it is still held where it was taken and where it was given.
"""

Frame = npt.NDArray[Any]


class FrameProcessor:
    """What frames with one background go through: a pipeline on the GPU, or finder and engine.

    Parameters
    ----------
    predictor
        Its engine and its lock are used.
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
        predictor: PeakPredictor,
        finder: PeakFinder,
        dtype: np.dtype[Any],
        *,
        spare_frames: int = 0,
    ) -> None:
        self._predictor = predictor
        self._finder = finder
        self.pipeline: FramePipeline | None = predictor.open_pipeline(
            finder, dtype, spare_frames=spare_frames
        )
        if self.pipeline is None:
            with build_progress(f"the peak finder is compiled for {dtype} frames"):
                finder.prepare(dtype)

    def process(self, frame: Frame, number: int) -> Peaks:
        """Find the peaks of one admitted frame and predict their positions."""
        if self.pipeline is not None:
            with naming_frame(number):
                return self._predictor.process_in(self.pipeline, frame, number)
        with self._predictor.in_turn():
            with naming_frame(number):
                found = self._finder.find(frame)
            return self._predictor.locate([found], [number])[0]

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
            with self._predictor.in_turn():
                pipeline.submit(frame, number=number)
            flying.append(number)
            if len(flying) == 2:
                yield self._taken(pipeline, flying)
        if flying:
            yield self._taken(pipeline, flying)

    def _taken(self, pipeline: FramePipeline, flying: deque[int]) -> Peaks:
        with naming_frame(flying.popleft()), self._predictor.in_turn():
            return pipeline.result()

    def close(self) -> None:
        """Give the memory of frames on the GPU back; closing again does nothing."""
        if self.pipeline is not None:
            self._predictor.close_pipeline(self.pipeline)


def stream_series(
    predictor: PeakPredictor, detection: PeakDetection, series: FrameSeries, *, close: bool
) -> Iterator[Peaks]:
    """Process the frames of a series in order, and close it if asked to."""
    processor: FrameProcessor | None = None
    try:
        with predictor.in_turn():
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
            # A series of the caller's own may say nothing of it.
            saturation = getattr(series, "saturation", None)
            finder = detection.finder(frames, mask=series.mask, saturation=saturation)
            processor = FrameProcessor(predictor, finder, frames[0].dtype)
        del frames
        admitted = ((number, detection.admit(frame)) for number, frame in existing_frames(series))
        yield from processor.process_all(admitted)
    finally:
        if processor is not None:
            processor.close()
        if close:
            series.close()


def stream_frames(
    predictor: PeakPredictor,
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
            with predictor.in_turn():
                with naming_frame(number):
                    admitted = detection.admit(frame)
                if processor is None:
                    mask = None if series is None else series.mask
                    saturation = None if series is None else series.saturation
                    with naming_frame(number):
                        finder = detection.finder([admitted], mask=mask, saturation=saturation)
                    spare = 0 if series is None else SPARE_FRAMES
                    processor = FrameProcessor(
                        predictor, finder, admitted.dtype, spare_frames=spare
                    )
                    if series is not None and processor.pipeline is not None:
                        series.memory = processor.pipeline.lend
                peaks = processor.process(admitted, number)
            yield peaks
    finally:
        if processor is not None:
            processor.close()
    if processor is None:
        raise SourceError("the source gave no frames; give at least one")
