"""What `edgexnas serve` does, as a TOML file.

::

    source = "pva://GE1:Pva1:Image"      # or simplon://, file:// or a path, sim://

    [predictor]
    bundle = "bragg.edgex"               # relative to this file, as all paths are
    trust = "keys"
    precision = "int8"                   # "float16", "float32", "auto"
    mask = "bad_pixels.npy"

    [pipeline]
    policy = "drop-oldest"               # "block", "spill"; left out: by the source
    deadline_ms = 5

    [[sinks]]
    kind = "hdf5"
    folder = "results"

    [[sinks]]
    kind = "zmq"
    address = "tcp://127.0.0.1:5557"

    [[sinks]]
    kind = "pva"
    prefix = "EDGEX:"

    [[sinks]]
    kind = "callback"
    function = "my_module:on_result"

    [monitoring]
    port = 9108                          # page, metrics and health on 127.0.0.1; 0 for none
    status_pv = "EDGEX:"
    terminal = false
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import BaseModel, Field, ValidationError

from edgexnas.device.serving.settings import (
    BackgroundTable,
    Count,
    NotNegative,
    PipelineSettings,
    PipelineTable,
    Positive,
    PtychoTable,
    Table,
    explain_fault,
)
from edgexnas.device.sinks.protocol import SinkPolicy
from edgexnas.errors import ConfigurationError
from edgexnas.toml_files import line_of, read_toml

__all__ = [
    "CallbackSinkSettings",
    "Hdf5SinkSettings",
    "MonitoringSettings",
    "PredictorSettings",
    "PvaSinkSettings",
    "ServeConfiguration",
    "SinkSettings",
    "ZmqSinkSettings",
    "load_configuration",
]

Text: TypeAlias = Annotated[str, Field(min_length=1)]


class PredictorSettings(Table):
    """Which model runs and how; fields as of `edgexnas.device.Predictor`.

    Attributes
    ----------
    mask
        ``.npy`` file of (H, W) bool, True where a pixel must not be used.
    saturation
        For ptychography: counts from which a pixel is saturated.
    """

    bundle: Text
    trust: Text
    engine: Text = "auto"
    precision: Literal["int8", "float16", "float32", "auto"] = "int8"
    batch: Annotated[int, Field(ge=1, le=65_536)] = 32
    threads: Count | None = None
    cache: Text | None = None
    mask: Text | None = None
    saturation: Positive | None = None


class _AnySink(Table):
    """What every sink has.

    Attributes
    ----------
    policy
        "block" or "drop-oldest"; see `Sink`.
    on_failure
        "continue": the sink is opened again, and its results fail or are dropped meanwhile.
        "stop": the service ends.
    """

    on_failure: Literal["continue", "stop"] = "continue"


class Hdf5SinkSettings(_AnySink):
    """Fields as of `Hdf5Sink`."""

    kind: Literal["hdf5"]
    folder: Text
    name: Annotated[str, Field(pattern=r"^[\w-]+$")] = "results"
    policy: SinkPolicy = "block"
    segment_mib: Positive = 8192.0
    least_free_mib: NotNegative = 64.0
    patches: bool = False
    gather_ms: NotNegative = 10.0


class ZmqSinkSettings(_AnySink):
    """Fields as of `ZmqSink`."""

    kind: Literal["zmq"]
    address: Annotated[str, Field(pattern=r"^(tcp|ipc|inproc)://")]
    mode: Literal["pub", "push"] = "pub"
    connect: bool = False
    high_water: Count = 1000
    policy: SinkPolicy = "drop-oldest"


class PvaSinkSettings(_AnySink):
    """Fields as of `PvaSink`."""

    kind: Literal["pva"]
    prefix: Annotated[str, Field(pattern=r"^[\w:.\-\[\]<>;/+{}]+$")]
    policy: SinkPolicy = "drop-oldest"


class CallbackSinkSettings(_AnySink):
    """Fields as of `CallbackSink`; the function is "module:name", importable or beside the file."""

    kind: Literal["callback"]
    function: Annotated[str, Field(pattern=r"^[\w.]+:[\w.]+$")]
    policy: SinkPolicy = "drop-oldest"


SinkSettings: TypeAlias = (
    Hdf5SinkSettings | ZmqSinkSettings | PvaSinkSettings | CallbackSinkSettings
)


class MonitoringSettings(Table):
    """What shows the service.

    Attributes
    ----------
    port
        Of the page, metrics and health on 127.0.0.1; 0 for none.
    source_timeout_s
        How long the source may be away before the service is not healthy.
    status_pv
        What names of status PVs begin with; None for none.
    terminal
        Whether to show a live view on the terminal.
    """

    port: Annotated[int, Field(ge=0, le=65535)] = 9108
    source_timeout_s: Positive = 20.0
    status_pv: Text | None = None
    terminal: bool = False


class ServeConfiguration(Table):
    """A whole file.

    Attributes
    ----------
    source
        URL or path of the source.
    sink_queue, sink_retry_s
        As of `Service`.
    """

    source: Text
    predictor: PredictorSettings
    pipeline: PipelineTable = PipelineTable()
    background: BackgroundTable = BackgroundTable()
    ptycho: PtychoTable = PtychoTable()
    sinks: list[Annotated[SinkSettings, Field(discriminator="kind")]] = Field(default_factory=list)
    monitoring: MonitoringSettings = MonitoringSettings()
    sink_queue: Count = 1024
    sink_retry_s: Positive = 5.0

    def pipeline_settings(self, folder: Path) -> PipelineSettings:
        """Return the settings of the stages; a relative spill folder is in `folder`."""
        tables = (self.pipeline, self.background, self.ptycho)
        given = {name: value for table in tables for name, value in table}
        if given["spill_folder"] is not None:
            given["spill_folder"] = folder / given["spill_folder"]
        return PipelineSettings(**given)


def load_configuration(path: Path) -> ServeConfiguration:
    """Read a configuration.

    Raises
    ------
    ConfigurationError
        If the file cannot be read, is no TOML, or has wrong keys or values; the message has one
        line for each, with file and line.
    """
    text, document = read_toml(path)
    try:
        return ServeConfiguration.model_validate(document)
    except ValidationError as error:
        lines = [_complaint(path, text, document, fault) for fault in error.errors()]
        raise ConfigurationError("\n".join(sorted(lines, key=_line_number))) from None


def _line_number(complaint: str) -> int:
    return int(complaint.split(":")[1])


def _complaint(path: Path, text: str, document: Any, fault: Any) -> str:
    place = _place(document, fault["loc"])
    line = line_of(text, place)
    name = ".".join(f"[{key + 1}]" if isinstance(key, int) else key for key in place)
    name = name.replace(".[", "[")
    if fault["type"] == "missing":
        return f"{path}:{line}: {name} is missing; give it"
    if fault["type"] == "extra_forbidden":
        known = ", ".join(_known_names(place, document))
        return f"{path}:{line}: {name} is unknown; give one of {known}"
    if fault["type"] == "union_tag_not_found":
        return f"{path}:{line}: {name}.kind is missing; give one of {_KINDS}"
    if fault["type"] == "union_tag_invalid":
        return f"{path}:{line}: {name} has the unknown kind {fault['ctx']['tag']}; give {_KINDS}"
    if fault["type"] in ("model_type", "list_type") and len(place) == 1:
        form = f"[[{name}]]" if fault["type"] == "list_type" else f"[{name}]"
        return f"{path}:{line}: {name} is {fault['input']!r}; write it as {form}, then its keys"
    return f"{path}:{line}: {explain_fault(fault, name)}"


_SINK_TABLES: dict[str, type[_AnySink]] = {
    get_args(table.model_fields["kind"].annotation)[0]: table for table in get_args(SinkSettings)
}
_KINDS = " or ".join(", ".join(_SINK_TABLES).rsplit(", ", 1))


def _place(document: Any, location: Sequence[str | int]) -> tuple[str | int, ...]:
    """Give a fault's keys as the document has them: without the tags of unions."""
    place: list[str | int] = []
    for index, key in enumerate(location):
        is_tag = index and isinstance(location[index - 1], int) and key in _SINK_TABLES
        if not is_tag:
            place.append(key)
    return tuple(place)


def _known_names(place: Sequence[str | int], document: Any) -> list[str]:
    """Names that the table of a key may have."""
    if len(place) >= 2 and place[0] == "sinks" and isinstance(place[1], int):
        model: type[BaseModel] = _SINK_TABLES[document["sinks"][place[1]]["kind"]]
    elif len(place) >= 2:
        annotation = ServeConfiguration.model_fields[str(place[0])].annotation
        assert isinstance(annotation, type)
        model = annotation
    else:
        model = ServeConfiguration
    return [str(field.validation_alias or name) for name, field in model.model_fields.items()]
