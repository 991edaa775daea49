"""TensorRT itself on a GPU, through the product; skips with the reason where it cannot run.

    pytest -m tensorrt tests/device/engines/test_real_tensorrt.py

`EDGEXNAS_GPU_BUNDLES` names a folder of bundles with their `keys`, as `device/gpu_bundles.py`
writes it, and `EDGEXNAS_GPU_CACHE` the folder of plans of `device/bench_gpu_engines.py`: plans that
lie there are not built again. All other tests build the smallest network that there is.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest

from edgexnas import testing
from edgexnas.bragg import scale_patches
from edgexnas.bundle import Bundle, open_bundle
from edgexnas.device import PeakPredictor, PtychoPredictor, build_plan, open_engine, prove_engine
from edgexnas.device.cache import EngineCache
from edgexnas.device.cuda import CudaSession
from edgexnas.device.engines.selection import EngineOptions, select_engine
from edgexnas.device.engines.tensorrt_library import import_tensorrt, why_not_runnable
from edgexnas.errors import EngineError

HERE = Path(__file__).parent
BUNDLES = Path(os.environ.get("EDGEXNAS_GPU_BUNDLES", "no folder"))
PLANS = os.environ.get("EDGEXNAS_GPU_CACHE")

pytestmark = pytest.mark.tensorrt


def _networks() -> list[Any]:
    found = sorted(path.stem for path in BUNDLES.glob("*.edgex"))
    reason = "no bundles: set EDGEXNAS_GPU_BUNDLES to a folder that device/gpu_bundles.py wrote"
    return found or [pytest.param("none", marks=pytest.mark.skip(reason=reason))]


@pytest.fixture(scope="module")
def _gpu() -> None:
    if (obstacle := why_not_runnable()) is not None:
        pytest.skip(obstacle)


on_gpu = pytest.mark.usefixtures("_gpu")


@pytest.fixture(scope="module")
def built(_gpu: None, tmp_path_factory: pytest.TempPathFactory, bundle: Bundle) -> EngineCache:
    """A cache that holds plans of the centroid in float16 and INT8; builds each once."""
    cache = EngineCache(tmp_path_factory.mktemp("built") / "cache")
    for precision in ("float16", "int8"):
        open_engine(bundle, engine="tensorrt", precision=precision, cache=cache).close()
    return cache


@pytest.fixture
def cache(built: EngineCache, tmp_path: Path) -> EngineCache:
    """A copy of it, to be spoilt."""
    folder = tmp_path / "cache"
    shutil.copytree(built.folder, folder)
    return EngineCache(folder)


@pytest.fixture
def inputs() -> Any:
    return scale_patches(testing.gaussian_patches(32))[:, None]


@pytest.fixture
def opened(bundle: Bundle, cache: EngineCache) -> Iterator[Callable[..., Any]]:
    """`opened(precision="int8", cache=cache)` opens TensorRT; all are closed at the end."""
    engines = []

    def open_one(**options: Any) -> Any:
        given = {"precision": "int8", "cache": cache} | options
        engines.append(open_engine(bundle, engine="tensorrt", **given))
        return engines[-1]

    yield open_one
    for engine in engines:
        engine.close()


def plan_file(cache: EngineCache, engine: Any) -> Path:
    """Tell the entry of an engine's plan by its content."""
    (path,) = (p for p in cache.folder.glob("plan-*") if engine.plan.data in p.read_bytes())
    return path


def test_the_stand_in_has_no_name_that_this_tensorrt_lacks(
    load_module: Callable[[Path], ModuleType], fake_cuda: Any
) -> None:
    # No GPU is needed to look at the library.
    real = pytest.importorskip("tensorrt", reason="TensorRT is not installed")
    pytest.importorskip("onnxruntime", reason="the stand-in needs onnxruntime")
    if not hasattr(real, "Builder"):
        pytest.skip("TensorRT is here as type stubs alone")
    fake = load_module(HERE / "fake_tensorrt.py").make(fake_cuda, version=real.__version__)
    for name, kind in fake.stand_ins.items():
        methods = {method for method in vars(kind) if not method.startswith("_")}
        assert methods <= set(dir(getattr(real, name))), name
    names = ["ILogger", "TensorIOMode", "DataType", "NetworkDefinitionCreationFlag"]
    for name in [*names, "ProfilingVerbosity"] + ["BuilderFlag"] * hasattr(fake, "BuilderFlag"):
        public = {member for member in vars(getattr(fake, name)) if not member.startswith("_")}
        assert public <= set(dir(getattr(real, name))), name
    # What code asks for is there exactly where the stand-in has it.
    for kind, name in (
        (None, "IProgressMonitor"),
        ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"),
        ("ICudaEngine", "device_memory_size_v2"),
        ("ICudaEngine", "device_memory_size"),
    ):
        stand_in = fake if kind is None else fake.stand_ins.get(kind) or getattr(fake, kind)
        thing = real if kind is None else getattr(real, kind)
        assert hasattr(thing, name) == hasattr(stand_in, name), name


@on_gpu
@pytest.mark.parametrize("precision", ["float16", "int8"])
@pytest.mark.parametrize("name", _networks())
def test_every_network_runs_as_a_graph_within_its_gate(
    name: str, precision: Any, tmp_path: Path
) -> None:
    bundle = open_bundle(BUNDLES / f"{name}.edgex", trust=BUNDLES / "keys")
    folder = Path(PLANS) / f"{name}-{precision}" if PLANS else tmp_path / "cache"
    engine = open_engine(bundle, engine="tensorrt", precision=precision, cache=EngineCache(folder))
    try:
        prove_engine(engine, bundle)
        described = engine.describe()
        assert described["cuda_graph"] == "yes"
        assert (described["int8_layers"] != 0) == (precision == "int8")
    finally:
        engine.close()


@on_gpu
@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_every_count_up_to_the_batch_gives_what_the_model_says(
    opened: Callable[..., Any], bundle: Bundle, precision: str
) -> None:
    engine = opened(precision=precision)
    prove_engine(engine, bundle)
    inputs, expected = bundle.reference["input"], bundle.reference["output"]
    for count in (1, 7, 32, 7):
        np.testing.assert_allclose(engine.run(inputs[:count]), expected[:count], atol=0.06)


@on_gpu
def test_layers_tell_their_arithmetic(opened: Callable[..., Any]) -> None:
    assert opened(precision="int8").plan.int8_layers
    half = opened(precision="float16").plan
    assert half.layers
    assert not half.int8_layers


@on_gpu
def test_the_second_start_builds_nothing(opened: Callable[..., Any], inputs: Any) -> None:
    first, second = opened(), opened()
    assert "its plan is from the cache" in second.reason
    np.testing.assert_array_equal(first.run(inputs), second.run(inputs))


@on_gpu
def test_builds_leave_timings_that_a_later_build_takes(
    cache: EngineCache, make_bundle: Callable[..., Path], keys: Path
) -> None:
    (timings,) = cache.folder.glob("timings-*")
    before = timings.read_bytes()
    other = open_bundle(make_bundle(sequence=2), trust=keys)
    engine = open_engine(other, engine="tensorrt", precision="int8", cache=cache)
    assert "its plan is built in" in engine.reason
    engine.close()
    # The same kernels, all of them known: a longer cache would be one that was not read.
    (timings,) = cache.folder.glob("timings-*")
    assert len(timings.read_bytes()) <= len(before) * 1.1


@on_gpu
def test_a_damaged_plan_is_left_out_and_built_again(
    opened: Callable[..., Any], cache: EngineCache, caplog: pytest.LogCaptureFixture
) -> None:
    path = plan_file(cache, opened())
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    assert "its plan is built in" in opened().reason
    assert "damaged or was not written by this device" in caplog.text


@on_gpu
def test_a_plan_that_others_could_write_is_left_out_and_built_again(
    opened: Callable[..., Any], cache: EngineCache, caplog: pytest.LogCaptureFixture
) -> None:
    plan_file(cache, opened()).chmod(0o666)
    assert "its plan is built in" in opened().reason
    assert "is not used" in caplog.text


@on_gpu
def test_plans_under_another_devices_key_are_left_out(
    opened: Callable[..., Any], cache: EngineCache, caplog: pytest.LogCaptureFixture
) -> None:
    (cache.folder / "device.key").unlink()
    foreign = EngineCache(cache.folder)
    assert "its plan is built in" in opened(cache=foreign).reason
    assert "not written by this device" in caplog.text


@on_gpu
def test_a_folder_that_others_can_write_to_is_refused(cache: EngineCache) -> None:
    cache.folder.chmod(0o777)
    with pytest.raises(EngineError, match="engine cache"):
        EngineCache(cache.folder)


@on_gpu
@pytest.mark.parametrize("change", ["nonsense", "cut short", "one byte"])
def test_bytes_that_tensorrt_takes_for_no_plan_are_built_again(
    opened: Callable[..., Any],
    cache: EngineCache,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    change: str,
) -> None:
    opened().close()
    load = EngineCache.load

    def spoilt(self: EngineCache, kind: str, key: Any) -> Any:
        entry = load(self, kind, key)
        if entry is None or kind != "plan":
            return entry
        # Only the header: what TensorRT does with code that it accepts is nobody's to test.
        data = {
            "nonsense": b"not a plan" * 100,
            "cut short": entry[1][:200],
            "one byte": bytes([entry[1][0] ^ 1]) + entry[1][1:],
        }[change]
        return entry[0], data

    monkeypatch.setattr(EngineCache, "load", spoilt)
    assert "its plan is built in" in opened().reason
    assert "the cached plan is not usable" in caplog.text


@on_gpu
def test_auto_measures_both_once_and_remembers(bundle: Bundle, cache: EngineCache) -> None:
    options = EngineOptions(engine="tensorrt", cache=cache.folder)
    for said in ("was chosen on this device", "measured earlier"):
        selected = select_engine(bundle, precision="auto", options=options)
        assert {trial.precision for trial in selected.trials} == {"float16", "int8"}
        assert all(trial.median_ms is not None for trial in selected.trials)
        assert said in selected.engine.reason
        selected.engine.close()


@on_gpu
def test_a_run_on_the_callers_buffers_can_be_recorded(
    bundle: Bundle, cache: EngineCache, inputs: Any
) -> None:
    with CudaSession() as session:
        engine: Any = open_engine(bundle, engine="tensorrt", cache=cache, session=session)
        source = session.device_buffer((32, *engine.input_shape), np.float32)
        target = session.device_buffer((32, *engine.output_shape), np.float32)
        expected = engine.run(inputs)
        with session.current():
            engine.enqueue(source.pointer, target.pointer, 32, session.compute)
            session.compute.synchronize()
        graph = session.capture(lambda s: engine.enqueue(source.pointer, target.pointer, 32, s))
        source.upload(inputs)
        session.synchronize()
        graph.launch()
        session.synchronize()
        np.testing.assert_array_equal(target.download(), expected)
        engine.close()


@on_gpu
def test_frames_become_peaks_on_the_gpu(
    bundle: Bundle, cache: EngineCache, caplog: pytest.LogCaptureFixture
) -> None:
    with PeakPredictor(bundle, engine="tensorrt", cache=cache.folder) as predictor:
        assert predictor.engine.name == "tensorrt"
        peaks = predictor.process(testing.spot_frame())
        streamed = list(predictor.stream([testing.spot_frame(seed=seed) for seed in range(4)]))
    np.testing.assert_allclose(peaks.positions_px, testing.SPOTS_PX, atol=0.3)
    assert [len(found) for found in streamed] == [3] * 4
    assert "on the CPU" not in caplog.text


@on_gpu
def test_patterns_become_an_object_on_the_gpu(
    tmp_path: Path, keys: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key = next(keys.glob("*.key.pem"))
    path = testing.write_visible_bundle(tmp_path / "visible.edgex", signing_key=key)
    scan = testing.visible_scan()
    with PtychoPredictor(path, trust=keys, engine="tensorrt", cache=tmp_path / "c") as predictor:
        patches = predictor.predict(scan.patterns[:1])
        stream = predictor.stream(scan)
        assert sum(len(placed.frame_numbers) for placed in stream) == len(scan.patterns)
        amplitude = np.abs(stream.image().values)
    seen = np.abs(testing.visible_object())
    np.testing.assert_allclose(patches.amplitude[0], seen[:64, :64], atol=0.02)
    np.testing.assert_allclose(amplitude, seen, atol=0.02)
    assert "on the CPU" not in caplog.text


@on_gpu
def test_a_model_of_opset_18_is_built() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 18]>
        graph (float[n, 4, 8] x) => (float[n, 1, 8] y) <int64[1] axes = {1}>
        { y = ReduceMean(x, axes) }"""
    ).SerializeToString()
    assert build_plan(model, batch_sizes=[4]).data


@on_gpu
def test_what_is_no_model_is_refused_in_tensorrts_words() -> None:
    with pytest.raises(EngineError, match=f"{import_tensorrt().__name__} .* cannot read the model"):
        build_plan(b"not a model")


@on_gpu
def test_the_log_of_a_start_from_the_cache_holds_no_warning(
    opened: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    opened().close()
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING], caplog.text
