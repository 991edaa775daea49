"""One scan under refinement: where its patterns lie, and the sweeps that go through them.

`edgexnas.ptycho.refinement` has the formulas. A scan is laid out alike for the CPU and for a GPU,
and both take patterns that overlap in the same order, so that rounding alone makes them differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgexnas.errors import InputError
from edgexnas.ptycho.canvas import ObjectImage
from edgexnas.ptycho.patterns import PATTERN_SIZE

__all__ = ["HostSweeps", "LaidScan", "ShiftedProbes", "Sweeps", "order_of"]

ComplexArray = npt.NDArray[np.complex64]
Order = npt.NDArray[np.integer]

ALPHA = 0.3
"""Damping of pixels that get little light, as of `edgexnas.host.reconstruct`."""

STEPS_A_PIXEL = 4
"""A probe is shifted by whole quarters of a pixel; the rest, an eighth at most, is left out."""

LEAST_MODEL = 1e-6
"""Amplitude below which a model has no phase to keep."""


class LaidScan:
    """The patterns of a scan on the whole pixels of a canvas that holds all their windows.

    Parameters
    ----------
    start
        The object before.
    roots
        Square roots of the counts, (H, W) float16 each, the direct beam at (0, 0).
    positions
        (n, 2) of the patches' first pixels, in object pixels.
    masked
        (H, W) bool like the roots, True where a pixel is unusable; None for none.

    Attributes
    ----------
    places
        (n, 2) int: first pixel of each window on the canvas.
    parts
        (n, 2) int: by how many quarters of a pixel its probe is shifted.
    canvas
        (h, w) complex64: the object, its mean where nothing is known.
    light
        Sum of all counts.

    Raises
    ------
    InputError
        If the patterns hold no light.
    """

    def __init__(
        self,
        start: ObjectImage,
        roots: list[npt.NDArray[np.float16]],
        positions: npt.NDArray[np.float64],
        masked: npt.NDArray[np.bool_] | None,
    ) -> None:
        self._start, self.roots, self.masked = start, roots, masked
        side = np.array(roots[0].shape)
        corners = positions - (side // 2 - PATTERN_SIZE // 2)
        # To quarters of a pixel: whole ones by the place, the rest by one of 16 shifted probes.
        steps = np.rint(corners * STEPS_A_PIXEL).astype(int)
        whole, self.parts = steps // STEPS_A_PIXEL, steps % STEPS_A_PIXEL
        first = np.minimum(whole.min(axis=0), start.origin_px)
        last = np.maximum(
            (whole + side).max(axis=0), np.array(start.origin_px) + start.values.shape
        )
        self.places = whole - first
        self.canvas = _laid(start, first, last - first)
        self._inner = tuple(
            slice(at, at + length)
            for at, length in zip(
                (np.array(start.origin_px) - first).tolist(), start.values.shape, strict=True
            )
        )
        self.light = sum(float(np.square(r, dtype=np.float32).sum()) for r in roots)
        if not self.light > 0:
            raise InputError(
                f"none of the {len(roots)} patterns holds light on a usable pixel; check shutter "
                "and mask"
            )

    def __len__(self) -> int:
        return len(self.roots)

    def image(self, canvas: ComplexArray) -> ObjectImage:
        """Return the object on the pixels of the one before; 0 where that had nothing."""
        values, start = canvas[self._inner].copy(), self._start
        values[start.coverage == 0] = 0
        return ObjectImage(values, start.coverage, start.skipped, start.origin_px)


@dataclass(frozen=True, slots=True)
class ShiftedProbe:
    """A probe between pixels, (modes, H, W), and the weight of its modes' changes in a step."""

    probe: ComplexArray
    step: ComplexArray


class ShiftedProbes:
    """A probe at each of the 16 places between pixels that patterns need.

    Parameters
    ----------
    probe
        (modes, H, W) complex64.
    """

    def __init__(self, probe: ComplexArray) -> None:
        self._far = np.fft.fft2(probe)
        row, col = (np.fft.fftfreq(side) for side in probe.shape[1:])
        self._axes = row[:, None], col
        self._known: dict[tuple[int, int], ShiftedProbe] = {}

    def at(self, row_part: int, col_part: int) -> ShiftedProbe:
        """Return the probe shifted by so many quarters of a pixel."""
        key = row_part, col_part
        if key not in self._known:
            turns = (row_part * self._axes[0] + col_part * self._axes[1]) / STEPS_A_PIXEL
            probe = np.fft.ifft2(self._far * np.exp(-2j * np.pi * turns)).astype(np.complex64)
            light = _intensity(probe)
            damped = (1 - ALPHA) * light + ALPHA * light.max()
            self._known[key] = ShiftedProbe(probe, probe.conj() / damped)
        return self._known[key]


def order_of(patterns: int, sweep: int) -> Order:
    """Return in which order a sweep goes through so many patterns, (n,): another each time."""
    return np.random.default_rng(sweep).permutation(patterns)


class Sweeps(Protocol):
    """A scan under refinement, wherever that is computed."""

    @property
    def device(self) -> str:
        """What computes it: "CPU", or the name of a GPU."""

    def use(self, probe: ComplexArray, scale: float) -> None:
        """Take in the probe of what follows, (modes, H, W), and what it is multiplied by."""

    def measure(self) -> tuple[float, float]:
        """Return the light of the model on usable pixels, and Σ(√I - √model)²."""

    def sweep(self, number: int, stop: Callable[[], bool] | None) -> float | None:
        """Go through all patterns once more; return Σ(√I - √model)² of each on its turn.

        In the order of `order_of`, sweeps numbered from 0. None once `stop` says so.
        """

    def canvas(self) -> ComplexArray:
        """Return the object on the canvas of the scan, as it is."""

    def close(self) -> None:
        """Free what it holds; closing again does nothing."""


class HostSweeps:
    """Sweeps in numpy, in one thread; see `Sweeps`."""

    device = "CPU"

    def __init__(self, scan: LaidScan) -> None:
        self._scan = scan
        self._object = scan.canvas.copy()

    def use(self, probe: ComplexArray, scale: float) -> None:
        """See `Sweeps.use`."""
        self._probes = ShiftedProbes(probe * np.float32(scale))

    def measure(self) -> tuple[float, float]:
        """See `Sweeps.measure`."""
        light = misfit = 0.0
        for intensity, root in self._models():
            light += float(intensity.sum())
            misfit += float(np.square(np.sqrt(intensity) - root).sum())
        return light, misfit

    def sweep(self, number: int, stop: Callable[[], bool] | None) -> float | None:
        """See `Sweeps.sweep`."""
        misfit = 0.0
        for one in order_of(len(self._scan), number).tolist():
            if stop is not None and stop():
                return None
            misfit += self._update(one)
        return misfit

    def canvas(self) -> ComplexArray:
        """See `Sweeps.canvas`."""
        return self._object

    def close(self) -> None:
        """See `Sweeps.close`."""

    def _models(self) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.float16]]]:
        """Give the intensity that the object should cause on each pattern's usable pixels."""
        for number, root in enumerate(self._scan.roots):
            far = np.fft.fft2(self._shifted(number).probe * self._window(number), norm="ortho")
            intensity = _intensity(far)
            if self._scan.masked is not None:
                intensity[self._scan.masked] = 0
            yield intensity, root

    def _update(self, number: int) -> float:
        shifted, window = self._shifted(number), self._window(number)
        far = np.fft.fft2(shifted.probe * window, norm="ortho")
        model = np.sqrt(_intensity(far))
        root = self._scan.roots[number].astype(np.float32)
        if self._scan.masked is not None:
            root[self._scan.masked] = model[self._scan.masked]
        change = root - model
        error = float(np.vdot(change, change))
        # (√I / √model - 1) · Ψ, and 0 where there is no model.
        np.maximum(model, LEAST_MODEL, out=model)
        np.divide(change, model, out=change)
        far *= change
        back = np.fft.ifft2(far, norm="ortho")
        back *= shifted.step
        window += back.sum(axis=0)
        return error

    def _shifted(self, number: int) -> ShiftedProbe:
        return self._probes.at(*self._scan.parts[number].tolist())

    def _window(self, number: int) -> ComplexArray:
        (row, col), (h, w) = self._scan.places[number], self._scan.roots[number].shape
        view: ComplexArray = self._object[row : row + h, col : col + w]
        return view


def _intensity(waves: npt.NDArray[np.complexfloating]) -> npt.NDArray[np.float32]:
    """Sum |waves|² over modes: (modes, h, w) → (h, w)."""
    intensity: npt.NDArray[np.float32] = np.square(waves.real).sum(axis=0)
    intensity += np.square(waves.imag).sum(axis=0)
    return intensity


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
