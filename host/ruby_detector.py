"""The detector of the ruby data: hexrd's instrument file, and what it leaves out."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgexnas.simulate.crystal import HC_KEV_ANGSTROM
from edgexnas.spots import Spots

Float = npt.NDArray[Any]

SHAPE = (3888, 3072)
TILE = (1944, 1536)
"""A Dexela 2923 is four sensors, and the file has one plane for them."""


def rotation_of(vector: Any) -> Float:
    """Rotation matrix of an exponential map."""
    v = np.asarray(vector, np.float64)
    angle = np.linalg.norm(v)
    x, y, z = v / angle
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    matrix: Float = np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k
    return matrix


AXES = np.array([[0, 0, -1], [-1, 0, 0], [0, 1, 0]], np.float64)
"""From hexrd's axes (beam along -z, y up) to ImageD11's (beam along x, z up)."""


@dataclass(frozen=True)
class RubyDetector:
    """Panel ff1, in hexrd's convention."""

    tilt: Float
    translation_mm: Float
    chi_rad: float
    energy_kev: float
    pixel_mm: float

    @classmethod
    def read(cls, path: Path) -> RubyDetector:
        """Read the file; by its lines, for want of a YAML library."""
        text = path.read_text()
        panel = text[text.index("ff1:") : text.index("ff2:")]

        def numbers(part: str, name: str, count: int) -> Float:
            after = part[part.index(f"{name}:") + len(name) + 1 :]
            return np.array(re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", after)[:count], np.float64)

        return cls(
            numbers(panel, "tilt", 3),
            numbers(panel, "translation", 3),
            float(numbers(text, "chi", 1)[0]),
            float(numbers(text, "energy", 1)[0]),
            float(numbers(panel, "size", 1)[0]),
        )

    def geometry(self) -> dict[str, Any]:
        """Tell ImageD11 where the pixels are."""
        row, col = (v.ravel() for v in np.meshgrid(*(np.linspace(0, s - 1, 5) for s in SHAPE)))
        plane = np.stack([col - (SHAPE[1] - 1) / 2, (SHAPE[0] - 1) / 2 - row, 0 * row])
        places = rotation_of(self.tilt) @ plane * self.pixel_mm + self.translation_mm[:, None]
        return {
            "pixels": np.stack([row, col], axis=1).tolist(),
            "places_um": (AXES @ places * 1e3).T.tolist(),
            "pixel_um": self.pixel_mm * 1e3,
            "wavelength": HC_KEV_ANGSTROM / self.energy_kev,
            "wedge_deg": float(np.rad2deg(self.chi_rad)),
        }

    def reference(self, path: Path, cell: list[Any]) -> list[tuple[Float, Float]]:
        """Read hexrd's grains: edges of the cell as rows, and places in µm, in ImageD11's axes."""
        a, _, c = cell[:3]
        edges = np.array([[a, 0, 0], [-a / 2, a * np.sqrt(3) / 2, 0], [0, 0, c]])
        found = []
        for row in np.loadtxt(path):
            turn = AXES @ rotation_of(row[3:6])
            found.append((edges @ turn.T, AXES @ row[6:9] * 1e3))
        return found


@dataclass(frozen=True)
class Correction:
    """What to add to rows and columns, and to angles: found from what grains leave over.

    Each sensor has a shift, a turn and a stretch of its own, and all share terms of the second and
    third order in the distance from the beam.
    """

    row: Float
    col: Float
    omega: Float

    @classmethod
    def none(cls) -> Correction:
        """Correct nothing."""
        return cls(np.zeros(18), np.zeros(18), np.zeros(1))

    def applied(self, spots: Spots) -> Spots:
        """Correct spots."""
        terms = _terms(spots.positions_px)
        moved = np.stack([terms @ self.row, terms @ self.col], axis=1)
        return replace(
            spots,
            positions_px=(spots.positions_px + moved).astype(np.float32),
            omega_deg=spots.omega_deg + self.omega[0] * (spots.omega_deg - 180) / 180,
        )

    def refined(self, spots: Spots, grains: Any) -> Correction:
        """Find a better one from the grains that corrected spots gave."""
        ids = np.concatenate([one["spot_ids"] for one in grains])
        left = {
            name: np.concatenate([one[name] for one in grains])
            for name in ("row_px", "col_px", "omega_deg")
        }
        usual = (np.abs(left["row_px"]) < 2.5) & (np.abs(left["col_px"]) < 2.5)
        terms = _terms(spots.positions_px[ids])
        ramp = (spots.omega_deg[ids, None] - 180) / 180
        return Correction(
            self.row - _fitted(terms[usual], left["row_px"][usual]),
            self.col - _fitted(terms[usual], left["col_px"][usual]),
            self.omega - _fitted(ramp[usual], left["omega_deg"][usual]),
        )


def _fitted(terms: Float, values: Float) -> Float:
    """Least squares that weigh outliers less, and hardly move what nothing determines."""
    weight = np.ones(len(values))
    for _ in range(10):
        a = terms * weight[:, None]
        found = np.linalg.solve(a.T @ terms + 1e-3 * np.eye(terms.shape[1]), a.T @ values)
        apart = np.abs(values - terms @ found)
        weight = 1 / (1 + (apart / (2 * np.median(apart) + 1e-9)) ** 2)
    result: Float = found
    return result


def _terms(positions: npt.NDArray[Any]) -> Float:
    row, col = positions.astype(np.float64).T
    y, x = (row - TILE[0]) / TILE[0], (col - TILE[1]) / TILE[1]
    columns = []
    for below in (False, True):
        for right in (False, True):
            here = ((row >= TILE[0]) == below) & ((col >= TILE[1]) == right)
            columns += [here, here * y, here * x]
    # The beam meets the panel's plane left of it, at its middle row.
    away = x + 1.07
    r = np.hypot(y * TILE[0] / TILE[1], away)
    columns += [r * y, r * away, r**2 * y, r**2 * away, y * y, x * y]
    return np.stack(columns, axis=1).astype(np.float64)
