from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Any

import pytest

from edgexnas.device.serving.configuration import (
    Hdf5SinkSettings,
    PvaSinkSettings,
    ServeConfiguration,
    ZmqSinkSettings,
    load_configuration,
)
from edgexnas.device.serving.settings import PipelineSettings
from edgexnas.device.sinks.hdf5_sink import Hdf5Sink
from edgexnas.device.sinks.pva_sink import PvaSink
from edgexnas.device.sinks.zmq_sink import ZmqSink
from edgexnas.errors import ConfigurationError
from edgexnas.toml_files import line_of

GOOD = """\
source = "pva://GE1:Pva1:Image"

[predictor]
bundle = "b.edgex"
trust = "keys"

[pipeline]
policy = "spill"
spill_folder = "spill"
deadline_ms = 5

# where results go
[[sinks]]
kind = "hdf5"
folder = "results"

[[sinks]]
kind = "zmq"
address = "tcp://127.0.0.1:5557"

[ptycho]
object_pixel_m = [1e-8,
                  -1e-8]
"""


def complaints(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "serve.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        load_configuration(path)
    return [line.removeprefix(f"{path}:") for line in str(caught.value).splitlines()]


def test_a_file_becomes_settings_with_defaults(tmp_path: Path) -> None:
    (tmp_path / "serve.toml").write_text(GOOD)
    read = load_configuration(tmp_path / "serve.toml")
    assert isinstance(read, ServeConfiguration)
    assert isinstance(read.sinks[0], Hdf5SinkSettings)
    settings = read.pipeline_settings(tmp_path)
    assert settings.spill_folder == tmp_path / "spill"
    assert settings.object_pixel_m == (1e-8, -1e-8)
    assert (settings.deadline_ms, settings.queue_frames) == (5, 256)
    assert read.monitoring.port == 9108


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("deadline_ms = 5", 'deadline_ms = "5"', "10: pipeline.deadline_ms is '5'; input should"),
        ("deadline_ms = 5", "deadline_ms = -5", "10: pipeline.deadline_ms is -5; input should be"),
        (
            "deadline_ms",
            "deadline",
            "10: pipeline.deadline is unknown; specify one of policy",
        ),
        ('"spill"\n', '"drop"\n', "8: pipeline.policy is 'drop'; input should be 'drop-oldest'"),
        ('bundle = "b.edgex"', "", "3: predictor.bundle is missing; specify it"),
        ("[predictor]", "[predicter]", "1: predictor is missing; specify it"),
        (
            'kind = "zmq"',
            'kind = "zeromq"',
            "17: sinks[2] has the unknown kind zeromq; specify",
        ),
        ('source = "pva', 'zmq = 1\nsource = "pva', "1: zmq is unknown; specify one of source"),
        ('kind = "zmq"', "", "17: sinks[2].kind is missing; specify one of hdf5"),
        ("tcp://127", "127", "19: sinks[2].address is '127.0.0.1:5557'; string should match"),
        ('folder = "results"', 'place = "r"', "13: sinks[1].folder is missing; specify it"),
        (
            "[predictor]",
            "[[predictor]]",
            "3: predictor is [{'bundle': 'b.edgex', ",
        ),
        ("[1e-8,\n                  -1e-8]", "[\n\n1e-8]", "22: ptycho.object_pixel_m is [1e-08]"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(
    tmp_path: Path, old: str, new: str, complaint: str
) -> None:
    assert old in GOOD
    told = complaints(tmp_path, GOOD.replace(old, new))
    assert any(line.startswith(complaint) for line in told), told


def test_everything_that_is_wrong_is_told_at_once_in_the_order_of_lines(tmp_path: Path) -> None:
    text = GOOD.replace("deadline_ms = 5", "deadline_ms = -5").replace('"keys"', "3")
    told = complaints(tmp_path, text + "\n[monitoring]\nport = 70000\n")
    assert [line.split(":")[0] for line in told] == ["5", "10", "26"]


def test_what_is_no_toml_is_told_with_its_line(tmp_path: Path) -> None:
    (told,) = complaints(tmp_path, GOOD.replace('"keys"', "keys"))
    assert "is not TOML" in told
    assert "line 5" in told


def test_a_file_that_is_not_there_is_told() -> None:
    with pytest.raises(ConfigurationError, match=r"missing\.toml cannot be read \(No such file"):
        load_configuration(Path("missing.toml"))


def test_what_is_no_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "serve.toml").write_bytes(b"PK\x03\x04\xff")
    with pytest.raises(ConfigurationError, match="is no text in UTF-8; give a TOML file"):
        load_configuration(tmp_path / "serve.toml")


def test_spilling_needs_a_folder(tmp_path: Path) -> None:
    (told,) = complaints(tmp_path, GOOD.replace('spill_folder = "spill"\n', ""))
    assert told == "7: the policy is spill without a spill_folder; specify one"


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"queue_frames": 0}, "queue_frames is 0; input should be greater than or equal to 1"),
        ({"drain_s": float("nan")}, "drain_s is nan; input should be a finite number"),
        ({"policy": "spill"}, "the policy is spill without a spill_folder; specify one"),
        ({"object_pixel_m": (1, 1)}, "object_pixel_m is (1, 1); specify the (row, col) size"),
        ({"frames": 3}, "frames is unknown; leave it out"),
    ],
)
def test_a_program_is_told_the_keyword_that_is_wrong(
    keywords: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        PipelineSettings(**keywords)
    assert str(caught.value).startswith(message)


def test_the_tables_are_the_keywords_of_a_program(tmp_path: Path) -> None:
    tables = "[pipeline]\nworkers = 3\n[background]\nframes = 4\n[ptycho]\nsnapshot_s = 7\n"
    text = GOOD.split("[pipeline]")[0] + tables
    (tmp_path / "serve.toml").write_text(text)
    read = load_configuration(tmp_path / "serve.toml").pipeline_settings(tmp_path)
    assert read == PipelineSettings(workers=3, background_frames=4, snapshot_s=7)


@pytest.mark.parametrize(
    ("table", "sink"),
    [(Hdf5SinkSettings, Hdf5Sink), (ZmqSinkSettings, ZmqSink), (PvaSinkSettings, PvaSink)],
)
def test_a_table_of_a_sink_has_the_defaults_of_its_keywords(table: Any, sink: Any) -> None:
    keywords = signature(sink).parameters
    for name, field in table.model_fields.items():
        if name not in ("kind", "on_failure", "merge") and not field.is_required():
            assert field.default == keywords[name].default, name


def test_the_configuration_of_the_samples_is_right() -> None:
    sample = Path(__file__).resolve().parents[3] / "samples" / "06_serve.toml"
    assert len(load_configuration(sample).sinks) == 2


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("source",), 1),
        (("pipeline", "policy"), 8),
        (("pipeline",), 7),
        (("sinks", 0), 13),
        (("sinks", 1, "address"), 19),
        (("ptycho", "object_pixel_m"), 22),
        (("nowhere",), 1),
    ],
)
def test_the_line_of_a_key_is_where_its_statement_begins(
    path: tuple[str | int, ...], line: int
) -> None:
    assert line_of(GOOD, path) == line
