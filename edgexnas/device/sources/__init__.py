"""Where a service's frames come from, behind one form of URL.

`open_event_source` is the way in. Each kind of source imports its own library when it is opened.
"""

from edgexnas.device.sources.events import (
    EventSource,
    SeriesEnd,
    SeriesStart,
    SourceEvent,
    SourceFrame,
    SourcePosition,
    SourceTrouble,
)
from edgexnas.device.sources.opening import open_event_source

__all__ = [
    "EventSource",
    "SeriesEnd",
    "SeriesStart",
    "SourceEvent",
    "SourceFrame",
    "SourcePosition",
    "SourceTrouble",
    "open_event_source",
]
