"""Arrays are copied in parts that come in order, whoever copied them."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from edgexnas.device.cuda import host_copy
from edgexnas.device.cuda.host_copy import HostCopy


@pytest.fixture(params=[1, 4])
def copy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[HostCopy]:
    monkeypatch.setattr(host_copy, "PART_BYTES", 256)
    opened = HostCopy(request.param)
    yield opened
    opened.close()


@pytest.mark.parametrize("rows", [0, 1, 7, 100])
def test_every_part_is_there_when_it_is_given(copy: HostCopy, rows: int) -> None:
    source = np.random.default_rng(rows).integers(0, 99, (rows, 16)).astype(np.uint16)
    target = np.zeros_like(source)
    end = 0
    for part in copy.parts(source, target):
        assert part.start == end
        end = min(part.stop, rows)
        np.testing.assert_array_equal(target[:end], source[:end])
    assert end == rows


def test_a_small_array_needs_no_thread() -> None:
    copy = HostCopy(8)
    before = set(threading.enumerate())
    assert list(copy.parts(np.ones(9), np.zeros(9))) == [slice(0, 9)]
    assert set(threading.enumerate()) <= before


def test_nothing_is_written_after_an_early_end(copy: HostCopy) -> None:
    source, target = np.ones((4000, 64), np.uint16), np.zeros((4000, 64), np.uint16)
    parts = copy.parts(source, target)
    next(parts)
    parts.close()
    kept = target.copy()
    for _ in copy.parts(source[:100], np.zeros_like(source[:100])):
        pass
    np.testing.assert_array_equal(target, kept)


def test_a_copy_that_fails_raises_in_the_callers_thread(copy: HostCopy) -> None:
    with pytest.raises(ValueError, match="could not broadcast"):
        list(copy.parts(np.ones((50, 64)), np.zeros((50, 63))))
    target = np.zeros((50, 64))
    list(copy.parts(np.ones((50, 64)), target))
    assert target.all()


def test_closing_ends_the_threads_and_closing_again_does_nothing() -> None:
    before = set(threading.enumerate())
    copy = HostCopy(3)
    large = np.zeros((4096, 1024), np.uint16)
    list(copy.parts(large, np.empty_like(large)))
    assert len(set(threading.enumerate()) - before) == 2
    copy.close()
    copy.close()
    assert set(threading.enumerate()) <= before
