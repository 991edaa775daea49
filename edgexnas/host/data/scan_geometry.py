"""How a scan's patterns lie: where the direct beam is, and which way the detector is turned.

Neither is taken for granted. The beam's place shows in the mean pattern. Of the eight orientations
that a detector may have to the axes of the positions, only the right one lets phase retrieval
explain how patterns change from position to position; but a pattern turned by half is that of the
conjugate object under the conjugate beam, so that orientations come in pairs which only a known
probe tells apart.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from edgexnas.errors import InputError
from edgexnas.host.data.scan_parts import oriented_scan, part_of_scan
from edgexnas.ptycho import ORIENTATIONS, Orientation
from edgexnas.scans import Scan

if TYPE_CHECKING:
    from edgexnas.host.data.phase_retrieval import Reconstruction

__all__ = ["FoundOrientation", "beam_offset_px", "find_orientation"]

_log = logging.getLogger(__name__)

TRIED_PATTERNS = 64
"""Neighbouring patterns that an orientation is tried with."""

TRIED_SWEEPS = 16

CLEARLY = 0.9
"""Share of the residual of every other orientation that the right one's stays below.

The measured Siemens star's is 0.5, that of a simulated scan of 3,000 photons a pattern 0.8. Six
patterns, a line of positions and a probe that is not the scan's come to 0.9 and above.
"""

LARGEST_OFFSET = 0.25
"""Share of the pattern's side by which the direct beam may lie beside the middle."""


@dataclass(frozen=True, slots=True)
class FoundOrientation:
    """Which orientation explains a scan.

    Attributes
    ----------
    orientation
        What brings the detector's patterns into the axes of the positions; "as-is" if not `told`.
    told
        Whether it, or the same turned by half, explains the scan clearly better than all others.
    residuals
        Orientation → residual of a short phase retrieval, as a share of the light.
    by_probe
        Whether a known probe told the orientation from the same turned by half. Else it is, with a
        probe, the better of the two, and without, the one that needs less turning.
    probe
        (modes, H, W) complex64, first guess for a longer phase retrieval: the scan's own, or the
        one that the best short one in this orientation, or turned by half, found.
    """

    orientation: Orientation
    told: bool
    residuals: Mapping[Orientation, float]
    by_probe: bool
    probe: npt.NDArray[np.complex64]

    @property
    def sentence(self) -> str:
        """What was found, in words."""
        mate = _turned_by_half(self.orientation)
        if not self.told:
            first, second = sorted(self.residuals, key=lambda name: self.residuals[name])[:2]
            return (
                f"not told, {self.orientation} is assumed; {first} leaves "
                f"{self.residuals[first]:.2%} of the light unexplained and {second} "
                f"{self.residuals[second]:.2%}; specify it (--orientation)"
            )
        pair = {self.orientation} if self.by_probe else {self.orientation, mate}
        best = min(self.residuals[name] for name in pair)
        others = {name: left for name, left in self.residuals.items() if name not in pair}
        runner_up = min(others, key=lambda name: others[name])
        also = "" if self.by_probe else f"; {mate} would do as well, with the phase's sign reversed"
        return (
            f"{self.orientation}, {best:.2%} of the light unexplained ({runner_up}: "
            f"{others[runner_up]:.2%}){also}"
        )


def find_orientation(
    scan: Scan,
    *,
    among: npt.NDArray[np.intp] | None = None,
    seed: int = 0,
    device: str = "cpu",
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> FoundOrientation:
    """Find the orientation that lets phase retrieval explain a scan best.

    If none does clearly, as with few or dim patterns or a wrong probe, that is warned of, and
    patterns are taken as they are.

    Parameters
    ----------
    scan
        Square patterns. With a probe every trial starts from it.
    among
        (n,) patterns to try, such as those that a network will train on, so that the probe knows
        nothing of the others; None for all.
    seed, device, threads
        As of `edgexnas.host.reconstruct`.
    progress
        Called with (orientations tried, orientations in all).
    """
    from edgexnas.host.data.phase_retrieval import reconstruct

    part = part_of_scan(scan, _neighbours(scan, among))
    found: dict[Orientation, Reconstruction] = {}
    for number, name in enumerate(ORIENTATIONS):
        found[name] = reconstruct(
            oriented_scan(part, name), iterations=TRIED_SWEEPS, modes=1, seed=seed, device=device,
            threads=threads,
        )  # fmt: skip
        if progress is not None:
            progress(number + 1, len(ORIENTATIONS))
    residuals = {name: each.residual for name, each in found.items()}
    best = min(found, key=lambda name: residuals[name])
    mate = _turned_by_half(best)
    others = [residuals[name] for name in found if name not in (best, mate)]

    def clearly_below(residual: float) -> bool:
        # Wrong ones differ by chance, and the right one from them by more.
        gap = residual - residuals[best]
        return residuals[best] < CLEARLY * residual and gap > max(others) - min(others)

    told = clearly_below(min(others))
    by_probe = told and scan.probe is not None and clearly_below(residuals[mate])
    chosen: Orientation = best if told else "as-is"
    if told and scan.probe is None:
        chosen = min(best, mate, key=ORIENTATIONS.index)
    guess = _first_guess(scan, found, chosen)
    stated = FoundOrientation(chosen, told, residuals, by_probe, guess)
    if not told:
        _log.warning("orientation of %s: %s", scan.source, stated.sentence)
    return stated


def beam_offset_px(scan: Scan) -> tuple[float, float]:
    """Tell how far, (row, col), the direct beam lies beside (H // 2, W // 2) on the detector.

    Raises
    ------
    InputError
        If it is more than a quarter of the pattern's side, as where patterns begin with the direct
        beam; the message says how to move them.
    """
    from edgexnas.host.data.phase_retrieval import beam_at

    patterns = scan.patterns if scan.mask is None else np.where(scan.mask, 0, scan.patterns)
    lit = np.isfinite(scan.positions_px).all(axis=1)
    mean = np.fft.ifftshift(patterns[lit].mean(axis=0, dtype=np.float64))
    sides = np.array(mean.shape)
    offset = np.array(beam_at(torch.from_numpy(mean))) * sides
    if (np.abs(offset) > LARGEST_OFFSET * sides).any():
        row, col = (sides // 2 + np.rint(offset).astype(int)).tolist()
        move = (-np.rint(offset).astype(int)).tolist()
        raise InputError(
            f"the direct beam of {scan.source} lies at pixel ({row}, {col}) and should lie near "
            f"({sides[0] // 2}, {sides[1] // 2}); roll the patterns by {move} px, or cut them "
            "around it"
        )
    return float(offset[0]), float(offset[1])


def _first_guess(
    scan: Scan, found: Mapping[Orientation, Reconstruction], chosen: Orientation
) -> npt.NDArray[np.complex64]:
    """Return the scan's own probe, or that of the better of an orientation and its mate."""
    if scan.probe is not None:
        return scan.probe
    mate = _turned_by_half(chosen)
    if found[chosen].residual <= found[mate].residual:
        return found[chosen].probe
    # The conjugate beam explains the patterns turned by half.
    return found[mate].probe.conj()


def _turned_by_half(name: Orientation) -> Orientation:
    """Return the orientation whose patterns are those of this one, turned by half."""
    # Bits 0 and 1 reverse rows and columns.
    return ORIENTATIONS[ORIENTATIONS.index(name) ^ 3]


def _neighbours(scan: Scan, among: npt.NDArray[np.intp] | None) -> npt.NDArray[np.intp]:
    """Numbers of the patterns nearest to the middle of those given, up to `TRIED_PATTERNS`."""
    known = np.flatnonzero(np.isfinite(scan.positions_px).all(axis=1))
    if among is not None:
        known = np.intersect1d(known, among)
    positions = scan.positions_px[known]
    distance = np.linalg.norm(positions - np.median(positions, axis=0), axis=1)
    return np.sort(known[np.argsort(distance, kind="stable")[:TRIED_PATTERNS]])
