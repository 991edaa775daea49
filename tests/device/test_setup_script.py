"""`device/setup.sh`, with stand-ins for what changes the machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
STAND_INS = {
    # The environment's python is a stand-in too: nothing is installed.
    "python": 'case "$*" in *venv*) mkdir -p "${@: -1}/bin"; cp "$0" "${@: -1}/bin/python";; esac',
    "useradd": "",
    "usermod": "",
    "systemctl": "",
    "getent": "",
}


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    (tmp_path / "bin").mkdir()
    for name, action in STAND_INS.items():
        program = tmp_path / "bin" / name
        program.write_text(f'#!/bin/bash\necho "{name} $*" >>{tmp_path}/calls\n{action}\n')
        program.chmod(0o755)
    # Root, without the user that the unit needs.
    (tmp_path / "bin" / "id").write_text('#!/bin/bash\n[ "$1" = -u ] && echo 0\n')
    (tmp_path / "bin" / "id").chmod(0o755)
    return tmp_path


def run(machine: Path, *arguments: str) -> str:
    environment = {
        **os.environ,
        "PATH": f"{machine / 'bin'}:{os.environ['PATH']}",
        "PYTHON": str(machine / "bin" / "python"),
        "UNITS": str(machine / "units"),
        "SETTINGS": str(machine / "settings"),
    }
    command = ["bash", ROOT / "device" / "setup.sh", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return (machine / "calls").read_text()


def test_the_environment_gets_everything_that_serve_can_use(machine: Path) -> None:
    calls = run(machine, str(machine / "env"))
    assert f"{ROOT}[edge]" in calls
    assert "useradd" not in calls
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (edge,) = extras["optional-dependencies"]["edge"]
    named = re.fullmatch(r"edgexnas\[(.*)\]", edge)
    assert named is not None
    assert {"device", "monitor", "pva", "zmq"} <= set(named[1].split(","))


def test_the_service_gets_its_user_its_unit_and_a_clock_that_is_right(machine: Path) -> None:
    folder = machine / "there"
    calls = run(machine, "--service", str(folder))
    unit = (machine / "units" / "edgexnas.service").read_text()
    assert f"ExecStart={folder}/bin/edgexnas serve" in unit
    user = re.search(r"^User=(\w+)$", unit, re.MULTILINE)
    assert user is not None
    assert re.search(rf"^useradd --system .* {user[1]}$", calls, re.MULTILINE)
    assert "usermod --append --groups render edgexnas" in calls
    for order in ("After", "Wants"):
        assert re.search(rf"^{order}=.*\btime-sync\.target", unit, re.MULTILINE)
    assert "systemctl enable systemd-time-wait-sync.service" in calls
