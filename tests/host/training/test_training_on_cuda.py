"""Training on an NVIDIA GPU: captured steps, and several workers that do not hurt each other."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from edgexnas.host.data.peak_dataset import PeakDataset
from edgexnas.host.networks.bragg_models import BraggNN, CnnBragg, MlpBragg
from edgexnas.host.networks.spaces import SPACES, Configuration, SearchSpace
from edgexnas.host.search.evaluation import EvaluationRequest, EvaluationResult, evaluation_context
from edgexnas.host.search.evaluators import ProcessEvaluator
from edgexnas.host.training import steps as training_steps
from edgexnas.host.training.bragg_criterion import QuantileCriterion
from edgexnas.host.training.loop import train
from edgexnas.host.training.settings import TrainingData, TrainingSettings
from edgexnas.host.training.steps import ModuleStep, RecordedStep

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no NVIDIA GPU"),
    pytest.mark.filterwarnings("default"),
]

MLP = SPACES["mlpBragg"].narrow(epochs=(1, 27), units=(1, 32))
GOOD: Configuration = {
    "units": 8, "layers": 1, "epochs": 3, "batch_size": 32, "learning_rate": 0.01,
}  # fmt: skip


@pytest.fixture
def on_gpu(gaussian_task: TrainingData) -> TrainingData:
    names = ("train_x", "train_y", "validation_x", "validation_y")
    return TrainingData(*(getattr(gaussian_task, name).cuda() for name in names))


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize(
    "network", [lambda: MlpBragg(50, 2), lambda: CnnBragg(4, 12), BraggNN],
    ids=["mlpBragg", "cnnBragg", "BraggNN"],
)  # fmt: skip
def test_captured_steps_change_a_network_as_plain_ones_do(
    on_gpu: TrainingData, network: Callable[[], nn.Module]
) -> None:
    torch.manual_seed(0)
    criterion = QuantileCriterion((0.05, 0.5, 0.95), torch.device("cuda"))
    first = network().cuda().train()
    plain, captured = copy.deepcopy(first), copy.deepcopy(first)
    step = RecordedStep(captured, criterion)
    batches = [
        (x, y, 1e-3)
        for x, y in zip(on_gpu.train_x.split(32), on_gpu.train_y.split(32), strict=True)
    ]
    ModuleStep(plain, criterion).run(batches)
    step.run(batches)
    assert step.captured
    with torch.no_grad():
        before, expected, got = (m.eval()(on_gpu.validation_x) for m in (first, plain, captured))
    # Next to what the steps change, for Adam's first ones follow the signs of gradients alone,
    # which rounding decides where a gradient is next to nothing: one part in 10^7 of the weights
    # moves predictions of BraggNN by up to 1.5e-3 px in 16 steps.
    assert (got - expected).abs().mean() < 0.02 * (expected - before).abs().mean()


@pytest.mark.usefixtures("exact")
def test_a_captured_training_gives_the_errors_of_a_plain_one(
    on_gpu: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def errors() -> list[float]:
        torch.manual_seed(1)
        settings = TrainingSettings(epochs=4, batch_size=32, seed=2)
        return [epoch["error"] for epoch in train(MlpBragg(16, 2), on_gpu, settings).history]

    captured = errors()
    monkeypatch.setattr(training_steps, "known_layers", lambda model: False)
    assert errors() == pytest.approx(captured, abs=1e-4)


@pytest.fixture(scope="module")
def workers(
    tiny_peaks: PeakDataset, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ProcessEvaluator]:
    context = evaluation_context(tiny_peaks, tiny_peaks.split(), device="cuda")
    log = tmp_path_factory.mktemp("workers") / "log"
    evaluator = ProcessEvaluator(context, workers=2, kill_after_s=30, log=log)
    yield evaluator
    evaluator.close()


def more_memory_than_its_share(configuration: Configuration) -> nn.Module:
    _, total = torch.cuda.mem_get_info()
    return nn.Linear(1024, int(0.6 * total) // 4096, device="cuda")


def a_kernel_that_fails(configuration: Configuration) -> nn.Module:
    class OutOfRange(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(4, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.table(x.new_full((len(x),), 99, dtype=torch.long))
            return result.view(-1, 2, 3)

    return OutOfRange()


def numbers_that_are_infinite(configuration: Configuration) -> nn.Module:
    class Infinite(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.weight * x.new_full((len(x), 2, 3), torch.inf)

    return Infinite()


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (more_memory_than_its_share, "memory"),
        (a_kernel_that_fails, "exception"),
        (numbers_that_are_infinite, "diverged"),
    ],
)
def test_what_goes_wrong_in_one_worker_hurts_neither_its_neighbour_nor_its_next(
    workers: ProcessEvaluator, build: Callable[[Configuration], nn.Module], reason: str
) -> None:
    # By value, as a function of a script is: workers cannot import this module.
    own = dataclasses.replace(MLP, name="own", builder=by_value(build), sizer=None)
    requests = [request(0, own), request(1, epochs=27), *(request(n) for n in range(2, 6))]
    results: dict[int, EvaluationResult] = {}
    running = 0
    while requests or running:
        while requests and running < workers.capacity:
            workers.submit(requests.pop(0))
            running += 1
        for result in workers.collect():
            results[result.trial] = result
            running -= 1
    assert [results[n].reason for n in range(6)] == [reason, *[""] * 5]
    same = [results[n].metrics["error"] for n in range(2, 6)]
    assert same == pytest.approx([same[0]] * 4, rel=1e-4)


def request(trial: int, space: SearchSpace = MLP, **changes: float) -> EvaluationRequest:
    return EvaluationRequest(trial, space, GOOD | changes, seed=7)


def by_value(build: Callable[[Configuration], nn.Module]) -> Callable[[Configuration], nn.Module]:
    def builder(configuration: Configuration) -> nn.Module:
        return build(configuration)

    import sys

    import cloudpickle  # type: ignore[import-untyped]

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    return builder
