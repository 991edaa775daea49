"""Starts worker processes for `edgexnas.host.search.evaluators.ProcessEvaluator`.

Importing torch takes seconds, so one process does it once and forks the workers; what runs in it
and in them is `edgexnas.host.search.worker`. The search's own process cannot be forked: it has
threads, and may use a GPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.reduction import send_handle
from pathlib import Path
from signal import SIGKILL
from socket import socketpair
from typing import IO

import cloudpickle  # type: ignore[import-untyped]

__all__ = ["ForkServer", "ReapRequest", "WorkerSpec"]


@dataclass(frozen=True)
class WorkerSpec:
    """How to set up a worker; its end of a socket pair follows this message.

    Attributes
    ----------
    environment
        What to change in its environment.
    memory_limit
        Bytes of data that it may allocate on the host, or None.
    gpu_share
        Share of its GPU's memory that it may use, or None.
    """

    environment: dict[str, str] = field(default_factory=dict)
    memory_limit: int | None = None
    gpu_share: float | None = None


@dataclass(frozen=True)
class ReapRequest:
    """Asks for the exit status of a worker that has ended, negative for a signal."""

    process: int


class ForkServer:
    """A process that imports torch once and forks workers, each in milliseconds.

    Parameters
    ----------
    context
        What all workers share, pickled.
    threads
        Threads of torch in each worker.
    log
        Where its output and that of the workers goes.
    """

    def __init__(self, context: bytes, threads: int, log: IO[bytes] | int) -> None:
        environment = dict(os.environ)
        environment["OMP_NUM_THREADS"] = str(threads)
        # No fork survives the threads that numpy's library would start.
        environment["OPENBLAS_NUM_THREADS"] = "1"
        # The workers import this very package and whatever else this process can import.
        root = str(Path(__file__).resolve().parents[3])
        paths = [root, *(path or os.getcwd() for path in sys.path)]
        environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
        # Sockets, because they carry descriptors to the other process; pipes do not.
        ours, theirs = socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "edgexnas.host.search.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C is for the search alone, which then ends its workers itself.
                start_new_session=True,
            )
        self._control = Connection(ours.detach())
        # If it died at once, the first worker reports that, with the log.
        with suppress(OSError):
            self._control.send_bytes(context)

    @property
    def alive(self) -> bool:
        """Whether it can still fork."""
        return not self._control.closed and self._process.poll() is None

    def spawn(self, spec: WorkerSpec) -> Connection:
        """Fork a worker; return the connection to it, which closes if forking failed."""
        ours, theirs = socketpair()
        with theirs, suppress(OSError):
            self._control.send_bytes(cloudpickle.dumps(spec))
            send_handle(self._control, theirs.fileno(), self._process.pid)
        return Connection(ours.detach())

    def reap(self, process: int) -> int:
        """Return the exit status of a worker that has ended; of one whose fork server died, 1."""
        try:
            self._control.send_bytes(cloudpickle.dumps(ReapRequest(process)))
            status: int = cloudpickle.loads(self._control.recv_bytes())
        except (EOFError, OSError):
            return 1
        return status

    def close(self, patience_s: float = 0.2) -> int:
        """End the process and return its exit status; workers without an owner end with it."""
        self._control.close()
        with suppress(subprocess.TimeoutExpired):
            # It notices by itself, unless it still imports torch.
            return self._process.wait(patience_s)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, SIGKILL)
        return self._process.wait()
