from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SAMPLE = Path(__file__).resolve().parents[2] / "samples" / "01_predict_peaks.py"

pytest.importorskip("onnxruntime", reason="onnxruntime is the extra «device»")


def _run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SAMPLE, *arguments], capture_output=True, text=True)


def test_the_sample_prints_a_line_for_each_peak(
    bundle_path: Path, keys: Path, tmp_path: Path, spot_frame: Callable[..., Any], truth_px: Any
) -> None:
    np.save(tmp_path / "scan.npy", np.stack([spot_frame(), spot_frame(seed=1)]))
    done = _run(bundle_path, keys, tmp_path / "scan.npy")
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if not line.startswith("#")]
    assert [line[0] for line in lines] == ["0"] * 3 + ["1"] * 3
    found_px = np.array([line[1:3] for line in lines[:3]], float)
    np.testing.assert_allclose(found_px, truth_px, atol=0.05)


def test_the_sample_ends_with_one_sentence_when_the_frames_are_missing(
    bundle_path: Path, keys: Path, tmp_path: Path
) -> None:
    done = _run(bundle_path, keys, tmp_path / "scan.npy")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: there is no file")
