"""TOML files: what they hold, and where in them a key stands."""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgexnas.errors import ConfigurationError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["line_of", "read_toml"]

Key = str | int


def read_toml(path: Path) -> tuple[str, dict[str, Any]]:
    """Read a configuration: its text, for `line_of`, and what it says.

    Raises
    ------
    ConfigurationError
        If the file cannot be read or is no TOML; the message says at which line and column.
    """
    try:
        # Opening a pipe would wait for somebody to write to it.
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "it is no regular file")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(
            f"configuration {path} cannot be read ({error.strerror}); give a TOML file"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is no text in UTF-8; give a TOML file") from error
    try:
        document = tomllib.loads(text)
    except ValueError as error:
        raise ConfigurationError(f"{path} is not TOML: {error}; mend it") from error
    except RecursionError as error:
        raise ConfigurationError(f"{path} is nested too deeply; give a TOML file") from error
    if _holds_nul(document):
        raise ConfigurationError(f"{path} has a string with a NUL, as no path or name has")
    return text, document


def _holds_nul(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_nul, value.values()))
    if isinstance(value, list):
        return any(map(_holds_nul, value))
    return isinstance(value, str) and "\0" in value


def line_of(text: str, path: Sequence[Key]) -> int:
    """Find the line, from 1, at which a key or an item of an array is set.

    The parser itself is asked: the first lines of a file are TOML up to each statement's end, and
    the first such beginning that has the key ends with the statement that sets it.

    Parameters
    ----------
    text
        A whole TOML document.
    path
        Names of tables and keys, and indices into arrays of tables; a part of it is used where
        the rest is not in the document.
    """
    lines = text.splitlines()
    depth = _depth(tomllib.loads(text), path)
    if not depth:
        return 1
    whole = 0
    for count in range(1, len(lines) + 1):
        try:
            document = tomllib.loads("\n".join(lines[:count]))
        except tomllib.TOMLDecodeError:
            continue
        if _depth(document, path) >= depth:
            statement = lines[whole:count]
            blank = next((i for i, line in enumerate(statement) if _says_something(line)), 0)
            return whole + blank + 1
        whole = count
    return len(lines)


def _says_something(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _depth(document: Any, path: Sequence[Key]) -> int:
    """Tell how many parts of a path lead somewhere."""
    for depth, key in enumerate(path):
        inside = key in document if isinstance(document, dict) else False
        if isinstance(document, list) and isinstance(key, int):
            inside = key < len(document)
        if not inside:
            return depth
        document = document[key]
    return len(path)
