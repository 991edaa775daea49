from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgexnas.errors import ConfigurationError
from edgexnas.host.networks.bragg_models import (
    BRAGGNN_DENSE,
    BraggNN,
    CnnBragg,
    MlpBragg,
    QuantileHead,
    count_macs,
    count_parameters,
)

MEDIAN = (0.5,)


@pytest.mark.parametrize(("size", "parameters"), [("small", 33_172), ("large", 45_394)])
def test_braggnn_has_its_published_size(size: str, parameters: int) -> None:
    assert count_parameters(BraggNN(BRAGGNN_DENSE[size], MEDIAN)) == parameters


@pytest.mark.parametrize(("layers", "parameters"), [(1, 6_202), (5, 16_402)])
def test_mlp_of_50_units_has_the_papers_size_and_its_biases(layers: int, parameters: int) -> None:
    assert count_parameters(MlpBragg(50, layers, MEDIAN)) == parameters
    biases = 50 * layers + 2
    assert parameters - biases in (6_150, 16_150)


def test_braggnn_multiplies_as_often_as_counted_by_hand() -> None:
    convolutions = 81 * 9 * 64 + 81 * 64 * 32 * 4 + 49 * 9 * 64 * 32 + 25 * 9 * 32 * 8
    attention = 2 * 81 * 81 * 32
    dense = 200 * 16 + 16 * 8 + 8 * 4 + 4 * 2 + 2 * 2
    assert count_macs(BraggNN(levels=MEDIAN)) == convolutions + attention + dense


def test_counting_macs_leaves_the_weights_alone() -> None:
    model = MlpBragg(4, 1)
    before = model.head.linear.weight.clone()
    count_macs(model)
    assert torch.equal(model.head.linear.weight, before)


@given(st.sets(st.floats(0.01, 0.99), min_size=1, max_size=5).map(sorted), st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_quantiles_never_cross_whatever_the_weights(levels: list[float], seed: int) -> None:
    torch.manual_seed(seed)
    head = QuantileHead(8, levels)
    torch.nn.init.normal_(head.linear.weight, std=5)
    output = head(torch.randn(50, 8))
    assert output.shape == (50, 2, len(levels))
    assert (output.diff(dim=2) >= 0).all()


@pytest.mark.parametrize("levels", [(), (0.5, 0.5), (0.9, 0.1), (0.0, 0.5), (0.5, 1.0)])
def test_levels_that_do_not_increase_between_0_and_1_are_refused(levels: tuple[float, ...]) -> None:
    with pytest.raises(ConfigurationError, match="quantile levels"):
        QuantileHead(8, levels)


@pytest.mark.parametrize("layers", [1, 2, 5, 8, 9, 16])
def test_cnn_of_any_depth_maps_patches_to_offsets(layers: int) -> None:
    assert CnnBragg(3, layers)(torch.zeros(2, 1, 11, 11)).shape == (2, 2, 3)


def test_a_deep_cnn_starts_as_a_shallow_one_so_that_gradients_pass() -> None:
    model = CnnBragg(8, 64)
    loss = model(torch.rand(16, 1, 11, 11)).square().mean()
    loss.backward()
    first = next(model.parameters())
    assert first.grad is not None
    assert first.grad.abs().max() > 1e-6


@pytest.mark.parametrize("levels", [(0.5,), (0.05, 0.5, 0.95), (0.05, 0.25, 0.5, 0.9), (0.1, 0.2)])
def test_the_quantile_head_computes_the_same_with_and_without_gradients(
    levels: tuple[float, ...],
) -> None:
    head = QuantileHead(5, levels).double()
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        expected = head(x)
    torch.testing.assert_close(head(x), expected)
    assert torch.autograd.gradcheck(head, x)
