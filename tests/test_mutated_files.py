"""Damaged files: each is read as it was, or refused in a sentence, and never read as another."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fabio
import h5py
import hdf5plugin
import numpy as np
import pytest

from edgexnas.device.sources import SourceFrame, SourceTrouble, open_event_source
from edgexnas.errors import EdgexnasError
from edgexnas.frames import open_frames
from edgexnas.scans import open_scan

FRAMES = np.random.default_rng(5).poisson(20, (4, 48, 52)).astype(np.uint16)
FRAMES[:, 20:22] = 0
METRES = np.random.default_rng(6).uniform(0, 4e-6, (4, 3))


def hdf5(path: Path, **layout: Any) -> Path:
    """Write checked chunks and checked headers, as of an area detector, with what it says."""
    with h5py.File(path, "w", libver="latest") as file:
        file.create_dataset("entry/data/data", data=FRAMES, **layout)
        detector = file.create_group("entry/instrument/detector")
        detector["pixel_mask"] = (FRAMES[0] == 0).astype(np.uint32)
        detector["saturation_value"] = 4000
        omega = file.create_dataset("entry/sample/transformations/omega", data=np.arange(4.0))
        omega.attrs["units"] = "deg"
    return path


def cxi(path: Path) -> Path:
    """Write a CXI file in mm and keV, with checks."""
    with h5py.File(path, "w", libver="latest") as file:
        checked = {"chunks": True, "fletcher32": True}
        file.create_dataset("entry_1/data_1/data", data=np.tile(FRAMES[:, :48, :48], 1), **checked)
        file.create_dataset("entry_1/data_1/translation", data=METRES, **checked)
        said = {
            "source_1/energy": (8.8, "keV"),
            "detector_1/distance": (1000.0, "mm"),
            "detector_1/x_pixel_size": (55.0, "um"),
            "detector_1/y_pixel_size": (55.0, "um"),
        }
        for name, (value, units) in said.items():
            file[f"entry_1/instrument_1/{name}"] = value
            file[f"entry_1/instrument_1/{name}"].attrs["units"] = units
    return path


def image(path: Path) -> Path:
    """Write the first frame as the suffix says, with the cutoff in a CBF file."""
    said = "# Detector: PILATUS 2M\r\n# Count_cutoff 4000 counts\r\n"
    cbf = {"_array_data.header_convention": "PILATUS_1.2", "_array_data.header_contents": said}
    kinds: dict[str, tuple[Any, dict[str, str]]] = {
        ".cbf": (fabio.cbfimage.CbfImage, cbf),
        ".edf": (fabio.edfimage.EdfImage, {}),
        ".tif": (fabio.tifimage.TifImage, {}),
    }
    make, header = kinds[path.suffix]
    make(data=FRAMES[0].astype(np.int32), header=header).write(str(path))
    return path


LAYOUTS: dict[str, dict[str, Any]] = {
    "gzip": {"chunks": (1, 48, 52), "compression": "gzip", "fletcher32": True},
    "bitshuffle": {"chunks": (1, 48, 52), "compression": hdf5plugin.Bitshuffle()},
    "tiles": {"chunks": (2, 16, 52), "fletcher32": True},
    "contiguous": {},
}
KINDS: dict[str, Callable[[Path], Path]] = {
    **{f"{name}.h5": lambda path, options=o: hdf5(path, **options) for name, o in LAYOUTS.items()},
    "scan.cxi": cxi,
    **{f"image{suffix}": image for suffix in (".cbf", ".edf", ".tif")},
}
UNCHECKED = ("contiguous.h5", "bitshuffle.h5", "image.edf", "image.tif")
"""What says nothing of whether its pixels are as they were: a changed byte is another count."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    return {name: write(folder / name).read_bytes() for name, write in KINDS.items()}


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """Damage a file in one of the ways in which copies and disks do."""
    changed = bytearray(content)
    place = int(rng.integers(len(changed)))
    length = int(min(rng.integers(1, 64), len(changed) - place))
    kind = int(rng.integers(6))
    if kind == 0:
        del changed[place:]
    elif kind == 1:
        for _ in range(int(rng.integers(1, 4))):
            changed[int(rng.integers(len(changed)))] ^= 1 << int(rng.integers(8))
    elif kind == 2:
        changed[place : place + length] = bytes(length)
    elif kind == 3:
        changed[place : place + length] = rng.bytes(length)
    elif kind == 4:
        changed[place:place] = rng.bytes(length)
    else:
        del changed[place : place + length]
    return bytes(changed)


@dataclass
class Outcome:
    """What became of the frames, by number, and what was said."""

    frames: dict[int, np.ndarray]
    said: list[str]


def read_frames(path: Path) -> Outcome:
    outcome = Outcome({}, [])
    try:
        with open_frames(path) as series:
            _ = series.mask
            for number in range(len(series)):
                try:
                    outcome.frames[number] = series[number]
                except EdgexnasError as error:
                    outcome.said.append(str(error))
    except EdgexnasError as error:
        outcome.said.append(str(error))
    return outcome


def read_source(path: Path) -> Outcome:
    outcome = Outcome({}, [])
    try:
        for event in open_event_source(f"file://{path}").events():
            if isinstance(event, SourceFrame):
                outcome.frames[event.number] = event.pixels
            elif isinstance(event, SourceTrouble):
                outcome.said.append(event.message)
    except EdgexnasError as error:
        outcome.said.append(str(error))
    return outcome


def read_patterns(path: Path) -> Outcome:
    try:
        scan = open_scan(path)
    except EdgexnasError as error:
        return Outcome({}, [str(error)])
    unknown = ~np.isfinite(scan.positions_px).all(axis=1)
    moved = scan.positions_px - np.nanmin(scan.positions_px, axis=0)
    expected = EXPECTED_PX - EXPECTED_PX[~unknown].min(axis=0)
    np.testing.assert_allclose(moved[~unknown], expected[~unknown], atol=1e-6)
    return Outcome({n: p for n, p in enumerate(scan.patterns) if not unknown[n]}, ["unknown"])


STEP_M = 1.986445857e-25 / (8.8e3 * 1.602176634e-19) / (48 * 55e-6)
EXPECTED_PX = METRES[:, 1::-1] / STEP_M


def check(name: str, content: bytes, folder: Path) -> bool:
    """Read a mutated file in each way; tell whether something was refused."""
    path = folder / name
    path.write_bytes(content)
    expected = FRAMES[:, :48, :48] if name.endswith("cxi") else FRAMES
    ways = [read_patterns] if name.endswith("cxi") else [read_frames, read_source]
    refused = False
    for read in ways:
        outcome = read(path)
        for sentence in outcome.said:
            assert sentence.strip()
            assert "\n" not in sentence
            assert "Traceback" not in sentence
        refused |= len(outcome.frames) < (1 if name.startswith("image") else len(FRAMES))
        assert outcome.said or not refused, "frames are missing without a word"
        for number, pixels in outcome.frames.items():
            assert pixels.shape == expected[number].shape
            if name not in UNCHECKED:
                np.testing.assert_array_equal(pixels, expected[number], err_msg=name)
    return refused


def run(seeds: range, whole: dict[str, bytes], folder: Path) -> dict[str, int]:
    names, counts = sorted(whole), {"refused": 0, "read": 0}
    logging.getLogger("fabio").propagate = False
    for seed in seeds:
        rng = np.random.default_rng(seed)
        name = names[seed % len(names)]
        try:
            refused = check(name, mutated(whole[name], rng), folder)
        except Exception as error:
            raise AssertionError(f"seed {seed}, {name}: {type(error).__name__}: {error}") from error
        counts["refused" if refused else "read"] += 1
    return counts


def test_undamaged_files_are_read_as_they_are(whole: dict[str, bytes], tmp_path: Path) -> None:
    for name, content in whole.items():
        assert not check(name, content, tmp_path), name


def test_a_damaged_file_is_read_as_it_was_or_refused(
    whole: dict[str, bytes], tmp_path: Path
) -> None:
    counts = run(range(64), whole, tmp_path)
    assert min(counts.values()) > 5


@pytest.mark.long
@pytest.mark.real
@pytest.mark.parametrize(
    "name",
    [
        "nexus_detector_files/lambda_m1_part00000.nxs",
        "nexus_detector_files/AgBehenate_228.hdf5",
        "petra_p25_nearfield_ptycho/PETRAIII_P25_Near_Field_Ptycho.cxi",
    ],
)
def test_a_damaged_file_of_a_real_detector_is_read_or_refused_in_a_sentence(
    real_data: Path, name: str, tmp_path: Path
) -> None:
    content = (real_data / name).read_bytes()
    path = tmp_path / Path(name).name
    for seed in range(40):
        path.write_bytes(mutated(content, np.random.default_rng(seed)))
        for read in (read_frames, read_source):
            outcome = read(path)
            assert outcome.frames or outcome.said
            assert not any("\n" in sentence for sentence in outcome.said)
        if path.suffix == ".cxi":
            with suppress(EdgexnasError):
                open_scan(path)


@pytest.mark.long
def test_many_damaged_files_are_read_as_they_were_or_refused(
    whole: dict[str, bytes], tmp_path: Path
) -> None:
    counts = run(range(1000, 1600), whole, tmp_path)
    assert min(counts.values()) > 50
