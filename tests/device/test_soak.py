"""The soak by the clock: half a minute of it here, ten minutes with `make test-long`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

for library in ("onnxruntime", "zmq", "pvaccess", "prometheus_client"):
    pytest.importorskip(library, reason="the soak needs the extra «edge»")


def soak(folder: Path, *arguments: str) -> dict[str, object]:
    found = folder / "soak.json"
    command = [sys.executable, ROOT / "device" / "soak.py", *arguments]
    command += ["--json", found, "--page", folder / "soak.md"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    seen: dict[str, object] = json.loads(found.read_text())
    return seen


def test_kills_and_newer_bundles_cost_no_row(tmp_path: Path) -> None:
    faults = ("kill -9 and start", "newer bundle")
    # How soon all is right again is measured by the long soak.
    options = ("--minutes", "0.5", "--transport", "simplon", "--seed", "1", "--within", "120")
    seen = soak(tmp_path, *options, "--faults", *faults)
    assert seen["rows"]
    assert seen["kills"]


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_ten_minutes_of_faults_are_all_told_in_time(tmp_path: Path) -> None:
    assert soak(tmp_path, "--minutes", "10")["outcomes"]
