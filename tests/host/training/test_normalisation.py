"""Batch normalisation while a network trains, and its own layers afterwards."""

from __future__ import annotations

import copy

import pytest
import torch

from edgexnas.host.data.ptycho_dataset import PtychoDataset
from edgexnas.host.networks.bragg_models import count_parameters
from edgexnas.host.networks.ptycho_models import CnnPtycho, MlpPtycho, PtychoNN
from edgexnas.host.training.loop import train
from edgexnas.host.training.normalisation import normalised
from edgexnas.host.training.ptycho_criterion import PatchCriterion
from edgexnas.host.training.settings import TrainingData, TrainingSettings

PATTERNS = torch.rand((16, 1, 64, 64), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "model", [PtychoNN(2), CnnPtycho(3, 4, 3, 2), CnnPtycho(2, 9, 1, 1), MlpPtycho(4, 2)]
)
def test_what_is_left_computes_what_the_normalised_network_did(model: torch.nn.Module) -> None:
    names, count = list(model.state_dict()), count_parameters(model)
    with normalised(model) as settle:
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.rand_like(parameter)
        settle(lambda: model(PATTERNS))
        model.eval()
        with torch.no_grad():
            expected = model(PATTERNS)
    with torch.no_grad():
        torch.testing.assert_close(model(PATTERNS), expected, atol=1e-5, rtol=1e-4)
    assert list(model.state_dict()) == names
    assert count_parameters(model) == count


@pytest.mark.parametrize("training", [True, False])
def test_trained_weights_go_on_from_what_they_gave(training: bool) -> None:
    model = CnnPtycho(3, 4, 3, 2)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.rand_like(parameter)
    with torch.no_grad():
        expected = model.train(training)(PATTERNS)
        with normalised(model, PATTERNS):
            assert any(isinstance(layer, torch.nn.BatchNorm2d) for layer in model.modules())
            assert model.training == training
            torch.testing.assert_close(model(PATTERNS), expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(model.eval()(PATTERNS), expected, atol=1e-4, rtol=1e-3)


def test_a_model_that_is_a_stack_itself_stays_as_it_is() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU())
    with torch.no_grad():
        expected = model(PATTERNS)
        with normalised(model, PATTERNS):
            pass
        torch.testing.assert_close(model(PATTERNS), expected)


def test_inputs_that_do_not_fit_leave_the_weights_that_came() -> None:
    model = CnnPtycho(3, 4, 3, 2)
    with torch.no_grad():
        expected = model(PATTERNS)
    with pytest.raises(RuntimeError), normalised(model, PATTERNS[:, :, :9, :9]):
        raise AssertionError("the block has begun")
    with torch.no_grad():
        torch.testing.assert_close(model(PATTERNS), expected, atol=1e-4, rtol=1e-3)
    assert model.training


def test_a_stack_is_normalised_before_each_relu_and_only_there() -> None:
    model = PtychoNN(2)
    before = copy.deepcopy(model)
    with normalised(model):
        kinds = [type(m).__name__ for m in model.modules()]
        assert kinds.count("BatchNorm2d") == kinds.count("ReLU") == 18
    assert [type(m) for m in model.modules()] == [type(m) for m in before.modules()]


def test_all_that_was_trained_can_be_trained_on() -> None:
    model = CnnPtycho(2, 3, 3, 3)
    with normalised(model):
        pass
    assert all(p.requires_grad and p.is_leaf for p in model.parameters())


def test_a_training_that_normalises_leaves_the_network_that_it_scored(
    tiny_patterns: PtychoDataset,
) -> None:
    data = TrainingData.from_dataset(tiny_patterns, tiny_patterns.split(), "cpu")
    model = CnnPtycho(3, 3, 2, 1)
    names = list(model.state_dict())
    settings = TrainingSettings(
        epochs=2, batch_size=32, learning_rate=3e-3, device="cpu", normalise=True
    )
    result = train(model, data, settings)
    scores = PatchCriterion().evaluate(result.model, data.validation_x, data.validation_y)
    assert scores == pytest.approx(result.metrics, rel=1e-4)
    assert list(result.model.state_dict()) == names
