"""Power of a desktop or data-centre GPU, from NVIDIA's management library."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from edgexnas.device.power.meter import PowerReading
from edgexnas.errors import MissingDependencyError, SourceError

__all__ = ["NvmlMeter", "board_of"]

RELATIVE_ERROR = 0.05
"""NVIDIA states ±5 % for `nvmlDeviceGetPowerUsage`."""


class NvmlMeter:
    """The board of one GPU. A `PowerMeter`.

    Power is the driver's instantaneous reading where it has one: the usual reading is an average
    over the last second on recent GPUs. `energy_j` is the driver's own total, which loses nothing
    between readings.

    Parameters
    ----------
    gpu
        Index of the GPU among those that CUDA_VISIBLE_DEVICES leaves, as CUDA counts.

    Raises
    ------
    MissingDependencyError
        If the package ``nvidia-ml-py`` is not installed.
    SourceError
        If there is no NVIDIA driver or no such GPU, if it is a slice of a board (MIG), whose power
        nobody measures, or if it measures no power, as on a Jetson.
    """

    source = "nvml"

    def __init__(self, gpu: int = 0) -> None:
        self._library = _import_nvml()
        try:
            # Counts its callers: each needs a shutdown of its own, and others may go on.
            self._library.nvmlInit()
        except self._library.NVMLError as error:
            raise SourceError(f"NVML finds no NVIDIA driver ({error}); install one") from error
        self._open = True
        try:
            self.handle = board_of(self._library, gpu)
            self.name = str(self._library.nvmlDeviceGetName(self.handle))
            # Older GPUs and drivers have the average alone; without that either, reading it raises.
            self._instantaneous = self._instant_w() is not None
            # Asked once, because a board that counts energy goes on counting.
            self._counts = self._total_j() is not None
            self._average_w()
        except SourceError:
            self.close()
            raise
        except self._library.NVMLError as error:
            self.close()
            raise SourceError(
                f"GPU {gpu} reports no power through NVML ({error}); on a Jetson read the rails"
            ) from error

    @property
    def description(self) -> str:
        """Board and kind of reading in one line."""
        kind = "instantaneous" if self._instantaneous else "averaged by the driver"
        counter = ", with energy counter" if self._counts else ""
        return f"{self.name}: board power, {kind}{counter}"

    def read(self) -> PowerReading:
        """Read the board's power; see `PowerMeter.read`."""
        if not self._open:
            raise SourceError("this power meter is closed; open another one")
        before = time.monotonic()
        try:
            instant = self._instant_w() if self._instantaneous else None
            watts = self._average_w() if instant is None else instant
            energy = self._total_j() if self._counts else None
        except self._library.NVMLError as error:
            raise SourceError(f"{self.name} reports no power any more ({error})") from error
        after = time.monotonic()
        return PowerReading(
            time_s=(before + after) / 2,
            rails_w={"board": watts},
            module_w=watts,
            source=self.source,
            energy_j=energy,
            systematic_w=RELATIVE_ERROR * watts,
            gain_error=RELATIVE_ERROR,
        )

    def close(self) -> None:
        """Release the library; closing again does nothing."""
        if self._open:
            self._open = False
            self._library.nvmlShutdown()

    def _average_w(self) -> float:
        return float(self._library.nvmlDeviceGetPowerUsage(self.handle)) / 1e3

    def _instant_w(self) -> float | None:
        field = getattr(self._library, "NVML_FI_DEV_POWER_INSTANT", None)
        if field is None:
            return None
        value = self._library.nvmlDeviceGetFieldValues(self.handle, [field])[0]
        if value.nvmlReturn != self._library.NVML_SUCCESS:
            return None
        return float(value.value.uiVal) / 1e3

    def _total_j(self) -> float | None:
        try:
            return float(self._library.nvmlDeviceGetTotalEnergyConsumption(self.handle)) / 1e3
        except self._library.NVMLError_NotSupported:
            return None


def board_of(library: Any, gpu: int = 0) -> Any:
    """Return NVML's handle of the board that CUDA calls `gpu`.

    NVML counts all boards, and CUDA those that CUDA_VISIBLE_DEVICES names, by number or by the
    beginning of their UUID, up to the first entry that names none.

    Raises
    ------
    SourceError
        If CUDA sees no such GPU, it is a slice of a board (MIG), or which one it is depends on
        their speeds.
    NVMLError
        If NVML does not know it.
    """
    boards = [library.nvmlDeviceGetHandleByIndex(n) for n in range(library.nvmlDeviceGetCount())]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(n) for n in range(len(boards))] if visible is None else visible.split(",")
    seen: list[Any] = []
    for name in (entry.strip() for entry in names):
        if len(seen) > gpu:
            break
        if name.startswith("MIG-"):
            raise _slice(name)
        board = _named(library, boards, name)
        if board is None:
            break
        seen.append(board)
    if not 0 <= gpu < len(seen):
        raise SourceError(
            f"CUDA sees {len(seen)} of this machine's {len(boards)} GPUs with CUDA_VISIBLE_DEVICES "
            f"{'unset' if visible is None else repr(visible)}, and none is number {gpu}; name the "
            "one that runs there"
        )
    by_number = visible is None or names[gpu].strip().isdecimal()
    kinds = {str(library.nvmlDeviceGetName(board)) for board in boards}
    # Unless told otherwise CUDA gives 0 to the fastest, and NVML to the first on the bus.
    if by_number and len(kinds) > 1 and os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        raise SourceError(
            f"CUDA numbers the GPUs of this machine ({', '.join(sorted(kinds))}) by speed and NVML "
            "by place; set CUDA_DEVICE_ORDER=PCI_BUS_ID, or name a UUID in CUDA_VISIBLE_DEVICES"
        )
    if _divided(library, seen[gpu]):
        raise _slice(f"GPU {gpu}")
    return seen[gpu]


def _named(library: Any, boards: Sequence[Any], name: str) -> Any | None:
    """Find the board that an entry of CUDA_VISIBLE_DEVICES names; None if it names none or two."""
    if name.isdecimal():
        return boards[int(name)] if int(name) < len(boards) else None
    uuids = map(library.nvmlDeviceGetUUID, boards)
    texts = [uuid.decode() if isinstance(uuid, bytes) else uuid for uuid in uuids]
    if not name.startswith("GPU-") or len(found := [t for t in texts if t.startswith(name)]) != 1:
        return None
    return boards[texts.index(found[0])]


def _divided(library: Any, board: Any) -> bool:
    """Whether a board is in MIG mode, where CUDA sees the first of its slices only."""
    try:
        current, _ = library.nvmlDeviceGetMigMode(board)
    # Boards without slices do not know the question, and neither do old drivers.
    except (AttributeError, library.NVMLError):
        return False
    return bool(current)


def _slice(name: str) -> SourceError:
    return SourceError(
        f"{name} is a slice of a GPU (MIG), and only the whole board's power is measured, with all "
        "its other users; give a whole GPU in CUDA_VISIBLE_DEVICES"
    )


def _import_nvml() -> Any:
    try:
        import pynvml
    except ImportError as error:
        raise MissingDependencyError.of(
            "nvidia-ml-py", extra="nvml", purpose="Reading a GPU's power"
        ) from error
    return pynvml
