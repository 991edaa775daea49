"""What `predict` and `label` say at their end of the frames that they read."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from edgexnas.bundle import generate_keys
from edgexnas.cli import main
from edgexnas.testing import spot_frame, write_centroid_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The arguments of `predict` that name a bundle and its keys."""
    folder = tmp_path_factory.mktemp("bundle")
    key, _ = generate_keys(folder / "keys")
    path = write_centroid_bundle(folder / "a.edgex", signing_key=key, precisions=("float32",))
    return [str(path), "--trust", str(folder / "keys"), "--precision", "float32"]


def frames_file(path: Path, frames: np.ndarray) -> Path:
    with h5py.File(path, "w") as file:
        file["entry/data/data"] = frames
    return path


@pytest.fixture
def partly_written(tmp_path: Path) -> Path:
    """Four frames of three spots, one of them at an edge, and two that are a filler."""
    frames = np.stack([spot_frame(seed=seed) for seed in range(6)])
    frames[3] = spot_frame(np.array([[2.3, 60.6], [40.8, 100.2], [70.4, 60.4]]))
    frames[4:] = 65534
    return frames_file(tmp_path / "partly.h5", frames)


@pytest.mark.parametrize("to_file", [True, False])
def test_predict_counts_frames_peaks_flags_and_what_is_missing(
    to_file: bool,
    bundle: list[str],
    partly_written: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = ["--output", str(tmp_path / "peaks.csv")] if to_file else []
    assert main(["predict", bundle[0], str(partly_written), *bundle[1:], *output]) == 0
    captured = capsys.readouterr()
    last = captured.err.strip().splitlines()[-1]
    assert last == "4 frames processed, 2 missing; 12 peaks, 1 flagged (1 edge)"
    assert "processed" not in captured.out


def test_label_counts_them_too(
    partly_written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["label", str(partly_written), "--output", str(tmp_path / "peaks.h5")]) == 0
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last == "4 frames processed, 2 missing; 12 peaks, 1 flagged (1 edge)"


def test_frames_that_a_live_source_leaves_out_are_missing(
    bundle: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    url = "sim://hedm?shape=256x256&frames=3&peaks=20"
    assert main(["predict", bundle[0], url, *bundle[1:]]) == 0
    assert "3 frames processed, 0 missing" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["predict", "label"])
def test_no_peak_in_a_whole_series_is_a_warning_and_no_failure(
    command: str,
    bundle: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    dark = frames_file(tmp_path / "dark.h5", np.full((3, 96, 128), 5, np.uint16))
    first = bundle[:1] if command == "predict" else []
    rest = bundle[1:] if command == "predict" else []
    output = ["--output", str(tmp_path / "peaks.h5")]
    assert main([command, *first, str(dark), *rest, *output]) == 0
    assert "3 frames processed, 0 missing; 0 peaks, 0 flagged" in capsys.readouterr().err
    assert f"no peaks on any of 3 frames of {dark}" in caplog.text


@pytest.mark.parametrize("command", ["predict", "label"])
def test_what_peaks_were_found_with_is_said(
    command: str,
    bundle: list[str],
    partly_written: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mask = np.zeros((96, 128), np.bool_)
    mask[:30] = True
    np.save(tmp_path / "mask.npy", mask)
    first, rest = (bundle[:1], bundle[1:]) if command == "predict" else ([], [])
    options = ["--mask", str(tmp_path / "mask.npy"), "--saturation", "1234", "--keep-hot"]
    options += ["--minimum-counts", "321", "--threshold", "3"]
    output = ["--output", str(tmp_path / "peaks.h5")]
    assert main([command, *first, str(partly_written), *rest, *output, *options]) == 0
    *_, found_with, counts = capsys.readouterr().err.strip().splitlines()
    assert found_with.startswith("peaks found with threshold 321 counts above background (noise ")
    assert found_with.endswith("saturation 1234 (from option), 3840 pixels masked, 0 of them hot")
    assert "; 8 peaks, 8 flagged (8 saturated" in counts


def test_a_mask_that_cannot_be_read_is_named(
    bundle: list[str], partly_written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "no.npy"
    arguments = ["predict", bundle[0], str(partly_written), *bundle[1:], "--mask", str(missing)]
    assert main(arguments) == 2
    assert f"mask {missing} cannot be read as .npy" in capsys.readouterr().err
