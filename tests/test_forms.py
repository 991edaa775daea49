"""docs/forms.md names what is written, and nothing else."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from edgexnas.bragg import PeakFlag, Peaks
from edgexnas.bundle.bundle_file import MEMBER_LIMITS
from edgexnas.bundle.manifest import OPTIONAL_FIELDS
from edgexnas.device.sinks.hdf5_sink import Hdf5Sink
from edgexnas.device.sinks.results import (
    FRAME_STATES,
    FrameResult,
    ObjectSnapshot,
    SeriesBegun,
    SeriesEnded,
    SeriesSpots,
    ServiceIdentity,
)
from edgexnas.ptycho import ObjectImage
from edgexnas.spots import SPOT, SPOT_COLUMNS, Spots

PAGE = (Path(__file__).parents[1] / "docs/forms.md").read_text()
PATCH = np.ones((64, 64), np.float32)

Row = dict[str, str]
Entries = dict[str, dict[str, tuple[str, int, str]]]
"""Group → name → dtype, number of axes and unit."""


def tables(heading: str) -> list[list[Row]]:
    """The tables of a section, each as rows by the names of its columns."""
    _, _, rest = PAGE.partition(f"{heading}\n")
    section = re.split(r"^#+ ", rest, maxsplit=1, flags=re.MULTILINE)[0]
    found = []
    for table in re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE):
        names, _, *rows = ([c.strip() for c in r.strip("|").split("|")] for r in table.split("\n"))
        found.append([dict(zip(names, row, strict=True)) for row in rows if len(row) > 1])
    return found


def name_of(row: Row) -> str:
    return next(iter(row.values())).strip("`")


def name_of_type(dtype: np.dtype[Any]) -> str:
    if dtype.kind == "S":
        return dtype.str[1:]
    return "str" if dtype.kind == "O" else dtype.name


def axes_of(row: Row) -> int:
    return len(re.findall(r"\w+", row["shape"]))


def identity(task: Any) -> ServiceIdentity:
    return ServiceIdentity(task, "m", 1, "onnxruntime", "int8", "told://", "0", "a" * 64)


def results() -> list[FrameResult]:
    """A frame with peaks and a patch."""
    positions = np.ones((2, 2), np.float32)
    peaks = Peaks(
        positions_px=positions,
        intervals_px=positions,
        quantiles_px=np.zeros((2, 2, 3), np.float32),
        maxima=np.zeros((2, 2), np.int32),
        intensities=np.ones(2, np.float32),
        flags=np.zeros(2, np.uint8),
        frame_number=0,
        overflow=0,
    )
    now = time.monotonic_ns()
    return [
        FrameResult("a", 0, now, 1.5, peaks),
        FrameResult("a", 1, now, 1.5, amplitude=PATCH, phase_rad=PATCH, position_px=(1, 2)),
    ]


def test_states_and_flags_are_those_that_are_written() -> None:
    ((*states,),) = tables("# Forms: what edgexnas writes, and how to read it")
    assert [(name_of(row), int(row["code"])) for row in states] == [
        (state, code) for code, state in enumerate(FRAME_STATES)
    ]
    told = re.search(r"Bits of `flags` of a peak: (.*?);", PAGE)
    assert told is not None
    assert told[1] == ", ".join(f"{flag.value} {str(flag.name).lower()}" for flag in PeakFlag)


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> Entries:
    """What is in files of results of both applications."""
    found: Entries = {}
    for task, result in zip(("bragg", "ptycho"), results(), strict=True):
        sink = Hdf5Sink(tmp_path_factory.mktemp(task), patches=True, spots=task == "bragg")
        sink.open(identity(task))
        sink.write([result])
        sink.close()
        assert sink.path is not None

        def enter(path: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset) and item.dtype.names:
                for name in item.dtype.names:
                    found.setdefault(path, {})[name] = (name_of_type(item.dtype[name]), 1, "")
            elif isinstance(item, h5py.Dataset):
                about = (name_of_type(item.dtype), item.ndim, item.attrs.get("units", ""))
                parent, _, name = path.rpartition("/")
                found.setdefault(parent, {})[name] = about

        with h5py.File(sink.path) as file:
            file.visititems(enter)
    # Title and start time of the entry itself.
    del found["entry"]
    return found


def test_every_group_of_a_file_is_described(entries: Any) -> None:
    assert set(re.findall(r"^### `(entry/[\w/]+)`$", PAGE, re.MULTILINE)) == set(entries)


@pytest.mark.parametrize(
    "group",
    ["frames/commits", "bundles", "series", "process", "peaks", "patches", "spots", "merges"],
)
def test_a_group_of_a_file_holds_what_is_described(entries: Any, group: str) -> None:
    (table,) = tables(f"### `entry/{group}`")
    told = {name_of(row): (row["dtype"], axes_of(row), row["unit"]) for row in table}
    if group in ("frames/commits", "merges"):
        # The fields of a compound carry no units.
        told = {name: (dtype, axes, "") for name, (dtype, axes, _) in told.items()}
    assert told == entries[f"entry/{group}"]


@pytest.fixture(scope="module")
def messages() -> list[tuple[dict[str, Any], list[bytes]]]:
    """Header and array parts of a message of each kind."""
    zmq = pytest.importorskip("zmq", reason="pyzmq is the extra «zmq»")
    from edgexnas.device.sinks.zmq_sink import ZmqSink

    sink = ZmqSink("tcp://127.0.0.1:*", mode="push")
    sink.open(identity("bragg"))
    with zmq.Context() as context, context.socket(zmq.PULL) as socket:
        socket.rcvtimeo = 10_000
        socket.connect(sink.address)
        image = ObjectImage(np.ones((3, 4), np.complex64), np.ones((3, 4), np.float32), 0, (5, 6))
        sink.begin(SeriesBegun("a"))
        sink.write(results())
        sink.write_spots(SeriesSpots("a", Spots.from_table(np.zeros(2, SPOT))))
        sink.show(ObjectSnapshot("a", 1, image, final=True))
        sink.end(SeriesEnded("a", {}))
        received = [socket.recv_multipart() for _ in range(6)]
    sink.close()
    return [(json.loads(header), arrays) for _, header, *arrays in received]


def test_headers_have_the_keys_that_are_described(messages: Any) -> None:
    (table,) = tables("### Header")
    for header, _ in messages:
        kinds = {name_of(row): row["kinds"].split(", ") for row in table}
        told = {name for name, in_ in kinds.items() if "all" in in_ or header["kind"] in in_}
        assert set(header) == told, header["kind"]


def test_messages_have_the_arrays_that_are_described(messages: Any) -> None:
    (table,) = tables("### Arrays")
    for header, _ in messages:
        written = {
            a["name"]: (np.dtype(a["dtype"]).name, len(a["shape"]), a["unit"])
            for a in header["arrays"]
        }
        if header["kind"] == "spots":
            told = {
                name: (np.dtype(kind).name, 1, unit or "1")
                for name, (kind, unit) in SPOT_COLUMNS.items()
            }
        else:
            told = {
                name_of(row): (row["dtype"], axes_of(row), row["unit"])
                for row in table
                if row["kinds"] == header["kind"]
            }
        assert written == told, header["kind"]


def test_tables_of_epics_have_the_fields_that_are_described() -> None:
    pytest.importorskip("pvaccess", reason="pvapy is the extra «pva»")
    from edgexnas.device.sinks import pva_sink

    (table,) = tables("### `PREFIXPeaks`")
    assert [name_of(row) for row in table] == [*pva_sink._peak_table().getStructureDict()]
    common = re.findall(r"`(\w+)`", PAGE.partition("### `PREFIXSpots`\n")[2].split("\n\n")[0])
    assert common == [*pva_sink._spot_table().getStructureDict()]


def test_a_bundle_has_the_members_and_fields_that_are_described() -> None:
    members, fields = tables("## Bundles")
    assert [name_of(row) for row in members] == list(MEMBER_LIMITS)
    assert {name_of(row) for row in fields} == OPTIONAL_FIELDS
