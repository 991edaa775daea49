"""JSON as a bundle may hold it: one meaning for every reader, or none."""

from __future__ import annotations

import json
from typing import NoReturn

from pydantic import ValidationError

from edgexnas.errors import BundleError

__all__ = ["explain", "parse_json", "printable"]


def parse_json(raw: bytes, *, what: str) -> dict[str, object]:
    """Parse a JSON object, refusing what parsers are known to read differently.

    Parameters
    ----------
    raw
        UTF-8 text without byte-order mark.
    what
        What is parsed, for messages: "manifest.json of bragg.edgex".

    Raises
    ------
    BundleError
        If it is no JSON object, repeats a key, or holds NaN or infinity.
    """
    try:
        value = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_without_repeats, parse_constant=_refuse_constant
        )
    # UnicodeDecodeError, JSONDecodeError and numbers with too many digits are all ValueErrors.
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{what} is not strict JSON ({error}); export the bundle again") from None
    if not isinstance(value, dict):
        raise BundleError(f"{what} is a JSON {type(value).__name__}, where an object is expected")
    return value


def printable(text: str) -> str:
    """Escape control characters, so that text from a stranger's file is safe in a message."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


def explain(error: ValidationError) -> str:
    """Say in a line what pydantic found first, and where."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(part)[:60] for part in first["loc"][:8]) or "the top"
    return printable(f"{place}: {first['msg'][:300]}")


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {key[:60]!r} occurs twice")
        found[key] = value
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
