"""The URL that names a source of frames: scheme, place and parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar
from urllib.parse import parse_qsl, unquote

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from edgexnas.errors import ConfigurationError

__all__ = ["FrameShape", "SourceOptions", "SourceUrl", "join_url"]

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)


class SourceOptions(BaseModel):
    """Parameters of one kind of source; subclasses say which."""

    model_config = ConfigDict(extra="forbid", frozen=True)


_Options = TypeVar("_Options", bound=SourceOptions)


def _shape(value: object) -> object:
    """Read "1024x1024" as rows and columns."""
    return tuple(value.lower().replace("×", "x").split("x")) if isinstance(value, str) else value


_Side = Annotated[int, Field(ge=1, le=65_536)]
FrameShape = Annotated[tuple[_Side, _Side], BeforeValidator(_shape)]
"""(rows, columns), written as 1024x1024 in a URL."""


@dataclass(frozen=True, slots=True)
class SourceUrl:
    """A URL that was taken apart.

    Attributes
    ----------
    text
        The URL as it was given, for messages.
    scheme
        "file", "pva", ...; a plain path has "file".
    place
        What stands between "://" and "?": a path, a channel's name, a host and port.
    parameters
        Names and values after "?".
    """

    text: str
    scheme: str
    place: str
    parameters: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> SourceUrl:
        """Take a URL or a plain path apart.

        Raises
        ------
        ConfigurationError
            If there is nothing to open, or a parameter has no value or comes twice.
        """
        matched = _SCHEME.fullmatch(text)
        if "\0" in unquote(text):
            raise ConfigurationError(f"the source {text!r} holds a NUL, as no path or host does")
        if matched is None:
            # A path may hold a question mark; parameters of files are written with file://.
            if not text:
                raise ConfigurationError("the source is empty; specify a path or a URL")
            return cls(text, "file", text)
        # Not urllib's parser: it cuts paths at #, and lowers the case of hosts, here PV names.
        scheme, rest = matched[1].lower(), matched[2]
        place, _, query = rest.partition("?")
        if not place:
            raise ConfigurationError(f"{text} names no place after {scheme}://; add one")
        return cls(text, scheme, unquote(place), _parameters(text, query))

    def options(self, model: type[_Options], given: Mapping[str, Any] | None = None) -> _Options:
        """Check the parameters, and those `given` beside the URL, against a model of them.

        Raises
        ------
        ConfigurationError
            If one is unknown, wrong, or given in both ways; the message names it.
        """
        return checked_options(self.text, model, self.parameters, given or {})


def checked_options(
    source: str, model: type[_Options], first: Mapping[str, Any], second: Mapping[str, Any]
) -> _Options:
    """Merge two sets of parameters and check them; see `SourceUrl.options`."""
    known = list(model.model_fields)
    merged = {**first, **second}
    # Said before values are checked: a slip in a name is the commonest fault.
    unknown = sorted(set(merged) - set(known))
    if unknown:
        offered = f"it knows {', '.join(known)}" if known else "it takes none"
        raise ConfigurationError(f"{source} has no parameter {unknown[0]!r}; {offered}")
    twice = sorted(set(first) & set(second))
    if twice:
        raise ConfigurationError(f"{source} is given {twice[0]!r} twice; leave one out")
    try:
        return model(**merged)
    except ValidationError as error:
        first_error = error.errors()[0]
        name = str(first_error["loc"][0]) if first_error["loc"] else "a parameter"
        reason = first_error["msg"].removeprefix("Value error, ")
        reason = reason[:1].lower() + reason[1:]
        value = f" {str(merged[name])!r}" if name in merged else ""
        raise ConfigurationError(
            f"parameter {name}{value} of {source} is invalid: {reason}"
        ) from None


def join_url(scheme: str, place: str, parameters: Mapping[str, object]) -> str:
    """Write a URL as `SourceUrl.parse` reads it."""
    query = "&".join(f"{name}={value}" for name, value in parameters.items())
    return f"{scheme}://{place}" + (f"?{query}" if query else "")


def _parameters(text: str, query: str) -> dict[str, str]:
    if not query:
        return {}
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True)
    except ValueError:
        raise ConfigurationError(
            f"the parameters of {text} are not of the form name=value&name=value; correct them"
        ) from None
    parameters: dict[str, str] = {}
    for name, value in pairs:
        if name in parameters:
            raise ConfigurationError(f"{text} gives {name!r} twice; leave one out")
        parameters[name] = value
    return parameters
