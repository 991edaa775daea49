"""A package gives its public names on first use."""

from __future__ import annotations

import subprocess
import sys

import pytest

import edgexnas.host


def test_importing_a_package_loads_none_of_its_modules() -> None:
    code = "import sys, edgexnas.host, edgexnas.device as d; d.__all__; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = [name for name in done.stdout.split() if name.startswith("edgexnas.")]
    assert sorted(loaded) == [
        "edgexnas.device",
        "edgexnas.errors",
        "edgexnas.host",
        "edgexnas.lazy_names",
    ]


def test_a_name_is_that_of_its_module() -> None:
    from edgexnas.host.networks.spaces import SPACES

    assert edgexnas.host.SPACES is SPACES
    assert "SPACES" in edgexnas.host.__all__
    assert "SPACES" in dir(edgexnas.host)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"module 'edgexnas\.host' has no attribute 'spam'"):
        edgexnas.host.spam  # noqa: B018
