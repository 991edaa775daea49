"""Which frames of an HDF5 dataset are in its file; HDF5 reads the others as its fill value.

Objects of h5py are `Any` here: the module is imported without h5py.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgexnas.errors import SourceError
from edgexnas.frames.hdf5_file import open_hdf5_file

__all__ = ["Storage", "examine_storage", "folders_of", "frame_axis", "linked_file", "mapped_files"]

_UNLIMITED = 2**64 - 1
"""H5S_UNLIMITED, the count of a mapping that grows with its dataset."""

_DEEPEST = 8
"""Virtual datasets of virtual datasets that are followed; a longer chain is a loop."""

Intp = npt.NDArray[np.intp]


@dataclass(slots=True)
class Storage:
    """What of a dataset's frames is there.

    Attributes
    ----------
    missing
        Number of each frame that is not there, and why.
    unmapped
        (H, W) bool, True where no file gives a pixel of any frame; None if there is none such.
    """

    missing: dict[int, str] = field(default_factory=dict)
    unmapped: npt.NDArray[np.bool_] | None = None


def frame_axis(shape: tuple[int, ...]) -> int | None:
    """Tell along which axis of a dataset its frames are numbered; None if it is one frame.

    It is the longest, but a growing one may still be 0.
    """
    return max(range(len(shape) - 2), key=lambda n: (shape[n] != 1, shape[n]), default=None)


def examine_storage(dataset: Any, *, axis: int | None = None, depth: int = 0) -> Storage:
    """Find the frames of a dataset whose bytes are not there.

    Parameters
    ----------
    dataset
        (n, H, W) or with a further axis, or (H, W).
    axis
        Axis of the frames; None for the one of `frame_axis`.
    depth
        How many virtual datasets lead here.
    """
    axis = frame_axis(dataset.shape) if axis is None else axis
    count = 1 if axis is None else dataset.shape[axis]
    if dataset.is_virtual:
        return _virtual_storage(dataset, axis, depth)
    if dataset.chunks is not None:
        return Storage(_unwritten_chunks(dataset, axis))
    if dataset.external:
        return Storage(_short_files(dataset, count))
    # Contiguous datasets get their place with the first write.
    if dataset.nbytes and not dataset.id.get_storage_size():
        return Storage(dict.fromkeys(range(count), "nothing was ever written there"))
    return Storage()


def folders_of(file: Any) -> tuple[Path, Path]:
    """Give the folder that an open file was named in, and the one where it lies."""
    own = Path(os.fsdecode(file.filename))
    return own.absolute().parent, Path(os.path.realpath(own)).parent


def linked_file(name: str, folder: Path, real_folder: Path) -> Path | None:
    """Find a file that a link or a mapping names, from where the naming file lies.

    HDF5 would also take a file of that name in the current folder, which is another one.
    """
    places = [folder / name, real_folder / name]
    prefix = os.environ.get("HDF5_VDS_PREFIX")
    if prefix:
        places.insert(0, Path(prefix.replace("${ORIGIN}", str(folder))) / name)
    return next((place for place in places if place.is_file()), None)


def mapped_files(dataset: Any) -> set[Path]:
    """Give the files that a virtual dataset maps and that are there; none of another dataset."""
    if not dataset.is_virtual:
        return set()
    folders = folders_of(dataset.file)
    names = {name for m in dataset.virtual_sources() for name, _ in _blocks(m, dataset.shape)}
    found = (linked_file(name, *folders) for name in names - {"."})
    return {path for path in found if path is not None}


def _unwritten_chunks(dataset: Any, axis: int | None) -> dict[int, str]:
    counts = [-(-size // step) for size, step in zip(dataset.shape, dataset.chunks, strict=True)]
    # Counting is quick; only an incomplete dataset has its chunks looked at one by one.
    if dataset.id.get_num_chunks() >= prod(counts):
        return {}
    frames, step = (1, 1) if axis is None else (dataset.shape[axis], dataset.chunks[axis])
    written = np.zeros(1 if axis is None else counts[axis], np.int64)

    def count(info: Any) -> None:
        written[0 if axis is None else info.chunk_offset[axis] // step] += 1

    dataset.id.chunk_iter(count)
    # A frame is whole where all chunks across rows and columns were written.
    lacking = np.repeat(written < prod(counts) // len(written), step)[:frames]
    reason = "its part of the dataset was never written"
    return dict.fromkeys(np.flatnonzero(lacking).tolist(), reason)


def _short_files(dataset: Any, count: int) -> dict[int, str]:
    """Frames of raw files beside the HDF5 file; HDF5 fills up what such a file lacks."""
    there, end = 0, 0
    reason = ""
    for name, offset, size in dataset.external:
        # HDF5 looks for them from the current folder.
        place = Path(name)
        held = max(0, place.stat().st_size - offset) if place.is_file() else 0
        end += size
        if held < size:
            there += min(held, size)
            reason = (
                f"the raw file {name} ends before it"
                if place.is_file()
                else (f"the raw file {name} is not there")
            )
            break
        there += size
    whole = there // max(1, prod(dataset.shape[-2:]) * dataset.dtype.itemsize)
    return dict.fromkeys(range(whole, count), reason) if reason else {}


def _virtual_storage(dataset: Any, axis: int | None, depth: int) -> Storage:
    count = 1 if axis is None else dataset.shape[axis]
    mapped = np.zeros(count, np.int64)
    storage = Storage()
    boxes: list[tuple[Intp, Intp, Intp]] = []
    sources = _Sources(dataset, depth)
    for mapping in dataset.virtual_sources():
        for name, selection in _blocks(mapping, dataset.shape):
            axes = _selected(selection, dataset.shape)
            frames = np.arange(1) if axis is None else axes[axis]
            boxes.append((frames, axes[-2], axes[-1]))
            mapped[frames] += len(axes[-2]) * len(axes[-1])
            for number, reason in sources.missing(name, mapping, frames):
                storage.missing.setdefault(number, reason)
    # Against the frame with the most mapped pixels: gaps between modules are mapped on none.
    most = int(mapped.max(initial=0))
    for number in np.flatnonzero(mapped < max(most, 1)).tolist():
        storage.missing.setdefault(number, "no file is mapped to all of it")
    whole = int(np.argmax(mapped)) if count else 0
    covered = np.zeros(dataset.shape[-2:], bool)
    for frames, rows, columns in boxes:
        if whole in frames:
            covered[np.ix_(rows, columns)] = True
    if boxes and not covered.all():
        storage.unmapped = ~covered
    return storage


def _blocks(mapping: Any, shape: tuple[int, ...]) -> list[tuple[str, Any]]:
    """File name and selection of each block of a mapping; ``%b`` in a name counts blocks."""
    space = mapping.vspace
    selection = space.get_regular_hyperslab() if space.is_regular_hyperslab() else None
    name = mapping.file_name
    if "%b" not in name or selection is None:
        return [(name.replace("%%", "%"), selection or space)]
    start, stride, counts, block = selection
    axis = next((a for a, count in enumerate(counts) if count != 1), 0)
    blocks = []
    for number in range(-(-(shape[axis] - start[axis]) // max(1, stride[axis]))):
        begin = list(start)
        begin[axis] += number * stride[axis]
        one = (tuple(begin), stride, tuple(1 for _ in counts), block)
        blocks.append((name.replace("%b", str(number)).replace("%%", "%"), one))
    return blocks


def _selected(selection: Any, shape: tuple[int, ...]) -> list[Intp]:
    """Give the indices that a selection takes along each axis; of an irregular one its box's."""
    if not isinstance(selection, tuple):
        if not selection.shape or selection.get_select_npoints() == prod(shape):
            return [np.arange(size) for size in shape]
        low, high = selection.get_select_bounds()
        return [np.arange(first, last + 1) for first, last in zip(low, high, strict=True)]
    axes = []
    for size, start, stride, count, block in zip(shape, *selection, strict=True):
        if _UNLIMITED in (count, block):
            count, block = (1, size) if block == _UNLIMITED else (size, block)
        starts = start + stride * np.arange(min(count, size))
        indices = (starts[:, None] + np.arange(min(block, size))).ravel()
        axes.append(indices[indices < size])
    return axes


class _Sources:
    """The files that a virtual dataset is mapped to, each looked at once."""

    def __init__(self, dataset: Any, depth: int) -> None:
        self._dataset, self._depth = dataset, depth
        self._folders = folders_of(dataset.file)
        self._seen: dict[tuple[str, str], tuple[str, tuple[int, ...], dict[int, str]]] = {}

    def missing(self, name: str, mapping: Any, frames: Intp) -> list[tuple[int, str]]:
        """Give those of the frames that a source lacks, with the reason."""
        place = (name, mapping.dset_name)
        if place not in self._seen:
            self._seen[place] = self._look(*place)
        fault, shape, lacking = self._seen[place]
        if fault:
            return [(number, fault) for number in frames.tolist()]
        axis = frame_axis(shape)
        space = mapping.src_space
        taken = np.arange(1)
        if axis is not None:
            regular = bool(space.shape) and space.is_regular_hyperslab()
            announced = tuple(space.shape) or shape
            selection = space.get_regular_hyperslab() if regular else space
            taken = _selected(selection, announced)[axis]
        held = 1 if axis is None else shape[axis]
        if len(taken) < len(frames):
            taken = np.concatenate([taken, np.full(len(frames) - len(taken), held)])
        found = []
        for number, source in zip(frames.tolist(), taken.tolist(), strict=False):
            if source >= held:
                found.append((number, f"{place[1]} of {name} holds only {held} frames"))
            elif source in lacking:
                found.append((number, f"in {name}, {lacking[source]}"))
        return found

    def _look(self, name: str, dataset: str) -> tuple[str, tuple[int, ...], dict[int, str]]:
        """Say what is wrong with a source as a whole, its shape and the frames that it lacks."""
        if self._depth >= _DEEPEST:
            return "it is mapped over too many virtual datasets", (), {}
        if name == ".":
            return self._inside(self._dataset.file, name, dataset)
        place = linked_file(name, *self._folders)
        if place is None:
            fault = f"the file {name}, which it is mapped to, is missing; copy it to "
            return fault + str(self._folders[0]), (), {}
        try:
            with open_hdf5_file(place) as file:
                return self._inside(file, name, dataset)
        except SourceError as error:
            return str(error), (), {}

    def _inside(
        self, file: Any, name: str, dataset: str
    ) -> tuple[str, tuple[int, ...], dict[int, str]]:
        try:
            found = file.get(dataset)
        except (KeyError, OSError, RuntimeError):
            found = None
        shape = getattr(found, "shape", None)
        if shape is None or len(shape) < 2:
            return f"the dataset {dataset} of {name}, which it is mapped to, is not there", (), {}
        return "", tuple(shape), examine_storage(found, depth=self._depth + 1).missing
