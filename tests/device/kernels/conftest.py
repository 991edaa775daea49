from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent

FEWER_THREADS = {
    "object.cu": {"FIT_THREADS": 128},
    "patterns.cu": {"THREADS": 64},
    "refine.cu": {"THREADS": 32},
}
"""Blocks that fill a multiprocessor cost time on the CPU and do nothing more."""


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"kernel_tests_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the kernels that g++ compiled are kept for all tests, of all processes of a run."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return tmp_path_factory.mktemp("kernels")
    folder = tmp_path_factory.getbasetemp().parent / "kernels"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The GPU that `session` is on, which can be made to fail."""
    return _load(HERE.parent / "cuda" / "fake_cuda.py").install(monkeypatch)


@pytest.fixture
def session(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A CUDA session: without a GPU, unless a module asks for one."""
    from edgexnas.device.cuda import CudaSession, why_no_cuda

    if getattr(request, "param", "stand-in") == "stand-in":
        request.getfixturevalue("kernels_on_cpu")
    elif (obstacle := why_no_cuda()) is not None:
        pytest.skip(f"no CUDA device: {obstacle}")
    with CudaSession() as opened:
        yield opened


@pytest.fixture
def kernels_on_cpu(monkeypatch: pytest.MonkeyPatch, libraries: Path, fake_gpu: Any) -> None:
    """Let modules of the GPU that is none hold kernels that run on the CPU."""
    from edgexnas.device.kernels import (
        check_kernels,
        kernel_set,
        object_kernels,
        pattern_kernels,
        peak_kernels,
        refine_kernels,
    )

    on_cpu = _load(HERE / "kernels_on_cpu.py")
    modules = {
        "peaks.cu": peak_kernels,
        "checks.cu": check_kernels,
        "patterns.cu": pattern_kernels,
        "object.cu": object_kernels,
        "refine.cu": refine_kernels,
    }

    def compile_for_cpu(
        source: str, capability: str, definitions: Any, *, cache: Any = None
    ) -> Any:
        names = list(modules[source].SIGNATURES)
        fewer = FEWER_THREADS.get(source, {})
        macros = {**definitions, **{name: str(threads) for name, threads in fewer.items()}}
        return on_cpu.build(libraries, source, macros, names)

    # As bytes where a cache kept it.
    fake_gpu.driver.module_from_buffer = lambda library: on_cpu.ModuleOnCpu(
        fake_gpu, Path(os.fsdecode(library))
    )
    monkeypatch.setattr(kernel_set, "compile_kernels", compile_for_cpu)
    monkeypatch.setattr(peak_kernels, "CUT_BLOCKS", 12)
    monkeypatch.setattr(peak_kernels, "DECODE_BLOCKS", 3)
    monkeypatch.setattr(check_kernels, "JUDGE_BLOCKS", 2)
    monkeypatch.setattr(check_kernels, "APPLY_BLOCKS", 2)
    for source, fewer in FEWER_THREADS.items():
        for name, threads in fewer.items():
            monkeypatch.setattr(modules[source], name, threads)


@pytest.fixture
def place_engine() -> Callable[..., Any]:
    """Make an engine whose answer shows which patch it got."""
    return _load(HERE / "place_engine.py").PlaceEngine


@pytest.fixture
def predictor(
    session: Any, place_engine: Callable[..., Any], bundle_path: Path, keys: Path
) -> Iterator[Any]:
    """A predictor whose engine is on the GPU that is none."""
    from edgexnas.device import Predictor

    opened: Any = Predictor(bundle_path, trust=keys, engine="onnxruntime", cache=False)
    opened.engine.close()
    opened._shared.engine = place_engine(session)
    yield opened
    opened.close()
