"""pycuda and cuda-bindings without a GPU: device memory is host memory, streams are queues.

What is put into a stream happens when somebody waits for it, not before, so code that forgets to
wait reads old values here as it does on a GPU. Addresses are checked against what is allocated.
Copies read pinned memory when it is their turn, at its address, so that it must still be there and
hold what it held; other memory of the host is read at the call, as the driver stages it.
"""

from __future__ import annotations

import ctypes
import itertools
import sys
import threading
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

Work = Callable[[], None]


class FakeCuda:
    """One GPU that never was; `modules()` are to be put into `sys.modules`.

    Attributes
    ----------
    calls
        Names of the calls in their order, as "memcpy_htod_async".
    pinned
        Bytes of the host's memory that is pinned or mapped and not freed, by its address.
    gone
        Set it and every call fails, as on a GPU that fell off its bus.
    """

    def __init__(
        self,
        *,
        capability: tuple[int, int] = (8, 7),
        integrated: bool = False,
        memory_bytes: int = 1 << 30,
        devices: int = 1,
        multiprocessors: int = 16,
        block_bytes: int = 163 << 10,
    ) -> None:
        self.calls: list[str] = []
        self.gone = False
        self.capability = capability
        self.integrated = integrated
        self.memory_bytes = memory_bytes
        self.devices = devices
        self.multiprocessors = multiprocessors
        self.block_bytes = block_bytes
        self.allocations: dict[int, ctypes.Array[ctypes.c_char]] = {}
        self.host: dict[int, int] = {}
        self.pinned: dict[int, int] = {}
        self.streams: dict[int, Any] = {}
        self.graphs: dict[int, list[Work]] = {}
        self.executables: dict[int, list[Work]] = {}
        # Threads that wait at once run what is queued in turn, each piece to its end.
        self.running = threading.RLock()
        self._numbers = itertools.count(1)
        self._stack = threading.local()
        self.driver = self._driver()
        self.bindings = self._bindings()

    def modules(self) -> dict[str, ModuleType]:
        pycuda, cuda, bindings = (_module(name) for name in ("pycuda", "cuda", "cuda.bindings"))
        pycuda.driver = self.driver  # type: ignore[attr-defined]
        cuda.bindings = bindings  # type: ignore[attr-defined]
        bindings.driver = self.bindings  # type: ignore[attr-defined]
        return {
            "pycuda": pycuda,
            "pycuda.driver": self.driver,
            "cuda": cuda,
            "cuda.bindings": bindings,
            "cuda.bindings.driver": self.bindings,
        }

    # Memory

    def take(self, nbytes: int) -> int:
        if self.used_bytes() + nbytes > self.memory_bytes:
            raise self.driver.MemoryError("cuMemAlloc failed: out of memory")
        block = ctypes.create_string_buffer(b"\xa5" * nbytes, nbytes)
        address = ctypes.addressof(block)
        self.allocations[address] = block
        return address

    def used_bytes(self) -> int:
        return sum(len(block) for block in self.allocations.values())

    def memory(self, address: int, nbytes: int) -> np.ndarray[Any, Any]:
        """The bytes at a device address, which must lie within one live allocation."""
        owners = [(start, len(block)) for start, block in self.allocations.items()]
        owners += list(self.host.items())
        if not any(start <= address and address + nbytes <= start + size for start, size in owners):
            raise self.driver.LogicError("an illegal memory access was encountered")
        return np.frombuffer((ctypes.c_char * nbytes).from_address(address), np.uint8)

    def is_pinned(self, address: int, nbytes: int) -> bool:
        return any(
            start <= address and address + nbytes <= start + size
            for start, size in list(self.pinned.items())
        )

    # What both modules call

    def note(self, name: str) -> None:
        if self.gone:
            raise self.driver.LogicError(f"{name} failed: GPU is lost")
        self.calls.append(name)

    def contexts(self) -> list[Any]:
        if not hasattr(self._stack, "contexts"):
            self._stack.contexts = []
        return self._stack.contexts  # type: ignore[no-any-return]

    def need_context(self, name: str) -> None:
        self.note(name)
        if not self.contexts():
            raise self.driver.LogicError(f"{name} failed: no context is current in this thread")

    def enqueue(self, stream: Any, name: str, work: Work) -> None:
        self.need_context(name)
        stream.queue.append(work)

    def run_on(self, handle: int, work: Work, name: str = "enqueue") -> None:
        """Put work into the stream of this handle, as a library beside pycuda does."""
        self.enqueue(self.streams[handle], name, work)

    def _driver(self) -> Any:
        fake = self
        drv: Any = _module("pycuda.driver")

        class Error(Exception):
            pass

        class LogicError(Error):
            pass

        class OutOfMemoryError(Error, MemoryError):
            pass

        class Stream:
            def __init__(self, flags: int = 0) -> None:
                fake.need_context("Stream")
                self.handle = next(fake._numbers)
                self.queue: list[Work] = []
                self.captured: list[Work] | None = None
                fake.streams[self.handle] = self

            def synchronize(self) -> None:
                fake.need_context("Stream.synchronize")
                if self.captured is not None:
                    raise LogicError("operation not permitted when stream is capturing")
                self.drain(len(self.queue))

            def drain(self, count: int) -> None:
                with fake.running:
                    for _ in range(min(count, len(self.queue))):
                        self.queue.pop(0)()

            def is_done(self) -> bool:
                return not self.queue

            def wait_for_event(self, event: Event) -> None:
                fake.enqueue(self, "Stream.wait_for_event", event.reach)

        class Event:
            def __init__(self, flags: int = 0) -> None:
                fake.need_context("Event")
                self.stream: Stream | None = None
                self.reached = True

            def record(self, stream: Stream) -> Event:
                self.stream, self.reached = stream, False
                fake.enqueue(stream, "Event.record", self._mark)
                return self

            def _mark(self) -> None:
                self.reached = True

            def reach(self) -> None:
                with fake.running:
                    while not self.reached:
                        assert self.stream is not None
                        self.stream.queue.pop(0)()

            def synchronize(self) -> Event:
                fake.need_context("Event.synchronize")
                self.reach()
                return self

            def query(self) -> bool:
                return self.reached

            def time_since(self, other: Event) -> float:
                return 0.001

        class Context:
            def push(self) -> None:
                fake.note("Context.push")
                fake.contexts().append(self)

            def detach(self) -> None:
                fake.note("Context.detach")

            @staticmethod
            def pop() -> None:
                fake.contexts().pop()

            @staticmethod
            def get_device() -> Device:
                fake.need_context("Context.get_device")
                return Device(0)

            @staticmethod
            def synchronize() -> None:
                fake.need_context("Context.synchronize")
                for stream in fake.streams.values():
                    stream.drain(len(stream.queue))

        class Device:
            def __init__(self, ordinal: int) -> None:
                self.ordinal = ordinal

            @staticmethod
            def count() -> int:
                return fake.devices

            def name(self) -> str:
                return "Fake GPU"

            def compute_capability(self) -> tuple[int, int]:
                return fake.capability

            def get_attribute(self, attribute: str) -> int:
                return {
                    "INTEGRATED": int(fake.integrated),
                    "MULTIPROCESSOR_COUNT": fake.multiprocessors,
                    "MAX_SHARED_MEMORY_PER_BLOCK_OPTIN": fake.block_bytes,
                    "MAX_SHARED_MEMORY_PER_MULTIPROCESSOR": fake.block_bytes + 1024,
                    "MAX_THREADS_PER_MULTIPROCESSOR": 1536,
                    "MAX_REGISTERS_PER_MULTIPROCESSOR": 65536,
                }[attribute]

            def retain_primary_context(self) -> Context:
                fake.note("retain_primary_context")
                return Context()

        class DeviceAllocation:
            def __init__(self, nbytes: int) -> None:
                fake.need_context("mem_alloc")
                self.address: int | None = fake.take(nbytes)

            def __int__(self) -> int:
                assert self.address is not None
                return self.address

            def free(self) -> None:
                fake.need_context("mem_free")
                assert self.address is not None, "freed twice"
                del fake.allocations[self.address]
                self.address = None

        class HostAllocation:
            def __init__(self, address: int, nbytes: int) -> None:
                self.address = address
                fake.host[address] = nbytes

            def get_device_pointer(self) -> int:
                return self.address

        def pagelocked_zeros(
            shape: tuple[int, ...], dtype: Any, order: str = "C", mem_flags: int = 0
        ) -> Any:
            fake.need_context("pagelocked_zeros")
            raw = np.zeros(shape, dtype)

            class Owner:
                """What numpy takes as the base of the array, as pycuda's allocation is."""

                __array_interface__ = raw.__array_interface__

                def __init__(self) -> None:
                    self.keep = raw
                    self.allocation = HostAllocation(raw.ctypes.data, raw.nbytes)
                    fake.pinned[raw.ctypes.data] = raw.nbytes
                    if not mem_flags:
                        del fake.host[raw.ctypes.data]

                def __del__(self) -> None:
                    fake.host.pop(self.allocation.address, None)
                    del fake.pinned[self.allocation.address]

                def get_device_pointer(self) -> int:
                    assert mem_flags, "this host memory is not mapped"
                    return self.allocation.get_device_pointer()

            return np.asarray(Owner())

        def memcpy_htod_async(address: int, source: Any, stream: Stream) -> None:
            given = np.asarray(source)
            assert given.flags.c_contiguous
            start, size = given.ctypes.data, given.nbytes
            staged = None if fake.is_pinned(start, size) else given.tobytes()

            def copy() -> None:
                if staged is not None:
                    content = np.frombuffer(staged, np.uint8)
                elif fake.is_pinned(start, size):
                    content = np.frombuffer((ctypes.c_char * size).from_address(start), np.uint8)
                else:
                    raise LogicError("memory was freed before it was copied")
                fake.memory(address, size)[:] = content

            fake.enqueue(stream, "memcpy_htod_async", copy)

        def memcpy_dtod_async(target: int, source: int, size: int, stream: Stream) -> None:
            def copy() -> None:
                fake.memory(target, size)[:] = fake.memory(source, size)

            fake.enqueue(stream, "memcpy_dtod_async", copy)

        def memcpy_dtoh_async(target: Any, address: int, stream: Stream) -> None:
            held = target.reshape(-1).view(np.uint8)

            def copy() -> None:
                held[:] = fake.memory(address, held.nbytes)

            fake.enqueue(stream, "memcpy_dtoh_async", copy)

        def memset_d8_async(address: int, value: int, count: int, stream: Stream) -> None:
            def fill() -> None:
                fake.memory(address, count)[:] = value

            fake.enqueue(stream, "memset_d8_async", fill)

        def mem_get_info() -> tuple[int, int]:
            fake.need_context("mem_get_info")
            return fake.memory_bytes - fake.used_bytes(), fake.memory_bytes

        def module_from_buffer(image: bytes) -> SimpleNamespace:
            fake.need_context("module_from_buffer")
            return SimpleNamespace(image=image)

        drv.Error, drv.LogicError, drv.MemoryError = Error, LogicError, OutOfMemoryError
        drv.Stream, drv.Event, drv.Context, drv.Device = Stream, Event, Context, Device
        drv.init = lambda: fake.note("init")
        drv.get_driver_version = lambda: 13000
        drv.mem_alloc = DeviceAllocation
        drv.pagelocked_zeros = pagelocked_zeros
        drv.host_alloc_flags = SimpleNamespace(DEVICEMAP=2)
        drv.event_flags = SimpleNamespace(DEFAULT=0, DISABLE_TIMING=2)
        names = (
            "INTEGRATED",
            "MULTIPROCESSOR_COUNT",
            "MAX_SHARED_MEMORY_PER_BLOCK_OPTIN",
            "MAX_SHARED_MEMORY_PER_MULTIPROCESSOR",
            "MAX_THREADS_PER_MULTIPROCESSOR",
            "MAX_REGISTERS_PER_MULTIPROCESSOR",
        )
        drv.device_attribute = SimpleNamespace(**{name: name for name in names})
        drv.function_attribute = SimpleNamespace(
            MAX_DYNAMIC_SHARED_SIZE_BYTES="MAX_DYNAMIC_SHARED_SIZE_BYTES"
        )
        drv.memcpy_htod_async, drv.memcpy_dtoh_async = memcpy_htod_async, memcpy_dtoh_async
        drv.memcpy_dtod_async = memcpy_dtod_async
        drv.memset_d8_async, drv.mem_get_info = memset_d8_async, mem_get_info
        drv.module_from_buffer = module_from_buffer
        return drv

    def _bindings(self) -> Any:
        fake = self
        cu: Any = _module("cuda.bindings.driver")

        def begin(stream: int, mode: object) -> tuple[int]:
            fake.need_context("cuStreamBeginCapture")
            taken = fake.streams[stream]
            # While it is captured, what is put into the stream goes to the graph.
            taken.captured, taken.queue = taken.queue, []
            return (0,)

        def end(stream: int) -> tuple[int, int | None]:
            fake.need_context("cuStreamEndCapture")
            taken = fake.streams[stream]
            number = next(fake._numbers)
            fake.graphs[number], taken.queue, taken.captured = taken.queue, taken.captured, None
            return 0, number

        def instantiate(graph: int, flags: int) -> tuple[int, int]:
            fake.need_context("cuGraphInstantiate")
            number = next(fake._numbers)
            fake.executables[number] = list(fake.graphs[graph])
            return 0, number

        def launch(executable: int, stream: int) -> tuple[int]:
            if fake.gone:
                return (719,)
            fake.need_context("cuGraphLaunch")
            fake.streams[stream].queue += fake.executables[executable]
            return (0,)

        def destroy(graphs: dict[int, list[Work]]) -> Callable[[int], tuple[int]]:
            def one(number: int) -> tuple[int]:
                del graphs[number]
                return (0,)

            return one

        def register(address: int, nbytes: int, flags: int) -> tuple[int]:
            fake.need_context("cuMemHostRegister")
            if fake.is_pinned(address, 1):
                return (712,)
            fake.pinned[address] = nbytes
            if flags:
                fake.host[address] = nbytes
            return (0,)

        def unregister(address: int) -> tuple[int]:
            fake.need_context("cuMemHostUnregister")
            del fake.pinned[address]
            fake.host.pop(address, None)
            return (0,)

        cu.CU_MEMHOSTREGISTER_DEVICEMAP = 2
        cu.cuMemHostRegister, cu.cuMemHostUnregister = register, unregister
        cu.cuMemHostGetDevicePointer = lambda address, flags: (0, address)
        cu.CUstream = int
        cu.CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)
        cu.cuStreamBeginCapture, cu.cuStreamEndCapture = begin, end
        cu.cuGraphInstantiate, cu.cuGraphLaunch = instantiate, launch
        cu.cuGraphDestroy = destroy(self.graphs)
        cu.cuGraphExecDestroy = destroy(self.executables)
        cu.cuGetErrorString = lambda outcome: (0, b"unspecified launch failure")
        return cu


def _module(name: str) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    return module


def install(monkeypatch: Any, **options: Any) -> FakeCuda:
    """Put a fake GPU in the place of the libraries for the length of a test."""
    from edgexnas.device.cuda import primary_context

    fake = FakeCuda(**options)
    for name, module in fake.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(primary_context, "_HELD", {})
    monkeypatch.setattr(primary_context, "_PROCESS", [])
    return fake
