"""JSON as a bundle may hold it: one meaning for every reader, or none."""

from __future__ import annotations

import json
from typing import NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from edgexnas.errors import BundleError
from edgexnas.printing import printable

__all__ = ["explain", "parse_json", "parse_record"]

Model = TypeVar("Model", bound=BaseModel)


def parse_record(
    raw: bytes, kind: type[Model], *, what: str, remedy: str = "export the bundle again"
) -> Model:
    """Parse strict JSON into a pydantic model; parameters as of `parse_json`.

    Raises
    ------
    BundleError
        If it is not strict JSON, or a field is missing, unknown or wrong.
    """
    fields = parse_json(raw, what=what, remedy=remedy)
    try:
        # From JSON, so that strictness still lets a list be a tuple and a string be a time.
        return kind.model_validate_json(json.dumps(fields), strict=True)
    except ValidationError as error:
        raise BundleError(f"{what} is wrong at {explain(error)}; {remedy}") from None


def parse_json(
    raw: bytes, *, what: str, remedy: str = "export the bundle again"
) -> dict[str, object]:
    """Parse a JSON object, rejecting what parsers are known to read differently.

    Parameters
    ----------
    raw
        UTF-8 text without byte-order mark.
    what
        What is parsed, for messages: "manifest.json of bragg.edgex".
    remedy
        What the messages tell the reader to do.

    Raises
    ------
    BundleError
        If it is not a JSON object, repeats a key, or holds NaN or infinity.
    """
    try:
        value = json.loads(
            # Decoded here: json.loads guesses UTF-16 and UTF-32 from bytes.
            raw.decode("utf-8"),
            object_pairs_hook=_without_repeats,
            parse_constant=_reject_constant,
        )
    # UnicodeDecodeError, JSONDecodeError and numbers with too many digits are all ValueErrors.
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{what} is not strict JSON ({error}); {remedy}") from None
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise BundleError(f"{what} is a JSON {kind}, where an object is expected; {remedy}")
    return value


def explain(error: ValidationError) -> str:
    """Say in a line what pydantic found first, and where."""
    # Without the input, which is a stranger's and may be as long as the file.
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(part)[:60] for part in first["loc"][:8]) or "the top"
    return printable(f"{place}: {first['msg'][:300]}")


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    # Parsers keep the first, the last or both; a signer and a device must not disagree.
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {key[:60]!r} occurs twice")
        found[key] = value
    return found


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
