"""Arguments that no command can use end in a sentence, never in a traceback."""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgexnas.cli import build_parser, main
from edgexnas.errors import ConfigurationError, SourceError
from edgexnas.frames import open_frames
from edgexnas.toml_files import read_toml

BUNDLES = Path(__file__).with_name("bundles")


def parsers(parser: argparse.ArgumentParser, name: tuple[str, ...] = ()) -> Iterator[list[str]]:
    """The words of every command."""
    found = [a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    for command, inner in [item for choices in found for item in choices.items()]:
        yield from parsers(inner, (*name, command))
    if not found:
        yield list(name)


@pytest.fixture
def opening(tmp_path: Path) -> list[str]:
    """A bundle and who signed it, as options."""
    key = shutil.copyfile(BUNDLES / "v1.pub.pem", tmp_path / "v1.pub.pem")
    key.chmod(0o644)
    return [f"{BUNDLES / 'v1.edgex'}", "--trust", str(key)]


def sentence(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) in (1, 2)
    lines = [line for line in capsys.readouterr().err.splitlines() if "edgexnas" in line]
    return lines[-1]


@pytest.mark.parametrize("command", list(parsers(build_parser())), ids=" ".join)
def test_a_nul_in_any_argument_is_wrong_usage(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*command, "a\0b"])
    assert stopped.value.code == 2
    assert "holds a NUL" in capsys.readouterr().err


@pytest.mark.parametrize(
    "url",
    [
        "file:///a%00b.h5",
        "simplon://host%00:31001?exclusive=1",
        "simplon://host:99999?exclusive=1",
        "simplon://host:0?exclusive=1",
        "simplon://host:port?exclusive=1",
        "pva://a%00b",
        "sim://hedm?shape=1000000x1000000",
        "sim://hedm?rate=1e400",
        "sim://hedm?frames=-1",
    ],
)
def test_a_source_that_cannot_be_is_named(
    url: str, opening: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    message = sentence(["predict", opening[0], url, *opening[1:]], capsys)
    assert re.search("NUL|port|shape|rate|frames", message)


@pytest.mark.parametrize("url", ["ssh://h:99999", "ssh://h:port", "ssh://[::1", "ssh://h:-1"])
def test_a_device_that_cannot_be_is_named(url: str, tmp_path: Path) -> None:
    from edgexnas.host.measuring.measure_source import open_measure

    with pytest.raises(ConfigurationError, match=f"measure is '{re.escape(url)}', which is no URL"):
        open_measure(url, task="bragg", wanted=("latency",), signing_key=tmp_path / "key.pem")


@pytest.mark.parametrize("option", ["--batch", "--threads"])
@pytest.mark.parametrize("value", ["1000000000", "9" * 30])
def test_a_size_that_no_device_has_is_named(
    option: str, value: str, opening: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    message = sentence(["bench", *opening, option, value, "--energy", "off"], capsys)
    assert f"{option[2:]} is {value}; specify a whole number from 1 to" in message


@pytest.mark.parametrize("value", ["9" * 5000, "1e9", "-1", "0"])
def test_a_number_that_is_none_is_wrong_usage(value: str, opening: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["bench", *opening, "--batch", value])
    assert stopped.value.code == 2


def test_memory_that_runs_out_is_a_sentence(
    opening: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def open_bundle(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 1 TiB")

    monkeypatch.setattr("edgexnas.bundle.open_bundle", open_bundle)
    assert "not enough memory (Unable to" in sentence(["verify", *opening], capsys)


def test_a_nul_in_a_path_of_python_is_named() -> None:
    with pytest.raises(SourceError, match="holds a NUL"):
        open_frames("a\0b.h5")


@pytest.mark.parametrize("text", [r'a = "\u0000"', r'a = [{b = ["x\u0000"]}]'])
def test_a_nul_in_a_configuration_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match="has a string with a NUL"):
        read_toml(path)
