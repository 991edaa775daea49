"""Where the grains of a polycrystal diffract: rotation angle and place on a flat detector.

The laboratory frame is right-handed, in mm and 1/Å: z along the beam, y up, the rotation axis is
y, and x completes it. Rows of the detector run down (−y), columns along x, and the detector is
normal to the beam. A crystal rotated by ω diffracts from the reciprocal-lattice vector g when
k + g is as long as k = (0, 0, 1/λ), that is g_z = −λ·|g|²/2 (Laue's condition). Turning g about
y gives g_z(ω) = ρ·cos(ω + φ) with ρ = hypot(g_x, g_z) and φ = atan2(g_x, g_z), so every g with
ρ ≥ λ·|g|²/2 diffracts at two angles of a full turn.

References
----------
H. F. Poulsen, Three-Dimensional X-Ray Diffraction Microscopy (Springer, 2004), chapters 3 and 4.
K. Shoemake, Uniform random rotations, Graphics Gems III (1992).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import atan2, hypot

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]

HC_KEV_ANGSTROM = 12.398419843320026
"""Planck's constant times the speed of light (CODATA 2018): λ = hc / E."""

_AXIS_EXCLUSION = 0.1
"""Spots with |sin η| below this, near the rotation axis, stay in reflection for many frames."""


@dataclass(frozen=True, slots=True)
class Material:
    """A crystal: its unit cell and which reflections its symmetry allows.

    Attributes
    ----------
    a, c
        Edges of the cell in Å.
    hexagonal
        Whether a and b enclose 120° (else 90°); all other angles are 90°.
    allowed
        Function of (m, 3) Miller indices that tells which are not extinct, (m,) bool.
    """

    a: float
    c: float
    hexagonal: bool
    allowed: Callable[[IntArray], BoolArray]

    def reciprocal(self) -> FloatArray:
        """(3, 3), columns a*, b*, c* in 1/Å, crystal axes: x along a, z along c."""
        gamma = np.deg2rad(120.0 if self.hexagonal else 90.0)
        direct = np.array(
            [[self.a, self.a * np.cos(gamma), 0], [0, self.a * np.sin(gamma), 0], [0, 0, self.c]]
        )
        inverse: FloatArray = np.linalg.inv(direct).T
        return inverse


def _face_centred(hkl: IntArray) -> BoolArray:
    odd = hkl % 2
    result: BoolArray = (odd == odd[:, :1]).all(axis=1)
    return result


def _corundum(hkl: IntArray) -> BoolArray:
    """R-3c in hexagonal axes, obverse setting (International Tables A, no. 167)."""
    h, k, el = hkl.T
    centred = (-h + k + el) % 3 == 0
    # The three glide planes act on h0h̄l, 0kk̄l and hh̄0l alike.
    glide = (h * k * (h + k) != 0) | (el % 2 == 0)
    result: BoolArray = centred & glide
    return result


MATERIALS = {
    "ruby": Material(a=4.7592, c=12.9920, hexagonal=True, allowed=_corundum),
    "nickel": Material(a=3.5238, c=3.5238, hexagonal=False, allowed=_face_centred),
}
"""Cells of NIST SRM 676a (alumina) and of nickel at room temperature."""


@dataclass(frozen=True, slots=True)
class Detector:
    """A flat detector normal to the beam.

    Attributes
    ----------
    shape
        (rows, columns).
    centre_px
        (row, col) where the beam meets its plane; may lie outside.
    distance_mm, pixel_mm
        Distance to the rotation axis and side of a pixel.
    """

    shape: tuple[int, int]
    centre_px: tuple[float, float]
    distance_mm: float
    pixel_mm: float

    def largest_angle_rad(self) -> float:
        """Largest scattering angle 2θ that a pixel sees."""
        reach = [
            max(abs(centre), abs(size - 1 - centre))
            for size, centre in zip(self.shape, self.centre_px, strict=True)
        ]
        return atan2(hypot(*reach) * self.pixel_mm, self.distance_mm)


@dataclass(frozen=True, slots=True)
class Diffraction:
    """Diffraction events of a full turn, in no particular order.

    Attributes
    ----------
    omega_deg
        (n,) float64 in [0, 360).
    row, col
        (n,) float64, place on the detector in px.
    radial_rad
        (n,) float64, direction away from the beam, from the +col axis towards the +row axis.
    sharpness
        (n,) float64, |sin η|: a reflection passes through ω in an angle that grows as 1/|sin η|.
    grain
        (n,) int32.
    """

    omega_deg: FloatArray
    row: FloatArray
    col: FloatArray
    radial_rad: FloatArray
    sharpness: FloatArray
    grain: npt.NDArray[np.int32]


def reciprocal_vectors(material: Material, shortest_spacing: float) -> FloatArray:
    """(m, 3) vectors g in 1/Å, crystal axes, of all reflections with 1/|g| ≥ the given Å."""
    limit = [int(edge / shortest_spacing) + 1 for edge in (material.a, material.a, material.c)]
    axes = [np.arange(-bound, bound + 1) for bound in limit]
    hkl = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    hkl = hkl[hkl.any(axis=1)]
    hkl = hkl[material.allowed(hkl)]
    vectors: FloatArray = hkl @ material.reciprocal().T
    within: BoolArray = np.linalg.norm(vectors, axis=1) <= 1 / shortest_spacing
    return vectors[within]


def random_rotations(count: int, rng: np.random.Generator) -> FloatArray:
    """(count, 3, 3) rotations, uniform over SO(3) (Shoemake 1992)."""
    u, v, w = rng.random((3, count))
    a, b = np.sqrt(1 - u), np.sqrt(u)
    x, y = a * np.sin(2 * np.pi * v), a * np.cos(2 * np.pi * v)
    z, s = b * np.sin(2 * np.pi * w), b * np.cos(2 * np.pi * w)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - s * z), 2 * (x * z + s * y)],
        [2 * (x * y + s * z), 1 - 2 * (x * x + z * z), 2 * (y * z - s * x)],
        [2 * (x * z - s * y), 2 * (y * z + s * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), -1, 0)


def diffract(
    material: Material,
    rotations: FloatArray,
    positions_mm: FloatArray,
    *,
    wavelength: float,
    detector: Detector,
) -> Diffraction:
    """Find every spot of a full turn that falls on the detector.

    Parameters
    ----------
    material
        What the grains are made of.
    rotations
        (n, 3, 3), from crystal axes to sample axes, the laboratory's at ω = 0.
    positions_mm
        (n, 3), centres of the grains in sample axes.
    wavelength
        In Å.
    detector
        Where the spots fall.
    """
    # Bragg's law at the largest angle: planes nearer to each other miss the detector.
    spacing = wavelength / (2 * np.sin(detector.largest_angle_rad() / 2))
    crystal = reciprocal_vectors(material, spacing)
    vectors = np.einsum("nij,mj->nmi", rotations, crystal).reshape(-1, 3)
    grain = np.repeat(np.arange(len(rotations), dtype=np.int32), len(crystal))
    lag = wavelength * (vectors**2).sum(axis=1) / 2
    rho = np.hypot(vectors[:, 0], vectors[:, 2])
    # The others never fulfil Laue's condition, at whatever ω.
    meets = lag < rho
    vectors, grain, lag, rho = vectors[meets], grain[meets], lag[meets], rho[meets]
    phase = np.arctan2(vectors[:, 0], vectors[:, 2])
    # Twice a turn: ρ·cos(ω + φ) = −lag has two solutions.
    swing = np.arccos(-lag / rho)
    omega = np.concatenate([swing - phase, -swing - phase])
    vectors, grain = np.tile(vectors, (2, 1)), np.tile(grain, 2)
    return _project(vectors, omega, grain, positions_mm[grain], wavelength, detector)


def _project(
    vectors: FloatArray,
    omega: FloatArray,
    grain: npt.NDArray[np.int32],
    positions_mm: FloatArray,
    wavelength: float,
    detector: Detector,
) -> Diffraction:
    """Follow the diffracted beams to the detector and keep those that meet it."""
    g, origin = _turned(vectors, omega), _turned(positions_mm, omega)
    flight = (detector.distance_mm - origin[:, 2]) / (1 / wavelength + g[:, 2])
    x, y = origin[:, 0] + flight * g[:, 0], origin[:, 1] + flight * g[:, 1]
    row = detector.centre_px[0] - y / detector.pixel_mm
    col = detector.centre_px[1] + x / detector.pixel_mm
    sharpness = np.abs(g[:, 0]) / np.hypot(g[:, 0], g[:, 1])
    rows, columns = detector.shape
    hits = (flight > 0) & (sharpness > _AXIS_EXCLUSION)
    hits &= (row > -0.5) & (row < rows - 0.5) & (col > -0.5) & (col < columns - 0.5)
    return Diffraction(
        omega_deg=np.rad2deg(omega[hits]) % 360,
        row=row[hits],
        col=col[hits],
        radial_rad=np.arctan2(-g[hits, 1], g[hits, 0]),
        sharpness=sharpness[hits],
        grain=grain[hits],
    )


def _turned(vectors: FloatArray, angle: FloatArray) -> FloatArray:
    """Turn (n, 3) vectors about y by (n,) angles in rad."""
    cos, sin = np.cos(angle), np.sin(angle)
    x, y, z = vectors.T
    return np.stack([x * cos + z * sin, y, z * cos - x * sin], axis=1)
