"""Open what a URL names."""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib import import_module
from typing import Any, TypeGuard

from edgexnas.device.sources.events import EventSource
from edgexnas.device.sources.source_url import SourceUrl
from edgexnas.errors import ConfigurationError

__all__ = ["is_event_source", "open_event_source"]

_SOURCES = {
    "file": ("files.source", "FileSource"),
    "pva": ("pva.source", "PvaSource"),
    "simplon": ("simplon.source", "SimplonSource"),
    "sim": ("simulated", "SimulatedSource"),
}
"""Scheme → module and class; a module is imported when a URL names it."""


def open_event_source(
    source: str | os.PathLike[str] | Iterable[Any] | EventSource, **options: Any
) -> EventSource:
    """Open a source of frames; nothing is connected or simulated before `events` is iterated.

    Parameters
    ----------
    source
        * a path, or ``file:///path.h5?rate=200&follow=1``: an HDF5 or NeXus file, or anything
          else that `edgexnas.frames.open_frames` reads;
        * ``pva://CHANNEL?queue=64&positions=OTHER``: NTNDArray over EPICS PV Access;
        * ``simplon://HOST:31001?exclusive=1``: DECTRIS Stream V2 over ZMQ;
        * ``sim://hedm?shape=1024x1024&rate=200&frames=1000`` or ``sim://ptycho?...``: a detector
          that is simulated;
        * an iterable of (H, W) arrays, of pairs (array, (row, col) in metres), or of events;
        * an `EventSource`, which is returned as it is.
    **options
        Parameters as in the URL.

    Raises
    ------
    ConfigurationError
        If the URL has another scheme, or a parameter is unknown or wrong.
    SourceError
        If the place cannot be opened.
    MissingDependencyError
        If the library for this kind of source is not installed; the message says which extra
        brings it.
    """
    if isinstance(source, (str, os.PathLike)):
        return _open_url(SourceUrl.parse(os.fspath(source)), options)
    # Before iterables: a source of one's own may have __iter__ as well.
    if is_event_source(source):
        if options:
            raise ConfigurationError(
                f"{source.url} is open already and takes no {next(iter(options))!r}; leave it out"
            )
        return source
    if not isinstance(source, Iterable):
        raise ConfigurationError(
            f"a source of {type(source).__name__} cannot be opened; specify a URL, a path or an "
            "iterable of frames"
        )
    from edgexnas.device.sources.iterable import IterableSource

    return IterableSource.open(source, options)


def _open_url(url: SourceUrl, options: dict[str, Any]) -> EventSource:
    if url.scheme not in _SOURCES:
        raise ConfigurationError(
            f"{url.text} has the unknown scheme {url.scheme}://; specify one of "
            f"{', '.join(f'{scheme}://' for scheme in _SOURCES)}"
        )
    module, name = _SOURCES[url.scheme]
    source_class = getattr(import_module(f"{__package__}.{module}"), name)
    opened: EventSource = source_class.open(url, options)
    return opened


def is_event_source(source: object) -> TypeGuard[EventSource]:
    """Distinguish an open source from other iterables."""
    return all(callable(getattr(source, name, None)) for name in ("events", "close", "status"))
