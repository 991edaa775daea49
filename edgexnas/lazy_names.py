"""Public names that a package imports on first use, so that importing the package loads nothing."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

__all__ = ["lazy_names"]


def lazy_names(package: str) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """Make ``__getattr__``, ``__dir__`` and ``__all__`` of a package from its imports for typing.

    The package lists its public names once, in a form that type checkers take for exported::

        if TYPE_CHECKING:
            from edgexnas.room.module import Name as Name

        __getattr__, __dir__, __all__ = lazy_names(__name__)

    Parameters
    ----------
    package
        Name of the package; all its imports under ``if TYPE_CHECKING:`` become public.
    """
    source = Path(sys.modules[package].__file__ or "").read_text(encoding="utf-8")
    modules = {
        alias.name: str(node.module)
        for block in ast.parse(source).body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    def get(name: str) -> object:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(modules[name]), name)

    return get, lambda: sorted(modules), sorted(modules)
