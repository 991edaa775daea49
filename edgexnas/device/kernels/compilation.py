"""Compile the CUDA sources of this folder for one GPU: by NVRTC, or by nvcc where it is missing."""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgexnas.errors import ConfigurationError, EngineError

if TYPE_CHECKING:
    from edgexnas.device.cache import EngineCache

__all__ = [
    "PIXEL_TYPES",
    "KernelResources",
    "compile_kernels",
    "kernel_resources",
    "nvcc_path",
    "pixel_definitions",
]

PIXEL_TYPES: Mapping[np.dtype[Any], str] = {
    # Other dtypes take the CPU's way: each type here is one more compilation to keep and test.
    np.dtype(np.uint8): "unsigned char",
    np.dtype(np.uint16): "unsigned short",
    np.dtype(np.int16): "short",
    np.dtype(np.uint32): "unsigned int",
    np.dtype(np.int32): "int",
    np.dtype(np.float32): "float",
}
"""The dtypes of frames and patterns that kernels are compiled for."""

_FOLDER = Path(__file__).parent
# Fused multiply-adds would round otherwise than the CPU implementations do.
_FLAGS = ("-fmad=false", "-std=c++17")

_USAGE = re.compile(
    r"entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads"
    r".*?Used (\d+) registers(?:[^\n]*?(\d+) bytes smem)?",
    re.DOTALL,
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KernelResources:
    """What one kernel takes of a multiprocessor, as the assembler reports it.

    Attributes
    ----------
    name
        Of the kernel.
    registers
        Of each thread.
    shared_bytes
        Shared memory of each block.
    spilled_bytes
        What each thread stores to and loads from memory for want of registers.
    """

    name: str
    registers: int
    shared_bytes: int
    spilled_bytes: int


def pixel_definitions(dtype: npt.DTypeLike) -> dict[str, str]:
    """Return the macros that fit a source to frames of one dtype.

    Raises
    ------
    ConfigurationError
        If there are no kernels for this dtype.
    """
    dtype = np.dtype(dtype)
    if dtype not in PIXEL_TYPES:
        known = ", ".join(str(known) for known in PIXEL_TYPES)
        raise ConfigurationError(f"there are no CUDA kernels for {dtype} frames; specify {known}")
    is_float = dtype.kind == "f"
    low, high = (0, 0) if is_float else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return {
        "PIXEL": PIXEL_TYPES[dtype],
        "PIXEL_IS_FLOAT": str(int(is_float)),
        "PIXEL_MIN": f"({float(low)!r})",
        # Infinity, which NVRTC has no header for.
        "PIXEL_MAX": "__int_as_float(0x7f800000)" if is_float else f"({float(high)!r})",
    }


def nvcc_path() -> str | None:
    """Find the CUDA compiler: on PATH, or where the CUDA toolkit puts it."""
    toolkit = Path("/usr/local/cuda/bin/nvcc")
    return shutil.which("nvcc") or (str(toolkit) if toolkit.is_file() else None)


def compile_kernels(
    source: str,
    capability: str,
    definitions: Mapping[str, str] | None = None,
    *,
    appended: str = "",
    cache: EngineCache | None = None,
) -> bytes:
    """Compile one source of this folder to a cubin.

    Parameters
    ----------
    source
        "peaks.cu", "checks.cu", "patterns.cu", "object.cu", "refine.cu" or "fused.cu".
    capability
        Compute capability of the GPU, as "SM87".
    definitions
        Macros, such as `pixel_definitions` gives.
    appended
        Code that follows the source, for kernels that are composed of its parts.
    cache
        Where cubins are kept between starts; None for nowhere.

    Raises
    ------
    EngineError
        If neither NVRTC nor nvcc is installed, or the compiler reports an error.
    """
    text = (_FOLDER / source).read_text() + appended
    macros = dict(definitions or {})
    # All that changes the code: a cubin for another GPU or other flags must not be found.
    key = {
        "source": hashlib.sha256(text.encode()).hexdigest(),
        "definitions": macros,
        "flags": list(_FLAGS),
        "capability": capability,
    }
    kept = None if cache is None else cache.load("kernels", key)
    if kept is not None:
        return kept[1]
    options = [*_FLAGS, *(f"-D{name}={value}" for name, value in macros.items())]
    architecture = f"sm_{capability.removeprefix('SM')}"
    _log.info("compiling the CUDA kernels of %s for %s", source, architecture)
    # NVRTC first: it needs no toolkit and no process of its own.
    image = _by_nvrtc(text, source, architecture, options)
    if image is None:
        image, _ = _run_nvcc(text, source, architecture, options)
    if cache is not None:
        cache.store("kernels", key, {"source": source}, image)
    return image


def kernel_resources(
    source: str,
    capability: str,
    definitions: Mapping[str, str] | None = None,
    *,
    appended: str = "",
) -> list[KernelResources]:
    """Compile one source with nvcc, for a GPU that need not be there, and report its kernels.

    Raises
    ------
    EngineError
        If nvcc is not installed or reports an error.
    """
    options = [*_FLAGS, *(f"-D{name}={value}" for name, value in (definitions or {}).items())]
    text = (_FOLDER / source).read_text() + appended
    architecture = f"sm_{capability.removeprefix('SM')}"
    _, said = _run_nvcc(text, source, architecture, [*options, "-Xptxas", "-v"])
    # Each kernel's report starts with its name, so that none reaches into the next.
    reports = [_USAGE.search(part) for part in re.split("(?=Compiling entry)", said)]
    return [
        KernelResources(
            report[1], int(report[4]), int(report[5] or 0), int(report[2]) + int(report[3])
        )
        for report in reports
        if report is not None
    ]


def _by_nvrtc(text: str, name: str, architecture: str, options: list[str]) -> bytes | None:
    """Compile in this process; None where the library is not there."""
    try:
        nvrtc: Any = import_module("cuda.bindings.nvrtc")
        outcome, program = nvrtc.nvrtcCreateProgram(text.encode(), name.encode(), 0, [], [])
    except (ImportError, RuntimeError) as error:
        # cuda-bindings looks for libnvrtc at the first call, and raises RuntimeError without it.
        _log.debug("NVRTC cannot be used: %s", error)
        return None
    if int(outcome):
        return None
    given = [option.encode() for option in (f"-arch={architecture}", *options)]
    (outcome,) = nvrtc.nvrtcCompileProgram(program, len(given), given)
    if int(outcome):
        _, size = nvrtc.nvrtcGetProgramLogSize(program)
        said = b" " * size
        nvrtc.nvrtcGetProgramLog(program, said)
        nvrtc.nvrtcDestroyProgram(program)
        raise _compiler_error(name, architecture, said.decode(errors="replace"))
    _, size = nvrtc.nvrtcGetCUBINSize(program)
    image = b" " * size
    nvrtc.nvrtcGetCUBIN(program, image)
    nvrtc.nvrtcDestroyProgram(program)
    return bytes(image)


def _run_nvcc(text: str, name: str, architecture: str, options: list[str]) -> tuple[bytes, str]:
    """Compile in a process of its own; return the cubin and what the compiler said."""
    compiler = nvcc_path()
    if compiler is None:
        raise EngineError(
            "there is no CUDA compiler for the kernels; install NVRTC (pip install "
            "nvidia-cuda-nvrtc) or the CUDA toolkit's nvcc"
        )
    with tempfile.TemporaryDirectory() as folder:
        written, image = Path(folder) / name, Path(folder) / "image.cubin"
        written.write_text(text)
        command = [compiler, f"-arch={architecture}", *options, "-cubin", "-o"]
        command += [str(image), str(written)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise _compiler_error(name, architecture, done.stderr)
        return image.read_bytes(), done.stderr


def _compiler_error(name: str, architecture: str, said: str) -> EngineError:
    # The first error: those after it mostly follow from it.
    errors = [line for line in said.splitlines() if "error" in line] or said.split("\n")[:1]
    return EngineError(
        f"the CUDA compiler rejects {name} for {architecture}: {errors[0].strip()}; "
        "use a GPU and a toolkit that fit each other"
    )
