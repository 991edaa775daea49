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
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, overload
from zipfile import BadZipFile, ZipFile

import numpy as np
import numpy.typing as npt

from edgexnas.errors import InputError, SourceError
from edgexnas.frames import open_frames
from edgexnas.frames.hdf5_file import open_hdf5_file
from edgexnas.frames.hdf5_layout import text_of
from edgexnas.frames.reading import number_ranges, reading
from edgexnas.frames.series import existing_frames
from edgexnas.frames.units import units_scale
from edgexnas.ptycho import PATTERN_SIZE
from edgexnas.ptycho.patterns import SMALLEST_SPREAD_PX

__all__ = ["Scan", "holds_scan", "open_probe", "open_scan"]

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
_INSTRUMENT = "entry_1/instrument_1"
_ENERGY_PLACES = ("beam_1/incident_energy", "beam_1/energy", "source_1/energy")
_WAVELENGTH_PLACES = ("beam_1/incident_wavelength", "beam_1/wavelength", "source_1/wavelength")
_MOTION_GROUPS = ("entry_1/sample_1/transformations", "entry/sample/transformations")

_PLAUSIBLE = {
    "energy": (1.6e-18, 1.6e-13, "J"),
    "wavelength": (1e-12, 1e-7, "m"),
    "distance": (1e-3, 500.0, "m"),
    "pixel_size": (1e-7, 1e-2, "m"),
}
"""Least and most of what an X-ray instrument has, and the unit: 10 eV to 1 MeV, and so on."""

_log = logging.getLogger(__name__)

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
        probe lies on the object, in object pixels; NaN where it is not known, and where the pattern
        holds no light or values that are no numbers: such a pattern says nothing of the object.
    source
        Where the scan came from, for messages and provenance.
    probe
        (modes, H, W) complex64, the illumination or a first guess of it; None if not known, or if
        it is dark or holds NaN.
    mask
        (H, W) bool, True where a pixel is unusable; None if all are usable.
    truth
        Complex64 object that `positions_px` point into; None where it is not known.
    object_pixel_m
        (row, col) size of an object pixel in metres; None where it is not known.
    """

    patterns: AnyArray
    positions_px: Float64Array
    source: str
    probe: ComplexArray | None = None
    mask: npt.NDArray[np.bool_] | None = None
    truth: ComplexArray | None = None
    object_pixel_m: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Refuse parts that do not fit each other.

        Raises
        ------
        InputError
            If there is no pattern, or none with light, patterns and positions differ in number, a
            shape is wrong, or positions are in metres.
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

        probe = self.probe
        if probe is not None and not (np.isfinite(probe).all() and probe.any()):
            _log.warning("the probe of %s is dark or holds NaN and is left out", self.source)
            object.__setattr__(self, "probe", None)
        self._leave_out_dark()
        known = self.positions_px[np.isfinite(self.positions_px).all(axis=1)]
        spread = float(np.ptp(known, axis=0).max()) if len(known) else 0.0
        if 0 < spread < SMALLEST_SPREAD_PX:
            raise InputError(
                f"{self.source} has positions that spread over {spread:.3g} px, which looks like "
                "metres or millimetres; give positions in object pixels"
            )

    def _leave_out_dark(self) -> None:
        """Forget where patterns without light were taken, and say so."""
        usable = slice(None) if self.mask is None else ~self.mask
        # A few pixels without a number may lie under a mask that is given later.
        brightest = np.array(
            [np.fmax.reduce(p[usable], axis=None, initial=0) for p in self.patterns]
        )
        dark = ~(np.isfinite(brightest) & (brightest > 0))
        if dark.all():
            raise InputError(
                f"none of the {len(dark)} patterns of {self.source} holds any light; check the "
                "shutter, the mask and the dataset"
            )
        left_out = np.flatnonzero(dark & np.isfinite(self.positions_px).all(axis=1))
        if len(left_out):
            _log.warning(
                "%d of %d patterns of %s hold no light or no numbers and are left out (%s)",
                len(left_out),
                len(dark),
                self.source,
                number_ranges(left_out.tolist()),
            )
            positions = self.positions_px.copy()
            positions[left_out] = np.nan
            object.__setattr__(self, "positions_px", positions)

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
          entry_1/data_1/data, sample translations (n, 2 or 3) as (x, y, z), or NXtransformations of
          the sample, with energy or wavelength, distance and pixel size, from which the object
          pixel follows; in SI units unless they say others. The detector's axes lie along its
          basis_vectors, or along -x and -y, the format's default;
        * any other HDF5 file whose patterns `open_frames` finds, with positions_px (n, 2);
        * a .npz file as of tike's examples, also compressed as .npz.bz2: data (1, n, H, W) with
          the direct beam in the corner, scan (1, n, 2) in object pixels, probe (…, modes, H, W).

    Raises
    ------
    SourceError
        If nothing is there, it is not one of the above, is empty or damaged, patterns and
        positions differ in number, or what it says of its instrument cannot be used.
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
        # bzip2 states no size beforehand, so the bytes themselves are counted.
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
        # Never a pickle: loading one runs code.
        values: AnyArray = np.lib.format.read_array(file, allow_pickle=False)
    return values


def _open_hdf5(path: Path) -> Scan:
    patterns, mask = _patterns(path)
    with open_hdf5_file(path) as file, reading(str(path)):
        probe, truth = _values(file, _PROBE_PLACES), _values(file, (_OBJECT_PLACE,))
        positions = _values(file, _POSITION_PLACES)
        pixel_m: tuple[float, float] | None = None
        if positions is None:
            places, pixel_m = _translations_px(file, path, patterns.shape[1:])
            positions = _inside(places, patterns.shape[1:], str(path))
        return Scan(
            patterns=patterns,
            positions_px=positions.astype(np.float64),
            source=str(path),
            probe=None if probe is None else _modes(probe),
            mask=mask,
            truth=None if truth is None else truth.astype(np.complex64),
            object_pixel_m=pixel_m,
        )


def open_probe(path: str | Path, shape: tuple[int, int]) -> ComplexArray:
    """Read a probe, known or estimated by another program.

    Parameters
    ----------
    path
        A .npy file of complex (…, modes, H, W) or (H, W); a .npz file with such an array as
        "probe"; or an HDF5 file that has one where scans and labels have theirs.
    shape
        (H, W) of the patterns that it is for.

    Returns
    -------
    (modes, H, W) complex64.

    Raises
    ------
    SourceError
        If nothing is there, it holds no such array, or one of another shape, or NaN.
    MissingDependencyError
        If h5py is not installed and the file is HDF5.
    """
    place = Path(path)
    if not place.is_file():
        raise SourceError(f"there is no file {place}; check the path")
    with reading(str(place)), place.open("rb") as file:
        start = file.read(6)
        file.seek(0)
        found: AnyArray | None = None
        if start == b"\x93NUMPY":
            # Never a pickle: loading one runs code.
            found = np.lib.format.read_array(file, allow_pickle=False)
        elif start.startswith(b"PK\x03\x04"):
            with ZipFile(file) as archive:
                if "probe.npy" in archive.namelist():
                    found = _member(archive, "probe")
        else:
            with open_hdf5_file(place) as hdf5:
                found = _values(hdf5, _PROBE_PLACES)
    if found is None or not np.iscomplexobj(found) or found.shape[-2:] != shape:
        held = "no probe" if found is None else f"a probe of {found.dtype} {found.shape}"
        raise SourceError(
            f"{place} holds {held}; specify complex numbers of (modes, {shape[0]}, {shape[1]}), "
            "the shape of the patterns, as .npy, or as 'probe' of .npz or HDF5"
        )
    probe = _modes(found)
    if not np.isfinite(probe).all() or not probe.any():
        raise SourceError(f"the probe of {place} is dark or holds NaN; specify one with light")
    return probe


def _patterns(path: Path) -> tuple[AnyArray, npt.NDArray[np.bool_] | None]:
    """All patterns and the pixel mask, found where frames are found; missing ones are dark."""
    name = _pattern_place(path)
    with open_frames(path, dataset=name) as series:
        size = len(series) * series.shape[0] * series.shape[1] * series.dtype.itemsize
        if size > MAXIMUM_BYTES:
            raise SourceError(
                f"{path} holds {size} bytes of patterns, more than the {MAXIMUM_BYTES} that are "
                "read; cut the scan into parts"
            )
        patterns = np.zeros((len(series), *series.shape), series.dtype)
        for number, frame in existing_frames(series):
            patterns[number] = frame
        return patterns, series.mask


def _pattern_place(path: Path) -> str | None:
    try:
        import h5py
    except ImportError:
        return None
    if not h5py.is_hdf5(path):
        raise SourceError(
            f"{path} is neither HDF5 nor .npz nor .npz.bz2; give a scan in one of these formats"
        )
    with open_hdf5_file(path) as file, reading(str(path)):
        return next((place for place in _PATTERN_PLACES if place in file), None)


def _dataset(file: Any, places: Iterable[str]) -> Any | None:
    """Find the first dataset of numbers at one of the places."""
    for place in places:
        found = file.get(place)
        if getattr(found, "shape", None) is not None and found.dtype.kind in "uifc":
            return found
    return None


def _values(file: Any, places: Iterable[str]) -> AnyArray | None:
    """Values of the first dataset of numbers at one of the places."""
    found = _dataset(file, places)
    return None if found is None else np.asarray(found[()])


def _translations_px(
    file: Any, path: Path, shape: tuple[int, ...]
) -> tuple[Float64Array, tuple[float, float]]:
    """Positions of the probe on the sample in object pixels, from CXI, and the pixel in metres.

    Positions are (n, 2) as (row, col).
    """
    metres = _translations_m(file, path)
    axes, stated = _detector_axes(file, path)
    if stated is None:
        sizes = [_constant(file, path, [f"detector_1/{axis}_pixel_size"]) for axis in "yx"]
        stated = np.array(sizes)
    wavelength = _constant(file, path, _WAVELENGTH_PLACES, needed=False)
    if wavelength is None or _dataset(file, [f"{_INSTRUMENT}/{at}" for at in _ENERGY_PLACES]):
        wavelength = PLANCK_TIMES_LIGHT / _constant(file, path, _ENERGY_PLACES)
    distance = _constant(file, path, ["detector_1/distance"])
    object_pixels = wavelength * distance / (np.array(shape) * stated)
    # The sample moves one way, and the probe the other way on it.
    places: Float64Array = -(metres @ axes.T) / object_pixels
    row_m, col_m = object_pixels.tolist()
    return places, (row_m, col_m)


def _translations_m(file: Any, path: Path) -> Float64Array:
    """(n, 3) translations of the sample in metres as (x, y, z)."""
    found = _dataset(file, _TRANSLATION_PLACES)
    if found is None:
        return _motions_m(file, path)
    if found.ndim != 2 or found.shape[1] not in (2, 3):
        raise SourceError(
            f"the translations of {path} have shape {found.shape}; give (n, 3) in metres"
        )
    metres = np.zeros((len(found), 3))
    metres[:, : found.shape[1]] = found[()]
    return metres * units_scale(found, "length", path)


def _motions_m(file: Any, path: Path) -> Float64Array:
    """(n, 3) translations of the sample in metres, as NXtransformations of NeXus say them."""
    total: Float64Array | None = None
    for place in _MOTION_GROUPS:
        group = file.get(place)
        for name in group if hasattr(group, "keys") else ():
            moved = group[name]
            if text_of(moved.attrs.get("transformation_type")) != "translation":
                continue
            vector = np.asarray(moved.attrs.get("vector", np.nan), np.float64)
            length = float(np.linalg.norm(vector))
            if vector.shape != (3,) or not 0 < length < np.inf:
                raise SourceError(
                    f"{moved.name} of {path} has the vector {vector.tolist()}; give the direction "
                    "of the translation as (x, y, z)"
                )
            along = np.ravel(moved[()]).astype(np.float64) * units_scale(moved, "length", path)
            step = along[:, None] * (vector / length)
            # A motor that stands still may have one value for all patterns.
            if total is not None and 1 not in (len(total), len(step)) and len(total) != len(step):
                raise SourceError(
                    f"{moved.name} of {path} holds {len(step)} positions, and the axis before it "
                    f"{len(total)}; give one a pattern"
                )
            total = step if total is None else total + step
    if total is None:
        raise SourceError(
            f"{path} holds patterns but no positions; add entry/data/positions_px of shape (n, 2)"
        )
    return total


def _detector_axes(file: Any, path: Path) -> tuple[Float64Array, Float64Array | None]:
    """(2, 3) directions in which rows and columns count up, and the size of a pixel in metres."""
    place = f"{_INSTRUMENT}/detector_1/basis_vectors"
    found = _dataset(file, (place,))
    if found is None:
        return np.array([[0.0, -1.0, 0.0], [-1.0, 0.0, 0.0]]), None
    vectors = np.asarray(found[()], np.float64) * units_scale(found, "length", path)
    # Of each frame or module, or one vector a column, as cdtools writes them.
    if vectors.ndim == 3 and (vectors == vectors[:1]).all():
        vectors = vectors[0]
    if vectors.shape == (3, 2):
        vectors = vectors.T
    sizes: Float64Array = np.linalg.norm(vectors, axis=-1)
    least, most, _ = _PLAUSIBLE["pixel_size"]
    if vectors.shape != (2, 3) or not ((sizes > least) & (sizes < most)).all():
        raise SourceError(
            f"{place} of {path} has shape {found.shape} and lengths {sizes.ravel()[:2]} m; give "
            "one vector (x, y, z) from row to row and one from column to column, in metres"
        )
    axes = vectors / sizes[:, None]
    if abs(float(axes[0] @ axes[1])) > 0.01:
        raise SourceError(
            f"{place} of {path} has axes that are not perpendicular, {vectors.tolist()}; a far "
            "field on skewed pixels cannot be used: resample the patterns"
        )
    for size, axis in zip(sizes, "yx", strict=True):
        said = _constant(file, path, [f"detector_1/{axis}_pixel_size"], needed=False)
        if said is not None and abs(said / size - 1) > 0.01:
            raise SourceError(
                f"{path} has {said} m as detector_1/{axis}_pixel_size and a vector of {size} m in "
                "basis_vectors; correct the wrong one"
            )
    return axes, sizes


@overload
def _constant(file: Any, path: Path, places: Sequence[str]) -> float: ...


@overload
def _constant(file: Any, path: Path, places: Sequence[str], *, needed: bool) -> float | None: ...


def _constant(file: Any, path: Path, places: Sequence[str], *, needed: bool = True) -> float | None:
    """Read a constant of the CXI instrument, in SI units."""
    names = [f"{_INSTRUMENT}/{place}" for place in places]
    found = _dataset(file, names)
    if found is None and not needed:
        return None
    kind = next(kind for kind in _PLAUSIBLE if kind in places[-1])
    least, most, unit = _PLAUSIBLE[kind]
    # NaN lies outside every range, so missing and absurd values share one message.
    values = np.ravel(found[()]) if found is not None else np.array([np.nan])
    scale = 1.0
    if found is not None:
        scale = units_scale(found, "energy" if kind == "energy" else "length", path)
    value = float(values[0]) * scale if values.size else np.nan
    if not least <= value <= most or np.ptp(values * scale) > 1e-3 * value:
        stated = "nothing" if found is None else f"{values[:3].tolist()}"
        said = None if found is None else text_of(found.attrs.get("units"))
        raise SourceError(
            f"{path} has {stated} as {names[-1] if found is None else found.name} in "
            f"{said or f'{unit}, as it names no unit'}, where {least:g} to {most:g} {unit} are "
            "possible, and positions in metres mean nothing without it; correct the value or its "
            "attribute units, or add entry/data/positions_px"
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
