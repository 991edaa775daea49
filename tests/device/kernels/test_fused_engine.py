"""A whole network as one kernel gives what its ONNX gives; what it does not know it rejects."""

from __future__ import annotations

import importlib.util
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgexnas import testing
from edgexnas.bundle import Gate, write_bundle
from edgexnas.device import Predictor
from edgexnas.device.engines import selection
from edgexnas.device.engines.fused import engine as fused
from edgexnas.device.engines.fused.graph import read_network
from edgexnas.device.engines.fused.network import UnsuitableNetworkError
from edgexnas.device.engines.fused.program import write_program
from edgexnas.device.kernels.compilation import kernel_resources, nvcc_path
from edgexnas.errors import EngineError
from edgexnas.host.networks.bragg_models import (
    BRAGGNN_DENSE,
    BraggNN,
    CnnBragg,
    MlpBragg,
    QuantileHead,
)
from edgexnas.host.networks.symmetric_mlp import (
    MirroredMlp,
    mlp_bragg_mirrored,
    mlp_bragg_smooth,
    mlp_bragg_symmetric,
)

HERE = Path(__file__).parent
BLOCK_BYTES = {"87": 163 << 10, "90": 227 << 10}


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


networks, on_cpu = _load("fused_networks"), _load("kernels_on_cpu")

NETWORKS: dict[str, Callable[[], torch.nn.Module]] = {
    "mlpBragg 50x5": lambda: MlpBragg(50, 5),
    "mlpBraggSymmetric 23x3": lambda: mlp_bragg_symmetric(23, 3),
    "mlpBraggSmooth 20x2": lambda: mlp_bragg_smooth(20, 2),
    "mlpBraggMirrored 24x2": lambda: mlp_bragg_mirrored(24, 2),
    "cnnBragg 16x4": lambda: CnnBragg(16, 4),
    "cnnBragg 8x10, residual": lambda: CnnBragg(8, 10),
    "BraggNN 33k": BraggNN,
    "BraggNN 45k": lambda: BraggNN(BRAGGNN_DENSE["large"]),
}
PRECISIONS = ("float16", "int8")
EVERY = [
    pytest.param(name, precision, marks=[pytest.mark.long] if "45k" in name else [])
    for name in NETWORKS
    for precision in PRECISIONS
]
_MODELS: dict[tuple[str, str], bytes] = {}


def model_of(name: str, precision: str) -> bytes:
    """ONNX of a network, exported once."""
    if (name, precision) not in _MODELS:
        torch.manual_seed(1)
        made = networks.lively(NETWORKS[name]())
        float32 = model_of(name, "float32") if precision == "int8" else None
        _MODELS[name, precision] = networks.exported(made, precision, float32)
    return _MODELS[name, precision]


def reference(model: bytes, given: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    # Fused layers of onnxruntime round between INT8 layers in other places.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model, options)
    (answer,) = session.run(None, {session.get_inputs()[0].name: given})
    return np.asarray(answer)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, libraries: Path, fake_gpu: Any) -> list[str]:
    """Compile networks for the CPU, behind a GPU that is none; the sources that were compiled."""
    sources: list[str] = []

    def compile_for_cpu(
        source: str, capability: str, definitions: Any, *, appended: str, cache: Any = None
    ) -> bytes:
        sources.append(appended)
        names = [fused.KERNEL]
        return str(on_cpu.build(libraries, source, definitions, names, appended=appended)).encode()

    def module(image: bytes | Path) -> Any:
        return on_cpu.ModuleOnCpu(fake_gpu, Path(os.fsdecode(image)))

    monkeypatch.setattr(fused, "compile_kernels", compile_for_cpu)
    fake_gpu.driver.module_from_buffer = module
    return sources


@pytest.fixture
def session(compiled: list[str]) -> Iterator[Any]:
    from edgexnas.device.cuda import CudaSession

    with CudaSession() as opened:
        yield opened


def opened(session: Any, model: bytes, *, batch: int = 4) -> fused.FusedEngine:
    """Open an engine, which runs every size of batch once."""
    kernel = fused.build_fused_kernel(model, session.capability, BLOCK_BYTES["87"])
    return fused.FusedEngine(kernel, session=session, precision="int8", batch=batch)


def answers(session: Any, model: bytes, given: np.ndarray) -> np.ndarray:
    return np.asarray(opened(session, model, batch=len(given)).run(given))


@pytest.mark.parametrize(("name", "precision"), EVERY)
def test_it_is_as_close_to_float32_as_onnxruntime(session: Any, name: str, precision: str) -> None:
    # A few: a lane of a tensor core is a coroutine here.
    given = networks.patches(4 if "BraggNN" in name else 16)
    truth = reference(model_of(name, "float32"), given)
    usual = np.abs(reference(model_of(name, precision), given) - truth).mean()
    got = answers(session, model_of(name, precision), given)
    assert got.shape == truth.shape
    assert np.abs(got - truth).mean() < 1.5 * usual + 1e-4


# SiLU is no sum: the GPU's exponential and numpy's round otherwise.
@pytest.mark.parametrize(
    "name",
    [n for n in NETWORKS if not any(silu in n for silu in ("BraggNN", "Smooth", "Mirrored"))],
)
def test_int8_sums_are_those_of_whole_numbers(session: Any, name: str) -> None:
    model, given = model_of(name, "int8"), networks.patches(16, seed=4)
    network = read_network(model)
    raw = networks.run_integers(network, given)[network.head.source][:, :, 0, 0]
    raw = raw.reshape(len(given), 2, network.head.levels)
    expected = raw[:, :, network.head.middle]
    got = answers(session, model, given)[:, :, network.head.middle]
    if network.head.centroid is not None:
        centroid = reference(model, given)[:, :, network.head.middle]
        # The centroid is added in float; what is left is the network.
        got, expected = got - centroid, expected - expected
        np.testing.assert_allclose(got, expected, atol=2e-3)
        return
    # The last layer is in float; a single step of int8 before it would show a hundred times more.
    np.testing.assert_allclose(got, expected, atol=2e-5)


def test_a_patchs_images_are_averaged_over_int8_sums_of_whole_numbers(session: Any) -> None:
    torch.manual_seed(3)
    network = MirroredMlp(21, 2)
    # ReLU, because SiLU is no sum.
    network.hidden[1], network.hidden[3] = torch.nn.ReLU(), torch.nn.ReLU()
    model, given = networks.exported(networks.lively(network), "int8"), networks.patches(9, seed=4)
    read = read_network(model)
    raw = networks.run_integers(read, given)[read.head.source][:, read.head.middle, 0, 0]
    mirrors = raw.reshape(len(given), 4, 2)
    expected = (mirrors[:, :2].sum(axis=1) - mirrors[:, 2:].sum(axis=1)) / 4
    got = answers(session, model, given)
    np.testing.assert_allclose(got[:, :, read.head.middle], expected, atol=2e-5)
    np.testing.assert_allclose(got, reference(model, given), atol=2e-3)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_mirrored_patches_have_mirrored_quantiles(session: Any, precision: str) -> None:
    engine = opened(session, model_of("mlpBraggMirrored 24x2", precision), batch=5)
    given = networks.patches(5)
    plain = engine.run(given)
    row, column = plain[:, 0], plain[:, 1]
    for images, expected in (
        (given[:, :, ::-1], (-row[:, ::-1], column)),
        (given[..., ::-1], (row, -column[:, ::-1])),
        (given.transpose(0, 1, 3, 2), (column, row)),
    ):
        got = engine.run(np.ascontiguousarray(images))
        # Sums of the same numbers in another order.
        np.testing.assert_allclose(got, np.stack(expected, axis=1), atol=2e-6)


def test_every_count_is_computed_and_nothing_behind_it(session: Any) -> None:
    model = model_of("mlpBraggSymmetric 23x3", "float16")
    engine = opened(session, model, batch=40)
    given = networks.patches(300)
    expected = engine.run(given[:40])
    for count in (1, 7, 8, 9, 40):
        np.testing.assert_array_equal(engine.run(given[:count]), expected[:count])
    inputs = session.device_buffer(given.shape, np.float32)
    outputs = session.device_buffer((300, 2, 3), np.float32)
    inputs.upload(given)
    # Beyond `batch`, and with more items than blocks that run at once.
    engine.enqueue(inputs.pointer, outputs.pointer, 300, session.compute)
    session.synchronize()
    whole = outputs.download()
    np.testing.assert_array_equal(whole[:40], expected)
    np.testing.assert_allclose(whole, reference(model, given), atol=4e-3)


def test_a_count_that_only_the_gpu_knows_limits_the_work(session: Any) -> None:
    model = model_of("mlpBragg 50x5", "int8")
    engine = opened(session, model)
    given = networks.patches(64)
    inputs, kept = (
        session.device_buffer(given.shape, np.float32),
        session.device_buffer((1,), np.int32),
    )
    inputs.upload(given)
    for number in (0, 1, 37, 64, 99):
        kept.upload(np.array([number], np.int32))
        outputs = session.device_buffer((64, 2, 3), np.float32)
        engine.enqueue(inputs.pointer, outputs.pointer, 64, session.compute, kept=kept.pointer)
        session.synchronize()
        written = (outputs.download() != 0).any((1, 2))
        assert written.tolist() == [index < number for index in range(64)]


@pytest.mark.long
@settings(deadline=None, max_examples=20)
@given(
    units=st.integers(3, 70),
    layers=st.integers(1, 3),
    levels=st.sampled_from([(0.5,), (0.05, 0.5, 0.95), (0.1, 0.3, 0.5, 0.7)]),
    symmetric=st.booleans(),
    filters=st.integers(0, 20),
)
def test_networks_of_any_size_are_computed(
    tmp_path_factory: Any,
    units: int,
    layers: int,
    levels: tuple[float, ...],
    symmetric: bool,
    filters: int,
) -> None:
    make = mlp_bragg_symmetric if symmetric else MlpBragg
    network = CnnBragg(filters, layers, levels) if filters else make(units, layers, levels)
    model = networks.exported(networks.lively(network), "float16")
    program = write_program(read_network(model), BLOCK_BYTES["87"])
    library = on_cpu.build(
        tmp_path_factory.mktemp("sizes"), fused.SOURCE, program.definitions, [fused.KERNEL],
        appended=program.source,
    )  # fmt: skip
    given = networks.patches(5)
    got = run_alone(library, program, given)
    np.testing.assert_allclose(got, reference(model, given), atol=6e-3)


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("mlpBraggSymmetric 23x3", "int8"),
        ("mlpBraggMirrored 24x2", "int8"),
        ("mlpBragg 50x5", "int8"),
        ("cnnBragg 8x10, residual", "int8"),
        ("BraggNN 33k", "float16"),
    ],
)
def test_no_warp_runs_ahead_of_another(libraries: Path, name: str, precision: str) -> None:
    """A block that goes on to further items gives the same, whichever warp runs first."""
    program = write_program(read_network(model_of(name, precision)), BLOCK_BYTES["87"])
    given = networks.patches(3 * program.items)
    library = on_cpu.build(
        libraries, fused.SOURCE, program.definitions, [fused.KERNEL], appended=program.source
    )
    answers = [run_alone(library, program, given, blocks=1, last_first=last) for last in (0, 1)]
    np.testing.assert_array_equal(*answers)


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("cnnBragg 16x4", "int8"),
        pytest.param("cnnBragg 8x10, residual", "float16", marks=pytest.mark.long),
        pytest.param("BraggNN 33k", "float16", marks=pytest.mark.long),
        pytest.param("BraggNN 33k", "int8", marks=pytest.mark.long),
    ],
)
def test_a_patch_gives_the_same_alone_and_among_those_that_a_block_takes_together(
    libraries: Path, name: str, precision: str
) -> None:
    program = write_program(read_network(model_of(name, precision)), BLOCK_BYTES["90"])
    together = int(program.definitions["TOGETHER"])
    assert together > 1
    library = on_cpu.build(
        libraries, fused.SOURCE, program.definitions, [fused.KERNEL], appended=program.source
    )
    given = networks.patches(together + 2)
    one_by_one = run_alone(library, program, given, blocks=len(given))
    for blocks in (1, 2):
        np.testing.assert_array_equal(run_alone(library, program, given, blocks=blocks), one_by_one)


@pytest.mark.parametrize("capability", ["87", "90"])
@pytest.mark.parametrize(("name", "precision"), EVERY)
def test_patches_that_are_taken_together_cost_no_block(
    name: str, precision: str, capability: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, room = read_network(model_of(name, precision)), BLOCK_BYTES[capability]
    sizes = [write_program(network, room).shared_bytes]
    monkeypatch.setattr("edgexnas.device.engines.fused.program.MOST_TOGETHER", 1)
    sizes.append(write_program(network, room).shared_bytes)
    blocks = [(room + 1024) // (size + 1024) for size in sizes]
    assert blocks[0] == blocks[1] > 0


def run_alone(
    library: Path, program: Any, given: np.ndarray, *, blocks: int = 2, last_first: int = 0
) -> np.ndarray:
    import ctypes

    answer = np.full((len(given), 2, program.levels), np.nan, np.float32)
    weights = np.frombuffer(program.weights, np.uint8).copy()
    values: list[Any] = [ctypes.c_void_p(array.ctypes.data) for array in (given, weights, answer)]
    values += [ctypes.c_int(len(given)), ctypes.c_void_p(0)]
    pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
    loaded = ctypes.CDLL(str(library))
    turns = ctypes.c_int.in_dll(loaded, "last_first")
    turns.value = last_first
    getattr(loaded, f"launch_{fused.KERNEL}")(blocks, program.threads, pointers)
    # Others may have loaded it too.
    turns.value = 0
    return answer


@pytest.mark.skipif(nvcc_path() is None, reason="nvcc of the CUDA toolkit is not installed")
@pytest.mark.parametrize("capability", ["87", "90"])
@pytest.mark.parametrize(
    ("name", "precision"),
    [
        *itertools.product(("mlpBraggMirrored 24x2", "cnnBragg 16x4", "BraggNN 33k"), PRECISIONS),
        ("mlpBragg 50x5", "float16"),
    ],
)
def test_it_compiles_for_the_orin_without_spills(
    name: str, precision: str, capability: str
) -> None:
    program = write_program(read_network(model_of(name, precision)), BLOCK_BYTES[capability])
    (kernel,) = kernel_resources(
        fused.SOURCE, capability, program.definitions, appended=program.source
    )
    assert kernel.name == fused.KERNEL
    assert kernel.spilled_bytes == 0
    assert kernel.registers * program.threads <= 65536
    assert program.shared_bytes <= BLOCK_BYTES["87"]


# What is rejected.


def refusal(
    network: torch.nn.Module | bytes, precision: str = "float16", room: int = BLOCK_BYTES["87"]
) -> str:
    model = network if isinstance(network, bytes) else networks.exported(network, precision)
    with pytest.raises(UnsuitableNetworkError) as caught:
        write_program(read_network(model), room)
    return str(caught.value)


def with_first(node: Any) -> bytes:
    """mlpBragg behind one more node, which makes "before" of "patches"."""
    model = onnx.load_from_string(model_of("mlpBragg 50x5", "float16"))
    (given,) = model.graph.input
    for old in model.graph.node:
        old.input[:] = ["before" if name == given.name else name for name in old.input]
    node.input[:], node.output[:] = [given.name], ["before"]
    model.graph.node.insert(0, node)
    return bytes(model.SerializeToString())


def with_constant(name: str, shape: tuple[int, ...], change: Callable[[Any], Any]) -> bytes:
    """A network of which the one stored array of this shape is another."""
    model = onnx.load_from_string(model_of(name, "float16"))
    (stored,) = (t for t in model.graph.initializer if tuple(t.dims) == shape)
    array = change(onnx.numpy_helper.to_array(stored).copy())
    stored.CopyFrom(onnx.numpy_helper.from_array(array, stored.name))
    return bytes(model.SerializeToString())


class Odd(torch.nn.Module):
    """An MLP with one step that a plain one does not have."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.first, self.second = torch.nn.Linear(121, 16), torch.nn.Linear(16, 16)
        self.head = QuantileHead(16)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(patches.flatten(1)))
        y = self.second(x)
        if self.how == "residual":
            y = x + torch.relu(y)
        elif self.how == "gain alone":
            y = torch.relu(y) * 0.3
        elif self.how == "gain before":
            y = x + torch.relu(y * -0.7)
        offsets: torch.Tensor = self.head(y)
        return offsets


class Unmirrored(MirroredMlp):
    """One whose images are not averaged."""

    def __init__(self) -> None:
        super().__init__(8, 1)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        images = torch.index_select(patches.flatten(1), 1, self.images).reshape(-1, 121)
        offsets: torch.Tensor = self.head(self.hidden(images))
        return offsets


def test_a_residual_between_dense_layers_is_each_items_own(session: Any) -> None:
    model = networks.exported(networks.lively(Odd("residual")), "float16")
    given = networks.patches(12)
    np.testing.assert_allclose(answers(session, model, given), reference(model, given), atol=4e-3)


def test_a_fault_of_reading_is_another_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(model: bytes) -> None:
        raise KeyError("axis")

    monkeypatch.setattr(fused, "read_network", fault)
    with pytest.raises(UnsuitableNetworkError, match=r"KeyError: 'axis'\); specify engine="):
        fused.build_fused_kernel(b"", "SM87", 1 << 16)


def test_weights_that_are_nan_are_rejected() -> None:
    model = with_constant("mlpBragg 50x5", (50, 121), lambda weights: weights * np.nan)
    assert "are NaN" in refusal(model)


def test_a_network_that_does_not_fit_is_rejected() -> None:
    message = refusal(model_of("mlpBragg 50x5", "float16"), room=20 << 10)
    assert "bytes of shared memory, this GPU has 20480" in message


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (lambda: Unmirrored(), "averages nothing, or the other way round"),
        (
            lambda: with_constant(
                "mlpBraggMirrored 24x2", (968,), lambda places: np.roll(places, 121)
            ),
            "gathers other things than the eight images of patches",
        ),
        (lambda: Odd("gain alone"), "is multiplied by is added to nothing"),
        (lambda: Odd("gain before"), "is a second activation"),
        (lambda: CnnBragg(1, 9), "adds what does not fit"),
        (
            lambda: with_first(onnx.helper.make_node("Sigmoid", [], [])),
            "it has no Sigmoid as in before",
        ),
        (
            lambda: with_first(onnx.helper.make_node("AveragePool", [], [], kernel_shape=[3, 3])),
            "it has no AveragePool",
        ),
        (
            lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(121, 6)),
            "no row of quan",
        ),
    ],
)
def test_another_network_is_rejected_by_name(network: Any, said: str) -> None:
    made = network()
    message = refusal(made if isinstance(made, bytes) else networks.lively(made))
    assert said in message
    assert "specify engine='tensorrt' or 'auto'" in message


def test_ptychography_is_rejected(session: Any, tmp_path: Path, keys: Path) -> None:
    path = testing.write_visible_bundle(tmp_path / "p.edgex", signing_key=keys / "edgexnas.key.pem")
    with pytest.raises(UnsuitableNetworkError, match=r"bundle .* is for ptycho; specify engine="):
        Predictor(path, trust=keys, engine="fused", precision="float16", cache=False)


def test_float32_is_rejected(session: Any, bragg: Path, keys: Path) -> None:
    with pytest.raises(EngineError, match=r"float16 and int8; specify precision='float16'"):
        Predictor(bragg, trust=keys, engine="fused", precision="float32", cache=False)


# In the product.


@pytest.fixture(scope="session")
def bragg(tmp_path_factory: pytest.TempPathFactory, keys: Path) -> Path:
    """A bundle of mlpBragg with random weights."""
    name = "mlpBragg 50x5"
    given = networks.patches(64, seed=2)
    float32 = model_of(name, "float32")
    models = {"float32": float32} | {p: model_of(name, p) for p in PRECISIONS}
    reference_arrays = {"input": given, "output": reference(float32, given)}
    path: Path = tmp_path_factory.mktemp("fused") / "mlp.edgex"
    gate = Gate(unit="px", float32=1e-3, float16=0.02, int8=0.2)
    manifest = testing.centroid_manifest(gate=gate, precisions=tuple(models))
    return write_bundle(
        path,
        manifest=manifest,
        models=models,
        reference=reference_arrays,
        signing_key=keys / "edgexnas.key.pem",
    )


def test_the_second_start_takes_the_kernel_from_the_cache(
    session: Any, compiled: list[str], bragg: Path, keys: Path, tmp_path: Path
) -> None:
    for number, origin in ((1, "compiled in"), (1, "from the cache")):
        with Predictor(bragg, trust=keys, engine="fused", cache=tmp_path / "cache") as predictor:
            assert predictor.engine.name == "fused"
            assert origin in predictor.engine.reason
            assert predictor.proof.measured_px <= predictor.proof.allowed_px
        assert len(compiled) == number


def test_a_kernel_that_was_tampered_with_is_compiled_again(
    session: Any, compiled: list[str], bragg: Path, keys: Path, tmp_path: Path
) -> None:
    Predictor(bragg, trust=keys, engine="fused", cache=tmp_path / "cache").close()
    (entry,) = (tmp_path / "cache").glob("fused-*")
    damaged = bytearray(entry.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    entry.write_bytes(damaged)
    with Predictor(bragg, trust=keys, engine="fused", cache=tmp_path / "cache") as predictor:
        assert "compiled in" in predictor.engine.reason
    assert len(compiled) == 2


def test_auto_measures_engines_and_precisions_and_remembers(
    session: Any,
    bragg: Path,
    keys: Path,
    tmp_path: Path,
    fake_gpu: Any,
    load_module: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install_tensorrt(load_module, monkeypatch, fake_gpu)
    monkeypatch.setattr(selection, "ROUND_SECONDS", 0.002)
    options: Any = {"trust": keys, "precision": "auto", "cache": tmp_path / "cache"}
    with Predictor(bragg, **options) as first:
        tried = {(trial.engine, trial.precision) for trial in first.precision_trials}
        chosen = (first.engine.name, first.engine.precision)
        best = min(first.precision_trials, key=lambda trial: trial.median_ms or np.inf)
        assert chosen == (best.engine, best.precision)
        assert "was chosen on this device" in first.engine.reason
    assert tried == {(e, p) for e in ("fused", "tensorrt") for p in ("float16", "int8")}
    monkeypatch.setattr(selection, "_measured_choice", None)
    with Predictor(bragg, **options) as second:
        assert (second.engine.name, second.engine.precision) == chosen
        assert second.engine.reason.endswith("measured earlier")


def install_tensorrt(load_module: Any, monkeypatch: pytest.MonkeyPatch, cuda: Any) -> None:
    import importlib.machinery
    import sys

    from edgexnas.device.engines import tensorrt_library

    library = load_module(HERE.parent / "engines" / "fake_tensorrt.py").make(cuda)
    library.__spec__ = importlib.machinery.ModuleSpec("tensorrt", None, origin="fake")
    monkeypatch.setitem(sys.modules, "tensorrt", library)
    monkeypatch.setattr(tensorrt_library, "LIBRARIES", ("tensorrt",))


def test_a_refusal_that_may_pass_is_not_remembered(
    session: Any,
    bragg: Path,
    keys: Path,
    tmp_path: Path,
    fake_gpu: Any,
    load_module: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install_tensorrt(load_module, monkeypatch, fake_gpu)
    monkeypatch.setattr(selection, "ROUND_SECONDS", 0.002)

    def no_compiler(*_: Any, **__: Any) -> bytes:
        raise EngineError("there is no CUDA compiler; install NVRTC")

    with monkeypatch.context() as patch:
        patch.setattr(fused, "compile_kernels", no_compiler)
        with Predictor(bragg, trust=keys, cache=tmp_path / "cache") as first:
            assert first.engine.name == "tensorrt"
    with Predictor(bragg, trust=keys, cache=tmp_path / "cache") as second:
        assert {trial.refusal for trial in second.precision_trials} == {None}


def test_auto_goes_on_where_the_network_is_another_one(
    session: Any, bundle_path: Path, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgexnas.device.engines import tensorrt_library

    monkeypatch.setattr(tensorrt_library, "why_not_runnable", lambda: "it is not installed")
    with Predictor(bundle_path, trust=keys, cache=tmp_path / "cache") as predictor:
        assert predictor.engine.name == "onnxruntime"
    with Predictor(bundle_path, trust=keys, cache=tmp_path / "cache") as predictor:
        assert "the fused engine does not know this network" in predictor.engine.reason


def test_frames_are_found_and_predicted_in_one_graph(
    session: Any, kernels_on_cpu: None, bragg: Path, keys: Path
) -> None:
    frame = testing.spot_frame()
    with Predictor(bragg, trust=keys, engine="onnxruntime", cache=False) as cpu:
        expected = cpu.process(frame)
    assert len(expected.positions_px) == 3
    with Predictor(bragg, trust=keys, engine="fused", cache=False) as gpu:
        got = next(iter(gpu.stream([frame])))
    np.testing.assert_array_equal(got.maxima, expected.maxima)
    np.testing.assert_allclose(got.positions_px, expected.positions_px, atol=0.05)
