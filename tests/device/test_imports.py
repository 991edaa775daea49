from __future__ import annotations

import subprocess
import sys

HEAVY = (
    *("torch", "deephyper", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx", "h5py"),
    *("pycuda", "cuda", "cuda.bindings", "numba", "llvmlite"),
)

STREAMS = ("pvaccess", "zmq", "hdf5plugin", "h5py", "scipy")


def _loaded_after(statement: str) -> list[str]:
    """Names of the heavy libraries that a fresh interpreter has loaded after a statement."""
    program = f"{statement}\nimport sys\nprint(*[n for n in {HEAVY} if n in sys.modules])"
    command = [sys.executable, "-c", program]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


def test_importing_the_device_package_loads_no_heavy_library() -> None:
    assert _loaded_after("import edgexnas.device") == []


def test_asking_for_every_public_name_loads_no_heavy_library() -> None:
    every_name = "import edgexnas.device as d\n[getattr(d, name) for name in d.__all__]"
    assert _loaded_after(every_name) == []


def test_importing_the_cuda_package_loads_no_cuda() -> None:
    assert _loaded_after("import edgexnas.device.cuda") == []


def test_the_predictor_is_reached_from_the_package_root() -> None:
    assert _loaded_after("import edgexnas\nedgexnas.device.Predictor") == []


def test_importing_the_sources_loads_no_library_of_a_stream() -> None:
    every_module = (
        "import pkgutil, edgexnas.device.sources as s\n"
        "for m in pkgutil.iter_modules(s.__path__): __import__(f'{s.__name__}.{m.name}')"
    )
    program = f"{every_module}\nimport sys\nprint(*[n for n in {STREAMS} if n in sys.modules])"
    command = [sys.executable, "-c", program]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.split() == []


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    program = "import edgexnas.device\nassert not hasattr(edgexnas.device, 'Trainer')"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_public_names_are_listed() -> None:
    program = "import edgexnas.device as d\nassert {'Predictor', 'build_plan'} <= set(dir(d))"
    subprocess.run([sys.executable, "-c", program], check=True)
