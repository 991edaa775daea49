"""Forms of results that other programs read, and the tables of `edgexnas predict`."""

from typing import Literal, TypeAlias, get_args

__all__ = ["FORMS", "Form"]

Form: TypeAlias = Literal[
    "csv", "imaged11", "imaged11-hdf5", "midas", "dials", "cxi", "nexus", "tiff"
]
"""Names of the forms."""

FORMS: tuple[Form, ...] = get_args(Form)
