"""What the records of a manifest are made of: immutable models and the types of their fields."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    PositiveFloat,
    StringConstraints,
)

__all__ = [
    "IDENTIFIER",
    "LARGEST_SINGLE",
    "Digest",
    "Divisor",
    "Identifier",
    "Level",
    "Names",
    "NonNegative",
    "NonNegativeSingle",
    "PositiveSingle",
    "Precision",
    "Record",
    "Release",
    "Single",
    "Text",
]

Precision = Literal["float32", "float16", "int8"]
"""Arithmetic of one of a bundle's models; all take and give float32 tensors."""

# Manifests are printed before their signature is checked: no control characters and no change of
# writing direction, so that a stranger's file cannot speak to the terminal.
Text = Annotated[str, StringConstraints(max_length=2000, pattern=r"^\P{C}*$")]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
IDENTIFIER = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
"""What a model_id, and the name of a tensor, look like."""
# No slash and no leading dot or dash: they become names of files and parts of commands.
Identifier = Annotated[str, StringConstraints(pattern=IDENTIFIER)]
Release = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,4}(\.[0-9]{1,4}){1,3}$")]
Level = Annotated[float, Field(gt=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0)]

LARGEST_SINGLE, _SMALLEST = (2 - 2.0**-23) * 2.0**127, 2.0**-149
# Below it float32 rounds so coarsely that a reciprocal may become infinite.
_SMALLEST_DIVISOR = 2.0**-126


def _of_float32(value: float) -> float:
    if abs(value) > LARGEST_SINGLE:
        raise ValueError(f"{value:g} would be infinite on a device, which computes in float32")
    if 0 < abs(value) < _SMALLEST:
        raise ValueError(f"{value:g} would be 0 on a device, which computes in float32")
    return value


def _divides_float32(value: float) -> float:
    if not _SMALLEST_DIVISOR <= value <= LARGEST_SINGLE:
        raise ValueError(
            f"{value:g} cannot divide on a device, which computes in float32; it takes "
            f"{_SMALLEST_DIVISOR:.2g} to {LARGEST_SINGLE:.2g}"
        )
    return value


Single = Annotated[float, AfterValidator(_of_float32)]
"""What devices compute with, in float32."""
NonNegativeSingle = Annotated[NonNegative, AfterValidator(_of_float32)]
PositiveSingle = Annotated[PositiveFloat, AfterValidator(_of_float32)]
Divisor = Annotated[PositiveFloat, AfterValidator(_divides_float32)]
"""What devices divide by, in float32."""
# Failing fast, or a stranger's file could make pydantic collect a million faults.
Names = Annotated[tuple[Text, ...], Field(max_length=1000), FailFast()]


class Record(BaseModel):
    """Immutable, finite, and without a field that this version does not know."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )
