"""What makes a series of a file this one, and not another of the same name."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgexnas.errors import SourceError

__all__ = ["SeriesIdentity"]


@dataclass(frozen=True, slots=True)
class SeriesIdentity:
    """What a series of files is: two are the same only if all of this is.

    Attributes
    ----------
    path
        The file or folder that was opened, links resolved.
    inode
        Its number in its file system; a file that replaces another has a number of its own.
    size
        Bytes of all files together; None while they grow.
    modified_ns
        When the last of the files was changed, Unix time in ns; None while they grow.
    """

    path: str
    inode: int
    size: int | None = None
    modified_ns: int | None = None

    @classmethod
    def of(cls, path: Path, parts: Iterable[Path] = (), *, growing: bool = False) -> SeriesIdentity:
        """Identify a file or folder.

        Parameters
        ----------
        path
            What was opened.
        parts
            Further files that hold the frames, such as those that a master file links to.
        growing
            Whether it is still written, so that size and time say nothing.

        Raises
        ------
        SourceError
            If a file is not there.
        """
        real = os.path.realpath(path)
        try:
            opened = os.stat(real)
            stats = [opened, *(os.stat(part) for part in dict.fromkeys(parts))]
        except OSError as error:
            raise SourceError(
                f"{path} cannot be read ({error.strerror}); check the path"
            ) from error
        return cls(
            real,
            opened.st_ino,
            None if growing else sum(found.st_size for found in stats),
            None if growing else max(found.st_mtime_ns for found in stats),
        )

    @property
    def id(self) -> str:
        """A name that no other series has: that of the file, and a digest of all."""
        content = "\0".join(map(str, (self.path, self.inode, self.size, self.modified_ns)))
        # surrogateescape, because a path may hold bytes that are no UTF-8.
        digest = hashlib.sha256(content.encode("utf-8", "surrogateescape")).hexdigest()
        return f"{Path(self.path).name}-{digest[:12]}"

    def metadata(self) -> Mapping[str, str | int]:
        """Give what can be stored beside results, by name."""
        known: dict[str, str | int] = {"path": self.path, "inode": self.inode, "identity": self.id}
        if self.size is None or self.modified_ns is None:
            return known
        return {**known, "size_bytes": self.size, "modified_ns": self.modified_ns}
