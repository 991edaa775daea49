"""The rules of scans and their files."""

from __future__ import annotations

import bz2
import io
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgexnas.errors import InputError, SourceError
from edgexnas.frames import open_frames
from edgexnas.scans import Scan, open_scan
from edgexnas.simulate import PtychographySettings, save_scan, simulate_scan

PATTERNS = np.random.default_rng(0).poisson(3, (6, 64, 64)).astype(np.uint16)
POSITIONS = np.stack([np.arange(6.0) * 7, 40 - np.arange(6.0)], axis=1)


def tike_file(path: Path, **members: np.ndarray) -> Path:
    """Write a scan as tike's examples are written: the direct beam in the corner."""
    corner = np.fft.ifftshift(PATTERNS, axes=(1, 2))[None].astype(np.float32)
    content = {"data": corner, "scan": POSITIONS[None].astype(np.float32), **members}
    buffer = io.BytesIO()
    np.savez(buffer, **{name: value for name, value in content.items() if value is not None})
    raw = buffer.getvalue()
    path.write_bytes(bz2.compress(raw) if path.suffix == ".bz2" else raw)
    return path


def cxi_file(path: Path, **constants: float) -> Path:
    """Write a CXI file of 10 keV photons, 2 m, 75 µm pixels, so that an object px is 51.7 nm."""
    sizes = {f"detector_1/{axis}_pixel_size": 75e-6 for axis in "xy"}
    values = {"source_1/energy": 1.602176634e-15, "detector_1/distance": 2.0, **sizes, **constants}
    with h5py.File(path, "w") as file:
        file["entry_1/instrument_1/detector_1/data"] = PATTERNS
        file["entry_1/data_1/data"] = h5py.SoftLink("/entry_1/instrument_1/detector_1/data")
        translation = np.zeros((6, 3))
        translation[:, [1, 0]] = POSITIONS * 1.986445857e-25 / 1.602176634e-15 * 2 / (64 * 75e-6)
        file["entry_1/data_1/translation"] = translation
        for name, value in values.items():
            if value:
                file[f"entry_1/instrument_1/{name}"] = value
    return path


@pytest.mark.parametrize("name", ["scan.npz", "scan.npz.bz2"])
def test_a_scan_of_tike_opens_with_the_direct_beam_in_the_middle(tmp_path: Path, name: str) -> None:
    scan = open_scan(tike_file(tmp_path / name, probe=np.ones((1, 1, 1, 2, 64, 64), np.complex64)))
    np.testing.assert_array_equal(scan.patterns, PATTERNS)
    assert scan.probe is not None
    assert scan.probe.shape == (2, 64, 64)


def test_positions_without_an_origin_start_two_pixels_inside(tmp_path: Path) -> None:
    scan = open_scan(tike_file(tmp_path / "scan.npz"))
    np.testing.assert_allclose(scan.positions_px, POSITIONS - POSITIONS.min(axis=0) + 2)


def test_the_window_of_a_large_pattern_starts_before_its_patch() -> None:
    scan = Scan(patterns=np.ones((1, 128, 256)), positions_px=np.array([[50.0, 120.0]]), source="a")
    np.testing.assert_array_equal(scan.window_corners_px, [[50 - 32, 120 - 96]])


def test_translations_of_a_cxi_file_become_object_pixels(tmp_path: Path) -> None:
    scan = open_scan(cxi_file(tmp_path / "scan.cxi"))
    assert scan.object_pixel_m == pytest.approx((51.7e-9, 51.7e-9), rel=1e-3)
    np.testing.assert_allclose(scan.positions_px, POSITIONS - POSITIONS.min(axis=0) + 2, atol=1e-6)
    np.testing.assert_array_equal(scan.patterns, PATTERNS)


def test_a_cxi_file_without_energy_is_refused_by_the_name_of_what_lacks(tmp_path: Path) -> None:
    path = cxi_file(tmp_path / "scan.cxi", **{"source_1/energy": 0})
    with pytest.raises(SourceError, match="source_1/energy"):
        open_scan(path)


def test_a_saved_scan_opens_as_it_was(tmp_path: Path) -> None:
    made = simulate_scan(
        PtychographySettings(scan_shape_px=(20, 30), beam_stop_px=2, hot_pixel_fraction=0.001)
    )
    opened = open_scan(save_scan(made, tmp_path / "scan.h5"))
    for name in ("patterns", "positions_px", "probe", "mask", "truth"):
        np.testing.assert_array_equal(getattr(opened, name), getattr(made, name), err_msg=name)


def test_the_patterns_of_a_saved_scan_are_frames_too(tmp_path: Path) -> None:
    scan = Scan(patterns=PATTERNS, positions_px=POSITIONS, source="made up")
    with open_frames(save_scan(scan, tmp_path / "scan.h5")) as frames:
        np.testing.assert_array_equal(frames[5], PATTERNS[5])


def test_an_unknown_position_stays_unknown(tmp_path: Path) -> None:
    positions = POSITIONS.copy()
    positions[2] = np.nan
    path = save_scan(
        Scan(patterns=PATTERNS, positions_px=positions, source="a"), tmp_path / "scan.h5"
    )
    np.testing.assert_array_equal(open_scan(path).positions_px, positions)


def test_a_scan_that_cannot_be_saved_leaves_nothing(tmp_path: Path) -> None:
    broken = replace(simulate_scan(PtychographySettings(scan_shape_px=(9, 9))), probe=None)
    object.__setattr__(broken, "truth", np.array([object()]))
    with pytest.raises(TypeError):
        save_scan(broken, tmp_path / "scan.h5")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [0, np.nan])
def test_a_probe_without_light_is_none(value: float, caplog: pytest.LogCaptureFixture) -> None:
    scan = simulate_scan(PtychographySettings(scan_shape_px=(9, 9)))
    assert replace(scan, probe=scan.probe * value).probe is None
    assert "is dark or holds NaN" in caplog.text


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"scan": POSITIONS[None, :5]}, r"6 patterns but positions of shape \(5, 2\)"),
        ({"scan": POSITIONS[None, :, :1]}, r"positions .* shape \(6, 1\)"),
        ({"scan": None}, "lacks the member 'scan'"),
        ({"data": np.zeros((1, 0, 64, 64)), "scan": np.zeros((1, 0, 2))}, "holds no patterns"),
        ({"data": np.zeros((2, 3, 64, 64))}, "one scan"),
        ({"data": np.zeros((64, 64))}, "one scan"),
        ({"data": np.zeros((1, 6, 64, 64), complex)}, "real numbers"),
        ({"probe": np.ones((1, 32, 32), np.complex64)}, "the probe .* pattern"),
        ({"data": np.array([[None]])}, "cannot be read"),
    ],
    ids=["fewer", "axes", "no-positions", "empty", "two", "flat", "complex", "probe", "pickle"],
)
def test_a_scan_whose_parts_do_not_fit_is_refused(tmp_path: Path, members, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        open_scan(tike_file(tmp_path / "scan.npz", **members))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"hello, this is a text", "neither HDF5 nor"),
        (b"BZh91AY&SY and then nonsense", "cannot be read"),
        (b"PK\x03\x04 and then nonsense", "cannot be read"),
        (b"\x89HDF\r\n\x1a\n and then nonsense", "cannot be read|neither HDF5"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "scan.h5"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=message):
        open_scan(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="there is no file"):
        open_scan(tmp_path / "scan.h5")


def test_patterns_without_positions_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["entry/data/data"] = PATTERNS
    with pytest.raises(SourceError, match="no positions"):
        open_scan(tmp_path / "scan.h5")


def test_a_mask_of_another_size_is_refused() -> None:
    with pytest.raises(InputError, match="the mask"):
        Scan(patterns=PATTERNS, positions_px=POSITIONS, source="a", mask=np.zeros((9, 9), bool))


@given(cut=st.integers(0, 60_000), flips=st.lists(st.integers(0, 60_000), max_size=4))
@settings(max_examples=60, deadline=None)
def test_a_damaged_file_is_a_source_error_or_a_whole_scan(tmp_path_factory, cut, flips) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    raw = bytearray(tike_file(folder / "scan.npz").read_bytes())
    for place in flips:
        raw[place % len(raw)] ^= 0xFF
    (folder / "scan.npz").write_bytes(raw[: len(raw) - cut])
    try:
        scan = open_scan(folder / "scan.npz")
    except SourceError:
        return
    assert len(scan) == len(scan.positions_px) > 0
