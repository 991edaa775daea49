"""What datasets of both tasks share: columns with a row for each item, a digest, and a file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from edgexnas.errors import EdgexnasError, InputError, SourceError
from edgexnas.host.data.dataset_file import DatasetFile, content_digest

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Columns", "StoredDataset"]

Columns = dict[str, tuple[tuple[int, ...], type[np.generic]]]
"""Name of a column → shape after the first axis, and dtype."""


class StoredDataset(ABC):
    """Base of frozen dataclasses that are saved whole and read back.

    Attributes
    ----------
    COLUMNS
        Columns with a row for each item; the first one gives their number.
    OPTIONAL
        Arrays that may be None, columns or others.
    """

    __slots__ = ()

    FILE: ClassVar[DatasetFile]
    COLUMNS: ClassVar[Columns]
    OPTIONAL: ClassVar[tuple[str, ...]] = ()

    source: str

    def __len__(self) -> int:
        return len(getattr(self, next(iter(self.COLUMNS))))

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of everything but the source."""
        return content_digest(self._arrays(), self._description())

    def save(self, path: str | Path) -> Path:
        """Write an HDF5 file, whole or not at all.

        Raises
        ------
        SourceError
            If the file cannot be written.
        """
        return self.FILE.write(path, self._arrays(), self._description(), self.source)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote.

        Raises
        ------
        SourceError
            If the file is missing, is not such a file, or its content does not match its digest.
        """
        required = [name for name in cls.COLUMNS if name not in cls.OPTIONAL]
        arrays, description, source = cls.FILE.read(path, required, optional=cls.OPTIONAL)
        try:
            return cls(**{**arrays, **cls._described(description), "source": source})
        except (KeyError, TypeError, ValueError, EdgexnasError) as error:
            raise SourceError(
                f"{path} cannot be read as a dataset: {error}; {cls.FILE.remedy}"
            ) from error

    @abstractmethod
    def _description(self) -> dict[str, Any]:
        """Return what is not an array, as JSON takes it."""

    @classmethod
    @abstractmethod
    def _described(cls, description: Mapping[str, Any]) -> dict[str, Any]:
        """Turn a description back into fields."""

    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        names = dict.fromkeys([*self.COLUMNS, *self.OPTIONAL])
        named = {name: getattr(self, name) for name in names}
        return {name: array for name, array in named.items() if array is not None}

    def _check_columns(self) -> None:
        for name, (tail, dtype) in self.COLUMNS.items():
            column = getattr(self, name)
            if column is None and name in self.OPTIONAL:
                continue
            if column.shape != (len(self), *tail) or column.dtype != dtype:
                raise InputError(
                    f"{name} has shape {column.shape} and dtype {column.dtype}; specify "
                    f"{(len(self), *tail)} and {np.dtype(dtype)}"
                )
