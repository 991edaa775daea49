"""What became of every frame: each ends in exactly one state, and the counts add up.

========== =====================================================================================
done       its result is with every sink that must have it
dropped    given up on purpose: a queue was full, it was too old, or it came after its turn
failed     it could not be decoded, processed or stored
duplicate  its number had come before, in this run or in one that ended before
lost       its number never came, and later ones did
pending    it is somewhere in the service
spilled    it waits on disk
========== =====================================================================================

received = done + dropped + failed + duplicate + pending + spilled; lost frames were not received.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from typing import Literal

from edgexnas.device.sinks.number_ranges import NumberRanges
from edgexnas.device.sinks.results import SeriesKey

__all__ = ["MOST_GAPS", "STATES", "Arrival", "EndState", "Ledger", "SeriesLedger"]

Arrival = Literal["fresh", "duplicate", "late"]
"""What a frame is when it comes; a late one is dropped, because later ones were delivered."""

EndState = Literal["done", "dropped", "failed"]

STATES = ("received", "done", "dropped", "duplicate", "failed", "lost", "pending", "spilled")
"""Keys of all counts."""

MOST_GAPS = 4096
"""Gaps of one series that are remembered; a frame that comes for an older one is a duplicate."""

MOST_SERIES = 64
"""Series whose numbers are remembered; of older ones the counts remain."""

_log = logging.getLogger("edgexnas.device.serving")


class SeriesLedger:
    """The frames of one series.

    Memory grows with the number of gaps, up to `MOST_GAPS`, and not with the number of frames.
    All methods may be called from any thread.

    Parameters
    ----------
    series
        Name of the series.
    first
        Number that the series begins with where that is known, so that missing first frames are
        lost; None for the first that comes.
    committed
        Numbers that an earlier run has stored; such a frame is a duplicate when it comes again.

    Attributes
    ----------
    stored_before
        How many these are.
    """

    def __init__(
        self,
        series: str,
        *,
        first: int | None = None,
        committed: Iterable[tuple[int, int]] = (),
    ) -> None:
        self.series = series
        self._lock = threading.Lock()
        self._seen = NumberRanges(committed)
        self._open = NumberRanges()
        self._spilled = 0
        self._distinct = self.stored_before = self._seen.total
        self._ended: Counter[str] = Counter()
        known = [number for number in (first, self._seen.first) if number is not None]
        self._start: int | None = min(known, default=None)
        self._stop = max((stop for _, stop in self._seen), default=self._start or 0)
        self._horizon = self._start or 0

    def receive(self, number: int) -> Arrival:
        """Note that a frame came: it is pending, unless it is a duplicate or late."""
        with self._lock:
            if number in self._seen:
                self._ended["duplicate"] += 1
                return "duplicate"
            self._seen.add(number)
            self._distinct += 1
            if len(self._seen) > MOST_GAPS:
                self._seen.merge_lowest(MOST_GAPS)
            if self._start is None:
                self._start = self._horizon = number
            self._start = min(self._start, number)
            self._stop = max(self._stop, number + 1)
            if number < self._horizon:
                self._ended["dropped"] += 1
                return "late"
            self._open.add(number)
            return "fresh"

    def end(self, number: int, state: EndState) -> None:
        """End a pending frame.

        Raises
        ------
        ValueError
            If the frame is not pending: it never came, or has ended already.
        """
        with self._lock:
            if not self._open.remove(number):
                raise ValueError(
                    f"frame {number} of {self.series} is not pending; end each frame once"
                )
            self._ended[state] += 1

    def refuse(self, number: int) -> None:
        """Count a frame that came after its series had ended: a duplicate, or dropped."""
        with self._lock:
            fresh = self._seen.add(number)
            self._distinct += fresh
            self._start = number if self._start is None else min(self._start, number)
            self._stop = max(self._stop, number + 1)
            self._ended["dropped" if fresh else "duplicate"] += 1

    def spill(self, number: int) -> None:
        """Note that a pending frame waits on disk."""
        with self._lock:
            self._require_open(number)
            self._spilled += 1

    def unspill(self, number: int) -> None:
        """Note that a frame is back from disk and pending."""
        with self._lock:
            self._require_open(number)
            self._spilled -= 1

    def close_gaps(self, number: int) -> None:
        """Give up the missing frames below `number`: they are late if they come after all."""
        with self._lock:
            self._horizon = max(self._horizon, number)

    def expect(self, frames_sent: int) -> None:
        """Note how many frames the series had, so that missing last ones are lost."""
        with self._lock:
            if self._start is None:
                self._start = 0
            self._stop = max(self._stop, frames_sent)

    def missing_from(self, number: int) -> int:
        """Return the smallest number from `number` on that has not come."""
        with self._lock:
            return self._seen.missing_from(number)

    @property
    def watermark(self) -> int | None:
        """Frames up to this number have all ended; None before the first."""
        with self._lock:
            if self._start is None:
                return None
            ended = self._seen.missing_from(self._horizon)
            if self._open.first is not None:
                ended = min(ended, self._open.first)
            return ended - 1 if ended > self._start else None

    @property
    def counts(self) -> Mapping[str, int]:
        """Number of frames in each of `STATES`."""
        with self._lock:
            open_ = self._open.total
            start = self._start if self._start is not None else self._stop
            counts = {
                "received": open_ + sum(self._ended.values()),
                **{state: self._ended[state] for state in ("done", "dropped", "duplicate")},
                "failed": self._ended["failed"],
                "lost": self._stop - start - self._distinct,
                "pending": open_ - self._spilled,
                "spilled": self._spilled,
            }
        return counts

    def _require_open(self, number: int) -> None:
        if number not in self._open:
            raise ValueError(f"frame {number} of {self.series} is not pending; receive it first")


class Ledger:
    """The frames of all series.

    Parameters
    ----------
    committed
        (start, stop) of frame numbers that earlier runs have stored, by series and bundle.
    bundle_digest
        SHA-256 of the file of the bundle that makes results.

    Attributes
    ----------
    bundle_digest
        As given; to be set anew when the bundle is replaced, and heeded by the next series.
    """

    def __init__(
        self,
        committed: Mapping[SeriesKey, Iterable[tuple[int, int]]] | None = None,
        bundle_digest: str = "",
    ) -> None:
        self.bundle_digest = bundle_digest
        self._lock = threading.Lock()
        self._committed = dict(committed or {})
        self._series: OrderedDict[tuple[str, str], SeriesLedger] = OrderedDict()
        self._retired: Counter[str] = Counter()
        self._nameless_failures = 0

    def remember(self, committed: Mapping[SeriesKey, Iterable[tuple[int, int]]]) -> None:
        """Learn what earlier runs have stored, before the first series."""
        self._committed = dict(committed)

    def series(self, name: str, identity: str = "", *, first: int | None = None) -> SeriesLedger:
        """Return the ledger of a series, made when it is asked for first.

        Parameters
        ----------
        name, identity
            As of `SeriesStart`.
        first
            As of `SeriesLedger`.
        """
        with self._lock:
            if (name, identity) not in self._series:
                key = SeriesKey.of(name, identity, self.bundle_digest)
                committed = self._committed.get(key, ())
                self._tell_of_stored(key, name, sum(stop - start for start, stop in committed))
                ledger = SeriesLedger(name, first=first, committed=committed)
                self._series[name, identity] = ledger
                self._retire()
            return self._series[name, identity]

    def known(self, name: str) -> SeriesLedger | None:
        """Return the ledger of the newest series of a name; None if there is none."""
        with self._lock:
            ledgers = reversed(self._series.values())
            return next((ledger for ledger in ledgers if ledger.series == name), None)

    def fail_unnumbered(self) -> None:
        """Count a frame that came and failed before its series or number was known."""
        with self._lock:
            self._nameless_failures += 1

    @property
    def counts(self) -> Mapping[str, int]:
        """Number of frames of all series in each of `STATES`."""
        with self._lock:
            kept = list(self._series.values())
            total = self._retired.copy()
            total.update(received=self._nameless_failures, failed=self._nameless_failures)
        for ledger in kept:
            total.update(ledger.counts)
        return {state: total[state] for state in STATES}

    def _tell_of_stored(self, key: SeriesKey, name: str, stored: int) -> None:
        """Say what is stored of the series, and what under its name alone, which may be another."""
        if stored and key.identity:
            _log.info("%d frames of %s were stored by earlier runs", stored, name)
        elif stored:
            _log.warning(
                "%d frames of a series named %s were stored by earlier runs and are left out; its "
                "source does not say what tells it from another of that name, so that the name "
                "counts",
                stored,
                name,
            )
        nameless = SeriesKey.of(name, "", "").series
        unknown = [
            sum(stop - start for start, stop in numbers)
            for other, numbers in self._committed.items()
            if other != key and other.series == nameless
            # Those of another bundle alone are known well enough.
            if key.identity or not other.bundle_digest
        ]
        if unknown:
            _log.warning(
                "%d frames of a series named %s are stored without what identifies it and its "
                "bundle, as older versions did; they are left as they are, and the frames of this "
                "series are processed",
                sum(unknown),
                name,
            )

    def _retire(self) -> None:
        """Keep only the counts of the oldest series that have no open frames."""
        while len(self._series) > MOST_SERIES:
            oldest, ledger = next(iter(self._series.items()))
            counts = ledger.counts
            if counts["pending"] or counts["spilled"]:
                return
            self._retired.update(counts)
            del self._series[oldest]
