"""A scan on its way through a predictor: patches one chunk after the other, and their image."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from edgexnas.device.scan_source import ScanChunk
from edgexnas.device.stitching import ObjectStitcher, StitchCounts
from edgexnas.ptycho import ObjectImage, ObjectPatches, PlacedPatches

__all__ = ["PatchStream"]


class PatchStream(Iterator[PlacedPatches]):
    """Iterates over the patches of a scan and stitches them meanwhile.

    `image` and `counts` may be asked at any time, from other threads too, and after the end or a
    failure of the scan.

    Parameters
    ----------
    chunks
        Checked patterns with their positions.
    predict
        From (n, 64, 64) float32 counts to patches.
    stitcher
        An empty one.
    """

    def __init__(
        self,
        chunks: Iterator[ScanChunk],
        predict: Callable[[ScanChunk], ObjectPatches],
        stitcher: ObjectStitcher,
    ) -> None:
        self._chunks = chunks
        self._predict = predict
        self._stitcher = stitcher
        self._lock = threading.Lock()

    def __iter__(self) -> PatchStream:
        return self

    def __next__(self) -> PlacedPatches:
        """Predict and stitch the next patterns of the scan.

        Raises
        ------
        StopIteration
            At the end of the scan; patches that still wait for a position are missing now.
        InputError, SourceError, EngineError
            As in `PtychoPredictor.stream`.
        """
        for chunk in self._chunks:
            patches = self._predict(chunk)
            with self._lock:
                placed = self._stitch(chunk, patches)
            if len(placed):
                return placed
        with self._lock:
            self._stitcher.finish()
        raise StopIteration

    def image(self) -> ObjectImage:
        """Return the object as it stands now: a copy that later patches leave alone."""
        with self._lock:
            return self._stitcher.image()

    @property
    def counts(self) -> StitchCounts:
        """What became of the patches so far."""
        with self._lock:
            return self._stitcher.counts

    def _stitch(self, chunk: ScanChunk, patches: ObjectPatches) -> PlacedPatches:
        """Replay a chunk in the order in which patterns and readings came."""
        values, positions = patches.values, chunk.positions_px.copy()
        readings = iter(chunk.readings)
        reading = next(readings, None)
        for index in range(len(values) + 1):
            while reading is not None and reading[0] == index:
                self._stitcher.place(*reading[1])
                reading = next(readings, None)
            if index < len(values):
                number = int(chunk.numbers[index])
                positions[index] = self._stitcher.add(number, values[index], positions[index])
        return PlacedPatches(patches.amplitude, patches.phase_rad, positions, chunk.numbers)
