"""Open whatever holds frames."""

from __future__ import annotations

import logging
from pathlib import Path

from edgexnas.errors import SourceError
from edgexnas.frames.array_file import open_array_file
from edgexnas.frames.frame_cache import (
    holds_frame_cache,
    open_frame_cache,
    open_hdf5_frame_cache,
)
from edgexnas.frames.hdf5 import open_hdf5
from edgexnas.frames.images import IMAGE_SUFFIXES, open_images
from edgexnas.frames.reading import reading
from edgexnas.frames.series import FrameSeries
from edgexnas.frames.truth import Truth

_log = logging.getLogger(__name__)

HDF5_SUFFIXES = (".h5", ".hdf5", ".hdf", ".nxs", ".nx5", ".nx", ".cxi", ".fch5")
SERIES_SUFFIXES = (*HDF5_SUFFIXES, ".npz", ".npy")

_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_ZIP_SIGNATURE = b"PK\x03\x04"
_NPY_SIGNATURE = b"\x93NUMPY"


def open_frames(
    path: str | Path,
    *,
    dataset: str | None = None,
    channel: int | None = None,
    file_mask: bool = True,
) -> FrameSeries:
    """Open a series of detector frames; frames are read when they are asked for.

    What a file holds is told from its first bytes, not from its name.

    Parameters
    ----------
    path
        One of

        * an HDF5 or NeXus file. The frames are `dataset`, or else entry/data/data,
          entry/instrument/detector/data, imageseries/images, exchange/data, frames, the blocks
          data_000001 … of an Eiger master file, the default signal of NeXus, or the only
          dataset of 3 dimensions. 2 dimensions are one frame; of 4, one is 1, or `channel` is
          given;
        * a frame cache of hexrd, .npz or .fch5, which is stored sparse;
        * a .npy file of (n, H, W) or (H, W);
        * a single image that fabio reads (EDF, CBF, TIFF, MarCCD, mar345, GE, ...), also
          compressed by gzip or bzip2;
        * a folder of such images, in the natural order of their names, or a folder with exactly
          one of the other files.
    dataset
        Path of the dataset inside an HDF5 file.
    channel
        Which image of each frame of an HDF5 file is taken, from 0, where a frame has several, as of
        several thresholds.
    file_mask
        Whether the pixel mask of an HDF5 file is used.

    Raises
    ------
    SourceError
        If nothing is there, or it is not one of the above, is empty, truncated or ambiguous,
        needs an HDF5 filter that is not installed, or says something of its detector that cannot
        be used. A frame whose bytes are not there is a MissingFrameError when it is asked for.
    MissingDependencyError
        If h5py (for HDF5) or fabio (for images) is not installed.
    """
    place = Path(path)
    if "\0" in str(place):
        raise SourceError(f"{str(place)!r} holds a NUL, as no path does; check the path")
    if place.is_dir():
        return _open_folder(place, dataset, channel, file_mask)
    if not place.exists():
        raise SourceError(f"there is no file {place}; check the path")
    if not place.is_file():
        raise SourceError(f"{place} is not a regular file; give a file or a folder of frames")
    kind = _kind(place)
    if kind == "hdf5":
        if holds_frame_cache(place):
            _refuse_hdf5_options(f"{place} is a frame cache", dataset, channel)
            return open_hdf5_frame_cache(place)
        return open_hdf5(place, dataset, channel=channel, file_mask=file_mask)
    _refuse_hdf5_options(f"{place} is not HDF5", dataset, channel)
    if kind == "npz":
        return open_frame_cache(place)
    return open_array_file(place) if kind == "npy" else open_images([place])


def load_truth(path: str | Path) -> Truth | None:
    """Read what a simulated series knows of its spots.

    Parameters
    ----------
    path
        An HDF5 file that `edgexnas.simulate.save_series` wrote, or any other file of frames.

    Returns
    -------
    The truth, or None if the file holds frames without one.

    Raises
    ------
    SourceError
        If the file cannot be read.
    """
    with open_frames(path) as series:
        return series.truth


def _kind(path: Path) -> str:
    """Tell "hdf5", "npz", "npy" or "image" from the first bytes of a file."""
    with reading(str(path)), path.open("rb") as file:
        start = file.read(8)
        found = _signature(start)
        # A user block may precede HDF5: the signature then follows at 512, 1024, 2048, ...
        for shift in range(9, 14):
            file.seek(1 << shift)
            if found is None and file.read(8) == _HDF5_SIGNATURE:
                found = "hdf5"
    if not start:
        raise SourceError(f"{path} is empty (0 bytes); copy or record it again")
    suffix = path.suffix.lower()
    if found is None and suffix in SERIES_SUFFIXES:
        expected = "HDF5" if suffix in HDF5_SUFFIXES else f"a {suffix} file"
        raise SourceError(
            f"{path} does not begin like {expected}; it is damaged or of another kind than its "
            "name says"
        )
    return found or "image"


def _signature(start: bytes) -> str | None:
    if start == _HDF5_SIGNATURE:
        return "hdf5"
    if start.startswith(_ZIP_SIGNATURE):
        return "npz"
    return "npy" if start.startswith(_NPY_SIGNATURE) else None


def _refuse_hdf5_options(what: str, dataset: str | None, channel: int | None) -> None:
    for name, value in (("dataset", dataset), ("channel", channel)):
        if value is not None:
            raise SourceError(f"{what}, so it has no {name} {value!r}; leave it out")


def _open_folder(
    folder: Path, dataset: str | None, channel: int | None, file_mask: bool
) -> FrameSeries:
    with reading(f"the folder {folder}"):
        names = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
        files = [entry for entry in names if entry.is_file()]
    series = sorted(file for file in files if file.suffix.lower() in SERIES_SUFFIXES)
    held = tuple(series)
    # The data files of an Eiger are reached through their master file.
    series = [file for file in series if file.stem.endswith("_master")] or series
    images = [file for file in files if _image_suffix(file) in IMAGE_SUFFIXES]
    left_out = sorted({entry.name for entry in names} - {file.name for file in (*images, *held)})
    if len(series) + bool(images) > 1:
        listed = [file.name for file in series] + [f"{len(images)} images"] * bool(images)
        raise SourceError(
            f"{folder} holds more than one series ({_shortened(listed)}); name one of them"
        )
    if left_out and (series or images):
        _log.warning(
            "%d entries of %s are left out, whose names end like none of a frame: %s",
            len(left_out),
            folder,
            _shortened(left_out),
        )
    if series:
        return open_frames(series[0], dataset=dataset, channel=channel, file_mask=file_mask)
    if not images:
        raise SourceError(f"{folder} holds no frames; give a folder with images or one HDF5 file")
    _refuse_hdf5_options(f"{folder} holds images", dataset, channel)
    return open_images(images, source=str(folder))


def _image_suffix(file: Path) -> str:
    suffixes = [suffix.lower() for suffix in file.suffixes]
    # fabio inflates these two by itself.
    if suffixes and suffixes[-1] in (".gz", ".bz2"):
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _shortened(names: list[str], limit: int = 6) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
