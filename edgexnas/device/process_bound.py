"""What works in the process that opened it alone, and says so anywhere else."""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING, ClassVar, NoReturn
from weakref import WeakSet

from edgexnas.errors import EngineError

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["ProcessBound"]


class ProcessBound:
    """Base of what holds threads, locks or a GPU's context, none of which survives a fork.

    In a forked child a lock that another thread held stays held for ever, the threads of a pool
    are not there to be joined, and CUDA refuses every call.

    Attributes
    ----------
    what
        Name of the thing in messages.
    """

    what: ClassVar[str] = "this predictor"
    _process: int

    # Not in __init__, which subclasses would have to call before anything that can fail.
    def __new__(cls, *_: object, **__: object) -> Self:
        """Note the process."""
        made = super().__new__(cls)
        made._process = os.getpid()
        _MADE.add(made)
        return made

    @property
    def elsewhere(self) -> bool:
        """Whether this is a copy that a fork made, which can be used for nothing."""
        return self._process != os.getpid()

    def require_own_process(self) -> None:
        """Raise `EngineError` in a forked child."""
        if self.elsewhere:
            raise EngineError(
                f"{self.what} was opened in another process ({self._process}), and does not "
                f"survive the fork to this one ({os.getpid()}); open one here, after the fork"
            )

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Raise `EngineError`: it can be neither pickled nor copied."""
        raise EngineError(
            f"{self.what} can be neither copied nor given to another process; open one there"
        )


_MADE: WeakSet[ProcessBound] = WeakSet()


def _never_destroy() -> None:
    """Let no destructor run in a forked child, where joining threads that are not there is fatal.

    One more reference than there are holders also outlasts the interpreter's own end.
    """
    for made in list(_MADE):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(made))


os.register_at_fork(after_in_child=_never_destroy)
