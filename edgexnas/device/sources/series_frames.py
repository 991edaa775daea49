"""The frames of one series alone, for who wants no events."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import numpy.typing as npt

from edgexnas.device.sources.compression import FrameMemory
from edgexnas.device.sources.encoded_frames import EncodedFrame, encoded_events
from edgexnas.device.sources.events import (
    EventSource,
    SeriesEnd,
    SeriesStart,
    SourceFrame,
    SourcePosition,
    SourceTrouble,
)

__all__ = ["SeriesFrames"]

_logger = logging.getLogger(__name__)


class SeriesFrames:
    """Frames of the first series that a source brings; what could not be received is logged.

    Parameters
    ----------
    source
        Taken over: it is closed when the series has ended.

    Attributes
    ----------
    mask
        (H, W) bool, True where a pixel is unusable, known with the first frame; None if the
        source does not say.
    memory
        Where frames that come encoded are decoded, if it has a place; set it at any time.
    """

    def __init__(self, source: EventSource) -> None:
        self.source = source
        self.mask: npt.NDArray[np.bool_] | None = None
        self.memory: FrameMemory | None = None

    def numbered(self) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """Iterate over numbers and (H, W) pixels, as they come, until the series ends."""
        for event in self.placed():
            if isinstance(event, SourceFrame):
                yield event.number, event.pixels

    def placed(self) -> Iterator[SourceFrame | SourcePosition]:
        """Iterate over the frames and the positions that come apart from them."""
        series: str | None = None
        with closing(self.source):
            for arrived in encoded_events(self.source):
                event = (
                    arrived.decoded(self.memory) if isinstance(arrived, EncodedFrame) else arrived
                )
                if isinstance(event, SourceTrouble):
                    _logger.warning("%s", event.message)
                elif isinstance(event, SeriesStart) and series is None:
                    self.mask = event.mask
                # By frames: a start message may be lost, and the first frame says which series it
                # is.
                elif isinstance(event, SourceFrame) and series in (None, event.series):
                    series = event.series
                    yield event
                elif isinstance(event, SourcePosition):
                    if None in (series, event.series) or series == event.series:
                        yield event
                elif isinstance(event, (SeriesEnd, SeriesStart)) and series is not None:
                    return
