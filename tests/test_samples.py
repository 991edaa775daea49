"""Each sample runs as its own help text says."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from edgexnas.bundle import generate_keys
from edgexnas.cli import main
from edgexnas.testing import JetsonTree, write_centroid_bundle

SAMPLES = Path(__file__).resolve().parents[1] / "samples"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `edgexnas demo` leaves, but that the network computes centroids and was not trained."""
    place = tmp_path_factory.mktemp("samples")
    frames = str(place / "frames.h5")
    simulate = "simulate --frames 48 --shape 768 768 --grains 60 --output"
    assert main([*simulate.split(), frames]) == 0
    assert main(["label", frames, "--output", str(place / "peaks.h5")]) == 0
    private, _ = generate_keys(place / "keys", private=place / "signing")
    write_centroid_bundle(place / "bragg.edgex", signing_key=private)
    return place


def run(sample: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, SAMPLES / sample, *map(str, arguments)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_sample_is_tested_here() -> None:
    source = Path(__file__).read_text()
    assert [s.name for s in sorted(SAMPLES.glob("*.py")) if s.name not in source] == []


def test_01_predict_peaks_prints_a_line_for_each_peak(folder: Path) -> None:
    lines = run(
        "01_predict_peaks.py", folder / "bragg.edgex", folder / "keys", folder / "frames.h5"
    )
    assert len(lines.splitlines()) > 100


def test_02_own_space_prints_its_pareto_front(folder: Path, tmp_path: Path) -> None:
    assert "units" in run("02_own_space.py", folder / "peaks.h5", tmp_path / "run")


def test_03_stream_ptycho_keeps_the_object_of_a_scan(visible: ModuleType, tmp_path: Path) -> None:
    signing_key, _ = generate_keys(tmp_path)
    bundle = visible.write_visible_bundle(tmp_path / "v.edgex", signing_key=signing_key)
    scan = visible.visible_scan()
    corners = np.fft.ifftshift(scan.patterns, axes=(1, 2))
    np.savez(tmp_path / "scan.npz", data=corners[None], scan=scan.positions_px[None])
    lines = run(
        "03_stream_ptycho.py", bundle, tmp_path, tmp_path / "scan.npz", tmp_path / "object.npz"
    )
    assert "stitched=35" in lines.splitlines()[-1]
    with np.load(tmp_path / "object.npz") as saved:
        seen = visible.visible_object()
        np.testing.assert_allclose(np.abs(saved["object"]), np.abs(seen), atol=0.02)


def test_04_choose_engine_measures_once_and_remembers(folder: Path, tmp_path: Path) -> None:
    arguments = ("04_choose_engine.py", folder / "bragg.edgex", folder / "keys", tmp_path / "cache")
    first, second = run(*arguments), run(*arguments)
    assert "int8:" in first
    assert "float16:" in first
    assert "measured earlier" not in first
    assert "measured earlier" in second


def test_05_stream_detector_prints_a_line_for_each_frame_of_a_series(
    folder: Path, free_port: Callable[[], int]
) -> None:
    pytest.importorskip("zmq", reason="pyzmq is the extra «zmq»")
    place = f"127.0.0.1:{free_port()}"
    detector = [sys.executable, "-m", "edgexnas.device.publishing", "simplon"]
    detector += [f"tcp://{place}", "--shape", "256x256", "--rate", "100", "--frames", "40"]
    with subprocess.Popen(detector, stdout=subprocess.DEVNULL) as running:
        try:
            url = f"simplon://{place}?exclusive=1"
            lines = run("05_stream_detector.py", folder / "bragg.edgex", folder / "keys", url)
        finally:
            running.kill()
    *_, counts = lines.splitlines()
    numbers = [int(line.split()[0]) for line in lines.splitlines() if not line.startswith("#")]
    assert numbers == list(range(40))
    assert "frames 40, missed 0, malformed 0" in counts


def test_06_a_subscriber_prints_what_the_configured_service_sends(
    folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("zmq", reason="pyzmq is the extra «zmq»")
    address = f"ipc://{tmp_path}/results"
    text = (SAMPLES / "06_serve.toml").read_text()
    for old, new in (
        ("tcp://127.0.0.1:5557", address),
        ("9108            #", "0 #"),
        ("&frames=500", ""),
    ):
        assert old in text
        text = text.replace(old, new)
    # Beside the bundle, because paths are relative to the configuration.
    configuration = folder / "06_serve.toml"
    configuration.write_text(text)
    serve = [sys.executable, "-m", "edgexnas.cli", "serve", str(configuration)]
    with subprocess.Popen(serve, stderr=subprocess.DEVNULL) as service:
        try:
            lines = run("06_receive_results.py", address, 20).splitlines()
            service.terminate()
            assert service.wait(120) == 0
        finally:
            service.kill()
    assert len([line for line in lines if "peaks, brightest at" in line]) >= 19


def test_07_measure_energy_prints_what_an_inference_costs(
    folder: Path, tmp_path: Path, run_undisturbed: Callable[..., str]
) -> None:
    device = JetsonTree(tmp_path / "orin")
    options = ["--seconds", "1", "--blocks", "1", "--root", device.root]
    sample = SAMPLES / "07_measure_energy.py"
    bundle = folder / "bragg.edgex"
    lines = run_undisturbed(sys.executable, sample, bundle, folder / "keys", *options)
    assert lines.startswith("Jetson AGX Orin 64 GB")
    assert "mJ an inference of 32" in lines.splitlines()[-1]


@pytest.mark.parametrize(
    ("sample", "arguments"),
    [
        ("01_predict_peaks.py", ["none.edgex", ".", "none.h5"]),
        ("02_own_space.py", ["none.h5", "run"]),
        ("03_stream_ptycho.py", ["none.edgex", ".", "none.h5", "object.npz"]),
        ("04_choose_engine.py", ["none.edgex", ".", "cache"]),
        ("05_stream_detector.py", ["none.edgex", ".", "none://"]),
        ("06_receive_results.py", ["none"]),
        ("07_measure_energy.py", ["none.edgex", ".", "--root", "none"]),
    ],
)
def test_what_is_wrong_is_a_sentence_and_leaves_nothing(
    tmp_path: Path, sample: str, arguments: list[str]
) -> None:
    done = subprocess.run(
        [sys.executable, SAMPLES / sample, *arguments],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
