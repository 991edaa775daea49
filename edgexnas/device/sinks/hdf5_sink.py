"""Results to HDF5 files that can be read while they are written and survive a crash."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shutil
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgexnas.device.sinks.folder_lock import FolderLock
from edgexnas.device.sinks.number_ranges import NumberRanges
from edgexnas.device.sinks.protocol import Sink, SinkPolicy
from edgexnas.device.sinks.results import (
    FRAME_STATES,
    MERGE_STATES,
    NAME_BYTES,
    FrameResult,
    MergeMark,
    ObjectSnapshot,
    SeriesBegun,
    SeriesEnded,
    SeriesKey,
    SeriesSpots,
    ServiceIdentity,
    stored_text,
)
from edgexnas.device.sinks.results_file import committed_frames
from edgexnas.device.sinks.results_layout import (
    BUNDLE,
    COMMIT,
    MERGE,
    begin_file,
    peak_columns,
    segments,
)
from edgexnas.errors import ConfigurationError
from edgexnas.forms.object_nexus import write_nexus_object
from edgexnas.spots import SPOT_COLUMNS
from edgexnas.whole_files import whole_file

__all__ = ["Hdf5Sink"]

MEBIBYTE = 2**20

CHUNKS_BYTES = 2**20
"""More than the unfilled parts of chunks and HDF5's own blocks take in one write."""

AHEAD_BYTES = 8 * 2**20
"""Space that is set aside at a time; closing a file returns what is not used."""

# Two integers each: about 20 MB, whatever a lossy source has left behind.
MOST_GAPS = 2**18
"""Gaps of one series that are remembered of earlier runs; older ones count as stored."""

SUPERBLOCK = struct.Struct("<8sB3sQQQ")
"""Signature, version, sizes and flags, base address, address of the extension, end of file: the
HDF5 file format specification 3.0, section II.A, superblock of version 3 with 8-byte addresses."""

SYNC_S = 1.0
"""How often what was flushed is forced to the disk."""

_log = logging.getLogger("edgexnas.device.serving")


@dataclass(slots=True)
class _Column:
    """A dataset that is appended to, with what h5py would look up in the file at each access."""

    dataset: Any
    dtype: np.dtype[Any]
    type_: Any
    rows: int = 0

    @classmethod
    def of(cls, dataset: Any) -> _Column:
        from h5py import h5t

        return cls(dataset.id, dataset.dtype, h5t.py_create(dataset.dtype))

    def append(self, values: npt.NDArray[Any]) -> int:
        """Append rows; return their bytes."""
        from h5py import h5s

        # The low-level calls: several times faster than `resize` and assignment, for every commit.
        values = np.ascontiguousarray(values, self.dtype)
        item = values.shape[1:]
        # Should a write fail, `rows` still says where the next one begins.
        self.dataset.set_extent((self.rows + len(values), *item))
        place = h5s.create_simple((self.rows + len(values), *item))
        place.select_hyperslab((self.rows, *(0 for _ in item)), values.shape)
        self.dataset.write(h5s.create_simple(values.shape), place, values, self.type_)
        self.rows += len(values)
        return values.nbytes


class Hdf5Sink(Sink):
    """Writes results to ``FOLDER/NAME_000001.h5`` and so on; see `results_layout`.

    A frame's row of commits is written after its data were flushed, so that whoever reads committed
    rows reads whole frames, at any time and after a crash. Each opening begins a new file and
    repeats no frame that an older one holds of the same series by the same bundle. While it is
    open, no other sink of that name writes to the folder, and none of another process.

    Flushed rows survive the death of the process; a power cut may take those of the last second.

    Parameters
    ----------
    folder
        Where files go; created if missing.
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
    spots
        Whether files have room for `write_spots`.

    Attributes
    ----------
    path
        The file that is written; None before the first.
    """

    _identity: ServiceIdentity

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
        spots: bool = False,
    ) -> None:
        self.gather_s = gather_ms / 1e3
        self.folder = Path(folder)
        self.name = f"hdf5 {self.folder / name}"
        self.policy: SinkPolicy = policy
        self.path: Path | None = None
        self._prefix = name
        self._segment_bytes = segment_mib * MEBIBYTE
        self._least_free = least_free_mib * MEBIBYTE
        self._options = {"patches": patches, "spots": spots}
        self._lock = FolderLock(self.folder, name)
        self._stored: dict[SeriesKey, NumberRanges] | None = None
        self._skipped = 0
        self._begun: SeriesBegun | None = None
        self._file: Any = None
        self._number = 0
        self._columns: dict[str, _Column] = {}
        self._rows: dict[str, dict[Any, int]] = {}
        self._synced_s = 0.0
        self._written = 0
        self._reserved = 0

    def check(self) -> None:
        """Find out whether files can be created in the folder, and leave nothing behind.

        Raises
        ------
        ConfigurationError
            If not.
        FolderInUseError
            If somebody else writes to it.
        """
        place = self.folder
        # What is missing will be created, below the first folder that there is.
        while not place.exists():
            place = place.parent
        if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
            raise ConfigurationError(
                f"folder {self.folder} is not writable, because {place} is not a folder or not "
                "yours; specify another"
            )
        self._check_free(place)
        self._lock.check()

    def committed(self) -> dict[SeriesKey, NumberRanges]:
        """Read which frames are stored in the folder, by series and bundle."""
        if self._stored is None:
            self._stored = {}
            for path in segments(self.folder, self._prefix).values():
                try:
                    stored = committed_frames(path)
                except OSError as error:
                    _log.warning("%s cannot be read, its frames may be repeated: %s", path, error)
                    continue
                for key, numbers in stored.items():
                    kept = self._stored.setdefault(key, NumberRanges())
                    for start, stop in numbers:
                        kept.add_range(start, stop)
                    kept.merge_lowest(MOST_GAPS)
        return self._stored

    def open(self, identity: ServiceIdentity) -> None:
        """Begin a new file.

        Raises
        ------
        FolderInUseError
            If another service, or another sink of that name, writes to the folder.
        OSError
            If it cannot be written, or the disk is full.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock.acquire()
        try:
            self._begin_file(identity)
        except BaseException:
            self._lock.release()
            raise

    def _begin_file(self, identity: ServiceIdentity) -> None:
        self._check_free(self.folder)
        newest = max(segments(self.folder, self._prefix), default=0)
        # Whoever had the folder in between left a file of a higher number.
        if newest != self._number:
            self._stored = None
        self.committed()
        self._identity = identity
        # Never an older file again: its writer may have been killed in the middle of a write.
        self._number = newest + 1
        path = self.folder / f"{self._prefix}_{self._number:06d}.h5"
        # It gets its name once it can be read; a crash before leaves no file that cannot.
        draft = path.with_name(f".{path.name}.part")
        draft.unlink(missing_ok=True)
        self._file = begin_file(draft, identity, **self._options)
        os.replace(draft, path)
        self.path = path
        entry = self._file["entry"]
        # Datasets are looked up once: by name each access would search the file.
        tables = [name for name in ("bundles", "merges") if name in entry]
        self._columns = {name: _Column.of(entry[name]) for name in tables}
        for name in ("series", "frames", "peaks", "patches", "spots"):
            for column in entry.get(name, ()):
                self._columns[f"{name}/{column}"] = _Column.of(entry[name][column])
        self._rows = {"series": {}, "bundles": {}}
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
        fresh = [result for result in results if not self._is_stored(result)]
        self._skipped += len(results) - len(fresh)
        if not fresh:
            return
        self._check_free(self.folder)
        # Before the first byte: afterwards nothing may fail for want of space.
        self._reserve(sum(map(_size, fresh)))
        rows = np.zeros(len(fresh), COMMIT)
        rows["series"] = self._series_row(series)
        # Entered before the data, so that a row of commits points at what is in the file.
        rows["bundle"] = [self._bundle_row(result.made_by or self._identity) for result in fresh]
        self._write_data(fresh, rows)
        self._commit(fresh, rows)
        if time.monotonic() - self._synced_s >= SYNC_S:
            self._sync()
        # Between two commits, so that each file is whole by itself.
        if self._written >= self._segment_bytes:
            self._close_file()
            self._begin_file(self._identity)

    def write_spots(self, spots: SeriesSpots) -> None:
        """Store merged spots, and then their mark; only with the option `spots`.

        Raises
        ------
        OSError
            If they could not be written.
        """
        self._check_free(self.folder)
        table = spots.spots.table
        self._reserve(2 * table.nbytes + NAME_BYTES + BUNDLE.itemsize + MERGE.itemsize)
        series = self._series_row(spots.series)
        bundle = self._bundle_row_of(spots.bundle_digest)
        if len(table):
            for name in SPOT_COLUMNS:
                self._append(f"spots/{name}", table[name])
            self._append("spots/bundle", np.full(len(table), bundle))
            # The column of series is the last one: a spot that a crash cuts off has none.
            self._file.flush()
            self._append("spots/series", np.full(len(table), series))
            self._file.flush()
        if spots.mark is not None:
            self._mark(spots.mark, series, bundle)

    def _mark(self, mark: MergeMark, series: int, bundle: int) -> None:
        row = np.zeros(1, MERGE)
        row["series"], row["bundle"] = series, bundle
        row["state"], row["coverage"] = MERGE_STATES.index(mark.state), mark.coverage
        row["commits"] = self._columns["frames/commits"].rows
        row["spots"] = self._columns["spots/series"].rows
        for name, value in asdict(mark.settings).items():
            row[name] = np.nan if value is None else value
        self._append("merges", row)
        self._file.flush()

    def begin(self, series: SeriesBegun) -> None:
        """Remember what identifies the series; it is entered with its first frame."""
        self._begun = series

    def end(self, series: SeriesEnded) -> None:
        """Force what was written to the disk, and say what earlier runs had stored."""
        if self._skipped:
            _log.info(
                "%d frames of %s were stored in %s by earlier runs and are not repeated",
                self._skipped,
                series.series,
                self.folder,
            )
            self._skipped = 0
        if self._file is not None:
            self._sync()

    def show(self, snapshot: ObjectSnapshot) -> None:
        """Write the object as it stands to a file of its own, which appears whole.

        It is laid out as `edgexnas predict` does; see `write_nexus_object`.
        """
        # Names come from a detector: no slash may lead out of the folder.
        series = re.sub(r"[^\w.-]+", "_", snapshot.series)[-100:]
        path = self.folder / f"object_{series}_{self._number:06d}.h5"
        self._check_free(self.folder)
        with whole_file(path) as draft:
            title = f"{snapshot.series} up to frame {snapshot.number}"
            write_nexus_object(draft, snapshot.image, title=title, refinement=snapshot.refinement)

    def close(self) -> None:
        """Close the file and return the space it does not use; closing again does nothing."""
        try:
            self._close_file()
        finally:
            self._lock.release()

    def _close_file(self) -> None:
        file, self._file, self._columns = self._file, None, {}
        if file is None:
            return
        with contextlib.suppress(OSError):
            os.fsync(file.id.get_vfd_handle())
        file.close()
        assert self.path is not None
        with contextlib.suppress(OSError):
            _trim(self.path)

    def _is_stored(self, result: FrameResult) -> bool:
        assert self._stored is not None
        made_by = result.made_by or self._identity
        key = SeriesKey.of(result.series, self._identity_of(result.series), made_by.bundle_digest)
        return key in self._stored and result.number in self._stored[key]

    def _identity_of(self, series: str) -> str:
        begun = self._begun
        return begun.identity if begun is not None and begun.series == series else ""

    def _series_row(self, series: str) -> int:
        texts = stored_text(series), stored_text(self._identity_of(series))
        if texts not in self._rows["series"]:
            names = ("series/name", "series/identity")
            row = {name: text.encode() for name, text in zip(names, texts, strict=True)}
            self._enter("series", texts, row)
        return self._rows["series"][texts]

    def _bundle_row(self, identity: ServiceIdentity) -> int:
        if identity not in self._rows["bundles"]:
            row = tuple(getattr(identity, name) for name in BUNDLE.names or ())
            self._enter("bundles", identity, {"bundles": row})
        return self._rows["bundles"][identity]

    def _bundle_row_of(self, digest: str) -> int:
        """Row of a bundle by its digest: that of frames, which came first, or of this service."""
        known = {identity.bundle_digest: row for identity, row in self._rows["bundles"].items()}
        return known[digest] if digest in known else self._bundle_row(self._identity)

    def _enter(self, table: str, key: Any, values: Mapping[str, Any]) -> None:
        """Append a row, so that it is in the file before a row of commits points at it."""
        for name, value in values.items():
            self._append(name, np.array([value], self._columns[name].dtype))
        self._file.flush()
        self._rows[table][key] = len(self._rows[table])

    def _write_data(self, results: Sequence[FrameResult], rows: npt.NDArray[np.void]) -> None:
        """Append what frames consist of, and enter in their rows where it lies."""
        data: dict[str, npt.NDArray[Any]] = {}
        if "peaks/row_px" in self._columns:
            data_end = self._columns["peaks/row_px"].rows
            rows["count"] = [0 if r.peaks is None else len(r.peaks) for r in results]
            if rows["count"].any():
                data = {f"peaks/{name}": values for name, values in peak_columns(results).items()}
        elif "patches/phase" in self._columns:
            data_end = self._columns["patches/phase"].rows
            rows["count"] = [result.amplitude is not None for result in results]
            if rows["count"].any():
                kept = [(r.amplitude, r.phase_rad) for r in results if r.amplitude is not None]
                data["patches/amplitude"] = np.stack([amplitude for amplitude, _ in kept])
                data["patches/phase"] = np.stack([phase for _, phase in kept if phase is not None])
        else:
            return
        rows["offset"] = data_end + rows["count"].cumsum(dtype=np.int64) - rows["count"]
        for name, values in data.items():
            self._append(name, values)
        if data:
            # The data are in the file before a row of commits points at them.
            self._file.flush()

    def _commit(self, results: Sequence[FrameResult], rows: npt.NDArray[np.void]) -> None:
        rows["number"] = [result.number for result in results]
        rows["overflow"] = [r.peaks.overflow if r.peaks is not None else 0 for r in results]
        rows["status"] = [FRAME_STATES.index(result.state) for result in results]
        rows["flags"] = [result.flags for result in results]
        rows["detector_id"] = [-1 if r.detector_id is None else r.detector_id for r in results]
        rows["timestamp_s"] = [np.nan if r.timestamp_s is None else r.timestamp_s for r in results]
        places = [result.position_px or (np.nan, np.nan) for result in results]
        rows["row_px"], rows["col_px"] = np.array(places, np.float64).T
        # The one append that makes frames exist: all they consist of was flushed before.
        self._append("frames/commits", rows)
        self._file.flush()

    def _append(self, name: str, values: npt.NDArray[Any]) -> None:
        self._written += self._columns[name].append(values)

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
            # Real blocks and not a sparse hole, which would still need space when it is written.
            os.posix_fallocate(self._file.id.get_vfd_handle(), used, end - used)
        except OSError as error:
            # Some file systems cannot; there `least_free_mib` alone guards against a full disk.
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
        self._reserved = end

    def _check_free(self, place: Path) -> None:
        """Raise an error while all that is written is sound, if the disk is nearly full."""
        free = shutil.disk_usage(place).free
        if free < self._least_free:
            raise OSError(
                errno.ENOSPC,
                f"{place} has {free / MEBIBYTE:.0f} MiB free and "
                f"{self._least_free / MEBIBYTE:.0f} MiB must stay free; free some space",
            )

    def _sync(self) -> None:
        os.fsync(self._file.id.get_vfd_handle())
        self._synced_s = time.monotonic()


def _size(result: FrameResult) -> int:
    """Bytes that a result takes, at most."""
    peaks = 0 if result.peaks is None else 64 * len(result.peaks)
    patch = 0 if result.amplitude is None else 2 * result.amplitude.nbytes
    return COMMIT.itemsize + NAME_BYTES + peaks + patch


def _trim(path: Path) -> None:
    """Cut a closed file where HDF5 says that it ends; what follows was set aside and not used."""
    # By the file itself: HDF5 has no call that gives set-aside space back.
    with path.open("r+b") as file:
        start = SUPERBLOCK.unpack(file.read(SUPERBLOCK.size))
        size = os.fstat(file.fileno()).st_size
        # Any other version, base address or end is not of our writing: left as it is.
        if start[:2] == (b"\x89HDF\r\n\x1a\n", 3) and start[3] == 0 and start[5] < size:
            file.truncate(start[5])
