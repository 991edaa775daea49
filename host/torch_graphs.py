"""Networks as float16 CUDA graphs in torch, copies in and out included: a stand-in for TensorRT."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Sequence

import torch
from torch import nn

__all__ = ["LAYOUTS", "TorchGraph", "fastest_graph"]

LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}


class TorchGraph:
    """A network, its batch and its results on the GPU, captured once and replayed.

    A replay is one call to the driver and one wait, so what the host adds is as small as it gets.

    Parameters
    ----------
    model
        It is copied.
    shape
        Of the batch.
    layout
        "NCHW" or "NHWC".

    Raises
    ------
    SystemExit
        If a result is not finite.
    """

    def __init__(self, model: nn.Module, shape: Sequence[int], layout: str) -> None:
        self.layout = layout
        memory = LAYOUTS[layout]
        self._model = copy.deepcopy(model).eval().half().cuda()
        # The stubs do not know this keyword.
        self._model.to(memory_format=memory)  # type: ignore[call-overload]
        self._inputs = torch.zeros(tuple(shape), dtype=torch.float16, device="cuda")
        self._inputs = self._inputs.to(memory_format=memory)
        self._pinned = torch.empty_like(self._inputs, device="cpu", pin_memory=True)
        self._pinned.copy_(torch.rand(tuple(shape)))
        self._stream = _stream()
        with torch.inference_mode():
            for _ in range(5):
                self._inputs.copy_(self._pinned, non_blocking=True)
                self._outputs = self._model(self._inputs)
            self._results = torch.empty_like(self._outputs, device="cpu", pin_memory=True)
            torch.cuda.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=self._stream):
                self._inputs.copy_(self._pinned, non_blocking=True)
                self._outputs = self._model(self._inputs)
                self._results.copy_(self._outputs, non_blocking=True)
        self.replay()
        if not torch.isfinite(self._results.float()).all():
            raise SystemExit(f"{type(model).__name__} gave a number that is not finite")

    def replay(self) -> None:
        """Run one inference, from host memory to host memory, and wait for it."""
        self._graph.replay()
        self._stream.synchronize()

    def device_ms(self, runs: int, in_a_row: int = 10) -> list[float]:
        """Time of one replay by the GPU's own clock, without what the host adds.

        Parameters
        ----------
        runs
            Values to return.
        in_a_row
            Replays that are queued at once for each value, so that the GPU does not wait.
        """
        values = []
        for _ in range(runs):
            began, ended = (_event() for _ in range(2))
            began.record()
            for _ in range(in_a_row):
                self._graph.replay()
            ended.record()
            ended.synchronize()
            values.append(began.elapsed_time(ended) / in_a_row)
        return values


def fastest_graph(model: nn.Module, shape: Sequence[int], rounds: int = 20) -> TorchGraph:
    """Capture a network in both memory layouts with cuDNN's fastest algorithms; take the faster."""
    torch.backends.cudnn.benchmark = True
    graphs = [TorchGraph(model, shape, layout) for layout in LAYOUTS]
    times: list[list[float]] = [[] for _ in graphs]
    for _ in range(rounds):
        for graph, record in zip(graphs, times, strict=True):
            began = time.perf_counter()
            for _ in range(10):
                graph.replay()
            record.append(time.perf_counter() - began)
    medians = [statistics.median(record) for record in times]
    return graphs[medians.index(min(medians))]


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _stream() -> torch.cuda.Stream:
    """One stream for all graphs, made the current one: choosing it anew costs each replay time."""
    if torch.cuda.current_stream() == torch.cuda.default_stream():
        torch.cuda.set_stream(torch.cuda.Stream())  # type: ignore[no-untyped-call]
    return torch.cuda.current_stream()
