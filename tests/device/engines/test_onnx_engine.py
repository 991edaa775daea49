from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from edgexnas.bragg import CENTRE, centroid, scale_patches
from edgexnas.bundle import Bundle, open_bundle
from edgexnas.device import OnnxEngine, open_engine
from edgexnas.errors import ConfigurationError, EngineError, InputError

ort = pytest.importorskip("onnxruntime", reason="onnxruntime is the extra «device»")


@pytest.fixture
def inputs(gaussian_patches: Callable[..., Any]) -> Any:
    return scale_patches(gaussian_patches(100))[:, None]


def test_a_float32_model_gives_what_its_graph_says(
    centroid_model: Callable[..., bytes], inputs: Any
) -> None:
    engine = OnnxEngine(centroid_model(), precision="float32", batch=100)
    expected = centroid(inputs[:, 0]) - CENTRE
    np.testing.assert_allclose(engine.run(inputs)[:, :, 1], expected, atol=1e-5)


def test_an_int8_model_gives_what_its_rounding_nodes_say(
    centroid_model: Callable[..., bytes], inputs: Any
) -> None:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain = ort.InferenceSession(centroid_model("int8"), options)
    (expected,) = plain.run(None, {"patches": inputs})
    engine = OnnxEngine(centroid_model("int8"), precision="int8", batch=100)
    np.testing.assert_allclose(engine.run(inputs), expected, atol=1e-5)


def test_an_int8_model_differs_from_its_float32_model(
    centroid_model: Callable[..., bytes], inputs: Any
) -> None:
    runs = {
        precision: OnnxEngine(centroid_model(precision), precision=precision, batch=100).run(inputs)
        for precision in ("float32", "int8")
    }
    assert 1e-4 < np.abs(runs["int8"] - runs["float32"]).mean() < 0.02


def test_runs_of_any_size_up_to_the_batch_agree(
    centroid_model: Callable[..., bytes], inputs: Any
) -> None:
    engine = OnnxEngine(centroid_model("int8"), precision="int8", batch=100)
    whole = engine.run(inputs)
    for size in (1, 7, 100, 7, 32):
        np.testing.assert_allclose(engine.run(inputs[:size]), whole[:size], atol=1e-6)


def test_a_result_stays_after_the_next_run(
    centroid_model: Callable[..., bytes], inputs: Any
) -> None:
    engine = OnnxEngine(centroid_model(), precision="float32", batch=1)
    first = engine.run(inputs[:1])
    kept = first.copy()
    engine.run(inputs[1:2])
    np.testing.assert_array_equal(first, kept)


def test_inputs_need_not_be_contiguous(centroid_model: Callable[..., bytes], inputs: Any) -> None:
    engine = OnnxEngine(centroid_model(), precision="float32", batch=50)
    np.testing.assert_array_equal(engine.run(inputs[::2]), engine.run(inputs[::2].copy()))


@pytest.mark.parametrize("shape", [(0, 1, 11, 11), (33, 1, 11, 11), (4, 11, 11), (4, 1, 11, 12)])
def test_another_shape_is_refused_by_value(
    centroid_model: Callable[..., bytes], shape: tuple[int, ...]
) -> None:
    engine = OnnxEngine(centroid_model(), precision="float32", batch=32)
    with pytest.raises(InputError, match=r"\(n, 1, 11, 11\), n from 1 to 32"):
        engine.run(np.zeros(shape, np.float32))


def test_another_dtype_is_refused_by_name(centroid_model: Callable[..., bytes]) -> None:
    engine = OnnxEngine(centroid_model(), precision="float32")
    with pytest.raises(InputError, match="dtype float64; expected float32"):
        engine.run(np.zeros((1, 1, 11, 11)))  # type: ignore[arg-type]


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(EngineError, match="rejects the int8 model"):
        OnnxEngine(b"not a model", precision="int8")


def test_a_model_with_a_fixed_batch_is_refused(centroid_model: Callable[..., bytes]) -> None:
    with pytest.raises(EngineError, match="whose first axis alone is free"):
        OnnxEngine(centroid_model(batch=4), precision="float32")


def test_a_model_with_two_outputs_is_refused(centroid_model: Callable[..., bytes]) -> None:
    model = onnx.load_from_string(centroid_model())
    model.graph.output.append(onnx.helper.make_tensor_value_info("centroid", 1, ["n", 2]))
    with pytest.raises(EngineError, match="one float32 output"):
        OnnxEngine(model.SerializeToString(), precision="float32")


def test_a_closed_engine_does_not_run(centroid_model: Callable[..., bytes], inputs: Any) -> None:
    engine = OnnxEngine(centroid_model(), precision="float32")
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.run(inputs[:1])


def test_an_engine_describes_itself(bundle: Bundle) -> None:
    engine = open_engine(bundle, engine="onnxruntime", batch=8, threads=2)
    assert engine.describe() == {
        "engine": "onnxruntime",
        "version": ort.__version__,
        "precision": "int8",
        "batch": 8,
        "threads": 2,
        "reason": "onnxruntime was requested",
    }


def test_auto_says_aloud_which_engine_runs_and_why(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    engine = open_engine(bundle, engine="auto")
    assert engine.name == "onnxruntime"
    assert "TensorRT" in engine.reason
    assert caplog.messages == [engine.reason]


def test_tensorrt_by_name_is_not_replaced_by_another_engine(bundle: Bundle) -> None:
    with pytest.raises(
        EngineError, match=r"engine='tensorrt' cannot run here: .*; specify engine='onnxruntime'"
    ):
        open_engine(bundle, engine="tensorrt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"engine": "openvino"},
            "unknown engine 'openvino'; specify one of auto, fused, onnxruntime, ",
        ),
        ({"precision": "int4"}, "unknown precision 'int4'; specify one of float32, float16, int8"),
        ({"batch": 0}, "batch is 0; specify a whole number from 1"),
        ({"batch": 2.5}, "batch is 2.5"),
        ({"batch": True}, "batch is True"),
        ({"threads": 0}, "threads is 0"),
    ],
)
def test_an_option_out_of_range_is_refused_by_name_and_value(
    bundle: Bundle, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        open_engine(bundle, **options)


def test_a_precision_that_the_bundle_lacks_is_refused(
    make_bundle: Callable[..., Any], keys: Any
) -> None:
    lean = open_bundle(make_bundle(("float32",)), trust=keys)
    with pytest.raises(ConfigurationError, match="has no int8 model; specify one of float32"):
        open_engine(lean, precision="int8")


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_onnxruntime_lacks_is_named_with_those_it_has(
    bundle: Bundle, provider: str
) -> None:
    with pytest.raises(
        EngineError, match=r"has no \w+ExecutionProvider, only .*CPUExecutionProvider.*-gpu"
    ):
        open_engine(bundle, engine=f"onnxruntime-{provider}")


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_is_asked_for_in_front_of_the_cpu_and_must_start(
    bundle: Bundle, provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    class Session(ort.InferenceSession):  # type: ignore[misc]
        def __init__(self, model: bytes, options: Any, *, providers: list[Any]) -> None:
            asked.extend(providers)
            super().__init__(model, options, providers=["CPUExecutionProvider"])

    names = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: names)
    monkeypatch.setattr(ort, "InferenceSession", Session)
    with pytest.raises(EngineError, match=r"does not start its \w+ExecutionProvider here"):
        open_engine(bundle, engine=f"onnxruntime-{provider}")
    started = [name if isinstance(name, str) else name[0] for name in asked]
    assert started == (names if provider == "tensorrt" else names[1:])
    if provider == "tensorrt":
        assert asked[0][1]["trt_int8_enable"]
        assert not asked[0][1]["trt_engine_cache_enable"]
    # Where it starts, the engine says so.
    monkeypatch.setattr(Session, "get_providers", lambda self: started)
    engine = open_engine(bundle, engine=f"onnxruntime-{provider}")
    assert engine.describe()["engine"] == f"onnxruntime-{provider}"
    assert engine.reason == f"onnxruntime-{provider} was requested"
