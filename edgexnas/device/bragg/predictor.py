"""From detector frames to the positions of Bragg peaks."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from edgexnas.bragg import CENTRE, PeakPositions, Peaks, as_patches, decode_offsets, scale_patches
from edgexnas.device.bragg.detection import PeakDetection
from edgexnas.device.bragg.frame_source import FrameSource, open_source
from edgexnas.device.bragg.lanes import FrameProcessor, stream_frames, stream_series
from edgexnas.device.cache import open_cache
from edgexnas.device.engines.gate import EngineProof, run_in_batches
from edgexnas.device.predictor import Predictor
from edgexnas.device.sources.series_frames import SeriesFrames
from edgexnas.errors import EngineError, InputError

if TYPE_CHECKING:
    from edgexnas.bundle import Bundle, Precision, TrustStore
    from edgexnas.device.bragg.gpu_pipeline import FramePipeline
    from edgexnas.device.engines.device_engine import DeviceEngine
    from edgexnas.peak_finding import FoundPeaks, PeakFinder

__all__ = ["PeakPredictor"]

FloatArray = npt.NDArray[np.float32]


class PeakPredictor(Predictor):
    """Positions of Bragg peaks; see `Predictor`.

    ::

        with PeakPredictor("bragg.edgex", trust="keys/") as predictor:
            for peaks in predictor.stream("scan.h5"):
                print(peaks.frame_number, peaks.positions_px)

    All coordinates are (row, col) in pixels; the centre of a frame's first pixel is (0, 0).

    A predictor serves one detector: the mask or the first frame fixes the shape of all frames,
    the first frame their dtype.

    Where the engine runs on a GPU, so does all that `process`, `stream` and a service do to frames
    of uint8, uint16, int16, uint32, int32 and float32; open it with a `batch` near the number of
    peaks of a frame. Elsewhere, and for other dtypes, peaks are found on the CPU, compiled where
    numba is installed. All give the same peaks.

    Parameters
    ----------
    bundle, trust, engine, precision, batch, threads, cache
        As of `Predictor`.
    mask
        (H, W) bool, True where a pixel must not be used (dead, hot, in a gap).

    Attributes
    ----------
    proof
        How far positions lie from the reference outputs, and the gate.

    Raises
    ------
    BundleError, ConfigurationError, EngineError, InputError, MissingDependencyError
        As of `Predictor`; `ConfigurationError` also if the bundle is not for Bragg peaks.
    """

    task = "bragg"
    proof: EngineProof

    def __init__(
        self,
        bundle: str | os.PathLike[str] | Bundle,
        *,
        trust: str | os.PathLike[str] | TrustStore | None = None,
        engine: str = "auto",
        precision: Precision | Literal["auto"] = "int8",
        batch: int = 32,
        threads: int | None = None,
        cache: str | os.PathLike[str] | Literal[False] | None = None,
        mask: npt.ArrayLike | None = None,
    ) -> None:
        preprocessing = self._verified.manifest.preprocessing
        assert preprocessing.kind == "bragg"
        self._detection = PeakDetection(preprocessing.finder, mask=mask)
        self._next_number = 0
        self._own_finder: PeakFinder | None = None
        self._own: FrameProcessor | None = None
        super().__init__(
            bundle,
            trust=trust,
            engine=engine,
            precision=precision,
            batch=batch,
            threads=threads,
            cache=cache,
        )

    def predict(self, patches: npt.ArrayLike) -> PeakPositions:
        """Predict the positions of peaks in patches.

        Parameters
        ----------
        patches
            (n, 11, 11) or (n, 1, 11, 11), any real dtype, n from 0; counts in any unit, with the
            background subtracted. Each is scaled by its own minimum and maximum.

        Returns
        -------
        Positions in pixels from the patch's first pixel: positions_px (n, 2), intervals_px (n, 2)
        and quantiles_px (n, 2, q), float32.

        Raises
        ------
        InputError
            If the shape or the dtype is another, or a value is not finite.
        EngineError
            If the predictor is closed or the engine fails.
        """
        checked = as_patches(patches)
        with self._lock:
            return decode_offsets(
                self._offsets(scale_patches(checked)), self.manifest.quantile_levels
            )

    def process(self, frame: npt.ArrayLike, *, frame_number: int | None = None) -> Peaks:
        """Find the peaks of one detector frame and predict their positions.

        The first frame shows the background of all frames that `process` gets, unless
        `calibrate_background` was called.

        Parameters
        ----------
        frame
            (H, W) counts, any integer or float dtype.
        frame_number
            Number of the frame in its series; None for one more than at the last call, from 0.

        Returns
        -------
        The peaks in frame coordinates, sorted by the (row, col) of their brightest pixel.

        Raises
        ------
        InputError
            If shape or dtype differ from the first frame's or from the mask's shape, or a usable
            pixel is NaN or infinite; the message names the pixel.
        EngineError
            If the predictor is closed or the engine fails.
        """
        with self._lock:
            self._refuse_closed()
            admitted = self._detection.admit(frame)
            finder = self._detection.own_finder(admitted)
            number = self._next_number if frame_number is None else frame_number
            if self._own is None or finder is not self._own_finder:
                if self._own is not None:
                    self._own.close()
                self._own = FrameProcessor(self, finder, admitted.dtype)
                self._own_finder = finder
            peaks = self._own.process(admitted, number)
            self._next_number = number + 1
            return peaks

    def detection(self, mask: npt.NDArray[np.bool_] | None = None) -> PeakDetection:
        """Give a peak detection of its own to a series, with this mask beside the series'.

        `find` on its finders and then `locate` is what `process` does, in two steps that can run
        in different threads.

        Raises
        ------
        InputError
            If the masks differ in shape.
        """
        own = self._detection.mask
        if mask is not None and own is not None:
            if mask.shape != own.shape:
                raise InputError(
                    f"the series' mask has shape {mask.shape}, this predictor's has {own.shape}; "
                    "give masks of one detector"
                )
            mask = mask | own
        return PeakDetection(self._detection.settings, mask=own if mask is None else mask)

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
        # A finder scales patches on its way, and scaling again changes nothing but takes time.
        patches = [p.counts if p.scaled else scale_patches(p.counts) for p in found]
        with self._lock:
            offsets_px = self._offsets(patches[0] if len(found) == 1 else np.concatenate(patches))
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
                levels=self.manifest.quantile_levels,
                cache=open_cache(self._cache),
                spare_frames=spare_frames,
            )

        pipeline = self._opened_on_gpu("peaks are found on the CPU", take)
        if pipeline is not None:
            self._pipelines.append(pipeline)
        return pipeline

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
            with self.in_turn():
                slot = pipeline.submit(frame, number=frame_number)
            # A failure shows again when the result is taken, which frees the slot.
            with suppress(EngineError):
                pipeline.wait(slot)
            with self.in_turn():
                return pipeline.result(slot)

    def stream(self, source: FrameSource) -> Iterator[Peaks]:
        """Process a series of frames in order.

        Parameters
        ----------
        source
            A path that `edgexnas.frames.open_frames` reads, a URL as of
            `edgexnas.device.sources.open_event_source` (pva://, simplon://, ...), a `FrameSeries`,
            an (n, H, W) array, or an iterable of (H, W) frames. A URL gives the first series that
            comes, until it ends; a PVA channel does not say so itself unless the URL has
            ``idle_s``. Frames of a live source that are not taken in time are lost: their numbers
            are missing. The background of a path, series or array comes from up to 16 of its
            frames, spread evenly; that of a URL or an iterable from its first. After
            `calibrate_background` it comes from there instead. A series' own mask is used beside
            the predictor's.

        Yields
        ------
        The peaks of each frame, in order, with `frame_number` from 0, or as the detector numbers
        them.

        Raises
        ------
        ConfigurationError
            If the source is none of these, or a URL is wrong.
        MissingDependencyError
            If the library for a URL is not installed.
        SourceError
            If a path cannot be opened or read, or there are no frames; an iterable shows that only
            when it is asked for its first frame.
        InputError, EngineError
            As in `process`, for the frame at fault.
        """
        self._refuse_closed()
        opened = open_source(source)
        if isinstance(opened, Iterator):
            return stream_frames(self, self._detection, enumerate(opened))
        # Frames of a detector come with their own numbers and cannot be read in any order.
        if isinstance(opened, SeriesFrames):
            return stream_frames(self, self._detection, opened.numbered(), opened)
        return stream_series(self, self._detection, opened, close=opened is not source)

    def calibrate_background(self, frames: Iterable[npt.ArrayLike]) -> None:
        """Estimate the background once, for every frame to come.

        Parameters
        ----------
        frames
            (k, H, W) or k frames of (H, W), counts, k from 1; such as frames without beam, or ones
            spread over a scan.

        Raises
        ------
        InputError
            If there is no frame, or one differs in shape or dtype or holds a NaN.
        EngineError
            If the predictor is closed.
        """
        with self._lock:
            self._refuse_closed()
            self._detection.calibrate(frames)

    def _placed(self, offsets_px: FloatArray, found: FoundPeaks, number: int) -> Peaks:
        placed = decode_offsets(offsets_px, self.manifest.quantile_levels, found.maxima - CENTRE)
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

    def _offsets(self, scaled: FloatArray) -> FloatArray:
        """(n, 11, 11) scaled patches → (n, 2, q) offsets from the patch centres, in px."""
        self._refuse_closed()
        item_shape = (2, len(self.manifest.quantile_levels))
        return run_in_batches(self.engine, scaled[:, None], item_shape)
