"""From diffraction patterns to patches of the object, and to an image of it."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, NoReturn

import numpy.typing as npt

from edgexnas.device.bundle_predictor import BundlePath, BundlePredictor, PredictorOptions
from edgexnas.device.engines.gate import ObjectProof
from edgexnas.device.ptycho.intake import PatternIntake
from edgexnas.device.ptycho.lanes import PatternLanes, ScanLane
from edgexnas.device.ptycho.patch_stream import PatchStream
from edgexnas.device.ptycho.refining import ScanRefiner
from edgexnas.device.ptycho.scan import ScanSource, open_chunks
from edgexnas.device.ptycho.stitching import MOST_WAITING
from edgexnas.errors import ConfigurationError
from edgexnas.familiarity import PatternChecks
from edgexnas.ptycho import ObjectPatches

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["PtychoPredictor", "lanes_of"]


class PtychoPredictor(BundlePredictor):
    """Amplitude and phase of an object from its diffraction patterns; see `Predictor`.

    ::

        with PtychoPredictor("ptycho.edgex", trust="keys/") as predictor:
            stream = predictor.stream("scan.h5")
            for patches in stream:
                print(patches.frame_numbers, patches.positions_px)
            image = stream.image()

    Parameters
    ----------
    bundle, trust, state, gates, engine, precision, batch, threads, cache
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
        bundle: BundlePath,
        *,
        saturation: float | None = None,
        **options: Unpack[PredictorOptions],
    ) -> None:
        # Before the engine is built, which takes minutes: a wrong option is rejected at once.
        intake = PatternIntake(saturation=saturation)
        # Weakly: a stream that nobody holds any more needs no saving.
        self._streams: weakref.WeakSet[PatchStream] = weakref.WeakSet()
        super().__init__(bundle, **options)
        preprocessing = self.manifest.preprocessing
        assert preprocessing.kind == "ptycho"
        self._lanes = PatternLanes(
            self._shared,
            intake=intake.beside(self._mask),
            intensity_scale=preprocessing.intensity_scale,
            checks=PatternChecks.of(self.manifest, self._probe),
            pixel_m=None if self.manifest.probe is None else self.manifest.probe.pixel_m,
        )

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
        return self._lanes.predict(patterns)

    def stream(
        self,
        source: ScanSource,
        *,
        object_pixel_m: tuple[float, float] | None = None,
        most_waiting: int = MOST_WAITING,
        refine: int = 0,
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
        refine
            Sweeps of phase retrieval over the patterns after the last one, from the stitched
            object and with the probe of the bundle, on the GPU too; `PatchStream.refinement` has
            the outcome, and if there is none the stream ends with `RefinementError`. The patterns
            are kept for it: 32 kB each of 128×128. 0 for none.

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
            spreads further than any object; an iterable shows that it is empty only
            when it is asked for its first pattern, and an implausible position is counted.
        InputError, EngineError
            As in `predict`, for the pattern at fault, after those before it.
        """
        self._shared.require_open()
        scan = self.refiner(refine).scan() if refine else None
        lane = ScanLane(self._lanes, scan)
        chunks, read_ahead = open_chunks(source, lane, self.engine.batch, object_pixel_m)
        stitcher = self._lanes.stitcher(most_waiting)
        stream = PatchStream(chunks, lane, stitcher, read_ahead=read_ahead, refined=scan)
        self._streams.add(stream)
        return stream

    def refiner(self, sweeps: int) -> ScanRefiner:
        """Make what refines the objects of scans with the probe of the bundle.

        Raises
        ------
        ConfigurationError
            If `sweeps` is no whole number from 1 or the bundle holds no probe.
        EngineError
            If the predictor is closed or its GPU failed for good.
        """
        return ScanRefiner(self.manifest, self._probe, sweeps, self._shared)

    def close(self) -> None:
        """Release the engine and the GPU's memory; images of streams stay there to be asked for.

        Closing again does nothing.
        """
        # Before the engine goes: what is stitched on the GPU comes to host memory first.
        for stream in list(self._streams):
            stream.leave_gpu()
        super().close()

    def process(self, frame: npt.ArrayLike, *, frame_number: int | None = None) -> NoReturn:
        """Raise `ConfigurationError`: this is for Bragg peaks; see `PeakPredictor.process`."""
        raise self._other_task("process")

    def calibrate_background(self, frames: Iterable[npt.ArrayLike]) -> NoReturn:
        """Raise `ConfigurationError`; see `PeakPredictor.calibrate_background`."""
        raise self._other_task("calibrate_background")

    def _other_task(self, method: str) -> ConfigurationError:
        return ConfigurationError(
            f"bundle {self.manifest.model_id} is for ptycho, and {method} is for frames of Bragg "
            "peaks; use predict or stream"
        )


def lanes_of(predictor: PtychoPredictor) -> PatternLanes:
    """Return the lanes that a service opens for patterns."""
    return predictor._lanes
