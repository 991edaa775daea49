"""Every kernel compiles for the Orin and for the GPU that checks run on, without spills."""

from __future__ import annotations

import numpy as np
import pytest

from edgexnas.device.cache import EngineCache
from edgexnas.device.kernels import (
    check_kernels,
    compilation,
    compile_kernels,
    object_kernels,
    pattern_kernels,
    peak_kernels,
    refine_kernels,
)
from edgexnas.device.kernels.compilation import (
    PIXEL_TYPES,
    kernel_resources,
    nvcc_path,
    pixel_definitions,
)
from edgexnas.errors import ConfigurationError, EngineError

NAMES = {
    "peaks.cu": set(peak_kernels.SIGNATURES),
    "checks.cu": set(check_kernels.SIGNATURES),
    "patterns.cu": set(pattern_kernels.SIGNATURES),
    "object.cu": set(object_kernels.SIGNATURES),
}
needs_nvcc = pytest.mark.skipif(
    nvcc_path() is None, reason="nvcc of the CUDA toolkit is not installed"
)


@needs_nvcc
@pytest.mark.parametrize(
    ("source", "capability", "dtype"),
    [
        *((source, capability, np.uint16) for source in NAMES for capability in ("87", "90")),
        ("peaks.cu", "87", np.uint8),
        ("peaks.cu", "87", np.float32),
    ],
)
def test_every_kernel_compiles_without_spills(source, capability, dtype, record_property):
    resources = kernel_resources(source, capability, pixel_definitions(dtype))
    assert {kernel.name for kernel in resources} == NAMES[source]
    for kernel in resources:
        record_property(f"sm_{capability}", str(kernel))
        assert kernel.spilled_bytes == 0, kernel
        # Four blocks of 256 threads on each multiprocessor, or one of 1,024.
        assert 0 < kernel.registers <= 64, kernel
        assert kernel.shared_bytes <= (8192 if kernel.name != "fit_patches" else 32768), kernel


@needs_nvcc
@pytest.mark.parametrize("capability", ["87", "90"])
@pytest.mark.parametrize(("side", "modes"), [(64, 1), (128, 3), (192, 2), (320, 5)])
def test_refinement_compiles_without_spills_for_every_side(side, modes, capability):
    macros = refine_kernels.refine_definitions(side, modes)
    resources = kernel_resources("refine.cu", capability, macros)
    assert {kernel.name for kernel in resources} == set(refine_kernels.SIGNATURES)
    for kernel in resources:
        assert kernel.spilled_bytes == 0, kernel
        assert 0 < kernel.registers <= 64, kernel
        assert kernel.shared_bytes <= refine_kernels.MOST_BYTES, kernel


@needs_nvcc
def test_cubins_are_kept_in_the_cache_and_made_anew_for_another_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(compilation, "_by_nvrtc", lambda *_: None)
    cache = EngineCache(tmp_path / "cache")
    definitions = pixel_definitions(np.float32)
    first = compile_kernels("patterns.cu", "SM87", definitions, cache=cache)
    assert first[:4] == b"\x7fELF"
    monkeypatch.setattr(compilation, "nvcc_path", lambda: None)
    assert compile_kernels("patterns.cu", "SM87", definitions, cache=cache) == first
    with pytest.raises(EngineError, match="no CUDA compiler"):
        compile_kernels("patterns.cu", "SM90", definitions, cache=cache)


@needs_nvcc
def test_a_gpu_that_the_compiler_does_not_know_is_one_sentence(monkeypatch):
    monkeypatch.setattr(compilation, "_by_nvrtc", lambda *_: None)
    with pytest.raises(EngineError, match=r"rejects patterns\.cu for sm_12345"):
        compile_kernels("patterns.cu", "SM12345", pixel_definitions(np.uint16))


def test_the_bounds_of_each_dtype_are_its_own():
    assert pixel_definitions(np.int16)["PIXEL_MIN"] == "(-32768.0)"
    assert pixel_definitions(np.uint32)["PIXEL_MAX"] == "(4294967295.0)"
    for dtype in PIXEL_TYPES:
        assert pixel_definitions(dtype)["PIXEL"] == PIXEL_TYPES[dtype]
    with pytest.raises(ConfigurationError, match=r"complex64 .* specify uint8"):
        pixel_definitions(np.complex64)
