"""Files that appear whole or not at all: written beside their place, synced, then renamed."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["whole_file", "write_whole"]


@contextmanager
def whole_file(path: Path, *, mode: int = 0o666) -> Iterator[Path]:
    """Give a draft to write that becomes `path` when the block ends without an exception.

    Readers, and a power cut, see the old content or all of the new. After an exception nothing is
    left behind. Where `path` is a link, what it leads to is replaced. A device or a pipe, such as
    ``/dev/null``, cannot be replaced and is its own draft.

    Parameters
    ----------
    path
        File to write or replace; its folder exists.
    mode
        Permissions before the process's umask.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        yield path
        return
    # Unlike Path.resolve this raises nothing for links in a circle.
    path = Path(os.path.realpath(path))
    draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    # Created here, so that the permissions are right whatever library writes into it.
    os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode))
    try:
        yield draft
        with open(draft, "rb") as written:
            os.fsync(written.fileno())
        os.replace(draft, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)
        raise


def write_whole(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Write a file whole; parameters and errors as of `whole_file`."""
    with whole_file(path, mode=mode) as draft:
        draft.write_bytes(content)
