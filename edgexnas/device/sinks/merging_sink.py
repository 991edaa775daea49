"""A sink that merges peaks into spots and gives both to the sink that it wraps."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgexnas.device.sinks.number_ranges import NumberRanges
from edgexnas.device.sinks.protocol import Sink
from edgexnas.device.sinks.results import (
    FrameResult,
    MergeMark,
    MergeState,
    ObjectSnapshot,
    SeriesBegun,
    SeriesEnded,
    SeriesKey,
    SeriesSpots,
    ServiceIdentity,
)
from edgexnas.device.sinks.results_file import StoredMerge, read_merge
from edgexnas.errors import ConfigurationError
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
    that are stored, by whichever bundle: they are merged again, which gives the same spots, and
    those that are stored are not repeated. A bundle that does a stored series from its beginning
    begins anew. A frame that comes after a later one, as when a lost one is sent again, is stored,
    and not merged; nor is a peak whose position or intensity is not finite.

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
    _last: int | None
    _there: Spots
    _joined: bool
    _whole: bool

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
        self._late = self._left_out = 0
        self._seen: set[SeriesKey] = set()
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
        self._last = None
        self._late = self._left_out = 0
        self._there = Spots.joined([])
        self._joined = self._stored is None
        self._whole = False

    def write(self, results: Sequence[FrameResult]) -> None:
        """Store results, then the spots that have ended with them.

        Raises
        ------
        ConfigurationError
            If the series was merged by other settings so far.
        """
        if not self._joined:
            self._join(results[0])
        self.sink.write(results)
        ended = []
        for result in results:
            peaks = result.peaks
            if peaks is not None:
                ended += self._add(
                    result.number, peaks.positions_px, peaks.intervals_px, peaks.intensities,
                    peaks.flags,
                )  # fmt: skip
        made_by = next((r.made_by for r in reversed(results) if r.made_by is not None), None)
        self._write_spots(Spots.joined(ended), made_by or self._identity)

    def end(self, series: SeriesEnded) -> None:
        """End the spots that are open, unless the series may go on after a restart.

        Where a service has stopped before it could, the series' end alone is enough, if all its
        frames are stored.
        """
        if series.complete:
            if not self._joined:
                self._join(None)
            if not self._whole:
                self._write_spots(self._merger.finish(), self._identity, state="ended")
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
        if self._left_out:
            _log.warning(
                "%s: %d peaks have a position or an intensity that is not finite and are not "
                "merged",
                series.series,
                self._left_out,
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

    def _add(self, number: int, *columns: Any) -> list[Spots]:
        """Merge the peaks of a frame, unless it comes late; give the spots that have ended."""
        if self._last is not None and number <= self._last:
            self._late += 1
            return []
        self._last = number
        positions, intervals, intensities, flags = columns
        # One of them would be refused with all others, for good: it is stored by now.
        sound = np.isfinite(positions).all(axis=1) & np.isfinite(intensities)
        if not sound.all():
            self._left_out += len(sound) - int(sound.sum())
            positions, intervals = positions[sound], intervals[sound]
            intensities, flags = intensities[sound], flags[sound]
        return [self._merger.add_arrays(number, positions, intervals, intensities, flags)]

    def _join(self, first: FrameResult | None) -> None:
        """Go on with what is stored of the series, or begin it.

        Parameters
        ----------
        first
            The first result; None if all frames were stored by earlier runs.
        """
        made_by = self._identity if first is None else first.made_by or self._identity
        digest = made_by.bundle_digest
        key = SeriesKey.of(self._begun.series, self._begun.identity, "")
        # Only where there are frames: all results of the folder would be read.
        of_others = (of._replace(bundle_digest="") for of in self.sink.committed())
        merge = None
        if key in self._seen or key in of_others:
            assert self._stored is not None
            folder, name = self._stored
            merge = read_merge(folder, key.series, key.identity, name=name)
        ended, digests = [], set()
        for frame in () if merge is None else merge.frames():
            if frame is None:
                ended.append(self._merger.finish())
            elif frame.state == "done":
                digests.add(frame.bundle_digest)
                columns: Any = frame.positions_px, frame.intervals_px
                columns += frame.intensities, frame.flags
                ended += self._add(frame.number, *columns)
        state: MergeState | None = None
        is_next = first is not None and (self._last is None or first.number > self._last)
        if first is None and digest not in digests:
            # A bundle of earlier runs has stored all of it, and another one has begun anew.
            self._whole = True
        elif not digests or not (digest in digests or is_next):
            # Another bundle has the series from its beginning.
            self._merger, self._last, ended = self._new_merger(), None, []
            self._late = self._left_out = 0
            state = "begun"
        else:
            assert merge is not None
            self._go_on(merge, len(digests))
            if merge.mark is None or (merge.mark.state == "ended" and is_next):
                state = "resumed"
            self._whole = first is None and merge.mark is not None and merge.mark.state == "ended"
        if not self._whole:
            self._write_spots(Spots.joined(ended), made_by, state=state)
        self._joined = True
        self._seen.add(key)

    def _go_on(self, merge: StoredMerge, bundles: int) -> None:
        if merge.mark is not None and merge.mark.settings != self._settings:
            raise ConfigurationError(
                f"{self._begun.series} was merged by {merge.mark.settings} so far, and is to go on "
                f"by {self._settings}; specify the same, or another folder"
            )
        self._there = merge.spots()
        _log.info(
            "%s: goes on with %d open spots after frame %s; %d spots are stored%s",
            self._begun.series,
            self._merger.open_spots,
            self._last,
            len(self._there),
            f", by {bundles} bundles" if bundles > 1 else "",
        )

    def _write_spots(
        self, spots: Spots, made_by: ServiceIdentity, *, state: MergeState | None = None
    ) -> None:
        """Write those spots that are not stored, and a mark if told."""
        if len(self._there):
            spots, self._there = _unstored(spots, self._there, self._settings.tolerance_px)
        mark = None
        if state is not None and self._stored is not None:
            mark = MergeMark(state, self._settings, self._coverage)
        if len(spots) or mark is not None:
            begun = self._begun
            self.sink.write_spots(
                SeriesSpots(begun.series, spots, begun.identity, made_by.bundle_digest, mark)
            )


def _unstored(spots: Spots, stored: Spots, tolerance_px: float) -> tuple[Spots, Spots]:
    """Leave out spots that are stored; give the others, and what is stored beside.

    A spot is the nearest one on the same frames. Its other numbers may differ: how uncertain an
    angle is follows from all spots before it, and frames may have come in another order.
    """
    fresh, others = np.ones(len(spots), np.bool_), np.ones(len(stored), np.bool_)
    rows_on: dict[tuple[int, int], list[int]] = {}
    for row, (first, last) in enumerate(stored.frames.tolist()):
        rows_on.setdefault((first, last), []).append(row)
    pairs: list[tuple[float, int, int]] = []
    for row, (first, last) in enumerate(spots.frames.tolist()):
        near = np.array(rows_on.get((first, last), ()), np.intp)
        apart = np.hypot(*(stored.positions_px[near] - spots.positions_px[row]).T)
        close = apart <= tolerance_px
        pairs += zip(apart[close].tolist(), [row] * int(close.sum()), near[close], strict=True)
    for _, row, other in sorted(pairs):
        if fresh[row] and others[other]:
            fresh[row] = others[other] = False
    return spots.select(fresh), stored.select(others)
