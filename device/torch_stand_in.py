"""A torch network behind the interface of a TensorRT engine, for checks on a GPU without TensorRT.

It stands in for the engine stage in this folder's GPU scripts and is no engine of edgexnas: it
needs the network as a torch module, runs float32 or float16, and has none of TensorRT's fusions.
"""

from __future__ import annotations

import itertools
import time
from copy import deepcopy
from typing import Any

import numpy as np
import torch

from edgexnas.bundle import Precision
from edgexnas.device.cuda import CudaSession
from edgexnas.device.engines.device_engine import HostRuns, ladder, least_size
from edgexnas.errors import EngineError
from edgexnas.host.networks.bragg_models import NonLocalBlock


class _Array:
    """Device memory as torch takes it: an object with an array interface."""

    def __init__(self, pointer: int, shape: tuple[int, ...]) -> None:
        self.__cuda_array_interface__ = {
            "data": (pointer, False),
            "shape": shape,
            "typestr": "<f4",
            "version": 3,
        }


class TorchStandIn:
    """One torch module as a `DeviceEngine`.

    Parameters
    ----------
    network
        Takes (n, ...) and gives (n, ...) in the dtype of its weights.
    input_shape
        Shape of one item, such as (1, 11, 11).
    session
        The session to run in; torch runs in the same primary context.
    precision
        "float32" or "float16".
    batch
        Largest number of items of one run.
    sizes
        Numbers of items that it runs, ascending; None for a few up to `batch`.
    graph
        Whether `run` records CUDA graphs.
    tuned
        Whether to search the fastest kernels, layout and attention first, which takes seconds, as
        building a plan does.

    Attributes
    ----------
    seconds
        Duration of opening, with the first run of every size.
    device_memory_bytes
        Device memory that opening took: weights, intermediate results, buffers and graphs.
    """

    name = "torch stand-in"

    def __init__(
        self,
        network: torch.nn.Module,
        input_shape: tuple[int, ...],
        *,
        session: CudaSession,
        precision: Precision = "float16",
        batch: int = 32,
        sizes: tuple[int, ...] | None = None,
        graph: bool = True,
        tuned: bool = True,
    ) -> None:
        started = time.perf_counter()
        self.session = session
        self.precision: Precision = precision
        self.sizes = ladder(batch) if sizes is None else sizes
        self.any_count = False
        self.batch = self.sizes[-1]
        self.reason: str = "TensorRT does not run here, torch stands in"
        self.input_shape = tuple(input_shape)
        self._dtype = {"float32": torch.float32, "float16": torch.float16}[precision]
        self._closed = False
        before, _ = session.free_bytes()
        with session.current(), torch.inference_mode():
            torch.backends.cudnn.benchmark = tuned
            if tuned:
                self._network = self._fastest(network)
            else:
                self._network = deepcopy(network).eval().to("cuda", self._dtype)
            # Intermediate results in a pool of their own, so that a graph's memory stays its own.
            self._pool = torch.cuda.MemPool()
            with torch.cuda.use_mem_pool(self._pool):
                probe = torch.zeros((1, *input_shape), device="cuda", dtype=self._dtype)
                self.output_shape = tuple(self._network(probe).shape[1:])
                torch.cuda.synchronize()
        self._warm: set[tuple[int, int]] = set()
        self._streams: dict[int, torch.cuda.ExternalStream] = {}
        self._runs = HostRuns(self, graph=graph)
        self.seconds = time.perf_counter() - started
        self.device_memory_bytes = before - session.free_bytes()[0]

    def _fastest(self, network: torch.nn.Module) -> torch.nn.Module:
        """Take the faster of torch's two layouts, attention fused or not, and cuDNN's choices."""
        layouts, variants = [torch.contiguous_format], [network]
        if any(isinstance(part, torch.nn.Conv2d) for part in network.modules()):
            layouts.append(torch.channels_last)
        if any(isinstance(part, NonLocalBlock) for part in network.modules()):
            variants.append(_with_fused_attention(network))
        inputs = torch.zeros((self.batch, *self.input_shape), device="cuda", dtype=self._dtype)
        timed: list[tuple[float, int, torch.nn.Module]] = []
        for variant, layout in itertools.product(variants, layouts):
            placed: torch.nn.Module = deepcopy(variant).eval().to("cuda", self._dtype)
            placed = placed.to(memory_format=layout)  # type: ignore[call-overload]
            timed.append((_graph_seconds(placed, inputs), len(timed), placed))
        fastest = min(timed)[2]
        del timed, placed
        torch.cuda.empty_cache()
        return fastest

    def size_of(self, count: int) -> int:
        """Give the least size that holds `count` items."""
        return least_size(self.sizes, count)

    def enqueue(self, inputs: int, outputs: int, count: int, stream: Any, *, kept: int = 0) -> None:
        """Put one run into a stream; see `DeviceEngine.enqueue`."""
        if self._closed:
            raise EngineError(f"this {self.name} is closed; open a new one")
        size = self.size_of(count)
        external = self._streams.get(stream.handle)
        if external is None:
            external = self._streams[stream.handle] = torch.cuda.ExternalStream(  # type: ignore[no-untyped-call]
                stream.handle
            )
        with self.session.current(), torch.inference_mode(), torch.cuda.stream(external):
            fresh = (size, stream.handle) not in self._warm
            if fresh or torch.cuda.is_current_stream_capturing():
                with torch.cuda.use_mem_pool(self._pool):
                    self._compute(inputs, outputs, size)
                self._warm.add((size, stream.handle))
            else:
                self._compute(inputs, outputs, size)

    def _compute(self, inputs: int, outputs: int, size: int) -> None:
        source = torch.as_tensor(_Array(inputs, (size, *self.input_shape)), device="cuda")
        target = torch.as_tensor(_Array(outputs, (size, *self.output_shape)), device="cuda")
        target.copy_(self._network(source.to(self._dtype)))

    def run(self, inputs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Run on arrays of the host; see `Engine.run`."""
        return self._runs.run(inputs)

    def describe(self) -> dict[str, str | int]:
        """Say what stands in."""
        return {
            "engine": self.name,
            "version": torch.__version__,
            "precision": self.precision,
            "batch": self.batch,
            "gpu": f"{self.session.name}, {self.session.capability}",
            "cuda_graph": "yes" if self._runs.recorded else "no",
            "device_memory_bytes": self.device_memory_bytes,
            "reason": self.reason,
        }

    def close(self) -> None:
        """Release buffers and graphs."""
        self._closed = True
        self._runs.close()


class FusedAttention(torch.nn.Module):
    """A non-local block whose scores never reach memory, as TensorRT runs it."""

    def __init__(self, block: NonLocalBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x plus attention; shape unchanged."""
        block = self.block
        query, key, value = (
            projected(x).flatten(2).transpose(1, 2).contiguous()[:, None]
            for projected in (block.theta, block.phi, block.g)
        )
        mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=1.0)
        added: torch.Tensor = block.out(
            mixed[:, 0].transpose(1, 2).reshape(len(x), -1, *x.shape[2:])
        )
        return x + added


def _with_fused_attention(network: torch.nn.Module) -> torch.nn.Module:
    fused = deepcopy(network)
    for parent in list(fused.modules()):
        for name, part in list(parent.named_children()):
            if isinstance(part, NonLocalBlock):
                setattr(parent, name, FusedAttention(part))
    return fused


def _graph_seconds(network: torch.nn.Module, inputs: torch.Tensor) -> float:
    """Time 20 runs as a CUDA graph of torch's: without it, launches hide what kernels cost."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(side):
        for _ in range(3):
            network(inputs)
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        network(inputs)
    graph.replay()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(20):
        graph.replay()
    torch.cuda.synchronize()
    return time.perf_counter() - started
