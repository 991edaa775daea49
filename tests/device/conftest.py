"""A bundle whose network is known: the intensity centroid, written as an ONNX graph."""

from __future__ import annotations

import importlib.machinery
import socket
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgexnas.bragg import CENTRE, PATCH_SIZE, centroid, scale_patches
from edgexnas.bundle import (
    BraggPreprocessing,
    Bundle,
    Gate,
    Manifest,
    Precision,
    Provenance,
    Tensor,
    generate_keys,
    open_bundle,
    write_bundle,
)

HERE = Path(__file__).parent

FloatArray = npt.NDArray[np.float32]
MakeBundle = Callable[..., Path]

LEVELS = (0.05, 0.5, 0.95)
SPREAD = np.array([-0.1, 0.0, 0.1], np.float32)
SHAPE = (96, 128)
TRUTH_PX = np.array([[20.3, 30.6], [40.8, 100.2], [70.4, 60.4]])


def _moment_weights() -> FloatArray:
    """(3, 121): total, row moment and column moment of a patch about its centre pixel."""
    row, col = np.mgrid[:PATCH_SIZE, :PATCH_SIZE].astype(np.float32) - CENTRE
    return np.stack([np.ones_like(row), row, col]).reshape(3, -1)


def _quantised(constants: dict[str, Any]) -> tuple[list[onnx.NodeProto], str, str]:
    """Q/DQ pairs: one scale for the input, one a row of the weights; symmetric."""
    scales = np.abs(constants["weights"]).max(axis=1) / np.float32(127)
    constants |= {"input_scale": np.float32(1 / 127), "input_zero": np.int8(0)}
    constants |= {"weight_scale": scales, "weight_zero": np.zeros(len(scales), np.int8)}
    nodes = []
    for tensor, name in (("flat", "input"), ("weights", "weight")):
        parameters = [f"{name}_scale", f"{name}_zero"]
        axis = {"axis": 0} if name == "weight" else {}
        for operator, source in (("Quantize", tensor), ("Dequantize", f"{name}_Quantize")):
            nodes.append(
                helper.make_node(
                    f"{operator}Linear", [source, *parameters], [f"{name}_{operator}"], **axis
                )
            )
    return nodes, "input_Dequantize", "weight_Dequantize"


def _half(constants: dict[str, Any]) -> tuple[list[onnx.NodeProto], str, str]:
    constants["weights"] = constants["weights"].astype(np.float16)
    cast = helper.make_node("Cast", ["flat"], ["flat_half"], to=TensorProto.FLOAT16)
    return [cast], "flat_half", "weights"


def _centroid_model(precision: Precision = "float32", *, batch: int | str = "n") -> bytes:
    """ONNX file that predicts the centroid of a scaled patch minus, equal to and plus 0.1 px."""
    constants: dict[str, Any] = {
        "weights": _moment_weights(),
        "axis": np.array([2]),
        "sizes": np.array([1, 2]),
        "least": np.float32(1e-6),
        "spread": SPREAD,
    }
    nodes, data, weights = [], "flat", "weights"
    if precision == "int8":
        nodes, data, weights = _quantised(constants)
    elif precision == "float16":
        nodes, data, weights = _half(constants)
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["patches"], ["flat"], axis=1),
            *nodes,
            helper.make_node("Gemm", [data, weights], ["moments_any"], name="moments", transB=1),
            helper.make_node("Cast", ["moments_any"], ["moments"], to=TensorProto.FLOAT),
            helper.make_node("Split", ["moments", "sizes"], ["total", "firsts"], axis=1),
            helper.make_node("Max", ["total", "least"], ["divisor"]),
            helper.make_node("Div", ["firsts", "divisor"], ["centroid"]),
            helper.make_node("Unsqueeze", ["centroid", "axis"], ["column"]),
            helper.make_node("Add", ["column", "spread"], ["offsets_px"]),
        ],
        "centroid",
        [helper.make_tensor_value_info("patches", TensorProto.FLOAT, [batch, 1, 11, 11])],
        [helper.make_tensor_value_info("offsets_px", TensorProto.FLOAT, [batch, 2, 3])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def _gaussian_patches(count: int, *, seed: int = 0) -> FloatArray:
    """(n, 11, 11) float32 counts of round spots within 0.5 px of the patch's centre."""
    rng = np.random.default_rng(seed)
    row, col = rng.uniform(-0.5, 0.5, (2, count, 1, 1)) + CENTRE
    rows, cols = np.mgrid[:PATCH_SIZE, :PATCH_SIZE]
    spots = rng.uniform(50, 5000, (count, 1, 1)) * np.exp(-((rows - row) ** 2) / 2.5)
    return (spots * np.exp(-((cols - col) ** 2) / 2.5)).astype(np.float32)


def _spot_frame(
    positions: npt.ArrayLike = TRUTH_PX, *, level: float = 5.0, seed: int = 0
) -> npt.NDArray[np.uint16]:
    """(96, 128) uint16 counts: Poisson background and round spots of 2000 counts."""
    rows, cols = np.mgrid[: SHAPE[0], : SHAPE[1]]
    frame = np.full(SHAPE, float(level))
    for row, col in np.asarray(positions).reshape(-1, 2):
        frame += 2000 * np.exp(-((rows - row) ** 2 + (cols - col) ** 2) / 2.5)
    return np.random.default_rng(seed).poisson(frame).astype(np.uint16)


def _bragg_manifest(**changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "task": "bragg",
        "model_id": "centroid",
        "sequence": 1,
        "created": datetime(2025, 1, 1, tzinfo=timezone.utc),
        "architecture": "centroid",
        "parameters": 363,
        "quantile_levels": LEVELS,
        "inputs": (
            Tensor(name="patches", shape=("n", 1, 11, 11), unit="1", axes=("n", "1", "row", "col")),
        ),
        "outputs": (
            Tensor(name="offsets_px", shape=("n", 2, 3), unit="px", axes=("n", "row, col", "q")),
        ),
        "preprocessing": BraggPreprocessing(),
        "accuracy": (),
        "gate": Gate(unit="px", float32=1e-3, float16=0.02, int8=0.05),
        "provenance": Provenance(
            seed=0, data_digest="0" * 64, data_source="tests", configuration={}, versions={}
        ),
    }
    return Manifest(**(fields | changes))


@pytest.fixture(scope="session")
def centroid_model() -> Callable[..., bytes]:
    """`centroid_model(precision, batch="n")` gives an ONNX file."""
    return _centroid_model


@pytest.fixture(scope="session")
def gaussian_patches() -> Callable[..., FloatArray]:
    """`gaussian_patches(count, seed=0)` gives (n, 11, 11) counts."""
    return _gaussian_patches


@pytest.fixture(scope="session")
def spot_frame() -> Callable[..., npt.NDArray[np.uint16]]:
    """`spot_frame(positions=truth_px, level=5, seed=0)` gives (96, 128) counts."""
    return _spot_frame


@pytest.fixture(scope="session")
def bragg_manifest() -> Callable[..., Manifest]:
    """`bragg_manifest(**changes)` gives the manifest of the centroid bundle."""
    return _bragg_manifest


@pytest.fixture(scope="session")
def truth_px() -> npt.NDArray[np.float64]:
    """(3, 2) positions of the spots of `spot_frame`."""
    return TRUTH_PX


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a key pair named «edgexnas»."""
    folder = tmp_path_factory.mktemp("keys")
    generate_keys(folder)
    return folder


@pytest.fixture(scope="session")
def make_bundle(keys: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeBundle:
    """Write a bundle; precisions and fields of the manifest can be given."""

    def make(
        precisions: tuple[Precision, ...] = ("float32", "float16", "int8"), **changes: Any
    ) -> Path:
        inputs = scale_patches(_gaussian_patches(64, seed=1))
        outputs = (centroid(inputs) - CENTRE)[:, :, None] + SPREAD
        return write_bundle(
            tmp_path_factory.mktemp("bundle") / "centroid.edgex",
            manifest=_bragg_manifest(precisions=precisions, **changes),
            models={precision: _centroid_model(precision) for precision in precisions},
            reference={"input": inputs[:, None], "output": outputs},
            signing_key=keys / "edgexnas.key.pem",
        )

    return make


@pytest.fixture(scope="session")
def bundle_path(make_bundle: MakeBundle) -> Path:
    return make_bundle()


@pytest.fixture(scope="session")
def bundle(bundle_path: Path, keys: Path) -> Bundle:
    return open_bundle(bundle_path, trust=keys)


@pytest.fixture(scope="session")
def fake_cuda_module(load_module: Callable[[Path], ModuleType]) -> ModuleType:
    """The module of the GPU that is none; `install(monkeypatch, ...)` puts one in place."""
    return load_module(HERE / "cuda" / "fake_cuda.py")


@pytest.fixture
def fake_cuda(fake_cuda_module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A discrete GPU, SM87, that is none."""
    return fake_cuda_module.install(monkeypatch)


@pytest.fixture
def host_copies(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is copied from ordinary to pinned memory on its way to a GPU."""
    from edgexnas.device.cuda.host_copy import HostCopy

    copied: list[Any] = []
    original = HostCopy.parts

    def parts(self: HostCopy, source: Any, target: Any) -> Any:
        copied.append(source)
        return original(self, source, target)

    monkeypatch.setattr(HostCopy, "parts", parts)
    return copied


@pytest.fixture
def fake_tensorrt(
    fake_cuda: Any, load_module: Callable[[Path], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """`fake_tensorrt(version="10.3.0", name="tensorrt", cuda=fake_cuda)` installs a TensorRT."""
    module = load_module(HERE / "engines" / "fake_tensorrt.py")

    def install(version: str = "10.3.0", name: str = "tensorrt", cuda: Any = fake_cuda) -> Any:
        from edgexnas.device.engines import tensorrt_library

        library = module.make(cuda, version=version, name=name)
        library.__spec__ = importlib.machinery.ModuleSpec(name, None, origin="fake")
        monkeypatch.setitem(sys.modules, name, library)
        monkeypatch.setattr(tensorrt_library, "LIBRARIES", (name,))
        # The real library of this name keeps its one logger.
        own_journals = cache(tensorrt_library._journal_of.__wrapped__)
        monkeypatch.setattr(tensorrt_library, "_journal_of", own_journals)
        return library

    return install


@pytest.fixture(scope="session")
def epics_network() -> Iterator[dict[str, str]]:
    """An EPICS network that ends at this machine and meets that of no other process.

    It belongs to the session: pvapy reads it when a process's first channel is opened, and again
    only when all channels are gone.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    settings = {
        "EPICS_PVAS_INTF_ADDR_LIST": "127.0.0.1",
        "EPICS_PVA_ADDR_LIST": "127.0.0.1",
        "EPICS_PVA_AUTO_ADDR_LIST": "NO",
        "EPICS_PVA_BROADCAST_PORT": port,
        "EPICS_PVAS_BROADCAST_PORT": port,
        "EPICS_PVA_SERVER_PORT": "0",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        yield settings
