"""Results to HDF5 files that can be read while they are written and survive a crash."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgexnas.device.ptycho.object_file import write_nexus_object
from edgexnas.device.sinks.number_ranges import NumberRanges
from edgexnas.device.sinks.protocol import SinkPolicy
from edgexnas.device.sinks.results import (
    FrameResult,
    ObjectSnapshot,
    SeriesBegun,
    SeriesEnded,
    ServiceIdentity,
)
from edgexnas.device.sinks.results_file import committed_frames
from edgexnas.device.sinks.results_layout import (
    COMMIT,
    NAME_BYTES,
    PEAK_COLUMNS,
    begin_file,
    segments,
)
from edgexnas.errors import ConfigurationError
from edgexnas.whole_files import whole_file

__all__ = ["Hdf5Sink"]

MEBIBYTE = 2**20

CHUNKS_BYTES = 2**20
"""More than the unfilled parts of chunks and HDF5's own blocks take in one write."""

AHEAD_BYTES = 8 * 2**20
"""Space that is set aside at a time; closing a file gives back what is not used."""

MOST_GAPS = 2**18
"""Gaps of one series that are remembered of earlier runs; older ones count as stored."""

SYNC_S = 1.0
"""How often what was flushed is forced to the disk."""

_log = logging.getLogger("edgexnas.device.serving")


class Hdf5Sink:
    """Writes results to ``FOLDER/NAME_000001.h5`` and so on; see `results_layout`.

    A frame's row of commits is written after its data were flushed, so that whoever reads committed
    rows reads whole frames, at any time and after a crash. Each opening begins a new file and
    repeats no frame that an older one holds.

    Flushed rows survive the death of the process; a power cut may take those of the last second.

    Parameters
    ----------
    folder
        Where files go; made if it is not there.
    name
        How their names begin.
    policy
        As of `Sink`.
    segment_mib
        Size after which a new file is begun.
    least_free_mib
        Free space on the disk below which nothing is written.
    patches
        For ptychography: whether each frame's patch is kept, 32 KiB.
    gather_ms
        Results are gathered for this long, because each commit costs about a millisecond.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        name: str = "results",
        policy: SinkPolicy = "block",
        segment_mib: float = 8192.0,
        least_free_mib: float = 64.0,
        patches: bool = False,
        gather_ms: float = 10.0,
    ) -> None:
        self.gather_s = gather_ms / 1e3
        self.folder = Path(folder)
        self.name = f"hdf5 {self.folder / name}"
        self.policy: SinkPolicy = policy
        self._prefix = name
        self._segment_bytes = segment_mib * MEBIBYTE
        self._least_free = least_free_mib * MEBIBYTE
        self._keep_patches = patches
        self._identity: ServiceIdentity | None = None
        self._stored: dict[str, NumberRanges] | None = None
        self._file: Any = None
        self.path: Path | None = None
        self._number = 0
        self._columns: dict[str, Any] = {}
        self._series: dict[str, int] = {}
        self._synced_s = 0.0
        self._written = 0
        self._reserved = 0

    def check(self) -> None:
        """Find out whether files can be made in the folder, and leave nothing behind.

        Raises
        ------
        ConfigurationError
            If not.
        """
        place = self.folder
        while not place.exists():
            place = place.parent
        if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
            raise ConfigurationError(
                f"folder {self.folder} cannot be written to, because {place} is no folder or not "
                "yours; give another"
            )
        self._refuse_full(place)

    def committed(self) -> dict[str, NumberRanges]:
        """Read which frames of which series are stored in the folder."""
        if self._stored is None:
            self._stored = {}
            for path in segments(self.folder, self._prefix).values():
                try:
                    stored = committed_frames(path)
                except OSError as error:
                    _log.warning("%s cannot be read, its frames may be repeated: %s", path, error)
                    continue
                for series, numbers in stored.items():
                    kept = self._stored.setdefault(series, NumberRanges())
                    for start, stop in numbers:
                        kept.add_range(start, stop)
                    kept.merge_lowest(MOST_GAPS)
        return self._stored

    def open(self, identity: ServiceIdentity) -> None:
        """Begin a new file.

        Raises
        ------
        OSError
            If it cannot be written, or the disk is full.
        """
        self.committed()
        self._identity = identity
        self.folder.mkdir(parents=True, exist_ok=True)
        self._refuse_full(self.folder)
        self._number = max(segments(self.folder, self._prefix), default=0) + 1
        path = self.folder / f"{self._prefix}_{self._number:06d}.h5"
        # It gets its name once it can be read; a crash before leaves no file that cannot.
        draft = path.with_name(f".{path.name}.part")
        draft.unlink(missing_ok=True)
        self._file = begin_file(draft, identity, patches=self._keep_patches)
        os.replace(draft, path)
        self.path = path
        entry = self._file["entry"]
        self._columns = {"commits": entry["frames/commits"], "series": entry["series/name"]}
        for group in ("peaks", "patches"):
            if group in entry:
                self._columns |= {
                    name: entry[group][name]
                    for name in entry[group]
                    if name in PEAK_COLUMNS or group == "patches"
                }
        self._series = {}
        self._written = self._reserved = 0
        _log.info("writing %s", path)

    def write(self, results: Sequence[FrameResult]) -> None:
        """Store results of one series, all or none.

        Raises
        ------
        OSError
            If they could not be written.
        """
        assert self._stored is not None
        series = results[0].series
        # Of this run each frame comes once; only those of earlier ones are remembered.
        known = self._stored.get(series, NumberRanges())
        fresh = [result for result in results if result.number not in known]
        if not fresh:
            return
        self._refuse_full(self.folder)
        self._reserve(sum(_size(result) for result in fresh))
        index = self._series_index(series)
        self._commit(fresh, index, self._write_data(fresh))
        if time.monotonic() - self._synced_s >= SYNC_S:
            self._sync()
        if self._written >= self._segment_bytes:
            self.close()
            assert self._identity is not None
            self.open(self._identity)

    def begin(self, series: SeriesBegun) -> None:
        """Do nothing: a series is entered with its first frame."""

    def end(self, series: SeriesEnded) -> None:
        """Force what was written to the disk."""
        if self._file is not None:
            self._sync()

    def show(self, snapshot: ObjectSnapshot) -> None:
        """Write the object as it stands to a file of its own, which appears whole.

        It is laid out as `edgexnas predict` does; see `write_nexus_object`.
        """
        series = re.sub(r"[^\w.-]+", "_", snapshot.series)[-100:]
        path = self.folder / f"object_{series}_{self._number:06d}.h5"
        self._refuse_full(self.folder)
        with whole_file(path) as draft:
            title = f"{snapshot.series} up to frame {snapshot.number}"
            write_nexus_object(draft, snapshot.image, title=title)

    def close(self) -> None:
        """Close the file; closing again does nothing."""
        file, self._file, self._columns = self._file, None, {}
        if file is not None:
            with contextlib.suppress(OSError):
                os.fsync(file.id.get_vfd_handle())
            file.close()

    def _series_index(self, series: str) -> int:
        if series not in self._series:
            index = len(self._series)
            name = np.array([series.encode()[:NAME_BYTES]], self._columns["series"].dtype)
            self._append("series", name)
            self._series[series] = index
        return self._series[series]

    def _write_data(self, results: Sequence[FrameResult]) -> npt.NDArray[np.int64]:
        """Append what frames consist of; return how many rows each has."""
        peaks = [result.peaks for result in results]
        if "row_px" in self._columns:
            counts = np.array([0 if found is None else len(found) for found in peaks], np.int64)
            found = [item for item in peaks if item is not None]
            if not counts.any():
                return counts
            positions = np.concatenate([item.positions_px for item in found])
            intervals = np.concatenate([item.intervals_px for item in found])
            numbers = np.array([result.number for result in results], np.int64)
            data: dict[str, npt.NDArray[Any]] = {
                "row_px": positions[:, 0],
                "col_px": positions[:, 1],
                "row_interval_px": intervals[:, 0],
                "col_interval_px": intervals[:, 1],
                "intensity": np.concatenate([item.intensities for item in found]),
                "flags": np.concatenate([item.flags for item in found]),
                "frame": np.repeat(numbers, counts),
            }
        elif "amplitude" in self._columns:
            amplitudes = [r.amplitude for r in results if r.amplitude is not None]
            phases = [r.phase_rad for r in results if r.phase_rad is not None]
            counts = np.array([r.amplitude is not None for r in results], np.int64)
            if not amplitudes:
                return counts
            data = {"amplitude": np.stack(amplitudes), "phase": np.stack(phases)}
        else:
            return np.zeros(len(results), np.int64)
        for name, values in data.items():
            self._append(name, values)
        # The data are in the file before a row of commits points at them.
        self._file.flush()
        return counts

    def _commit(
        self, results: Sequence[FrameResult], series: int, counts: npt.NDArray[np.int64]
    ) -> None:
        data = self._columns.get("row_px", self._columns.get("amplitude"))
        end = 0 if data is None else data.id.shape[0]
        rows = np.zeros(len(results), COMMIT)
        rows["series"] = series
        rows["number"] = [result.number for result in results]
        rows["count"] = counts
        rows["offset"] = end - counts[::-1].cumsum()[::-1]
        rows["overflow"] = [
            0 if result.peaks is None else result.peaks.overflow for result in results
        ]
        rows["status"] = [result.error is not None for result in results]
        rows["timestamp_s"] = [
            np.nan if result.timestamp_s is None else result.timestamp_s for result in results
        ]
        places = [result.position_px or (np.nan, np.nan) for result in results]
        rows["row_px"], rows["col_px"] = np.array(places, np.float64).T
        self._append("commits", rows)
        self._file.flush()

    def _append(self, name: str, values: npt.NDArray[Any]) -> None:
        from h5py import h5s

        # The low-level calls: several times faster than `resize` and assignment, for every commit.
        dataset = self._columns[name].id
        values = np.ascontiguousarray(values, dataset.dtype)
        start, rest = dataset.shape[0], dataset.shape[1:]
        dataset.set_extent((start + len(values), *rest))
        place = dataset.get_space()
        place.select_hyperslab((start, *(0 for _ in rest)), values.shape)
        dataset.write(h5s.create_simple(values.shape), place, values)
        self._written += values.nbytes

    def _reserve(self, upcoming: int) -> None:
        """Have the file system set space aside, so that HDF5 never meets a full disk.

        A write that fails within HDF5 leaves a file that cannot be closed, and ends the process.
        """
        used = self._file.id.get_filesize()
        need = used + upcoming + CHUNKS_BYTES
        if need <= self._reserved:
            return
        end = need + AHEAD_BYTES
        try:
            os.posix_fallocate(self._file.id.get_vfd_handle(), used, end - used)
        except OSError as error:
            # Some file systems cannot; there `least_free_mib` alone guards against a full disk.
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
        self._reserved = end

    def _refuse_full(self, place: Path) -> None:
        """Refuse to begin what the disk has no room for, while all that is written is sound."""
        free = shutil.disk_usage(place).free
        if free < self._least_free:
            raise OSError(
                errno.ENOSPC,
                f"{place} has {free / MEBIBYTE:.0f} MiB free and "
                f"{self._least_free / MEBIBYTE:.0f} MiB are to stay so; make room",
            )

    def _sync(self) -> None:
        os.fsync(self._file.id.get_vfd_handle())
        self._synced_s = time.monotonic()


def _size(result: FrameResult) -> int:
    """Bytes that a result takes, at most."""
    peaks = 0 if result.peaks is None else 64 * len(result.peaks)
    patch = 0 if result.amplitude is None else 2 * result.amplitude.nbytes
    return COMMIT.itemsize + NAME_BYTES + peaks + patch
