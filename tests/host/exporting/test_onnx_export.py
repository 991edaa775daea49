from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgexnas.host.exporting.onnx_export import to_onnx
from edgexnas.host.exporting.quantisation import Recipe, quantise, run_onnx
from edgexnas.host.networks.bragg_models import BraggNN, MlpBragg
from edgexnas.host.networks.ptycho_models import CnnPtycho

PATCH, PATTERN = (1, 11, 11), (1, 64, 64)


def opset(model: bytes) -> int:
    (item,) = onnx.load_from_string(model).opset_import
    return int(item.version)


@pytest.mark.parametrize(
    ("network", "shape"),
    [(MlpBragg(8, 2), PATCH), (BraggNN(), PATCH), (CnnPtycho(4, 2, 1, 1), PATTERN)],
    ids=["mlpBragg", "BraggNN", "cnnPtycho"],
)
def test_networks_are_exported_at_an_opset_that_tensorrt_8_reads(
    network: nn.Module, shape: tuple[int, ...]
) -> None:
    inputs = torch.rand(4, *shape)
    single = to_onnx(network, inputs)
    int8 = quantise(single, inputs.numpy(), Recipe()).model
    half = to_onnx(network, inputs, half=True)
    assert {opset(single), opset(half), opset(int8)} == {17}
    with torch.inference_mode():
        expected = network.eval()(inputs).numpy()
    np.testing.assert_allclose(run_onnx(single, inputs.numpy()), expected, atol=1e-5)


class Shrunk(nn.Module):
    """Resamples with a filter, which ONNX has from opset 18 on."""

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return nn.functional.interpolate(patches, (4, 4), mode="bilinear", antialias=True)


def test_a_network_that_needs_a_newer_opset_keeps_it() -> None:
    inputs = torch.rand(4, *PATCH)
    model = to_onnx(Shrunk(), inputs)
    assert opset(model) == 18
    np.testing.assert_allclose(run_onnx(model, inputs.numpy()), Shrunk()(inputs).numpy(), atol=1e-5)
