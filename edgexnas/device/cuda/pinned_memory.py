"""Pinned host memory for frames, which the GPU reads without a core copying them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgexnas.device.cuda.context import CudaContext
from edgexnas.device.cuda.graph import checked, import_bindings
from edgexnas.errors import InputError

__all__ = ["PinnedBlock", "PinnedMemory", "PinnedPool"]

Array = npt.NDArray[Any]


@dataclass(slots=True, eq=False)
class PinnedBlock:
    """Pinned memory in one piece.

    Attributes
    ----------
    address, nbytes
        Where it lies for the host.
    pointer
        Where it lies for kernels, in mapped memory; None where it is not mapped.
    """

    address: int
    nbytes: int
    pointer: int | None
    _memory: Array | None
    _unpin: Callable[[int], object] | None = None

    def holds(self, address: int, nbytes: int) -> bool:
        """Whether so many bytes from this address on lie in it."""
        return self.address <= address and address + nbytes <= self.address + self.nbytes

    def free(self) -> None:
        """Free the memory, or only unpin what was there before; in `CudaSession.releasing`."""
        if self._unpin is not None:
            self._unpin(self.address)
        self._memory = None


class PinnedMemory:
    """The pinned arrays of a session, found again by their addresses.

    Arrays and views of them may go in any thread and in any order, also after the session: each
    block is freed when nobody refers to it any more. What happens then takes no lock, because it
    may happen anywhere.
    """

    def __init__(self, session: CudaContext) -> None:
        self._session = session
        self._blocks: dict[int, PinnedBlock] = {}

    @property
    def nbytes(self) -> int:
        """Memory that is taken and not freed."""
        return sum(block.nbytes for block in list(self._blocks.values()))

    def array(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Allocate a zeroed array, which is freed with the last reference to it or to a view of it.

        Raises
        ------
        InputError
            If it would have no items, or they are not plain numbers.
        EngineError
            If the session is closed, or the host has no memory left to pin.
        """
        return lend(self.block(shape, dtype), shape, dtype, self.free)

    def pin(self, array: Array) -> Array:
        """Pin memory that is there already, until the last reference to the result goes.

        Parameters
        ----------
        array
            C-contiguous, of plain numbers; kept as long.

        Returns
        -------
        The same memory.

        Raises
        ------
        InputError
            If the array is not C-contiguous, empty, or of no plain numbers.
        EngineError
            If the session is closed, or the memory cannot be pinned.
        MissingDependencyError
            If cuda-bindings is not installed.
        """
        if not array.flags.c_contiguous:
            raise InputError(
                f"an array of strides {array.strides} cannot be pinned; expected a C-contiguous one"
            )
        _frame_nbytes(array.shape, array.dtype)
        # Registering pinned memory once more is an error to CUDA.
        if self.find(array) is not None:
            return array
        session = self._session
        bindings, mapped = import_bindings("pinning memory that is there"), session.integrated
        address = address_of(array)
        flags = bindings.CU_MEMHOSTREGISTER_DEVICEMAP if mapped else 0
        with session.current():
            checked(bindings, bindings.cuMemHostRegister(address, array.nbytes, flags))
            pointer = None
            if mapped:
                pointer = int(checked(bindings, bindings.cuMemHostGetDevicePointer(address, 0)))
        block = PinnedBlock(address, array.nbytes, pointer, array, bindings.cuMemHostUnregister)
        self._blocks[block.address] = block
        return lend(block, array.shape, array.dtype, self.free)

    def block(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> PinnedBlock:
        """Allocate memory for such an array, to be released by `free`; raises as `array` does."""
        nbytes = _frame_nbytes(shape, np.dtype(dtype))
        session = self._session
        driver, mapped = session.driver_module, session.integrated
        with session.current():
            flags = driver.host_alloc_flags.DEVICEMAP if mapped else 0
            memory = driver.pagelocked_zeros((nbytes,), np.uint8, mem_flags=flags)
            pointer = int(memory.base.get_device_pointer()) if mapped else None
        block = PinnedBlock(address_of(memory), nbytes, pointer, memory)
        self._blocks[block.address] = block
        return block

    def free(self, block: PinnedBlock) -> None:
        """Free a block that nobody refers to."""
        # First, so that what is allocated at this address next is not taken for pinned.
        self._blocks.pop(block.address, None)
        with self._session.releasing():
            block.free()

    def find(self, array: Array) -> PinnedBlock | None:
        """Find the block that all of a C-contiguous array lies in; None if there is none."""
        if not array.flags.c_contiguous:
            return None
        address, nbytes = address_of(array), array.nbytes
        # Nearly every frame begins where its block does; the search below is for the others.
        block = self._blocks.get(address)
        if block is not None and block.holds(address, nbytes):
            return block
        # A view that begins inside a block, as one frame of a ring does.
        blocks = list(self._blocks.values())
        return next((block for block in blocks if block.holds(address, nbytes)), None)


class PinnedContext(CudaContext, Protocol):
    """A context that has pinned memory of its own: a `CudaSession`."""

    pinned: PinnedMemory


class PinnedPool:
    """A fixed number of pinned frames of one shape and dtype, lent again and again.

    A frame comes back when nobody refers to it any more, nor to a view of it: who works on it need
    not know that it was lent. `close` frees those that are here at once, and the others when they
    come back.

    Parameters
    ----------
    session
        Its memory is used; closing it closes the pool.
    shape, dtype
        Of a frame.
    count
        How many frames.

    Raises
    ------
    EngineError
        If the host has not enough memory left to pin.
    """

    def __init__(
        self, session: PinnedContext, shape: tuple[int, ...], dtype: npt.DTypeLike, count: int
    ) -> None:
        self.shape = tuple(shape)
        self.dtype = np.dtype(dtype)
        self._session = session
        self._memory = session.pinned
        self._here: deque[PinnedBlock] = deque()
        self._closed = False
        try:
            for _ in range(count):
                self._here.append(self._memory.block(self.shape, self.dtype))
        except BaseException:
            self.close()
            raise
        # Last, so that a pool whose allocation failed is unknown to the session.
        session.keep(self)

    def __len__(self) -> int:
        """How many frames can be lent at once."""
        return len(self._here)

    def lend(self) -> Array | None:
        """Lend a frame with whatever is in it; None if all are out, or the pool is closed."""
        try:
            block = self._here.pop()
        except IndexError:
            return None
        return lend(block, self.shape, self.dtype, self._take_back)

    def close(self) -> None:
        """Lend no more; closing again does nothing."""
        self._closed = True
        self._session.forget(self)
        with suppress(IndexError):
            while True:
                self._memory.free(self._here.pop())

    def _take_back(self, block: PinnedBlock) -> None:
        # Before the flag is read: `close` in another thread finds the block here, or it is seen
        # below.
        self._here.append(block)
        if self._closed:
            # Also if another thread closed the pool since.
            self.close()


class _Loan:
    """What the array of a block is based on, and so lives as long as any view of it."""

    def __init__(
        self,
        block: PinnedBlock,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        take_back: Callable[[PinnedBlock], None],
    ) -> None:
        self._block = block
        self._take_back = take_back
        self.__array_interface__ = {
            # numpy makes its array of the address and keeps this object as its base; nothing is
            # copied.
            "data": (block.address, False),
            "shape": shape,
            "typestr": dtype.str,
            "version": 3,
        }

    # Runs in whatever thread drops the last view, perhaps amid a garbage collection: no locks here.
    def __del__(self) -> None:
        self._take_back(self._block)


def lend(
    block: PinnedBlock,
    shape: tuple[int, ...],
    dtype: npt.DTypeLike,
    take_back: Callable[[PinnedBlock], None],
) -> Array:
    """Make an array of a block, which goes to `take_back` with the last reference to it."""
    array: Array = np.asarray(_Loan(block, tuple(shape), np.dtype(dtype), take_back))
    return array


def _frame_nbytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Return how many bytes an array has, if it has items and they are plain numbers."""
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes <= 0 or dtype.kind not in "uifb":
        raise InputError(
            f"there is no memory for frames of shape {tuple(shape)} and dtype {dtype}; "
            "expected numbers, and sizes above 0"
        )
    return nbytes


def address_of(array: Array) -> int:
    """Address of an array's first byte."""
    address: int = array.__array_interface__["data"][0]
    return address
