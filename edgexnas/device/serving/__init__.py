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
    from edgexnas.device.monitoring.status import ServiceStatus
    from edgexnas.device.serving.configuration import ServeConfiguration, load_configuration
    from edgexnas.device.serving.opening import open_service
    from edgexnas.device.serving.service import Service, ServiceError
    from edgexnas.device.serving.settings import PipelineSettings
    from edgexnas.device.sinks.callback_sink import CallbackSink
    from edgexnas.device.sinks.hdf5_sink import Hdf5Sink
    from edgexnas.device.sinks.protocol import Sink
    from edgexnas.device.sinks.pva_sink import PvaSink
    from edgexnas.device.sinks.results import (
        FrameResult,
        ObjectSnapshot,
        SeriesBegun,
        SeriesEnded,
        ServiceIdentity,
    )
    from edgexnas.device.sinks.results_file import StoredFrame, read_results
    from edgexnas.device.sinks.zmq_sink import ZmqSink

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
    "CallbackSink": "edgexnas.device.sinks.callback_sink",
    "FrameResult": "edgexnas.device.sinks.results",
    "Hdf5Sink": "edgexnas.device.sinks.hdf5_sink",
    "ObjectSnapshot": "edgexnas.device.sinks.results",
    "PipelineSettings": "edgexnas.device.serving.settings",
    "PvaSink": "edgexnas.device.sinks.pva_sink",
    "SeriesBegun": "edgexnas.device.sinks.results",
    "SeriesEnded": "edgexnas.device.sinks.results",
    "ServeConfiguration": "edgexnas.device.serving.configuration",
    "Service": "edgexnas.device.serving.service",
    "ServiceError": "edgexnas.device.serving.service",
    "ServiceIdentity": "edgexnas.device.sinks.results",
    "ServiceStatus": "edgexnas.device.monitoring.status",
    "Sink": "edgexnas.device.sinks.protocol",
    "StoredFrame": "edgexnas.device.sinks.results_file",
    "ZmqSink": "edgexnas.device.sinks.zmq_sink",
    "load_configuration": "edgexnas.device.serving.configuration",
    "open_service": "edgexnas.device.serving.opening",
    "read_results": "edgexnas.device.sinks.results_file",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
