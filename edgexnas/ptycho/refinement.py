"""Refine an object by the physics of its patterns: sweeps of rPIE with a known probe.

A network tells the object at once and smooths what it rarely saw. Its object is a good start for
phase retrieval, which then needs few sweeps: with the probe modes Pₘ of the training data, a
pattern I, the object O under it, and a unitary F::

    Ψₘ = F(Pₘ·O),   Δₘ = F⁻¹[ Ψₘ · (√I / √Σₘ|Ψₘ|² - 1) ]
    O ← O + Σ Pₘ*·Δₘ / [ (1 - α)·Σ|Pₘ|² + α·max Σ|Pₘ|² ]

for one pattern after the other (Maiden, Johnson, Li, Optica 4, 736 (2017); modes as of Thibault,
Menzel, Nature 494, 68 (2013)). Masked pixels keep what the model says there. In numpy, in one
thread, unless other `Sweeps` are given.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from edgexnas.errors import ConfigurationError, InputError
from edgexnas.ptycho.canvas import ObjectImage
from edgexnas.ptycho.orientation import Orientation, oriented
from edgexnas.ptycho.patterns import PATTERN_SIZE
from edgexnas.ptycho.sweeps import HostSweeps, LaidScan, Sweeps

__all__ = ["MOST_SWEEPS", "PatternStore", "Refinement", "Refiner", "check_sweeps"]

ComplexArray = npt.NDArray[np.complex64]
Float64Array = npt.NDArray[np.float64]
Real = TypeVar("Real", np.bool_, np.float32)

MOST_SWEEPS = 1000

LARGEST_COUNT = float(np.finfo(np.float16).max) ** 2

LEAST_OVERLAP = 1.5
"""Patches that cover a pixel of the object, on average, where patterns tell of one another."""

MOST_BYTES = 2**31
"""Most memory for the patterns of one scan: 65,000 of 128×128."""


@dataclass(frozen=True, slots=True)
class Refinement:
    """An object after sweeps of phase retrieval.

    Attributes
    ----------
    image
        The refined object, on the pixels of the one before.
    residuals
        (sweeps + 1,) float64, Σ(√I - √model)² / ΣI: of the object before, then during each sweep.
    seconds
        (sweeps + 1,) float64, time since the start when each was known.
    patterns
        How many patterns took part.
    device
        What computed it: "CPU", or the name of a GPU.
    """

    image: ObjectImage
    residuals: Float64Array
    seconds: Float64Array
    patterns: int
    device: str = "CPU"

    @property
    def doubt(self) -> str | None:
        """Why the object is no better for it, in words; None if nothing is against it."""
        covered = int(np.count_nonzero(self.image.coverage))
        if self.patterns * PATTERN_SIZE**2 < LEAST_OVERLAP * covered:
            return (
                f"{self.patterns} patterns of {PATTERN_SIZE}×{PATTERN_SIZE} px lie on {covered} px "
                "of the object and hardly overlap, so that any object explains them; use the "
                "network's object, and check the unit of the positions"
            )
        before, after = self.residuals[0], self.residuals[-1]
        if after < before:
            return None
        return (
            f"refinement raised the residual from {before:.2%} to {after:.2%} of the light, so "
            "that probe, positions or orientation are not those of these patterns; use the "
            "network's object, and label a scan of this beam"
        )


class PatternStore:
    """The patterns of a scan and their positions, as refinement needs them.

    Square roots of counts are kept in float16: their rounding, one part in 2,000, lies below the
    noise of fewer than a million counts.

    Parameters
    ----------
    shape
        (H, W) of a pattern of the detector.
    mask
        (H, W) bool, True where a pixel is unusable; None for none.
    orientation
        What brings patterns into the axes of the positions.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        *,
        mask: npt.NDArray[np.bool_] | None = None,
        orientation: Orientation = "as-is",
    ) -> None:
        self.shape = shape
        self._orientation = orientation
        self.masked = None if mask is None else _cornered(oriented(mask, orientation))
        self._roots: dict[int, npt.NDArray[np.float16]] = {}
        self._positions: dict[int, Float64Array] = {}
        self._most = MOST_BYTES // (2 * shape[0] * shape[1])

    def __len__(self) -> int:
        return len(self._roots)

    def add(self, number: int, pattern: npt.NDArray[np.generic]) -> None:
        """Keep a pattern (H, W) of checked counts, its masked pixels 0.

        Raises
        ------
        InputError
            If there are more than fit into `MOST_BYTES`, or the pattern holds a count that is
            negative, not finite or too large.
        """
        if len(self._roots) >= self._most:
            raise InputError(
                f"pattern {number} does not fit into the {MOST_BYTES / 2**30:.0f} GiB that "
                f"refinement takes, which hold {self._most}; refine shorter scans or use refine=0"
            )
        with np.errstate(invalid="ignore", over="ignore"):
            roots = np.sqrt(oriented(pattern, self._orientation).astype(np.float32))
            kept = _cornered(roots).astype(np.float16)
        if not np.isfinite(kept).all():
            raise InputError(
                f"pattern {number} holds a count that is negative, not finite or larger than "
                f"{LARGEST_COUNT:.2g}; mask the pixels at fault"
            )
        self._roots[number] = kept

    def place(self, number: int, position: Float64Array) -> None:
        """Take in where the first pixel of a pattern's patch lies, (row, col) in object pixels."""
        self._positions[number] = np.array(position, np.float64)

    def placed(self) -> tuple[list[npt.NDArray[np.float16]], Float64Array]:
        """Return the patterns that have a position, and the positions (n, 2)."""
        known = [k for k, p in self._positions.items() if k in self._roots and np.isfinite(p).all()]
        positions = np.array([self._positions[k] for k in known], np.float64).reshape(-1, 2)
        return [self._roots[k] for k in known], positions


class Refiner:
    """Sweeps of rPIE with the probe of a bundle.

    Parameters
    ----------
    probe
        (modes, H, W) complex64, H and W those of the detector's patterns; its power is scaled to
        that of the patterns.

    Raises
    ------
    InputError
        If it is no such array.
    """

    def __init__(self, probe: ComplexArray) -> None:
        largest = np.abs(probe).max(initial=0)
        if probe.ndim != 3 or not np.iscomplexobj(probe) or not 0 < largest < np.inf:
            raise InputError(
                f"the probe is {probe.dtype} {probe.shape}, its largest amplitude {largest:g}; "
                "specify complex (modes, H, W), finite and not dark"
            )
        # In a scale in which no square of it leaves the range of float32.
        self._probe = np.ascontiguousarray(probe / largest, np.complex64)

    def refine(
        self,
        start: ObjectImage,
        store: PatternStore,
        sweeps: int,
        *,
        progress: Callable[[int, ObjectImage], None] | None = None,
        stop: Callable[[], bool] | None = None,
        begin: Callable[[LaidScan], Sweeps] = HostSweeps,
    ) -> Refinement | None:
        """Refine an object.

        Parameters
        ----------
        start
            The object before, such as a stitched one.
        store
            The patterns and their positions.
        sweeps
            How often to go through all patterns.
        progress
            Called after each sweep with its number and the object so far.
        stop
            Asked at every pattern of a sweep, or every few steps on a GPU, whether to end early.
        begin
            Makes what computes the sweeps; they are closed at the end.

        Returns
        -------
        The object and how it came about; None if it was ended early.

        Raises
        ------
        ConfigurationError
            If `sweeps` is no whole number from 1.
        InputError
            If no pattern has a position or light, patterns and probe differ in shape, the object is
            dark or not finite, or a residual is not finite.
        EngineError
            If what `begin` makes is on a GPU that fails, is full or was closed.
        """
        check_sweeps(sweeps)
        roots, positions = store.placed()
        if not roots or not start.values.size:
            raise InputError("no pattern has a position on the object; refinement needs some")
        if roots[0].shape != self._probe.shape[1:]:
            raise InputError(
                f"patterns have shape {roots[0].shape} and the probe {self._probe.shape[1:]}; "
                "use patterns of the detector that the bundle was trained with, not binned"
            )
        if not np.isfinite(start.values).all():
            raise InputError("the object holds values that are not finite; give one without")
        began = time.perf_counter()
        scan = LaidScan(start, roots, positions, store.masked)
        with closing(begin(scan)) as work:
            residuals = [_start(work, scan, self._probe)]
            seconds = [time.perf_counter() - began]
            for number in range(sweeps):
                misfit = work.sweep(number, stop)
                if misfit is None:
                    return None
                residuals.append(_share(misfit, scan))
                seconds.append(time.perf_counter() - began)
                if progress is not None:
                    progress(number + 1, scan.image(work.canvas()))
            image = scan.image(work.canvas())
            return Refinement(image, np.array(residuals), np.array(seconds), len(scan), work.device)


def check_sweeps(sweeps: int) -> None:
    """Reject an impossible number of sweeps.

    Raises
    ------
    ConfigurationError
        If it is no whole number from 1 to `MOST_SWEEPS`.
    """
    if type(sweeps) is not int or not 1 <= sweeps <= MOST_SWEEPS:
        raise ConfigurationError(
            f"refine is {sweeps!r}; specify a whole number of sweeps from 1 to {MOST_SWEEPS}"
        )


def _start(work: Sweeps, scan: LaidScan, probe: ComplexArray) -> float:
    """Give the probe the power that the patterns have with this object; return the residual."""
    work.use(probe, 1.0)
    light, _ = work.measure()
    if not light > 0:
        raise InputError("the object is dark under all patterns; there is nothing to refine")
    work.use(probe, float(np.sqrt(scan.light / light)))
    _, misfit = work.measure()
    return _share(misfit, scan)


def _share(misfit: float, scan: LaidScan) -> float:
    """Give a misfit as a share of the light."""
    if not np.isfinite(misfit):
        raise InputError(
            f"the residual of {len(scan)} patterns is {misfit}; check the probe, and the patterns "
            "for pixels to mask"
        )
    return misfit / scan.light


def _cornered(images: npt.NDArray[Real]) -> npt.NDArray[Real]:
    """Move the direct beam from (H // 2, W // 2) to (0, 0)."""
    moved: npt.NDArray[Real] = np.fft.ifftshift(images, axes=(-2, -1))
    return np.ascontiguousarray(moved)
