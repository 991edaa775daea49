"""Programs that read our forms, in an environment of their own.

`EDGEXNAS_READERS` is the Python of an environment with imaged11, silx, hdf5plugin, tifffile,
reciprocalspaceship and midas-transforms. They are test tools with licences of their own, and never
run in the process of a test.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = Path(__file__).parent / "programs"


def read_with(module: str, program: str, *arguments: object) -> Any:
    """Run a program of `programs/` with the readers' Python; return the JSON that it prints last.

    The test is skipped where there are no readers, or not this one.
    """
    python = os.environ.get("EDGEXNAS_READERS")
    if not python:
        pytest.skip("EDGEXNAS_READERS names no Python with the programs that read this form")
    environment = {**os.environ, "PYTHONPATH": "", "QT_QPA_PLATFORM": "offscreen"}
    found = subprocess.run(
        [python, "-c", f"import importlib.util as u; assert u.find_spec({module!r})"],
        env=environment,
        stderr=subprocess.DEVNULL,
    )
    if found.returncode:
        pytest.skip(f"{module} is not installed beside EDGEXNAS_READERS={python}")
    ran = subprocess.run(
        [python, str(PROGRAMS / program), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.strip().splitlines()[-1])
