"""What an ONNX file in a bundle may be."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

from edgexnas.bundle import Manifest
from edgexnas.bundle import onnx_graph as onnx_graph_module
from edgexnas.bundle.manifest import Precision
from edgexnas.bundle.onnx_graph import check_onnx
from edgexnas.errors import BundleError

Check = Callable[..., None]


@pytest.fixture
def model(tiny: ModuleType) -> ModelProto:
    """The float32 model, to be spoilt."""
    made: ModelProto = tiny.float32_model()
    return made


@pytest.fixture(scope="module")
def check(manifest: Manifest) -> Check:
    def run(model: ModelProto | bytes, precision: Precision = "float32") -> None:
        raw = model if isinstance(model, bytes) else model.SerializeToString()
        check_onnx(raw, precision=precision, manifest=manifest, what="model.onnx")

    return run


def outside(name: str = "away") -> TensorProto:
    """A tensor whose data lies in another file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"
    return tensor


def subgraph(tensor: TensorProto) -> GraphProto:
    return helper.make_graph([], "inner", [], [], [tensor])


def test_each_precision_of_a_good_model_passes(tiny: ModuleType, check: Check) -> None:
    for precision, raw in tiny.tiny_models().items():
        check(raw, precision)


def in_initialiser(model: ModelProto) -> None:
    model.graph.initializer.append(outside())


def in_sparse_values(model: ModelProto) -> None:
    model.graph.sparse_initializer.add().values.CopyFrom(outside())


def in_sparse_indices(model: ModelProto) -> None:
    model.graph.sparse_initializer.add().indices.CopyFrom(outside())


def in_attribute(model: ModelProto) -> None:
    model.graph.node[0].attribute.add(name="t").t.CopyFrom(outside())


def in_attribute_list(model: ModelProto) -> None:
    model.graph.node[0].attribute.add(name="t").tensors.append(outside())


def in_sparse_attribute(model: ModelProto) -> None:
    model.graph.node[0].attribute.add(name="t").sparse_tensor.values.CopyFrom(outside())


def in_subgraph(model: ModelProto) -> None:
    model.graph.node[0].attribute.add(name="g").g.CopyFrom(subgraph(outside()))


def in_subgraph_list(model: ModelProto) -> None:
    model.graph.node[0].attribute.add(name="g").graphs.append(subgraph(outside()))


def in_nested_subgraph(model: ModelProto) -> None:
    inner = subgraph(outside())
    node = helper.make_node("If", ["x"], ["y"])
    node.attribute.add(name="then_branch").g.CopyFrom(inner)
    middle = helper.make_graph([node], "middle", [], [])
    model.graph.node[0].attribute.add(name="g").g.CopyFrom(middle)


def in_function(model: ModelProto) -> None:
    node = model.functions.add(name="f", domain="d").node.add(op_type="Constant")
    node.attribute.add(name="value").t.CopyFrom(outside())


def in_function_default(model: ModelProto) -> None:
    function = model.functions.add(name="f", domain="d")
    function.attribute_proto.add(name="value").t.CopyFrom(outside())


def in_training_information(model: ModelProto) -> None:
    model.training_info.add().algorithm.CopyFrom(subgraph(outside()))


def without_location(model: ModelProto) -> None:
    model.graph.initializer[0].external_data.add(key="location", value="data.bin")


def without_entries(model: ModelProto) -> None:
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL


@pytest.mark.parametrize(
    "hide",
    [
        in_initialiser, in_sparse_values, in_sparse_indices, in_attribute, in_attribute_list,
        in_sparse_attribute, in_subgraph, in_subgraph_list, in_nested_subgraph, in_function,
        in_function_default, in_training_information, without_location, without_entries,
    ],
)  # fmt: skip
def test_data_in_another_file_is_refused_wherever_it_hides(
    hide: Callable[[ModelProto], None], model: ModelProto, check: Check
) -> None:
    hide(model)
    with pytest.raises(BundleError, match="in another file"):
        check(model)


def test_a_field_that_onnx_does_not_define_is_refused(model: ModelProto, check: Check) -> None:
    # Field 500, a varint: what a newer format might put there.
    tensor = model.graph.initializer[0].SerializeToString() + b"\xa0\x1f\x01"
    model.graph.initializer[0].ParseFromString(tensor)
    with pytest.raises(BundleError, match="does not define"):
        check(model)


def test_functions_are_refused(model: ModelProto, check: Check) -> None:
    model.functions.add(name="Gemm", domain="")
    with pytest.raises(BundleError, match="has functions"):
        check(model)


def test_a_subgraph_is_refused(model: ModelProto, check: Check) -> None:
    model.graph.node[0].attribute.add(name="g").g.CopyFrom(helper.make_graph([], "inner", [], []))
    with pytest.raises(BundleError, match="nests a graph"):
        check(model)


@pytest.mark.parametrize("operator", ["If", "Loop", "Scan", "RandomNormal", "StringConcat", "Evil"])
def test_an_operator_outside_the_list_is_refused(
    operator: str, model: ModelProto, check: Check
) -> None:
    model.graph.node[1].op_type = operator
    with pytest.raises(BundleError, match=f"uses operator '{operator}'"):
        check(model)


def test_an_operator_of_another_domain_is_refused(model: ModelProto, check: Check) -> None:
    model.graph.node[1].domain = "com.microsoft"
    with pytest.raises(BundleError, match=r"'com\.microsoft:Gemm'"):
        check(model)


def test_importing_another_domain_is_refused(model: ModelProto, check: Check) -> None:
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(BundleError, match="imports operator sets"):
        check(model)


def test_importing_the_default_domain_twice_is_refused(model: ModelProto, check: Check) -> None:
    model.opset_import.append(helper.make_opsetid("", 18))
    with pytest.raises(BundleError, match="imports operator sets"):
        check(model)


@pytest.mark.parametrize("version", [0, 12, 24, 2**40])
def test_another_opset_is_refused(version: int, model: ModelProto, check: Check) -> None:
    model.opset_import[0].version = version
    with pytest.raises(BundleError, match="where 13 to 23 are allowed"):
        check(model)


def test_a_model_of_too_many_nodes_is_refused(model: ModelProto, check: Check) -> None:
    model.graph.node.extend([model.graph.node[0]] * 10_001)
    with pytest.raises(BundleError, match="10000 and 10000 are allowed"):
        check(model)


def test_a_model_of_too_many_bytes_is_refused_unparsed(
    check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_graph_module, "MOST_MODEL_BYTES", 10)
    with pytest.raises(BundleError, match="has 11 bytes, where 10 are allowed"):
        check(b"x" * 11)


@pytest.mark.parametrize(
    ("field", "shape"), [("input", ["n", 1, 9, 9]), ("input", [4, 1, 11, 11]), ("output", ["n", 6])]
)
def test_a_shape_other_than_the_manifests_is_refused(
    field: str, shape: list[int | str], model: ModelProto, check: Check
) -> None:
    values = getattr(model.graph, field)
    other = helper.make_tensor_value_info(values[0].name, TensorProto.FLOAT, shape)
    values[0].CopyFrom(other)
    with pytest.raises(BundleError, match=f"has {field}s .* where the manifest says"):
        check(model)


@pytest.mark.parametrize("kind", [TensorProto.DOUBLE, TensorProto.STRING, 99])
def test_an_element_type_other_than_the_manifests_is_refused(
    kind: int, model: ModelProto, check: Check
) -> None:
    model.graph.input[0].type.tensor_type.elem_type = kind
    with pytest.raises(BundleError, match="has inputs"):
        check(model)


def test_an_extra_input_is_refused(model: ModelProto, check: Check) -> None:
    model.graph.input.append(helper.make_tensor_value_info("weight", TensorProto.FLOAT, [6, 121]))
    with pytest.raises(BundleError, match="has inputs"):
        check(model)


@pytest.mark.parametrize("dims", [[6, 120], [6, 2**62], [-6, -121], [0]])
def test_a_tensor_whose_data_does_not_fill_its_shape_is_refused(
    dims: list[int], model: ModelProto, check: Check
) -> None:
    tensor = next(item for item in model.graph.initializer if item.name == "weight")
    tensor.dims[:] = dims
    with pytest.raises(BundleError, match="does not fill its shape"):
        check(model)


def test_a_tensor_of_text_is_refused(model: ModelProto, check: Check) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array(["x"], object), "text"))
    with pytest.raises(BundleError, match="of a type other than"):
        check(model)


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_a_float32_model_under_another_precision_is_refused(
    precision: Precision, model: ModelProto, check: Check
) -> None:
    with pytest.raises(BundleError, match=f"is to be the {precision} model but"):
        check(model, precision)


def test_a_graph_that_uses_an_undefined_value_is_refused(model: ModelProto, check: Check) -> None:
    model.graph.node[0].input[0] = "nothing"
    with pytest.raises(BundleError, match="not a valid ONNX model"):
        check(model)


@pytest.mark.parametrize("raw", [b"", b"\xff" * 20, b"not onnx"])
def test_what_is_no_model_is_refused(raw: bytes, check: Check) -> None:
    with pytest.raises(BundleError):
        check(raw)


def test_a_model_nested_too_deeply_is_refused(model: ModelProto, check: Check) -> None:
    graph = model.graph
    for _ in range(40):
        graph = graph.node.add(op_type="If").attribute.add(name="g").g
    with pytest.raises(BundleError, match=r"nests a graph|not an ONNX model|not among the allowed"):
        check(model)


def test_a_model_of_too_many_parts_is_refused(model: ModelProto, check: Check) -> None:
    entries = b"\x72\x00" * 500_001  # metadata_props, each empty
    with pytest.raises(BundleError, match="more than 500000 parts"):
        check(model.SerializeToString() + entries)


@given(position=st.integers(0), value=st.integers(1, 255))
def test_a_changed_byte_is_accepted_or_refused_as_a_bundle_error(
    position: int, value: int, tiny: ModuleType, check: Check
) -> None:
    raw = bytearray(tiny.int8_model().SerializeToString())
    raw[position % len(raw)] ^= value
    try:
        check(bytes(raw), "int8")
    except BundleError as error:
        assert str(error)  # noqa: PT017
