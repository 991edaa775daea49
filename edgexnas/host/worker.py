"""The process behind `edgexnas.host.evaluators.ProcessEvaluator`.

Started as ``python -m edgexnas.host.worker FD`` with one end of a socket pair. It reads its
memory limits and the shared context, says that it is ready, and then answers each request with a
result until the other end closes. With each result it says whether it can go on: a kernel that
fails leaves CUDA unusable for the whole process.
"""

from __future__ import annotations

import os
import resource
import sys
import threading
import time
from multiprocessing.connection import Connection

import cloudpickle  # type: ignore[import-untyped]

__all__: list[str] = []


def main(descriptor: int) -> None:
    """Serve requests on a socket until it closes."""
    threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()
    with Connection(descriptor) as connection:
        try:
            limit, gpu_share = cloudpickle.loads(connection.recv_bytes())
            context = cloudpickle.loads(connection.recv_bytes())
            import torch

            from edgexnas.host.evaluation import EvaluationResult, classify, evaluate

            torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
            if limit is not None:
                # Data, not address space: CUDA reserves hundreds of gigabytes of addresses.
                resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
            if gpu_share is not None:
                torch.cuda.set_per_process_memory_fraction(gpu_share)
            connection.send_bytes(cloudpickle.dumps("ready"))
            while True:
                trial, pickled = cloudpickle.loads(connection.recv_bytes())
                try:
                    result = evaluate(cloudpickle.loads(pickled), context)
                except Exception as error:
                    # A builder from a module that cannot be imported here fails to unpickle.
                    result = EvaluationResult(trial, *classify(error))
                connection.send_bytes(cloudpickle.dumps((result, _usable())))
        except (EOFError, ConnectionError):
            return


def _usable() -> bool:
    import torch

    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return True
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def _follow(parent: int) -> None:
    """End with the search, even if it was killed in the middle of an evaluation."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]))
