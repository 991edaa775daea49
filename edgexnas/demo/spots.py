"""Independent lists of spots to hold the peak finder against."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgexnas.errors import SourceError
from edgexnas.frames import Truth

__all__ = ["HexrdSpots", "TrueSpots"]


FloatArray = npt.NDArray[np.float64]

_NO_SPOTS = np.empty((0, 3))
LEAST_SIDE_PX = 3


class TrueSpots:
    """All spots of a simulated series; the visible ones should be found."""

    def __init__(self, truth: Truth) -> None:
        self._truth = truth

    def __call__(self, frame: int) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
        """(m, 2) positions (row, col) of a frame in pixels, and (m,) which are visible."""
        here = self._truth.of_frame(frame)
        return here.positions_px, here.visible


class HexrdSpots:
    """A spot list of hexrd's connected-component finder: one table for each panel and frame.

    Columns of a table: row and col of the intensity centroid, larger side of the bounding box,
    row_min, col_min, row_end, col_end, largest count, sum. Two thirds of the ruby list are one or
    two pixels wide, hits of single photons or particles; the others should be found.

    Parameters
    ----------
    path
        HDF5 file; ``path::panel`` names the panel where there are several.

    Raises
    ------
    SourceError
        If the file cannot be read or the panel is not in it.
    """

    def __init__(self, path: str) -> None:
        import h5py

        file_name, _, panel = path.partition("::")
        if not Path(file_name).is_file():
            raise SourceError(f"there is no spot list {file_name}; check the path")
        try:
            with h5py.File(file_name) as file:
                panels = sorted(file)
                chosen = panel or panels[0]
                if chosen not in panels or (not panel and len(panels) > 1):
                    raise SourceError(
                        f"{file_name} holds the panels {', '.join(panels)}; "
                        f"name one as {file_name}::{panels[0]}"
                    )
                tables = {int(k): file[chosen][k][()] for k in file[chosen] if k.isdecimal()}
        except OSError as error:
            if isinstance(error, SourceError):
                raise
            raise SourceError(f"spot list {file_name} cannot be read: {error}") from error
        self._tables: dict[int, FloatArray] = {
            k: table for k, table in tables.items() if table.ndim == 2
        }

    def __call__(self, frame: int) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
        """(m, 2) positions (row, col) of a frame in pixels, and (m,) which are 3 px or wider."""
        table = self._tables.get(frame, _NO_SPOTS)
        return table[:, :2], table[:, 2] >= LEAST_SIDE_PX
