"""An object of ptychography as two TIFF images of float32: its phase and its amplitude."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgexnas.errors import MissingDependencyError
from edgexnas.forms.object_nexus import turned_object
from edgexnas.ptycho import ObjectImage
from edgexnas.whole_files import whole_file

__all__ = ["write_tiff_object"]


def write_tiff_object(path: Path, image: ObjectImage) -> tuple[Path, Path]:
    """Write NAME-phase.tiff, in radians, and NAME-amplitude.tiff; each appears whole.

    Returns
    -------
    The paths of the two.

    Raises
    ------
    MissingDependencyError
        If fabio is not installed.
    OSError
        If a file cannot be written.
    """
    try:
        from fabio.tifimage import TifImage
    except ImportError:
        raise MissingDependencyError.of("fabio", extra="formats", purpose="TIFF") from None
    values = turned_object(image)
    pictures: dict[str, Any] = {"phase": np.angle(values), "amplitude": np.abs(values)}
    paths = []
    for name, picture in pictures.items():
        place = path.with_name(f"{path.stem}-{name}{path.suffix}")
        with whole_file(place) as draft:
            TifImage(data=np.ascontiguousarray(picture, np.float32)).write(str(draft))
        paths.append(place)
    phase, amplitude = paths
    return phase, amplitude
