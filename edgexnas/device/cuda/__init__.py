"""CUDA through pycuda and cuda-bindings: one context a process, buffers, streams, graphs.

Importing this package loads neither library; opening a `CudaSession` does.
"""

from edgexnas.device.cuda.buffers import DeviceBuffer, StagedBuffer
from edgexnas.device.cuda.double_buffer import DoubleBuffer, Slot
from edgexnas.device.cuda.graph import CudaGraph
from edgexnas.device.cuda.pinned_memory import PinnedMemory, PinnedPool
from edgexnas.device.cuda.primary_context import why_no_cuda
from edgexnas.device.cuda.session import CudaSession

__all__ = [
    "CudaGraph",
    "CudaSession",
    "DeviceBuffer",
    "DoubleBuffer",
    "PinnedMemory",
    "PinnedPool",
    "Slot",
    "StagedBuffer",
    "why_no_cuda",
]
