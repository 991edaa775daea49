"""The wheel with the device extra alone, in environments that hold nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
RUNNING = f"{sys.version_info.major}.{sys.version_info.minor}"
# Of these numba, which compiles the peak finder at its first use, takes about 160.
MOST_MEMORY_MB = 400

PROGRAM = """
import importlib.util, json, sys
from pathlib import Path
import edgexnas
from edgexnas.device import Predictor

bundle, keys, frames = sys.argv[1:]
found = []
with Predictor(bundle, trust=keys, engine="onnxruntime") as predictor:
    for peaks in predictor.stream(frames):
        found.append(peaks.positions_px.tolist())
# VmHWM and not ru_maxrss: the latter starts at the peak of the process that started this one.
status = Path("/proc/self/status").read_text()
peak_kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
trainers = [name for name in ("torch", "deephyper") if importlib.util.find_spec(name)]
print(json.dumps({
    "version": edgexnas.__version__, "file": edgexnas.__file__, "python": sys.version.split()[0],
    "found": found, "peak_mb": peak_kib / 1024, "trainers": trainers,
}))
"""


def _interpreter(version: str) -> Path | None:
    """Find a Python of this version: the running one, one of pyenv, or one on PATH."""
    if version == RUNNING:
        return Path(sys.executable)
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    installed = sorted(root.glob(f"versions/{version}.*/bin/python{version}"))
    on_path = shutil.which(f"python{version}")
    if installed:
        return installed[-1]
    # A shim of pyenv is on PATH for versions that are installed but not chosen.
    if on_path is None or subprocess.run([on_path, "-V"], capture_output=True).returncode:
        return None
    return Path(on_path)


def _versions() -> list[Any]:
    """One Python in `make test`: that of JetPack 6 where it is; the others take minutes more."""
    first = "3.10" if _interpreter("3.10") else RUNNING
    others = sorted({RUNNING, "3.10", "3.12"} - {first})
    return [first, *(pytest.param(version, marks=pytest.mark.long) for version in others)]


def _run(*command: str | Path, cwd: Path) -> str:
    """Run a command away from the checkout and its environment; show what it says if it fails."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation"]
    _run(*build, "--outdir", folder, ROOT, cwd=folder)
    return next(folder.glob("edgexnas-*.whl"))


@pytest.fixture(scope="module")
def frames_path(tmp_path_factory: pytest.TempPathFactory, spot_frame: Callable[..., Any]) -> Path:
    h5py = pytest.importorskip("h5py")
    hdf5plugin = pytest.importorskip("hdf5plugin")
    path = tmp_path_factory.mktemp("frames") / "scan.h5"
    # The frames are larger than the spots need: memory grows with them.
    frames = np.zeros((8, 2048, 2048), np.uint16)
    frames[:, :96, :128] = [spot_frame(seed=seed) for seed in range(len(frames))]
    with h5py.File(path, "w") as file:
        file.create_dataset(
            "entry/data/data", data=frames, chunks=(1, 2048, 2048), **hdf5plugin.Bitshuffle()
        )
    return path


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[Path]:
    """A folder for a virtual environment, removed after the test: it takes 450 MB."""
    yield tmp_path / "venv"
    shutil.rmtree(tmp_path / "venv", ignore_errors=True)


@pytest.mark.parametrize("version", _versions())
@pytest.mark.timeout(600)
def test_the_device_extra_alone_predicts_within_400_mb(
    version: str, wheel: Path, bundle_path: Path, keys: Path, frames_path: Path,
    truth_px: Any, environment: Path, tmp_path: Path,
) -> None:  # fmt: skip
    interpreter = _interpreter(version)
    if interpreter is None:
        pytest.skip(f"there is no Python {version} here")
    _run(interpreter, "-m", "venv", environment, cwd=tmp_path)
    python = environment / "bin" / "python"
    constraints = ROOT / "constraints.txt"
    pinned = ["-c", constraints] if constraints.exists() else []
    # What is imported is compiled then; the rest of numba is not.
    install = ("install", "--quiet", "--no-compile", f"{wheel}[device]", *pinned)
    _run(python, "-m", "pip", *install, cwd=tmp_path)

    said = _run(python, "-I", "-c", PROGRAM, bundle_path, keys, frames_path, cwd=tmp_path)
    report = json.loads(said.splitlines()[-1])

    assert Path(report["file"]).is_relative_to(environment)
    assert report["trainers"] == []
    assert report["peak_mb"] < MOST_MEMORY_MB, report["peak_mb"]
    assert len(report["found"]) == 8
    np.testing.assert_allclose(report["found"][0], truth_px, atol=0.05)

    # The bundle that the package brings judges its peaks, which takes no more than that either.
    said = _run(python, "-I", "-c", PROGRAM, "universal", keys, frames_path, cwd=tmp_path)
    report = json.loads(said.splitlines()[-1])
    assert report["peak_mb"] < MOST_MEMORY_MB, report["peak_mb"]
    np.testing.assert_allclose(report["found"][0], truth_px, atol=0.1)
