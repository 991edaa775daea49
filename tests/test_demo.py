from __future__ import annotations

import contextlib
import csv
import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from edgexnas.bundle import open_bundle
from edgexnas.demo import DemoResult, DemoSettings, run_demo
from edgexnas.demo.markdown import write_markdown
from edgexnas.demo.spots import HexrdSpots
from edgexnas.device import Predictor
from edgexnas.errors import ConfigurationError, SourceError
from edgexnas.familiarity.tally import UnfamiliarTally
from edgexnas.simulate import HedmSettings, save_series, simulate_hedm


@contextlib.contextmanager
def silent(title: str) -> Iterator[Callable[[int, int], None]]:
    yield lambda done, total: None


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    folder = tmp_path_factory.mktemp("demo")
    settings = HedmSettings(shape=(768, 768), frames=48, grains=60)
    save_series(simulate_hedm(settings, seed=2), folder / "frames.h5")
    return run_demo(
        DemoSettings(
            output=folder / "out",
            data=folder / "frames.h5",
            max_evals=3,
            epochs=20,
            baselines=("small",),
            workers=1,
        ),
        silent,
    )


def test_the_table_holds_the_model_its_baseline_and_the_classical_rows(result: DemoResult) -> None:
    names = [(row.name, row.precision) for row in result.rows]
    assert names == [
        ("mlpBragg", "float32"),
        ("mlpBragg", "int8"),
        ("BraggNN 16-8-4-2", "float32"),
        ("constant", None),
        ("intensity centroid", None),
        ("pseudo-Voigt fit", None),
    ]


def test_predictions_from_frames_agree_with_the_hosts_own_score(result: DemoResult) -> None:
    manifest = open_bundle(result.bundle, trust=result.settings.output / "keys").manifest
    host = next(row for row in manifest.accuracy if row.precision == "float32")
    device = next(row for row in result.rows if row.precision == "float32")
    assert device.n > 0.95 * host.n
    assert device.mean_px == pytest.approx(host.mean_px, rel=0.1)


def test_most_visible_spots_are_found_and_hardly_anything_else(result: DemoResult) -> None:
    assert result.detection is not None
    assert result.detection.recall > 0.85
    assert result.detection.precision > 0.95


def test_the_frames_it_learned_from_are_not_foreign(result: DemoResult) -> None:
    tally = UnfamiliarTally()
    with Predictor(result.bundle, trust=result.settings.output / "keys") as predictor:
        for peaks in predictor.stream(result.settings.data):
            tally.add(peaks.reasons)
    assert tally.total > 1000
    # Faint, overlapping and saturated peaks among them.
    assert tally.share < 0.08
    assert tally.reasons["the whole frame"] == 0


def test_the_page_names_its_command_and_every_row(result: DemoResult, tmp_path: Path) -> None:
    page = write_markdown(result, tmp_path / "results.md", command="edgexnas demo").read_text()
    assert "`edgexnas demo` on" in page
    assert all(f"| {row.name} |" in page for row in result.rows)
    assert "recall" in page


def test_bundle_trust_store_picture_and_table_are_left(result: DemoResult) -> None:
    assert result.picture.read_bytes().startswith(b"\x89PNG")
    with result.table.open() as file:
        assert len(list(csv.DictReader(file))) == len(result.rows)


def test_the_trusted_folder_holds_no_private_key(result: DemoResult) -> None:
    folder = result.settings.output
    assert [path.name for path in (folder / "keys").iterdir()] == ["demo.pub.pem"]
    assert [path.name for path in (folder / "signing").iterdir()] == ["demo.key.pem"]


def test_an_unknown_space_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="space 'nlpBragg' is unknown"):
        run_demo(DemoSettings(output=tmp_path / "out", space=("nlpBragg",)), silent)
    assert not (tmp_path / "out").exists()


def test_a_demo_with_other_settings_keeps_the_search_of_the_one_before(
    result: DemoResult, tmp_path: Path
) -> None:
    shutil.copytree(result.settings.output / "search", tmp_path / "search")
    before = (tmp_path / "search" / "journal.jsonl").read_bytes()
    changes = {"output": tmp_path, "seed": 5, "max_evals": 1, "epochs": 2, "baselines": ()}
    run_demo(dataclasses.replace(result.settings, **changes), silent)
    assert (tmp_path / "search" / "journal.jsonl").read_bytes() != before
    assert (tmp_path / "search-1" / "journal.jsonl").read_bytes() == before


def test_a_hexrd_spot_list_tells_wide_spots_from_single_hits(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "spots.h5", "w") as file:
        file["ff1/7"] = np.array([[10.5, 20.5, 4, 9, 19, 13, 23, 500, 900],
                                  [50.0, 60.0, 1, 50, 60, 51, 61, 200, 200]])  # fmt: skip
    positions, wanted = HexrdSpots(str(tmp_path / "spots.h5"))(7)
    assert positions.tolist() == [[10.5, 20.5], [50.0, 60.0]]
    assert wanted.tolist() == [True, False]


def test_a_spot_list_with_several_panels_must_be_told_which(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "spots.h5", "w") as file:
        file["ff1/0"] = file["ff2/0"] = np.zeros((1, 9))
    with pytest.raises(SourceError, match="ff1, ff2"):
        HexrdSpots(str(tmp_path / "spots.h5"))
