"""What training, exporting and searching ask of labelled data, whatever the task."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from edgexnas.errors import InputError
from edgexnas.host.data.splitting import Split

__all__ = ["Dataset", "require_finite"]

FloatArray = npt.NDArray[np.float32]


class Dataset(Protocol):
    """Labelled data of one task, such as `PeakDataset`."""

    @property
    def task(self) -> str:
        """Name of the task."""

    @property
    def source(self) -> str:
        """Where the data came from."""

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of the content."""

    @property
    def against(self) -> Literal["fit", "iterative", "truth"]:
        """What the targets are."""

    def inputs(self) -> FloatArray:
        """Network inputs (n, 1, side, side), scaled as the device scales them."""

    def network_targets(self) -> FloatArray:
        """Return what a network should give for `inputs()`, in the same order.

        (n, 2) (row, col) offsets in pixels for "bragg"; (n, 2, 64, 64) amplitude and phase in
        radians for "ptycho".
        """

    def split(self) -> Split:
        """Parts to train, calibrate, validate and test on."""

    def save(self, path: str | Path) -> object:
        """Write a file that the task loads."""


def require_finite(source: str, **columns: npt.NDArray[np.generic]) -> None:
    """Reject columns, whose first axis counts items, that hold NaN or infinity.

    One such item makes the loss of every batch that it is in NaN, and with it all weights.

    Raises
    ------
    InputError
        Naming the column and the first such item.
    """
    for name, column in columns.items():
        broken = ~np.isfinite(column).all(axis=tuple(range(1, column.ndim)))
        if broken.any():
            raise InputError(
                f"{name} of {source} hold NaN or infinity in {np.count_nonzero(broken)} of "
                f"{len(column)} items, the first is number {broken.argmax()}; leave such items out"
            )
