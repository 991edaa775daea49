from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgexnas.device.serving import spill
from edgexnas.device.serving.ledger import SeriesLedger
from edgexnas.device.serving.series_run import FrameTask, SeriesRun
from edgexnas.device.serving.spill import SpillFolder
from edgexnas.device.sources.events import SeriesStart

RUN = SeriesRun(SeriesStart("a"), SeriesLedger("a"))


@pytest.fixture
def task() -> Callable[..., FrameTask]:
    def make(number: int, shape: tuple[int, int] = (8, 9), dtype: Any = np.uint16) -> FrameTask:
        return FrameTask(RUN, number, 0, np.full(shape, number, dtype))

    return make


def test_frames_come_back_as_they_were_in_order_and_files_go(
    tmp_path: Path, task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spill, "FILE_BYTES", 500)
    folder = SpillFolder(tmp_path, 10**6)
    given = [(0, (8, 9), "u2"), (1, (3, 4), "f4"), *((n, (8, 9), "u4") for n in range(2, 9))]
    for number, shape, dtype in given:
        spilled = task(number, shape, dtype)
        assert folder.put(spilled)
        assert spilled.pixels is None
    assert len(list(folder.folder.iterdir())) > 2
    for number, shape, dtype in given:
        taken = folder.take()
        assert taken is not None
        assert taken.number == number
        np.testing.assert_array_equal(taken.pixels, np.full(shape, number, dtype))
    assert folder.take() is None
    assert list(folder.folder.iterdir()) == []
    folder.close()
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_is_refused_until_there_is_room(tmp_path: Path, task: Any) -> None:
    folder = SpillFolder(tmp_path, 300)
    assert folder.put(task(0))
    assert folder.put(task(1))
    refused = task(2)
    assert not folder.put(refused)
    assert refused.pixels is not None
    folder.take()
    assert folder.put(refused)
    folder.close()


def test_a_frame_that_cannot_be_read_back_has_an_error(tmp_path: Path, task: Any) -> None:
    folder = SpillFolder(tmp_path, 10**6)
    folder.put(task(0))
    for path in folder.folder.iterdir():
        path.write_bytes(b"short")
    taken = folder.take()
    assert taken is not None
    assert taken.pixels is None
    assert "could not be read back" in str(taken.error)
    folder.close()
