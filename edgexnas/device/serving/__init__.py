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

from typing import TYPE_CHECKING

from edgexnas.lazy_names import lazy_names

if TYPE_CHECKING:
    from edgexnas.device.monitoring.status import ServiceStatus as ServiceStatus
    from edgexnas.device.serving.configuration import ServeConfiguration as ServeConfiguration
    from edgexnas.device.serving.configuration import load_configuration as load_configuration
    from edgexnas.device.serving.opening import open_service as open_service
    from edgexnas.device.serving.service import Service as Service
    from edgexnas.device.serving.service import ServiceError as ServiceError
    from edgexnas.device.serving.settings import PipelineSettings as PipelineSettings
    from edgexnas.device.sinks.callback_sink import CallbackSink as CallbackSink
    from edgexnas.device.sinks.hdf5_sink import Hdf5Sink as Hdf5Sink
    from edgexnas.device.sinks.protocol import Sink as Sink
    from edgexnas.device.sinks.pva_sink import PvaSink as PvaSink
    from edgexnas.device.sinks.results import FrameResult as FrameResult
    from edgexnas.device.sinks.results import ObjectSnapshot as ObjectSnapshot
    from edgexnas.device.sinks.results import SeriesBegun as SeriesBegun
    from edgexnas.device.sinks.results import SeriesEnded as SeriesEnded
    from edgexnas.device.sinks.results import ServiceIdentity as ServiceIdentity
    from edgexnas.device.sinks.results_file import StoredFrame as StoredFrame
    from edgexnas.device.sinks.results_file import read_results as read_results
    from edgexnas.device.sinks.tiled_sink import TiledSink as TiledSink
    from edgexnas.device.sinks.zmq_sink import ZmqSink as ZmqSink

__getattr__, __dir__, __all__ = lazy_names(__name__)
