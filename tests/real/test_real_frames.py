"""Every real detector file opens with the right shape, dtype and number of frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgexnas.errors import SourceError
from edgexnas.frames import FrameSeries, open_frames

pytestmark = pytest.mark.real

HDF5 = [
    ("lambda_m1_part00000.nxs", 10, (516, 1554), "int16"),
    ("AgBehenate_228.hdf5", 1, (195, 487), "int32"),
    ("ceria_Pilatus2M_powder.hdf5", 1, (1679, 1475), "int32"),
]

IMAGES = [
    ("GE_aSI_detector_image_1529.bz2", (2048, 2048), "uint16"),
    ("F2K_Seb_Lyso0675.edf.bz2", (2048, 2048), "uint16"),
    ("example.mar2300.bz2", (2300, 2300), "uint32"),
    ("run2_1_00148.cbf.gz", (2527, 2463), "int32"),
    ("somedata_0001.mccd.bz2", (1024, 1024), "uint16"),
]


def described(series: FrameSeries) -> tuple[int, tuple[int, int], str]:
    """Read the last frame and tell what the series holds."""
    frame = series[-1]
    assert frame.shape == series.shape
    assert frame.dtype == series.dtype
    assert frame.max() > 100
    return len(series), series.shape, str(series.dtype)


@pytest.mark.parametrize(("name", "count", "shape", "dtype"), HDF5)
def test_an_hdf5_file_of_a_detector_opens(
    real_data: Path, name: str, count: int, shape: tuple[int, int], dtype: str
) -> None:
    with open_frames(real_data / "nexus_detector_files" / name) as series:
        assert described(series) == (count, shape, dtype)


@pytest.mark.parametrize(("name", "shape", "dtype"), IMAGES)
def test_a_raw_image_of_a_detector_opens(
    real_data: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    shape: tuple[int, int],
    dtype: str,
) -> None:
    path = real_data / "raw_bragg_frames" / name
    if not path.exists():
        pytest.skip(f"{path.name} is not among the real data")
    with open_frames(path) as series:
        assert described(series) == (1, shape, dtype)
    assert capsys.readouterr().out == ""


def test_the_pixel_mask_of_a_lambda_is_kept(real_data: Path) -> None:
    with open_frames(real_data / "nexus_detector_files" / "lambda_m1_part00000.nxs") as series:
        assert series.mask is not None
        assert series.mask.shape == (516, 1554)
        assert 0.01 < series.mask.mean() < 0.1


def test_the_ruby_frame_cache_opens_with_its_angles(real_data: Path) -> None:
    with open_frames(real_data / "hexrd_ruby_dexela" / "ruby_ff1_framecache.npz") as series:
        assert described(series) == (1440, (3888, 3072), "uint16")
        assert series.omega_deg is not None
        np.testing.assert_allclose(series.omega_deg[4], [1.0, 1.25])
        np.testing.assert_allclose(series.omega_deg[-1], [359.75, 360.0])


def test_a_ruby_frame_holds_exactly_the_recorded_pixels(real_data: Path) -> None:
    path = real_data / "hexrd_ruby_dexela" / "ruby_ff1_framecache.npz"
    recorded = np.load(path)
    expected = np.zeros((3888, 3072), np.uint16)
    expected[recorded["4_row"], recorded["4_col"]] = recorded["4_data"]
    with open_frames(path) as series:
        np.testing.assert_array_equal(series[4], expected)
    recorded.close()


@pytest.mark.parametrize(
    "name",
    [
        "hexrd_ruby_dexela/hexrd_spots_file.h5",
        "imaged11_silicon_eiger/silicon_fullscan_strong_sparse.h5",
        "siemens_star_velociprobe/derived_rpie_reference.npz",
        "hexrd_ruby_dexela/hexrd_fit_grains.out",
        "wire_captures/eiger16m_stream2_image.cbor",
    ],
)
def test_a_real_file_of_something_else_is_refused(real_data: Path, name: str) -> None:
    with pytest.raises(SourceError):
        open_frames(real_data / name)
