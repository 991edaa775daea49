"""Spots straight from frames: `stream(merge=...)`, `predict --merge` and a service's sink."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from edgexnas.bundle import Bundle
from edgexnas.cli import main
from edgexnas.device import PeakPredictor
from edgexnas.device.sinks.results_file import read_spots
from edgexnas.errors import ConfigurationError
from edgexnas.forms.csv_tables import read_csv
from edgexnas.frames import ArrayFrames, open_frames
from edgexnas.merging import MergeSettings
from edgexnas.spots import Spots

pytest.importorskip("onnxruntime", reason="onnxruntime is the extra «device»")

ANGLES = MergeSettings(omega_start_deg=5.0, omega_step_deg=0.5)


@pytest.fixture(scope="module")
def frames(spot_frame: Callable[..., Any]) -> Any:
    """(8, 96, 128): a spot on frames 2 to 5 at (20.3, 30.6), and one on frame 3 at (70.4, 60.4)."""
    places = [[], [], [(20.3, 30.6)], [(20.3, 30.6), (70.4, 60.4)]]
    places += [[(20.3, 30.6)], [(20.3, 30.6)], [], []]
    return np.stack([spot_frame(here, seed=seed) for seed, here in enumerate(places)])


@pytest.fixture(scope="module")
def scan(frames: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scan") / "scan.h5"
    with h5py.File(path, "w") as file:
        file["entry/data/data"] = frames
    return path


def check(spots: Spots) -> None:
    table = np.sort(spots.table, order="peaks")
    assert table[["first_frame", "last_frame"]].tolist() == [(3, 3), (2, 5)]
    np.testing.assert_allclose(table["row_px"], [70.4, 20.3], atol=0.1)
    np.testing.assert_allclose(table["omega_deg"], [6.75, 7.0], atol=0.02)


def test_stream_gives_spots_where_one_asks_for_them(bundle: Bundle, frames: Any) -> None:
    with PeakPredictor(bundle) as predictor:
        check(Spots.joined(list(predictor.stream(frames, merge=ANGLES))))


def test_a_series_states_its_own_angles(bundle: Bundle, frames: Any) -> None:
    edges = 5 + np.arange(9) / 2
    series = ArrayFrames(frames, omega_deg=np.stack([edges[:-1], edges[1:]], axis=1))
    with PeakPredictor(bundle) as predictor:
        check(Spots.joined(list(predictor.stream(series, merge=MergeSettings()))))


def test_frames_without_angles_are_refused_at_once(bundle: Bundle, scan: Path) -> None:
    with PeakPredictor(bundle) as predictor:
        with pytest.raises(ConfigurationError, match="specify omega_start_deg and omega_step_deg"):
            predictor.stream(scan, merge=MergeSettings())
        with open_frames(scan) as series:
            assert len(list(predictor.stream(series))) == 8


def test_predict_writes_spots(
    bundle_path: Path, keys: Path, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "spots.csv"
    command = ["predict", bundle_path, scan, "--trust", keys, "--output", output, "--merge"]
    angles = ["--omega-start-deg", "5", "--omega-step-deg", "0.5"]
    assert main([*map(str, command), *angles]) == 0
    spots = read_csv(output)
    assert isinstance(spots, Spots)
    check(spots)
    assert "2 spots" in capsys.readouterr().err


def test_angles_without_merging_are_refused(
    bundle_path: Path, keys: Path, scan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["predict", bundle_path, scan, "--trust", keys, "--omega-step-deg", "0.5"]
    assert main([*map(str, command)]) == 2
    assert "peaks are merged only with --merge" in capsys.readouterr().err


def test_a_service_stores_spots_as_its_configuration_says(
    bundle_path: Path, keys: Path, scan: Path, tmp_path: Path
) -> None:
    configuration = tmp_path / "serve.toml"
    configuration.write_text(
        f'source = "file://{scan}"\n[predictor]\nbundle = "{bundle_path}"\ntrust = "{keys}"\n'
        '[[sinks]]\nkind = "hdf5"\nfolder = "results"\n'
        "[sinks.merge]\nomega_start_deg = 5.0\nomega_step_deg = 0.5\n[monitoring]\nport = 0\n"
    )
    assert main(["serve", str(configuration), "--quiet"]) == 0
    check(Spots.joined([batch.spots for batch in read_spots(tmp_path / "results")]))
    output = tmp_path / "spots.csv"
    assert main(["convert", str(tmp_path / "results"), str(output)]) == 0
    again = read_csv(output)
    assert isinstance(again, Spots)
    check(again)


def test_a_wrong_key_of_merging_is_named_with_its_line(
    bundle_path: Path, keys: Path, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configuration = tmp_path / "serve.toml"
    configuration.write_text(
        f'source = "file://{scan}"\n[predictor]\nbundle = "{bundle_path}"\ntrust = "{keys}"\n'
        '[[sinks]]\nkind = "hdf5"\nfolder = "results"\n'
        "[sinks.merge]\nomega_start_deg = 5.0\nomega_step_deg = 0.5\nomega = 3\n"
    )
    assert main(["serve", str(configuration), "--check"]) == 2
    told = capsys.readouterr().err
    assert f"{configuration}:11: sinks[1].merge.omega is unknown; specify one of omega_sta" in told
