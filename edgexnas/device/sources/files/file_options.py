"""What of a file is read, and how."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from edgexnas.device.sources.source_url import SourceOptions

__all__ = ["FileOptions"]


class FileOptions(SourceOptions):
    """Parameters of a file.

    Attributes
    ----------
    rate
        Frames a second; None for as fast as they are taken. A file waits: none is lost.
    dataset
        Dataset of the frames, where a file holds several.
    channel
        Which image of each frame, where there are several, as of several thresholds.
    file_mask
        Whether the pixel mask of the file is used.
    repeat
        How often the file is given, each time as a series of its own.
    follow
        The file is being written by another process (HDF5 with SWMR, or an Eiger master file whose
        data files come one by one): wait for more frames. A frame is taken once it is written.
    idle_s
        A followed file ends when no frame came for so long.
    positions
        Dataset of (n, 2) scan positions, (row, col) in metres, or in pixels with `pixel_nm`.
    pixel_nm
        Side of an object pixel in nanometres: positions are in pixels, by default those of
        entry/data/positions_px.
    """

    rate: Annotated[float, Field(gt=0, le=1e6)] | None = None
    dataset: str | None = None
    channel: Annotated[int, Field(ge=0)] | None = None
    file_mask: bool = True
    repeat: Annotated[int, Field(ge=1)] = 1
    follow: bool = False
    idle_s: Annotated[float, Field(gt=0)] = 10.0
    positions: str | None = None
    pixel_nm: Annotated[float, Field(gt=0)] | None = None
