"""Forms of other programs hold what was merged, and those programs read it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgexnas.bragg import Peaks
from edgexnas.cli import main
from edgexnas.errors import ConfigurationError, SourceError
from edgexnas.forms.conversion import form_of, write_form
from edgexnas.forms.csv_tables import PEAK, PEAK_HEADER, peak_rows, read_csv
from edgexnas.forms.reflections import read_reflections, spots_of, write_reflections
from edgexnas.merging import MergeSettings, Rotation
from edgexnas.ptycho import ObjectImage
from edgexnas.spots import SPOT, Spots

pytest.importorskip("h5py", reason="h5py is the extra «device»")

SETTINGS = MergeSettings(omega_start_deg=10.0, omega_step_deg=0.25)
CENTRE = (100.0, 50.0)
REAL = os.environ.get("EDGEXNAS_REAL_DATA")


def _readers() -> ModuleType:
    spec = importlib.util.spec_from_file_location("readers", Path(__file__).parent / "readers.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


read_with: Callable[..., Any] = _readers().read_with


@pytest.fixture(scope="module")
def spots() -> Spots:
    rng = np.random.default_rng(0)
    table = np.zeros(40, SPOT)
    table["row_px"], table["col_px"] = rng.uniform(0, 2000, (2, 40))
    table["first_frame"] = np.sort(rng.integers(0, 90, 40))
    table["peaks"] = rng.integers(1, 4, 40)
    table["last_frame"] = table["first_frame"] + table["peaks"] - 1
    middle = (table["first_frame"] + table["last_frame"] + 1) / 2
    table["omega_deg"] = 10 + 0.25 * middle
    table["row_sigma_px"], table["col_sigma_px"] = rng.uniform(0.01, 0.2, (2, 40))
    table["omega_sigma_deg"] = rng.uniform(0.001, 0.1, 40)
    table["intensity"] = rng.uniform(20, 1e5, 40)
    table["flags"] = rng.choice([0, 4, 64, 8], 40)
    return Spots.from_table(table)


@pytest.fixture(scope="module")
def image() -> ObjectImage:
    row, col = np.mgrid[:30, :40]
    values = (1 + 0.01 * row) * np.exp(1j * np.sin(col / 9))
    coverage = np.ones((30, 40), np.float32)
    coverage[:5] = values[:5] = 0
    return ObjectImage(values.astype(np.complex64), coverage, 0, (12, -7))


def written(tmp_path: Path, name: str, form: Any, result: Any) -> Path:
    paths = write_form(
        tmp_path / name, form, result, settings=SETTINGS, beam_centre_px=CENTRE, frames=12
    )
    return paths[0]


@pytest.mark.parametrize(("name", "form"), [("s.flt", "imaged11"), ("s.h5", "imaged11-hdf5")])
def test_imaged11_reads_spots(tmp_path: Path, spots: Spots, name: str, form: Any) -> None:
    told = read_with("ImageD11", "columnfile.py", written(tmp_path, name, form, spots))
    positions = np.stack([told["sc"], told["fc"]], axis=1)
    np.testing.assert_allclose(positions, spots.positions_px, atol=1e-5)
    np.testing.assert_allclose(told["omega"], spots.omega_deg, atol=1e-6)
    np.testing.assert_allclose(told["sum_intensity"], spots.intensities, rtol=1e-6)
    assert told["Number_of_pixels"] == spots.peaks.tolist()
    # Its own geometry takes them.
    assert np.isfinite([told["tth"], told["eta"], told["gx"], told["gz"]]).all()


def test_midas_reads_spots(tmp_path: Path, spots: Spots) -> None:
    path = written(tmp_path, "Result_StartNr_0_EndNr_99.csv", "midas", spots)
    told = read_with("midas_transforms", "midas_list.py", path)
    assert told["header"]
    positions = np.stack([told["ZCen"], told["YCen"]], axis=1)
    np.testing.assert_allclose(positions, spots.positions_px, atol=1e-5)
    np.testing.assert_allclose(told["MinOme"], 10 + 0.25 * spots.frames[:, 0])
    np.testing.assert_allclose(told["MaxOme"], 10.25 + 0.25 * spots.frames[:, 1])
    # Back by its own formulas: y = -R sin η, z = R cos η.
    radius, eta = np.array(told["Radius"]), np.deg2rad(told["Eta"])
    y, z = -radius * np.sin(eta), radius * np.cos(eta)
    np.testing.assert_allclose(CENTRE[1] - y, spots.positions_px[:, 1], atol=1e-3)
    np.testing.assert_allclose(CENTRE[0] + z, spots.positions_px[:, 0], atol=1e-3)


def test_a_reader_of_dials_tables_reads_spots(tmp_path: Path, spots: Spots) -> None:
    pytest.importorskip("msgpack", reason="msgpack is the extra «formats»")
    path = written(tmp_path, "strong.refl", "dials", spots)
    told = read_with("reciprocalspaceship", "reflections.py", path)
    np.testing.assert_allclose(told["xyzobs.px.value.0"], spots.positions_px[:, 1] + 0.5)
    np.testing.assert_allclose(told["xyzobs.px.value.1"], spots.positions_px[:, 0] + 0.5)
    np.testing.assert_allclose(told["xyzobs.px.value.2"], (spots.omega_deg - 10) / 0.25)
    np.testing.assert_allclose(told["bbox.5"], spots.frames[:, 1] + 1)


def test_reflections_that_are_read_are_those_that_were_written(
    tmp_path: Path, spots: Spots
) -> None:
    pytest.importorskip("msgpack", reason="msgpack is the extra «formats»")
    rotation = Rotation.of(SETTINGS)
    write_reflections(tmp_path / "a.refl", spots, rotation=rotation)
    again = spots_of(read_reflections(tmp_path / "a.refl"), rotation=rotation)
    np.testing.assert_allclose(again.positions_px, spots.positions_px, atol=1e-4)
    np.testing.assert_allclose(again.omega_deg, spots.omega_deg)
    np.testing.assert_allclose(again.sigmas_px, spots.sigmas_px, rtol=1e-4)
    np.testing.assert_array_equal(again.frames, spots.frames)


@pytest.mark.real
@pytest.mark.skipif(not REAL, reason="EDGEXNAS_REAL_DATA points to no measured data")
def test_a_table_of_dials_has_the_types_that_we_write(tmp_path: Path, spots: Spots) -> None:
    msgpack = pytest.importorskip("msgpack", reason="msgpack is the extra «formats»")
    folder = Path(str(REAL)) / "dials_rotation_shoeboxes"
    theirs = folder / "centroid_test_data_indexed.refl"
    columns = read_reflections(theirs)
    derived = np.load(folder / "derived_shoeboxes.npz")
    for name, mine in (("bbox", "bbox"), ("xyzobs.px.value", "xyzobs_px")):
        np.testing.assert_array_equal(columns[name], derived[mine])
    write_reflections(tmp_path / "a.refl", spots, rotation=Rotation(0, 1))

    def types(path: Path) -> Any:
        kind, version, table = msgpack.unpackb(path.read_bytes(), strict_map_key=False)
        return kind, version, {name: column[0] for name, column in table["data"].items()}

    *begin, ours = types(tmp_path / "a.refl")
    *their_begin, known = types(theirs)
    assert begin == their_begin
    assert ours.items() <= known.items()


def test_cxi_has_the_peaks_of_each_frame(tmp_path: Path) -> None:
    peaks = np.zeros(5, PEAK)
    peaks["frame"] = 2, 0, 2, 7, 2
    peaks["row_px"], peaks["col_px"], peaks["counts"] = np.arange(15).reshape(3, 5)
    path = written(tmp_path, "peaks.cxi", "cxi", peaks)
    with h5py.File(path) as file:
        result = file["entry_1/result_1"]
        assert result["nPeaks"][:].tolist() == [1, 0, 3, 0, 0, 0, 0, 1, 0, 0, 0, 0]
        assert result["peakYPosRaw"][2].tolist() == [0, 2, 4]
        assert result["peakXPosRaw"][2].tolist() == [5, 7, 9]
        assert result["peakTotalIntensity"][7].tolist() == [13, 0, 0]


@pytest.mark.parametrize(("name", "form"), [("o.nxs", "nexus"), ("o.cxi", "cxi")])
def test_silx_opens_an_object_as_a_picture(
    tmp_path: Path, image: ObjectImage, name: str, form: Any
) -> None:
    told = read_with("silx", "picture.py", written(tmp_path, name, form, image))
    assert told["valid"]
    assert told["image"]
    assert (told["signal"], told["shape"]) == ("phase (rad)", [30, 40])
    if form == "nexus":
        assert sorted(told["others"]) == ["amplitude", "coverage"]
        assert (told["axes"], told["axis"]) == (["row_px (px)", "col_px (px)"], [12, -7])


def test_cxi_has_the_complex_object_and_what_is_missing(tmp_path: Path, image: ObjectImage) -> None:
    with h5py.File(written(tmp_path, "o.cxi", "cxi", image)) as file:
        assert file["cxi_version"][()] == 160
        values = file["entry_1/image_1/data"][:]
        mask = file["entry_1/image_1/mask"][:]
    np.testing.assert_allclose(np.abs(values), np.abs(image.values), rtol=1e-6)
    assert set(mask[:5].flat) == {0x200}
    assert not mask[5:].any()


def test_tifffile_reads_phase_and_amplitude(tmp_path: Path, image: ObjectImage) -> None:
    pytest.importorskip("fabio", reason="fabio is the extra «formats»")
    path = written(tmp_path, "o.tiff", "tiff", image)
    assert path.name == "o-phase.tiff"
    told = read_with("tifffile", "tiff.py", path.with_name("o-amplitude.tiff"))
    assert told["dtype"] == "float32"
    np.testing.assert_allclose(told["values"], image.amplitude, rtol=1e-6)


class TestChoice:
    def test_a_suffix_tells_the_form(self) -> None:
        assert form_of(Path("a.flt"), None, peaks=True) == ("imaged11", "spots")
        assert form_of(Path("a.h5"), None, peaks=True) == ("imaged11-hdf5", "spots")
        assert form_of(Path("a.h5"), None, peaks=False) == ("nexus", "object")
        assert form_of(Path("a.cxi"), None, peaks=True) == ("cxi", "peaks")

    def test_an_unknown_suffix_needs_a_form(self) -> None:
        with pytest.raises(ConfigurationError, match=r"a\.txt has no suffix that tells its form"):
            form_of(Path("a.txt"), None, peaks=True)

    def test_a_form_that_does_not_hold_what_there_is(self) -> None:
        with pytest.raises(ConfigurationError, match="dials does not hold object, which there are"):
            form_of(Path("a.refl"), None, peaks=False)

    def test_what_a_form_needs_is_asked_for(self, tmp_path: Path, spots: Spots) -> None:
        with pytest.raises(ConfigurationError, match="specify omega_start_deg and omega_step_deg"):
            write_form(tmp_path / "a.refl", "dials", spots)
        with pytest.raises(ConfigurationError, match="specify --beam-centre-px"):
            write_form(tmp_path / "a.csv", "midas", spots, settings=SETTINGS)
        assert list(tmp_path.iterdir()) == []


class TestTables:
    def test_spots_of_a_csv_file_are_those_that_were_written(
        self, tmp_path: Path, spots: Spots
    ) -> None:
        again = read_csv(written(tmp_path, "a.csv", "csv", spots))
        assert isinstance(again, Spots)
        np.testing.assert_allclose(again.positions_px, spots.positions_px, atol=1e-4)
        np.testing.assert_array_equal(again.flags, spots.flags)

    @given(content=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
    @settings(deadline=None, max_examples=80)
    def test_no_content_but_its_own_is_read(self, tmp_path_factory: Any, content: bytes) -> None:
        path = tmp_path_factory.mktemp("csv") / "a.csv"
        for start in (b"", ",".join(PEAK_HEADER).encode() + b"\n"):
            path.write_bytes(start + content)
            try:
                table = read_csv(path)
            except SourceError:
                continue
            assert not isinstance(table, Spots)
            assert np.isfinite(table["row_px"]).all()

    @given(content=st.binary(max_size=300))
    @settings(deadline=None, max_examples=80)
    def test_what_is_no_reflection_table_is_refused(
        self, tmp_path_factory: Any, content: bytes
    ) -> None:
        pytest.importorskip("msgpack", reason="msgpack is the extra «formats»")
        path = tmp_path_factory.mktemp("refl") / "a.refl"
        path.write_bytes(content)
        with pytest.raises(SourceError, match=r"a\.refl is no reflection table"):
            read_reflections(path)


class TestCommand:
    @pytest.fixture
    def peaks_csv(self, tmp_path: Path) -> Path:
        """Two spots over frames 1 to 3, and a frame without peaks before and after."""
        path = tmp_path / "peaks.csv"
        lines = [",".join(PEAK_HEADER)]
        lines += ["0,5,5,0.1,0.1,9,"]
        for frame in (1, 2, 3):
            peaks = Peaks(
                positions_px=np.array([[20, 30], [60.5, 70]], np.float32),
                intervals_px=np.full((2, 2), 0.1, np.float32),
                quantiles_px=np.zeros((2, 2, 3), np.float32),
                maxima=np.zeros((2, 2), np.int32),
                intensities=np.array([100, 200], np.float32),
                flags=np.array([0, 4], np.uint8),
                frame_number=frame,
                overflow=0,
            )
            lines += [",".join(row) for row in peak_rows(peaks)]
        path.write_text("\n".join([*lines, "5,5,5,0.1,0.1,9,"]))
        return path

    ANGLES = ("--omega-start-deg", "0", "--omega-step-deg", "0.5")

    def test_peaks_are_merged_on_the_way(self, peaks_csv: Path, tmp_path: Path) -> None:
        output = tmp_path / "spots.csv"
        assert main(["convert", str(peaks_csv), str(output), *self.ANGLES]) == 0
        spots = read_csv(output)
        assert isinstance(spots, Spots)
        long = spots.table[spots.peaks == 3]
        np.testing.assert_allclose(long["omega_deg"], 1.25)
        assert sorted(long["flags"].tolist()) == [0, 4]

    def test_merging_needs_angles(
        self, peaks_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["convert", str(peaks_csv), str(tmp_path / "spots.flt")]) == 2
        assert "the rotation angles of the frames are not known" in capsys.readouterr().err
        assert not (tmp_path / "spots.flt").exists()

    def test_peaks_of_frames_become_cxi(self, peaks_csv: Path, tmp_path: Path) -> None:
        assert main(["convert", str(peaks_csv), str(tmp_path / "a.cxi")]) == 0
        with h5py.File(tmp_path / "a.cxi") as file:
            assert file["entry_1/result_1/nPeaks"][:].tolist() == [1, 2, 2, 2, 0, 1]

    def test_an_object_of_predict_becomes_a_picture(
        self, tmp_path: Path, image: ObjectImage
    ) -> None:
        source = written(tmp_path, "o.h5", "nexus", image)
        assert main(["convert", str(source), str(tmp_path / "o.cxi")]) == 0
        with h5py.File(tmp_path / "o.cxi") as file:
            values = file["entry_1/image_1/data"][:]
        np.testing.assert_allclose(np.abs(values), image.amplitude, rtol=1e-5)

    def test_what_holds_no_results_is_named(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "a.csv").write_text("a,b\n1,2\n")
        assert main(["convert", str(tmp_path / "a.csv"), str(tmp_path / "a.flt")]) == 1
        assert "begins with 'a,b'" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("content", "output"),
        [("-1,5,5,0.1,0.1,9,", "a.cxi"), (f"{10**23},5,5,0.1,0.1,9,", "a.csv")],
    )
    def test_a_number_that_no_frame_has_is_named_with_its_line(
        self, tmp_path: Path, content: str, output: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "p.csv"
        path.write_text(f"{','.join(PEAK_HEADER)}\n{content}\n")
        assert main(["convert", str(path), str(tmp_path / output)]) == 1
        assert (
            f"p.csv:2: {content.split(',')[0]} is no number of a frame" in capsys.readouterr().err
        )

    def test_frames_far_apart_are_merged_at_once_and_too_many_for_cxi(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path, spots = tmp_path / "p.csv", tmp_path / "s.csv"
        lines = [f"{frame},5,5,0.1,0.1,9," for frame in (0, 3, 2_000_000_000)]
        path.write_text("\n".join([",".join(PEAK_HEADER), *lines]))
        assert main(["convert", str(path), str(spots), *self.ANGLES]) == 0
        read = read_csv(spots)
        assert isinstance(read, Spots)
        assert read.frames[:, 0].tolist() == [0, 3, 2_000_000_000]
        assert main(["convert", str(path), str(tmp_path / "a.cxi")]) == 1
        assert "which takes 7 GiB" in capsys.readouterr().err

    @pytest.mark.parametrize("content", ["empty", "cut off", "no zip", "not finite"])
    def test_a_file_that_holds_no_sound_object_is_named(
        self, tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "o.npz"
        values = np.full((20, 20), np.nan if content == "not finite" else 1, np.complex64)
        np.savez(path, object=values, coverage=np.ones((20, 20)), origin_px=np.zeros(2))
        whole = path.read_bytes()
        cut = {"empty": b"", "cut off": whole[: len(whole) // 2], "no zip": b"PK\3\4" + b"x" * 50}
        path.write_bytes(cut.get(content, whole))
        assert main(["convert", str(path), str(tmp_path / "o.cxi")]) == 1
        assert "o.npz holds no object" in capsys.readouterr().err

    def test_options_that_say_nothing_of_what_there_is_are_refused(
        self, peaks_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        spots, flt, cxi = (str(tmp_path / name) for name in ("s.csv", "s.flt", "s.cxi"))
        assert main(["convert", str(peaks_csv), spots, *self.ANGLES]) == 0
        np.savez(
            tmp_path / "o.npz",
            object=np.ones((9, 9), np.complex64),
            coverage=np.ones((9, 9)),
            origin_px=np.zeros(2),
        )
        for source, output, options in (
            (spots, flt, ["--tolerance-px", "9"]),
            (spots, flt, self.ANGLES),
            (spots, flt, ["--series", "a"]),
            (spots, flt, ["--beam-centre-px", "1", "2"]),
            (str(peaks_csv), cxi, ["--gap-frames", "3"]),
            (str(tmp_path / "o.npz"), cxi, ["--tolerance-px", "9"]),
            (str(tmp_path / "o.npz"), cxi, ["--series", "a"]),
        ):
            assert main(["convert", source, output, *options]) == 2
            assert f"{options[0]}" in (told := capsys.readouterr().err)
            assert "would be ignored" in told
        assert main(["convert", spots, str(tmp_path / "s.refl"), *self.ANGLES]) == 0

    def test_no_spots_are_no_columnfile(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "p.csv").write_text(",".join(PEAK_HEADER) + "\n")
        source = str(tmp_path / "p.csv")
        assert main(["convert", source, str(tmp_path / "s.flt"), *self.ANGLES]) == 1
        assert "there are no spots, and ImageD11 reads no .flt" in capsys.readouterr().err
        assert not (tmp_path / "s.flt").exists()
        assert main(["convert", source, str(tmp_path / "s.h5"), *self.ANGLES]) == 0

    @pytest.mark.parametrize("name", ["p.csv", "results", "results_000001.h5", "o.npz"])
    def test_what_is_not_there_is_named(
        self, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["convert", str(tmp_path / name), str(tmp_path / "s.flt")]) == 2
        assert f"{name}; specify a file of predict, or the folder" in capsys.readouterr().err
