"""A scan on its way through a predictor: patches one chunk after the other, and their image."""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edgexnas.device.lane import Outcome
from edgexnas.device.ptycho.announcement import scan_announcement
from edgexnas.device.ptycho.lanes import ScanLane
from edgexnas.device.ptycho.refining import RefinedScan
from edgexnas.device.ptycho.scan import ScanChunk
from edgexnas.device.ptycho.stitching import ObjectStitcher, StitchCounts
from edgexnas.errors import EngineError
from edgexnas.familiarity.pattern_checks import NOT_LOOKED_AT
from edgexnas.ptycho import PATTERN_SIZE, ObjectImage, ObjectPatches, PlacedPatches, Refinement

__all__ = ["PatchStream"]


class PatchStream(Iterator[PlacedPatches]):
    """Iterates over the patches of a scan and stitches them meanwhile.

    `image` and `counts` may be asked at any time, from other threads too, and after the end or a
    failure of the scan.

    Parameters
    ----------
    chunks
        Patterns that the lane has checked, with their positions.
    lane
        What makes patches of them.
    stitcher
        An empty one.
    read_ahead
        Whether to submit patterns before the patches of those before them are taken.
    refined
        The patterns that the lane keeps, to refine the object with at the end; None for not.

    Attributes
    ----------
    familiarity
        How many of the patterns that were looked at are unlike the training data, and by what.
    """

    def __init__(
        self,
        chunks: Iterator[ScanChunk],
        lane: ScanLane,
        stitcher: ObjectStitcher,
        *,
        read_ahead: bool,
        refined: RefinedScan | None = None,
    ) -> None:
        self._refined = refined
        self._refinement: Refinement | None = None
        if refined is not None:
            stitcher.on_stitched = refined.place
        self._chunks = chunks
        self._scan = lane
        self._stitcher = stitcher
        self._read_ahead = read_ahead
        self._pending: deque[ScanChunk] = deque()
        self._announcement = scan_announcement("scan")
        self.familiarity = self._announcement.tally
        self._failure: Exception | None = None
        self._over = False
        # For the stitcher alone, so that `image` never waits for a source that is slow.
        self._lock = threading.Lock()
        # Whoever drops a stream half way gives the GPU's memory back too.
        weakref.finalize(self, lane.close).atexit = False

    def __iter__(self) -> PatchStream:
        return self

    def __next__(self) -> PlacedPatches:
        """Predict and stitch the next patterns of the scan; after the last, refine the object.

        Raises
        ------
        StopIteration
            At the end of the scan; patches that still wait for a position are missing now.
        InputError, SourceError, EngineError
            As in `PtychoPredictor.stream`.
        RefinementError
            After the last patterns, if the object cannot be refined; `image` and `save` give the
            stitched one.
        """
        while True:
            self._read()
            if not self._pending:
                break
            placed = self._placed(self._pending.popleft())
            if len(placed):
                return placed
        self._scan.close()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            self._let_go()
            raise failure
        with self._lock:
            self._stitcher.finish()
        self._refine()
        raise StopIteration

    def image(self) -> ObjectImage:
        """Return the object as it stands now: a copy that later patches leave alone.

        Raises
        ------
        EngineError
            If the object is on a GPU that has failed.
        """
        with self._lock:
            return self._stitcher.image()

    @property
    def refinement(self) -> Refinement | None:
        """The object refined, with residual and time of each sweep; None before the scan's end.

        None as well without `refine`, and where nothing was stitched. `image` is the network's
        object all the same.
        """
        return self._refinement

    def save(self, path: str | os.PathLike[str]) -> tuple[Path, ...]:
        """Write the object as it stands now, and pictures of its phase and amplitude.

        Once it is refined, that is the refined object, with the network's beside it.

        Parameters
        ----------
        path
            NAME.npz or NAME.h5, and pictures beside it; see
            `edgexnas.device.ptycho.object_file.save_object`. The mean phase of the object is
            turned to 0, since a constant is not known.

        Returns
        -------
        The paths of the files, each of which appears whole.

        Raises
        ------
        ConfigurationError
            If the suffix is another, or the folder or disk cannot be written.
        MissingDependencyError
            If h5py is not installed and HDF5 is asked for.
        EngineError
            If the object is on a GPU that has failed.
        """
        # Imported late: a stream that is only looked at needs none of it.
        from edgexnas.device.ptycho.object_file import save_object

        return save_object(self.image(), Path(path), refinement=self._refinement)

    @property
    def counts(self) -> StitchCounts:
        """What became of the patches so far."""
        with self._lock:
            return self._stitcher.counts

    def leave_gpu(self) -> None:
        """Keep the image in host memory, for the GPU's is given back; do nothing if it is there."""
        with self._lock:
            try:
                self._stitcher.leave_gpu()
            except EngineError:
                # A GPU that has failed has no image any more, which `image` says.
                self._stitcher.close()

    def _refine(self) -> None:
        # The end of a scan may be asked for again.
        refined = self._let_go()
        if refined is not None:
            self._refinement = refined.refine(self.image())

    def _let_go(self) -> RefinedScan | None:
        """Give away what keeps patterns: who keeps the stream for its image keeps none."""
        refined, self._refined = self._refined, None
        self._stitcher.on_stitched = None
        return refined

    @property
    def _most_pending(self) -> int:
        lane = self._scan.lane
        # A live source is not read ahead: results of what is here must not wait for what is not.
        return 1 if lane is None or not self._read_ahead else lane.ahead

    def _read(self) -> None:
        """Take chunks from the source and submit them, until enough are pending or none is left."""
        while not self._over and len(self._pending) < self._most_pending:
            try:
                chunk = next(self._chunks)
                if chunk.patterns and self._scan.lane is not None:
                    self._scan.lane.submit(chunk.patterns)
            except StopIteration:
                self._over = True
            except Exception as error:
                # What came before the fault is delivered first.
                self._failure, self._over = error, True
            else:
                self._pending.append(chunk)

    def _placed(self, chunk: ScanChunk) -> PlacedPatches:
        """Stitch a chunk up to the first pattern that cannot be used."""
        nothing = np.empty((0, PATTERN_SIZE, PATTERN_SIZE), np.float32)
        outcome = Outcome(ObjectPatches(nothing, nothing))
        try:
            if chunk.patterns and self._scan.lane is not None:
                outcome = self._scan.lane.result()
            patches, first = outcome.results, min(outcome.faults, default=None)
            if first is not None:
                reasons = None if patches.reasons is None else patches.reasons[:first]
                patches = ObjectPatches(
                    patches.amplitude[:first], patches.phase_rad[:first], reasons=reasons
                )
            self._tell(patches)
            with self._lock:
                placed = self._stitch(chunk, patches)
        except Exception:
            self._end(None)
            self._let_go()
            self._scan.close()
            raise
        if first is not None:
            self._end(outcome.faults[first])
        return placed

    def _tell(self, patches: ObjectPatches) -> None:
        """Log that the scan is unlike the training data, before anybody gets a patch of it."""
        reasons = patches.reasons
        if reasons is not None:
            self.familiarity.add(reasons[reasons != NOT_LOOKED_AT])
            self._announcement.look()

    def _end(self, failure: Exception | None) -> None:
        """End the scan here, whatever comes behind."""
        self._pending.clear()
        self._failure, self._over = failure, True

    def _stitch(self, chunk: ScanChunk, patches: ObjectPatches) -> PlacedPatches:
        """Replay a chunk in the order in which patterns and readings came."""
        count = len(patches)
        positions = chunk.positions_px[:count].copy()
        readings = iter(chunk.readings)
        reading = next(readings, None)
        # One more than patterns: readings may come after the last of them.
        for index in range(count + 1):
            # In the order of arrival, or the image would depend on how patterns were batched.
            while reading is not None and reading[0] == index:
                self._stitcher.place(*reading[1])
                reading = next(readings, None)
            if index < count:
                number, _ = chunk.patterns[index]
                positions[index] = self._stitcher.add(
                    number, patches.amplitude[index], patches.phase_rad[index], positions[index]
                )
        numbers = np.array([pattern.number for pattern in chunk.patterns[:count]], np.int64)
        return PlacedPatches(
            patches.amplitude, patches.phase_rad, positions, numbers, reasons=patches.reasons
        )
