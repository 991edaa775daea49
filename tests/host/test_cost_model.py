"""The estimate for a Jetson: what it counts, and how far it lies from the paper's rows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgexnas.errors import ConfigurationError
from edgexnas.host.cost_model import PAPER_TABLE_2, CostModel, count_cost
from edgexnas.host.models import BraggNN, count_macs, mlp_bragg
from edgexnas.host.ptycho_models import PtychoNN

CALIBRATION = {
    "BraggNN": (lambda: BraggNN((64, 32, 16, 8)), (1, 11, 11)),
    # 16,150 weights without biases, as the paper counts.
    "optimised Bragg": (lambda: mlp_bragg(50, 5), (1, 11, 11)),
    "PtychoNN": (PtychoNN, (1, 64, 64)),
}


@pytest.mark.parametrize("row", PAPER_TABLE_2[:3], ids=lambda row: row.name)
def test_rows_that_can_be_counted_are_met(row: object) -> None:
    build, shape = CALIBRATION[row.name]  # type: ignore[attr-defined]
    cost, model = count_cost(build(), shape), CostModel()
    assert model.latency_ms(cost) == pytest.approx(row.latency_ms, rel=0.01)  # type: ignore[attr-defined]
    assert model.energy_mj(cost) == pytest.approx(row.energy_mj, rel=0.25)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", CALIBRATION)
def test_multiplications_are_those_that_layers_and_attention_make(name: str) -> None:
    build, shape = CALIBRATION[name]
    assert count_cost(build(), shape).macs == count_macs(build(), shape)


def test_a_kernel_reads_its_input_and_its_weights_and_writes_its_output() -> None:
    cost = count_cost(nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.ReLU()), (1, 11, 11))
    (layer,) = cost.layers
    assert (layer.macs, layer.moved, layer.weights) == (9 * 4 * 81, 121 + 4 * 81, 36)


def test_depth_costs_launches_and_width_does_not() -> None:
    model = CostModel()
    deep, wide = (count_cost(mlp_bragg(*s), (1, 11, 11)) for s in ((8, 10), (64, 1)))
    assert deep.launches > wide.launches
    assert deep.macs < wide.macs
    assert model.latency_ms(deep) > model.latency_ms(wide)


def test_counting_changes_neither_mode_nor_weights() -> None:
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(121), nn.Linear(121, 2)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    count_cost(network, (1, 11, 11))
    assert network.training
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_network_that_does_nothing_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="does nothing that costs can be counted"):
        count_cost(nn.Flatten(), (1, 11, 11))
