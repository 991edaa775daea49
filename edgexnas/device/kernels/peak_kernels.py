"""The kernels that find, cut, clean, scale and decode the peaks of frames."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgexnas.bragg import PATCH_SIZE
from edgexnas.device.kernels.compilation import compile_kernels, pixel_definitions
from edgexnas.errors import ConfigurationError

if TYPE_CHECKING:
    from edgexnas.device.cuda import CudaSession, DeviceBuffer
    from edgexnas.device.engines.engine_cache import EngineCache
    from edgexnas.peak_finding import PeakFinder

__all__ = ["HEADER_ITEMS", "PeakKernels"]

THREADS = 256
CUT_THREADS = 128
KEEP_THREADS = 1024
CHUNK = THREADS * 8
# Blocks that fill the largest GPUs several times; each takes one peak after the other.
CUT_BLOCKS = 2048
DECODE_BLOCKS = 128

HEADER_ITEMS = 3
"""Found, kept, and the flat index of a pixel that is NaN or infinite (else `NO_BAD_PIXEL`)."""

NO_BAD_PIXEL = np.iinfo(np.int32).max

SIGNATURES = {
    "threshold_map": "PPPddiP",
    "mark_peaks": "PPPPPiiiddPPP",
    "gather_peaks": "PPPP",
    "keep_brightest": "PPPiPP",
    "cut_patches": "PPPiidPPPPPP",
    "decode_peaks": "PiiiPPPPPPPPPPP",
}


class PeakKernels:
    """What a peak finder does, on device memory. One frame at a time, in one stream.

    Parameters
    ----------
    session
        The session to run in.
    finder
        The rules, the background and the mask; it gives the same peaks on the CPU.
    dtype
        Of the frames.
    spare
        Rows of `scaled` behind the capacity, for networks that run whole batches only.
    cache
        Where compiled kernels are kept; None for nowhere.

    Attributes
    ----------
    scaled
        (capacity + spare, 121) float32: the network's input. Rows beyond the peaks kept mean
        nothing.

    Raises
    ------
    ConfigurationError
        If there are no kernels for the dtype, or a frame has 2³¹ pixels or more.
    EngineError
        If the kernels cannot be compiled, or the GPU has not enough memory.
    """

    def __init__(
        self,
        session: CudaSession,
        finder: PeakFinder,
        dtype: npt.DTypeLike,
        *,
        spare: int = 0,
        cache: EngineCache | None = None,
    ) -> None:
        self._session = session
        self._settings = finder.settings
        self._height, self._width = finder.shape
        self._saturation = finder.saturation(dtype)
        pixels = self._height * self._width
        if pixels > np.iinfo(np.int32).max - CHUNK:
            raise ConfigurationError(f"a frame has {finder.shape} pixels; give less than 2³¹")
        definitions = pixel_definitions(dtype)
        image = compile_kernels("peaks.cu", session.capability, definitions, cache=cache)
        module = session.module(image)
        with session.current():
            self._functions = {name: module.get_function(name) for name in SIGNATURES}
            for name, signature in SIGNATURES.items():
                self._functions[name].prepare(signature)
        self._chunks = -(-pixels // CHUNK)
        capacity = self._settings.capacity
        self._buffers: list[DeviceBuffer] = []
        try:
            self._threshold = self._buffer(finder.shape, dtype)
            self._level = self._noise = self._mask = 0
            if finder.background is not None:
                self._level = self._uploaded(finder.background.level)
                self._noise = self._uploaded(finder.background.noise)
            if finder.mask is not None:
                self._mask = self._uploaded(finder.mask.astype(np.uint8))
            self._chunk_counts = self._buffer((self._chunks,), np.int32)
            self._chunk_peaks = self._buffer((self._chunks, CHUNK // 2), np.int32)
            self._found = self._buffer((self._chunks * CHUNK // 2,), np.int32)
            self.kept = self._buffer((capacity,), np.int32)
            self.header = self._buffer((HEADER_ITEMS,), np.int32)
            self.header.upload(np.array([0, 0, NO_BAD_PIXEL], np.int32))
            self.scaled = self._buffer((capacity + spare, PATCH_SIZE**2), np.float32)
            self.flags = self._buffer((capacity,), np.uint8)
            self.intensities = self._buffer((capacity,), np.float32)
            self._make_threshold_map(pixels)
        except BaseException:
            self.close()
            raise

    def thresholds(self) -> npt.NDArray[Any]:
        """Copy the threshold map from the device, for tests."""
        return self._threshold.download()

    def enqueue_find(self, frame: int, stream: Any, *, counts: int = 0) -> None:
        """Put finding, cutting, cleaning and scaling into a stream; the context is current.

        Parameters
        ----------
        frame
            Device address of the (H, W) frame, a multiple of 16.
        stream
            A `pycuda.driver.Stream`.
        counts
            Device address for (capacity, 121) float32 counts before scaling; 0 for none.
        """
        settings = self._settings
        maps = (self._mask, self._level)
        call = self._call
        call(
            "mark_peaks", self._chunks, THREADS, stream, frame, self._threshold.pointer, *maps,
            self._noise, self._height, self._width, settings.minimum_pixels, settings.snr,
            settings.prominence_sigmas, self._chunk_counts.pointer, self._chunk_peaks.pointer,
            self.header.pointer,
        )  # fmt: skip
        call(
            "gather_peaks", self._chunks, THREADS, stream, self._chunk_counts.pointer,
            self._chunk_peaks.pointer, self._found.pointer, self.header.pointer,
        )  # fmt: skip
        call(
            "keep_brightest", 1, KEEP_THREADS, stream, frame, self._level, self._found.pointer,
            settings.capacity, self.kept.pointer, self.header.pointer,
        )  # fmt: skip
        call(
            "cut_patches", min(CUT_BLOCKS, settings.capacity), CUT_THREADS, stream, frame, *maps,
            self._height, self._width, self._saturation, self.kept.pointer, self.header.pointer,
            self.scaled.pointer, counts, self.flags.pointer, self.intensities.pointer,
        )  # fmt: skip

    def enqueue_decode(
        self, offsets: int, levels: int, middle: int, outputs: dict[str, int], stream: Any
    ) -> None:
        """Put decoding to frame coordinates into a stream; the context is current.

        Parameters
        ----------
        offsets
            Device address of the network's (n, 2, levels) float32 output.
        levels, middle
            Number of quantile levels, and which of them is the position.
        outputs
            Device addresses of positions, intervals, quantiles, maxima, intensities, flags and
            header, where only the peaks kept are written.
        """
        names = ("positions", "intervals", "quantiles", "maxima", "intensities", "flags", "header")
        self._call(
            "decode_peaks", DECODE_BLOCKS, THREADS, stream, offsets, levels, middle, self._width,
            self.kept.pointer, self.flags.pointer, self.intensities.pointer, self.header.pointer,
            *(outputs[name] for name in names),
        )  # fmt: skip

    def close(self) -> None:
        """Free the device memory; closing again does nothing."""
        while self._buffers:
            self._buffers.pop().close()

    def _make_threshold_map(self, pixels: int) -> None:
        settings, session = self._settings, self._session
        with session.current():
            self._call(
                "threshold_map", -(-pixels // THREADS), THREADS, session.compute, self._level,
                self._noise, self._mask, settings.minimum_counts, settings.noise_sigmas, pixels,
                self._threshold.pointer,
            )  # fmt: skip
            session.compute.synchronize()

    def _call(self, name: str, blocks: int, threads: int, stream: Any, *arguments: Any) -> None:
        function = self._functions[name]
        function.prepared_async_call((blocks, 1), (threads, 1, 1), stream, *arguments)

    def _buffer(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> DeviceBuffer:
        self._buffers.append(self._session.device_buffer(shape, dtype))
        return self._buffers[-1]

    def _uploaded(self, array: npt.NDArray[Any]) -> int:
        buffer = self._buffer(array.shape, array.dtype)
        buffer.upload(array)
        return buffer.pointer
