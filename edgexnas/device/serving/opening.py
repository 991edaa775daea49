"""Open a service as a configuration says."""

from __future__ import annotations

import importlib
import ipaddress
import logging
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from edgexnas.bundle.shipped import located, within
from edgexnas.detector_mask import read_mask
from edgexnas.device.serving.bundle_watch import BundleWatch
from edgexnas.device.serving.configuration import (
    CallbackSinkSettings,
    Hdf5SinkSettings,
    PvaSinkSettings,
    ServeConfiguration,
    SinkSettings,
    TiledSinkSettings,
    ZmqSinkSettings,
    load_configuration,
)
from edgexnas.device.serving.service import Service
from edgexnas.device.sinks.callback_sink import CallbackSink
from edgexnas.device.sinks.protocol import Sink
from edgexnas.device.sources import open_event_source
from edgexnas.device.sources.source_url import SourceUrl
from edgexnas.errors import (
    BundleError,
    ConfigurationError,
    EdgexnasError,
    InputError,
    MissingDependencyError,
    SourceError,
)
from edgexnas.toml_files import line_of

if TYPE_CHECKING:
    from edgexnas.bundle import Manifest
    from edgexnas.device.bragg.predictor import PeakPredictor
    from edgexnas.device.bundle_predictor import PredictorOptions
    from edgexnas.device.ptycho.predictor import PtychoPredictor

__all__ = ["OpenedService", "open_service"]

_log = logging.getLogger("edgexnas.device.serving")


@dataclass(slots=True)
class OpenedService:
    """A service that can run, and what is to be closed after it.

    Attributes
    ----------
    path
        The configuration.
    service
        The service, with its views.
    sinks
        Its sinks, not open yet.
    port
        Of the monitoring page; 0 for none.
    bundle_watch
        Lets a newer bundle take over; not started.
    """

    path: Path
    service: Service
    sinks: list[Sink]
    port: int
    bundle_watch: BundleWatch
    _closing: ExitStack

    def check(self) -> None:
        """Find out whether sinks could open, the port is free, and the source's host is known.

        An address that other machines can reach is logged as a warning.

        Raises
        ------
        ConfigurationError
            If not; the message names file and line.
        SourceError
            If the source's host has no address now; it may have one later.
        """
        with _at(self.path, "source"):
            _check_host(self.service.identity.source)
        for index, sink in enumerate(self.sinks):
            with _at(self.path, "sinks", index):
                try:
                    sink.check()
                except OSError as error:
                    raise ConfigurationError(f"{sink.name} cannot be used: {error}") from error
            _warn_of_public_bind(sink)
        if self.port:
            with _at(self.path, "monitoring", "port"):
                _check_port(self.port)

    def close(self) -> None:
        """Close views, the predictor and the source; closing again does nothing."""
        for view in self.service.views:
            view.close()
        self._closing.close()


def open_service(path: Path) -> OpenedService:
    """Read a configuration, verify the bundle, prove the engine, open the source, make the views.

    Parameters
    ----------
    path
        TOML file; see `configuration`.

    Raises
    ------
    ConfigurationError
        If the configuration, the bundle or a library that it asks for is wrong; each line of the
        message names file and line.
    EdgexnasError
        If a part cannot be opened, and why.
    """
    configuration = load_configuration(path)
    folder = path.absolute().parent
    with ExitStack() as closing:
        with _at(path, "pipeline"):
            settings = configuration.pipeline_settings(folder)
        with _at(path, "source"):
            source = open_event_source(_from(folder, configuration.source))
        closing.callback(source.close)
        with _at(path, "predictor"):
            predictor = _predictor(configuration, folder)
        closing.callback(predictor.close)
        sinks = []
        for index, given in enumerate(configuration.sinks):
            with _at(path, "sinks", index):
                sinks.append(_merging(_sink(given, folder), given, folder, predictor.manifest))
        needed = [
            sink.name
            for sink, given in zip(sinks, configuration.sinks, strict=True)
            if given.on_failure == "stop"
        ]
        with _at(path, "ptycho" if predictor.task == "ptycho" else "sinks"):
            service = Service(
                predictor,
                source,
                sinks,
                settings=settings,
                sink_queue=configuration.sink_queue,
                sink_retry_s=configuration.sink_retry_s,
                stop_on_sink_failure=needed,
                source_timeout_s=configuration.monitoring.source_timeout_s,
            )
        from edgexnas.device.monitoring import open_views

        monitoring = configuration.monitoring
        with _at(path, "monitoring"):
            service.views += open_views(
                service,
                http_port=monitoring.port or None,
                pv_prefix=monitoring.status_pv,
                terminal=monitoring.terminal,
            )
        watch = BundleWatch(
            located(within(folder, configuration.predictor.bundle)),
            service,
            partial(_predictor, configuration, folder),
            period_s=configuration.predictor.reload_s,
        )
        closing.callback(watch.close)
        return OpenedService(path, service, sinks, monitoring.port, watch, closing.pop_all())


@contextmanager
def _at(path: Path, *place: str | int) -> Iterator[None]:
    """Say at which line of the configuration a part stands that cannot be opened."""
    try:
        yield
    except (ConfigurationError, BundleError, InputError, MissingDependencyError) as error:
        line = line_of(path.read_text(encoding="utf-8"), place)
        raise ConfigurationError(f"{path}:{line}: {error}") from error
    except SourceError as error:
        # It may be there later; the configuration is not what is wrong.
        line = line_of(path.read_text(encoding="utf-8"), place)
        raise SourceError(f"{path}:{line}: {error}") from error


def _from(folder: Path, source: str) -> str:
    """Give a URL as it is, and a path relative to the folder."""
    return source if "://" in source else str(folder / source)


def _predictor(configuration: ServeConfiguration, folder: Path) -> PeakPredictor | PtychoPredictor:
    from edgexnas.bundle import GatePolicy, open_bundle
    from edgexnas.device import Predictor

    given = configuration.predictor
    bundle = open_bundle(
        within(folder, given.bundle),
        trust=None if given.trust is None else folder / given.trust,
        state=folder / given.state if given.state else given.state,
        gates=GatePolicy.of(
            maximum_gate_px=given.maximum_gate_px, maximum_gate_rad=given.maximum_gate_rad
        ),
    )
    options: PredictorOptions = {
        "engine": given.engine,
        "precision": given.precision,
        "batch": given.batch,
        "threads": given.threads,
    }
    if given.cache is not None:
        options["cache"] = folder / given.cache
    if given.mask is not None:
        options["mask"] = read_mask(folder / given.mask)
    return Predictor(
        bundle, saturation=given.saturation, minimum_counts=given.minimum_counts,
        threshold=given.threshold, mask_hot=given.mask_hot, **options,
    )  # fmt: skip


def _check_host(source: str) -> None:
    """Look up the host that a source connects to."""
    if not source.startswith("simplon://"):
        return
    host, _, port = SourceUrl.parse(source).place.strip("/").rpartition(":")
    try:
        socket.getaddrinfo((host or port).strip("[]"), None)
    except OSError as error:
        raise SourceError(
            f"the host of {source} has no address ({error.strerror}); check the name and the "
            "name server"
        ) from error


def _warn_of_public_bind(sink: Sink) -> None:
    """Warn of a ZMQ sink on an address that other machines can reach: it has no passwords."""
    from edgexnas.device.sinks.merging_sink import MergingSink
    from edgexnas.device.sinks.zmq_sink import ZmqSink

    if isinstance(sink, MergingSink):
        sink = cast(Sink, sink.sink)
    if not isinstance(sink, ZmqSink) or sink.connects or not sink.address.startswith("tcp://"):
        return
    host = sink.address.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    with suppress(ValueError):
        if host == "localhost" or ipaddress.ip_address(host).is_loopback:
            return
    _log.warning(
        "%s is open to other machines, without a password; bind 127.0.0.1 unless that is meant",
        sink.name,
    )


def _check_port(port: int) -> None:
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
    except OSError as error:
        raise ConfigurationError(
            f"port {port} of 127.0.0.1 cannot be used ({error.strerror}); give another, or 0"
        ) from error


def _merging(sink: Sink, given: SinkSettings, folder: Path, manifest: Manifest) -> Sink:
    """Let a sink have spots beside the peaks, if its table says so."""
    if isinstance(given, CallbackSinkSettings | TiledSinkSettings) or given.merge is None:
        return sink
    if manifest.task != "bragg":
        raise ConfigurationError(
            f"merge of {sink.name} is for Bragg peaks, and {manifest.model_id} is for "
            f"{manifest.task}; leave it out"
        )
    from edgexnas.device.bragg.predictor import interval_coverage
    from edgexnas.device.sinks.merging_sink import MergingSink, SpotSink

    stored = None
    if isinstance(given, Hdf5SinkSettings):
        stored = (folder / given.folder, given.name)
    return MergingSink(
        cast(SpotSink, sink),
        given.merge.settings(),
        coverage=interval_coverage(manifest),
        stored=stored,
    )


def _sink(given: SinkSettings, folder: Path) -> Sink:
    shared: dict[str, Any] = {}
    if not isinstance(given, CallbackSinkSettings | TiledSinkSettings) and given.merge is not None:
        shared["spots"] = True
    if isinstance(given, Hdf5SinkSettings):
        from edgexnas.device.sinks.hdf5_sink import Hdf5Sink

        options = given.model_dump(exclude={"kind", "folder", "on_failure", "merge"})
        return cast(Sink, Hdf5Sink(folder / given.folder, **options, **shared))
    if isinstance(given, ZmqSinkSettings):
        from edgexnas.device.sinks.zmq_sink import ZmqSink

        return ZmqSink(**given.model_dump(exclude={"kind", "on_failure", "merge"}))
    if isinstance(given, PvaSinkSettings):
        from edgexnas.device.sinks.pva_sink import PvaSink

        return PvaSink(**given.model_dump(exclude={"kind", "on_failure", "merge"}), **shared)
    if isinstance(given, TiledSinkSettings):
        from edgexnas.device.sinks.tiled_sink import TiledSink

        options = given.model_dump(exclude={"kind", "url", "api_key_file", "on_failure"})
        key_file = None if given.api_key_file is None else folder / given.api_key_file
        return TiledSink(given.url, api_key_file=key_file, **options)
    assert isinstance(given, CallbackSinkSettings)
    function = _function(given.function, folder)
    return CallbackSink(function, name=f"callback {given.function}", policy=given.policy)


def _function(name: str, folder: Path) -> Callable[[Any], object]:
    """Import "module:name", also from beside the configuration."""
    module, _, attribute = name.partition(":")
    sys.path.append(str(folder))
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:
        if isinstance(error, EdgexnasError):
            raise
        raise ConfigurationError(
            f"callback {name} cannot be imported ({type(error).__name__}: {error}); give "
            f"module:function, importable or beside the configuration"
        ) from error
    finally:
        sys.path.remove(str(folder))
    if not callable(found):
        raise ConfigurationError(f"callback {name} is no function; give one")
    return cast(Callable[[Any], object], found)
