"""`edgexnas convert` of what a service has stored, whoever stopped or repeated it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt
import pytest

from edgexnas.cli import main
from edgexnas.device.sinks.hdf5_sink import Hdf5Sink
from edgexnas.device.sinks.results import SeriesBegun, SeriesEnded, ServiceIdentity
from edgexnas.forms.csv_tables import read_csv
from edgexnas.spots import Spots
from tests.device.sinks.test_merging_sink import (
    FRAMES,
    IDENTITY,
    OTHER_BUNDLE,
    opened,
    result,
    run,
)

ORDER = ["first_frame", "last_frame", "row_px"]
ANGLES = ("--omega-start-deg", "0", "--omega-step-deg", "0.25")


def converted(folder: Path, *options: str) -> npt.NDArray[np.void]:
    output = folder.with_suffix(".csv")
    assert main(["convert", str(folder), str(output), *options]) == 0
    spots = read_csv(output)
    assert isinstance(spots, Spots)
    return np.sort(spots.table, order=ORDER)


def peaks_alone(folder: Path, numbers: Sequence[int], identity: ServiceIdentity) -> None:
    sink = Hdf5Sink(folder)
    sink.open(identity)
    sink.begin(SeriesBegun("a", identity="a #1"))
    sink.write([result(number) for number in numbers])
    sink.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> npt.NDArray[np.void]:
    folder = tmp_path_factory.mktemp("whole") / "r"
    run(folder, range(FRAMES), complete=True)
    return converted(folder)


def test_two_bundles_that_did_a_series_do_not_double_its_spots(
    tmp_path: Path, whole: npt.NDArray[np.void], capsys: pytest.CaptureFixture[str]
) -> None:
    for identity in (IDENTITY, OTHER_BUNDLE):
        run(tmp_path / "r", range(FRAMES), complete=True, identity=identity)
    np.testing.assert_array_equal(converted(tmp_path / "r"), whole)
    assert "bbbbbbbbbbbb…" in capsys.readouterr().out


def test_a_series_that_has_not_ended_has_all_its_spots_and_says_so(
    tmp_path: Path, whole: npt.NDArray[np.void], caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path / "r", range(FRAMES), complete=False)
    np.testing.assert_array_equal(converted(tmp_path / "r"), whole)
    assert "a #1 has not ended" in caplog.text


def test_a_bundle_that_was_replaced_in_a_series_leaves_one_list(
    tmp_path: Path, whole: npt.NDArray[np.void]
) -> None:
    sink = opened(tmp_path / "r")
    for number in range(FRAMES):
        sink.write([replace(result(number), made_by=IDENTITY if number < 4 else OTHER_BUNDLE)])
    sink.end(SeriesEnded("a", {}))
    sink.close()
    np.testing.assert_array_equal(converted(tmp_path / "r"), whole)


@pytest.mark.parametrize("first", [0, 6])
def test_peaks_of_two_bundles_are_not_mixed(
    tmp_path: Path, whole: npt.NDArray[np.void], first: int
) -> None:
    peaks_alone(tmp_path / "r", range(6), IDENTITY)
    peaks_alone(tmp_path / "r", range(first, FRAMES), OTHER_BUNDLE)
    np.testing.assert_array_equal(converted(tmp_path / "r", *ANGLES), whole)
    assert main(["convert", str(tmp_path / "r"), str(tmp_path / "p.cxi")]) == 0
    with h5py.File(tmp_path / "p.cxi") as file:
        peaks = [1] * 2 + [2] * 2 + [3] * 3 + [2] * 3 + [1] * 2
        assert file["entry_1/result_1/nPeaks"][:].tolist() == peaks


def test_other_settings_than_those_of_the_service_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "r", range(FRAMES), complete=True)
    arguments = ["convert", str(tmp_path / "r"), str(tmp_path / "s.refl")]
    assert main([*arguments, "--tolerance-px", "50"]) == 2
    assert "--tolerance-px would be ignored: the service merged by" in capsys.readouterr().err
    # The form takes its angles from there too.
    assert main(arguments) == 0
    assert main([*arguments, *ANGLES]) == 0


def test_files_of_another_name_are_found_and_one_of_several_is_told(
    tmp_path: Path, whole: npt.NDArray[np.void], caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path / "r", range(6), complete=False)
    run(tmp_path / "r", range(6, FRAMES), complete=True)
    for path in (tmp_path / "r").glob("results_*.h5"):
        path.rename(path.with_name(path.name.replace("results", "scan1")))
    np.testing.assert_array_equal(converted(tmp_path / "r"), whole)
    assert not caplog.text
    part = converted(tmp_path / "r/scan1_000001.h5")
    assert part["last_frame"].max() == 5
    assert (
        f"is one of 2 files, and a series may go over several; specify {tmp_path / 'r'}"
        in caplog.text
    )
    (tmp_path / "r/scan1_000002.h5").rename(tmp_path / "r/scan2_000002.h5")
    assert main(["convert", str(tmp_path / "r"), str(tmp_path / "s.flt")]) == 2
