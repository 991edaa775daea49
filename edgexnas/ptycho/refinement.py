"""Refine an object by the physics of its patterns: sweeps of rPIE with a known probe.

A network tells the object at once and smooths what it rarely saw. Its object is a good start for
phase retrieval, which then needs few sweeps: with the probe modes Pₘ of the training data, a
pattern I, the object O under it, and a unitary F::

    Ψₘ = F(Pₘ·O),   Δₘ = F⁻¹[ Ψₘ · (√I / √Σₘ|Ψₘ|² - 1) ]
    O ← O + Σ Pₘ*·Δₘ / [ (1 - α)·Σ|Pₘ|² + α·max Σ|Pₘ|² ]

for one pattern after the other (Maiden, Johnson, Li, Optica 4, 736 (2017); modes as of Thibault,
Menzel, Nature 494, 68 (2013)). Masked pixels keep what the model says there. numpy only, in one
thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from edgexnas.errors import ConfigurationError, InputError
from edgexnas.ptycho.canvas import ObjectImage
from edgexnas.ptycho.orientation import Orientation, oriented
from edgexnas.ptycho.patterns import PATTERN_SIZE

__all__ = ["MOST_SWEEPS", "PatternStore", "Refinement", "Refiner", "check_sweeps"]

ComplexArray = npt.NDArray[np.complex64]
Float64Array = npt.NDArray[np.float64]
Real = TypeVar("Real", np.bool_, np.float32)

ALPHA = 0.3
"""Damping of pixels that get little light, as of `edgexnas.host.reconstruct`."""

MOST_SWEEPS = 1000

STEPS_A_PIXEL = 4
"""A probe is shifted by whole quarters of a pixel; the rest, an eighth at most, is left out."""

LARGEST_COUNT = float(np.finfo(np.float16).max) ** 2

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
    """

    image: ObjectImage
    residuals: Float64Array
    seconds: Float64Array
    patterns: int

    @property
    def doubt(self) -> str | None:
        """Why the object is no better for it, in words; None if the residual fell."""
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
            Asked at every pattern of a sweep whether to end early.

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
        state = _State(self._probe, start, roots, positions, store.masked)
        residuals, seconds = [state.residual()], [time.perf_counter() - began]
        for number in range(sweeps):
            residual = state.sweep(number, stop)
            if residual is None:
                return None
            residuals.append(residual)
            seconds.append(time.perf_counter() - began)
            if progress is not None:
                progress(number + 1, state.image())
        return Refinement(state.image(), np.array(residuals), np.array(seconds), len(roots))


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


class _State:
    """An object under refinement, and the memory that a step works in."""

    def __init__(
        self,
        probe: ComplexArray,
        start: ObjectImage,
        roots: list[npt.NDArray[np.float16]],
        positions: Float64Array,
        masked: npt.NDArray[np.bool_] | None,
    ) -> None:
        self._start, self._roots = start, roots
        self._free = masked
        side = np.array(probe.shape[1:])
        corners = positions - (side // 2 - PATTERN_SIZE // 2)
        # To quarters of a pixel: whole ones by the place, the rest by one of 16 shifted probes.
        steps = np.rint(corners * STEPS_A_PIXEL).astype(int)
        whole, self._parts = steps // STEPS_A_PIXEL, steps % STEPS_A_PIXEL
        first = np.minimum(whole.min(axis=0), start.origin_px)
        last = np.maximum(
            (whole + side).max(axis=0), np.array(start.origin_px) + start.values.shape
        )
        self._places = whole - first
        self._object = _laid(start, first, last - first)
        self._inner = tuple(
            slice(at, at + length)
            for at, length in zip(
                (np.array(start.origin_px) - first).tolist(), start.values.shape, strict=True
            )
        )
        self._total = sum(float(np.square(r, dtype=np.float32).sum()) for r in roots)
        if not self._total > 0:
            raise InputError(
                f"none of the {len(roots)} patterns holds light on a usable pixel; check shutter "
                "and mask"
            )
        self._probes = _Shifted(probe)
        self._waves = np.empty(probe.shape, np.complex64)
        self._scale_probe(probe)

    def _scale_probe(self, probe: ComplexArray) -> None:
        """Give the probe the power that the patterns have with this object."""
        model = sum(float(m.sum()) for m, _ in self._models())
        if not model > 0:
            raise InputError("the object is dark under all patterns; there is nothing to refine")
        self._probes = _Shifted(probe * np.float32(np.sqrt(self._total / model)))

    def _models(self) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.float16]]]:
        """Give the intensity that the object should cause on each pattern's usable pixels."""
        for number, root in enumerate(self._roots):
            np.multiply(
                self._probes.at(self._parts[number]).probe, self._window(number), out=self._waves
            )
            far = np.fft.fft2(self._waves, norm="ortho")
            intensity = _intensity(far)
            if self._free is not None:
                intensity[self._free] = 0
            yield intensity, root

    def residual(self) -> float:
        """Σ(√I - √model)² / ΣI of the object as it is."""
        misfit = sum(
            float(np.square(np.sqrt(intensity) - root).sum()) for intensity, root in self._models()
        )
        return self._share(misfit)

    def sweep(self, seed: int, stop: Callable[[], bool] | None) -> float | None:
        """Go through all patterns in random order; return their error on the way.

        None once `stop` says so.
        """
        misfit = 0.0
        for number in np.random.default_rng(seed).permutation(len(self._roots)):
            if stop is not None and stop():
                return None
            misfit += self._update(int(number))
        return self._share(misfit)

    def _share(self, misfit: float) -> float:
        """Give a misfit as a share of the light."""
        if not np.isfinite(misfit):
            raise InputError(
                f"the residual of {len(self._roots)} patterns is {misfit}; check the probe, and "
                "the patterns for pixels to mask"
            )
        return misfit / self._total

    def _update(self, number: int) -> float:
        shifted, window = self._probes.at(self._parts[number]), self._window(number)
        np.multiply(shifted.probe, window, out=self._waves)
        far = np.fft.fft2(self._waves, norm="ortho")
        model = np.sqrt(_intensity(far))
        root = self._roots[number].astype(np.float32)
        if self._free is not None:
            root[self._free] = model[self._free]
        change = root - model
        error = float(np.vdot(change, change))
        # (√I / √model - 1) · Ψ, and 0 where there is no model.
        np.maximum(model, 1e-6, out=model)
        np.divide(change, model, out=change)
        far *= change
        back = np.fft.ifft2(far, norm="ortho")
        back *= shifted.step
        window += back.sum(axis=0)
        return error

    def _window(self, number: int) -> ComplexArray:
        (row, col), (h, w) = self._places[number], self._roots[number].shape
        view: ComplexArray = self._object[row : row + h, col : col + w]
        return view

    def image(self) -> ObjectImage:
        """Return the object on the pixels of the one before; 0 where that had nothing."""
        values = self._object[self._inner].copy()
        values[self._start.coverage == 0] = 0
        return ObjectImage(values, self._start.coverage, self._start.skipped, self._start.origin_px)


@dataclass(frozen=True, slots=True)
class _ShiftedProbe:
    """A probe between pixels, and the weight of its modes' changes in a step."""

    probe: ComplexArray
    step: ComplexArray


class _Shifted:
    """The probe at each of the 16 places between pixels that patterns need."""

    def __init__(self, probe: ComplexArray) -> None:
        self._far = np.fft.fft2(probe)
        row, col = (np.fft.fftfreq(side) for side in probe.shape[1:])
        self._axes = row[:, None], col
        self._known: dict[tuple[int, int], _ShiftedProbe] = {}

    def at(self, part: npt.NDArray[np.integer]) -> _ShiftedProbe:
        """Return the probe shifted by so many quarters of a pixel."""
        key = int(part[0]), int(part[1])
        if key not in self._known:
            turns = (key[0] * self._axes[0] + key[1] * self._axes[1]) / STEPS_A_PIXEL
            probe = np.fft.ifft2(self._far * np.exp(-2j * np.pi * turns)).astype(np.complex64)
            light = _intensity(probe)
            damped = (1 - ALPHA) * light + ALPHA * light.max()
            self._known[key] = _ShiftedProbe(probe, probe.conj() / damped)
        return self._known[key]


def _intensity(waves: npt.NDArray[np.complexfloating]) -> npt.NDArray[np.float32]:
    """Sum |waves|² over modes: (modes, h, w) → (h, w)."""
    intensity: npt.NDArray[np.float32] = np.square(waves.real).sum(axis=0)
    intensity += np.square(waves.imag).sum(axis=0)
    return intensity


def _cornered(images: npt.NDArray[Real]) -> npt.NDArray[Real]:
    """Move the direct beam from (H // 2, W // 2) to (0, 0)."""
    moved: npt.NDArray[Real] = np.fft.ifftshift(images, axes=(-2, -1))
    return np.ascontiguousarray(moved)


def _laid(
    image: ObjectImage, first: npt.NDArray[np.integer], shape: npt.NDArray[np.integer]
) -> ComplexArray:
    """Lay an object on a larger canvas, its mean where nothing is known."""
    covered = image.coverage > 0
    values = image.values[covered]
    mean = values.mean(dtype=np.complex128)
    # Of the mean's phase and the mean amplitude: phases that differ would make the mean too small.
    flat = np.exp(1j * np.angle(mean)) * np.abs(values).mean()
    canvas = np.full(shape, flat, np.complex64)
    row, col = (np.array(image.origin_px) - first).tolist()
    rows, cols = image.values.shape
    canvas[row : row + rows, col : col + cols] = np.where(covered, image.values, flat)
    return canvas
