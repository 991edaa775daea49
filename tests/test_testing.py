"""What integrators test their programs with: bundles that answer as promised, light to import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from edgexnas import testing
from edgexnas.bragg import CENTRE, centroid, scale_patches
from edgexnas.bundle import Precision, generate_keys
from edgexnas.device import PeakPredictor, PtychoPredictor
from edgexnas.device.power import open_power_meter


@pytest.mark.parametrize("precision", get_args(Precision))
def test_the_centroid_bundle_predicts_the_centroid(tmp_path: Path, precision: Precision) -> None:
    key, _ = generate_keys(tmp_path / "keys")
    path = testing.write_centroid_bundle(tmp_path / "centroid.edgex", signing_key=key)
    patches = testing.gaussian_patches(16)
    with PeakPredictor(path, trust=tmp_path / "keys", precision=precision, cache=False) as opened:
        found = opened.predict(patches).positions_px
    np.testing.assert_allclose(found, centroid(scale_patches(patches)), atol=0.05)
    assert abs(found - CENTRE).max() < 1


def test_the_centroid_bundle_finds_the_spots_of_a_frame(tmp_path: Path) -> None:
    key, _ = generate_keys(tmp_path / "keys")
    path = testing.write_centroid_bundle(tmp_path / "centroid.edgex", signing_key=key)
    with PeakPredictor(path, trust=tmp_path / "keys", cache=False) as predictor:
        peaks = predictor.process(testing.spot_frame())
    np.testing.assert_allclose(peaks.positions_px, testing.SPOTS_PX, atol=0.3)


def test_the_visible_bundle_shows_the_object(tmp_path: Path) -> None:
    key, _ = generate_keys(tmp_path / "keys")
    path = testing.write_visible_bundle(tmp_path / "visible.edgex", signing_key=key)
    scan = testing.visible_scan()
    with PtychoPredictor(path, trust=tmp_path / "keys", cache=False) as predictor:
        patches = predictor.predict(scan.patterns[:1])
    seen = testing.visible_object()[:64, :64]
    np.testing.assert_allclose(patches.amplitude[0], np.abs(seen), atol=0.02)


def test_a_jetson_tree_is_read_as_a_jetson(tmp_path: Path) -> None:
    tree = testing.JetsonTree(tmp_path)
    tree.set_power({"VDD_GPU_SOC": 6.0, "VDD_CPU_CV": 2.0, "VIN_SYS_5V0": 4.0})
    assert open_power_meter("jetson", root=tree.root).read().module_w == pytest.approx(12, abs=0.5)


def test_importing_loads_nothing_heavy() -> None:
    code = "import sys, edgexnas.testing; print([m for m in sys.modules if m in %r])"
    heavy = ("numpy", "onnx", "onnxruntime", "pydantic", "torch")
    done = subprocess.run(
        [sys.executable, "-c", code % (heavy,)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
