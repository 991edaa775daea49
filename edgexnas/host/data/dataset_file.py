"""The file of a dataset: named arrays and a description in HDF5, whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgexnas.errors import EdgexnasError, SourceError
from edgexnas.hdf5_library import new_hdf5
from edgexnas.whole_files import whole_file

__all__ = ["DatasetFile", "content_digest"]

Arrays = Mapping[str, npt.NDArray[Any]]


def content_digest(arrays: Arrays, description: Mapping[str, Any]) -> str:
    """SHA-256, in hex, of arrays with their names, and of a description that JSON can hold."""
    digest = hashlib.sha256()
    for name, array in arrays.items():
        # With names, dtypes and shapes: equal bytes under another of these are other data.
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    # Sorted, because dictionaries with equal content must give equal digests.
    digest.update(json.dumps(description, sort_keys=True).encode())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class DatasetFile:
    """A kind of dataset file.

    Attributes
    ----------
    format
        Name of the kind, written into the file.
    version
        Version of the kind that is written, and the newest that is read.
    remedy
        What to do with a file that cannot be used, such as "label the frames again".
    oldest
        Oldest version that is read; None for `version` alone.
    """

    format: str
    version: int
    remedy: str
    oldest: int | None = None

    def write(
        self, path: str | Path, arrays: Arrays, description: Mapping[str, Any], source: str
    ) -> Path:
        """Write a file; an existing one is replaced.

        Raises
        ------
        SourceError
            If the file cannot be written.
        """
        place = Path(path)
        try:
            with whole_file(place) as draft, new_hdf5(draft, "a file of labels") as file:
                for key, array in arrays.items():
                    file.create_dataset(key, data=array, **_compression(array))
                file.attrs["format"], file.attrs["version"] = self.format, self.version
                file.attrs["description"] = json.dumps(dict(description))
                # A path may hold bytes that are no UTF-8, which HDF5 does not take.
                file.attrs["source"] = source.encode(errors="backslashreplace").decode()
                file.attrs["digest"] = content_digest(arrays, description)
        except OSError as error:
            raise SourceError(
                f"{place} cannot be written: {error.strerror or error}; choose another folder or "
                "free some space"
            ) from error
        return place

    def read(
        self, path: str | Path, names: Sequence[str], *, optional: Sequence[str] = ()
    ) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any], str]:
        """Read the named arrays, the optional ones that there are, and what goes with them.

        Returns
        -------
        The arrays by name, the description, and the source.

        Raises
        ------
        SourceError
            If the file is missing, is of another kind, lacks an array, or its content does not
            match its digest.
        """
        import h5py

        place = Path(path)
        if not place.is_file():
            raise SourceError(f"there is no dataset {place}; check the path or {self.remedy}")
        try:
            with h5py.File(place, "r") as file:
                oldest = self.version if self.oldest is None else self.oldest
                version = file.attrs.get("version")
                if file.attrs.get("format") != self.format or not (
                    isinstance(version, int | np.integer) and oldest <= version <= self.version
                ):
                    raise SourceError(
                        f"{place} is not a file of {self.format!r} version {self.version}; "
                        f"{self.remedy}"
                    )
                present = (*names, *(name for name in optional if name in file))
                arrays = {name: np.asarray(file[name][()]) for name in present}
                description = json.loads(file.attrs["description"])
                source, digest = str(file.attrs["source"]), str(file.attrs["digest"])
        except EdgexnasError:
            raise
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise SourceError(
                f"{place} cannot be read as a dataset: {error}; {self.remedy}"
            ) from error
        # A search names its data by digest, so a changed file must not pass for the old one.
        if content_digest(arrays, description) != digest:
            raise SourceError(
                f"the content of {place} does not match its digest; copy the file again"
            )
        return arrays, description, source


def _compression(array: npt.NDArray[Any]) -> dict[str, Any]:
    # Counts are mostly small whole numbers: gzip packs them well, and every reader has it.
    return {"compression": "gzip", "shuffle": True} if array.ndim > 2 and array.size else {}
