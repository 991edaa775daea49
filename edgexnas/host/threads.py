"""How many threads torch takes for work that is small and runs beside other work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from edgexnas.errors import ConfigurationError

__all__ = ["torch_threads"]


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch's operations on the CPU use so many threads in a with-block, and the former after.

    torch takes all cores unless it is told otherwise. Fits and patterns are small arrays, of which
    each operation ends with all threads waiting for the last; where another program has one of the
    cores, that wait costs many times what the threads save.

    Raises
    ------
    ConfigurationError
        If `count` is no whole number above 0.
    """
    # By type: True is an int to Python.
    if type(count) is not int or count < 1:
        raise ConfigurationError(f"threads is {count!r}; specify a whole number above 0")
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
