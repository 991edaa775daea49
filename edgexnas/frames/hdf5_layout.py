"""Where the frames are in an HDF5 file, and whether they can be read.

Objects of h5py are `Any` here: the module is imported without h5py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgexnas.errors import SourceError
from edgexnas.frames.hdf5_file import open_hdf5_file
from edgexnas.frames.missing import folders_of, frame_axis, linked_file

_PLACES = (
    "entry/data/data",
    "entry/instrument/detector/data",
    "imageseries/images",
    "exchange/data",
    "frames",
)
"""NeXus, areaDetector, hexrd, Data Exchange (APS), and the plainest name, in this order."""

_BLOCK_GROUPS = ("entry/data", "entry")
_BLOCK_NAME = re.compile(r"data_[0-9]{6}")

_NOT_FRAMES = re.compile(r"mask|flat|dark|white|gain|pedestal|threshold|trimbit", re.IGNORECASE)
"""Names of detector calibrations, which have the shape of frames but are none."""

DATASET_FORMATS = "edgexnas "
"""How the attribute `format` of a dataset to train on begins; then follows what it holds."""

# https://github.com/HDFGroup/hdf5_plugins/blob/master/docs/RegisteredFilterPlugins.md
_FILTER_NAMES = {
    305: "LZO",
    307: "bzip2",
    32000: "LZF",
    32001: "Blosc",
    32004: "LZ4",
    32008: "bitshuffle",
    32013: "ZFP",
    32015: "Zstandard",
    32017: "SZ",
    32018: "FCIDECOMP",
    32019: "JPEG",
    32024: "SZ3",
    32026: "Blosc2",
    32028: "SPERR",
}


@dataclass(frozen=True, slots=True)
class FrameAxes:
    """How the frames lie in a dataset.

    Attributes
    ----------
    count
        Frames when it was opened.
    shape
        (rows, columns) of each.
    fixed
        Index along each axis before row and column; that along `axis` is the frame's.
    axis
        Along which the frames are numbered; None for a dataset of one frame.
    """

    count: int
    shape: tuple[int, int]
    fixed: tuple[int, ...]
    axis: int | None

    def selection(self, index: int) -> tuple[int, ...]:
        """Index of frame `index` in the dataset."""
        return tuple(index if n == self.axis else at for n, at in enumerate(self.fixed))


def frame_axes(dataset: Any, path: Path, channel: int | None = None) -> FrameAxes:
    """Tell how the frames lie in a dataset of 2, 3 or 4 dimensions.

    Parameters
    ----------
    dataset, path
        The dataset, and its file for messages.
    channel
        Which of several images of a frame are taken, as of several thresholds.

    Raises
    ------
    SourceError
        If the dataset has another number of dimensions, no real numbers, or several images a frame
        of which none was chosen.
    """
    shape = dataset.shape
    if shape is None or not 2 <= len(shape) <= 4 or dataset.dtype.kind not in "uif":
        raise SourceError(
            f"{dataset.name} of {path} holds {dataset.dtype} of shape {shape}; "
            "frames are real numbers of shape (n, H, W)"
        )
    leading = shape[:-2]
    axis = frame_axis(shape)
    fixed = [0] * len(leading)
    # (n, 1, H, W) has one image a frame, so there is nothing to choose.
    if len(leading) == 2 and 1 not in leading:
        # Detectors write the images of a frame one after the other, so the frames come first.
        axis = 0
        if channel is None:
            raise SourceError(
                f"{dataset.name} of {path} has shape {shape}, {shape[1]} images a frame, such as "
                f"those of several thresholds; choose one of 0 to {shape[1] - 1} with channel=, "
                f"on the shell as 'file://{path}?channel=0'"
            )
        fixed[1] = channel
    images = leading[1] if len(leading) == 2 and axis == 0 else 1
    if not 0 <= (channel or 0) < max(images, 1):
        raise SourceError(
            f"{dataset.name} of {path} has shape {shape}, so it has no channel {channel}; "
            "leave channel out, or give one that is there"
        )
    count = 1 if axis is None else leading[axis]
    return FrameAxes(count, (shape[-2], shape[-1]), tuple(fixed), axis)


def find_blocks(file: Any, path: Path, name: str | None, *, growing: bool = False) -> list[Any]:
    """Find the datasets that hold the frames, in order.

    Of an Eiger master file that is growing, those up to the first whose file is not there.

    Raises
    ------
    SourceError
        If there are none, or several that could be meant, or a linked file is missing; if the file
        is a dataset to train on.
    """
    if name is not None:
        return [_named(file, path, name)]
    _refuse_dataset(file, path)
    for place in _PLACES:
        if _resolves(file, path, place) and _is_frames(file[place]):
            return [file[place]]
    for place in _BLOCK_GROUPS:
        blocks = _blocks(file, path, place, growing)
        if blocks:
            return blocks
    signal = _default_signal(file, path)
    if signal is not None and _is_frames(signal):
        return [signal]
    return [_only_candidate(file, path)]


def _refuse_dataset(file: Any, path: Path) -> None:
    """Refuse the patches of `edgexnas label`, which have the shape of frames but are none."""
    kind = text_of(file.attrs.get("format")) or ""
    if kind.startswith(DATASET_FORMATS):
        source = text_of(file.attrs.get("source"))
        raise SourceError(
            f"{path} holds labelled {kind.removeprefix(DATASET_FORMATS)} to train on, not frames; "
            f"give the file that they were made from{f' ({source})' if source else ''}, or give "
            "this one to edgexnas optimize"
        )


def _named(file: Any, path: Path, name: str) -> Any:
    if not _resolves(file, path, name):
        raise SourceError(f"{path} has no dataset {name!r}; {_candidates_hint(file)}")
    if not hasattr(file[name], "shape"):
        raise SourceError(f"{name!r} of {path} is a group, not a dataset; {_candidates_hint(file)}")
    return file[name]


def _only_candidate(file: Any, path: Path) -> Any:
    candidates = _candidates(file)
    if not candidates:
        raise SourceError(
            f"{path} holds no dataset of frames (real numbers of shape (n, H, W)); "
            "name the dataset if it has another shape"
        )
    if len(candidates) > 1:
        raise SourceError(
            f"{path} holds {len(candidates)} datasets that could be frames; "
            f"name one with dataset= or --dataset: {', '.join(candidates)}"
        )
    return file[candidates[0]]


def _is_frames(item: Any) -> bool:
    shape = getattr(item, "shape", None)
    return shape is not None and 2 <= len(shape) <= 4 and item.dtype.kind in "uif"


def _candidates(file: Any) -> list[str]:
    """Paths of the 3-D datasets that could be frames, one for each dataset."""
    found: list[str] = []

    def visit(name: str, item: Any) -> None:
        deep = _is_frames(item) and len(item.shape) >= 3
        if deep and not _NOT_FRAMES.search(name.rsplit("/", 1)[-1]):
            found.append(name)

    file.visititems(visit)
    return found


def _candidates_hint(file: Any) -> str:
    candidates = _candidates(file)
    if not candidates:
        return "it holds no dataset of shape (n, H, W)"
    return f"name one of {', '.join(candidates)}"


def _resolves(file: Any, path: Path, place: str) -> bool:
    """Tell whether a path leads to something; a link into a missing file is an error."""
    group = file
    parts = [part for part in place.split("/") if part]
    for part in parts:
        if not hasattr(group, "keys"):
            return False
        link = group.get(part, getlink=True)
        if link is None:
            return False
        target = group.get(part)
        if target is None:
            _refuse_dangling(group, part, path)
            return False
        group = target
    return bool(parts)


def _refuse_dangling(group: Any, name: str, path: Path) -> None:
    linked, place = where_link_leads(group, name)
    if not linked:
        return
    label = f"{group.name.rstrip('/')}/{name} of {path} links to"
    folders = folders_of(group.file)
    found = linked_file(linked, *folders)
    if found is None:
        raise SourceError(
            f"{label} the file {linked}, which is missing; "
            f"copy it to {(folders[0] / linked).parent}"
        )
    reason = "holds no such thing"
    try:
        open_hdf5_file(found).close()
    except SourceError as error:
        reason = f"cannot be opened there ({error})"
    raise SourceError(f"{label} {place} of {linked}, which {reason}; copy that file again")


def where_link_leads(group: Any, name: str) -> tuple[str, str]:
    """Give file and place that a link names; no file for one inside its own, nothing for none."""
    link = group.get(name, getlink=True)
    return getattr(link, "filename", ""), getattr(link, "path", "")


def _blocks(file: Any, path: Path, place: str, growing: bool) -> list[Any]:
    """Collect data_000001, data_000002, ... of an Eiger master file."""
    if not _resolves(file, path, place) or not hasattr(file[place], "keys"):
        return []
    names = sorted(name for name in file[place] if _BLOCK_NAME.fullmatch(name))
    blocks = []
    for name in names:
        try:
            if _resolves(file, path, f"{place}/{name}"):
                blocks.append(file[f"{place}/{name}"])
        except SourceError:
            if not growing or not blocks:
                raise
            break
    return blocks


def _default_signal(file: Any, path: Path) -> Any | None:
    """Follow @default to an NXdata group and @signal to its dataset (NeXus since 2014)."""
    group = file
    # NXroot, NXentry, NXdata: longer chains come from a loop of links.
    for _ in range(4):
        step = text_of(group.attrs.get("default"))
        if step is None or not _resolves(group, path, step):
            break
        group = group[step]
    name = text_of(group.attrs.get("signal"))
    if name is None or not hasattr(group, "keys") or not _resolves(group, path, name):
        return None
    return group[name]


def text_of(value: Any) -> str | None:
    """Give text as such; None for anything else."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str) else None


def check_filters(dataset: Any, path: Path) -> None:
    """Refuse a dataset that was written with a filter this HDF5 library does not have.

    Raises
    ------
    SourceError
        If so; it names the filter.
    """
    from h5py import h5z

    properties = dataset.id.get_create_plist()
    for number in range(properties.get_nfilters()):
        code, _, _, label = properties.get_filter(number)
        if not h5z.filter_avail(code):
            name = _FILTER_NAMES.get(code) or label.decode("ascii", "replace") or "unregistered"
            raise SourceError(
                f"{dataset.name} of {path} is compressed with HDF5 filter {code} ({name}), which "
                "is not installed; run pip install hdf5plugin, or save the file without it"
            )
