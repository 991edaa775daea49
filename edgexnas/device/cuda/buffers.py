"""Memory that a GPU works on: device memory, and host memory with a device address beside it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgexnas.device.cuda.pinned_memory import address_of
from edgexnas.errors import EngineError, InputError

if TYPE_CHECKING:
    from edgexnas.device.cuda.context import CudaContext
    from edgexnas.device.cuda.pinned_memory import PinnedBlock

__all__ = ["DeviceBuffer", "StagedBuffer"]

Array = npt.NDArray[Any]


class DeviceBuffer:
    """Device memory for one array, in C order. Made by `CudaSession.device_buffer`.

    Attributes
    ----------
    pointer
        Device address, in bytes.
    shape, dtype, nbytes
        Of the array.
    """

    def __init__(self, session: CudaContext, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        self._session = session
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.nbytes = math.prod(shape) * self.dtype.itemsize
        driver = session.driver_module
        self._allocation: Any = driver.mem_alloc(max(self.nbytes, 1))
        self.pointer = int(self._allocation)

    def upload(self, array: npt.ArrayLike, stream: Any | None = None) -> None:
        """Copy an array of this shape and dtype to the device and wait for it."""
        given = np.ascontiguousarray(array)
        if given.shape != self.shape or given.dtype != self.dtype:
            raise InputError(
                f"a device buffer of {self.dtype} {self.shape} got {given.dtype} {given.shape}"
            )
        with self._session.current():
            self._check_open()
            stream = stream or self._session.compute
            self._session.driver_module.memcpy_htod_async(self.pointer, given, stream)
            stream.synchronize()

    def download(self, stream: Any | None = None) -> Array:
        """Copy the device's array to a new one and wait for it."""
        array = np.empty(self.shape, self.dtype)
        with self._session.current():
            self._check_open()
            stream = stream or self._session.compute
            self._session.driver_module.memcpy_dtoh_async(array, self.pointer, stream)
            stream.synchronize()
        return array

    def fill_zero(self, stream: Any) -> None:
        """Put zeroing all bytes into a stream; the context must be current."""
        self._check_open()
        self._session.driver_module.memset_d8_async(self.pointer, 0, self.nbytes, stream)

    def close(self) -> None:
        """Free the memory; closing again does nothing. The GPU must be done with it."""
        if self._allocation is not None:
            allocation, self._allocation = self._allocation, None
            self._session.forget(self, device_bytes=self.nbytes)
            with self._session.releasing():
                allocation.free()

    def _check_open(self) -> None:
        if self._allocation is None:
            raise EngineError(f"this device buffer of {self.nbytes} bytes is closed; open another")


class StagedBuffer:
    """Host memory that the GPU reaches, and the device address that kernels work on.

    Where CPU and GPU share memory (Jetson) both are the same bytes, mapped, and no copy is made.
    Elsewhere the host memory is pinned, and `upload` and `download` copy to and from device memory.
    Made by `CudaSession.staged_buffer`.

    Attributes
    ----------
    array
        The host's array; it stays valid while somebody holds it, also after `close`.
    pointer
        Device address, in bytes.
    mapped
        Whether both are the same memory.
    shape, dtype, nbytes
        Of the array.
    """

    def __init__(
        self,
        session: CudaContext,
        shape: tuple[int, ...],
        dtype: npt.DTypeLike,
        *,
        mapped: bool,
    ) -> None:
        self._session = session
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.nbytes = math.prod(shape) * self.dtype.itemsize
        self.mapped = mapped
        driver = session.driver_module
        flags = driver.host_alloc_flags.DEVICEMAP if mapped else 0
        # Page-locked: an asynchronous copy from other memory waits for a copy to the driver's own.
        self.array: Array = driver.pagelocked_zeros(shape, self.dtype, mem_flags=flags)
        self._allocation: Any = None
        if mapped:
            owner: Any = self.array.base
            # CUDA promises the host's address only where addressing is unified.
            self.pointer = int(owner.get_device_pointer())
        else:
            # CUDA allocates no 0 bytes, and a kernel needs an address all the same.
            self._allocation = driver.mem_alloc(max(self.nbytes, 1))
            self.pointer = int(self._allocation)
        # As bytes, so that slicing a part for a copy costs one slice whatever the shape.
        self._flat: Array = self.array.reshape(-1).view(np.uint8)
        self._item_bytes = self.nbytes // shape[0] if shape and shape[0] else self.nbytes
        self._closed = False

    def upload(self, stream: Any, count: int | None = None, *, start: int = 0) -> None:
        """Put the copy of `array[start:count]` to the device into a stream.

        The context is current.
        """
        if not self.mapped:
            offset = start * self._item_bytes
            self._session.driver_module.memcpy_htod_async(
                self.pointer + offset, self._part(count)[offset:], stream
            )

    def upload_from(self, array: Array, block: PinnedBlock, stream: Any) -> None:
        """Put the copy of an array in pinned memory to the device into a stream.

        Nothing may write to the array until the stream is done with it. Where memory is mapped the
        GPU copies it too: kernels that are recorded in a graph read from `pointer`, and a copy
        within the memory they share is made while they work and takes no core.

        Parameters
        ----------
        array
            Of this shape and dtype, C-contiguous.
        block
            What it lies in; mapped where this buffer is.
        """
        driver = self._session.driver_module
        if self.mapped:
            assert block.pointer is not None
            source = block.pointer + address_of(array) - block.address
            driver.memcpy_dtod_async(self.pointer, source, self.nbytes, stream)
        else:
            driver.memcpy_htod_async(self.pointer, array, stream)

    def download(self, stream: Any, count: int | None = None) -> None:
        """Put the copy of the device's first `count` items to `array` into a stream."""
        if not self.mapped:
            self._session.driver_module.memcpy_dtoh_async(self._part(count), self.pointer, stream)

    def _part(self, count: int | None) -> Array:
        end = None if count is None else count * self._item_bytes
        return self._flat[:end]

    def close(self) -> None:
        """Free the memory; closing again does nothing. The GPU must be done with it."""
        if self._closed:
            return
        self._closed = True
        self._session.forget(
            self, device_bytes=0 if self.mapped else self.nbytes, host_bytes=self.nbytes
        )
        with self._session.releasing():
            # Whoever holds a view keeps the host memory; the last one to let go frees it.
            del self._flat, self.array
            if self._allocation is not None:
                self._allocation.free()
                self._allocation = None
