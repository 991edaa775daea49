"""Ptychography from the shell: simulate, label, predict, and what is said of bad scans."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import h5py
import numpy as np
import pytest

from edgexnas.bundle import generate_keys
from edgexnas.cli import main
from edgexnas.errors import InputError
from edgexnas.host.data.ptycho_dataset import PtychoDataset
from edgexnas.host.data.ptycho_labels import label_scan
from edgexnas.ptycho import oriented
from edgexnas.scans import Scan, holds_scan, open_scan
from edgexnas.simulate import (
    HedmSettings,
    PtychographySettings,
    save_series,
    simulate_hedm,
    simulate_scan,
)

PATTERNS = np.random.default_rng(0).poisson(3, (6, 64, 64)).astype(np.uint16)
POSITIONS = np.stack([np.arange(6.0) * 7, 40 - np.arange(6.0)], axis=1)


@pytest.fixture(scope="module")
def beamline(visible: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with keys, a bundle and a scan without a known object."""
    folder = tmp_path_factory.mktemp("beamline")
    signing_key, _ = generate_keys(folder / "keys")
    visible.write_visible_bundle(folder / "visible.edgex", signing_key=signing_key)
    scan = visible.visible_scan()
    write(folder / "scan.h5", scan.patterns, scan.positions_px)
    return folder


def write(path: Path, patterns: np.ndarray, positions: np.ndarray) -> Path:
    with h5py.File(path, "w") as file:
        file["entry/data/data"] = patterns
        file["entry/data/positions_px"] = positions
    return path


def run(command: str, *paths: object) -> int:
    return main([*command.split(), *map(str, paths)])


def test_a_simulated_scan_is_labelled_by_its_truth(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan, labels = tmp_path / "scan.h5", tmp_path / "labels.h5"
    assert run("simulate --scan-of cells --seed 3 --output", scan) == 0
    assert run("label", scan, "--output", labels) == 0
    dataset = PtychoDataset.load(labels)
    assert dataset.against == "truth"
    assert len(dataset) == len(open_scan(scan)) == 784
    assert "784" in capsys.readouterr().out


SMALL = simulate_scan(PtychographySettings(scan_shape_px=(36, 36), step_px=9), seed=3)


def test_a_scan_too_small_to_split_is_labelled_with_simulated_objects_and_all_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan, probe, labels = (tmp_path / name for name in ("scan.h5", "probe.npy", "labels.h5"))
    turned = np.ascontiguousarray(oriented(SMALL.patterns, "rotate-clockwise", inverse=True))
    write(scan, turned, SMALL.positions_px)
    np.save(probe, SMALL.probe)
    assert run("label --iterations 15", scan, "--probe", probe, "--output", labels) == 0
    dataset = PtychoDataset.load(labels)
    # Again, over what is there, and with the orientation said.
    again = ["label", scan, "--orientation", dataset.orientation, "--iterations", 15]
    assert run("", *again, "--output", labels) == 0
    assert (dataset.against, dataset.orientation) == ("iterative", "rotate-clockwise")
    assert len(dataset.split().test) == len(SMALL)
    said = " ".join(capsys.readouterr().out.split())
    assert "the 25 measured ones test, 1280 of simulated objects" in said
    assert "orientation rotate-clockwise" in said
    assert "direct beam" in said


def test_the_modes_that_are_asked_for_are_those_of_the_probe_in_the_labels(tmp_path: Path) -> None:
    scan = simulate_scan(PtychographySettings(scan_shape_px=(240, 240)), seed=3)
    write(tmp_path / "scan.h5", scan.patterns, scan.positions_px)
    command = "label --modes 1 --iterations 1 --orientation as-is --output"
    assert run(command, tmp_path / "labels.h5", tmp_path / "scan.h5") == 0
    probe = PtychoDataset.load(tmp_path / "labels.h5").probe
    assert probe is not None
    assert probe.shape == (1, 64, 64)


def test_the_first_probe_is_found_with_the_patterns_that_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = simulate_scan(PtychographySettings(scan_shape_px=(240, 240)), seed=3)
    write(tmp_path / "scan.h5", scan.patterns, scan.positions_px)
    tried = []

    def find(_: Scan, *, among: np.ndarray, **options: object) -> None:
        tried.extend(among)
        raise InputError("enough")

    monkeypatch.setattr("edgexnas.host.find_orientation", find)
    assert run("label --output", tmp_path / "labels.h5", tmp_path / "scan.h5") == 1
    train = label_scan(scan).split().train
    assert 64 < len(train) < len(scan)
    np.testing.assert_array_equal(tried, train)


def test_a_scan_that_is_not_explained_makes_no_small_dataset(
    beamline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = tmp_path / "labels.h5"
    command = ["label", beamline / "scan.h5", "--orientation", "as-is", "--iterations", 2]
    assert run("", *command, "--output", labels) == 1
    assert "does not explain the patterns" in capsys.readouterr().err
    assert not labels.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.ones((2, 64, 64)), "a probe of float64"),
        (np.ones((128, 128), np.complex64), r"a probe of complex64 \(128, 128\)"),
        (np.zeros((64, 64), np.complex64), "is dark or holds NaN"),
    ],
)
def test_what_is_no_probe_of_the_scan_is_rejected_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: np.ndarray, message: str
) -> None:
    write(tmp_path / "scan.h5", SMALL.patterns, SMALL.positions_px)
    np.savez(tmp_path / "probe.npz", probe=content)
    command = ["label", tmp_path / "scan.h5", "--probe", tmp_path / "probe.npz", "--output"]
    assert run("", *command, tmp_path / "labels.h5") == 1
    assert re.search(message, " ".join(capsys.readouterr().err.split()))


def test_a_refined_object_is_printed_sweep_by_sweep_and_saved_with_a_picture(
    visible: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    signing_key, _ = generate_keys(tmp_path / "keys")
    bundle = tmp_path / "v.edgex"
    visible.write_visible_bundle(bundle, signing_key=signing_key, probe=SMALL.probe)
    write(tmp_path / "scan.h5", SMALL.patterns, SMALL.positions_px)
    inputs = bundle, tmp_path / "scan.h5", "--trust", tmp_path / "keys"
    assert run("predict --refine 3", *inputs, "--output", tmp_path / "object.npz") == 0
    assert "refinement of 25 patterns" in " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "object-refinement.png").exists()
    with np.load(tmp_path / "object.npz") as kept:
        assert kept["residuals"].shape == (4,)


def test_an_object_that_cannot_be_refined_is_kept_and_the_reason_said(
    visible: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    signing_key, _ = generate_keys(tmp_path / "keys")
    bundle = tmp_path / "v.edgex"
    visible.write_visible_bundle(bundle, signing_key=signing_key, probe=SMALL.probe)
    write(tmp_path / "scan.h5", SMALL.patterns, SMALL.positions_px)
    monkeypatch.setattr("edgexnas.ptycho.refinement.MOST_BYTES", 3 * 64 * 64 * 2)
    inputs = bundle, tmp_path / "scan.h5", "--trust", tmp_path / "keys"
    assert run("predict --refine 3", *inputs, "--output", tmp_path / "object.npz") == 1
    said = capsys.readouterr()
    assert "stitched 25 patches" in " ".join(said.out.split())
    assert "the object is stitched and not refined: pattern 3" in " ".join(said.err.split())
    with np.load(tmp_path / "object.npz") as kept:
        assert kept["object"].any()
        assert "residuals" not in kept


@pytest.mark.parametrize("name", ["object.npz", "object.h5"])
def test_the_object_of_a_scan_is_kept_with_its_pictures(
    beamline: Path, visible: ModuleType, tmp_path: Path, name: str
) -> None:
    inputs = beamline / "visible.edgex", beamline / "scan.h5"
    assert run("predict", *inputs, "--trust", beamline / "keys", "--output", tmp_path / name) == 0
    if name.endswith(".npz"):
        with np.load(tmp_path / name) as file:
            found, coverage = file["object"], file["coverage"]
    else:
        with h5py.File(tmp_path / name) as file:
            data = file["entry/object"]
            found = data["amplitude"][()] * np.exp(1j * data["phase"][()])
            coverage = data["coverage"][()]
    np.testing.assert_allclose(np.abs(found), np.abs(visible.visible_object()), atol=0.02)
    assert abs(np.angle(found.sum())) < 1e-5
    assert coverage.shape == found.shape
    pictures = sorted(tmp_path.glob("*.png"))
    assert [p.name for p in pictures] == ["object-amplitude.png", "object-phase.png"]
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in pictures)


def test_a_scan_from_a_url_is_placed_by_the_size_of_an_object_pixel(
    beamline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "object.npz"
    command = ["predict", beamline / "visible.edgex", "sim://ptycho?frames=9"]
    options = ["--trust", beamline / "keys", "--output", place]
    assert run("", *command, *options) == 2
    assert "object_pixel_m is not given" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert run("", *command, *options, "--object-pixel-nm", 10, 10) == 0
    assert "stitched 9 patches" in " ".join(capsys.readouterr().out.split())
    assert place.exists()


def test_what_holds_positions_is_a_scan_and_frames_are_none(tmp_path: Path) -> None:
    frames = simulate_hedm(HedmSettings(frames=2, shape=(64, 64), grains=1))
    assert not holds_scan(save_series(frames, tmp_path / "frames.h5"))
    assert holds_scan(write(tmp_path / "scan.h5", PATTERNS, POSITIONS))
    np.savez(tmp_path / "scan.npz", data=PATTERNS, scan=POSITIONS)
    assert holds_scan(tmp_path / "scan.npz")
    np.savez(tmp_path / "frames.npz", data=PATTERNS)
    assert not holds_scan(tmp_path / "frames.npz")
    assert not holds_scan(tmp_path)
    assert not holds_scan(tmp_path / "nothing.h5")


def counts(value: int, dtype: type = np.int32) -> np.ndarray:
    changed = PATTERNS.astype(dtype)
    changed[2, 5, 6] = value
    return changed


BAD = {
    "another size": (np.ones((6, 48, 80), np.uint16), POSITIONS, "48"),
    "negative counts": (counts(-3), POSITIONS, "-3 at row 5, col 6"),
    "saturated counts": (counts(65535, np.uint16), POSITIONS, "counts from 65535 are saturated"),
    "fewer positions": (PATTERNS, POSITIONS[:4], "6 patterns but positions of shape (4, 2)"),
    "far positions": (PATTERNS, POSITIONS * 1e6, "in object pixels"),
    "no known position": (PATTERNS, np.full((6, 2), np.nan), "no "),
    "empty": (PATTERNS[:0], POSITIONS[:0], "holds no frames"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("command", ["label", "predict"])
def test_a_bad_scan_is_refused_in_a_sentence_and_leaves_nothing(
    beamline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, case: str
) -> None:
    patterns, positions, message = BAD[case]
    scan = write(tmp_path / "scan.h5", patterns, positions)
    out = tmp_path / "out"
    out.mkdir()
    if command == "label":
        status = run("label --iterations 1", scan, "--output", out / "labels.h5")
    else:
        trust = "--trust", beamline / "keys"
        status = run("predict", beamline / "visible.edgex", scan, *trust, "--output", out / "o.h5")
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if line.startswith("edgexnas")]
    assert status == 1
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in said
    assert not list(out.iterdir())


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ([], "name a file for it"),
        (["--output", "object.tif"], "no suffix that tells its format"),
        (["--output", "nowhere/object.npz"], "in a folder that exists"),
    ],
)
def test_where_an_object_cannot_be_kept_is_said_before_it_is_made(
    beamline: Path, capsys: pytest.CaptureFixture[str], output: list[str], message: str
) -> None:
    inputs = beamline / "visible.edgex", beamline / "scan.h5", "--trust", beamline / "keys"
    assert run("predict", *inputs, *output) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--minimum-counts 3", "--saturation 9"])
def test_options_of_frames_are_refused_for_a_scan(
    beamline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    labels = tmp_path / "labels.h5"
    assert run("label", beamline / "scan.h5", "--output", labels, *option.split()) == 2
    assert f"{option.split()[0]} would be ignored" in capsys.readouterr().err
    assert not labels.exists()


def test_the_size_of_an_object_pixel_is_refused_for_a_file(
    beamline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = beamline / "visible.edgex", beamline / "scan.h5", "--trust", beamline / "keys"
    output = "--output", tmp_path / "object.npz"
    assert run("predict", *inputs, *output, "--object-pixel-nm", 10, 10) == 2
    assert "--object-pixel-nm would be ignored" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_scan_is_not_overwritten_by_its_labels(
    beamline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (beamline / "scan.h5").read_bytes()
    assert run("label", beamline / "scan.h5", "--output", beamline / "scan.h5") == 2
    assert "is what this command reads" in capsys.readouterr().err
    assert (beamline / "scan.h5").read_bytes() == before


def test_labels_without_a_folder_are_refused_before_the_work(
    beamline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("label", beamline / "scan.h5", "--output", tmp_path / "nowhere" / "labels.h5") == 2
    assert "there is no folder" in capsys.readouterr().err


@pytest.mark.long
def test_a_scan_is_labelled_searched_exported_and_predicted_from_the_shell(tmp_path: Path) -> None:
    scan, labels, folder = (tmp_path / name for name in ("scan.h5", "labels.h5", "run"))
    bundle, place = tmp_path / "ptycho.edgex", tmp_path / "object.npz"
    assert run("simulate --scan-of cells --seed 3 --output", scan) == 0
    assert run("label --drawn 100 --iterations 1 --output", labels, scan) == 0
    searching = "--space mlpPtycho --constraint parameters=200000 --epochs 2 --max-evals 1"
    serial = "--search random --evaluator serial --device cpu"
    assert run(f"optimize ptycho {searching} {serial} --data", labels, "--output", folder) == 0
    assert run("keys generate --name beamline --output", tmp_path / "keys") == 0
    key = tmp_path / "keys" / "beamline.key.pem"
    assert run("export", folder, "--signing-key", key, "--output", bundle) == 0
    inputs = bundle, scan, "--trust", tmp_path / "keys"
    assert run("predict", *inputs, "--output", place) == 0
    with np.load(place) as found:
        assert (found["coverage"] > 0).mean() > 0.9
