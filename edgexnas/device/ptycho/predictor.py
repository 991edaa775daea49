"""From diffraction patterns to patches of the object, and to an image of it."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from edgexnas.device.cache import open_cache
from edgexnas.device.engines.gate import ObjectProof, run_in_batches
from edgexnas.device.predictor import Predictor
from edgexnas.device.ptycho.intake import PatternIntake
from edgexnas.device.ptycho.lanes import PatternRun
from edgexnas.device.ptycho.patch_stream import PatchStream
from edgexnas.device.ptycho.scan import ScanSource, open_chunks
from edgexnas.device.ptycho.stitching import MOST_WAITING, ObjectStitcher
from edgexnas.ptycho import (
    PATTERN_SIZE,
    FloatArray,
    ObjectPatches,
    as_patterns,
    decode_patches,
    scale_patterns,
)

if TYPE_CHECKING:
    from edgexnas.bundle import Bundle, Precision, TrustStore
    from edgexnas.device.engines.device_engine import DeviceEngine
    from edgexnas.device.ptycho.gpu_phase_components import GpuIslands
    from edgexnas.device.ptycho.gpu_pipeline import PatternPipeline

__all__ = ["PtychoPredictor"]


class PtychoPredictor(Predictor):
    """Amplitude and phase of an object from its diffraction patterns; see `Predictor`.

    ::

        with PtychoPredictor("ptycho.edgex", trust="keys/") as predictor:
            stream = predictor.stream("scan.h5")
            for patches in stream:
                print(patches.frame_numbers, patches.positions_px)
            image = stream.image()

    Parameters
    ----------
    bundle, trust, engine, precision, batch, threads, cache
        As of `Predictor`.
    mask
        (H, W) bool, True where a detector pixel must not be used; it counts as 0 there.
    saturation
        Counts from which a pixel is saturated; None for the largest value of an unsigned integer
        dtype, and no limit for others.

    Attributes
    ----------
    proof
        How far phase and amplitude lie from the reference outputs, and the gates.

    Raises
    ------
    BundleError, ConfigurationError, EngineError, InputError, MissingDependencyError
        As of `Predictor`; `ConfigurationError` also if the bundle is not for ptychography.
    """

    task = "ptycho"
    proof: ObjectProof

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
        saturation: float | None = None,
    ) -> None:
        self._intake = PatternIntake(mask=mask, saturation=saturation)
        self._streams: weakref.WeakSet[PatchStream] = weakref.WeakSet()
        super().__init__(
            bundle,
            trust=trust,
            engine=engine,
            precision=precision,
            batch=batch,
            threads=threads,
            cache=cache,
        )
        preprocessing = self.manifest.preprocessing
        assert preprocessing.kind == "ptycho"
        self._intensity_scale = preprocessing.intensity_scale

    def predict(self, patterns: npt.ArrayLike) -> ObjectPatches:
        """Predict the patches of the object under the probe.

        Parameters
        ----------
        patterns
            (n, 64, 64) or (n, 1, 64, 64) photon counts, any real dtype, n from 0, the direct beam
            at (32, 32); `edgexnas.ptycho.bin_patterns` brings larger ones to this size. Pixels
            under the mask count as 0.

        Returns
        -------
        amplitude, without unit, and phase_rad, up to a constant a patch: (n, 64, 64) float32.

        Raises
        ------
        InputError
            If the shape, the dtype or the mask's shape is another, or a count is negative, not
            finite or saturated; the message names the pattern, the pixel and the value.
        EngineError
            If the predictor is closed or the engine fails.
        """
        usable = self._intake.masked(np.asarray(patterns))
        return self._patches(as_patterns(usable, saturation=self._intake.saturation))

    def stream(
        self,
        source: ScanSource,
        *,
        object_pixel_m: tuple[float, float] | None = None,
        most_waiting: int = MOST_WAITING,
    ) -> PatchStream:
        """Predict the patches of a scan in order, and stitch them into an image of the object.

        Parameters
        ----------
        source
            A path that `edgexnas.scans.open_scan` reads, a `Scan`, or an iterable of (pattern,
            position). Or what `edgexnas.device.sources.open_event_source` opens from a URL, such
            as ``pva://CHANNEL?positions=OTHER``: the first series that it brings, with
            `object_pixel_m`. Patterns of 128×128, 192×192, ... are binned to 64×64. A position is
            the (row, col) of the first pixel of a patch in object pixels, and NaN or None while it
            is unknown: give it later, or beforehand, as a `PositionReading` among the pairs.
        object_pixel_m
            (row, col) size of an object pixel, λ·z / (H·p), for the positions in metres of a URL;
            negative along an axis that positions run the other way.
        most_waiting
            Most patches that wait for their position, 32 kB each, and most positions that wait for
            their pattern; beyond that the oldest is given up and counted.

        Returns
        -------
        An iterator over `PlacedPatches`, up to `batch` of them at a time, whose `image()` is the
        object stitched so far, and whose `counts` tell what became of every patch. Each patch is
        turned by a constant phase to fit those before it. The image depends on the order of
        patterns and positions alone, not on `batch`. With an engine on a GPU patterns are binned
        and patches stitched there too, and the object comes to host memory when it is asked for
        and at the end.

        Raises
        ------
        ConfigurationError
            If the source is none of these, a URL is wrong or lacks `object_pixel_m`, or another
            source, whose positions are in object pixels, comes with it.
        MissingDependencyError
            If the library for a URL is not installed.
        SourceError
            If a path cannot be read, or a scan is empty, has not one position for each pattern, or
            spreads over a range that is no object's; an iterable shows that it is empty only
            when it is asked for its first pattern, and an implausible position is counted.
        InputError, EngineError
            As in `predict`, for the pattern at fault, after those before it.
        """
        self._refuse_closed()
        run = PatternRun(self)
        chunks, read_ahead = open_chunks(source, run.begin, self.engine.batch, object_pixel_m)
        stream = PatchStream(chunks, run, self.stitcher(most_waiting), read_ahead=read_ahead)
        self._streams.add(stream)
        return stream

    def intake(self, mask: npt.NDArray[np.bool_] | None = None) -> PatternIntake:
        """Give a check of patterns of its own to a scan, with this mask beside the scan's.

        `admit` on each pattern and then `predict_admitted` is what `stream` does on the CPU, in
        two steps that can run in different threads; on a GPU it is `accept` and `predict_in`.

        Raises
        ------
        InputError
            If the masks differ in shape.
        """
        return self._intake.beside(mask)

    def predict_admitted(self, patterns: FloatArray) -> ObjectPatches:
        """Predict from patterns that `intake` has admitted: (n, 64, 64) float32.

        Raises
        ------
        EngineError
            If the predictor is closed or the engine fails.
        """
        return self._patches(patterns)

    def stitcher(self, most_waiting: int = MOST_WAITING) -> ObjectStitcher:
        """Give an empty object: on the GPU where the engine runs on one, else in host memory.

        Raises
        ------
        ConfigurationError
            If `most_waiting` is no number from 0.
        EngineError
            If the predictor is closed or the GPU failed for good.
        """
        stitcher = ObjectStitcher(most_waiting)

        def take(engine: DeviceEngine) -> GpuIslands:
            # Only predictors on a GPU load what it needs.
            from edgexnas.device.ptycho.gpu_phase_components import GpuIslands

            return GpuIslands(engine.session, most=engine.batch, cache=open_cache(self._cache))

        islands = self._opened_on_gpu("patches are stitched on the CPU", take)
        if islands is not None:
            stitcher.islands = islands
        return stitcher

    def open_pipeline(
        self, intake: PatternIntake, pattern: npt.NDArray[Any]
    ) -> PatternPipeline | None:
        """Take what a scan's patterns go through on the GPU; `close` gives it back at the latest.

        Parameters
        ----------
        intake
            The scan's, which has accepted its first pattern.
        pattern
            That pattern.

        Returns
        -------
        A pipeline for `predict_in`; None where patterns stay on the CPU: without an engine on a
        GPU, and, with a warning that says why, where no pipeline can be had.

        Raises
        ------
        EngineError
            If the predictor is closed or the GPU failed for good.
        """

        def take(engine: DeviceEngine) -> PatternPipeline:
            from edgexnas.device.ptycho.gpu_pipeline import PatternPipeline

            rows, cols = pattern.shape
            return PatternPipeline(
                engine, (rows, cols), pattern.dtype, intensity_scale=self._intensity_scale,
                mask=intake.mask, saturation=intake.saturation, cache=open_cache(self._cache),
            )  # fmt: skip

        pipeline = self._opened_on_gpu("patterns are binned on the CPU", take)
        if pipeline is not None:
            self._pipelines.append(pipeline)
        return pipeline

    def predict_in(
        self, pipeline: PatternPipeline, patterns: Sequence[npt.NDArray[Any]]
    ) -> tuple[ObjectPatches, tuple[int, ...]]:
        """Check, bin and predict patterns that `intake` has accepted, all on the GPU.

        Threads take turns.

        Returns
        -------
        As of `PatternPipeline.result`.

        Raises
        ------
        EngineError
            If the predictor is closed or the GPU fails.
        """
        with self.in_turn():
            return pipeline.process(patterns)

    def close(self) -> None:
        """Release the engine and the GPU's memory; images of streams stay there to be asked for.

        Closing again does nothing.
        """
        for stream in list(self._streams):
            stream.leave_gpu()
        super().close()

    def _patches(self, counts: FloatArray) -> ObjectPatches:
        """(n, 64, 64) checked counts → patches."""
        inputs = scale_patterns(counts, self._intensity_scale)[:, None]
        with self._lock:
            self._refuse_closed()
            output = run_in_batches(self.engine, inputs, (2, PATTERN_SIZE, PATTERN_SIZE))
        return decode_patches(output)
