"""A rewritten network computes what the network does."""

from __future__ import annotations

import platform

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgexnas.device import build_plan
from edgexnas.host.exporting.onnx_export import to_onnx
from edgexnas.host.exporting.quantisation import run_onnx
from edgexnas.host.exporting.rewrites import REWRITES, rewrite
from edgexnas.host.networks.bragg_models import BRAGGNN_DENSE, BraggNN, MlpBragg
from edgexnas.host.networks.ptycho_models import CnnPtycho, MlpPtycho, PtychoNN

PATTERNS = [name for name in REWRITES if name != "folded-attention"]


def filled(model: nn.Module, seed: int) -> nn.Module:
    """Give a network random weights, biases, gains and constants that are all different."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            spread = 0.5 if weight.dim() == 1 else (2 / weight[0].numel()) ** 0.5
            weight.normal_(0, spread, generator=generator)
        if hasattr(model, "contrast"):
            model.contrast.fit(torch.rand(4, 1, 64, 64, generator=generator))
    return model.eval()


def check_equal(model: nn.Module, name: str, items: torch.Tensor) -> None:
    rewritten = rewrite(model, name)
    assert rewritten is not None
    with torch.inference_mode():
        expected, output = model(items), rewritten(items)
    # In float64 as well, where nothing but a wrong formula is left.
    # The order of sums differs, and nine layers deep that shows in the fifth digit.
    np.testing.assert_allclose(output, expected, atol=1e-4, rtol=1e-4)
    with torch.inference_mode():
        exact, same = model.double()(items.double()), rewritten.double()(items.double())
    np.testing.assert_allclose(same, exact, atol=2e-6, rtol=2e-6)


@settings(max_examples=15, deadline=None)
@given(
    name=st.sampled_from(PATTERNS),
    filters=st.integers(19, 24),
    encoder=st.integers(1, 4),
    decoder=st.sampled_from([1, 2, 4, 9]),
    seed=st.integers(0, 2**16),
)
def test_a_network_of_two_equal_decoders(
    name: str, filters: int, encoder: int, decoder: int, seed: int
) -> None:
    model = filled(CnnPtycho(filters, encoder, decoder, decoder), seed)
    generator = torch.Generator().manual_seed(seed)
    check_equal(model, name, torch.rand(2, 1, 64, 64, generator=generator))


@pytest.mark.parametrize("name", PATTERNS)
def test_ptychonn(name: str) -> None:
    check_equal(filled(PtychoNN(10), 1), name, torch.rand(3, 1, 64, 64))


@settings(max_examples=15, deadline=None)
@given(dense=st.sampled_from(sorted(BRAGGNN_DENSE.values())), seed=st.integers(0, 2**16))
def test_braggnn(dense: tuple[int, ...], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    check_equal(
        filled(BraggNN(dense), seed),
        "folded-attention",
        torch.rand(4, 1, 11, 11, generator=generator),
    )


@pytest.mark.parametrize("name", ["twin-blocks-taps-first", "twin-groups"])
def test_the_exported_graph_computes_what_the_original_network_does(name: str) -> None:
    model, items = filled(PtychoNN(10), 2), torch.rand(4, 1, 64, 64)
    rewritten = rewrite(model, name)
    assert rewritten is not None
    expected = model(items).detach().numpy()
    output = run_onnx(to_onnx(rewritten, items), items.numpy())
    np.testing.assert_allclose(output, expected, atol=1e-4)


def test_the_network_itself_is_left_as_it_is() -> None:
    model = filled(PtychoNN(4), 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for name in PATTERNS:
        rewrite(model, name)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("model", [MlpBragg(4, 1), MlpPtycho(4, 1)])
@pytest.mark.parametrize("name", REWRITES)
def test_a_network_without_what_is_rewritten_is_none(model: nn.Module, name: str) -> None:
    assert rewrite(model, name) is None


def test_decoders_of_unlike_depth_stay_apart() -> None:
    assert rewrite(CnnPtycho(4, 1, 2, 3), "twin-groups") is None


def test_taps_go_first_only_where_they_are_fewer_than_the_channels() -> None:
    assert rewrite(CnnPtycho(9, 1, 1, 1), "taps-first") is None
    assert rewrite(CnnPtycho(10, 1, 1, 1), "taps-first") is not None


@pytest.mark.skipif(platform.machine() != "x86_64", reason="TensorRT-RTX exists for x86-64 only")
@pytest.mark.parametrize(
    ("model", "name", "shape"),
    [
        (PtychoNN(32), "twin-blocks-taps-first", (1, 64, 64)),
        (BraggNN(), "folded-attention", (1, 11, 11)),
    ],
)
def test_a_plan_of_the_rewritten_network_has_fewer_layers(
    model: nn.Module, name: str, shape: tuple[int, ...]
) -> None:
    items, rewritten = torch.rand(4, *shape), rewrite(model, name)
    assert rewritten is not None
    before, after = (
        len(
            build_plan(
                to_onnx(network, items, half=True), batch_sizes=[32], compute_capability="SM86"
            ).layers
        )
        for network in (model, rewritten)
    )
    # 35 and 22, 29 and 13 with TensorRT-RTX 1.7.
    assert after < 0.7 * before
