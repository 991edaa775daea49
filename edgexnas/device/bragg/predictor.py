"""From detector frames to the positions of Bragg peaks."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, overload

import numpy as np
import numpy.typing as npt

from edgexnas.bragg import (
    CENTRE,
    PeakPositions,
    Peaks,
    as_patches,
    decode_offsets,
    scale_patches,
)
from edgexnas.device.bragg.detection import bundle_detection
from edgexnas.device.bragg.frame_source import FrameSource, close_opened, open_source
from edgexnas.device.bragg.lanes import PeakLane, PeakLanes, stream_frames, stream_series
from edgexnas.device.bundle_predictor import (
    BundlePath,
    BundlePredictor,
    PredictorOptions,
    require_task,
    verified_bundle,
)
from edgexnas.device.engines.gate import EngineProof
from edgexnas.device.sources.series_frames import SeriesFrames
from edgexnas.errors import EdgexnasError
from edgexnas.familiarity import PeakChecks
from edgexnas.merging import MergeSettings, Rotation, SpotMerger, merge_peaks
from edgexnas.peak_finding import DetectionOptions, FinderReport

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from edgexnas.bundle import Manifest
    from edgexnas.frames import FrameSeries
    from edgexnas.spots import Spots

__all__ = ["PeakPredictor", "interval_coverage", "lanes_of"]

_log = logging.getLogger(__name__)


class PeakPredictor(BundlePredictor):
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
    bundle, trust, state, gates, engine, precision, batch, threads, cache
        As of `Predictor`.
    mask
        (H, W) bool, True where a pixel must not be used (dead, hot, in a gap).
    saturation
        Counts from which a pixel is saturated. None for what the series or the detector states,
        else the bundle, else a plateau that the background frames show, else the largest value of
        an unsigned integer dtype.
    minimum_counts
        Counts above background that a peak's brightest pixel must exceed; None for the bundle's
        default, which is no limit but the noise unless its manifest says otherwise.
    threshold
        The same in standard deviations of the measured background noise; the larger of the two
        limits applies. None for the bundle's default.
    mask_hot
        Whether pixels are masked that fire by themselves in the background frames; None for the
        bundle's default, which is yes unless its manifest says otherwise.

    Attributes
    ----------
    proof
        How far positions lie from the reference outputs, and the gate.
    checks
        Calibrates intervals and finds peaks unlike the training data; None where the bundle has
        nothing to do it by.
    finder_report
        By which limits peaks are found in the series begun last; None before its first frame.

    Raises
    ------
    BundleError, ConfigurationError, EngineError, InputError, MissingDependencyError
        As of `Predictor`; `ConfigurationError` also if the bundle is not for Bragg peaks,
        or does not let an option be set.
    """

    task = "bragg"
    proof: EngineProof

    def __init__(
        self,
        bundle: BundlePath,
        *,
        saturation: float | None = None,
        minimum_counts: float | None = None,
        threshold: float | None = None,
        mask_hot: bool | None = None,
        **options: Unpack[PredictorOptions],
    ) -> None:
        # Before the engine is built, which takes minutes: a wrong option is rejected at once.
        chosen = DetectionOptions(saturation, minimum_counts, threshold, mask_hot)
        trust, state = options.pop("trust", None), options.pop("state", None)
        verified = verified_bundle(bundle, trust, state, options.pop("gates", None))
        require_task(verified.manifest, self.task)
        defaults, chosen = bundle_detection(
            verified.manifest, chosen, masked=options.get("mask") is not None
        )
        super().__init__(verified, **options)
        self.checks = PeakChecks.of(self.manifest, self.engine.precision)
        if self.manifest.interval_calibration is None:
            _log.info(
                "bundle %s has no calibration: intervals are as the network gives them, and "
                "nothing tells peaks unlike its training data; export it anew to have both",
                self.manifest.model_id,
            )
        self._lanes = PeakLanes(
            self._shared,
            finder=defaults,
            options=chosen,
            levels=self.manifest.quantile_levels,
            checks=self.checks,
            mask=self._mask,
        )
        self._detection = self._lanes.detection()
        self._next_number = 0
        self._lane: PeakLane | None = None

    @property
    def finder_report(self) -> FinderReport | None:
        """By which limits peaks are found in the series begun last; None before its first frame."""
        return self._detection.used

    def predict(self, patches: npt.ArrayLike) -> PeakPositions:
        """Predict the positions of peaks in patches.

        Parameters
        ----------
        patches
            (n, 11, 11) or (n, 1, 11, 11), any real dtype, n from 0; counts in any unit, with the
            background subtracted. Each is scaled by its own minimum and maximum. Where no pixel
            exceeds 1, they are taken for scaled already, and their counts for unknown.

        Returns
        -------
        Positions in pixels from the patch's first pixel: positions_px (n, 2), intervals_px (n, 2)
        and quantiles_px (n, 2, q), float32. `unfamiliar` tells which are unlike the training data;
        patches given together are judged as those of one frame are, so that where more of them are
        unfamiliar than the bundle's `training_data.frame_share`, all are.

        Raises
        ------
        InputError
            If the shape or the dtype is another, or a value is not finite.
        EngineError
            If the predictor is closed or the engine fails.
        """
        checked = as_patches(patches)
        scaled = scale_patches(checked)
        offsets_px = self._lanes.offsets(scaled)
        reasons = None
        if self.checks is not None and len(checked):
            heights = np.ascontiguousarray(checked[:, CENTRE, CENTRE])
            counts = bool(checked.max() > 1)
            with self._shared.in_turn():
                judged = self.checks.judge(
                    scaled, heights, offsets_px, np.zeros(len(checked), np.uint8), counts=counts
                )
            # Factors alone tell nothing of what is familiar.
            reasons = judged.reasons if self.checks.judges else None
        placed = decode_offsets(offsets_px, self.manifest.quantile_levels)
        return replace(placed, reasons=reasons)

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
        with self._shared.in_turn():
            number = self._next_number if frame_number is None else frame_number
            if self._lane is None:
                with self._detection.undone_if_refused():
                    self._lane = self._lanes.open(
                        self._detection, [self._detection.admit(frame)], announce="frames"
                    )
                _log.info("frames: %s", self._detection.used)
            self._lane.submit([self._lane.check(frame, number)])
            outcome = self._lane.result()
            for fault in outcome.faults.values():
                raise fault
            # Only after success, so that a frame which failed can be given once more.
            self._next_number = number + 1
            return outcome.results[0]

    @overload
    def stream(self, source: FrameSource, *, merge: None = None) -> Iterator[Peaks]: ...

    @overload
    def stream(self, source: FrameSource, *, merge: MergeSettings) -> Iterator[Spots]: ...

    def stream(
        self, source: FrameSource, *, merge: MergeSettings | None = None
    ) -> Iterator[Peaks] | Iterator[Spots]:
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
        merge
            How peaks on successive frames are merged into spots; None for peaks. Angles that it
            leaves out are those of the series, which only a path or a `FrameSeries` may state.

        Yields
        ------
        The peaks of each frame, in order, with `frame_number` from 0, or as the detector numbers
        them; with `merge` the spots that ended with a frame, where any did.

        Raises
        ------
        ConfigurationError
            If the source is none of these, or a URL is wrong; with `merge` if the rotation angles
            are not known.
        MissingDependencyError
            If the library for a URL is not installed.
        SourceError
            If a path cannot be opened or read, or there are no frames; an iterable shows that only
            when it is asked for its first frame.
        InputError, EngineError
            As in `process`, for the frame at fault.
        """
        self._shared.require_open()
        opened = open_source(source)
        try:
            merger = None if merge is None else self._merger(merge, opened)
        except EdgexnasError:
            close_opened(opened, source)
            raise
        if isinstance(opened, Iterator):
            peaks = stream_frames(self._lanes, self._detection, enumerate(opened))
        # Frames of a detector come with their own numbers and cannot be read in any order.
        elif isinstance(opened, SeriesFrames):
            peaks = stream_frames(self._lanes, self._detection, opened.numbered(), opened)
        else:
            close = opened is not source
            peaks = stream_series(self._lanes, self._detection, opened, close=close)
        return peaks if merger is None else merge_peaks(peaks, merger)

    def _merger(
        self, settings: MergeSettings, opened: FrameSeries | SeriesFrames | Iterator[npt.ArrayLike]
    ) -> SpotMerger:
        # Of a detector's frames nobody says the angles beforehand.
        rotation = Rotation.of(settings, getattr(opened, "omega_deg", None))
        return SpotMerger(rotation, settings, coverage=interval_coverage(self.manifest))

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
        with self._shared.in_turn():
            self._detection.calibrate(frames)
            if self._lane is not None:
                # The next frame opens a lane with the new background; this one has the old in its
                # thresholds.
                self._lane.close()
                self._lane = None


def interval_coverage(manifest: Manifest) -> float:
    """Return the share of errors that the intervals of a bundle's peaks are to hold."""
    if manifest.interval_calibration is not None:
        return manifest.interval_calibration.level
    levels = manifest.quantile_levels
    return float(levels[-1] - levels[0])


def lanes_of(predictor: PeakPredictor) -> PeakLanes:
    """Return the lanes that a service opens for frames."""
    return predictor._lanes
