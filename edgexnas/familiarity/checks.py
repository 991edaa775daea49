"""Judges peaks by what a bundle's manifest says of calibration and training data."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgexnas.bragg import PATCH_SIZE
from edgexnas.familiarity import reference_checks
from edgexnas.familiarity.quantities import ALONE, COUNTED, FRAME_NOISE, PEAK_QUANTITIES

if TYPE_CHECKING:
    from edgexnas.bundle import Familiarity, IntervalCalibration, Manifest, Precision, TrainingData

__all__ = ["CheckConstants", "JudgedPeaks", "PeakChecks", "measure_peaks"]

FloatArray = npt.NDArray[np.float32]

_log = logging.getLogger(__name__)
_NUMBER = len(PEAK_QUANTITIES)


class CheckConstants(NamedTuple):
    """What the loops take of a manifest: parameters of `check_peaks`, in their order.

    Attributes
    ----------
    counted
        How many quantities the score is of.
    factors
        (snr, width) float32.
    snr_edges, width_edges, widening
        float32.
    limits
        (2, 11) float32, lowest and highest of each quantity.
    standard, form, limit
        Of the score: (3, counted) centres, 1 / scales and linear coefficients, without columns if
        there is none; the form is upper triangular, and the limit is less the score's constant.
    frame_share, frame_least
        As of `TrainingData`; a share of 1 for none.
    """

    counted: int
    factors: FloatArray
    snr_edges: FloatArray
    width_edges: FloatArray
    widening: FloatArray
    limits: FloatArray
    standard: FloatArray
    form: FloatArray
    limit: np.float32
    frame_share: np.float32
    frame_least: int

    @classmethod
    def of(
        cls,
        calibration: IntervalCalibration | None,
        data: TrainingData | None,
        precision: Precision,
        quantities: tuple[str, ...],
    ) -> CheckConstants:
        """Gather the constants of a precision, for these quantities."""
        score = _score_of(data, quantities)
        limits = {} if data is None else {quantity.name: quantity for quantity in data.quantities}
        single = np.full((2, _NUMBER), np.inf, np.float32) * np.array([[-1], [1]])
        for index, name in enumerate(quantities):
            if name in limits:
                low, high = limits[name].low, limits[name].high
                single[0, index] = -np.inf if low is None else low
                single[1, index] = np.inf if high is None else high
        factors: Any = ((1.0,),)
        snr: tuple[float, ...] = ()
        width: tuple[float, ...] = ()
        widening: tuple[float, ...] = (0.0,) * 6
        if calibration is not None:
            factors = calibration.factors_of(precision)
            snr, width = calibration.snr_edges, calibration.width_edges_px
            if (wide := calibration.widening) is not None:
                widening = (
                    wide.interval, wide.disagreement, wide.narrow_disagreement, wide.noise,
                    wide.narrowness, wide.floor_px,
                )  # fmt: skip
        share = None if data is None else data.frame_share
        return cls(
            counted=len(quantities),
            factors=_row(factors),
            snr_edges=_row(snr),
            width_edges=_row(width),
            widening=_row(widening),
            limits=_row(single),
            standard=_standard(score, len(quantities)),
            form=_form(score, len(quantities)),
            limit=_F(0 if score is None else score.limit - score.score[0]),
            frame_share=_F(1 if share is None else share),
            frame_least=1 if data is None else data.frame_least,
        )


_F = np.float32


def _row(values: Any) -> FloatArray:
    return np.ascontiguousarray(values, np.float32)


def _standard(score: Familiarity | None, count: int) -> FloatArray:
    """(3, count) centres, 1 / scales and linear coefficients; (3, 0) without a score."""
    if score is None:
        return np.empty((3, 0), np.float32)
    centre, scale, linear = _row(score.centre), _row(score.scale), _row(score.score[1 : 1 + count])
    return np.stack([centre, _F(1) / scale, linear])


def _form(score: Familiarity | None, count: int) -> FloatArray:
    """(count, count) upper triangular coefficients of the products of each two quantities."""
    form = np.zeros((count, count), np.float32)
    if score is not None:
        form[np.triu_indices(count)] = score.score[1 + count :]
    return form


def _score_of(data: TrainingData | None, quantities: tuple[str, ...]) -> Familiarity | None:
    """Find the score of just these quantities, in this order; None if there is none."""
    scores = () if data is None else data.familiarity
    return next((score for score in scores if score.quantities == quantities), None)


@dataclass(frozen=True, slots=True, eq=False)
class JudgedPeaks:
    """What became of the peaks of a frame.

    Attributes
    ----------
    reasons
        (n,) uint8, 0 for familiar peaks, else why not; see `reason_name`.
    unfamiliar
        How many are.
    """

    reasons: npt.NDArray[np.uint8]
    unfamiliar: int


class PeakChecks:
    """Calibrates the intervals of peaks, and finds and widens those unlike the training data.

    Each thread needs one of its own, because it keeps scratch memory: see `copy`.

    Parameters
    ----------
    calibration
        Factors and widening; None leaves intervals as the network gives them.
    data
        Limits of what is familiar; None takes everything for familiar.
    levels
        The network's quantile levels.
    precision
        Of the engine.

    Attributes
    ----------
    counted, alone
        Constants where heights are counts, and where they are not.
    judges
        Whether anything tells which peaks are unfamiliar; else no reason means anything.
    frame_noise
        Background noise of the frames of the training data; None if unknown.
    """

    def __init__(
        self,
        calibration: IntervalCalibration | None,
        data: TrainingData | None,
        *,
        levels: tuple[float, ...],
        precision: Precision,
    ) -> None:
        self._given = calibration, data, levels, precision
        self.middle = int(np.argmin(np.abs(np.asarray(levels) - 0.5)))
        self.counted = CheckConstants.of(calibration, data, precision, COUNTED)
        self.alone = CheckConstants.of(calibration, data, precision, ALONE)
        self.calibrated = calibration is not None
        used = self.counted
        scored = used.standard.size or self.alone.standard.size
        self.judges = bool(np.isfinite(used.limits).any() or scored)
        quantities = () if data is None else data.quantities
        self.frame_noise = next((q for q in quantities if q.name == FRAME_NOISE), None)
        self._loop: Callable[..., int] | None = None
        self._scratch: tuple[Any, ...] = ()
        # Kept: memory that the system has just lent costs more than what is done with it.
        self._kept = np.empty((0, 3), np.float32)

    @classmethod
    def of(cls, manifest: Manifest, precision: Precision) -> PeakChecks | None:
        """Make the checks of a bundle; None if its manifest says nothing of them."""
        calibration, data = manifest.interval_calibration, manifest.training_data
        checks = cls(calibration, data, levels=manifest.quantile_levels, precision=precision)
        return checks if checks.calibrated or checks.judges else None

    def prepare(self) -> None:
        """Compile the loops, or load them, so that the first frame takes no longer."""
        nothing = np.zeros((1, PATCH_SIZE, PATCH_SIZE), np.float32)
        offsets = np.zeros((1, 2, len(self._given[2])), np.float32)
        self.judge(nothing, np.zeros(1, np.float32), offsets, np.zeros(1, np.uint8))

    def alone_each(self) -> PeakChecks:
        """Make one that judges peaks by themselves, whatever their frame."""
        calibration, data, levels, precision = self._given
        if data is not None:
            data = data.model_copy(update={"frame_share": None})
        return PeakChecks(calibration, data, levels=levels, precision=precision)

    def copy(self) -> PeakChecks:
        """Make one with scratch memory of its own."""
        calibration, data, levels, precision = self._given
        return PeakChecks(calibration, data, levels=levels, precision=precision)

    def judge(
        self,
        scaled: FloatArray,
        heights: FloatArray,
        offsets_px: FloatArray,
        flags: npt.NDArray[np.uint8],
        *,
        counts: bool = True,
    ) -> JudgedPeaks:
        """Judge the peaks of one frame.

        Parameters
        ----------
        scaled
            (n, 11, 11) float32, scaled patches.
        heights
            (n,) float32, counts above background of the brightest pixel.
        offsets_px
            (n, 2, q) float32, the network's output; calibrated and widened in place.
        flags
            (n,) uint8; `PeakFlag.UNFAMILIAR` is added.
        counts
            Whether heights are counts: patches that were scaled before tell nothing of them.
        """
        if self._loop is None:
            # numba's 60 MB come after what a background takes for a moment, not on top of it.
            self._loop, self._scratch = _loop()
        constants = self.counted if counts else self.alone
        number = len(heights)
        reasons = np.empty(number, np.uint8)
        if number == 0:
            return JudgedPeaks(reasons, 0)
        if len(self._kept) < number:
            self._kept = np.empty((2 * number, 3), np.float32)
        unfamiliar = self._loop(
            scaled.reshape(-1), heights, offsets_px, self.middle, *constants, flags, reasons,
            self._kept, *self._scratch,
        )  # fmt: skip
        return JudgedPeaks(reasons, unfamiliar)


def measure_peaks(
    scaled: FloatArray, heights: FloatArray, offsets_px: FloatArray, middle: int
) -> tuple[FloatArray, FloatArray]:
    """Measure the quantities of peaks.

    Parameters
    ----------
    scaled, heights, offsets_px
        As of `PeakChecks.judge`; offsets are left as they are.
    middle
        Which quantile is the position.

    Returns
    -------
    Quantities (n, 11), in the order of `PEAK_QUANTITIES`; and (n, 2, 3), for row and column the
    distance of the position from the windowed centroid, the noise of that, and the windowed
    variance, in px and px².
    """
    found, _, own = reference_checks.measured(
        np.ascontiguousarray(scaled, np.float32).reshape(len(heights), PATCH_SIZE**2),
        np.ascontiguousarray(heights, np.float32),
        offsets_px,
        middle,
    )
    return found, own


def _loop() -> tuple[Callable[..., int], tuple[Any, ...]]:
    """Choose the compiled loop where numba is installed, with its scratch."""
    try:
        from edgexnas.familiarity import compiled_checks
    except ImportError as error:
        _log.info("peaks are judged by numpy, because numba does not load: %s", error)
        return reference_checks.check_peaks, ()
    return compiled_checks.check_peaks, compiled_checks.scratch_to_check()
