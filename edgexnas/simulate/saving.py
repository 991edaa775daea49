"""Save frames and scans as HDF5, so that `open_frames` and `open_scan` read them back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgexnas.errors import ConfigurationError, MissingDependencyError
from edgexnas.frames import ArrayFrames, FrameSeries
from edgexnas.scans import Scan
from edgexnas.whole_files import whole_file


def save_series(series: FrameSeries, path: str | Path) -> Path:
    """Write a series as NeXus HDF5: whole, or not at all.

    Frames go to entry/data/data in one chunk each, compressed by bitshuffle and LZ4 as by DECTRIS
    detectors; angles to entry/data/omega_deg, the mask to entry/instrument/detector/pixel_mask
    (1 is unusable), and the truth, if the series has one, to a dataset for each of its columns
    in truth. An existing file is replaced.

    Raises
    ------
    ConfigurationError
        If the folder does not exist or the path is a folder.
    MissingDependencyError
        If h5py or hdf5plugin is not installed.
    """
    with _nexus_file(path, series):
        return Path(path)


def save_scan(scan: Scan, path: str | Path) -> Path:
    """Write a ptychography scan as NeXus HDF5: whole, or not at all.

    Patterns and mask go where `save_series` puts frames, positions to entry/data/positions_px,
    the probe to entry/instrument/probe and a known object to entry/sample/object. An existing
    file is replaced.

    Raises
    ------
    ConfigurationError
        If the folder does not exist or the path is a folder.
    MissingDependencyError
        If h5py or hdf5plugin is not installed.
    """
    patterns = ArrayFrames(scan.patterns, mask=scan.mask, source=scan.source)
    with _nexus_file(path, patterns) as file:
        file["entry/data/positions_px"] = scan.positions_px
        if scan.probe is not None:
            file["entry/instrument/probe"] = scan.probe
        if scan.truth is not None:
            sample = _group(file["entry"], "sample", "NXsample")
            sample.create_dataset("object", data=scan.truth, compression="gzip", shuffle=True)
    return Path(path)


@contextmanager
def _nexus_file(path: str | Path, series: FrameSeries) -> Iterator[Any]:
    """Write a series to a draft that appears under its name when the block ends."""
    target = Path(path)
    if target.is_dir() or not target.parent.is_dir():
        raise ConfigurationError(f"cannot write {target}; name a file in an existing folder")
    try:
        import h5py
        import hdf5plugin
    except ImportError as error:
        raise MissingDependencyError.of(
            error.name or "h5py", extra="host", purpose="saving frames as HDF5"
        ) from None
    with whole_file(target) as draft, h5py.File(draft, "w") as file:
        _write(file, series, dict(hdf5plugin.Bitshuffle(cname="lz4")))
        yield file


def _write(file: Any, series: FrameSeries, compression: dict[str, Any]) -> None:
    file.attrs.update({"NX_class": "NXroot", "default": "entry"})
    entry = _group(file, "entry", "NXentry", default="data", source=series.source)
    data = _group(entry, "data", "NXdata", signal="data")
    shape = (len(series), *series.shape)
    frames = data.create_dataset(
        "data", shape, series.dtype, chunks=(1, *series.shape), **compression
    )
    for number, frame in enumerate(series):
        frames[number] = frame
    detector = _group(_group(entry, "instrument", "NXinstrument"), "detector", "NXdetector")
    # A hard link: NeXus looks for frames here as well, and they are stored once.
    detector["data"] = frames
    if series.mask is not None:
        detector.create_dataset("pixel_mask", data=series.mask.astype("u4"), compression="gzip")
    if series.omega_deg is not None:
        angles = data.create_dataset("omega_deg", data=series.omega_deg)
        angles.attrs["units"] = "deg"
    if series.truth is not None:
        truth = _group(file, "truth", "NXcollection")
        for name, column in series.truth.columns().items():
            truth.create_dataset(name, data=column)


def _group(parent: Any, name: str, nexus_class: str, **attributes: str) -> Any:
    group = parent.create_group(name)
    group.attrs.update({"NX_class": nexus_class, **attributes})
    return group
