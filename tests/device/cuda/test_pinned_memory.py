"""Frames in pinned memory are uploaded from where they lie, and their memory is lent again."""

from __future__ import annotations

import gc
import threading
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from edgexnas.device.cuda import CudaSession, DoubleBuffer, PinnedPool, Slot
from edgexnas.errors import EngineError, InputError

FRAME = (64, 48)
LAYOUT = (FRAME, np.uint16)


def echo(slot: Slot, stream: Any) -> None:
    """Give the frame back."""
    driver = slot.input._session.driver_module
    driver.memcpy_dtoh_async(slot.outputs["frame"].array, slot.input.pointer, stream)


@pytest.fixture
def echoed(session: CudaSession) -> DoubleBuffer:
    """A double buffer that gives frames back."""
    return DoubleBuffer(session, LAYOUT, {"frame": LAYOUT}, echo)


def random_frame(seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 60000, FRAME).astype(np.uint16)


def filled(array: Any, seed: int) -> Any:
    array[:] = random_frame(seed)
    return array


def test_a_frame_in_pinned_memory_is_uploaded_from_there(
    session: CudaSession, echoed: DoubleBuffer, host_copies: list[Any]
) -> None:
    frame = filled(session.pinned.array(*LAYOUT), 1)
    echoed.submit(frame)
    np.testing.assert_array_equal(echoed.result()["frame"], random_frame(1))
    assert host_copies == []


def test_every_frame_of_a_ring_in_pinned_memory_is_uploaded_from_there(
    session: CudaSession, echoed: DoubleBuffer, host_copies: list[Any]
) -> None:
    ring = session.pinned.array((5, *FRAME), np.uint16)
    for seed, frame in enumerate(ring):
        echoed.submit(filled(frame, seed))
        np.testing.assert_array_equal(echoed.result()["frame"], random_frame(seed))
    assert host_copies == []


def test_any_other_frame_is_copied_with_the_same_result(
    session: CudaSession, echoed: DoubleBuffer, host_copies: list[Any]
) -> None:
    wide = session.pinned.array((FRAME[0], 2 * FRAME[1]), np.uint16)
    gapped = filled(wide[:, ::2], 2)
    turned = filled(session.pinned.array(FRAME[::-1], np.uint16).T, 2)
    for frame in (random_frame(2), random_frame(2).tolist(), gapped, turned):
        echoed.submit(np.asarray(frame, np.uint16))
        np.testing.assert_array_equal(echoed.result()["frame"], random_frame(2))
    assert len(host_copies) == 4


def test_an_array_that_only_begins_in_pinned_memory_is_not_taken_for_it(
    session: CudaSession,
) -> None:
    held = session.pinned.array((10,), np.uint8)
    beyond = np.lib.stride_tricks.as_strided(held, (11,))
    assert session.pinned.find(held) is not None
    assert session.pinned.find(held[3:]) is not None
    assert session.pinned.find(beyond) is None


def test_a_frame_is_kept_until_its_result_is_taken(
    session: CudaSession, echoed: DoubleBuffer
) -> None:
    with_one = PinnedPool(session, *LAYOUT, 1)
    for seed in range(3):
        frame = with_one.lend()
        assert frame is not None
        echoed.submit(filled(frame, seed))
        del frame
        assert with_one.lend() is None, "the GPU may still read it"
        np.testing.assert_array_equal(echoed.result()["frame"], random_frame(seed))
        assert len(with_one) == 1


def test_the_memory_of_a_frame_that_nobody_else_holds_stays_until_it_is_uploaded(
    session: CudaSession, echoed: DoubleBuffer
) -> None:
    echoed.submit(filled(session.pinned.array(*LAYOUT), 4))
    gc.collect()
    np.testing.assert_array_equal(echoed.result()["frame"], random_frame(4))


def test_another_shape_or_dtype_in_pinned_memory_is_refused(
    session: CudaSession, echoed: DoubleBuffer
) -> None:
    for shape, dtype in ((FRAME[::-1], np.uint16), (FRAME, np.int16), ((1, *FRAME), np.uint16)):
        with pytest.raises(InputError, match=r"; expected \(64, 48\) and uint16$"):
            echoed.submit(session.pinned.array(shape, dtype))
    assert echoed.in_flight == 0


def test_slots_come_back_in_any_order(session: CudaSession, echoed: DoubleBuffer) -> None:
    slots = [echoed.submit(random_frame(seed)) for seed in range(2)]
    for seed in (1, 0):
        taken = echoed.wait(slots[seed])
        np.testing.assert_array_equal(taken.outputs["frame"].array, random_frame(seed))
        echoed.release(taken)
    with pytest.raises(EngineError, match="this frame is not in flight; submit it first"):
        echoed.wait(slots[0])
    echoed.submit(random_frame(3))
    np.testing.assert_array_equal(echoed.result()["frame"], random_frame(3))
    echoed.close()
    with pytest.raises(EngineError, match="double buffer is closed; open another"):
        echoed.wait(slots[0])


def test_memory_is_freed_with_the_last_view_of_it(session: CudaSession) -> None:
    before = session.host_bytes
    view = session.pinned.array((6, *FRAME), np.uint16)[2:4].reshape(-1).view(np.uint8)[5:]
    raw = memoryview(view)
    assert session.host_bytes == before + 6 * 2 * FRAME[0] * FRAME[1]
    del view
    raw[0] = 7
    del raw
    assert session.host_bytes == before


def test_memory_that_is_there_is_pinned_until_the_last_view_goes(
    session: CudaSession, echoed: DoubleBuffer, host_copies: list[Any]
) -> None:
    before = session.host_bytes
    own = np.zeros((3, *FRAME), np.uint16)
    ring = session.pinned.pin(own)
    assert session.host_bytes == before + own.nbytes
    assert session.pinned.pin(ring[1]) is not None
    for seed in range(3):
        filled(own[seed], seed)
        echoed.submit(own[seed])
        np.testing.assert_array_equal(echoed.result()["frame"], random_frame(seed))
    assert host_copies == []
    view = ring[2]
    del ring
    assert session.pinned.find(own) is not None
    del view
    assert session.pinned.find(own) is None
    assert session.host_bytes == before
    echoed.submit(own[1])
    np.testing.assert_array_equal(echoed.result()["frame"], random_frame(1))
    assert len(host_copies) == 1
    again = session.pinned.pin(own)
    assert session.host_bytes == before + own.nbytes
    del again
    with pytest.raises(InputError, match="expected a C-contiguous one"):
        session.pinned.pin(own[:, ::2])


def test_no_memory_is_given_for_nothing_or_for_objects(session: CudaSession) -> None:
    for shape, dtype in (((0, 4), np.uint16), ((4,), object), ((4,), "M8[s]")):
        with pytest.raises(InputError, match="sizes above 0"):
            session.pinned.array(shape, dtype)


def test_a_pool_lends_its_frames_again_in_whatever_order_they_come_back(
    session: CudaSession,
) -> None:
    pool = PinnedPool(session, *LAYOUT, 3)
    lent: list[Any] = [pool.lend() for _ in range(3)]
    places = {frame.ctypes.data for frame in lent}
    assert len(places) == 3
    assert all((frame.shape, frame.dtype) == (FRAME, np.uint16) for frame in lent)
    assert pool.lend() is None
    for index in (1, 0, 1):
        place = lent[index].ctypes.data
        lent[index] = None
        again = pool.lend()
        assert again is not None
        assert again.ctypes.data == place
        lent[index] = again
    assert pool.lend() is None


def test_a_view_keeps_a_frame_out_of_the_pool(session: CudaSession) -> None:
    pool = PinnedPool(session, *LAYOUT, 1)
    frame = pool.lend()
    assert frame is not None
    view = frame.reshape(-1).view(np.uint8)[4:]
    del frame
    assert len(pool) == 0
    del view
    assert len(pool) == 1


def test_frames_come_back_from_other_threads(session: CudaSession) -> None:
    pool = PinnedPool(session, *LAYOUT, 4)
    taken: list[int] = []

    def borrow() -> None:
        for seed in range(200):
            frame = pool.lend()
            if frame is not None:
                filled(frame, seed)
                assert frame[5, 6] == random_frame(seed)[5, 6], "lent to two"
                taken.append(seed)

    threads = [threading.Thread(target=borrow) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(pool) == 4
    assert len(taken) > 200


def test_a_closed_pool_frees_what_is_out_when_it_comes_back(session: CudaSession) -> None:
    before = session.host_bytes
    pool = PinnedPool(session, *LAYOUT, 2)
    frame = pool.lend()
    assert frame is not None
    pool.close()
    pool.close()
    assert session.host_bytes == before + frame.nbytes
    assert pool.lend() is None
    frame[:] = 1
    del frame
    assert session.host_bytes == before
    assert len(pool) == 0


def test_frames_outlive_the_session_that_they_are_of(session: CudaSession) -> None:
    pool = PinnedPool(session, *LAYOUT, 2)
    frame, single = pool.lend(), session.pinned.array(*LAYOUT)
    assert frame is not None
    session.close()
    frame[:] = single[:] = 5
    assert session.host_bytes == frame.nbytes + single.nbytes
    held = [frame, single]
    del frame, single
    # Also in a thread that has never used the GPU.
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    assert session.host_bytes == 0
    with pytest.raises(EngineError, match="closed; open another"):
        session.pinned.array(*LAYOUT)


def test_a_pool_that_does_not_fit_leaves_nothing_behind(
    fake_cuda: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with CudaSession() as session:
        original, left = fake_cuda.driver.pagelocked_zeros, [3]

        def scarce(*given: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise fake_cuda.driver.MemoryError("cuMemHostAlloc failed: out of memory")
            return original(*given, **named)

        monkeypatch.setattr(fake_cuda.driver, "pagelocked_zeros", scarce)
        with pytest.raises(EngineError, match="has not enough memory left"):
            PinnedPool(session, *LAYOUT, 4)
        assert session.host_bytes == 0
    assert fake_cuda.pinned == {}


def test_a_gpu_that_disappears_takes_no_frame_with_it(fake_cuda: Any) -> None:
    session = CudaSession()
    echoed = DoubleBuffer(session, LAYOUT, {"frame": LAYOUT}, echo)
    pool = PinnedPool(session, *LAYOUT, 2)
    first, second = pool.lend(), pool.lend()
    assert first is not None
    assert second is not None
    echoed.submit(filled(first, 1))
    fake_cuda.gone = True
    with pytest.raises(EngineError, match="Fake GPU failed"):
        echoed.submit(filled(second, 2))
    np.testing.assert_array_equal(first, random_frame(1))
    echoed.close()
    session.close()
    del first, second
    gc.collect()
    assert session.host_bytes == 0


@pytest.mark.parametrize("integrated", [False, True])
def test_pinned_frames_take_no_core_where_memory_is_shared_either(
    fake_cuda_module: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    host_copies: list[Any],
    integrated: bool,
) -> None:
    cuda = fake_cuda_module.install(monkeypatch, integrated=integrated)
    with CudaSession() as session:
        echoed = DoubleBuffer(session, LAYOUT, {"frame": LAYOUT}, echo)
        own = np.zeros((1, *FRAME), np.uint16)
        ring = [*session.pinned.array((2, *FRAME), np.uint16), *session.pinned.pin(own)]
        cuda.calls.clear()
        for seed, frame in enumerate(ring):
            echoed.submit(filled(frame, seed))
            np.testing.assert_array_equal(echoed.result()["frame"], random_frame(seed))
    made = ("memcpy_htod_async", "memcpy_dtod_async")
    assert [cuda.calls.count(name) for name in made] == ([0, 3] if integrated else [3, 0])
    assert host_copies == []


def test_mapped_frames_are_copied_by_the_gpu(session: CudaSession, host_copies: list[Any]) -> None:
    # So that a GPU with memory of its own takes the way of one without.
    session.integrated = True
    echoed = DoubleBuffer(session, LAYOUT, {"frame": LAYOUT}, echo)
    own = np.zeros((2, *FRAME), np.uint16)
    for ring in (session.pinned.array((2, *FRAME), np.uint16), session.pinned.pin(own)):
        for seed, frame in enumerate(ring):
            echoed.submit(filled(frame, seed))
            np.testing.assert_array_equal(echoed.result()["frame"], random_frame(seed))
    assert session.device_bytes == 0
    assert host_copies == []
