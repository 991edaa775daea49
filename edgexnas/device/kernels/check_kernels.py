"""The kernels that judge the peaks of frames, and calibrate and widen their intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgexnas.device.kernels.kernel_set import KernelSet

if TYPE_CHECKING:
    from edgexnas.device.cache import EngineCache
    from edgexnas.device.cuda import CudaSession
    from edgexnas.familiarity import PeakChecks

__all__ = ["CheckKernels"]

JUDGE_THREADS, APPLY_THREADS = 128, 256
JUDGE_BLOCKS, APPLY_BLOCKS = 512, 128
"""Enough to fill the largest GPUs; each takes one peak after the other."""

OWN_ITEMS = 7

SIGNATURES = {
    "judge_peaks": "PPPiiPiiiifPPPP",
    "apply_checks": "PiiPfiPPPPPPP",
}


class CheckKernels:
    """What `PeakChecks` does, on device memory, to the same bits. One frame at a time.

    Parameters
    ----------
    session
        The session to run in.
    checks
        The constants.
    capacity
        Most peaks of a frame.
    cache
        Where compiled kernels are kept; None for nowhere.

    Raises
    ------
    EngineError
        If the kernels cannot be compiled, or the GPU has not enough memory.
    """

    def __init__(
        self,
        session: CudaSession,
        checks: PeakChecks,
        capacity: int,
        *,
        cache: EngineCache | None = None,
    ) -> None:
        self._middle, self._capacity = checks.middle, capacity
        self._used = used = checks.counted
        self._kernels = KernelSet(session, "checks.cu", None, SIGNATURES, cache=cache)
        standard = used.standard if used.standard.size else np.zeros((3, used.counted), np.float32)
        parts = (
            used.widening, used.limits.reshape(-1), standard.reshape(-1), used.form.reshape(-1),
            used.snr_edges, used.width_edges, used.factors.reshape(-1),
        )  # fmt: skip
        try:
            self._constants = self._kernels.uploaded(np.concatenate(parts))
            self._own = self._kernels.buffer((capacity, OWN_ITEMS), np.float32)
            self._reasons = self._kernels.buffer((capacity,), np.uint8)
            # The last block of a frame resets both for the next one.
            self._counters = self._kernels.uploaded(np.zeros(2, np.int32))
        except BaseException:
            self.close()
            raise

    def enqueue(
        self, scaled: int, heights: int, offsets: int, levels: int, header: int, flags: int,
        reasons: int, stream: Any,
    ) -> None:  # fmt: skip
        """Put the checks of a frame into a stream, between network and decoding.

        Parameters
        ----------
        scaled, heights, offsets
            Device addresses of (n, 121), (n,) and (n, 2, levels) float32; offsets are written.
        levels
            Number of quantile levels.
        header
            Device address of the frame's header, which holds n.
        flags
            Device address of (n,) uint8, written.
        reasons
            Address of (n,) uint8 for the results.
        stream
            A `pycuda.driver.Stream`; the context is current.
        """
        used, alone = self._used, self._counters.pointer
        blocks = min(JUDGE_BLOCKS, max(1, self._capacity // (JUDGE_THREADS // 32)))
        self._kernels.launch(
            "judge_peaks", blocks, JUDGE_THREADS, stream, scaled, heights, offsets, levels,
            self._middle, self._constants.pointer, used.counted, int(used.standard.size > 0),
            len(used.snr_edges), len(used.width_edges), float(used.limit), header,
            self._own.pointer, self._reasons.pointer, alone,
        )  # fmt: skip
        self._kernels.launch(
            "apply_checks", APPLY_BLOCKS, APPLY_THREADS, stream, offsets, levels, self._middle,
            self._constants.pointer, float(used.frame_share), used.frame_least, header,
            self._own.pointer, self._reasons.pointer, flags, reasons, alone, alone + 4,
        )  # fmt: skip

    def close(self) -> None:
        """Free the device memory; closing again does nothing."""
        self._kernels.close()
