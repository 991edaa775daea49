"""What areaDetector sends becomes a frame, or is refused by what is wrong with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgexnas.device.sources.compression import compress
from edgexnas.device.sources.events import SeriesStart, SourceFrame
from edgexnas.device.sources.pva.ntndarray import FrameUpdate, read_positions
from edgexnas.device.sources.pva.source import PvaOptions, PvaSource
from edgexnas.errors import InputError

FRAME = np.random.default_rng(0).poisson(4, (30, 40)).astype(np.uint16)
PVDATA_USHORT, PVXS_UINT16, PVXS_UINT16_ARRAY = 6, 0x25, 0x2D


def update(frame: np.ndarray = FRAME, **changes: Any) -> dict[str, Any]:
    field = {"uint16": "ushortValue", "uint8": "ubyteValue", "float64": "doubleValue"}
    fields: dict[str, Any] = {
        "value": ({field[frame.dtype.name]: frame.ravel()}, {}),
        "codec": {"name": "", "parameters": ({}, {})},
        "dimension": [{"size": size} for size in reversed(frame.shape)],
        "uncompressedSize": frame.nbytes,
        "uniqueId": 17,
        "dataTimeStamp": {"secondsPastEpoch": 1_700_000_000, "nanoseconds": 500_000_000},
        "attribute": [],
    }
    return fields | changes


def packed(codec: str, code: object = PVDATA_USHORT, **changes: Any) -> dict[str, Any]:
    payload = np.frombuffer(compress(codec, FRAME), np.uint8)
    fields = {
        "value": ({"ubyteValue": payload}, {}),
        "codec": {"name": codec, "parameters": ({"value": code}, {})},
        "uncompressedSize": FRAME.nbytes,
    }
    return update(**(fields | changes))


def test_an_image_is_read_with_its_id_and_time() -> None:
    read = FrameUpdate.of(update())
    assert (read.unique_id, read.time_s) == (17, 1_700_000_000.5)
    np.testing.assert_array_equal(read.decode(), FRAME)


def test_an_image_that_is_not_compressed_is_not_copied() -> None:
    assert np.shares_memory(FrameUpdate.of(update()).decode(), FRAME)


@pytest.mark.parametrize("codec", ["lz4", "bslz4", "blosc"])
def test_areadetectors_codecs_are_decoded(codec: str) -> None:
    np.testing.assert_array_equal(FrameUpdate.of(packed(codec)).decode(), FRAME)


@pytest.mark.parametrize("code", [PVDATA_USHORT, PVXS_UINT16, PVXS_UINT16_ARRAY])
def test_the_type_of_compressed_pixels_is_understood_from_either_plugin(code: int) -> None:
    decoded = FrameUpdate.of(packed("bslz4", code)).decode()
    assert decoded.dtype == np.uint16
    np.testing.assert_array_equal(decoded, FRAME)


def test_a_compressed_image_can_be_decoded_elsewhere_in_memory_that_is_lent() -> None:
    place = np.empty(FRAME.shape, FRAME.dtype)
    read = FrameUpdate.of(packed("bslz4"))
    assert read.kind()[:2] == (FRAME.shape, FRAME.dtype)
    encoded = read.encoded(lambda error: error)
    assert encoded.nbytes == read.values.nbytes
    assert encoded.decode(lambda shape, dtype: place) is place
    np.testing.assert_array_equal(place, FRAME)
    damaged = FrameUpdate.of(packed("bslz4")).encoded(lambda error: InputError(f"frame 3: {error}"))
    with pytest.raises(InputError, match="frame 3: bitshuffle data are malformed"):
        damaged.decoder(bytes(5), None)


def test_an_axis_of_one_is_no_axis() -> None:
    sizes = [{"size": 40}, {"size": 30}, {"size": 1}]
    assert FrameUpdate.of(update(dimension=sizes)).decode().shape == (30, 40)


def test_an_update_before_the_first_image_has_no_field() -> None:
    assert FrameUpdate.of(update(value=({}, {}))).field is None


@pytest.mark.parametrize("seconds", [0, -1, 253_402_300_800, 2**62, -(2**63)])
def test_a_time_that_is_not_set_or_not_credible_is_none(seconds: int) -> None:
    stamp = {"secondsPastEpoch": seconds, "nanoseconds": 0}
    assert FrameUpdate.of(update(dataTimeStamp=stamp)).time_s is None


@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**31), 2**31 - 1))
def test_a_series_begins_whatever_the_time_of_its_first_frame(
    seconds: int, nanoseconds: int
) -> None:
    stamp = {"secondsPastEpoch": seconds, "nanoseconds": nanoseconds}
    source = PvaSource("pva://X", "X", PvaOptions())
    begun, frame = source._frame(FrameUpdate.of(update(dataTimeStamp=stamp)), 1)
    assert isinstance(begun, SeriesStart)
    assert isinstance(frame, SourceFrame)
    assert frame.timestamp_s is None or 0 < frame.timestamp_s < 4.2e9


@pytest.mark.parametrize("lacks", [{}, None, {"secondsPastEpoch": "?", "nanoseconds": 0}])
def test_the_time_of_the_record_stands_in_for_that_of_the_data(lacks: Any) -> None:
    record = {"secondsPastEpoch": 1_700_000_001, "nanoseconds": 0}
    assert FrameUpdate.of(update(dataTimeStamp=lacks, timeStamp=record)).time_s == 1_700_000_001
    assert FrameUpdate.of(update(dataTimeStamp=lacks, timeStamp=lacks)).time_s is None
    assert FrameUpdate.of(update(timeStamp=record)).time_s == 1_700_000_000.5


def axes(**region: tuple[Any, Any]) -> list[dict[str, Any]]:
    """Dimensions of `FRAME`, the fastest first, with (row, col) of what a region says."""
    return [
        {"size": FRAME.shape[axis], **{name: pair[axis] for name, pair in region.items()}}
        for axis in (1, 0)
    ]


@pytest.mark.parametrize(
    "region", [{"offset": (0, 64)}, {"binning": (2, 1)}, {"reverse": (False, True)}]
)
def test_a_region_that_changes_begins_another_series_which_names_it(region: dict[str, Any]) -> None:
    source = PvaSource("pva://X", "X", PvaOptions())
    whole = FrameUpdate.of(update(dimension=axes(offset=(0, 0), binning=(1, 1)), uniqueId=17))
    changed = FrameUpdate.of(update(dimension=axes(**region), uniqueId=18))
    first, *_ = source._frame(whole, 1)
    _, second, frame = source._frame(changed, 2)
    assert isinstance(first, SeriesStart)
    assert isinstance(second, SeriesStart)
    assert isinstance(frame, SourceFrame)
    assert (frame.series, frame.number, frame.detector_id) == (second.series, 0, 18)
    assert first.identity != second.identity
    ((name, value),) = region.items()
    assert second.metadata[name] == value
    assert first.metadata["offset"] == (0, 0)


def test_dimensions_that_do_not_say_a_region_are_those_of_all_the_detector() -> None:
    unset = axes(offset=(0, 0), binning=(0, 0), reverse=(False, False))
    assert FrameUpdate.of(update()).kind() == FrameUpdate.of(update(dimension=unset)).kind()


def test_a_series_of_a_time_and_an_id_that_came_before_has_a_name_of_its_own() -> None:
    starts = []
    stored: dict[str, int] = {}
    for _ in range(2):
        source = PvaSource("pva://X", "X", PvaOptions())
        source.resume(stored)
        for number in (3, 4, 3):
            for event in source._frame(FrameUpdate.of(update(uniqueId=number)), 1):
                if isinstance(event, SeriesStart):
                    starts.append(event)
        stored |= {start.identity: 1 for start in starts}
    assert len({start.series for start in starts}) == len(starts) == 4


@pytest.mark.parametrize("same_kind", [True, False])
def test_a_stored_series_goes_on_if_its_frames_are_of_one_kind(same_kind: bool) -> None:
    before = PvaSource("pva://X", "X", PvaOptions())
    (begun, _) = before._frame(FrameUpdate.of(update(uniqueId=17)), 1)
    assert isinstance(begun, SeriesStart)
    after = PvaSource("pva://X", "X", PvaOptions())
    after.resume({begun.identity: 5})
    dimension = axes(offset=(0, 0) if same_kind else (8, 0))
    resumed, frame = after._frame(FrameUpdate.of(update(uniqueId=30, dimension=dimension)), 1)
    assert isinstance(resumed, SeriesStart)
    assert isinstance(frame, SourceFrame)
    assert (resumed.identity == begun.identity) is same_kind
    assert (resumed.first, frame.number) == ((6, 13) if same_kind else (0, 0))
    assert after.status()["missed"] == (7 if same_kind else 0)
    assert frame.detector_id == 30


def test_only_attributes_that_are_asked_for_and_are_numbers_are_read() -> None:
    attributes = [
        {"name": "Row", "value": ({"value": 1.5}, {})},
        {"name": "Col", "value": ({"value": "2.5"}, {})},
        {"name": "Label", "value": ({"value": "sample"}, {})},
        {"name": "Other", "value": ({"value": 3}, {})},
    ]
    read = FrameUpdate.of(update(attribute=attributes), ("Row", "Col", "Label"))
    assert read.attributes == {"Row": 1.5, "Col": 2.5}


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (update(dimension=[{"size": 40}, {"size": 31}]), "31×40 uint16 came with 2400 bytes, not"),
        (update(dimension=[{"size": 3}, {"size": 20}, {"size": 20}]), r"dimensions \(3, 20, 20\)"),
        (update(dimension=[]), r"an image has dimensions \(\); frames have two"),
        (update(dimension=[{"size": 40}, {"size": -30}]), "is not an image"),
        (update(value=({"stringValue": ("a",)}, {})), "the image is a stringValue"),
        (packed("bslz4", "u2"), "does not say its type in codec.parameters"),
        (packed("bslz4", 99), "codec.parameters of a compressed image is 99, which is not a type"),
        (packed("bslz4", 7), "claims 2400 bytes, but 30×40 uint32 takes 4800"),
        (packed("bslz4", uncompressedSize=2**40), "claims 1099511627776 bytes, but 30×40 uint16"),
        (
            packed("lz4", value=({"ushortValue": FRAME.ravel()}, {})),
            "an image compressed with lz4 came as uint16, not as bytes",
        ),
        (
            update(codec={"name": "jpeg", "parameters": ({"value": 5}, {})}),
            "compressed with 'jpeg'; set the codec plugin to lz4, bslz4, blosc, lz4hdf5 or none",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_its_value(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        FrameUpdate.of(fields).decode()


def test_an_update_of_another_kind_of_pv_is_refused_with_the_remedy() -> None:
    with pytest.raises(
        InputError, match=r"is not an NTNDArray .* name the PV of an areaDetector plugin"
    ):
        FrameUpdate.of({"value": 3.5})


def test_positions_come_as_numbers_or_as_columns_of_a_table() -> None:
    assert read_positions({"number": 4, "row": 1.0, "col": 2.0}) == [(4, (1.0, 2.0))]
    table = {"number": [4, 5], "row": [1.0, 1.5], "col": [2.0, 2.5]}
    assert read_positions({"labels": ["a"], "value": table}) == [(4, (1.0, 2.0)), (5, (1.5, 2.5))]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"number": 1, "row": 2.0}, "has no field 'col'; expected number, row, col"),
        ({"number": [1, 2], "row": [1.0], "col": [2.0]}, "are not numbers of equal length"),
        ({"number": 1, "row": "a", "col": 2.0}, "are not numbers of equal length"),
    ],
)
def test_positions_of_another_form_are_refused(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        read_positions(fields)
