"""The CUDA sources compiled by g++ against `cuda_on_cpu.h`, behind pycuda's interface."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import edgexnas.device.kernels as kernels

HERE = Path(__file__).parent
SOURCES = Path(kernels.__file__).parent
CTYPES = {"P": ctypes.c_void_p, "i": ctypes.c_int, "d": ctypes.c_double, "f": ctypes.c_float}


class KernelOnCpu:
    """A `pycuda.driver.Function` whose launches are put into a fake stream."""

    def __init__(self, fake: Any, launcher: Any) -> None:
        self._fake = fake
        self._launcher = launcher
        self._types: list[Any] = []
        self.num_regs = 64
        self.most_shared_bytes = 48 << 10

    def set_attribute(self, attribute: str, value: int) -> None:
        assert attribute == "MAX_DYNAMIC_SHARED_SIZE_BYTES"
        self.most_shared_bytes = value

    def prepare(self, signature: str) -> None:
        self._types = [CTYPES[letter] for letter in signature]

    def prepared_async_call(
        self,
        grid: tuple[int, int],
        block: tuple[int, int, int],
        stream: Any,
        *given: Any,
        shared_size: int = 0,
    ) -> None:
        assert shared_size <= self.most_shared_bytes
        assert len(given) == len(self._types)
        values = [kind(value) for kind, value in zip(self._types, given, strict=True)]
        pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        assert grid[1] == block[1] == block[2] == 1

        def run() -> None:
            assert values
            self._launcher(grid[0], block[0], pointers)

        self._fake.enqueue(stream, "launch", run)


class ModuleOnCpu:
    """A `pycuda.driver.Module` over a shared library."""

    def __init__(self, fake: Any, library: Path) -> None:
        self._fake = fake
        self._library = ctypes.CDLL(str(library))

    def get_function(self, name: str) -> KernelOnCpu:
        return KernelOnCpu(self._fake, getattr(self._library, f"launch_{name}"))


def build(
    folder: Path,
    source: str,
    definitions: Mapping[str, str],
    names: list[str],
    *,
    appended: str = "",
) -> Path:
    """Compile a source of the package with g++; skip the test where there is none."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed, which runs CUDA kernels on the CPU for this test")
    pixel = definitions.get("PIXEL", "")
    tag = "".join(letter for letter in pixel if letter.isalpha())
    if appended or not pixel:
        tag = hashlib.sha256(f"{definitions}{appended}".encode()).hexdigest()[:16]
    library = folder / f"{Path(source).stem}-{tag}.so"
    with library.with_suffix(".lock").open("w") as lock:
        # Another process of the same run may be compiling it.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            _compile(compiler, library, source, definitions, names, appended)
    return library


def _compile(
    compiler: str,
    library: Path,
    source: str,
    definitions: Mapping[str, str],
    names: list[str],
    appended: str,
) -> None:
    program, draft = library.with_suffix(".cpp"), library.with_suffix(".draft")
    exports = "\n".join(f"EXPORT({name})" for name in names)
    program.write_text(f'#include "cuda_on_cpu.h"\n#include "{source}"\n{appended}\n{exports}\n')
    # No contraction here either; aliasing is what CUDA allows. A composed kernel runs once or
    # twice, so that it takes longer to optimise than to run as it is.
    flags = [
        "-O0" if appended else "-O1",
        "-std=c++17",
        "-fPIC",
        "-shared",
        "-ffp-contract=off",
        "-fno-strict-aliasing",
        "-w",
    ]
    macros = [f"-D{name}={value}" for name, value in definitions.items()]
    command = [compiler, *flags, *macros, f"-I{HERE}", f"-I{SOURCES}", program, "-o", draft]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    draft.rename(library)
