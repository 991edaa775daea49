"""A service that stops in the middle of a spot and goes on with it when it is started again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgexnas.bundle import Bundle
from edgexnas.device import PeakPredictor
from edgexnas.device.serving.service import Service, StoredAlreadyError
from edgexnas.device.serving.settings import PipelineSettings
from edgexnas.device.sinks.hdf5_sink import Hdf5Sink
from edgexnas.device.sinks.merging_sink import MergingSink
from edgexnas.device.sinks.results import SeriesSpots, ServiceIdentity
from edgexnas.device.sinks.results_file import read_spots
from edgexnas.device.sources.events import SeriesEnd, SeriesStart, SourceEvent
from edgexnas.merging import MergeSettings

pytest.importorskip("onnxruntime", reason="onnxruntime is the extra «device»")

FRAMES = 10
SETTINGS = MergeSettings(omega_start_deg=0.0, omega_step_deg=0.25)


@pytest.fixture(scope="module")
def pixels(spot_frame: Callable[..., Any]) -> list[Any]:
    """A spot on frames 2 to 7, and one more on frames 4 and 5."""
    return [
        spot_frame(
            [(20.3, 30.6)] * (2 <= number <= 7) + [(70.4, 60.4)] * (number in (4, 5)), seed=number
        )
        for number in range(FRAMES)
    ]


def serve(
    folder: Path, bundle: Bundle, source: Any, kind: Callable[..., Hdf5Sink] = Hdf5Sink
) -> None:
    with PeakPredictor(bundle) as predictor:
        sink = MergingSink(kind(folder, spots=True), SETTINGS, stored=(folder, "results"))
        # Both take the background from the first frame alone: peaks are equal to the last bit.
        settings = PipelineSettings(background_frames=1)
        Service(predictor, source, [sink], settings=settings, sink_retry_s=0.1).run()


def stored(folder: Path) -> npt.NDArray[np.void]:
    tables = [batch.spots.table for batch in read_spots(folder)]
    return np.sort(np.concatenate(tables), order="first_frame")


class NoRoomAtEnd(Hdf5Sink):
    """A disk that is full when the series ends, once; `opened` is how often it was opened."""

    full = True
    opened = 0

    def open(self, identity: ServiceIdentity) -> None:
        super().open(identity)
        self.opened += 1

    def write_spots(self, spots: SeriesSpots) -> None:
        if self.full and spots.mark is not None and spots.mark.state == "ended":
            self.full = False
            raise OSError(28, "No space left on device")
        super().write_spots(spots)


@pytest.mark.parametrize("trouble", ["stopped before the end", "disk full at the end"])
def test_spots_of_the_last_frame_come_with_a_restart_though_all_frames_are_stored(
    tmp_path: Path, bundle: Bundle, told_source: Any, frame_of: Any, pixels: list[Any], trouble: str
) -> None:
    def events(*, ends: bool = True) -> Iterator[SourceEvent]:
        yield SeriesStart("a", shape=(96, 128), dtype=np.dtype(np.uint16), identity="a #1")
        for number in range(7):
            yield frame_of(number, pixels[number])
        if ends:
            yield SeriesEnd("a", 7, 0)

    if trouble == "stopped before the end":
        serve(tmp_path, bundle, told_source(events(ends=False)))
    else:
        serve(tmp_path, bundle, told_source(events()), NoRoomAtEnd)
    assert stored(tmp_path)[["first_frame", "last_frame"]].tolist() == [(4, 5)]
    with pytest.raises(StoredAlreadyError):
        serve(tmp_path, bundle, told_source(events()))
    assert stored(tmp_path)[["first_frame", "last_frame"]].tolist() == [(2, 6), (4, 5)]


def test_a_sink_that_is_open_again_is_told_of_the_end_that_it_could_not_store(
    tmp_path: Path, bundle: Bundle, told_source: Any, frame_of: Any, pixels: list[Any]
) -> None:
    def events() -> Iterator[SourceEvent]:
        for name in "ab":
            shape = (96, 128)
            yield SeriesStart(name, shape=shape, dtype=np.dtype(np.uint16), identity=name)
            for number in range(7):
                yield frame_of(number, pixels[number], series=name)
            yield SeriesEnd(name, 7, 0)
            until_s = time.monotonic() + 120
            while sinks[0].opened < 2 and time.monotonic() < until_s:
                time.sleep(0.01)

    sinks = list[NoRoomAtEnd]()

    def sink(*given: Any, **options: Any) -> NoRoomAtEnd:
        sinks.append(NoRoomAtEnd(*given, **options))
        return sinks[0]

    serve(tmp_path, bundle, told_source(events()), sink)
    assert len(stored(tmp_path)) == 4


@pytest.mark.parametrize("at", [3, 5, 6, 8])
def test_spots_are_those_of_a_service_that_never_stopped(
    tmp_path: Path,
    bundle: Bundle,
    told_source: Any,
    frame_of: Any,
    pixels: list[Any],
    at: int,
) -> None:
    def events(stop: int | None = None) -> Iterator[SourceEvent]:
        yield SeriesStart("a", shape=(96, 128), dtype=np.dtype(np.uint16), identity="a #1")
        for number in range(FRAMES)[:stop]:
            yield frame_of(number, pixels[number])
        if stop is None:
            yield SeriesEnd("a", FRAMES, 0)

    serve(tmp_path / "whole", bundle, told_source(events()))
    whole = stored(tmp_path / "whole")
    assert whole[["first_frame", "last_frame"]].tolist() == [(2, 7), (4, 5)]
    serve(tmp_path / "parts", bundle, told_source(events(at)))
    serve(tmp_path / "parts", bundle, told_source(events()))
    np.testing.assert_array_equal(stored(tmp_path / "parts"), whole)
