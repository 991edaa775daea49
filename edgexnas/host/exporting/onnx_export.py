"""ONNX from a trained network: float32, and float16 behind float32 inputs and outputs."""

from __future__ import annotations

import io
import logging
import re
from contextlib import redirect_stderr

import onnx
import torch
from torch import Tensor, nn

from edgexnas.bundle.opset import at_most_opset
from edgexnas.errors import BundleError, ConfigurationError
from edgexnas.host.exporting.quiet import quiet

__all__ = ["OPSET", "to_onnx"]

OPSET = 17
"""The newest that TensorRT 8.5 and 8.6 read."""

EXPORTER_OPSET = 18
"""The oldest that torch translates to, kept where a network needs it."""


_log = logging.getLogger(__name__)


class _HalfPrecision(nn.Module):
    """Runs a network in float16 so that the graph itself says which layers are float16."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.half()

    def forward(self, patches: Tensor) -> Tensor:
        result: Tensor = self.model(patches.half()).float()
        return result


def to_onnx(
    model: nn.Module,
    example: Tensor,
    *,
    half: bool = False,
    input_name: str = "patches",
    output_name: str = "offsets_px",
) -> bytes:
    """Export a network with a free batch axis named "n" and no external data.

    In opset 17, which every supported TensorRT reads, unless an operation needs 18.

    Parameters
    ----------
    model
        In evaluation mode on the CPU.
    example
        (2 or more, ...) float32 input. A batch of one would be taken for a constant.
    half
        Convert weights and arithmetic to float16; input and output stay float32.

    Raises
    ------
    ConfigurationError
        If the network does something that ONNX or float16 arithmetic has no counterpart for.
    """
    if half:
        from copy import deepcopy

        # A copy, because half() converts a network in place.
        model = _HalfPrecision(deepcopy(model))
    batch = torch.export.Dim("n", min=1, max=1 << 20)
    try:
        # torch notes packages that are not used here, and prints graphs that it cannot trace.
        with quiet("torch"), redirect_stderr(io.StringIO()):
            program = torch.onnx.export(
                model.eval(),
                (example,),
                input_names=[input_name],
                output_names=[output_name],
                opset_version=EXPORTER_OPSET,
                dynamic_shapes=({0: batch},),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        assert program is not None
        exported = _without_notes(program.model_proto)
    # Each of torch's three steps and onnx's checker has errors of its own, most of them private.
    except Exception as error:
        precision = "float16" if half else "float32"
        raise ConfigurationError(
            f"the network cannot be exported to ONNX in {precision} ({_reason(error)}); in its "
            f"forward use operations that opset {EXPORTER_OPSET} has, cast with "
            "x.to(other.dtype) and not to float32, and branch on no values"
        ) from error
    try:
        return at_most_opset(exported, OPSET)
    except BundleError as error:
        _log.info("exported at opset %d, for TensorRT 10 or newer: %s", EXPORTER_OPSET, error)
        return exported


def _reason(error: BaseException) -> str:
    """Take the operation, or else the first line of the first cause, from torch's report."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    for link in chain:
        node = re.search(r"translating node %(\w+)", str(link))
        if node is not None:
            return f"operation {node[1]} has no translation"
    lines = re.sub(r"\x1b\[\d*m", "", str(chain[-1])).strip().splitlines()
    return lines[0][:200] if lines else type(chain[-1]).__name__


def _without_notes(proto: onnx.ModelProto) -> bytes:
    """Drop stack traces and file names that the exporter leaves on every node."""
    for node in proto.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        value.ClearField("metadata_props")
    proto.graph.ClearField("metadata_props")
    proto.ClearField("metadata_props")
    onnx.checker.check_model(proto, full_check=True)
    return bytes(proto.SerializeToString(deterministic=True))
