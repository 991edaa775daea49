"""Run a whole Bragg network as one kernel. A `DeviceEngine`."""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from edgexnas.bragg import PATCH_SIZE
from edgexnas.device.cuda import CudaSession
from edgexnas.device.engines.device_engine import HostRuns, OnSession, ladder
from edgexnas.device.engines.fused.graph import read_network
from edgexnas.device.engines.fused.network import UnsuitableNetworkError
from edgexnas.device.engines.fused.program import RESERVED_BYTES, write_program
from edgexnas.device.kernels.compilation import compile_kernels
from edgexnas.errors import EngineError

if TYPE_CHECKING:
    from edgexnas.bundle import Bundle, Precision
    from edgexnas.device.cache import EngineCache
    from edgexnas.device.cuda import DeviceBuffer

__all__ = ["FusedEngine", "FusedKernel", "build_fused_kernel", "open_fused", "parts_digest"]

SOURCE = "fused.cu"
KERNEL = "run_network"
SIGNATURE = "PPPiP"

KIND = "fused"
FORMAT = 1
"""Of what the cache keeps; a change makes kernels anew."""

LEAST_CAPABILITY = 80
"""Asynchronous copies and the tensor cores' instructions came with compute capability 8.0."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FusedKernel:
    """A compiled network.

    It is executable code: run only one that was compiled on the device or checked since.

    Attributes
    ----------
    image
        The cubin.
    weights
        What the kernel copies to shared memory.
    shared_bytes, threads, items, levels
        As of `Program`.
    seconds
        Duration of the build.
    """

    image: bytes = field(repr=False)
    weights: bytes = field(repr=False)
    shared_bytes: int
    threads: int
    items: int
    levels: int
    seconds: float = 0.0


def build_fused_kernel(model: bytes, capability: str, shared_bytes: int) -> FusedKernel:
    """Write and compile the kernel of a network.

    Parameters
    ----------
    model
        ONNX of a verified bundle: float16, or INT8 with Q/DQ.
    capability
        Compute capability of the GPU, as "SM87".
    shared_bytes
        Shared memory that a block may have there.

    Raises
    ------
    UnsuitableNetworkError
        If it is no network that the fused engine knows, or does not fit.
    EngineError
        If there is no CUDA compiler, or it reports an error.
    """
    started = time.monotonic()
    try:
        program = write_program(read_network(model), shared_bytes)
    except EngineError:
        raise
    # A graph may hold what nobody thought of: that makes it another network, and no fault.
    except Exception as error:
        raise UnsuitableNetworkError(
            f"the fused engine does not know this network ({type(error).__name__}: {error}); "
            "specify engine='tensorrt' or 'auto'"
        ) from error
    image = compile_kernels(SOURCE, capability, program.definitions, appended=program.source)
    return FusedKernel(
        image, program.weights, program.shared_bytes, program.threads, program.items,
        program.levels, time.monotonic() - started,
    )  # fmt: skip


def open_fused(
    bundle: Bundle,
    *,
    precision: Precision,
    batch: int,
    reason: str,
    cache: EngineCache | None = None,
    session: CudaSession | None = None,
) -> FusedEngine:
    """Open the fused engine; see `open_engine`.

    Parameters
    ----------
    bundle
        A verified bundle for Bragg peaks.
    precision
        "float16" or "int8".
    batch, reason
        As of `open_engine`.
    cache
        Where compiled networks are kept; None to compile each time.
    session
        The session to run in; None for one that the engine owns.

    Raises
    ------
    UnsuitableNetworkError
        If the network is another one, or does not fit this GPU.
    EngineError
        If there is no GPU or no compiler.
    MissingDependencyError
        If pycuda is not installed.
    """
    if bundle.manifest.task != "bragg":
        raise UnsuitableNetworkError(
            f"the fused engine runs networks for Bragg peaks, bundle {bundle.manifest.model_id} "
            f"is for {bundle.manifest.task}; specify engine='tensorrt' or 'auto'"
        )
    if precision == "float32":
        raise UnsuitableNetworkError(
            "the fused engine computes in float16 and int8; specify precision='float16' or 'int8'"
        )
    own = CudaSession() if session is None else session
    try:
        if int(own.capability.removeprefix("SM")) < LEAST_CAPABILITY:
            raise UnsuitableNetworkError(
                f"the fused engine needs compute capability 8.0 or more, {own.name} has "
                f"{own.capability}; specify engine='tensorrt' or 'auto'"
            )
        room = _block_bytes(own)
        key: dict[str, object] = {
            "bundle": bundle.digest,
            "model": hashlib.sha256(bundle.models[precision]).hexdigest(),
            "precision": precision,
            "format": FORMAT,
            "capability": own.capability,
            "shared_bytes": room,
            "parts": parts_digest(),
        }
        kernel, origin = _kept(cache, key), "from the cache"
        if kernel is None:
            try:
                kernel = build_fused_kernel(bundle.models[precision], own.capability, room)
            except UnsuitableNetworkError as error:
                if cache is not None:
                    # So that the next start need not read the network to find this out.
                    cache.store(KIND, key, {"unsuitable": str(error)}, b"")
                raise
            origin = f"compiled in {kernel.seconds:.1f} s"
            if cache is not None:
                described = {
                    "weights": len(kernel.weights), "shared_bytes": kernel.shared_bytes,
                    "threads": kernel.threads, "items": kernel.items, "levels": kernel.levels,
                }  # fmt: skip
                cache.store(KIND, key, described, kernel.weights + kernel.image)
        engine = FusedEngine(
            kernel,
            session=own,
            precision=precision,
            batch=batch,
            reason=f"{reason}; its kernel is {origin}",
        )
    except BaseException:
        if session is None:
            own.close()
        raise
    engine.owns_session = session is None
    if cache is not None:
        engine.discard_built = lambda: cache.discard(KIND, key)
    return engine


@cache
def parts_digest() -> str:
    """Tell one version of the kernel's parts, and of what composes them, from another."""
    from pathlib import Path

    from edgexnas.device.engines.fused import graph, images, network, program
    from edgexnas.device.kernels import compilation

    files = [Path(compilation.__file__).parent / SOURCE]
    files += [Path(str(module.__file__)) for module in (graph, images, network, program)]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _kept(cache: EngineCache | None, key: dict[str, object]) -> FusedKernel | None:
    entry = None if cache is None else cache.load(KIND, key)
    if entry is None:
        return None
    described, content = entry
    if "unsuitable" in described:
        raise UnsuitableNetworkError(described["unsuitable"])
    weights = int(described.pop("weights"))
    return FusedKernel(content[weights:], content[:weights], **described)


def _block_bytes(session: CudaSession) -> int:
    """Shared memory that one block may have on this GPU."""
    driver = session.driver_module
    with session.current():
        device = driver.Context.get_device()
        most = driver.device_attribute.MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
        return int(device.get_attribute(most))


class FusedEngine(OnSession):
    """One Bragg network as one kernel, on a GPU. A `DeviceEngine` that takes any count at once.

    Parameters
    ----------
    kernel
        What `build_fused_kernel` returned on this device.
    session
        The session to run in.
    precision
        Arithmetic of the model, for `describe`.
    batch
        Largest number of items of `run`.
    reason
        Why this engine was chosen, for `describe`.
    graph
        Whether `run` records CUDA graphs.

    Attributes
    ----------
    device_memory_bytes
        Device memory that weights and buffers take.

    Raises
    ------
    EngineError
        If the kernel is not for this GPU, or the GPU has not enough memory.
    """

    name = "fused"
    any_count = True

    def __init__(
        self,
        kernel: FusedKernel,
        *,
        session: CudaSession,
        precision: Precision,
        batch: int = 32,
        reason: str = "fused was requested",
        graph: bool = True,
    ) -> None:
        super().__init__()
        self.session = session
        self.precision = precision
        self.batch = batch
        self.reason = reason
        self.kernel = kernel
        self.sizes = ladder(batch)
        self.input_shape: tuple[int, ...] = (1, PATCH_SIZE, PATCH_SIZE)
        self.output_shape: tuple[int, ...] = (2, kernel.levels)
        self._function: Any = None
        self._weights: DeviceBuffer | None = None
        try:
            packed = np.frombuffer(kernel.weights, np.uint8)
            self._weights = session.device_buffer(packed.shape, np.uint8)
            self._weights.upload(packed)
            self._load()
            self._runs = HostRuns(self, graph=graph)
        except BaseException:
            self._release()
            raise
        self.device_memory_bytes = len(kernel.weights) + self._runs.buffer_bytes

    def _load(self) -> None:
        driver, kernel = self.session.driver_module, self.kernel
        module = self.session.module(kernel.image)
        with self.session.current():
            self._function = module.get_function(KERNEL)
            self._function.prepare(SIGNATURE)
            # More than 48 kB of shared memory is for kernels that ask for it.
            attribute = driver.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._function.set_attribute(attribute, kernel.shared_bytes)
            attributes = driver.device_attribute
            device = driver.Context.get_device()
            multiprocessors, shared, threads, registers = (
                int(device.get_attribute(attribute))
                for attribute in (
                    attributes.MULTIPROCESSOR_COUNT,
                    attributes.MAX_SHARED_MEMORY_PER_MULTIPROCESSOR,
                    attributes.MAX_THREADS_PER_MULTIPROCESSOR,
                    attributes.MAX_REGISTERS_PER_MULTIPROCESSOR,
                )
            )
            each = min(
                shared // (kernel.shared_bytes + RESERVED_BYTES),
                threads // kernel.threads,
                registers // (kernel.threads * max(1, int(self._function.num_regs))),
            )
        # As many blocks as run at once: each goes on to further items with its weights in place.
        self._most_blocks = multiprocessors * max(1, each)

    def enqueue(self, inputs: int, outputs: int, count: int, stream: Any, *, kept: int = 0) -> None:
        """Put one run into a stream; see `DeviceEngine.enqueue`. `count` may exceed `batch`."""
        if self._function is None or self._weights is None:
            raise EngineError("this fused engine is closed; open a new one")
        kernel = self.kernel
        blocks = min(-(-count // kernel.items), self._most_blocks)
        with self.session.current():
            self._function.prepared_async_call(
                (blocks, 1), (kernel.threads, 1, 1), stream, inputs, self._weights.pointer,
                outputs, count, kept, shared_size=kernel.shared_bytes,
            )  # fmt: skip

    def describe(self) -> dict[str, str | int]:
        """Say what runs: GPU, precision, batch, how the kernel is laid out, and why."""
        return {
            "engine": self.name,
            "precision": self.precision,
            "batch": self.batch,
            "gpu": f"{self.session.name}, {self.session.capability}",
            "cuda": self.session.driver,
            "threads": self.kernel.threads,
            "items_per_block": self.kernel.items,
            "shared_bytes": self.kernel.shared_bytes,
            "cuda_graph": "yes" if self._runs is not None and self._runs.recorded else "no",
            "device_memory_bytes": self.device_memory_bytes,
            "reason": self.reason,
        }

    def _release(self) -> None:
        super()._release()
        if self._weights is not None:
            self._weights.close()
            self._weights = None
        # Left to the garbage collector, the module may go in a thread that cannot free it.
        with self.session.releasing():
            self._function = None
