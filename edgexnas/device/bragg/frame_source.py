"""Where a predictor's frames come from."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeGuard

import numpy as np
import numpy.typing as npt

from edgexnas.device.sources import EventSource, open_event_source
from edgexnas.device.sources.opening import is_event_source
from edgexnas.device.sources.series_frames import SeriesFrames
from edgexnas.errors import ConfigurationError, SourceError
from edgexnas.frames import ArrayFrames, FrameSeries, open_frames

__all__ = ["FrameSource", "close_opened", "open_source"]

FrameSource = str | os.PathLike[str] | EventSource | FrameSeries | Iterable[npt.ArrayLike]
"""A path, a URL, an open source or series, or frames in the order in which they were taken."""


def open_source(source: FrameSource) -> FrameSeries | SeriesFrames | Iterator[npt.ArrayLike]:
    """Open a path or a URL, check a series, or start to iterate.

    Raises
    ------
    ConfigurationError
        If it is none of these, or the URL is wrong.
    SourceError
        If a path cannot be opened, or the series is empty.
    MissingDependencyError
        If the library for a URL is not installed.
    """
    if isinstance(source, (str, os.PathLike)):
        if "://" in os.fspath(source):
            return SeriesFrames(open_event_source(source))
        return open_frames(Path(source))
    if is_event_source(source):
        return SeriesFrames(source)
    # By its names and not its class, so that own series need not inherit.
    if _is_series(source):
        if not len(source):
            raise SourceError(f"{source.source} has no frames; specify a series with at least one")
        return source
    # Before iterables, which arrays are too: (n, H, W) can be read in any order.
    if isinstance(source, np.ndarray):
        if not source.size:
            raise SourceError(f"an array of shape {source.shape} has no frames; specify (n, H, W)")
        return ArrayFrames(source)
    if not isinstance(source, Iterable):
        raise ConfigurationError(
            f"source is {type(source).__name__}; specify a path, a FrameSeries or an iterable of "
            "frames"
        )
    return iter(source)


def close_opened(
    opened: FrameSeries | SeriesFrames | Iterator[npt.ArrayLike], source: FrameSource
) -> None:
    """Close what `open_source` has opened, but not what was given open."""
    if isinstance(opened, SeriesFrames):
        opened.source.close()
    elif not isinstance(opened, Iterator) and opened is not source:
        opened.close()


def _is_series(source: object) -> TypeGuard[FrameSeries]:
    """Tell a `FrameSeries`, whose frames can be read in any order, from other iterables."""
    names = ("source", "shape", "dtype", "mask", "__len__", "__getitem__")
    return all(hasattr(source, name) for name in names)
