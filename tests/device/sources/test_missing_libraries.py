"""A library that is not installed is named with the extra that brings it, before anything opens."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import pytest

from edgexnas.device.publishing import __main__ as publish
from edgexnas.device.sources import compression, open_event_source
from edgexnas.errors import MissingDependencyError


@pytest.mark.parametrize(
    ("module", "url", "sentence"),
    [
        ("pvaccess", "pva://GE1:Image", r"PV Access needs pvapy.*pip install 'edgexnas\[pva\]'"),
        ("zmq", "simplon://h?exclusive=1", r"V2 needs pyzmq.*pip install 'edgexnas\[zmq\]'"),
    ],
)
def test_a_stream_names_the_library_that_it_needs(
    module: str, url: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=sentence):
        open_event_source(url)


@pytest.mark.parametrize(("module", "kind"), [("pvaccess", "pva"), ("zmq", "simplon")])
def test_a_publisher_says_in_one_sentence_what_it_lacks(
    module: str,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert publish.main([kind, "--shape", "64x64", "--frames", "1"]) == 1
    said = capsys.readouterr()
    assert said.err.startswith("error: sending frames over ")
    assert said.err.count("\n") == 1


def test_codecs_name_the_library_that_brings_them(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec

    def without_plugins(name: str, *arguments: Any) -> Any:
        return None if name == "hdf5plugin" else found(name, *arguments)

    monkeypatch.setattr(compression, "find_spec", without_plugins)
    compression._lz4.cache_clear()
    try:
        with pytest.raises(MissingDependencyError, match=r"needs hdf5plugin.*'edgexnas\[device\]'"):
            compression.decompress("lz4", b"abc", (1, 1), "uint8")
    finally:
        compression._lz4.cache_clear()


def test_codecs_that_cannot_be_used_name_the_version_that_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: str) -> None:
        raise OSError("wrong ELF class")

    monkeypatch.setattr(compression.ctypes, "CDLL", refuse)
    compression._lz4.cache_clear()
    try:
        with pytest.raises(MissingDependencyError, match=r"wrong ELF class.*'hdf5plugin>=5'"):
            compression.decompress("lz4", b"abc", (1, 1), "uint8")
    finally:
        compression._lz4.cache_clear()
