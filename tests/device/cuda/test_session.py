"""What a CUDA session does, on a stand-in and, where there is one, on a GPU."""

from __future__ import annotations

import gc
import threading
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from edgexnas.device.cuda import CudaSession, DoubleBuffer, Slot, primary_context, why_no_cuda
from edgexnas.errors import EngineError, InputError, MissingDependencyError

FRAME = (64, 48)


def frames(count: int) -> list[Any]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 60000, FRAME).astype(np.uint16) for _ in range(count)]


def echo(slot: Slot, stream: Any) -> None:
    """Give the frame back by way of host and device, in three copies whose order matters."""
    target = slot.outputs["frame"]
    driver = slot.input._session.driver_module
    driver.memcpy_dtoh_async(target.array, slot.input.pointer, stream)
    target.upload(stream)
    target.download(stream)


def test_a_session_says_what_it_runs_on(session: CudaSession) -> None:
    assert session.name
    assert session.capability.startswith("SM")
    assert float(session.driver) >= 11
    free, total = session.free_bytes()
    assert 0 < free <= total
    assert session.capability in repr(session)


def test_sessions_share_one_context(session: CudaSession) -> None:
    with CudaSession() as second:
        buffer = second.device_buffer((4,), np.float32)
        with session.current():
            buffer.upload(np.arange(4, dtype=np.float32), session.copies)
        assert buffer.download().tolist() == [0, 1, 2, 3]


def test_a_device_buffer_is_zero_and_keeps_what_is_uploaded(session: CudaSession) -> None:
    buffer = session.device_buffer((3, 5), np.int16)
    assert not buffer.download().any()
    given = np.arange(15, dtype=np.int16).reshape(3, 5)
    buffer.upload(given)
    np.testing.assert_array_equal(buffer.download(), given)
    with session.current():
        buffer.fill_zero(session.compute)
    assert not buffer.download().any()


def test_a_device_buffer_refuses_another_array(session: CudaSession) -> None:
    with pytest.raises(InputError, match=r"float32 \(4,\) got float64 \(4,\)"):
        session.device_buffer((4,), np.float32).upload(np.zeros(4))


@pytest.mark.parametrize("mapped", [False, True])
def test_a_staged_buffer_moves_its_first_items(session: CudaSession, mapped: bool) -> None:
    buffer = session.staged_buffer((4, 3), np.float32, mapped=mapped)
    assert buffer.mapped is mapped
    buffer.array[:] = 7
    with session.current():
        buffer.upload(session.copies)
        session.copies.synchronize()
        buffer.array[:] = 1
        buffer.upload(session.copies, 2)
        session.copies.synchronize()
        buffer.array[:] = 0
        if not mapped:
            buffer.download(session.compute, 3)
        session.compute.synchronize()
    expected = [0, 0, 0, 0] if mapped else [1, 1, 7, 0]
    np.testing.assert_array_equal(buffer.array[:, 0], expected)


def test_mapped_memory_is_reached_by_the_device_without_a_copy(session: CudaSession) -> None:
    buffer = session.staged_buffer((6,), np.int32, mapped=True)
    buffer.array[:] = range(6)
    seen = np.zeros(6, np.int32)
    with session.current():
        session.driver_module.memcpy_dtoh_async(seen, buffer.pointer, session.compute)
        session.compute.synchronize()
    assert seen.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.fixture
def echoed(session: CudaSession) -> DoubleBuffer:
    """A double buffer that gives frames back."""
    layout = (FRAME, np.uint16)
    return DoubleBuffer(session, layout, {"frame": layout}, echo)


@pytest.mark.parametrize("graph", [False, True])
def test_frames_come_back_in_order_through_two_slots(session: CudaSession, graph: bool) -> None:
    layout = (FRAME, np.uint16)
    buffer = DoubleBuffer(session, layout, {"frame": layout}, echo, graph=graph)
    given = frames(9)
    got = []
    for frame in given:
        if buffer.in_flight == 2:
            got.append(buffer.result()["frame"].copy())
        buffer.submit(frame)
    while buffer.in_flight:
        got.append(buffer.result()["frame"].copy())
    np.testing.assert_array_equal(got, given)
    buffer.close()
    assert session.device_bytes == session.host_bytes == 0


def test_a_frame_can_be_written_in_place(echoed: DoubleBuffer) -> None:
    (frame,) = frames(1)
    echoed.next_input()[:] = frame
    echoed.submit()
    np.testing.assert_array_equal(echoed.result()["frame"], frame)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_large_frame_is_uploaded_part_by_part(
    session: CudaSession, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgexnas.device.cuda.host_copy.PART_BYTES", 1000)
    layout = (FRAME, np.uint16)
    buffer = DoubleBuffer(session, layout, {"frame": layout}, echo, copy_threads=threads)
    for frame in frames(5):
        buffer.submit(frame[:, ::-1])
        np.testing.assert_array_equal(buffer.result()["frame"], frame[:, ::-1])


@pytest.mark.parametrize("graph", [False, True])
def test_work_can_be_repeated_for_another_size(session: CudaSession, graph: bool) -> None:
    sizes: list[int] = []

    def first_rows(slot: Slot, stream: Any) -> None:
        sizes.append(slot.size)
        target = slot.outputs["rows"]
        session.driver_module.memcpy_dtoh_async(
            target.array[: slot.size], slot.input.pointer, stream
        )

    layout = (FRAME, np.uint16)
    buffer = DoubleBuffer(session, layout, {"rows": layout}, first_rows, sizes=(2, 5), graph=graph)
    first, second = (frame + np.uint16(1) for frame in frames(2))
    buffer.submit(first)
    buffer.submit(second, size=5)
    rows = buffer.wait().outputs["rows"].array
    np.testing.assert_array_equal(rows[:2], first[:2])
    assert not rows[2:].any()
    np.testing.assert_array_equal(buffer.repeat(5).outputs["rows"].array[:5], first[:5])
    buffer.release()
    np.testing.assert_array_equal(buffer.result()["rows"][:5], second[:5])
    assert set(sizes) == {2, 5}


def test_more_frames_than_slots_are_refused(echoed: DoubleBuffer) -> None:
    for frame in frames(2):
        echoed.submit(frame)
    with pytest.raises(EngineError, match="all 2 frames are in flight; take a result first"):
        echoed.submit(frames(1)[0])
    echoed.close()
    with pytest.raises(EngineError, match="nothing is in flight"):
        echoed.result()
    with pytest.raises(EngineError, match="double buffer is closed; open another"):
        echoed.submit()


@pytest.mark.parametrize("frame", [np.zeros(FRAME, np.int16), np.zeros((2, 2), np.uint16), 7])
def test_another_frame_is_refused_by_shape_and_dtype(echoed: DoubleBuffer, frame: Any) -> None:
    with pytest.raises(InputError, match=r"; expected \(64, 48\) and uint16$"):
        echoed.submit(frame)
    assert echoed.in_flight == 0


def test_a_graph_repeats_what_was_recorded_and_nothing_else(session: CudaSession) -> None:
    source = session.staged_buffer((8,), np.float32, mapped=False)
    target = session.staged_buffer((8,), np.float32, mapped=False)

    def work(stream: Any) -> None:
        source.upload(stream)
        session.driver_module.memcpy_dtoh_async(target.array, source.pointer, stream)

    source.array[:] = 1
    graph = session.capture(work)
    session.synchronize()
    assert target.array[0] == 0, "recording runs nothing"
    for value in (2, 3):
        source.array[:] = value
        graph.launch()
        session.synchronize()
        assert target.array.tolist() == [value] * 8
    graph.close()
    with pytest.raises(EngineError, match="graph is closed"):
        graph.launch()


def test_a_recording_that_fails_leaves_the_stream_usable(session: CudaSession) -> None:
    def broken(stream: Any) -> None:
        raise ValueError("no such kernel")

    with pytest.raises(ValueError, match="no such kernel"):
        session.capture(broken)
    test_a_device_buffer_is_zero_and_keeps_what_is_uploaded(session)


def test_nothing_is_collected_while_work_is_recorded(session: CudaSession) -> None:
    # An array in a cycle goes whenever the collector runs, and the driver forbids freeing then.
    collecting: list[bool] = []
    session.capture(lambda stream: collecting.append(gc.isenabled())).close()
    assert (collecting, gc.isenabled()) == ([False], True)


def test_a_session_serves_threads_in_turn_also_for_freeing(session: CudaSession) -> None:
    buffers: list[Any] = []
    seen: list[Any] = []

    def take() -> None:
        buffers.append(session.device_buffer((1000,), np.float64))
        buffers[0].upload(np.full(1000, 4.0))

    def give_back() -> None:
        seen.append(buffers[0].download())
        buffers[0].close()

    for step in (take, give_back):
        thread = threading.Thread(target=step)
        thread.start()
        thread.join()
    assert (seen[0] == 4).all()
    assert session.device_bytes == 0


def test_memory_returns_when_a_session_closes(session: CudaSession) -> None:
    size = 64 << 20
    before, _ = session.free_bytes()
    with CudaSession() as second:
        kept = second.staged_buffer((size,), np.uint8, mapped=False)
        second.device_buffer((size,), np.uint8)
        assert second.device_bytes == 2 * size
        assert session.free_bytes()[0] <= before - 2 * size
        host = kept.array
    gc.collect()
    assert abs(session.free_bytes()[0] - before) < size // 8
    host[:] = 1  # The host's memory lives on while somebody holds it.


def test_a_closed_session_refuses_and_closes_again(session: CudaSession) -> None:
    buffer = session.device_buffer((4,), np.float32)
    session.close()
    session.close()
    with pytest.raises(EngineError, match=r"session on .* is closed; open another"):
        session.device_buffer((4,), np.float32)
    with pytest.raises(EngineError, match="closed"):
        buffer.download()
    buffer.close()


def test_more_memory_than_there_is_is_refused_and_the_gpu_works_on(session: CudaSession) -> None:
    _, total = session.free_bytes()
    with pytest.raises(EngineError, match="has not enough memory left"):
        session.device_buffer((2 * total,), np.uint8)
    assert not session.lost
    test_a_device_buffer_is_zero_and_keeps_what_is_uploaded(session)


def test_an_integrated_gpu_gets_mapped_memory_and_no_copies(
    fake_cuda_module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    orin = fake_cuda_module.install(monkeypatch, integrated=True)
    with CudaSession() as session:
        assert session.integrated
        buffer = session.staged_buffer((4,), np.float32)
        with session.current():
            buffer.upload(session.copies)
            buffer.download(session.compute)
        assert buffer.mapped
        assert session.device_bytes == 0
    assert "memcpy_htod_async" not in orin.calls


def test_what_is_left_open_is_closed_when_the_interpreter_ends(fake_cuda: Any) -> None:
    session = CudaSession()
    session.device_buffer((1000,), np.float32)
    primary_context._release_all()
    assert fake_cuda.used_bytes() == 0
    assert fake_cuda.calls[-1] == "Context.detach"
    with pytest.raises(EngineError, match="is closed; open another"):
        session.synchronize()


def test_a_gpu_that_disappears_is_one_sentence_and_closing_works(fake_cuda: Any) -> None:
    session = CudaSession()
    layout = (FRAME, np.uint16)
    buffer = DoubleBuffer(session, layout, {"frame": layout}, echo)
    buffer.submit(frames(1)[0])
    fake_cuda.gone = True
    with pytest.raises(EngineError, match=r"Fake GPU failed .*; start the process again"):
        buffer.result()
    assert session.lost
    buffer.close()
    session.close()
    fake_cuda.gone = False
    with pytest.raises(EngineError, match="GPU 0 failed earlier in this process"):
        CudaSession()
    assert "GPU is lost" in str(why_no_cuda())


def test_a_call_that_is_wrong_does_not_condemn_the_gpu(fake_cuda: Any) -> None:
    with CudaSession() as session:
        buffer = session.device_buffer((4,), np.float32)
        buffer.pointer = 12
        with pytest.raises(EngineError, match=r"Fake GPU rejected a call .*illegal memory access"):
            buffer.upload(np.zeros(4, np.float32))
        assert not session.lost


def test_without_pycuda_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pycuda", None)
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(MissingDependencyError, match=r"needs pycuda.*device/setup\.sh"):
        CudaSession(7)
    assert "needs pycuda" in str(why_no_cuda(7))


def test_a_gpu_that_is_not_there_is_refused_by_number(fake_cuda: Any) -> None:
    with pytest.raises(EngineError, match="no GPU 3; this machine has 1"):
        CudaSession(3)


def test_a_forked_process_is_told_to_spawn(fake_cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    CudaSession().close()
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(EngineError, match=r"was forked .* 'spawn'"):
        CudaSession()
