"""A service that stops in the middle of a spot and goes on with it when it is started again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgexnas.bundle import Bundle
from edgexnas.device import PeakPredictor
from edgexnas.device.serving.service import Service
from edgexnas.device.serving.settings import PipelineSettings
from edgexnas.device.sinks.hdf5_sink import Hdf5Sink
from edgexnas.device.sinks.merging_sink import MergingSink
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


def serve(folder: Path, bundle: Bundle, source: Any) -> None:
    with PeakPredictor(bundle) as predictor:
        sink = MergingSink(Hdf5Sink(folder, spots=True), SETTINGS, stored=(folder, "results"))
        # Both take the background from the first frame alone: peaks are equal to the last bit.
        Service(predictor, source, [sink], settings=PipelineSettings(background_frames=1)).run()


def stored(folder: Path) -> npt.NDArray[np.void]:
    tables = [batch.spots.table for batch in read_spots(folder)]
    return np.sort(np.concatenate(tables), order="first_frame")


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
