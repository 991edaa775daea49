"""Find Bragg peaks on a detector frame: the rules, and who carries them out."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from edgexnas.bragg import FloatArray, IntArray
from edgexnas.errors import ConfigurationError, InputError, MissingDependencyError
from edgexnas.peak_finding.background import Background
from edgexnas.peak_finding.reference_finder import CutPatches, ReferenceFinder
from edgexnas.peak_finding.settings import FinderSettings

if TYPE_CHECKING:
    from edgexnas.peak_finding.compiled_finder import CompiledFinder

__all__ = ["FinderReport", "FoundPeaks", "PeakFinder", "SaturationOrigin"]

BoolArray = npt.NDArray[np.bool_]
IndexArray = npt.NDArray[np.intp]
Frame = npt.NDArray[Any]

_log = logging.getLogger(__name__)
_DEFAULTS = FinderSettings()

REPORT_PIXELS = 2**20
"""About how many pixels the medians of a report are taken over, in a few milliseconds."""


@dataclass(frozen=True, slots=True)
class FoundPeaks:
    """The peaks of one frame, sorted by the (row, col) of their brightest pixel.

    Attributes
    ----------
    maxima
        (n, 2) int32, (row, col) of the brightest pixel.
    intensities
        (n,) float32, counts above background of the brightest pixel.
    flags
        (n,) uint8, a combination of `PeakFlag`.
    counts
        (n, 11, 11) float32, patches as `bragg.cut_patches` cuts them.
    overflow
        How many peaks were found beyond the capacity and are missing here.
    scaled
        Whether `counts` went through `bragg.scale_patches`.
    """

    maxima: IntArray
    intensities: FloatArray
    flags: npt.NDArray[np.uint8]
    counts: FloatArray
    overflow: int
    scaled: bool = False

    def __len__(self) -> int:
        return len(self.maxima)


class SaturationOrigin(str, Enum):
    """Where the counts come from at which a pixel is taken to be saturated."""

    OPTION = "option"
    DETECTOR = "detector"
    SETTINGS = "settings"
    FRAMES = "frames"
    DTYPE = "dtype"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class FinderReport:
    """By which limits a finder finds peaks.

    Attributes
    ----------
    noise_counts
        Median over the pixels of the background's standard deviation.
    threshold_counts
        Median over the pixels of what a peak's brightest pixel must exceed above background.
    saturation
        Counts from which a pixel is saturated; infinite for none.
    saturation_from
        The user, the detector or its file, the bundle's or labels' settings, a plateau in the
        background frames, or the frames' dtype.
    hot_pixels
        Pixels masked because they fire by themselves.
    masked_pixels
        All masked pixels, the hot ones included.
    """

    noise_counts: float
    threshold_counts: float
    saturation: float
    saturation_from: SaturationOrigin
    hot_pixels: int
    masked_pixels: int

    def as_json(self) -> dict[str, Any]:
        """Give what JSON can hold, which has no infinite saturation; see `from_json`."""
        saturation = self.saturation if math.isfinite(self.saturation) else None
        return {**asdict(self), "saturation": saturation, "saturation_from": self.saturation_from}

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> FinderReport:
        """Make one of what `as_json` gave."""
        saturation = math.inf if said["saturation"] is None else said["saturation"]
        origin = SaturationOrigin(said["saturation_from"])
        return cls(**{**said, "saturation": saturation, "saturation_from": origin})

    def __str__(self) -> str:
        return (
            f"threshold {self.threshold_counts:.3g} counts above background "
            f"(noise {self.noise_counts:.3g}), saturation {self.saturation:g} "
            f"(from {self.saturation_from.value}), {self.masked_pixels} pixels masked, "
            f"{self.hot_pixels} of them hot"
        )


class _Twin(Protocol):
    def find(self, frame: Frame) -> IndexArray: ...

    def cut(self, frame: Frame, maxima: IntArray, *, scaled: bool) -> CutPatches: ...


class PeakFinder:
    """Find the peaks of frames of one shape.

    A pixel with value v is the brightest of a peak when all of these hold. Pixels over the edge and
    masked pixels take no part; c is v minus the background level, s the background noise.

    1. Threshold: c > t = max(noise_sigmas · s, minimum_counts).
    2. Maximum: v is the largest of its 5×5 pixels; of equals the first in raster order wins.
    3. Size: at least `minimum_pixels` of the 3×3 pixels exceed t / 2.
    4. Signal: with m₃ the mean of c over the n₃ usable pixels of the 3×3,
       m₃ / sqrt((s² + max(m₃, 0)) / n₃) ≥ snr.
    5. Prominence, in each of four directions (along the row, the column, both diagonals): with m₅
       the mean of c over the n₅ ≤ 6 usable pixels that lie opposite each other on the 5×5
       perimeter, (m₃ - m₅) / sqrt((s² + max(m₃, 0)) / n₃ + (s² + max(m₅, 0)) / n₅) ≥
       prominence_sigmas.
    6. No ridge: if an m₅ exceeds m₃ / 2, in none of eight directions do the means of 3×3 pixels
       about 3 and 5 px away on both sides all stay above b + ridge_fraction · (m₃ - b), where b is
       the larger one of those 5 px away at right angles, and at least 0.

    Where v reaches saturation, a profile is flat and the tests 2 and 4 to 6 have no meaning. There
    the pixels of at least 0.9 times the saturation that touch make a plateau, and the pixel nearest
    its centre of mass is a peak if it passes tests 1 and 3 and the plateau is at most 15×15 pixels.

    The variance of a pixel is taken as s² plus its counts above background (Poisson). The fifth
    test removes the bumps that counting noise makes on the tails of bright peaks, where the
    profile is straight or hollow, and the sixth those on the crest of powder rings.

    Parameters
    ----------
    settings
        What counts as a peak.
    shape
        (H, W) of the frames.
    background
        Level and noise; None means 0, as for zero-suppressed frames.
    mask
        (H, W) bool, True where a pixel must not be used, beside the background's hot ones.
    compiled
        Whether the twin that numba compiles does the work: True, False for the numpy reference,
        or None for the twin where numba is installed and the dtype is one of uint8, uint16, int16,
        uint32, int32 and float32. Both give the same peaks, to the last bit.
    saturation_from
        Who said the saturation of the settings, for `used`.

    Raises
    ------
    ConfigurationError
        If background or mask have another shape than the frames.
    MissingDependencyError
        If `compiled` is True and numba is not installed.

    Notes
    -----
    A finder keeps scratch buffers: use one per thread. The compiled twin runs without the
    interpreter's lock, so that threads with a finder each run side by side.
    """

    def __init__(
        self,
        settings: FinderSettings = _DEFAULTS,
        *,
        shape: tuple[int, int],
        background: Background | None = None,
        mask: BoolArray | None = None,
        compiled: bool | None = None,
        saturation_from: SaturationOrigin = SaturationOrigin.SETTINGS,
    ) -> None:
        self.settings = settings
        self._saturation_from = saturation_from
        self.shape = (int(shape[0]), int(shape[1]))
        self.background = background
        given: list[tuple[str, Frame]] = []
        given += [] if background is None else [("level", background.level)]
        given += [] if background is None else [("noise", background.noise)]
        given += [] if mask is None else [("mask", mask)]
        if background is not None and background.hot is not None:
            given.append(("map of hot pixels", background.hot))
        for name, array in given:
            if array.shape != self.shape:
                raise ConfigurationError(
                    f"the {name} has shape {array.shape}, the frames have {self.shape}; "
                    "give both the same"
                )
        self.hot_pixels = 0
        if background is not None and background.hot is not None:
            mask = background.hot if mask is None else mask | background.hot
            self.hot_pixels = int(np.count_nonzero(background.hot))
        self.mask = None if mask is None or not mask.any() else np.ascontiguousarray(mask, np.bool_)
        if compiled and _compiled_finder() is None:
            raise MissingDependencyError.of(
                "numba", extra="device", purpose="the compiled peak finder"
            )
        self._compiled = compiled
        self._twins: dict[np.dtype[Any], _Twin] = {}

    def find(self, frame: Frame, *, scaled: bool = False) -> FoundPeaks:
        """Find the peaks of one frame.

        Parameters
        ----------
        frame
            (H, W), any integer or float dtype, counts.
        scaled
            Whether the patches come scaled to [0, 1], as a network takes them; this costs less
            than scaling them afterwards.

        Raises
        ------
        InputError
            If the shape is another, the dtype is not real, or a usable pixel is not finite.
        """
        frame = self._checked(frame)
        twin = self._twin(frame.dtype)
        peaks, overflow = self._brightest(frame.reshape(-1), twin.find(frame))
        maxima = np.stack(np.divmod(peaks, self.shape[1]), axis=1).astype(np.int32)
        cut = twin.cut(frame, maxima, scaled=scaled)
        return FoundPeaks(maxima, cut.intensities, cut.flags, cut.patches, overflow, scaled)

    def prepare(self, dtype: npt.DTypeLike) -> None:
        """Make ready for frames of this dtype, so that the first one takes no longer."""
        self.find(np.zeros(self.shape, dtype))

    def thresholds(self, dtype: npt.DTypeLike) -> Frame:
        """Give what each pixel must exceed, (H, W), in the frame's own dtype.

        For integers v exceeds the threshold exactly when it exceeds the real limit. Masked pixels
        never exceed theirs.
        """
        dtype = np.dtype(dtype)
        highest = np.inf if dtype.kind == "f" else np.iinfo(dtype).max
        threshold = np.empty(self.shape, dtype)
        # A few rows at a time: whole frames of float64 would be most of the process's memory.
        for start in range(0, self.shape[0], 64):
            rows = slice(start, start + 64)
            limit = self._limits(rows)
            threshold[rows] = limit if dtype.kind == "f" else _integer_threshold(limit, dtype)
        if self.mask is not None:
            threshold[self.mask] = highest
        return threshold

    def saturation(self, dtype: npt.DTypeLike) -> float:
        """Give the counts from which a pixel of this dtype is saturated."""
        return self._saturation(np.dtype(dtype))[0]

    def used(self, dtype: npt.DTypeLike) -> FinderReport:
        """Say by which limits the peaks of frames of this dtype are found."""
        dtype = np.dtype(dtype)
        saturation, origin = self._saturation(dtype)
        # Maps are smooth, so that some rows of a large frame tell the median of all.
        rows = slice(None, None, 1 + math.prod(self.shape) // REPORT_PIXELS)
        above = self._limits(rows)
        noise = 0.0
        if self.background is not None:
            above -= self.background.level[rows]
            noise = float(np.median(self.background.noise[rows]))
        return FinderReport(
            noise_counts=noise,
            threshold_counts=float(np.median(above)),
            saturation=saturation,
            saturation_from=origin,
            hot_pixels=self.hot_pixels,
            masked_pixels=0 if self.mask is None else int(np.count_nonzero(self.mask)),
        )

    def _saturation(self, dtype: np.dtype[Any]) -> tuple[float, SaturationOrigin]:
        limit, origin = self.settings.saturation, self._saturation_from
        if limit is None and self.background is not None:
            limit, origin = self.background.saturation, SaturationOrigin.FRAMES
        if limit is not None:
            # Compared in the frame's own precision.
            return float(np.asarray(limit, dtype)) if dtype.kind == "f" else limit, origin
        if dtype.kind == "u":
            return float(np.iinfo(dtype).max), SaturationOrigin.DTYPE
        return float("inf"), SaturationOrigin.NONE

    def _twin(self, dtype: np.dtype[Any]) -> _Twin:
        if dtype not in self._twins:
            kind = None if self._compiled is False else _compiled_finder()
            works_in = None if kind is None else kind.works_in(dtype)
            make = ReferenceFinder if kind is None or works_in is None else kind
            self._twins[dtype] = make(
                self.settings,
                self.thresholds(works_in or dtype),
                background=self.background,
                mask=self.mask,
                saturation=self.saturation(dtype),
            )
        return self._twins[dtype]

    def _checked(self, frame: Frame) -> Frame:
        if frame.shape != self.shape:
            raise InputError(f"the frame has shape {frame.shape}; this finder takes {self.shape}")
        if frame.dtype.kind not in "uif":
            raise InputError(
                f"the frame has dtype {frame.dtype}; give real numbers, such as uint16"
            )
        frame = np.ascontiguousarray(frame, frame.dtype.newbyteorder("="))
        if frame.dtype.kind == "f":
            good = np.isfinite(frame)
            if self.mask is not None:
                good |= self.mask
            if not good.all():
                row, col = divmod(int(np.argmin(good)), self.shape[1])
                raise InputError(
                    f"pixel (row {row}, col {col}) of the frame is NaN or infinite; "
                    "mask it or set it to 0"
                )
        return frame

    def _limits(self, rows: slice) -> npt.NDArray[np.float64]:
        """Return what each pixel of these rows must exceed, (rows, W)."""
        least = self.settings.least_counts
        if self.background is None:
            return np.full((len(range(*rows.indices(self.shape[0]))), self.shape[1]), least)
        noise = self.background.noise[rows].astype(np.float64)
        limit = np.maximum(self.settings.noise_sigmas * noise, least)
        return limit + self.background.level[rows]

    def _brightest(self, flat: Frame, peaks: IndexArray) -> tuple[IndexArray, int]:
        """Keep the brightest `capacity` of the peaks; of equals the first in raster order."""
        overflow = max(0, len(peaks) - self.settings.capacity)
        if overflow:
            order = np.argsort(-self._above_background(flat, peaks), kind="stable")
            peaks = np.sort(peaks[order[: self.settings.capacity]])
        return peaks, overflow

    def _above_background(self, flat: Frame, index: IndexArray) -> npt.NDArray[np.float64]:
        counts = flat[index].astype(np.float64)
        if self.background is not None:
            counts -= self.background.level.reshape(-1)[index]
        return counts


def _integer_threshold(limit: npt.NDArray[np.float64], dtype: np.dtype[Any]) -> Frame:
    """Thresholds t in an integer dtype so that v > t exactly when v exceeds the real limit."""
    bounds = np.iinfo(dtype)
    threshold = np.full(limit.shape, bounds.max, dtype)
    whole = np.maximum(np.floor(limit), float(bounds.min))
    fits = whole < float(bounds.max)
    threshold[fits] = whole[fits].astype(dtype)
    return threshold


def _compiled_finder() -> type[CompiledFinder] | None:
    """Load the compiled twin; None where numba is not installed or does not load."""
    try:
        from edgexnas.peak_finding.compiled_finder import CompiledFinder
    except ImportError as error:
        _log.info("peaks are found by numpy, because numba does not load: %s", error)
        return None
    return CompiledFinder
