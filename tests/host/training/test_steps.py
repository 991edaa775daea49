"""Steps: recording one changes how fast a network trains, and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from edgexnas.host.networks.bragg_models import BraggNN, CnnBragg, MlpBragg, QuantileHead
from edgexnas.host.networks.ptycho_unet import PtychoUnet
from edgexnas.host.networks.symmetric_mlp import mlp_bragg_symmetric
from edgexnas.host.training import steps as training_steps
from edgexnas.host.training.bragg_criterion import QuantileCriterion
from edgexnas.host.training.loop import train
from edgexnas.host.training.normalisation import normalised as normalised_convolutions
from edgexnas.host.training.ptycho_criterion import PatchCriterion
from edgexnas.host.training.recorded_step import Recording
from edgexnas.host.training.settings import TrainingData, TrainingSettings
from edgexnas.host.training.steps import ModuleStep, RecordedStep, make_step, normalises_on_gpu

CRITERION = QuantileCriterion((0.05, 0.5, 0.95), torch.device("cpu"))


def normalised() -> nn.Module:
    return nn.Sequential(
        # A bias before a normalisation has no gradient but rounding errors.
        nn.Conv2d(1, 4, 3, stride=2, bias=False), nn.BatchNorm2d(4), nn.GELU(),
        nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(16, 8), nn.LayerNorm(8), nn.SiLU(), QuantileHead(8),
    )  # fmt: skip


def normalised_images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(),
        nn.Flatten(), QuantileHead(12),
    )  # fmt: skip


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mlpBragg": lambda: MlpBragg(16, 2),
    "mlpBraggSymmetric": lambda: mlp_bragg_symmetric(16, 2),
    "cnnBragg": lambda: CnnBragg(3, 4),
    "cnnBragg of residuals": lambda: CnnBragg(2, 10),
    "BraggNN": BraggNN,
    "layers of torch": normalised,
    "normalised images": normalised_images,
}


def batches(data: TrainingData, size: int = 32) -> list[tuple[Tensor, Tensor]]:
    return list(zip(data.train_x.split(size), data.train_y.split(size), strict=True))


@pytest.mark.parametrize("network", NETWORKS)
def test_a_recorded_step_moves_the_weights_as_a_plain_one_does(
    gaussian_task: TrainingData, network: str
) -> None:
    torch.manual_seed(0)
    plain = NETWORKS[network]().train()
    recorded = copy.deepcopy(plain)
    steps = ModuleStep(plain, CRITERION), RecordedStep(recorded, CRITERION)
    for x, y in batches(gaussian_task):
        for step in steps:
            step.run([(x, y, 1e-3)])
    torch.testing.assert_close(recorded.state_dict(), plain.state_dict(), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("network", ["mlpBragg", "cnnBragg"])
def test_a_recorded_training_gives_the_errors_of_a_plain_one(
    gaussian_task: TrainingData, network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def errors() -> list[float]:
        torch.manual_seed(1)
        settings = TrainingSettings(epochs=4, batch_size=32, seed=2, device="cpu")
        history = train(NETWORKS[network](), gaussian_task, settings).history
        return [epoch["error"] for epoch in history]

    recorded = errors()
    monkeypatch.setattr(training_steps, "known_layers", lambda model: False)
    assert errors() == pytest.approx(recorded, abs=1e-4)


def test_layers_of_ones_own_run_as_they_are_in_every_step(gaussian_task: TrainingData) -> None:
    class Counting(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            Counting.calls += 1
            return x

    model = nn.Sequential(Counting(), MlpBragg(4, 1))
    make_step(model, CRITERION).run((x, y, 1e-3) for x, y in batches(gaussian_task)[:3])
    assert Counting.calls == 3


@pytest.mark.parametrize(("device", "plain"), [("cpu", False), ("meta", True)])
def test_batches_are_normalised_by_plain_steps_off_the_cpu(device: str, plain: bool) -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU()).to(device)
    assert normalises_on_gpu(model) is plain
    assert not normalises_on_gpu(MlpBragg(4, 1).to(device))


def test_randomness_of_layers_is_drawn_anew_in_every_step(gaussian_task: TrainingData) -> None:
    head = QuantileHead(121)
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), head).train()
    step = RecordedStep(model, CRITERION)
    x, y = batches(gaussian_task)[0]
    moves = []
    for _ in range(3):
        before = head.linear.weight.detach().clone()
        step.run([(x, y, 1e-3)])
        moves.append((head.linear.weight - before).sign())
    assert step.plain is None
    assert not torch.equal(moves[1], moves[2])


def test_a_step_that_cannot_be_recorded_is_run_as_it_is(
    gaussian_task: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / x.max().item()

    for model in (nn.Sequential(Scaled(), MlpBragg(4, 1)), MlpBragg(4, 1)):
        step = RecordedStep(model, CRITERION)
        before = [p.detach().clone() for p in model.parameters()]
        step.run((x, y, 1e-2) for x, y in batches(gaussian_task)[:2])
        assert not any(map(torch.equal, before, model.parameters()))
        assert step.plain is not None
        monkeypatch.setattr(training_steps, "LARGEST_BYTES", 1000)


def test_weights_that_are_frozen_stay_as_they_are(gaussian_task: TrainingData) -> None:
    model = MlpBragg(4, 2)
    frozen = model.hidden[1]
    frozen.requires_grad_(False)
    before = copy.deepcopy(frozen.state_dict())
    result = train(model, gaussian_task, TrainingSettings(epochs=1, device="cpu"))
    after = result.model.hidden[1].state_dict()  # type: ignore[union-attr,index]
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_parameters_in_one_vector_begin_where_kernels_may_read_several_at_once(
    gaussian_task: TrainingData,
) -> None:
    model = CnnBragg(3, 4)
    RecordedStep(model, CRITERION).run((x, y, 1e-3) for x, y in batches(gaussian_task)[:2])
    addresses = sorted(p.data_ptr() for p in model.parameters())
    assert {(address - addresses[0]) % 256 for address in addresses} == {0}


def test_a_trained_networks_weights_share_no_memory(gaussian_task: TrainingData) -> None:
    model = train(MlpBragg(4, 2), gaussian_task, TrainingSettings(epochs=1, device="cpu")).model
    sizes = [(p.untyped_storage().nbytes(), p.numel() * 4) for p in model.parameters()]
    assert all(stored == needed for stored, needed in sizes)


def test_what_follows_from_constants_alone_is_not_computed_again() -> None:
    x = torch.rand(3)
    recording = Recording()
    with recording:
        half = torch.ones(3) / 2
        result = x * half
    target = torch.zeros(3)
    recording.compile([result], [target])
    assert len(recording._calls) == 1
    x.fill_(8.0)
    recording.replay()
    assert target.tolist() == [4.0] * 3


def test_a_constant_that_is_written_into_is_one_no_more() -> None:
    x = torch.rand(3)
    recording = Recording()
    with recording:
        sums = torch.zeros(3)
        sums += x
        result = sums / 2
    target = torch.zeros(3)
    recording.compile([result], [target])
    x.fill_(8.0)
    recording.replay()
    assert target.tolist() == [4.0] * 3


def test_what_is_drawn_at_constant_chances_is_drawn_anew() -> None:
    recording = Recording()
    with recording:
        result = torch.bernoulli(torch.full((64,), 0.5))
    target = torch.zeros(64)
    recording.compile([result], [target])
    draws = []
    for _ in range(2):
        recording.replay()
        draws.append(target.tolist())
    assert draws[0] != draws[1]


def test_a_large_step_of_normalised_convolutions_runs_as_modules() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(32, 1, 64, 64), torch.rand(32, 2, 64, 64)
    model = PtychoUnet(16, 16, 32, 1, 4, True, False).train()
    with normalised_convolutions(model):
        step = make_step(model, PatchCriterion())
        assert isinstance(step, RecordedStep)
        step.run([(x, y, 1e-3)])
        assert isinstance(step.plain, ModuleStep)
