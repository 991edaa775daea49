"""Label a ptychography scan: the object under each pattern, known or reconstructed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from edgexnas.errors import ConfigurationError, InputError
from edgexnas.host.data.ptycho_dataset import PtychoDataset
from edgexnas.host.data.scan_regions import scan_regions
from edgexnas.ptycho import PATTERN_SIZE, Orientation, as_patterns, bin_patterns, check_counts
from edgexnas.scans import Scan

if TYPE_CHECKING:
    from edgexnas.host.data.phase_retrieval import Reconstruction

__all__ = ["check_scan", "cut_patches", "doubt", "label_scan", "labelled_by", "labelled_numbers"]

ComplexArray = npt.NDArray[np.complex64]
FloatArray = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]

Method = Literal["auto", "rpie", "truth"]

_log = logging.getLogger(__name__)


def label_scan(
    scan: Scan,
    *,
    method: Method = "auto",
    iterations: int = 50,
    modes: int = 3,
    seed: int = 0,
    intensity_scale: float | None = None,
    orientation: Orientation = "as-is",
    device: str = "cpu",
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> PtychoDataset:
    """Pair the patterns of a scan, binned to 64×64, with the object under each.

    Patterns without a position, or whose patch leaves the object, are left out. Masked pixels
    count as 0, as on the device.

    Parameters
    ----------
    scan
        Square patterns whose side is a multiple of 64.
    method
        "truth" cuts patches from the scan's known object, "rpie" from a reconstruction by
        `reconstruct`; "auto" takes the truth where there is one.
    iterations, modes, seed, device, threads, progress
        As of `reconstruct`. A reconstruction that does not explain the patterns is warned of: its
        labels are worth less than a flat object's.
    intensity_scale
        Counts that become 1 at the network's input; None takes the median over the patterns of
        their brightest pixel. A network that will see several scans needs one scale for all.
    orientation
        What brings the detector's patterns into the axes of the positions, such as
        `find_orientation` finds; labels are in those axes, patterns as the detector gives them.

    Raises
    ------
    ConfigurationError
        If the method is unknown, or the truth is asked for and not there.
    InputError
        If the patterns are not square multiples of 64, a count is negative, not finite or
        saturated, or no pattern can be used.
    """
    if method not in ("auto", "rpie", "truth"):
        raise ConfigurationError(f"method is {method!r}; specify 'auto', 'rpie' or 'truth'")
    if method == "truth" and scan.truth is None:
        raise ConfigurationError(f"{scan.source} has no known object; label it with method='rpie'")
    found: Reconstruction | None = None
    if scan.truth is None or method == "rpie":
        # torch takes seconds to import, and labels by the truth need none of it.
        from edgexnas.host.data.phase_retrieval import reconstruct
        from edgexnas.host.data.scan_parts import oriented_scan

        found = reconstruct(
            oriented_scan(scan, orientation), iterations=iterations, modes=modes, seed=seed,
            device=device, threads=threads, progress=progress,
        )  # fmt: skip
        if not found.explains:
            _log.warning("%s", doubt(scan, found))
    return labelled_by(scan, found, intensity_scale=intensity_scale, orientation=orientation)


def check_scan(scan: Scan) -> None:
    """Reject a scan that cannot be labelled, before minutes of work.

    Raises
    ------
    InputError
        If the patterns are not square multiples of 64, a count is negative, not finite or
        saturated, no position is known, or they span an impossible area; or if the object is not
        known and patterns do not overlap.
    """
    from edgexnas.host.data.phase_retrieval import check_overlap, origin_of

    _binned(scan)
    origin_of(scan)
    if scan.truth is None:
        check_overlap(scan)


def doubt(scan: Scan, found: Reconstruction) -> str:
    """Say that a reconstruction does not explain a scan, and what may be wrong."""
    said = (
        f"the object found does not explain the patterns of {scan.source}: the residual of phase "
        f"retrieval is {100 * found.residual:.2g} % of the light, and "
        f"{100 * found.mean_pattern_error:.2g} % with no object at all"
    )
    if not found.counted:
        return (
            f"{said}, less than counting photons makes ({100 * found.photon_noise:.2g} %), so that "
            "they are normalised, averaged, or one and the same; give the counts of the detector, "
            f"or more iterations ({len(found.error_history)} were done)"
        )
    return (
        f"{said}; check the order, axes, signs and unit of the positions and the place of the "
        "direct beam, or give a probe, more iterations or modes "
        f"({len(found.error_history)} and {len(found.probe)} were done)"
    )


def labelled_by(
    scan: Scan,
    found: Reconstruction | None,
    *,
    intensity_scale: float | None = None,
    orientation: Orientation = "as-is",
) -> PtychoDataset:
    """Cut labels out of a reconstruction, or out of the scan's known object if there is none."""
    patterns = _binned(scan)
    if found is None:
        assert scan.truth is not None
        known, positions = scan.truth, scan.positions_px
    else:
        known, positions = found.object, found.positions_px
    fits = _with_patch(positions, known.shape)
    if not fits.any():
        raise InputError(
            f"none of the {len(scan)} patterns of {scan.source} has a patch on the object of "
            f"{known.shape} px; check the positions"
        )
    patches = cut_patches(_without_constant(known), positions[fits])
    counts = patterns[fits]
    if intensity_scale is None:
        # A scan without light would give 0, by which patterns are divided.
        intensity_scale = max(float(np.median(counts.max(axis=(1, 2)))), 1.0)
    return PtychoDataset(
        patterns=counts,
        targets=np.stack([np.abs(patches), np.angle(patches)], axis=1),
        positions_px=positions[fits].astype(np.float64),
        region=scan_regions(positions[fits]),
        intensity_scale=intensity_scale,
        source=scan.source,
        against="truth" if found is None else "iterative",
        residual=None if found is None else found.residual,
        orientation=orientation,
        object_pixel_m=scan.object_pixel_m,
    )


def labelled_numbers(scan: Scan, *, by_truth: bool) -> npt.NDArray[np.intp]:
    """Tell which patterns of a scan are labelled, in order: all but those that are left out.

    Parameters
    ----------
    by_truth
        Whether labels are cut out of the scan's known object; a reconstruction holds the patch of
        every known position.
    """
    if by_truth and scan.truth is not None:
        return np.flatnonzero(_with_patch(scan.positions_px, scan.truth.shape))
    return np.flatnonzero(np.isfinite(scan.positions_px).all(axis=1))


def cut_patches(image: ComplexArray, positions_px: npt.ArrayLike) -> ComplexArray:
    """Cut 64×64 patches out of an object, between its pixels by cubic splines.

    Parameters
    ----------
    image
        (H, W) complex.
    positions_px
        (n, 2), (row, col) of each patch's first pixel; the patch lies on the object.

    Returns
    -------
    (n, 64, 64) complex64.
    """
    from scipy.ndimage import map_coordinates, spline_filter

    positions = np.asarray(positions_px, np.float64)
    # Once for the whole object: map_coordinates would filter again for every patch.
    parts = [spline_filter(part.astype(np.float64)) for part in (image.real, image.imag)]
    axis = np.arange(PATTERN_SIZE)
    patches = np.empty((len(positions), PATTERN_SIZE, PATTERN_SIZE), np.complex64)
    for number, (row, col) in enumerate(positions):
        grid = np.meshgrid(row + axis, col + axis, indexing="ij")
        real, imaginary = (
            map_coordinates(part, grid, prefilter=False, mode="nearest") for part in parts
        )
        patches[number] = real + 1j * imaginary
    return patches


def _binned(scan: Scan) -> FloatArray:
    """Patterns (n, 64, 64) as the device makes them."""
    rows, cols = scan.patterns.shape[1:]
    if rows != cols or rows % PATTERN_SIZE:
        raise InputError(
            f"patterns of {scan.source} have {rows}×{cols} px; specify squares whose side is a "
            f"multiple of {PATTERN_SIZE}, with the direct beam in the middle"
        )
    counts = scan.patterns
    if scan.mask is not None:
        counts = np.where(scan.mask, counts.dtype.type(0), counts)
    check_counts(counts)
    return as_patterns(bin_patterns(counts, rows // PATTERN_SIZE))


def _with_patch(positions_px: Float64Array, shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """(n,) whether the patch at a position lies on an object of this shape."""
    last = np.array(shape) - PATTERN_SIZE
    # NaN fails both comparisons.
    return np.asarray(((positions_px >= 0) & (positions_px <= last)).all(axis=1))


def _without_constant(image: ComplexArray) -> ComplexArray:
    """Turn an object so that its phase averages to 0."""
    turned: ComplexArray = image * np.exp(-1j * np.angle(image.sum(dtype=np.complex128)))
    return turned.astype(np.complex64)
