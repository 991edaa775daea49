"""The streaming service: from a source's frames to results in files and on the network.

`edgexnas serve` runs it from a configuration; in a program::

    from edgexnas.device import Predictor
    from edgexnas.device.serving import CallbackSink, Hdf5Sink, Service
    from edgexnas.device.sources import open_event_source

    with Predictor("bragg.edgex", trust="keys/") as predictor:
        source = open_event_source("pva://GE1:Pva1:Image")
        Service(predictor, source, [Hdf5Sink("results"), CallbackSink(print)]).run()

Names are imported on first use, so that a sink's library is loaded by who uses that sink.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgexnas.device.serving.callback_sink import CallbackSink
    from edgexnas.device.serving.configuration import ServeConfiguration, load_configuration
    from edgexnas.device.serving.hdf5_sink import Hdf5Sink
    from edgexnas.device.serving.opening import open_service
    from edgexnas.device.serving.pva_sink import PvaSink
    from edgexnas.device.serving.results import (
        FrameResult,
        ObjectSnapshot,
        SeriesBegun,
        SeriesEnded,
        ServiceIdentity,
    )
    from edgexnas.device.serving.results_file import StoredFrame, read_results
    from edgexnas.device.serving.service import Service, ServiceError
    from edgexnas.device.serving.settings import PipelineSettings
    from edgexnas.device.serving.sink import Sink
    from edgexnas.device.serving.status import ServiceStatus
    from edgexnas.device.serving.zmq_sink import ZmqSink

__all__ = [
    "CallbackSink",
    "FrameResult",
    "Hdf5Sink",
    "ObjectSnapshot",
    "PipelineSettings",
    "PvaSink",
    "SeriesBegun",
    "SeriesEnded",
    "ServeConfiguration",
    "Service",
    "ServiceError",
    "ServiceIdentity",
    "ServiceStatus",
    "Sink",
    "StoredFrame",
    "ZmqSink",
    "load_configuration",
    "open_service",
    "read_results",
]

_MODULES = {
    "CallbackSink": "callback_sink",
    "FrameResult": "results",
    "Hdf5Sink": "hdf5_sink",
    "ObjectSnapshot": "results",
    "PipelineSettings": "settings",
    "PvaSink": "pva_sink",
    "SeriesBegun": "results",
    "SeriesEnded": "results",
    "ServeConfiguration": "configuration",
    "Service": "service",
    "ServiceError": "service",
    "ServiceIdentity": "results",
    "ServiceStatus": "status",
    "Sink": "sink",
    "StoredFrame": "results_file",
    "ZmqSink": "zmq_sink",
    "load_configuration": "configuration",
    "open_service": "opening",
    "read_results": "results_file",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
