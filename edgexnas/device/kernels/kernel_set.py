"""The kernels of one source file, loaded, with the device memory that they work on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from edgexnas.device.kernels.compilation import compile_kernels, pixel_definitions

if TYPE_CHECKING:
    from edgexnas.device.cache import EngineCache
    from edgexnas.device.cuda import CudaSession, DeviceBuffer

__all__ = ["KernelSet"]


class KernelSet:
    """Compiled kernels and their buffers.

    Parameters
    ----------
    session
        The session to run in.
    source
        Name of the file beside this module.
    dtype
        Of the pixels; None for kernels that see none.
    signatures
        Name of each kernel → types of its arguments, as `pycuda.driver.Function.prepare` takes.
    definitions
        Further macros for the source.
    cache
        Where compiled kernels are kept; None for nowhere.

    Raises
    ------
    ConfigurationError
        If there are no kernels for the dtype.
    EngineError
        If the kernels cannot be compiled.
    """

    def __init__(
        self,
        session: CudaSession,
        source: str,
        dtype: npt.DTypeLike | None,
        signatures: Mapping[str, str],
        *,
        definitions: Mapping[str, str] | None = None,
        cache: EngineCache | None = None,
    ) -> None:
        self._session = session
        self._buffers: list[DeviceBuffer] = []
        macros = {} if dtype is None else pixel_definitions(dtype)
        macros |= definitions or {}
        image = compile_kernels(source, session.capability, macros, cache=cache)
        module = session.module(image)
        with session.current():
            self._functions = {name: module.get_function(name) for name in signatures}
            # Prepared once: an unprepared call looks at the types of its arguments each time.
            for name, signature in signatures.items():
                self._functions[name].prepare(signature)

    def launch(self, name: str, blocks: int, threads: int, stream: Any, *arguments: Any) -> None:
        """Put a kernel into a stream; the context is current."""
        function = self._functions[name]
        function.prepared_async_call((blocks, 1), (threads, 1, 1), stream, *arguments)

    def buffer(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> DeviceBuffer:
        """Allocate device memory, which `close` frees."""
        self._buffers.append(self._session.device_buffer(shape, dtype))
        return self._buffers[-1]

    def uploaded(self, array: npt.NDArray[Any]) -> DeviceBuffer:
        """Allocate device memory and copy an array there."""
        buffer = self.buffer(array.shape, array.dtype)
        buffer.upload(array)
        return buffer

    def close(self) -> None:
        """Free the device memory and the kernels; closing again does nothing."""
        while self._buffers:
            self._buffers.pop().close()
        # Left to the garbage collector, the module may go in a thread that cannot free it.
        with self._session.releasing():
            self._functions.clear()
