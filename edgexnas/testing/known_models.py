"""Networks with a known answer, as ONNX text with constants, and what their manifests share."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

import numpy as np

from edgexnas.bundle import Manifest, Provenance

__all__ = ["known_manifest", "onnx_file"]


def onnx_file(graph: str, constants: Mapping[str, Any]) -> bytes:
    """Compile a graph in ONNX's textual form with its constants; checked in full."""
    from onnx import checker, numpy_helper, parser

    model = parser.parse_model(f'<ir_version: 9, opset_import: ["": 17]>{graph}')
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def quantised(tensor: str) -> str:
    """Q/DQ of `tensor`, with the constants `tensor`_scale and `tensor`_zero, to `tensor`_dq."""
    rounding = f"{tensor}_scale, {tensor}_zero"
    # Per-channel scales lie along the first axis; a scalar has none, and ONNX ignores it.
    return (
        f"{tensor}_q = QuantizeLinear<axis=0>({tensor}, {rounding})\n"
        f"{tensor}_dq = DequantizeLinear<axis=0>({tensor}_q, {rounding})"
    )


def known_manifest(**fields: Any) -> Manifest:
    """Describe a network; `fields` add to those that every known bundle has, or replace them."""
    shared: dict[str, Any] = {
        "sequence": 1,
        "created": datetime(2025, 1, 1, tzinfo=timezone.utc),
        "accuracy": (),
        "provenance": Provenance(
            seed=0, data_digest="0" * 64, data_source="tests", configuration={}, versions={}
        ),
    }
    return Manifest(**(shared | fields))
