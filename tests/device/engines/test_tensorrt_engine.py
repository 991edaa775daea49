"""TensorRT engines on a stand-in of library and GPU: calls, addresses, shapes, streams, cache."""

from __future__ import annotations

import logging
import platform
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest

from edgexnas.bragg import scale_patches
from edgexnas.bundle import Bundle, open_bundle
from edgexnas.device import OnnxEngine, Predictor, build_plan, open_engine
from edgexnas.device.cache import EngineCache
from edgexnas.device.cuda import CudaSession
from edgexnas.device.engines.device_engine import DeviceEngine, ladder
from edgexnas.device.engines.tensorrt_engine import TensorRTEngine
from edgexnas.device.engines.tensorrt_plan import build_options
from edgexnas.errors import ConfigurationError, EngineAccuracyError, EngineError, InputError

Fake = Callable[..., Any]
VERSIONS = ("8.5.2.2", "8.6.2", "10.3.0", "10.16.2.10", "11.4.1")

# Operator set 18 moved the axes of a reduction from an attribute to an input.
AT_18 = """<ir_version: 8, opset_import: ["": 18]>
graph (float[n, 4, 8] x) => (float[n, 1, 8] y) <int64[1] axes = {1}> { y = """
REDUCTION = onnx.parser.parse_model(AT_18 + "ReduceMean(x, axes) }").SerializeToString()
OTHER_REDUCTION = onnx.parser.parse_model(
    AT_18 + "ReduceMean<noop_with_empty_axes=1>(x) }"
).SerializeToString()


@pytest.fixture
def inputs(gaussian_patches: Callable[..., Any]) -> Any:
    return scale_patches(gaussian_patches(100))[:, None]


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "cache")


@pytest.fixture
def expected(centroid_model: Callable[..., bytes], inputs: Any) -> Any:
    return OnnxEngine(centroid_model("int8"), precision="int8", batch=100).run(inputs)


def tensorrt(bundle: Bundle, **options: Any) -> Any:
    return open_engine(bundle, engine="tensorrt", **options)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_plan_gives_what_its_model_says(
    bundle: Bundle, fake_tensorrt: Fake, inputs: Any, expected: Any, version: str
) -> None:
    fake_tensorrt(version)
    engine = tensorrt(bundle, batch=100)
    for count in (1, 7, 32, 33, 100, 7):
        np.testing.assert_allclose(engine.run(inputs[:count]), expected[:count], atol=1e-6)
    engine.close()


@pytest.mark.parametrize(("version", "opset"), [("8.5.2.2", 17), ("8.6.2", 17), ("10.3.0", 18)])
def test_a_model_of_opset_18_is_converted_in_memory_for_tensorrt_8_alone(
    fake_tensorrt: Fake, version: str, opset: int
) -> None:
    library = fake_tensorrt(version)
    build_plan(REDUCTION)
    built = onnx.load_from_string(library.builds[-1])
    assert built.opset_import[0].version == opset
    assert len(built.graph.node[0].input) == (1 if opset == 17 else 2)


def test_a_model_that_tensorrt_8_cannot_read_is_refused_by_name(fake_tensorrt: Fake) -> None:
    fake_tensorrt("8.6.2")
    with pytest.raises(EngineError, match=r"8\.6\.2 cannot read the model: .*from opset 18 to 17"):
        build_plan(OTHER_REDUCTION)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_builder_without_a_gpu_says_why(
    fake_tensorrt: Fake, fake_cuda: Any, version: str
) -> None:
    fake_tensorrt(version)
    fake_cuda.gone = True
    with pytest.raises(EngineError, match="cannot build here: CUDA initialization failure"):
        build_plan(REDUCTION)


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_tensorrt_8_is_allowed_the_arithmetic_that_the_model_states(
    bundle: Bundle, fake_tensorrt: Fake, inputs: Any, precision: Any
) -> None:
    # The stand-in builds with no flag too few and none too many.
    fake_tensorrt("8.6.2")
    engine = tensorrt(bundle, precision=precision)
    expected = OnnxEngine(bundle.models[precision], precision=precision).run(inputs[:32])
    np.testing.assert_allclose(engine.run(inputs[:32]), expected, atol=1e-6)


def test_a_layer_of_tensorrt_8_5_is_told_by_its_name(bundle: Bundle, fake_tensorrt: Fake) -> None:
    fake_tensorrt("8.5.2.2")
    (layer,) = tensorrt(bundle).plan.int8_layers
    assert layer.nodes == ("moments",)


def test_plans_of_weakly_and_strongly_typed_networks_and_of_levels_are_kept_apart(
    fake_tensorrt: Fake,
) -> None:
    fake_tensorrt("8.6.2")
    weak, low = build_options(), build_options(0)
    fake_tensorrt("10.3.0")
    strong = build_options()
    assert not weak["strongly_typed"]
    assert strong["strongly_typed"]
    assert len({str(options) for options in (weak, low, strong)}) == 3


def test_a_level_reaches_the_builder_where_it_has_levels(fake_tensorrt: Fake) -> None:
    library = fake_tensorrt("8.6.2")
    build_plan(REDUCTION)
    build_plan(REDUCTION, level=1)
    assert library.levels == [3, 1]
    with pytest.raises(ConfigurationError, match="level is 6; specify 0 to 5"):
        build_plan(REDUCTION, level=6)
    fake_tensorrt("8.5.2.2")
    with pytest.raises(EngineError, match="has no optimisation levels"):
        build_plan(REDUCTION, level=1)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_batch_of_one_is_one_size_alone(
    bundle: Bundle, fake_tensorrt: Fake, inputs: Any, expected: Any, version: str
) -> None:
    fake_tensorrt(version)
    engine = tensorrt(bundle, batch=1)
    assert engine.input_shape == (1, 11, 11)
    np.testing.assert_allclose(engine.run(inputs[:1]), expected[:1], atol=1e-6)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="TensorRT-RTX is for x86-64 only")
def test_the_stand_in_has_no_name_that_tensorrt_lacks(fake_tensorrt: Fake) -> None:
    real = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    stand_in = fake_tensorrt("1.7.1.116", name="tensorrt_rtx")
    for name, kind in stand_in.stand_ins.items():
        methods = {method for method in vars(kind) if not method.startswith("_")}
        assert methods
        assert methods <= set(dir(getattr(real, name))), name
    for name in ("ILogger", "IProgressMonitor", "TensorIOMode", "DataType", "ProfilingVerbosity"):
        public = {member for member in vars(getattr(stand_in, name)) if not member.startswith("_")}
        assert public <= set(dir(getattr(real, name))), name


def test_on_an_integrated_gpu_nothing_is_copied(
    bundle: Bundle,
    fake_tensorrt: Fake,
    fake_cuda_module: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    inputs: Any,
    expected: Any,
) -> None:
    orin = fake_cuda_module.install(monkeypatch, integrated=True)
    fake_tensorrt(cuda=orin)
    np.testing.assert_allclose(tensorrt(bundle).run(inputs[:32]), expected[:32], atol=1e-6)
    assert not [name for name in orin.calls if name.startswith("memcpy")]


def test_it_runs_on_the_addresses_and_the_stream_that_it_is_given(
    bundle: Bundle, fake_tensorrt: Fake, inputs: Any, expected: Any
) -> None:
    fake_tensorrt()
    with CudaSession() as session:
        engine: DeviceEngine = tensorrt(bundle, batch=32, session=session)
        assert engine.input_shape == (1, 11, 11)
        assert engine.output_shape == (2, 3)
        source = session.device_buffer((96, *engine.input_shape), np.float32)
        target = session.device_buffer((96, *engine.output_shape), np.float32)
        source.upload(inputs[:96])
        item, result = source.nbytes // 96, target.nbytes // 96
        with session.current():
            for start in (0, 32, 64):
                engine.enqueue(
                    source.pointer + start * item,
                    target.pointer + start * result,
                    32,
                    session.copies,
                )
            assert not target.download(session.compute).any(), "it ran on another stream"
            session.copies.synchronize()
        np.testing.assert_allclose(target.download(), expected[:96], atol=1e-6)
        engine.close()
        assert not session.lost
        session.synchronize()


def test_a_run_can_be_recorded_with_what_surrounds_it(
    bundle: Bundle, fake_tensorrt: Fake, inputs: Any, expected: Any
) -> None:
    fake_tensorrt()
    with CudaSession() as session:
        engine: DeviceEngine = tensorrt(bundle, batch=32, session=session)
        source = session.staged_buffer((32, *engine.input_shape), np.float32)
        target = session.staged_buffer((32, *engine.output_shape), np.float32)

        def work(stream: Any) -> None:
            source.upload(stream)
            engine.enqueue(source.pointer, target.pointer, 32, stream)
            target.download(stream)

        graph = session.capture(work)
        # The engine serves other addresses meanwhile, and the recorded ones stay.
        engine.run(inputs[64:96])
        for start in (0, 32):
            source.array[:] = inputs[start : start + 32]
            graph.launch()
            session.synchronize()
            np.testing.assert_allclose(target.array, expected[start : start + 32], atol=1e-6)


def test_batch_sizes_are_one_small_and_all() -> None:
    assert [ladder(batch) for batch in (1, 8, 32, 512)] == [(1,), (1, 8), (1, 32), (1, 32, 512)]


def test_it_runs_as_a_cuda_graph_and_says_so(
    bundle: Bundle, fake_tensorrt: Fake, fake_cuda: Any, inputs: Any
) -> None:
    fake_tensorrt()
    engine = tensorrt(bundle)
    assert engine.describe()["cuda_graph"] == "yes"
    fake_cuda.calls.clear()
    engine.run(inputs[:32])
    assert "cuGraphLaunch" in fake_cuda.calls
    assert "execute_async_v3" not in fake_cuda.calls


def test_what_cannot_be_recorded_runs_without_a_graph_and_says_so(
    bundle: Bundle,
    fake_tensorrt: Fake,
    inputs: Any,
    expected: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fake_tensorrt().faults["not_capturable"] = True
    engine = tensorrt(bundle)
    assert engine.describe()["cuda_graph"] == "no"
    assert "runs without a CUDA graph" in caplog.text
    np.testing.assert_allclose(engine.run(inputs[:32]), expected[:32], atol=1e-6)


def test_an_engine_describes_itself(bundle: Bundle, fake_tensorrt: Fake) -> None:
    fake_tensorrt("10.16.2.10")
    described = tensorrt(bundle, batch=64).describe()
    assert described | {"reason": "", "device_memory_bytes": 0} == {
        "engine": "tensorrt",
        "version": "10.16.2.10",
        "precision": "int8",
        "batch": 64,
        "sizes": "1, 32, 64",
        "gpu": "Fake GPU, SM87",
        "cuda": "13.0",
        "int8_layers": 1,
        "cuda_graph": "yes",
        "device_memory_bytes": 0,
        "reason": "",
    }
    buffers = 64 * (121 + 6) * 4
    assert described["device_memory_bytes"] > 3 * 4096 + buffers
    assert "TensorRT was requested; its plan is built in" in str(described["reason"])


@pytest.mark.parametrize("shape", [(0, 1, 11, 11), (33, 1, 11, 11), (4, 11, 11), (4, 1, 11, 12)])
def test_another_shape_is_refused_by_value(
    bundle: Bundle, fake_tensorrt: Fake, shape: tuple[int, ...]
) -> None:
    fake_tensorrt()
    with pytest.raises(InputError, match=r"\(n, 1, 11, 11\), n from 1 to 32"):
        tensorrt(bundle, batch=32).run(np.zeros(shape, np.float32))


def test_a_closed_engine_does_not_run_and_holds_no_memory(
    bundle: Bundle, fake_tensorrt: Fake, fake_cuda: Any, inputs: Any
) -> None:
    fake_tensorrt()
    engine = tensorrt(bundle)
    assert fake_cuda.used_bytes() > 0
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed; open a new one"):
        engine.run(inputs[:1])
    with pytest.raises(EngineError, match="closed; open a new one"):
        engine.enqueue(0, 0, 1, None)
    assert fake_cuda.used_bytes() == 0
    assert not fake_cuda.executables


def test_threads_may_use_it_in_turn(
    bundle: Bundle, fake_tensorrt: Fake, inputs: Any, expected: Any
) -> None:
    fake_tensorrt()
    engine = tensorrt(bundle)
    seen: list[Any] = []
    for start in (0, 32):
        part = inputs[start : start + 32]
        thread = threading.Thread(target=lambda part=part: seen.append(engine.run(part)))
        thread.start()
        thread.join()
    np.testing.assert_allclose(np.concatenate(seen), expected[:64], atol=1e-6)


def test_auto_takes_tensorrt_where_it_can_run(bundle: Bundle, fake_tensorrt: Fake) -> None:
    fake_tensorrt()
    engine = open_engine(bundle, engine="auto")
    assert engine.name == "tensorrt"
    assert engine.reason.startswith("TensorRT can run here")


@pytest.mark.parametrize("fault", ["no_memory", "no_build", "no_runtime"])
def test_a_library_that_fails_is_quoted_and_auto_says_aloud_who_steps_in(
    bundle: Bundle, fake_tensorrt: Fake, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    fake_tensorrt().faults[fault] = True
    said = {
        "no_memory": "out of memory",
        "no_build": "could not find any implementation",
        "no_runtime": "cannot run here: CUDA initialization failure with error: 35",
    }[fault]
    with pytest.raises(EngineError, match=said):
        tensorrt(bundle)
    engine = open_engine(bundle, engine="auto")
    assert engine.name == "onnxruntime"
    assert said in engine.reason
    assert engine.reason in caplog.messages


def test_without_a_gpu_tensorrt_is_refused_and_auto_says_why(
    bundle: Bundle, fake_tensorrt: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_tensorrt()
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(EngineError, match=r"cannot run here: TensorRT has no GPU .* pycuda"):
        tensorrt(bundle)
    assert "TensorRT has no GPU to run on" in open_engine(bundle, engine="auto").reason


def test_the_second_start_builds_nothing(
    bundle: Bundle, fake_tensorrt: Fake, cache: EngineCache, inputs: Any, expected: Any
) -> None:
    library = fake_tensorrt()
    tensorrt(bundle, cache=cache).close()
    engine = tensorrt(bundle, cache=cache)
    assert len(library.builds) == 1
    assert "its plan is from the cache" in engine.reason
    assert engine.describe()["int8_layers"] == 1
    np.testing.assert_allclose(engine.run(inputs[:32]), expected[:32], atol=1e-6)


def test_another_model_batch_or_bundle_is_another_plan(
    bundle: Bundle,
    fake_tensorrt: Fake,
    cache: EngineCache,
    make_bundle: Callable[..., Path],
    keys: Path,
) -> None:
    library = fake_tensorrt()
    other = open_bundle(make_bundle(sequence=2), trust=keys)
    tensorrt(bundle, cache=cache)
    for options in ({"precision": "float16"}, {"batch": 8}):
        tensorrt(bundle, cache=cache, **options)
    tensorrt(other, cache=cache)
    assert len(library.builds) == 4


def test_a_later_build_gets_the_timings_of_the_earlier_one(
    bundle: Bundle, fake_tensorrt: Fake, cache: EngineCache
) -> None:
    library = fake_tensorrt()
    tensorrt(bundle, cache=cache)
    tensorrt(bundle, cache=cache, precision="float16")
    assert library.timing_hits == [False, True]


def test_tensorrt_rtx_runs_through_the_same_module_and_compiles_kernels_once(
    bundle: Bundle, fake_tensorrt: Fake, cache: EngineCache, inputs: Any, expected: Any
) -> None:
    library = fake_tensorrt("1.7.1.116", name="tensorrt_rtx")
    for compiled in ([True, False], [False, False]):
        library.compiled.clear()
        engine = tensorrt(bundle, cache=cache)
        assert engine.name == "tensorrt_rtx"
        np.testing.assert_allclose(engine.run(inputs[:32]), expected[:32], atol=1e-6)
        assert library.compiled == compiled
        engine.close()
    assert len(library.builds) == 1


def test_an_engine_that_fails_once_it_is_open_is_closed_in_the_session_that_was_given(
    bundle: Bundle, fake_tensorrt: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_tensorrt("1.7.1.116", name="tensorrt_rtx")

    def fail(self: TensorRTEngine) -> bytes:
        raise EngineError("the kernels cannot be given")

    monkeypatch.setattr(TensorRTEngine, "compiled_kernels", fail)
    with CudaSession() as session:
        with pytest.raises(EngineError, match="cannot be given"):
            tensorrt(bundle, session=session, cache=None)
        assert session.device_bytes == session.host_bytes == 0


@pytest.mark.parametrize("where", [10, 200, -1])
def test_a_corrupted_plan_is_left_out_built_again_and_said_aloud(
    bundle: Bundle,
    fake_tensorrt: Fake,
    cache: EngineCache,
    caplog: pytest.LogCaptureFixture,
    where: int,
) -> None:
    library = fake_tensorrt()
    tensorrt(bundle, cache=cache)
    (path,) = cache.folder.glob("plan-*")
    raw = bytearray(path.read_bytes())
    raw[where] ^= 1
    path.write_bytes(raw)
    for builds in (2, 2):
        tensorrt(bundle, cache=cache)
        assert len(library.builds) == builds
    (message,) = [m for m in caplog.messages if "is not used" in m]
    assert "damaged or was not written by this device; it is made again" in message


@pytest.mark.parametrize("change", ["version", "GPU"])
def test_a_plan_from_another_version_or_gpu_is_named_and_another_is_built(
    bundle: Bundle,
    fake_tensorrt: Fake,
    fake_cuda_module: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    cache: EngineCache,
    caplog: pytest.LogCaptureFixture,
    change: str,
) -> None:
    fake_tensorrt()
    tensorrt(bundle, cache=cache)
    if change == "version":
        library = fake_tensorrt("11.4.1")
        said = "the cached plan is for version 10.3.0, here 11.4.1: another one is built"
    else:
        library = fake_tensorrt(cuda=fake_cuda_module.install(monkeypatch, capability=(9, 0)))
        said = "the cached plan is for compute capability SM87, here SM90: another one is built"
    tensorrt(bundle, cache=cache)
    assert said in caplog.messages
    assert len(library.builds) == 1
    tensorrt(bundle, cache=cache)
    assert len(library.builds) == 1


def test_a_plan_that_tensorrt_refuses_is_built_again_and_said_aloud(
    bundle: Bundle,
    fake_tensorrt: Fake,
    cache: EngineCache,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fake_tensorrt()
    tensorrt(bundle, cache=cache)
    (path,) = cache.folder.glob("plan-*")
    library = fake_tensorrt()
    loads = library.Runtime.deserialize_cuda_engine
    refusals = [b"once"]
    library.Runtime.deserialize_cuda_engine = lambda self, plan: loads(
        self, refusals.pop() if refusals else plan
    )
    tensorrt(bundle, cache=cache)
    assert "magic tag does not match: it is built again" in caplog.text
    assert len(library.builds) == 1
    assert path.exists()


def test_a_full_cache_is_said_aloud_and_the_engine_runs(
    bundle: Bundle,
    fake_tensorrt: Fake,
    cache: EngineCache,
    inputs: Any,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import errno

    from edgexnas.device import cache as engine_cache

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    library = fake_tensorrt()
    with monkeypatch.context() as patch:
        patch.setattr(engine_cache, "write_whole", full)
        tensorrt(bundle, cache=cache).run(inputs[:1])
    assert "(No space left on device): the next start builds or measures it again" in caplog.text
    tensorrt(bundle, cache=cache)
    tensorrt(bundle, cache=cache)
    assert len(library.builds) == 2


def test_a_gpu_that_disappears_is_one_sentence_and_the_next_run_falls_back(
    bundle_path: Path,
    keys: Path,
    fake_tensorrt: Fake,
    fake_cuda: Any,
    tmp_path: Path,
    gaussian_patches: Callable[..., Any],
) -> None:
    fake_tensorrt()
    patches = gaussian_patches(5)
    with Predictor(bundle_path, trust=keys, cache=tmp_path / "c") as predictor:
        assert predictor.engine.name == "tensorrt"
        before = predictor.predict(patches)
        fake_cuda.gone = True
        with pytest.raises(EngineError, match=r"Fake GPU failed \(.*\); start the process again"):
            predictor.predict(patches)
    with Predictor(bundle_path, trust=keys, cache=tmp_path / "c") as predictor:
        assert predictor.engine.name == "onnxruntime"
        assert "GPU 0 failed" in predictor.engine.reason
        np.testing.assert_allclose(
            predictor.predict(patches).positions_px, before.positions_px, atol=1e-5
        )


def test_an_engine_outside_the_gate_is_refused_by_name_and_built_again(
    bundle_path: Path, keys: Path, fake_tensorrt: Fake, tmp_path: Path
) -> None:
    library = fake_tensorrt()
    library.faults["scale"] = 1.5
    options: dict[str, Any] = {"trust": keys, "engine": "tensorrt", "cache": tmp_path / "c"}
    with pytest.raises(
        EngineAccuracyError, match=r"int8 engine of tensorrt deviates by .* px .* allows"
    ):
        Predictor(bundle_path, **options)
    library.faults.clear()
    with Predictor(bundle_path, **options) as predictor:
        assert predictor.engine.name == "tensorrt"
    assert len(library.builds) == 2


def test_under_auto_onnxruntime_takes_the_place_of_an_engine_outside_the_gate(
    bundle_path: Path,
    keys: Path,
    fake_tensorrt: Fake,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fake_tensorrt().faults["scale"] = 1.5
    with Predictor(bundle_path, trust=keys, cache=tmp_path / "c") as predictor:
        assert predictor.engine.name == "onnxruntime"
        assert "because the int8 engine of tensorrt deviates" in predictor.engine.reason
        assert predictor.engine.reason in caplog.messages


def test_a_cache_that_others_can_write_to_is_refused_until_it_is_repaired(
    bundle_path: Path, keys: Path, fake_tensorrt: Fake, tmp_path: Path
) -> None:
    fake_tensorrt()
    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(EngineError, match=r"can be written by others \(mode 0777\).* chmod 700"):
        Predictor(bundle_path, trust=keys, cache=folder)
    folder.chmod(0o700)
    Predictor(bundle_path, trust=keys, cache=folder).close()


def test_without_a_cache_nothing_is_written(
    bundle_path: Path,
    keys: Path,
    fake_tensorrt: Fake,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EDGEXNAS_CACHE", str(tmp_path / "default"))
    library = fake_tensorrt()
    Predictor(bundle_path, trust=keys, cache=False).close()
    assert not (tmp_path / "default").exists()
    Predictor(bundle_path, trust=keys).close()
    assert (tmp_path / "default").exists()
    assert len(library.builds) == 2


def test_building_is_told_in_the_log_where_there_is_no_terminal(
    bundle: Bundle, fake_tensorrt: Fake, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    fake_tensorrt()
    tensorrt(bundle)
    assert "TensorRT builds the int8 engine: Building, 2 steps" in caplog.messages
    assert any(message.startswith("TensorRT built the int8 plan in") for message in caplog.messages)


def test_building_is_shown_on_a_terminal(
    bundle: Bundle,
    fake_tensorrt: Fake,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake_tensorrt()
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    tensorrt(bundle)
    assert "TensorRT builds the int8 engine" in capsys.readouterr().err
