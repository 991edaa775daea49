"""The kernels that find, cut, clean, scale and decode the peaks of frames."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgexnas.bragg import PATCH_SIZE
from edgexnas.device.kernels.kernel_set import KernelSet
from edgexnas.errors import ConfigurationError
from edgexnas.peak_finding.settings import PLATEAU_RIM

if TYPE_CHECKING:
    from edgexnas.device.cache import EngineCache
    from edgexnas.device.cuda import CudaSession
    from edgexnas.peak_finding import PeakFinder

__all__ = ["HEADER_ITEMS", "PeakKernels"]

THREADS = 256
# The least multiple of 32 that covers the 121 pixels of a patch.
CUT_THREADS = 128
KEEP_THREADS = 1024
# Must equal CHUNK of peaks.cu, as must the numbers of threads.
CHUNK = THREADS * 8
JUDGE_THREADS = CHUNK // 32
# Blocks that fill the largest GPUs several times; each takes one peak after the other.
CUT_BLOCKS = 4096
DECODE_BLOCKS = 128

HEADER_ITEMS = 3
"""Found, kept, and the flat index of a pixel that is NaN or infinite (else `NO_BAD_PIXEL`)."""

NO_BAD_PIXEL = np.iinfo(np.int32).max

SIGNATURES = {
    "threshold_map": "PPPddiP",
    "mark_peaks": "PPPiiddPPP",
    "judge_maxima": "PPPPPiiidddddddPP",
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
        # Kernels count pixels in int32, and the last block counts to the end of its chunk.
        if pixels > np.iinfo(np.int32).max - CHUNK:
            raise ConfigurationError(f"a frame has {finder.shape} pixels; specify less than 2³¹")
        self._kernels = KernelSet(session, "peaks.cu", dtype, SIGNATURES, cache=cache)
        buffer, uploaded = self._kernels.buffer, self._kernels.uploaded
        self._chunks = -(-pixels // CHUNK)
        capacity = self._settings.capacity
        try:
            self._threshold = buffer(finder.shape, dtype)
            self._level = self._noise = self._mask = 0
            if finder.background is not None:
                self._level = uploaded(finder.background.level).pointer
                self._noise = uploaded(finder.background.noise).pointer
            if finder.mask is not None:
                self._mask = uploaded(finder.mask.astype(np.uint8)).pointer
            self._chunk_counts = buffer((self._chunks,), np.int32)
            # Peaks lie three pixels apart at least, so that half of the pixels is more than enough;
            # what may be peaks is first listed here in half of the bytes.
            self._chunk_peaks = buffer((self._chunks, CHUNK // 2), np.int32)
            self._found = buffer((self._chunks * CHUNK // 2,), np.int32)
            self.kept = buffer((capacity,), np.int32)
            # The last kernel of a frame resets it for the next one, which saves a launch.
            self.header = uploaded(np.array([0, 0, NO_BAD_PIXEL], np.int32))
            self.scaled = buffer((capacity + spare, PATCH_SIZE**2), np.float32)
            self.flags = buffer((capacity,), np.uint8)
            self.intensities = buffer((capacity,), np.float32)
            # Once: the test of each pixel is then one comparison, in the pixels' own type.
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
        call = self._kernels.launch
        rim = PLATEAU_RIM * self._saturation
        call(
            "mark_peaks", self._chunks, THREADS, stream, frame, self._threshold.pointer, self._mask,
            self._height, self._width, self._saturation, rim, self._chunk_counts.pointer,
            self._chunk_peaks.pointer, self.header.pointer,
        )  # fmt: skip
        call(
            "judge_maxima", self._chunks, JUDGE_THREADS, stream, frame, self._threshold.pointer,
            *maps, self._noise, self._height, self._width, settings.minimum_pixels,
            settings.noise_sigmas, settings.least_counts, settings.snr, settings.prominence_sigmas,
            settings.ridge_fraction, self._saturation, rim, self._chunk_counts.pointer,
            self._chunk_peaks.pointer,
        )  # fmt: skip
        call(
            "gather_peaks", self._chunks, THREADS, stream, self._chunk_counts.pointer,
            self._chunk_peaks.pointer, self._found.pointer, self.header.pointer,
        )  # fmt: skip
        call(
            # One block, because it keeps order; it only works hard where peaks exceed the capacity.
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
        self._kernels.launch(
            "decode_peaks", DECODE_BLOCKS, THREADS, stream, offsets, levels, middle, self._width,
            self.kept.pointer, self.flags.pointer, self.intensities.pointer, self.header.pointer,
            *(outputs[name] for name in names),
        )  # fmt: skip

    def close(self) -> None:
        """Free the device memory; closing again does nothing."""
        self._kernels.close()

    def _make_threshold_map(self, pixels: int) -> None:
        settings, session = self._settings, self._session
        with session.current():
            self._kernels.launch(
                "threshold_map", -(-pixels // THREADS), THREADS, session.compute, self._level,
                self._noise, self._mask, settings.least_counts, settings.noise_sigmas, pixels,
                self._threshold.pointer,
            )  # fmt: skip
            session.compute.synchronize()
