"""The background of each series, kept for a service that is started again in the midst of one."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgexnas.errors import InputError
from edgexnas.guarded_files import read_once
from edgexnas.peak_finding import Background
from edgexnas.whole_files import write_whole

if TYPE_CHECKING:
    from edgexnas.detector_mask import Mask
    from edgexnas.device.sinks.results import SeriesKey

__all__ = ["KeptBackgrounds"]

MOST_FILES = 64
"""The newest are kept: a detector has one series at a time, and goes on with the last alone."""

MOST_BYTES = 128 * 2**20
"""Far above what 16 megapixels take, of which one in ten is hot."""

_log = logging.getLogger("edgexnas.device.serving")


class KeptBackgrounds:
    """Files of one background each, named by series, bundle and mask.

    What cannot be written or read is logged: frames are processed all the same.

    Parameters
    ----------
    folder
        Made when the first is kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keep(self, background: Background, series: SeriesKey, mask: Mask | None) -> None:
        """Write the background of a series, and delete the oldest files if there are too many."""
        if background.tiles is None:
            return
        none = np.zeros(0, np.int64)
        hot = none if background.hot is None else np.flatnonzero(background.hot)
        content = io.BytesIO()
        np.savez(
            content,
            shape=np.array(background.level.shape, np.int64),
            tiles=background.tiles,
            saturation=np.float64(background.saturation or np.nan),
            hot=hot.astype(np.int64),
        )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self._path(series, mask), content.getvalue())
            kept = sorted(self.folder.glob("*.npz"), key=lambda path: path.stat().st_mtime_ns)
            for path in kept[:-MOST_FILES]:
                path.unlink(missing_ok=True)
        except OSError as error:
            _log.warning(
                "the background of %s cannot be kept in %s (%s); after a restart it is estimated "
                "from other frames",
                series.identity or series.series,
                self.folder,
                error.strerror or error,
            )

    def find(
        self, series: SeriesKey, mask: Mask | None, shape: tuple[int, int]
    ) -> Background | None:
        """Read the background of a series of (H, W) frames; None, logged, if there is none."""
        path = self._path(series, mask)
        try:
            content = read_once(path, most_bytes=MOST_BYTES)
            if content is None:
                raise InputError(f"it is larger than {MOST_BYTES} bytes")
            return _read(content, shape)
        except FileNotFoundError:
            why = f"{self.folder} has none with this bundle and mask"
        except (OSError, InputError) as error:
            why = f"{path} cannot be used: {error}"
        _log.warning(
            "%s goes on without the background that it began with (%s): it is estimated anew, and "
            "peaks near the threshold may differ from those before",
            series.identity or series.series,
            why,
        )
        return None

    def _path(self, series: SeriesKey, mask: Mask | None) -> Path:
        # Pixels that were not masked before may have shown in the background.
        masked = (
            [] if mask is None else [mask.shape, hashlib.sha256(np.packbits(mask).data).hexdigest()]
        )
        name = hashlib.sha256(json.dumps([*series, *masked]).encode()).hexdigest()
        return self.folder / f"{name[:32]}.npz"


def _read(content: bytes, shape: tuple[int, int]) -> Background:
    """Make a background of a file's content, which anybody may have written.

    Raises
    ------
    InputError
        If it is malformed, or of frames of another shape.
    """
    arrays = _arrays(content)
    kinds = {"shape": "<i8", "tiles": "<f4", "saturation": "<f8", "hot": "<i8"}
    found = {name: array.dtype.str for name, array in arrays.items()}
    if found != kinds:
        raise InputError(f"its arrays are {found}, not {kinds}")
    if arrays["shape"].tolist() != list(shape):
        raise InputError(f"it is of {arrays['shape'].tolist()} frames, not of {list(shape)}")
    tiles, saturation, indices = arrays["tiles"], arrays["saturation"], arrays["hot"]
    if not np.isfinite(tiles).all() or (tiles[1:] < 0).any():
        raise InputError("its level or noise is not finite, or its noise is negative")
    if saturation.shape or saturation <= 0 or np.isinf(saturation):
        raise InputError(f"its saturation is {saturation.tolist()}, not a number above 0")
    # As unsigned numbers, in which a negative one is larger than any pixel's.
    if indices.ndim != 1 or (indices.view(np.uint64) >= np.prod(shape)).any():
        raise InputError("its hot pixels are not pixels of the frame")
    hot = None
    if indices.size:
        hot = np.zeros(shape, np.bool_)
        hot.flat[indices] = True
    limit = None if np.isnan(saturation) else float(saturation)
    return Background.of_tiles(tiles, shape, saturation=limit, hot=hot)


def _arrays(content: bytes) -> dict[str, npt.NDArray[Any]]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            # Uncompressed, as `keep` writes it: a small file must not claim much memory.
            if sum(member.file_size for member in archive.infolist()) > len(content):
                raise InputError("it is compressed")
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except InputError:
        raise
    except Exception as error:
        # zipfile and numpy raise many kinds for malformed files.
        raise InputError(f"it is no .npz file ({type(error).__name__}: {error})") from error
