"""What `edgexnas serve` does, as a TOML file.

::

    source = "pva://GE1:Pva1:Image"      # or simplon://, file:// or a path, sim://

    [predictor]
    bundle = "bragg.edgex"               # relative to this file, as all paths are
    trust = "keys"
    precision = "int8"                   # "float16", "float32", "auto"
    mask = "bad_pixels.npy"
    saturation = 60000                   # in counts; left out: what detector or bundle say
    threshold = 5                        # of Bragg peaks, in standard deviations of the noise

    [pipeline]
    policy = "drop-oldest"               # "block", "spill"; left out: by the source
    deadline_ms = 5

    [[sinks]]
    kind = "hdf5"
    folder = "results"

    [sinks.merge]                        # peaks merged into spots beside them, for hdf5, zmq, pva
    omega_start_deg = 0.0                # start of frame 0
    omega_step_deg = 0.25

    [[sinks]]
    kind = "zmq"
    address = "tcp://127.0.0.1:5557"

    [[sinks]]
    kind = "pva"
    prefix = "EDGEX:"

    [[sinks]]
    kind = "tiled"
    url = "http://127.0.0.1:8000"
    api_key_file = "tiled.key"

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

from pydantic import Field, ValidationError

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
from edgexnas.merging import MergeSettings
from edgexnas.toml_files import line_of, read_toml

__all__ = [
    "CallbackSinkSettings",
    "Hdf5SinkSettings",
    "MergeTable",
    "MonitoringSettings",
    "PredictorSettings",
    "PvaSinkSettings",
    "ServeConfiguration",
    "SinkSettings",
    "TiledSinkSettings",
    "ZmqSinkSettings",
    "load_configuration",
]

Text: TypeAlias = Annotated[str, Field(min_length=1)]
Finite: TypeAlias = Annotated[float, Field(allow_inf_nan=False)]


class PredictorSettings(Table):
    """Which model runs and how; fields as of `edgexnas.device.Predictor`.

    Attributes
    ----------
    bundle
        File, or "universal" for the bundle that comes with the package.
    trust
        Folder of trusted public keys, needed with a file.
    state
        Folder that remembers the newest bundle, or False for none.
    reload_s
        How often to look whether the bundle's file was replaced by a newer one, which then takes
        over; 0 for on SIGHUP alone.
    maximum_gate_px, maximum_gate_rad
        As of `edgexnas.bundle.GatePolicy`.
    mask
        ``.npy`` file of (H, W) bool, True where a pixel must not be used.
    minimum_counts, threshold, mask_hot
        For Bragg peaks alone.
    """

    bundle: Text
    trust: Text | None = None
    state: Text | Literal[False] | None = None
    reload_s: NotNegative = 5.0
    maximum_gate_px: Positive | None = None
    maximum_gate_rad: Positive | None = None
    engine: Text = "auto"
    precision: Literal["int8", "float16", "float32", "auto"] = "int8"
    batch: Annotated[int, Field(ge=1, le=65_536)] = 32
    threads: Count | None = None
    cache: Text | None = None
    mask: Text | None = None
    saturation: Positive | None = None
    minimum_counts: NotNegative | None = None
    threshold: NotNegative | None = None
    mask_hot: bool | None = None


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


class MergeTable(Table):
    """How a sink's peaks are merged into spots; fields as of `edgexnas.merging.MergeSettings`."""

    omega_start_deg: Finite
    omega_step_deg: Annotated[float, Field(ge=-180, le=180)]
    tolerance_px: Annotated[float, Field(gt=0, le=100)] = 2.0
    gap_frames: Annotated[int, Field(ge=0, le=1000)] = 1
    valley: Annotated[float, Field(ge=0, lt=1)] = 0.5

    def settings(self) -> MergeSettings:
        """Give the settings.

        Raises
        ------
        ConfigurationError
            If a frame does not turn.
        """
        return MergeSettings(**self.model_dump())


class _PeakSink(_AnySink):
    """What every sink has that takes spots too.

    Attributes
    ----------
    merge
        How peaks are merged into spots; None for no spots.
    """

    merge: MergeTable | None = None


class Hdf5SinkSettings(_PeakSink):
    """Fields as of `Hdf5Sink`."""

    kind: Literal["hdf5"]
    folder: Text
    name: Annotated[str, Field(pattern=r"^[\w-]+$")] = "results"
    policy: SinkPolicy = "block"
    segment_mib: Positive = 8192.0
    least_free_mib: NotNegative = 64.0
    patches: bool = False
    gather_ms: NotNegative = 10.0


class ZmqSinkSettings(_PeakSink):
    """Fields as of `ZmqSink`."""

    kind: Literal["zmq"]
    address: Annotated[str, Field(pattern=r"^(tcp|ipc|inproc)://")]
    mode: Literal["pub", "push"] = "pub"
    connect: bool = False
    high_water: Count = 1000
    policy: SinkPolicy = "drop-oldest"


class PvaSinkSettings(_PeakSink):
    """Fields as of `PvaSink`."""

    kind: Literal["pva"]
    prefix: Annotated[str, Field(pattern=r"^[\w:.\-\[\]<>;/+{}]+$")]
    policy: SinkPolicy = "drop-oldest"


class TiledSinkSettings(_AnySink):
    """Fields as of `TiledSink`."""

    kind: Literal["tiled"]
    url: Annotated[str, Field(pattern=r"^https?://")]
    path: Text = "edgexnas"
    api_key_file: Text | None = None
    policy: SinkPolicy = "block"
    gather_ms: NotNegative = 200.0


class CallbackSinkSettings(_AnySink):
    """Fields as of `CallbackSink`; the function is "module:name", importable or beside the file."""

    kind: Literal["callback"]
    function: Annotated[str, Field(pattern=r"^[\w.]+:[\w.]+$")]
    policy: SinkPolicy = "drop-oldest"


SinkSettings: TypeAlias = (
    Hdf5SinkSettings | ZmqSinkSettings | PvaSinkSettings | TiledSinkSettings | CallbackSinkSettings
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
        faults = []
        for fault in error.errors():
            # Where the document has it: without the kind that pydantic adds to a sink's index.
            where = fault["loc"]
            place = [
                key
                for before, key in zip((None, *where), where, strict=False)
                if not (isinstance(before, int) and key in _SINK_TABLES)
            ]
            faults.append((line_of(text, place), _sentence(fault, place, document)))
        lines = [f"{path}:{line}: {sentence}" for line, sentence in sorted(faults)]
        raise ConfigurationError("\n".join(lines)) from None


_SINK_TABLES: dict[str | int, type[_AnySink]] = {
    get_args(table.model_fields["kind"].annotation)[0]: table for table in get_args(SinkSettings)
}
_KINDS = " or ".join(", ".join(map(str, _SINK_TABLES)).rsplit(", ", 1))


def _sentence(fault: Any, place: Sequence[str | int], document: Any) -> str:
    name = ".".join(f"[{key + 1}]" if isinstance(key, int) else key for key in place)
    name = name.replace(".[", "[")
    kind = fault["type"]
    if kind == "missing":
        return f"{name} is missing; specify it"
    if kind == "extra_forbidden":
        return f"{name} is unknown; specify one of {', '.join(_known_names(place, document))}"
    if kind == "union_tag_not_found":
        return f"{name}.kind is missing; specify one of {_KINDS}"
    if kind == "union_tag_invalid":
        return f"{name} has the unknown kind {fault['ctx']['tag']}; specify {_KINDS}"
    if kind in ("model_type", "list_type") and len(place) == 1:
        form = f"[[{name}]]" if kind == "list_type" else f"[{name}]"
        return f"{name} is {fault['input']!r}; write it as {form}, then its keys"
    return explain_fault(fault, name)


def _known_names(place: Sequence[str | int], document: Any) -> list[str]:
    """Return the names that the table of a key may have."""
    table: Any = ServeConfiguration
    if len(place) == 4:
        # Of the tables in a sink's table there is one kind.
        table = MergeTable
    elif len(place) == 3:
        table = _SINK_TABLES[document["sinks"][place[1]]["kind"]]
    elif len(place) == 2:
        table = ServeConfiguration.model_fields[str(place[0])].annotation
    return [str(field.validation_alias or name) for name, field in table.model_fields.items()]
