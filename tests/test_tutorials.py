"""Tutorials run as printed, in their order."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgexnas.bundle import generate_keys
from edgexnas.simulate import HedmSettings, simulate_hedm
from edgexnas.testing import write_centroid_bundle

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_the_tutorial_of_grains_finds_the_grains_that_are_there(tmp_path: Path) -> None:
    readers = os.environ.get("EDGEXNAS_READERS")
    if not readers:
        pytest.skip("EDGEXNAS_READERS names no Python with ImageD11")
    text = (ROOT / "docs/tutorials/grains.md").read_text()
    # What its first lines ask for: any bundle does, and this one needs no training.
    generate_keys(tmp_path / "keys", name="a", private=tmp_path / "private")
    write_centroid_bundle(tmp_path / "bragg.edgex", signing_key=tmp_path / "private/a.key.pem")
    (tmp_path / "host").symlink_to(ROOT / "host")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "READERS": readers,
    }
    for language, code in re.findall(r"^```(python|bash)\n(.*?)^```", text, re.M | re.S):
        command = [sys.executable, "-c", code] if language == "python" else ["bash", "-ec", code]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
    if picture := os.environ.get("EDGEXNAS_KEEP_PICTURE"):
        shutil.copy(tmp_path / "grains.png", picture)
    grains = json.loads((tmp_path / "grains.json").read_text())["grains"]
    found = np.array([grain["translation_um"] for grain in grains])
    true = simulate_hedm(HedmSettings(frames=160, grains=12), seed=4).grains.positions_mm
    apart = np.linalg.norm(found[:, None] - true[None, :, [2, 0, 1]] * 1e3, axis=2)
    # Centroids place grains to some tens of µm in so narrow a wedge; they lie 200 µm apart.
    assert (apart.min(axis=0) < 60).sum() >= 11
    assert len(grains) <= 12
    assert (tmp_path / "grains.png").stat().st_size > 10_000
