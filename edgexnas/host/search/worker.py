"""The processes behind `edgexnas.host.search.evaluators.ProcessEvaluator`.

Started as ``python -m edgexnas.host.search.worker FD`` with one end of a socket pair. This process,
the fork server, reads the shared context, imports torch and draws simulated objects once, and then
forks a worker for each socket that it is sent: in milliseconds, with most memory shared. It never
touches a GPU or starts a thread, because neither survives a fork.

A worker says who it is and, when its limits are set, that it is ready; then it answers each request
with a result until the other end closes. With each result it says whether it can go on: a kernel
that fails leaves CUDA unusable for the whole process.
"""

from __future__ import annotations

import gc
import os
import resource
import sys
import threading
import time
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from signal import SIGKILL
from typing import TYPE_CHECKING, NoReturn

import cloudpickle  # type: ignore[import-untyped]

from edgexnas.host.search.fork_server import ReapRequest, WorkerSpec

if TYPE_CHECKING:
    from edgexnas.host.search.evaluation import EvaluationContext

__all__: list[str] = []

PATIENCE_S = 5.0
"""How long a worker that has closed its connection may take to end."""


def main(descriptor: int) -> None:
    """Fork workers until the socket closes."""
    with Connection(descriptor) as control, suppress(EOFError, ConnectionError):
        pickled = control.recv_bytes()
        # Nothing of an import is garbage, and what is never looked at stays shared after a fork.
        gc.disable()
        import torch

        import edgexnas.host.networks.spaces
        import edgexnas.host.training.loop  # noqa: F401 - for the workers

        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        context = cloudpickle.loads(pickled)
        del pickled
        # Drawn once for all workers, replaced ones too. What goes wrong is an evaluation's to tell.
        with suppress(Exception):
            _ = context.objects
        gc.freeze()
        gc.enable()
        while True:
            # Raises when the search has closed the socket or has died, which ends this process.
            request = cloudpickle.loads(control.recv_bytes())
            if isinstance(request, ReapRequest):
                control.send_bytes(cloudpickle.dumps(_reap(request.process)))
                continue
            end = recv_handle(control)
            server = os.getpid()
            if os.fork() == 0:
                control.close()
                _run_worker(Connection(end), request, context, server)
            # Workers forked later would inherit it, and its end would never read as closed.
            os.close(end)


def _reap(process: int) -> int:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        known, status = os.waitpid(process, os.WNOHANG)
        if known:
            return os.waitstatus_to_exitcode(status)
        # It has closed its connection, so nothing of it is waited for any longer.
        if time.monotonic() > deadline:
            os.killpg(process, SIGKILL)
        time.sleep(0.001)


def _run_worker(
    connection: Connection, spec: WorkerSpec, context: EvaluationContext, server: int
) -> NoReturn:
    """Evaluate until the connection closes; skip the exit handlers of the fork server."""
    status = 1
    try:
        _evaluate_requests(connection, spec, context, server)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _evaluate_requests(
    connection: Connection, spec: WorkerSpec, context: EvaluationContext, server: int
) -> None:
    """Evaluate in a session of its own, so that killing its group leaves no grandchild."""
    import torch

    from edgexnas.host.search.evaluation import EvaluationResult, classify, evaluate

    os.setsid()
    os.environ.update(spec.environment)
    threading.Thread(target=_exit_with_parent, args=(server,), daemon=True).start()
    with connection, suppress(EOFError, ConnectionError):
        # Before the limits, so that a worker that hangs while it sets them can be killed.
        connection.send_bytes(cloudpickle.dumps(os.getpid()))
        if spec.memory_limit is not None:
            # Data, not address space: CUDA reserves hundreds of gigabytes of addresses.
            resource.setrlimit(resource.RLIMIT_DATA, (spec.memory_limit, spec.memory_limit))
        if spec.gpu_share is not None:
            torch.cuda.set_per_process_memory_fraction(spec.gpu_share)
        # Opening a GPU and drawing patterns take seconds, more than a short training has. What goes
        # wrong is the first evaluation's to tell.
        with suppress(Exception):
            _ = context.training_data
        connection.send_bytes(cloudpickle.dumps("ready"))
        while True:
            trial, pickled = cloudpickle.loads(connection.recv_bytes())
            try:
                result = evaluate(cloudpickle.loads(pickled), context)
            except Exception as error:
                # A builder from a module that cannot be imported here fails to unpickle.
                result = EvaluationResult(trial, *classify(error))
            # A kernel that failed leaves CUDA unusable for the process, which is then replaced.
            connection.send_bytes(cloudpickle.dumps((result, _usable())))


def _usable() -> bool:
    import torch

    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return True
    try:
        # CUDA reports a kernel that failed at a later call, at the latest when it is waited for.
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def _exit_with_parent(parent: int) -> None:
    """Exit when the parent has gone, even in the middle of an evaluation."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]))
