from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import parser

from edgexnas.bundle.opset import at_most_opset
from edgexnas.errors import BundleError


def model(nodes: str, constants: str = "", opset: int = 18) -> bytes:
    text = f"""<ir_version: 8, opset_import: ["": {opset}]>
    graph (float[n, 4, 8, 8] x) => (float[n, c, h, w] y) <{constants}> {{ {nodes} }}"""
    return bytes(parser.parse_model(text).SerializeToString())


def outputs(raw: bytes) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(raw, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).random((3, 4, 8, 8), np.float32)
    (result,) = session.run(None, {"x": x})
    return np.asarray(result)


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        # From 18 on the axes are an input; before, an attribute.
        ("[mean] y = ReduceMean(x, axes)", "int64[1] axes = {1}"),
        ("[mean] y = ReduceMax(x, axes)", "int64[1] axes = {3}"),
        ('[twice] y = Resize<mode="linear">(x,,sizes)', "float[4] sizes = {1.0, 1.0, 2.0, 2.0}"),
        ("[soft] y = Softmax<axis=1>(x)", "float unused = {0.0}"),
    ],
)
def test_a_converted_model_computes_the_same_in_nodes_of_the_same_names(
    nodes: str, constants: str
) -> None:
    given = model(nodes, constants)
    converted = at_most_opset(given, 17)
    proto = onnx.load_from_string(converted)
    assert [(item.domain, item.version) for item in proto.opset_import] == [("", 17)]
    names = [node.name for node in onnx.load_from_string(given).graph.node]
    assert [node.name for node in proto.graph.node] == names
    np.testing.assert_array_equal(outputs(converted), outputs(given))


@pytest.mark.parametrize("opset", [13, 16, 17])
def test_a_model_that_is_not_newer_stays_byte_for_byte(opset: int) -> None:
    given = model("y = Relu(x)", opset=opset)
    assert at_most_opset(given, 17) is given


@pytest.mark.parametrize(
    ("nodes", "constants", "opset", "reason"),
    [
        (
            'y = Resize<mode="linear", antialias=1>(x,,sizes)',
            "float[4] sizes = {1.0, 1.0, 0.5, 0.5}",
            18,
            "antialias=1",
        ),
        ("y = Gelu(x)", "float unused = {0.0}", 20, "Gelu"),
        # The converter keeps this attribute; the checker finds it.
        ("y = Cast<to=1, saturate=0>(x)", "float unused = {0.0}", 19, "saturate"),
    ],
)
def test_what_an_older_operator_set_cannot_say_is_refused_by_name(
    nodes: str, constants: str, opset: int, reason: str
) -> None:
    with pytest.raises(BundleError, match=f"from opset {opset} to 17 .*{reason}"):
        at_most_opset(model(nodes, constants, opset), 17)
