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
    parts
        Digest of name, inode, size and time of each further file; empty for none and while they
        grow.
    place
        Which of the frames in the file, such as the name of the dataset; empty if there is no
        choice.
    """

    path: str
    inode: int
    size: int | None = None
    modified_ns: int | None = None
    parts: str = ""
    place: str = ""

    @classmethod
    def of(
        cls, path: Path, parts: Iterable[Path] = (), *, growing: bool = False, place: str = ""
    ) -> SeriesIdentity:
        """Identify a file or folder.

        Parameters
        ----------
        path
            What was opened.
        parts
            Further files that hold the frames, such as those that a master file links to.
        growing
            Whether it is still written, so that size and time say nothing.
        place
            As of the attribute.

        Raises
        ------
        SourceError
            If a file is not there.
        """
        real = os.path.realpath(path)
        try:
            opened = os.stat(real)
            further = {os.path.realpath(part): os.stat(part) for part in parts}
        except OSError as error:
            raise SourceError(
                f"{path} cannot be read ({error.strerror}); check the path"
            ) from error
        if growing:
            return cls(real, opened.st_ino, place=place)
        stats = [opened, *further.values()]
        # One of many may be replaced by another of the same size that is older than the last.
        listed = [
            f"{name}\0{found.st_ino}\0{found.st_size}\0{found.st_mtime_ns}"
            for name, found in sorted(further.items())
        ]
        return cls(
            real,
            opened.st_ino,
            sum(found.st_size for found in stats),
            max(found.st_mtime_ns for found in stats),
            _digest(listed) if listed else "",
            place,
        )

    @property
    def id(self) -> str:
        """A name that no other series has: that of the file, and a digest of all."""
        about = (self.path, self.inode, self.size, self.modified_ns, self.parts, self.place)
        return f"{Path(self.path).name}-{_digest(map(str, about))[:12]}"

    def metadata(self) -> Mapping[str, str | int]:
        """Give what can be stored beside results, by name."""
        known: dict[str, str | int] = {"path": self.path, "inode": self.inode, "identity": self.id}
        if self.size is None or self.modified_ns is None:
            return known
        return {**known, "size_bytes": self.size, "modified_ns": self.modified_ns}


def _digest(texts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogateescape")).hexdigest()
