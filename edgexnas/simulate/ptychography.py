"""A far-field ptychography scan with a known answer.

A zone plate's defocused beam, in several incoherent modes, steps over an object; each pattern is

    I = Poisson( Σₘ |F[ Pₘ(r) · O(r + p) ]|² )

where F is unitary, Pₘ are the modes and p the position of the window. The object is drawn by
`edgexnas.simulate.ptychography_objects`, the beam below.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from edgexnas.errors import ConfigurationError, InputError
from edgexnas.scans import Scan, window_offset
from edgexnas.simulate.ptychography_objects import OBJECT_KINDS, ObjectKind, thickness_map

__all__ = ["PtychographySettings", "diffract", "simulate_scan", "zone_plate_probe"]

Path2D = Literal["raster", "spiral", "random"]

ComplexArray = npt.NDArray[np.complex64]
Float64Array = npt.NDArray[np.float64]

_OBJECT, _POSITIONS, _COUNTS, _DEFECTS = range(4)
"""Keys of independent random streams."""

MARGIN_PX = 2
HOT_COUNTS = 65_535


@dataclass(frozen=True, kw_only=True)
class PtychographySettings:
    """A ptychography experiment; lengths in pixels of the object unless they say otherwise.

    Attributes
    ----------
    object_kind
        "siemens-star", "circuit" or "cells".
    transmission
        Amplitude behind full thickness; 1 where there is nothing.
    phase_shift_rad
        Phase behind full thickness; 0 where there is nothing.
    pattern_size
        Side of a pattern in detector pixels and of the window in object pixels: 64, 128, ...
    scan
        "raster" row by row, "spiral" of Fermat from the middle, or "random".
    scan_shape_px
        (rows, columns) of the area that positions lie in.
    step_px
        Distance between neighbours of a raster; the other scans are as dense.
    jitter_px
        Standard deviation by which positions deviate from their pattern, along each axis.
    probe_radius_px
        Radius of the defocused beam.
    pupil_cycles_per_px
        Edge of the zone plate's aperture in the far field; at 0.5 it reaches the pattern's edge.
    central_stop
        Radius of the stop before the zone plate as a share of the aperture.
    mode_powers
        Share of each incoherent mode; they add up to 1.
    photons
        Mean photons of a pattern without absorption.
    beam_stop_px
        Radius, in detector pixels, of a stop before the detector, masked; 0 for none.
    hot_pixel_fraction
        Share of detector pixels that always read 65535, masked.

    Raises
    ------
    ConfigurationError
        If a value is out of range; it names the field.
    """

    object_kind: ObjectKind = "siemens-star"
    transmission: float = 0.75
    phase_shift_rad: float = -1.2
    pattern_size: int = 64
    scan: Path2D = "raster"
    scan_shape_px: tuple[int, int] = (330, 330)
    step_px: float = 12.0
    jitter_px: float = 1.0
    probe_radius_px: float = 18.0
    pupil_cycles_per_px: float = 0.15
    central_stop: float = 0.4
    mode_powers: tuple[float, ...] = (0.7, 0.2, 0.1)
    photons: float = 4e5
    beam_stop_px: float = 0.0
    hot_pixel_fraction: float = 0.0

    def __post_init__(self) -> None:
        wrong = next((name for name, fine in _checks(self) if not fine), None)
        if wrong is not None:
            raise ConfigurationError(
                f"{wrong} is {getattr(self, wrong)!r}; see PtychographySettings for its range"
            )


def _checks(settings: PtychographySettings) -> list[tuple[str, bool]]:
    powers = settings.mode_powers
    return [
        ("object_kind", settings.object_kind in OBJECT_KINDS),
        ("transmission", 0 < settings.transmission <= 1),
        ("phase_shift_rad", abs(settings.phase_shift_rad) < np.pi),
        ("pattern_size", settings.pattern_size >= 64 and settings.pattern_size % 64 == 0),
        ("scan", settings.scan in get_args(Path2D)),
        ("scan_shape_px", min(settings.scan_shape_px) >= 1),
        ("step_px", settings.step_px > 0),
        ("jitter_px", settings.jitter_px >= 0),
        ("probe_radius_px", 1 <= settings.probe_radius_px < settings.pattern_size / 2),
        ("pupil_cycles_per_px", 0 < settings.pupil_cycles_per_px <= 0.5),
        ("central_stop", 0 <= settings.central_stop < 1),
        ("mode_powers", 1 <= len(powers) <= 5 and min(powers) > 0 and abs(sum(powers) - 1) < 1e-6),
        ("photons", 0 < settings.photons < 1e9),
        ("beam_stop_px", settings.beam_stop_px >= 0),
        ("hot_pixel_fraction", 0 <= settings.hot_pixel_fraction < 0.1),
    ]


def simulate_scan(settings: PtychographySettings | None = None, *, seed: int = 0) -> Scan:
    """Simulate a scan.

    Parameters
    ----------
    settings
        The experiment; None takes the defaults of `PtychographySettings`.
    seed
        Equal settings and seeds give equal scans.

    Returns
    -------
    Scan with uint32 counts, its probe scaled to `photons`, and its object as `truth`.
    """
    settings = settings or PtychographySettings()
    corners = _corners(settings, _stream(seed, _POSITIONS))
    size = settings.pattern_size
    rows, cols = (int(side) + size + 2 * MARGIN_PX + 1 for side in settings.scan_shape_px)
    thickness = thickness_map(settings.object_kind, (rows, cols), _stream(seed, _OBJECT))
    absorption = 1 - (1 - settings.transmission) * thickness
    truth = (absorption * np.exp(1j * settings.phase_shift_rad * thickness)).astype(np.complex64)
    probe = zone_plate_probe(settings)
    counts = _stream(seed, _COUNTS).poisson(diffract(truth, probe, corners)).astype(np.uint32)
    mask = _defects(settings, _stream(seed, _DEFECTS), counts)
    return Scan(
        patterns=counts,
        positions_px=corners + window_offset(size, size),
        source=f"simulate_scan({settings.object_kind}, {settings.scan}, seed={seed})",
        probe=probe,
        mask=mask if mask.any() else None,
        truth=truth,
    )


def diffract(
    sample: ComplexArray, probe: ComplexArray, corners_px: npt.ArrayLike
) -> npt.NDArray[np.float32]:
    """Compute the expected far-field intensities of an object under a probe.

    Parameters
    ----------
    sample
        (H, W) complex transmission of the object.
    probe
        (modes, h, w) complex; Σ|probe|² is the number of photons.
    corners_px
        (n, 2), (row, col) of the first pixel of each window (h, w) on the object; a fraction of a
        pixel moves the probe by a Fourier shift.

    Returns
    -------
    (n, h, w) float32 photons, the direct beam at (h // 2, w // 2).

    Raises
    ------
    InputError
        If a window is not on the object.
    """
    corners = np.asarray(corners_px, np.float64)
    h, w = probe.shape[1:]
    whole = np.floor(corners).astype(int)
    last = np.array(sample.shape) - (h, w)
    if corners.ndim != 2 or corners.shape[1] != 2 or not ((whole >= 0) & (whole <= last)).all():
        raise InputError(
            f"windows of {h}×{w} px do not all lie on an object of {sample.shape}; "
            "specify (n, 2) corners inside it"
        )
    spectrum = np.fft.fft2(probe)
    row, col = np.fft.fftfreq(h), np.fft.fftfreq(w)
    intensities = np.empty((len(corners), h, w), np.float32)
    for number, ((top, left), part) in enumerate(zip(whole, corners - whole, strict=True)):
        ramp = np.exp(-2j * np.pi * (part[0] * row[:, None] + part[1] * col[None, :]))
        exit_waves = np.fft.ifft2(spectrum * ramp) * sample[top : top + h, left : left + w]
        # Unitary, so the sum of a pattern is the number of photons.
        far = np.fft.fft2(exit_waves, norm="ortho")
        # Incoherent modes add in intensity.
        intensities[number] = np.fft.fftshift((np.abs(far) ** 2).sum(axis=0))
    return intensities


def zone_plate_probe(settings: PtychographySettings) -> ComplexArray:
    """Make the modes of a defocused zone plate's beam, (modes, h, w), with Σ|P|² = photons.

    The first mode is the Fourier transform of an annular aperture with a quadratic phase; rays
    from its edge land `probe_radius_px` from the middle. The others are that times row, column,
    row², column·row, made orthogonal: what a source of finite size adds.
    """
    size, edge = settings.pattern_size, settings.pupil_cycles_per_px
    frequency = np.fft.fftfreq(size)
    radius = np.hypot(frequency[:, None], frequency[None, :])
    # Half a pixel of the far field softens the edges, or the probe would not end in the window.
    soft = 0.5 / size
    aperture = 1 / (1 + np.exp((radius - edge) / soft))
    aperture *= 1 - 1 / (1 + np.exp((radius - settings.central_stop * edge) / soft))
    # A phase of π·c·k² sends frequency k to c·k pixels from the middle.
    defocus = np.pi * settings.probe_radius_px / edge * radius**2
    first = np.fft.fftshift(np.fft.ifft2(aperture * np.exp(1j * defocus)))
    axis = (np.arange(size) - size // 2) / size
    row, col = axis[:, None], axis[None, :]
    shapes = (np.ones((size, size)), row, col, row**2, row * col)[: len(settings.mode_powers)]
    modes = np.stack([first * shape for shape in shapes]).reshape(len(shapes), -1)
    orthonormal = np.linalg.qr(modes.T)[0].T.reshape(-1, size, size)
    powers = np.sqrt(settings.photons * np.array(settings.mode_powers))
    probe: ComplexArray = (orthonormal * powers[:, None, None]).astype(np.complex64)
    return probe


def _corners(settings: PtychographySettings, rng: np.random.Generator) -> Float64Array:
    """(n, 2) first pixels of the windows, in the order of the scan."""
    rows, cols = settings.scan_shape_px
    step = settings.step_px
    number = max(int(rows / step) + 1, 1) * max(int(cols / step) + 1, 1)
    if settings.scan == "raster":
        grid = np.meshgrid(np.arange(0, rows + 1e-9, step), np.arange(0, cols + 1e-9, step))
        places = np.stack([axis.T.ravel() for axis in grid], axis=1)
    elif settings.scan == "spiral":
        # Fermat's spiral is equally dense everywhere; what leaves the area is left out.
        turn = np.arange(2 * number)
        radius = step * np.sqrt(turn / np.pi)
        # By the golden angle.
        angle = turn * np.pi * (3 - np.sqrt(5))
        spiral = np.stack([radius * np.sin(angle), radius * np.cos(angle)], axis=1)
        places = spiral + np.array([rows, cols]) / 2
        places = places[((places >= 0) & (places <= (rows, cols))).all(axis=1)]
    else:
        places = rng.uniform(0, (rows, cols), (number, 2))
    places = places + rng.normal(0, settings.jitter_px, places.shape)
    inside: Float64Array = places.clip(0, (rows, cols)) + MARGIN_PX
    return inside


def _defects(
    settings: PtychographySettings, rng: np.random.Generator, counts: npt.NDArray[np.uint32]
) -> npt.NDArray[np.bool_]:
    """Write what the beam stop and hot pixels read into the counts; return their mask."""
    size = settings.pattern_size
    axis = np.arange(size) - size // 2
    stop = np.hypot(axis[:, None], axis[None, :]) < settings.beam_stop_px
    hot = (rng.random((size, size)) < settings.hot_pixel_fraction) & ~stop
    counts[:, stop] = 0
    counts[:, hot] = HOT_COUNTS
    mask: npt.NDArray[np.bool_] = stop | hot
    return mask


def _stream(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng([seed, *key])
