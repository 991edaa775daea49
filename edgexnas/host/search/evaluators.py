"""Where evaluations run: in this process, in processes of their own, or on a Ray cluster.

An evaluator takes requests up to its capacity and returns results in the order of completion.
Whatever happens to an evaluation, its request ends in exactly one result.
"""

from __future__ import annotations

import math
import os
import subprocess
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from signal import SIGKILL, Signals
from typing import Protocol

import cloudpickle  # type: ignore[import-untyped]

from edgexnas.errors import ConfigurationError, SearchError
from edgexnas.host.networks.hyperparameters import is_whole
from edgexnas.host.search.evaluation import (
    EvaluationContext,
    EvaluationRequest,
    EvaluationResult,
    evaluate,
)
from edgexnas.host.search.fork_server import ForkServer, WorkerSpec
from edgexnas.host.threads import torch_threads

__all__ = ["EVALUATORS", "Evaluator", "ProcessEvaluator", "SerialEvaluator", "make_evaluator"]

EVALUATORS = ("process", "serial", "ray")

START_LIMIT_S = 300.0
"""A worker that has not imported torch by then never will."""

ENDING_LIMIT_S = 60.0
"""What a fork server that has closed its connections is given to end by itself."""

FIRST_ON_GPU_S = 60.0
"""What a worker's first evaluation on a GPU may take longer: it loads kernels and torch's compiler,
and a worker that is killed meanwhile is replaced by one that has to load them, too."""

EVALUATIONS_PER_WORKER = 200
"""A worker is replaced after as many, before fragmented memory counts against its limit."""


class Evaluator(Protocol):
    """Runs requests and returns results."""

    capacity: int

    def submit(self, request: EvaluationRequest) -> None:
        """Start an evaluation; at most `capacity` may run."""

    def collect(self, timeout_s: float | None = None) -> list[EvaluationResult]:
        """Wait for at least one result, or until the time-out, and return those there are."""

    def close(self) -> None:
        """Cancel running evaluations and release all resources."""


class SerialEvaluator:
    """One evaluation at a time in this process: reproducible, easy to debug, not isolated."""

    capacity = 1

    def __init__(self, context: EvaluationContext) -> None:
        self._context = context
        self._requests: deque[EvaluationRequest] = deque()

    def submit(self, request: EvaluationRequest) -> None:
        """Queue a request for the next `collect`."""
        self._requests.append(request)

    def collect(self, timeout_s: float | None = None) -> list[EvaluationResult]:
        """Evaluate the queued requests; a running evaluation is not interrupted."""
        # As in a worker: more threads slow small networks down and sum in another order.
        with torch_threads(1):
            return [evaluate(self._requests.popleft(), self._context) for _ in [*self._requests]]

    def close(self) -> None:
        """Discard requests that have not started."""
        self._requests.clear()


@dataclass
class _Task:
    request: EvaluationRequest
    started: float
    deadline: float | None


class _Worker:
    """A warm process that evaluates one request after another."""

    def __init__(self, server: ForkServer, spec: WorkerSpec) -> None:
        self._server = server
        self.connection = server.spawn(spec)
        self.process: int | None = None
        self._status: int | None = None
        self.task: _Task | None = None
        self.evaluations = 0
        self.spawned_at = time.monotonic()
        self.ready = False

    def start(self, task: _Task) -> None:
        self.task = task
        self.evaluations += 1
        # A worker that has just died is noticed, and reported, when its result is collected.
        with suppress(OSError):
            # cloudpickle takes along builders of a notebook or script, which no worker can import.
            # Pickled twice: the trial's number can be read even where its request cannot.
            pickled = cloudpickle.dumps(task.request)
            self.connection.send_bytes(cloudpickle.dumps((task.request.trial, pickled)))

    def receive(self) -> EvaluationResult | None:
        """Return the next result, or None after a message about the worker itself."""
        message = cloudpickle.loads(self.connection.recv_bytes())
        if isinstance(message, int):
            self.process = message
            return None
        if message == "ready":
            self.ready = True
            if self.task is not None and self.task.deadline is not None:
                # Importing torch takes seconds that are not the evaluation's.
                self.task.deadline += time.monotonic() - self.task.started
            return None
        self.task = None
        result: EvaluationResult
        result, usable = message
        if not usable:
            self.evaluations = EVALUATIONS_PER_WORKER
        return result

    def kill(self) -> int:
        """Kill the process and its children; return its exit status."""
        # A worker without a known process id ends when it finds its connection closed.
        if self.process is not None:
            # The whole group, because a builder may have started processes of its own.
            with suppress(ProcessLookupError):
                os.killpg(self.process, SIGKILL)
        self.connection.close()
        return self.status()

    def status(self) -> int:
        """Exit status of a process that was killed or whose connection has closed."""
        # Reaped once: asked again, the kernel knows the process no longer.
        if self._status is None:
            self._status = 0 if self.process is None else self._server.reap(self.process)
        return self._status


class ProcessEvaluator:
    """Each evaluation in a process of its own, with limits on time and memory.

    Workers are forked from one process that has imported torch. They stay warm between
    evaluations, because opening a GPU takes longer than training a small network; one that was
    killed, died, lost its GPU to a kernel that failed, or has done 200 evaluations is replaced.
    Worker k sees one GPU, number k modulo the number of GPUs, so several candidates can share one,
    each with its share of the memory.

    Parameters
    ----------
    workers
        How many evaluations run at once.
    kill_after_s
        Seconds after which an evaluation is killed; None never kills.
    memory_limit
        Bytes of data that a worker may allocate on the host, torch itself included; None for
        no limit.
    threads
        Threads of torch in each worker; more than one slows networks this small down.
    log
        File to which workers' output is appended; None discards it.
    """

    def __init__(
        self,
        context: EvaluationContext,
        *,
        workers: int = 1,
        kill_after_s: float | None = None,
        memory_limit: int | None = None,
        threads: int = 1,
        log: Path | None = None,
    ) -> None:
        self.capacity = workers
        self._kill_after_s = kill_after_s
        self._memory_limit = memory_limit
        self._context = cloudpickle.dumps(context)
        self._threads = threads
        self._log = log
        self._gpus: list[str] = []
        self._server = self._start_server()
        # Asking torch for GPUs takes a while, in which the fork server gets ready.
        if context.device in ("auto", "cuda"):
            self._gpus = visible_gpus()
        self._workers: list[_Worker | None] = [self._spawn(slot) for slot in range(workers)]

    def submit(self, request: EvaluationRequest) -> None:
        """Send a request to an idle worker."""
        idle = [slot for slot, worker in enumerate(self._workers) if not (worker and worker.task)]
        if not idle:
            raise SearchError(
                f"all {self.capacity} workers are busy; collect a result before submitting"
            )
        worker = self._workers[idle[0]]
        if worker is None or worker.evaluations >= EVALUATIONS_PER_WORKER:
            worker = self._replace(idle[0])
        now = time.monotonic()
        limit = request.kill_limit(self._kill_after_s)
        if limit is not None and self._gpus and not worker.evaluations:
            limit += FIRST_ON_GPU_S
        deadline = None if limit is None else now + limit
        worker.start(_Task(request, now, deadline))

    def collect(self, timeout_s: float | None = None) -> list[EvaluationResult]:
        """Wait for at least one result, or until the time-out, and return those there are."""
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            results = self._overdue()
            busy = {w.connection: s for s, w in enumerate(self._workers) if w and w.task}
            pause = 0.0 if results else self._pause(end)
            for connection in wait(list(busy), pause) if busy else ():
                results += self._receive(busy[connection])  # type: ignore[index]
            if results or not busy or (end is not None and time.monotonic() >= end):
                return results

    def close(self) -> None:
        """Kill all workers."""
        for slot, worker in enumerate(self._workers):
            if worker is not None:
                worker.kill()
                self._workers[slot] = None
        self._server.close()

    def _start_server(self) -> ForkServer:
        if self._log is None:
            return ForkServer(self._context, self._threads, subprocess.DEVNULL)
        with self._log.open("ab") as log:
            return ForkServer(self._context, self._threads, log)

    def _spawn(self, slot: int) -> _Worker:
        # The kernel may have killed it for its memory.
        if not self._server.alive:
            self._server.close()
            self._server = self._start_server()
        if not self._gpus:
            return _Worker(self._server, WorkerSpec(memory_limit=self._memory_limit))
        gpu = {"CUDA_VISIBLE_DEVICES": self._gpus[slot % len(self._gpus)]}
        # As many workers as share a GPU, so that together they cannot overfill it.
        share = 1 / math.ceil(self.capacity / len(self._gpus))
        return _Worker(self._server, WorkerSpec(gpu, self._memory_limit, share))

    def _replace(self, slot: int) -> _Worker:
        worker = self._workers[slot]
        if worker is not None:
            worker.kill()
        fresh = self._workers[slot] = self._spawn(slot)
        return fresh

    def _receive(self, slot: int) -> list[EvaluationResult]:
        worker = self._workers[slot]
        assert worker is not None
        try:
            result = worker.receive()
        except (EOFError, OSError):
            return [self._died(slot, worker)]
        return [] if result is None else [result]

    def _died(self, slot: int, worker: _Worker) -> EvaluationResult:
        assert worker.task is not None
        task = worker.task
        if not worker.ready:
            # A fork server that fails has closed its sockets before it says why and ends.
            known = worker.process is not None
            status = worker.status() if known else self._server.close(ENDING_LIMIT_S)
            self.close()
            raise SearchError(
                f"a worker ended with status {status} before it was ready; see {self._log}"
            )
        status = worker.status()
        self._replace(slot)
        cause = f"signal {Signals(-status).name}" if status < 0 else f"exit status {status}"
        seconds = time.monotonic() - task.started
        return EvaluationResult(
            task.request.trial, "killed", f"the worker ended with {cause}", seconds=seconds
        )

    def _overdue(self) -> list[EvaluationResult]:
        """Kill evaluations past their deadline."""
        results, now = [], time.monotonic()
        for slot, worker in enumerate(self._workers):
            # What has come is taken first: it may be this process that was held up, and no worker.
            if worker is None or worker.task is None or worker.connection.poll():
                continue
            # Starting is not the evaluation's time; it has a limit of its own.
            if not worker.ready:
                if now - worker.spawned_at > START_LIMIT_S:
                    self.close()
                    raise SearchError(
                        f"a worker was not ready after {START_LIMIT_S:.0f} s; see {self._log}"
                    )
            elif worker.task.deadline is not None and now > worker.task.deadline:
                task = worker.task
                message = f"killed after {now - task.started:.1f} s"
                self._replace(slot)
                results.append(
                    EvaluationResult(
                        task.request.trial, "timeout", message, seconds=now - task.started
                    )
                )
        return results

    def _pause(self, end: float | None) -> float:
        """Seconds until the next deadline, at most one."""
        due = [w.task.deadline for w in self._workers if w and w.task and w.task.deadline]
        due += [] if end is None else [end]
        # A second at most, so that a worker that hangs at its start is noticed too.
        return max(0.0, min([1.0, *(moment - time.monotonic() for moment in due)]))


def visible_gpus() -> list[str]:
    """Names by which CUDA_VISIBLE_DEVICES knows the GPUs this process may use."""
    import torch

    count = torch.cuda.device_count()
    # It may hold UUIDs (GPU-…, MIG-…), which are handed on as they are.
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in named.split(",") if name.strip()]
    return names[:count] if names else [str(index) for index in range(count)]


def make_evaluator(
    name: str,
    context: EvaluationContext,
    *,
    workers: int,
    kill_after_s: float | None,
    memory_limit: int | None,
    log: Path | None = None,
    ray_address: str | None = None,
) -> Evaluator:
    """Make an evaluator by name: "process", "serial" or "ray"."""
    check_evaluator(name, workers)
    if name == "serial":
        return SerialEvaluator(context)
    if name == "ray":
        from edgexnas.host.search.ray_evaluator import RayEvaluator

        return RayEvaluator(
            context, workers=workers, kill_after_s=kill_after_s, address=ray_address
        )
    return ProcessEvaluator(
        context, workers=workers, kill_after_s=kill_after_s, memory_limit=memory_limit, log=log
    )


def check_evaluator(name: str, workers: int) -> None:
    """Reject an unknown evaluator or an impossible number of workers."""
    known: Sequence[str] = EVALUATORS
    if name not in known:
        raise ConfigurationError(f"evaluator {name!r} is unknown; specify one of {list(known)}")
    if not is_whole(workers) or workers < 1:
        raise ConfigurationError(f"workers is {workers!r}; specify a whole number above 0")
    if name == "serial" and workers != 1:
        raise ConfigurationError(
            f"evaluator 'serial' runs one evaluation at a time and workers is {workers}; "
            "specify workers=1 or evaluator='process'"
        )
