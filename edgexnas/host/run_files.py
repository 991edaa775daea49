"""Files of a search, its measurements and its reports: whole or not at all, one kind of error."""

from __future__ import annotations

from pathlib import Path

from edgexnas.errors import SearchError
from edgexnas.whole_files import write_whole

__all__ = ["write_run_file"]


def write_run_file(path: Path, content: bytes) -> None:
    """Write a file whole; see `edgexnas.whole_files.write_whole`.

    Raises
    ------
    SearchError
        If it cannot be written.
    """
    try:
        write_whole(path, content)
    except OSError as error:
        raise SearchError(
            f"{path} cannot be written ({error.strerror}); free some space or specify another "
            "output"
        ) from error
