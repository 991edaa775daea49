"""Ptychography scans: diffraction patterns with the positions they were taken at.

Conventions beside those of `edgexnas.ptycho`
---------------------------------------------
* A position is where the first pixel of the 64×64 patch under the middle of the probe lies on the
  object. Where patterns are larger, the window that belongs to all of a pattern starts
  (H // 2 - 32, W // 2 - 32) pixels before it; see `Scan.window_corners_px`.
* A pixel of the object is λ·z / (H·p): the patterns' size sets it, and binning does not change it.
"""

from __future__ import annotations

import bz2
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from zipfile import BadZipFile, ZipFile

import numpy as np
import numpy.typing as npt

from edgexnas.errors import InputError, SourceError
from edgexnas.frames import open_frames
from edgexnas.frames.reading import reading
from edgexnas.ptycho import PATTERN_SIZE

__all__ = ["Scan", "holds_scan", "open_scan"]

MARGIN_PX = 2.0
"""Where positions have no origin of their own, the first window starts this far inside."""

MAXIMUM_BYTES = 2**34
"""Patterns of a scan are held in memory; a file that claims more is damaged or not one scan."""

PLANCK_TIMES_LIGHT = 1.986445857e-25
"""h·c in J·m, exact in the SI of 2019 to these digits."""

_PATTERN_PLACES = ("entry/data/data", "entry_1/data_1/data", "dp", "diffraction")
_POSITION_PLACES = ("entry/data/positions_px", "positions_px")
_TRANSLATION_PLACES = (
    "entry_1/data_1/translation",
    "entry_1/sample_1/geometry_1/translation",
    "entry_1/instrument_1/detector_1/translation",
)
_PROBE_PLACES = (
    "entry/instrument/probe",
    "entry_1/instrument_1/source_1/illumination",
    "probe",
)
_OBJECT_PLACE = "entry/sample/object"
_MASK_PLACE = "entry_1/instrument_1/detector_1/mask"
_CXI_INSTRUMENT = "entry_1/instrument_1"

AnyArray = npt.NDArray[Any]
Float64Array = npt.NDArray[np.float64]
ComplexArray = npt.NDArray[np.complex64]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Scan:
    """A ptychography scan.

    Attributes
    ----------
    patterns
        (n, H, W) photon counts, any real dtype, the direct beam at (H // 2, W // 2).
    positions_px
        (n, 2) float64, (row, col) where the first pixel of the 64×64 patch under the middle of the
        probe lies on the object, in object pixels; NaN where it is not known.
    source
        Where the scan came from, for messages and provenance.
    probe
        (modes, H, W) complex64, the illumination or a first guess of it; None if not known.
    mask
        (H, W) bool, True where a pixel is unusable; None if all are usable.
    truth
        Complex64 object that `positions_px` point into; None where it is not known.
    """

    patterns: AnyArray
    positions_px: Float64Array
    source: str
    probe: ComplexArray | None = None
    mask: npt.NDArray[np.bool_] | None = None
    truth: ComplexArray | None = None

    def __post_init__(self) -> None:
        """Refuse parts that do not fit each other.

        Raises
        ------
        InputError
            If there is no pattern, patterns and positions differ in number, or a shape is wrong.
        """
        shape = self.patterns.shape
        if self.patterns.ndim != 3 or self.patterns.dtype.kind not in "uif":
            raise InputError(
                f"patterns of {self.source} have shape {shape} and dtype {self.patterns.dtype}; "
                "give real numbers (n, H, W)"
            )
        if not self.patterns.size:
            raise InputError(f"{self.source} holds no patterns; check that the scan recorded some")
        if self.positions_px.shape != (shape[0], 2):
            raise InputError(
                f"{self.source} has {shape[0]} patterns but positions of shape "
                f"{self.positions_px.shape}; give (row, col) for each, NaN where it is not known"
            )
        for name, part, wanted in (
            ("mask", self.mask, shape[1:]),
            ("probe", None if self.probe is None else self.probe[0], shape[1:]),
        ):
            if part is not None and part.shape != wanted:
                raise InputError(
                    f"the {name} of {self.source} has shape {part.shape}; give that of a pattern, "
                    f"{wanted}"
                )

    def __len__(self) -> int:
        return len(self.patterns)

    @property
    def window_corners_px(self) -> Float64Array:
        """(n, 2), (row, col) of the first pixel of each whole window, of (H, W) pixels."""
        rows, cols = self.patterns.shape[1:]
        corners: Float64Array = self.positions_px - window_offset(rows, cols)
        return corners


def window_offset(rows: int, cols: int) -> Float64Array:
    """(2,) pixels from the first pixel of a window to that of the patch in its middle."""
    return np.array([rows // 2 - PATTERN_SIZE // 2, cols // 2 - PATTERN_SIZE // 2], np.float64)


def open_scan(path: str | Path) -> Scan:
    """Read a scan; what a file holds is told from its first bytes, not from its name.

    Parameters
    ----------
    path
        One of

        * an HDF5 file that `edgexnas.simulate.save_scan` wrote;
        * a CXI file (version 1.x, https://www.cxidb.org/cxi.html): patterns in
          entry_1/data_1/data, sample translations (n, 2 or 3) in metres as (x, y, z), with
          energy, distance and pixel size, from which the object pixel follows. Its detector's
          axes are taken along -x and -y, the format's default;
        * any other HDF5 file whose patterns `open_frames` finds, with positions_px (n, 2);
        * a .npz file as of tike's examples, also compressed as .npz.bz2: data (1, n, H, W) with
          the direct beam in the corner, scan (1, n, 2) in object pixels, probe (…, modes, H, W).

    Raises
    ------
    SourceError
        If nothing is there, it is not one of the above, is empty or damaged, or patterns and
        positions differ in number.
    MissingDependencyError
        If h5py is not installed and the file is HDF5.
    """
    place = Path(path)
    if not place.is_file():
        raise SourceError(f"there is no file {place}; check the path")
    with reading(str(place)), place.open("rb") as file:
        start = file.read(8)
    if not start:
        raise SourceError(f"{place} is empty (0 bytes); copy or record it again")
    try:
        if start.startswith((b"PK\x03\x04", b"BZh")):
            return _open_tike(place)
        return _open_hdf5(place)
    except InputError as error:
        raise SourceError(str(error)) from error


def holds_scan(path: str | Path) -> bool:
    """Tell whether a file holds positions beside its patterns, as `open_scan` needs.

    Frames without positions, folders, images and files that cannot be read are no scans; what is
    wrong with them, whoever opens them says.
    """
    place = Path(path)
    try:
        with place.open("rb") as file:
            start = file.read(8)
        if start.startswith(b"BZh"):
            with bz2.open(place) as stream:
                return stream.read(4) == b"PK\x03\x04"
        if start.startswith(b"PK\x03\x04"):
            with ZipFile(place) as archive:
                return {"data.npy", "scan.npy"} <= set(archive.namelist())
        import h5py

        with h5py.File(place, "r") as file:
            return any(name in file for name in (*_POSITION_PLACES, *_TRANSLATION_PLACES))
    except (OSError, EOFError, BadZipFile, ImportError):
        return False


def _open_tike(path: Path) -> Scan:
    with reading(str(path)):
        opened: IO[bytes] = path.open("rb")
        if opened.read(3) == b"BZh":
            opened = _inflated(opened)
        with opened, ZipFile(opened) as archive:
            members = {name.removesuffix(".npy") for name in archive.namelist()}
            lacking = [name for name in ("data", "scan") if name not in members]
            if lacking:
                raise SourceError(
                    f"{path} is no scan: it lacks the member {lacking[0]!r}; save patterns as "
                    "'data' and positions as 'scan', or as HDF5"
                )
            data, scan = _member(archive, "data"), _member(archive, "scan")
            probe = _member(archive, "probe") if "probe" in members else None
    if data.ndim not in (3, 4) or (data.ndim == 4 and data.shape[0] != 1):
        raise SourceError(f"data of {path} has shape {data.shape}; give (n, H, W), one scan")
    patterns = np.fft.fftshift(data.reshape(-1, *data.shape[-2:]), axes=(1, 2))
    corners = scan.reshape(-1, scan.shape[-1]).astype(np.float64) if scan.ndim else scan
    return Scan(
        patterns=patterns,
        positions_px=_inside(corners, patterns.shape[1:], str(path)),
        source=str(path),
        probe=None if probe is None else _modes(probe),
    )


def _inflated(compressed: IO[bytes]) -> IO[bytes]:
    """Unpack bzip2 in memory, up to the size that a scan may have."""
    compressed.seek(0)
    target = io.BytesIO()
    with compressed, bz2.open(compressed) as stream:
        while block := stream.read(2**20):
            target.write(block)
            if target.tell() > MAXIMUM_BYTES:
                raise ValueError(f"it inflates to more than {MAXIMUM_BYTES} bytes")
    target.seek(0)
    return target


def _member(archive: ZipFile, name: str) -> AnyArray:
    info = archive.getinfo(f"{name}.npy")
    if info.file_size > MAXIMUM_BYTES:
        raise ValueError(f"the member {name!r} would take {info.file_size} bytes")
    with archive.open(info) as file:
        values: AnyArray = np.lib.format.read_array(file, allow_pickle=False)
    return values


def _open_hdf5(path: Path) -> Scan:
    patterns, mask = _patterns(path)
    # Opening the frames has told whether h5py is there.
    import h5py

    with reading(str(path)), h5py.File(path, "r") as file:
        found_mask = _values(file, (_MASK_PLACE,))
        if mask is None and found_mask is not None and found_mask.shape == patterns.shape[1:]:
            mask = found_mask != 0
        probe, truth = _values(file, _PROBE_PLACES), _values(file, (_OBJECT_PLACE,))
        positions = _values(file, _POSITION_PLACES)
        if positions is None:
            places = _translations_px(file, path, patterns.shape[1:])
            positions = _inside(places, patterns.shape[1:], str(path))
        return Scan(
            patterns=patterns,
            positions_px=positions.astype(np.float64),
            source=str(path),
            probe=None if probe is None else _modes(probe),
            mask=mask,
            truth=None if truth is None else truth.astype(np.complex64),
        )


def _patterns(path: Path) -> tuple[AnyArray, npt.NDArray[np.bool_] | None]:
    """All patterns and the pixel mask, found where frames are found."""
    name = _pattern_place(path)
    with open_frames(path, dataset=name) as series:
        size = len(series) * series.shape[0] * series.shape[1] * series.dtype.itemsize
        if size > MAXIMUM_BYTES:
            raise SourceError(
                f"{path} holds {size} bytes of patterns, more than the {MAXIMUM_BYTES} that are "
                "read; cut the scan into parts"
            )
        return np.stack(list(series)), series.mask


def _pattern_place(path: Path) -> str | None:
    try:
        import h5py
    except ImportError:
        return None
    if not h5py.is_hdf5(path):
        raise SourceError(
            f"{path} is neither HDF5 nor .npz nor .npz.bz2; give a scan in one of these formats"
        )
    with reading(str(path)), h5py.File(path, "r") as file:
        return next((place for place in _PATTERN_PLACES if place in file), None)


def _values(file: Any, places: Iterable[str]) -> AnyArray | None:
    """Values of the first dataset of numbers at one of the places."""
    for place in places:
        found = file.get(place)
        if getattr(found, "shape", None) is not None and found.dtype.kind in "uifc":
            return np.asarray(found[()])
    return None


def _translations_px(file: Any, path: Path, shape: tuple[int, ...]) -> Float64Array:
    """Sample translations of CXI in object pixels, (n, 2) as (row, col)."""
    translation = _values(file, _TRANSLATION_PLACES)
    if translation is None:
        raise SourceError(
            f"{path} holds patterns but no positions; add entry/data/positions_px of shape (n, 2)"
        )
    if translation.ndim != 2 or translation.shape[1] not in (2, 3):
        raise SourceError(
            f"the translations of {path} have shape {translation.shape}; give (n, 3) in metres"
        )
    # The probe moves against the sample, and the detector's axes lie along -x and -y: the signs
    # cancel.
    metres = translation[:, 1::-1].astype(np.float64)
    energy = _constant(file, path, "source_1/energy")
    distance = _constant(file, path, "detector_1/distance")
    pixels = np.array([_constant(file, path, f"detector_1/{axis}_pixel_size") for axis in "yx"])
    object_pixels = PLANCK_TIMES_LIGHT / energy * distance / (np.array(shape) * pixels)
    places: Float64Array = metres / object_pixels
    return places


def _constant(file: Any, path: Path, place: str) -> float:
    """Read a positive constant of the CXI instrument, in SI units."""
    values = _values(file, (f"{_CXI_INSTRUMENT}/{place}",))
    value = np.nan if values is None or not values.size else float(values.flat[0])
    if not 0 < value < np.inf:
        raise SourceError(
            f"{path} has {value} as {_CXI_INSTRUMENT}/{place}, without which positions in metres "
            "mean nothing; add it in SI units, or entry/data/positions_px"
        )
    return value


def _inside(corners: Float64Array, shape: tuple[int, ...], source: str) -> Float64Array:
    """Give positions without an origin one: the first window starts `MARGIN_PX` inside."""
    if corners.ndim != 2 or corners.shape[1] != 2:
        raise SourceError(
            f"the positions of {source} have shape {corners.shape}; give (row, col) of each pattern"
        )
    known = np.isfinite(corners).all(axis=1)
    first = corners[known].min(axis=0) if known.any() else np.zeros(2)
    positions: Float64Array = corners - first + MARGIN_PX + window_offset(*shape)
    return positions


def _modes(probe: AnyArray) -> ComplexArray:
    """Bring a probe to (modes, H, W)."""
    if probe.ndim < 2:
        raise InputError(f"the probe has shape {probe.shape}; give (modes, H, W)")
    return probe.reshape(-1, *probe.shape[-2:]).astype(np.complex64)
