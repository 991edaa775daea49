from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock, Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgexnas.bundle import Bundle
from edgexnas.device import build_plan, open_engine
from edgexnas.device.engines import tensorrt_library
from edgexnas.device.engines.tensorrt_layers import layers_from_inspector, layers_from_log
from edgexnas.errors import ConfigurationError, EngineError, MissingDependencyError


@pytest.fixture(scope="module")
def _builder() -> None:
    if platform.machine() != "x86_64":
        pytest.skip("tensorrt_rtx has wheels for x86-64 only")
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")


needs_builder = pytest.mark.usefixtures("_builder")


@needs_builder
def test_an_int8_model_becomes_an_int8_plan_for_a_gpu_that_is_not_here(
    centroid_model: Callable[..., bytes],
) -> None:
    plan = build_plan(centroid_model("int8"), compute_capability="SM86")
    assert len(plan.data) > 1000
    assert plan.library == "tensorrt_rtx"
    assert plan.compute_capability == "SM86"
    assert plan.profiles == ((1, 1, 1), (32, 32, 32))
    assert any("moments" in layer.nodes for layer in plan.int8_layers)


@needs_builder
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_float_model_becomes_a_plan_without_int8(
    centroid_model: Callable[..., bytes], precision: str
) -> None:
    plan = build_plan(centroid_model(precision), batch_sizes=[1], compute_capability="SM86")
    assert plan.layers
    assert not plan.int8_layers
    assert precision in {dtype for layer in plan.layers for dtype in layer.inputs}


@needs_builder
def test_a_range_of_batch_sizes_is_one_profile(centroid_model: Callable[..., bytes]) -> None:
    plan = build_plan(
        centroid_model("int8"), batch_sizes=[(1, 32, 1024)], compute_capability="SM86"
    )
    assert plan.profiles == ((1, 32, 1024),)
    assert plan.int8_layers


@needs_builder
def test_without_a_target_the_library_chooses_it(centroid_model: Callable[..., bytes]) -> None:
    plan = build_plan(centroid_model("int8"), batch_sizes=[1])
    assert plan.compute_capability == "native"
    assert plan.int8_layers


@needs_builder
def test_a_driver_that_does_not_fit_is_quoted_and_auto_says_who_steps_in(
    bundle: Bundle, fake_cuda: object
) -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("here is a driver")
    with pytest.raises(EngineError, match=r"tensorrt_rtx .* does not load the plan: .*CUDA driver"):
        open_engine(bundle, engine="tensorrt")
    engine = open_engine(bundle, engine="auto")
    assert engine.name == "onnxruntime"
    assert "CUDA driver version is insufficient" in engine.reason


@needs_builder
def test_progress_is_told_in_steps(centroid_model: Callable[..., bytes]) -> None:
    told: list[tuple[str, int, int]] = []
    build_plan(
        centroid_model(),
        compute_capability="SM86",
        progress=lambda phase, done, steps: told.append((phase, done, steps)),
    )
    assert told
    assert all(0 <= done <= steps for _, done, steps in told)


@needs_builder
def test_an_exception_in_the_progress_callback_stops_the_build(
    centroid_model: Callable[..., bytes],
) -> None:
    def stop(phase: str, done: int, steps: int) -> None:
        raise KeyboardInterrupt(phase)

    with pytest.raises(KeyboardInterrupt):
        build_plan(centroid_model(), compute_capability="SM86", progress=stop)


@needs_builder
def test_what_is_no_model_is_refused_in_the_words_of_tensorrt() -> None:
    with pytest.raises(EngineError, match=r"tensorrt_rtx .* cannot read the model: .*parse"):
        build_plan(b"not a model", compute_capability="SM86")


@needs_builder
def test_a_model_with_a_fixed_batch_becomes_no_plan(centroid_model: Callable[..., bytes]) -> None:
    with pytest.raises(EngineError, match="whose first axis alone is free"):
        build_plan(centroid_model(batch=4), compute_capability="SM86")


@needs_builder
def test_an_unknown_compute_capability_is_refused_with_those_known(
    centroid_model: Callable[..., bytes],
) -> None:
    with pytest.raises(ConfigurationError, match=r"'SM99'; specify one of .*SM86"):
        build_plan(centroid_model(), compute_capability="SM99")


@pytest.mark.parametrize("batch_sizes", [(), (0,), ((4, 2, 8),), ((1, 2),)])
def test_batch_sizes_that_are_none_are_refused_before_anything_is_loaded(
    batch_sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_library, "LIBRARIES", ())
    with pytest.raises(ConfigurationError, match="batch"):
        build_plan(b"", batch_sizes=batch_sizes)


def test_without_tensorrt_a_build_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_library, "LIBRARIES", ("no_such_tensorrt",))
    with pytest.raises(MissingDependencyError, match="install JetPack's TensorRT"):
        build_plan(b"")
    assert tensorrt_library.why_not_runnable() == "TensorRT is not installed"


def test_type_stubs_alone_are_no_tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stubs_of_tensorrt").mkdir()
    (tmp_path / "stubs_of_tensorrt" / "__init__.pyi").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(tensorrt_library, "LIBRARIES", ("stubs_of_tensorrt",))
    assert tensorrt_library.installed_library() is None
    with pytest.raises(MissingDependencyError, match="install JetPack's TensorRT"):
        build_plan(b"")


@pytest.fixture
def other_tensorrt(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """A stand-in for a TensorRT that cannot be installed here; tests take features from it."""
    library = MagicMock(__name__="other_tensorrt", __version__="8.6.1", ILogger=Mock)
    monkeypatch.setitem(sys.modules, "other_tensorrt", library)
    monkeypatch.setattr(tensorrt_library, "LIBRARIES", ("other_tensorrt",))
    return library


def test_a_tensorrt_that_builds_for_its_own_gpu_only_is_not_asked_for_another(
    other_tensorrt: MagicMock,
) -> None:
    other_tensorrt.Builder.return_value.create_builder_config.return_value = SimpleNamespace()
    other_tensorrt.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    with pytest.raises(EngineError, match="for this machine's GPU only, not for SM86"):
        build_plan(b"", compute_capability="SM86")


@pytest.mark.parametrize(
    "dtype",
    [{"Format/Datatype": "Row major Int8 format"}, {"Format": "Row major", "Datatype": "Int8"}],
)
def test_the_inspector_reports_of_tensorrt_10_and_11_are_read(dtype: dict[str, str]) -> None:
    layer = {"Name": "fc", "LayerType": "gemm", "Inputs": [dtype], "Outputs": [dtype]}
    layer["Metadata"] = "[ONNX Layer: moments]\u001e[ONNX Layer: flat]"
    (read,) = layers_from_inspector(json.dumps({"Layers": [layer, "name only"], "Bindings": []}))
    assert read.int8
    assert read.nodes == ("moments", "flat")


def test_the_inspector_report_of_tensorrt_8_is_read_with_its_control_characters() -> None:
    report = """{"Layers": [
    {"Name": "fc1 + relu [profile 1]", "LayerType": "CaskGemm",
     "Inputs": [{"Name": "x", "Format/Datatype": "Row major linear INT8 format"}],
     "Outputs": [{"Name": "y", "Format/Datatype": "Row major linear FP16 format"}]},
    {"Name": "fc2", "LayerType": "gemm", "Inputs": [], "Outputs": [],
     "Metadata": "[ONNX Layer: a]\x1e[ONNX Layer: b]"}], "Bindings": []}"""
    first, second = layers_from_inspector(report)
    assert first.inputs == ("int8",)
    assert first.outputs == ("float16",)
    assert first.nodes == ("fc1", "relu")
    assert second.nodes == ("a", "b")


@given(st.text())
def test_a_message_that_is_no_list_of_layers_gives_no_layers(text: str) -> None:
    assert layers_from_log(text) == ()
    assert layers_from_log(f"Layers:\nName: {text}") == ()


@given(st.text())
def test_a_report_that_is_no_json_gives_no_layers(text: str) -> None:
    assert layers_from_inspector(f"<{text}") == ()


@given(
    st.recursive(
        st.none() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=5,
    )
)
def test_no_inspector_report_raises(content: object) -> None:
    report = json.dumps({"Layers": [content, {"Inputs": content}]})
    assert len(layers_from_inspector(report)) >= 1
