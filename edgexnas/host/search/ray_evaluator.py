"""Evaluations on a Ray cluster: one warm actor a worker, on whatever node has room.

DeepHyper's own Ray evaluator is not used: a dead worker ends its search after three silent
retries, and nothing ends an evaluation that hangs.
"""

from __future__ import annotations

import os
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import cloudpickle  # type: ignore[import-untyped]

from edgexnas.errors import MissingDependencyError, SearchError
from edgexnas.host.search.evaluation import EvaluationContext, EvaluationRequest, EvaluationResult

__all__ = ["RayEvaluator"]

START_LIMIT_S = 600.0
"""A cluster that has no room for a worker by then has none."""


@dataclass
class _Slot:
    """One worker: its actor, whether that has started, and what it does since when."""

    actor: Any
    ready: Any
    started: bool = False
    request: EvaluationRequest | None = None
    reference: Any = None
    since: float = 0.0


class RayEvaluator:
    """Each evaluation in an actor of its own, with a limit on time.

    Actors stay warm between evaluations and hold the data; one that was killed or has died is
    replaced, on another node if its own has gone. The same version of edgexnas must be installed
    on every node. Where the cluster has GPUs, each actor gets an equal share of one.

    Parameters
    ----------
    address
        Of the cluster, such as "auto" or "10.0.0.1:6379"; None takes the environment's
        ``RAY_ADDRESS`` and, without that, starts a cluster on this machine.
    """

    def __init__(
        self,
        context: EvaluationContext,
        *,
        workers: int,
        kill_after_s: float | None = None,
        address: str | None = None,
    ) -> None:
        self._ray = _import_ray()
        self.capacity = workers
        self._kill_after_s = kill_after_s
        self._connected = not self._ray.is_initialized()
        if self._connected:
            # As Ray itself does, so that a job script need not edit a configuration.
            self._connect(address or os.environ.get("RAY_ADDRESS"))
        # Put once, so that a node fetches the data once and not with every request.
        self._context = self._ray.put(cloudpickle.dumps(context))
        gpus = self._ray.cluster_resources().get("GPU", 0.0)
        share = min(1.0, gpus / workers) if context.device in ("auto", "cuda") else 0.0
        # Without restarts and retries a death is reported, as it is by the other evaluators.
        self._actor = self._ray.remote(
            num_cpus=1, num_gpus=share, max_restarts=0, max_task_retries=0
        )(_RayWorker)
        self._slots = [self._spawn() for _ in range(workers)]
        self._queue: deque[EvaluationRequest] = deque()
        self._waiting_since = time.monotonic()

    def submit(self, request: EvaluationRequest) -> None:
        """Queue a request for the next worker that is ready."""
        busy = sum(slot.request is not None for slot in self._slots) + len(self._queue)
        if busy >= self.capacity:
            raise SearchError(
                f"all {self.capacity} workers are busy; collect a result before submitting"
            )
        self._queue.append(request)

    def collect(self, timeout_s: float | None = None) -> list[EvaluationResult]:
        """Wait for at least one result, or until the time-out, and return those there are."""
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            self._dispatch()
            results = self._overdue()
            busy = [slot for slot in self._slots if slot.request is not None]
            if results or not (busy or self._queue):
                return results
            left = 1.0 if end is None else min(1.0, max(0.0, end - time.monotonic()))
            starting = [slot.ready for slot in self._slots if not slot.started]
            awaited = [slot.reference for slot in busy] + (starting if self._queue else [])
            done, _ = self._ray.wait(awaited, num_returns=1, timeout=left)
            results = [self._finish(slot) for slot in busy if slot.reference in done]
            if results or (end is not None and time.monotonic() >= end):
                return results

    def close(self) -> None:
        """Kill all workers and leave the cluster, unless the caller had joined it before."""
        for slot in self._slots:
            with suppress(Exception):
                self._ray.kill(slot.actor)
        self._slots = []
        self._queue.clear()
        if self._connected:
            self._ray.shutdown()

    def _connect(self, address: str | None) -> None:
        try:
            self._ray.init(
                address=address,
                # Ray rejects a number of CPUs for a cluster that is there already.
                num_cpus=self.capacity if address is None else None,
                include_dashboard=False if address is None else None,
                log_to_driver=False,
                logging_level="warning",
            )
        except Exception as error:
            raise SearchError(
                f"the Ray cluster {address or 'on this machine'} cannot be reached "
                f"({str(error).splitlines()[0]}); check ray_address and `ray status`"
            ) from error

    def _spawn(self) -> _Slot:
        actor = self._actor.remote(self._context)
        return _Slot(actor, actor.ready.remote())

    def _replace(self, slot: _Slot) -> None:
        with suppress(Exception):
            self._ray.kill(slot.actor)
        self._slots[self._slots.index(slot)] = self._spawn()

    def _dispatch(self) -> None:
        """Send queued requests to idle workers that have started."""
        for slot in list(self._slots):
            if not slot.started and self._ray.wait([slot.ready], timeout=0)[0]:
                self._started(slot)
            if slot.started and slot.request is None and self._queue:
                slot.request, slot.since = self._queue.popleft(), time.monotonic()
                slot.reference = slot.actor.evaluate.remote(cloudpickle.dumps(slot.request))
        if any(slot.started for slot in self._slots) or not self._queue:
            self._waiting_since = time.monotonic()
        elif time.monotonic() - self._waiting_since > START_LIMIT_S:
            raise SearchError(
                f"no worker of the Ray cluster has started in {START_LIMIT_S:.0f} s; free CPUs or "
                "add nodes"
            )

    def _started(self, slot: _Slot) -> None:
        try:
            self._ray.get(slot.ready)
        except self._ray.exceptions.RayActorError:
            # Its node went away while it started.
            self._replace(slot)
        except self._ray.exceptions.RayError as error:
            raise SearchError(
                f"a worker of the Ray cluster cannot start ({str(error).strip().splitlines()[-1]})"
                "; install the same edgexnas on every node"
            ) from error
        else:
            slot.started = True

    def _finish(self, slot: _Slot) -> EvaluationResult:
        request = slot.request
        assert request is not None
        try:
            result: EvaluationResult = cloudpickle.loads(self._ray.get(slot.reference))
        except self._ray.exceptions.RayError as error:
            self._replace(slot)
            # Ray's memory monitor ends a worker before the kernel would, and says so by this error.
            starved = isinstance(error, self._ray.exceptions.OutOfMemoryError)
            message = str(error).strip().splitlines()[0]
            seconds = time.monotonic() - slot.since
            return EvaluationResult(
                request.trial, "memory" if starved else "killed", message, seconds=seconds
            )
        slot.request = slot.reference = None
        return result

    def _overdue(self) -> list[EvaluationResult]:
        """Kill evaluations past their deadline."""
        results, now = [], time.monotonic()
        for slot in list(self._slots):
            spent = now - slot.since
            limit = slot.request.kill_limit(self._kill_after_s) if slot.request else None
            if slot.request and limit is not None and spent > limit:
                # What has come is taken: it may be this process that was held up.
                if self._ray.wait([slot.reference], timeout=0)[0]:
                    continue
                self._replace(slot)
                message = f"killed after {spent:.1f} s"
                results.append(
                    EvaluationResult(slot.request.trial, "timeout", message, seconds=spent)
                )
        return results


class _RayWorker:
    """Lives on a node and evaluates one request after another."""

    def __init__(self, context: bytes) -> None:
        import torch

        torch.set_num_threads(1)
        self._context: EvaluationContext = cloudpickle.loads(context)
        # Takes seconds that no evaluation should pay for; it tells what goes wrong all the same.
        with suppress(Exception):
            _ = self._context.training_data

    def ready(self) -> bool:
        return True

    def evaluate(self, request: bytes) -> bytes:
        from edgexnas.host.search.evaluation import evaluate

        result: bytes = cloudpickle.dumps(evaluate(cloudpickle.loads(request), self._context))
        return result


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise MissingDependencyError.of("ray", extra="ray", purpose="evaluator='ray'") from error
    return ray
