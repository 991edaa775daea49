"""CUDA kernels around the network: from frames to patches, from outputs to positions and objects.

Importing this package loads no CUDA library; compiling and launching kernels does.
"""

from edgexnas.device.kernels.compilation import compile_kernels
from edgexnas.device.kernels.object_kernels import ObjectKernels
from edgexnas.device.kernels.pattern_kernels import PatternKernels
from edgexnas.device.kernels.peak_kernels import PeakKernels

__all__ = ["ObjectKernels", "PatternKernels", "PeakKernels", "compile_kernels"]
