"""A sink that merges peaks into spots and gives both to the sink that it wraps."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgexnas.device.sinks.number_ranges import NumberRanges
from edgexnas.device.sinks.protocol import Sink
from edgexnas.device.sinks.results import (
    FrameResult,
    ObjectSnapshot,
    SeriesBegun,
    SeriesEnded,
    SeriesKey,
    SeriesSpots,
    ServiceIdentity,
)
from edgexnas.device.sinks.results_file import StoredFrame, read_results, read_spots
from edgexnas.merging import MergeSettings, Rotation, SpotMerger
from edgexnas.spots import Spots

__all__ = ["MergingSink", "SpotSink"]

_log = logging.getLogger("edgexnas.device.serving")


class SpotSink(Sink, Protocol):
    """A sink that takes spots too, as those of HDF5, ZMQ and PV Access do."""

    @abstractmethod
    def write_spots(self, spots: SeriesSpots) -> None:
        """Take spots; when this returns they are stored.

        Raises
        ------
        Exception
            If they are not.
        """


class MergingSink(Sink):
    """Merges the peaks of a series into spots, in the order in which frames are stored.

    A spot is written once it has ended. After a restart, what was open then follows from the frames
    that are stored: they are merged again, which gives the same spots, and those that are stored
    are not repeated. A frame that comes after a later one, as when a lost one is sent again, is
    stored, and not merged.

    Parameters
    ----------
    sink
        Where peaks and spots go.
    settings
        How peaks are merged; with the rotation angles, which no source states.
    coverage
        As of `SpotMerger`.
    stored
        Folder and name of the files that the sink writes; None if it keeps nothing.

    Raises
    ------
    ConfigurationError
        If the settings have no angles.
    """

    _merger: SpotMerger
    _begun: SeriesBegun
    _identity: ServiceIdentity

    def __init__(
        self,
        sink: SpotSink,
        settings: MergeSettings,
        *,
        coverage: float = 0.9,
        stored: tuple[Path, str] | None = None,
    ) -> None:
        self.sink = sink
        self.name, self.policy, self.gather_s = sink.name, sink.policy, sink.gather_s
        self._settings, self._coverage, self._stored = settings, coverage, stored
        self._rotation = Rotation.of(settings)
        self._late = 0
        if stored is not None:
            self.folder = stored[0]

    def check(self) -> None:
        """See `Sink.check`."""
        self.sink.check()

    def committed(self) -> dict[SeriesKey, NumberRanges]:
        """See `Sink.committed`."""
        return self.sink.committed()

    def open(self, identity: ServiceIdentity) -> None:
        """See `Sink.open`."""
        # Compiled, or loaded, before the first frame would wait for it.
        warm = self._new_merger()
        warm.add_arrays(0, [[0.0, 0.0]], [[0.1, 0.1]], [1.0], [0])
        warm.finish()
        self.sink.open(identity)
        self._identity = identity

    def begin(self, series: SeriesBegun) -> None:
        """Begin a series, or go on where an earlier run, or this one, has stopped."""
        self.sink.begin(series)
        self._begun = series
        self._merger = self._new_merger()
        self._late = 0
        if self._stored is not None:
            self._resume()

    def write(self, results: Sequence[FrameResult]) -> None:
        """Store results, then the spots that have ended with them."""
        self.sink.write(results)
        ended = []
        for result in results:
            peaks = result.peaks
            if peaks is not None and self._is_next(result.number):
                ended.append(
                    self._merger.add_arrays(
                        result.number, peaks.positions_px, peaks.intervals_px, peaks.intensities,
                        peaks.flags,
                    )
                )  # fmt: skip
        made_by = next((r.made_by for r in reversed(results) if r.made_by is not None), None)
        self._write_spots(Spots.joined(ended), made_by or self._identity)

    def end(self, series: SeriesEnded) -> None:
        """End the spots that are open, unless the series may go on after a restart."""
        if series.complete:
            self._write_spots(self._merger.finish(), self._identity)
        elif self._merger.open_spots:
            _log.info(
                "%s: %d spots had not ended when the service stopped; they are stored if it goes "
                "on with the series",
                series.series,
                self._merger.open_spots,
            )
        if self._late:
            _log.warning(
                "%s: %d frames came after later ones and are not merged", series.series, self._late
            )
        self.sink.end(series)

    def show(self, snapshot: ObjectSnapshot) -> None:
        """See `Sink.show`."""
        self.sink.show(snapshot)

    def close(self) -> None:
        """See `Sink.close`."""
        self.sink.close()

    def _new_merger(self) -> SpotMerger:
        return SpotMerger(self._rotation, self._settings, coverage=self._coverage)

    def _is_next(self, number: int) -> bool:
        last = self._merger.last_frame
        if last is None or number > last:
            return True
        self._late += 1
        return False

    def _resume(self) -> None:
        """Merge the frames that are stored of the series, and write the spots that are not."""
        ended = []
        for frame in self._stored_frames():
            if self._is_next(frame.number):
                columns: Any = frame.positions_px, frame.intervals_px
                columns += frame.intensities, frame.flags
                ended.append(self._merger.add_arrays(frame.number, *columns))
        if not ended:
            return
        spots = Spots.joined(ended)
        # Equal to the last bit, because the same numbers were added in the same order.
        there = {row.tobytes() for batch in self._stored_spots() for row in batch.spots.table}
        fresh = np.array([row.tobytes() not in there for row in spots.table], np.bool_)
        _log.info(
            "%s: goes on with %d open spots after frame %s; %d spots are stored",
            self._begun.series,
            self._merger.open_spots,
            self._merger.last_frame,
            len(spots) - int(fresh.sum()),
        )
        self._write_spots(spots.select(fresh), self._identity)

    def _key(self) -> SeriesKey:
        digest = self._identity.bundle_digest
        return SeriesKey.of(self._begun.series, self._begun.identity, digest)

    def _stored_frames(self) -> Iterator[StoredFrame]:
        assert self._stored is not None
        folder, name = self._stored
        key = self._key()
        for frame in read_results(folder, name=name):
            of = SeriesKey.of(frame.series, frame.series_identity, frame.bundle_digest)
            if of == key and frame.state == "done":
                yield frame

    def _stored_spots(self) -> Iterator[SeriesSpots]:
        assert self._stored is not None
        folder, name = self._stored
        key = self._key()
        for batch in read_spots(folder, name=name):
            if SeriesKey.of(batch.series, batch.identity, batch.bundle_digest) == key:
                yield batch

    def _write_spots(self, spots: Spots, made_by: ServiceIdentity) -> None:
        if len(spots):
            begun = self._begun
            self.sink.write_spots(
                SeriesSpots(begun.series, spots, begun.identity, made_by.bundle_digest)
            )
