"""Functions that numba compiles; loading this module loads numba.

Compiled functions run without the interpreter's lock.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba

__all__ = ["compiled", "compiled_part"]

_log = logging.getLogger(__name__)
_FOLDER = Path(__file__).parent

# The stubs of numba do not know the options without which each gets wrappers, which take longest.
Function = TypeVar("Function", bound=Callable[..., object])
_UNWRAPPED: Any = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}


def compiled(function: Callable[..., Any]) -> Any:
    """Compile at the first call; keep the code beside the source or in the user's cache folder."""
    try:
        kept = numba.njit(function, cache=True, nogil=True, error_model="numpy")
        if _is_ours(Path(kept.stats.cache_path)):
            return kept
        _log.warning(
            "compiled code is not kept in %s, where others can write", kept.stats.cache_path
        )
    except RuntimeError:
        # Neither place can be written, as in a read-only container.
        _log.info("compiled code is kept nowhere: each process compiles %s", function.__name__)
    return numba.njit(function, nogil=True, error_model="numpy")


def compiled_part(function: Function) -> Function:
    """Compile what only compiled functions call: kept with these."""
    part: Function = numba.njit(error_model="numpy", **_UNWRAPPED)(function)
    return part


def _is_ours(folder: Path) -> bool:
    """Tell whether nobody else can put code here that would be loaded as ours."""
    trusted = {0, os.geteuid(), _FOLDER.stat().st_uid}
    for place in (folder, *folder.parents):
        if place.exists():
            state = place.stat()
            # In a sticky folder, such as /tmp, others cannot replace what is not theirs.
            loose = state.st_mode & stat.S_IWOTH and not state.st_mode & stat.S_ISVTX
            if loose or state.st_uid not in trusted:
                return False
    return True
