"""Series of frames: what opens, what is refused, and in which words."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import fabio
import h5py
import hdf5plugin
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgexnas.errors import InputError, MissingFrameError, SourceError
from edgexnas.frames import ArrayFrames, Truth, open_frames

STACK = np.arange(3 * 12 * 14, dtype=np.uint16).reshape(3, 12, 14)


def hdf5(path: Path, **datasets: Any) -> Path:
    """Write an HDF5 file; keys are dataset paths with __ for /."""
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file[name.replace("__", "/")] = values
    return path


def frame_cache(path: Path, stack: np.ndarray = STACK, **changes: Any) -> Path:
    """Write a frame cache as hexrd does; a change to None leaves a member out."""
    members: dict[str, Any] = {
        "shape": np.array(stack.shape[1:]),
        "nframes": len(stack),
        "dtype": str(stack.dtype).encode(),
        "omega": np.stack([np.arange(len(stack)), np.arange(len(stack)) + 1.0], axis=1),
    }
    for number, frame in enumerate(stack):
        row, col = np.nonzero(frame)
        members |= {f"{number}_row": row, f"{number}_col": col, f"{number}_data": frame[row, col]}
    members |= changes
    np.savez_compressed(path, **{name: v for name, v in members.items() if v is not None})
    return path


def edf(path: Path, frame: np.ndarray = STACK[0]) -> Path:
    fabio.edfimage.EdfImage(data=frame).write(str(path))
    return path


class TestArrayFrames:
    def test_a_stack_is_a_series_of_its_frames(self) -> None:
        series = ArrayFrames(STACK)
        assert len(series) == 3
        assert series.shape == (12, 14)
        assert series.dtype == np.uint16
        np.testing.assert_array_equal(np.stack(list(series)), STACK)

    def test_one_frame_is_a_series_of_length_one(self) -> None:
        assert len(ArrayFrames(STACK[0])) == 1

    def test_negative_indices_count_from_the_end(self) -> None:
        np.testing.assert_array_equal(ArrayFrames(STACK)[-1], STACK[2])

    @pytest.mark.parametrize("index", [3, -4])
    def test_an_index_outside_the_series_is_an_index_error(self, index: int) -> None:
        with pytest.raises(IndexError, match="has 3 frames"):
            ArrayFrames(STACK)[index]

    def test_bytes_come_in_native_order(self) -> None:
        series = ArrayFrames(STACK.astype(">u2"))
        assert series.dtype.isnative
        np.testing.assert_array_equal(series[1], STACK[1])
        assert series[1].dtype.isnative

    @pytest.mark.parametrize("frames", [np.zeros(4), np.zeros((0, 4, 4)), np.zeros((2, 4, 0))])
    def test_an_array_without_frames_is_refused(self, frames: np.ndarray) -> None:
        with pytest.raises(InputError, match="give \\(n, H, W\\)"):
            ArrayFrames(frames)

    def test_complex_frames_are_refused(self) -> None:
        with pytest.raises(InputError, match="complex64"):
            ArrayFrames(STACK.astype(np.complex64))

    def test_a_mask_of_another_shape_is_refused(self) -> None:
        with pytest.raises(InputError, match="mask has shape \\(14, 12\\)"):
            ArrayFrames(STACK, mask=np.zeros((14, 12), bool))

    def test_angles_for_another_number_of_frames_are_refused(self) -> None:
        with pytest.raises(InputError, match="omega_deg"):
            ArrayFrames(STACK, omega_deg=np.zeros((2, 2)))

    def test_a_closed_series_gives_no_frames(self) -> None:
        with ArrayFrames(STACK) as series:
            pass
        series.close()
        with pytest.raises(SourceError, match="is closed"):
            series[0]


class TestWhatHdf5Holds:
    @pytest.mark.parametrize(
        "place",
        [
            "entry__data__data",
            "entry__instrument__detector__data",
            "imageseries__images",
            "exchange__data",
            "frames",
            "some__where__else",
        ],
    )
    def test_frames_are_found_where_detectors_write_them(self, tmp_path: Path, place: str) -> None:
        with open_frames(hdf5(tmp_path / "a.h5", **{place: STACK})) as series:
            np.testing.assert_array_equal(np.stack(list(series)), STACK)

    def test_calibrations_are_not_taken_for_frames(self, tmp_path: Path) -> None:
        path = hdf5(tmp_path / "a.h5", det__images=STACK, det__flatfield=STACK, det__mask=STACK)
        assert len(open_frames(path)) == 3

    def test_two_dimensions_are_one_frame(self, tmp_path: Path) -> None:
        series = open_frames(hdf5(tmp_path / "a.h5", entry__data__data=STACK[1]))
        assert len(series) == 1
        np.testing.assert_array_equal(series[0], STACK[1])

    @pytest.mark.parametrize("axis", [0, 1])
    def test_of_four_dimensions_one_must_be_one(self, tmp_path: Path, axis: int) -> None:
        path = hdf5(tmp_path / "a.h5", entry__data__data=np.expand_dims(STACK, axis))
        np.testing.assert_array_equal(open_frames(path)[2], STACK[2])

    def test_of_several_images_a_frame_one_is_chosen(self, tmp_path: Path) -> None:
        stack = np.stack([STACK, STACK + 1], axis=1)
        path = hdf5(tmp_path / "a.h5", entry__data__data=stack)
        with pytest.raises(SourceError, match=r"several thresholds; choose one of 0 to 1 with"):
            open_frames(path)
        np.testing.assert_array_equal(open_frames(path, channel=1)[2], STACK[2] + 1)
        with pytest.raises(SourceError, match="no channel 2"):
            open_frames(path, channel=2)

    def test_a_named_dataset_wins(self, tmp_path: Path) -> None:
        path = hdf5(tmp_path / "a.h5", entry__data__data=STACK, other=STACK[:2] + 1)
        assert len(open_frames(path, dataset="other")) == 2

    def test_a_wrong_name_is_refused_with_the_right_ones(self, tmp_path: Path) -> None:
        path = hdf5(tmp_path / "a.h5", scan__images=STACK)
        with pytest.raises(SourceError, match=r"no dataset 'images'; name one of scan/images"):
            open_frames(path, dataset="images")

    def test_a_name_of_a_group_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match="is a group"):
            open_frames(hdf5(tmp_path / "a.h5", scan__images=STACK), dataset="scan")

    def test_an_ambiguous_file_is_refused_with_its_candidates(self, tmp_path: Path) -> None:
        path = hdf5(tmp_path / "a.h5", one=STACK, two=STACK)
        with pytest.raises(SourceError, match=r"2 datasets that could be frames.*one, two"):
            open_frames(path)

    def test_a_file_without_frames_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match="holds no dataset of frames"):
            open_frames(hdf5(tmp_path / "a.h5", spectrum=np.arange(5)))

    def test_an_empty_series_is_refused(self, tmp_path: Path) -> None:
        path = hdf5(tmp_path / "a.h5", entry__data__data=np.zeros((0, 12, 14), np.uint16))
        with pytest.raises(SourceError, match="holds no frames"):
            open_frames(path)

    def test_text_is_no_frame(self, tmp_path: Path) -> None:
        path = hdf5(tmp_path / "a.h5", words=np.full((2, 3, 4), b"word"))
        with pytest.raises(SourceError, match="real numbers"):
            open_frames(path, dataset="words")

    def test_frames_are_read_one_at_a_time(self, tmp_path: Path) -> None:
        path = tmp_path / "a.h5"
        with h5py.File(path, "w") as file:
            # 1 TB of frames of which one chunk exists.
            data = file.create_dataset(
                "frames", (500_000, 1024, 1024), "u2", chunks=(1, 1024, 1024)
            )
            data[123_456, 7, 9] = 5
        with open_frames(path) as series:
            assert series[123_456][7, 9] == 5

    def test_big_endian_frames_come_in_native_order(self, tmp_path: Path) -> None:
        frame = open_frames(hdf5(tmp_path / "a.h5", frames=STACK.astype(">i4")))[1]
        assert frame.dtype == np.int32
        np.testing.assert_array_equal(frame, STACK[1])

    def test_the_name_does_not_matter(self, tmp_path: Path) -> None:
        assert len(open_frames(hdf5(tmp_path / "scan_0001", frames=STACK))) == 3

    def test_the_pixel_mask_of_the_detector_is_kept(self, tmp_path: Path) -> None:
        bits = np.zeros((1, 12, 14), np.uint32)
        bits[0, 3, 4] = 16
        path = hdf5(
            tmp_path / "a.h5", entry__data__data=STACK, entry__instrument__detector__pixel_mask=bits
        )
        mask = open_frames(path).mask
        assert mask is not None
        assert np.argwhere(mask).tolist() == [[3, 4]]

    def test_angles_with_a_start_only_end_where_the_next_begin(self, tmp_path: Path) -> None:
        path = hdf5(
            tmp_path / "a.h5",
            entry__data__data=STACK,
            entry__sample__goniometer__omega=np.array([0.0, 0.5, 1.0]),
        )
        omega = open_frames(path).omega_deg
        assert omega is not None
        assert omega.tolist() == [[0.0, 0.5], [0.5, 1.0], [1.0, 1.5]]

    def test_a_truncated_truth_is_refused(self, tmp_path: Path) -> None:
        path = hdf5(tmp_path / "a.h5", frames=STACK, truth__row=np.zeros(2))
        with pytest.raises(SourceError, match="lacks the column 'frame'"):
            open_frames(path)

    @pytest.mark.parametrize(
        ("units", "scale"), [("rad", np.pi / 180), ("degrees", 1), ("mrad", np.pi / 0.18)]
    )
    def test_angles_are_read_in_their_units(self, tmp_path: Path, units: str, scale: float) -> None:
        place = "entry__sample__transformations__phi"
        path = hdf5(tmp_path / "a.h5", frames=STACK, **{place: np.array([0, 0.5, 1]) * scale})
        with h5py.File(path, "a") as file:
            file["entry/sample/transformations/phi"].attrs["units"] = units
        omega = open_frames(path).omega_deg
        assert omega is not None
        np.testing.assert_allclose(omega, [[0, 0.5], [0.5, 1], [1, 1.5]])

    def test_angles_in_an_unknown_unit_are_refused(self, tmp_path: Path) -> None:
        path = hdf5(tmp_path / "a.h5", frames=STACK, entry__data__omega=np.arange(3.0))
        with h5py.File(path, "a") as file:
            file["omega"] = np.arange(3.0)
            file["omega"].attrs["units"] = "furlong"
        with pytest.raises(SourceError, match=r"/omega of .* is in 'furlong'.*angle"):
            open_frames(path)

    @pytest.mark.parametrize(
        "place",
        [
            "entry__instrument__detector__saturation_value",
            "entry__instrument__eiger__detectorSpecific__countrate_correction_count_cutoff",
            "entry__data__saturation_value",
        ],
    )
    def test_the_saturation_of_the_detector_is_kept(self, tmp_path: Path, place: str) -> None:
        path = hdf5(tmp_path / "a.h5", entry__data__data=STACK, **{place: np.array([900, 1000])})
        assert open_frames(path).saturation == 900

    def test_of_two_detectors_the_one_that_holds_the_frames_counts(self, tmp_path: Path) -> None:
        path = hdf5(
            tmp_path / "a.h5",
            entry__instrument__one__data=STACK,
            entry__instrument__one__saturation_value=700,
            entry__instrument__two__saturation_value=50,
            entry__instrument__two__pixel_mask=np.ones((3, 3)),
        )
        with h5py.File(path, "a") as file:
            file["entry/data/data"] = file["entry/instrument/one/data"]
        series = open_frames(path)
        assert (series.saturation, series.mask) == (700, None)


class TestIdentity:
    def test_another_file_of_the_same_name_is_another_series(self, tmp_path: Path) -> None:
        ids = set()
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            ids.add(open_frames(hdf5(tmp_path / name / "scan.h5", frames=STACK)).identity.id)
        assert len(ids) == 2
        assert all(found.startswith("scan.h5-") for found in ids)

    def test_a_file_is_the_same_by_whatever_path(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = hdf5(tmp_path / "scan.h5", frames=STACK)
        (tmp_path / "link.h5").symlink_to(path)
        monkeypatch.chdir(tmp_path)
        places = (path, Path("scan.h5"), Path("link.h5"))
        assert len({open_frames(place).identity for place in places}) == 1

    def test_a_file_that_was_written_again_is_another_series(self, tmp_path: Path) -> None:
        first = open_frames(hdf5(tmp_path / "scan.h5", frames=STACK)).identity
        assert open_frames(hdf5(tmp_path / "scan.h5", frames=STACK)).identity != first

    def test_the_data_files_of_a_master_file_belong_to_it(self, tmp_path: Path) -> None:
        master = eiger(tmp_path)
        first = open_frames(master).identity
        os.utime(tmp_path / "x_data_000002.h5", ns=(0, 2**62))
        assert open_frames(master).identity != first


class TestMissingFrames:
    def test_a_raw_file_that_is_short_gives_only_whole_frames(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with h5py.File("a.h5", "w") as file:
            raw = [("raw.bin", 0, STACK.nbytes)]
            file.create_dataset("frames", STACK.shape, STACK.dtype, external=raw)[...] = STACK
        os.truncate("raw.bin", STACK.nbytes - 1)
        series = open_frames("a.h5")
        np.testing.assert_array_equal(series[1], STACK[1])
        with pytest.raises(MissingFrameError, match=r"frame 2 of a\.h5 .* raw\.bin ends before"):
            series[2]

    def test_a_dataset_without_its_bytes_is_refused(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.create_dataset("frames", STACK.shape, STACK.dtype)
        with pytest.raises(MissingFrameError, match=r"none of the 3 frames .* ever written"):
            open_frames(tmp_path / "a.h5")

    def test_a_frame_of_which_a_tile_was_never_written_is_missing(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            data = file.create_dataset("frames", STACK.shape, STACK.dtype, chunks=(1, 6, 14))
            data[:2] = STACK[:2]
            data[2, :6] = STACK[2, :6]
        assert open_frames(tmp_path / "a.h5").missing.tolist() == [2]

    def test_pixels_between_the_modules_of_a_virtual_dataset_are_masked(
        self, tmp_path: Path
    ) -> None:
        hdf5(tmp_path / "part.h5", frames=STACK[:, :5])
        layout = h5py.VirtualLayout(STACK.shape, STACK.dtype)
        for row in (0, 7):
            layout[:, row : row + 5] = h5py.VirtualSource("part.h5", "frames", (3, 5, 14))
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.create_virtual_dataset("frames", layout)
        series = open_frames(tmp_path / "a.h5")
        assert len(series.missing) == 0
        assert series.mask is not None
        assert np.unique(np.nonzero(series.mask)[0]).tolist() == [5, 6]


class TestNexusLinks:
    def test_the_default_signal_is_followed(self, tmp_path: Path) -> None:
        path = hdf5(tmp_path / "a.nxs", scan__pilatus__images=STACK, scan__other__images=STACK[:2])
        with h5py.File(path, "a") as file:
            file.attrs["default"] = "scan"
            file["scan"].attrs["default"] = b"other"
            file["scan/other"].attrs["signal"] = "images"
        assert len(open_frames(path)) == 2

    def test_the_blocks_of_an_eiger_are_one_series(self, tmp_path: Path) -> None:
        master = eiger(tmp_path)
        with open_frames(master) as series:
            np.testing.assert_array_equal(np.stack(list(series)), np.tile(STACK, (2, 1, 1)))

    def test_a_folder_of_an_eiger_is_opened_by_its_master(self, tmp_path: Path) -> None:
        eiger(tmp_path)
        assert len(open_frames(tmp_path)) == 6

    def test_a_missing_block_is_named(self, tmp_path: Path) -> None:
        master = eiger(tmp_path)
        (tmp_path / "x_data_000002.h5").unlink()
        with pytest.raises(SourceError, match=r"links to the file x_data_000002\.h5.*missing"):
            open_frames(master)

    def test_a_damaged_block_is_named(self, tmp_path: Path) -> None:
        master = eiger(tmp_path)
        (tmp_path / "x_data_000001.h5").write_bytes(b"nothing")
        with pytest.raises(SourceError, match=r"x_data_000001\.h5, which cannot be opened"):
            open_frames(master)

    def test_a_missing_file_of_a_virtual_dataset_is_named(self, tmp_path: Path) -> None:
        layout = h5py.VirtualLayout(STACK.shape, STACK.dtype)
        layout[:] = h5py.VirtualSource("part.h5", "frames", STACK.shape)
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.create_virtual_dataset("entry/data/data", layout)
        with pytest.raises(
            SourceError,
            match=r"none of the 3 frames .* the file part\.h5, which it is mapped to, is missing",
        ):
            open_frames(tmp_path / "a.h5")
        hdf5(tmp_path / "part.h5", frames=STACK)
        np.testing.assert_array_equal(open_frames(tmp_path / "a.h5")[1], STACK[1])


def eiger(folder: Path) -> Path:
    """Write two blocks and the master file that links to them."""
    master = folder / "x_master.h5"
    with h5py.File(master, "w") as file:
        for number in (1, 2):
            block = hdf5(folder / f"x_data_{number:06}.h5", entry__data__data=STACK)
            file[f"entry/data/data_{number:06}"] = h5py.ExternalLink(block.name, "entry/data/data")
    return master


class TestHdf5Filters:
    def test_a_filter_that_nobody_knows_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "a.h5"
        with h5py.File(path, "w") as file:
            properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            properties.set_chunk((1, 12, 14))
            properties.set_filter(32123, h5py.h5z.FLAG_OPTIONAL)
            space = h5py.h5s.create_simple(STACK.shape)
            data = h5py.h5d.create(file.id, b"frames", h5py.h5t.NATIVE_UINT16, space, properties)
            data.write_direct_chunk((0, 0, 0), STACK[0].tobytes())
        with pytest.raises(SourceError, match=r"filter 32123.*pip install hdf5plugin"):
            open_frames(path)

    def test_without_hdf5plugin_the_filter_and_the_remedy_are_named(self, tmp_path: Path) -> None:
        path = tmp_path / "a.h5"
        with h5py.File(path, "w") as file:
            file.create_dataset("frames", data=STACK, **hdf5plugin.Bitshuffle(cname="lz4"))
        program = (
            "import sys; sys.modules['hdf5plugin'] = None\n"
            "from edgexnas.frames import open_frames\n"
            "try: open_frames(sys.argv[1])\n"
            "except OSError as error: print(type(error).__name__, error)\n"
        )
        shown = subprocess.run(
            [sys.executable, "-c", program, str(path)],
            env={**os.environ, "HDF5_PLUGIN_PATH": str(tmp_path / "none")},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert shown.startswith("SourceError")
        assert "filter 32008 (bitshuffle)" in shown
        assert "pip install hdf5plugin" in shown

    def test_with_hdf5plugin_such_frames_are_read(self, tmp_path: Path) -> None:
        path = tmp_path / "a.h5"
        with h5py.File(path, "w") as file:
            file.create_dataset("frames", data=STACK, **hdf5plugin.Bitshuffle(cname="lz4"))
        np.testing.assert_array_equal(open_frames(path)[2], STACK[2])


class TestFrameCache:
    def test_sparse_frames_become_dense(self, tmp_path: Path) -> None:
        with open_frames(frame_cache(tmp_path / "a.npz")) as series:
            np.testing.assert_array_equal(np.stack(list(series)), STACK)
            assert series.dtype == np.uint16
            assert series.omega_deg is not None
            assert series.omega_deg.tolist() == [[0, 1], [1, 2], [2, 3]]

    def test_angles_are_optional(self, tmp_path: Path) -> None:
        assert open_frames(frame_cache(tmp_path / "a.npz", omega=None)).omega_deg is None

    def test_another_kind_of_archive_is_refused(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", frames=STACK)
        with pytest.raises(SourceError, match="is no frame cache: it lacks the member 'dtype'"):
            open_frames(tmp_path / "a.npz")

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"nframes": 900}, "claims 900 frames"),
            ({"nframes": 0}, "holds no frames"),
            ({"shape": np.array([1 << 20, 1 << 20])}, "claims frames of 1048576×1048576"),
            ({"shape": np.array([3])}, "header of"),
            ({"dtype": b"complex128"}, "holds complex128"),
            ({"dtype": b"nonsense"}, "header of"),
            ({"omega": np.zeros((2, 2))}, "omega of"),
        ],
    )
    def test_a_header_that_cannot_be_is_refused(
        self, tmp_path: Path, changes: dict[str, Any], reason: str
    ) -> None:
        with pytest.raises(SourceError, match=reason):
            open_frames(frame_cache(tmp_path / "a.npz", **changes))

    @pytest.mark.parametrize(
        "changes",
        [
            {"1_row": np.array([-1]), "1_col": np.array([0]), "1_data": np.array([9])},
            {"1_row": np.array([12]), "1_col": np.array([0]), "1_data": np.array([9])},
            {"1_row": np.array([1, 2]), "1_col": np.array([0]), "1_data": np.array([9])},
            {"1_row": np.array([1.5]), "1_col": np.array([0]), "1_data": np.array([9])},
            {"1_data": None, "more": np.array([0])},
        ],
    )
    def test_a_frame_that_cannot_be_is_refused_when_it_is_read(
        self, tmp_path: Path, changes: dict[str, Any]
    ) -> None:
        series = open_frames(frame_cache(tmp_path / "a.npz", **changes))
        np.testing.assert_array_equal(series[0], STACK[0])
        with pytest.raises(SourceError, match="frame 1 of"):
            series[1]

    def test_nothing_is_unpickled(self, tmp_path: Path) -> None:
        marker = tmp_path / "executed"

        class Payload:
            def __reduce__(self) -> tuple[Any, ...]:
                return (Path.touch, (marker,))

        path = frame_cache(tmp_path / "a.npz", shape=np.array([Payload()], dtype=object))
        with pytest.raises(SourceError, match="header of"):
            open_frames(path)
        assert not marker.exists()


class TestOtherFiles:
    def test_a_numpy_file_is_a_series(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", STACK)
        np.testing.assert_array_equal(open_frames(tmp_path / "a.npy")[2], STACK[2])

    def test_a_numpy_file_of_something_else_is_refused(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", np.zeros(4, np.complex64))
        with pytest.raises(SourceError, match="save real numbers"):
            open_frames(tmp_path / "a.npy")

    def test_a_single_image_is_one_frame(self, tmp_path: Path) -> None:
        series = open_frames(edf(tmp_path / "a.edf"))
        assert (len(series), series.shape, series.dtype) == (1, (12, 14), np.uint16)
        np.testing.assert_array_equal(series[0], STACK[0])

    def test_an_image_with_several_frames_is_a_series(self, tmp_path: Path) -> None:
        image = fabio.edfimage.EdfImage(data=STACK[0])
        image.append_frame(data=STACK[1])
        image.write(str(tmp_path / "a.edf"))
        series = open_frames(tmp_path / "a.edf")
        np.testing.assert_array_equal(np.stack(list(series)), STACK[:2])

    def test_the_gaps_of_a_pilatus_are_masked(self, tmp_path: Path) -> None:
        frame = STACK[0].astype(np.int32)
        frame[4:6], frame[9, 9] = -1, -2
        fabio.cbfimage.CbfImage(data=frame).write(str(tmp_path / "a.cbf"))
        series = open_frames(tmp_path / "a.cbf")
        assert series.mask is not None
        np.testing.assert_array_equal(series.mask, frame < 0)

    def test_a_file_of_no_known_format_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("counts: none\n")
        with pytest.raises(SourceError, match=r"a\.txt cannot be read"):
            open_frames(tmp_path / "a.txt")

    def test_a_dataset_of_an_image_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match="is not HDF5"):
            open_frames(edf(tmp_path / "a.edf"), dataset="frames")

    def test_a_missing_file_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match="there is no file"):
            open_frames(tmp_path / "a.h5")

    @pytest.mark.parametrize("suffix", [".h5", ".npz", ".npy", ".edf"])
    def test_an_empty_file_is_refused(self, tmp_path: Path, suffix: str) -> None:
        (tmp_path / f"a{suffix}").touch()
        with pytest.raises(SourceError, match="is empty"):
            open_frames(tmp_path / f"a{suffix}")

    def test_a_pipe_is_refused(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "a.h5")
        with pytest.raises(SourceError, match="not a regular file"):
            open_frames(tmp_path / "a.h5")


class TestFolders:
    def test_images_come_in_the_natural_order_of_their_names(self, tmp_path: Path) -> None:
        for number, frame in zip((10, 9, 100), STACK, strict=True):
            edf(tmp_path / f"scan_{number}.edf", frame)
        (tmp_path / "notes.txt").write_text("ignored")
        series = open_frames(tmp_path)
        np.testing.assert_array_equal(np.stack(list(series)), STACK[[1, 0, 2]])

    def test_what_a_folder_leaves_out_is_said(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        for number in (1, 2, 4):
            edf(tmp_path / f"scan_{number}.edf")
        (tmp_path / "scan_3.raw").write_bytes(b"?")
        assert len(open_frames(tmp_path)) == 3
        assert "1 entries of" in caplog.text
        assert "scan_3.raw" in caplog.text
        assert "lacks the images with the numbers 3" in caplog.text

    def test_a_truncated_image_is_refused_and_not_filled_up(self, tmp_path: Path) -> None:
        path = edf(tmp_path / "a.edf")
        path.write_bytes(path.read_bytes()[:-10])
        with pytest.raises(SourceError, match="Data stream is incomplete"):
            open_frames(path)

    def test_the_only_series_of_a_folder_is_opened(self, tmp_path: Path) -> None:
        hdf5(tmp_path / "a.h5", frames=STACK)
        assert len(open_frames(tmp_path)) == 3

    def test_a_folder_with_several_series_is_refused(self, tmp_path: Path) -> None:
        for name in ("a.h5", "b.h5"):
            hdf5(tmp_path / name, frames=STACK)
        with pytest.raises(SourceError, match=r"more than one series \(a\.h5, b\.h5\)"):
            open_frames(tmp_path)

    def test_a_folder_without_frames_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match="holds no frames"):
            open_frames(tmp_path)

    def test_an_image_of_another_shape_is_refused_when_it_is_read(self, tmp_path: Path) -> None:
        edf(tmp_path / "a1.edf", STACK[0])
        edf(tmp_path / "a2.edf", STACK[0].T.copy())
        series = open_frames(tmp_path)
        with pytest.raises(SourceError, match=r"a2\.edf holds uint16 of shape \(14, 12\)"):
            series[1]


def valid_files() -> dict[str, bytes]:
    compressed = io.BytesIO()
    with h5py.File(compressed, "w") as file:
        file.create_dataset("entry/data/data", data=STACK, chunks=(1, 12, 14), compression="gzip")
    cache, plain = io.BytesIO(), io.BytesIO()
    row, col = np.nonzero(STACK[0])
    columns = {"0_row": row, "0_col": col, "0_data": STACK[0][row, col]}
    np.savez(cache, shape=np.array([12, 14]), nframes=1, dtype=b"uint16", **columns)
    np.save(plain, STACK)
    return {".h5": compressed.getvalue(), ".npz": cache.getvalue(), ".npy": plain.getvalue()}


VALID = valid_files()


def read_all(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with open_frames(path) as series:
        for _ in series:
            pass


class TestDamagedFiles:
    @given(content=st.binary(max_size=400), suffix=st.sampled_from([".h5", ".npz", ".npy"]))
    @settings(deadline=None)
    def test_random_bytes_are_a_source_error(
        self, tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str
    ) -> None:
        with pytest.raises(SourceError):
            read_all(tmp_path_factory.getbasetemp() / f"random{suffix}", content)

    @given(tail=st.binary(max_size=400), suffix=st.sampled_from(sorted(VALID)))
    @settings(deadline=None)
    def test_random_bytes_after_the_right_signature_are_a_source_error(
        self, tmp_path_factory: pytest.TempPathFactory, tail: bytes, suffix: str
    ) -> None:
        with pytest.raises(SourceError):
            read_all(tmp_path_factory.getbasetemp() / f"begun{suffix}", VALID[suffix][:8] + tail)

    @given(share=st.floats(0, 0.999), suffix=st.sampled_from(sorted(VALID)))
    @settings(deadline=None)
    def test_a_truncated_file_is_a_source_error(
        self, tmp_path_factory: pytest.TempPathFactory, share: float, suffix: str
    ) -> None:
        whole = VALID[suffix]
        with pytest.raises(SourceError):
            read_all(
                tmp_path_factory.getbasetemp() / f"short{suffix}", whole[: int(share * len(whole))]
            )

    @given(place=st.integers(0, len(VALID[".npz"]) - 1), value=st.integers(0, 255))
    @settings(deadline=None)
    def test_a_changed_byte_is_read_or_a_source_error(
        self, tmp_path_factory: pytest.TempPathFactory, place: int, value: int
    ) -> None:
        changed = bytearray(VALID[".npz"])
        changed[place] = value
        with suppress(SourceError):
            read_all(tmp_path_factory.getbasetemp() / "changed.npz", bytes(changed))

    def test_a_chunk_that_does_not_inflate_is_a_source_error(self, tmp_path: Path) -> None:
        path = tmp_path / "a.h5"
        with h5py.File(path, "w") as file:
            data = file.create_dataset(
                "frames", STACK.shape, "u2", chunks=(1, 12, 14), compression="gzip"
            )
            data[0] = STACK[0]
            data.id.write_direct_chunk((1, 0, 0), b"not deflated")
        series = open_frames(path)
        np.testing.assert_array_equal(series[0], STACK[0])
        with pytest.raises(SourceError, match="frame 1 of /frames"):
            series[1]

    def test_a_member_that_claims_more_than_it_holds_is_refused(self, tmp_path: Path) -> None:
        header = io.BytesIO()
        claim = {"descr": "|u1", "fortran_order": False, "shape": (1 << 50,)}
        np.lib.format.write_array_header_1_0(header, claim)
        path = frame_cache(tmp_path / "a.npz", **{"0_row": None, "more": np.array(0)})
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("0_row.npy", header.getvalue())
        with pytest.raises(SourceError, match="frame 0 of"):
            open_frames(path)[0]


def truth_columns(count: int = 4) -> dict[str, np.ndarray]:
    columns = {name: np.zeros(count) for name in Truth.__dataclass_fields__}
    return {**columns, "frame": np.array([0, 1, 1, 3])}


class TestTruth:
    def test_the_spots_of_one_frame_can_be_taken(self) -> None:
        truth = Truth.from_columns(truth_columns())
        assert [len(truth.of_frame(frame)) for frame in range(5)] == [1, 2, 0, 1, 0]

    def test_a_missing_column_is_refused(self) -> None:
        columns = truth_columns()
        del columns["row"]
        with pytest.raises(InputError, match="lacks the column 'row'"):
            Truth.from_columns(columns)

    def test_columns_of_different_length_are_refused(self) -> None:
        with pytest.raises(InputError, match="differ in length"):
            Truth.from_columns({**truth_columns(), "row": np.zeros(3)})
