from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from edgexnas.errors import ConfigurationError
from edgexnas.host.networks.bragg_models import MlpBragg
from edgexnas.host.training.bragg_criterion import (
    QuantileCriterion,
    evaluate_model,
    quantile_loss,
    score_offsets,
    symmetry,
)
from edgexnas.host.training.loop import ROUNDS, DivergedError, _TimedRounds, train
from edgexnas.host.training.settings import TrainingData, TrainingSettings


def settings(**changes: object) -> TrainingSettings:
    return TrainingSettings(**{"epochs": 8, "batch_size": 32, "device": "cpu", **changes})


def constant_error(task: TrainingData) -> float:
    return float((task.validation_y - task.train_y.mean(0)).norm(dim=1).mean())


def test_training_beats_the_constant_by_far(gaussian_task: TrainingData) -> None:
    torch.manual_seed(0)
    result = train(MlpBragg(32, 1), gaussian_task, settings(epochs=30))
    assert result.metrics["error"] < 0.2 * constant_error(gaussian_task)


def test_the_interval_covers_about_what_its_levels_promise(gaussian_task: TrainingData) -> None:
    torch.manual_seed(0)
    result = train(MlpBragg(32, 1), gaussian_task, settings(epochs=60, learning_rate=1e-2))
    assert 0.8 < result.metrics["coverage"] < 0.98


def test_one_seed_gives_one_result(gaussian_task: TrainingData) -> None:
    def error() -> float:
        torch.manual_seed(3)
        return train(MlpBragg(8, 1), gaussian_task, settings(epochs=2)).metrics["error"]

    assert error() == error()


def test_the_best_epochs_weights_are_returned(gaussian_task: TrainingData) -> None:
    torch.manual_seed(0)
    result = train(MlpBragg(8, 1), gaussian_task, settings(epochs=6, learning_rate=0.1))
    again = evaluate_model(result.model, gaussian_task.validation_x, gaussian_task.validation_y)
    assert again["error"] == pytest.approx(min(epoch["error"] for epoch in result.history))


def test_training_stops_when_patience_is_exhausted(gaussian_task: TrainingData) -> None:
    result = train(MlpBragg(8, 1), gaussian_task, settings(epochs=500, patience=1, batch_size=512))
    errors = [epoch["error"] for epoch in result.history]
    assert len(errors) < 500
    assert errors[-1] >= min(errors[:-1])


def test_the_epoch_hook_can_stop_the_training(gaussian_task: TrainingData) -> None:
    result = train(
        MlpBragg(8, 1), gaussian_task, settings(), on_epoch=lambda epoch, metrics: epoch == 3
    )
    assert result.epochs == 3


def test_the_time_limit_stops_after_the_epoch_that_passes_it(gaussian_task: TrainingData) -> None:
    assert train(MlpBragg(8, 1), gaussian_task, settings(time_limit_s=0.0)).epochs == 1


def test_a_diverged_training_says_so(gaussian_task: TrainingData) -> None:
    class Exploding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.weight * torch.full((len(x), 2, 3), torch.inf)

    class Mute(Exploding):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            answer = self.weight.expand(len(x), 2, 3)
            return answer if self.training else answer * torch.nan

    told = "is nan after step 16 and 1 of 1 tensors, weight first, hold NaN"
    with pytest.raises(DivergedError, match=told):
        train(Exploding(), gaussian_task, settings())
    with pytest.raises(DivergedError, match="is nan after step 1 and no weights hold NaN"):
        train(Mute(), gaussian_task, settings(seconds=1.0), clock=ticking(0.9))


def test_more_patches_a_batch_than_there_are_still_trains(gaussian_task: TrainingData) -> None:
    assert train(MlpBragg(4, 1), gaussian_task, settings(batch_size=4096, epochs=1)).epochs == 1


@pytest.mark.parametrize("fold", range(8))
def test_each_symmetry_moves_the_peak_with_its_patch(
    gaussian_task: TrainingData, fold: int
) -> None:
    x, y = symmetry(gaussian_task.train_x, gaussian_task.train_y, fold)
    weights = x[:, 0] ** 4
    axis = torch.arange(11.0) - 5
    total = weights.sum((1, 2))
    centre = torch.stack([weights.sum(2) @ axis / total, weights.sum(1) @ axis / total], dim=1)
    assert (centre - y).norm(dim=1).mean() < 0.05


def test_the_eight_symmetries_are_all_different(gaussian_task: TrainingData) -> None:
    one = gaussian_task.train_x[:1], gaussian_task.train_y[:1]
    assert len({symmetry(*one, fold)[0].numpy().tobytes() for fold in range(8)}) == 8


def test_the_pinball_loss_is_least_at_the_quantile() -> None:
    sample = torch.linspace(0, 1, 1001)[:, None].expand(-1, 2)
    level = torch.tensor([0.9])

    def loss(guess: float) -> float:
        return float(quantile_loss(torch.full((1001, 2, 1), guess), sample, level))

    assert loss(0.9) < min(loss(0.85), loss(0.95))


def test_scores_are_distances_in_pixels() -> None:
    predicted = np.zeros((4, 2, 3), np.float32)
    predicted[:, :, 0], predicted[:, :, 2] = -1, 1
    target = np.array([[0.3, 0.4]] * 3 + [[3.0, 4.0]], np.float32)
    scores = score_offsets(predicted, target, (0.05, 0.5, 0.95))
    assert scores["error"] == pytest.approx((3 * 0.5 + 5) / 4)
    assert scores["p50_px"] == pytest.approx(0.5)
    assert scores["coverage"] == 0.75


def ticking(tick_s: float) -> Callable[[], float]:
    """A clock that goes on by one tick each time that it is read."""
    ticks = itertools.count()
    return lambda: next(ticks) * tick_s


def test_a_training_that_is_given_a_time_uses_it_and_ends_with_its_rate_at_0(
    gaussian_task: TrainingData,
) -> None:
    torch.manual_seed(0)
    model = MlpBragg(16, 1)
    result = train(model, gaussian_task, settings(epochs=1, seconds=10.0), clock=ticking(0.01))
    # Two reads of the clock a step, and forty rounds that are scored.
    assert 400 < result.steps <= 500
    assert 30 <= len(result.history) <= ROUNDS + 1
    assert result.epochs == round(result.steps * 32 / 512)
    # The last rounds hardly move the weights.
    assert result.history[-1]["error"] == pytest.approx(result.history[-2]["error"], rel=0.02)
    assert result.metrics["error"] < 0.5 * constant_error(gaussian_task)


def test_a_single_step_longer_than_the_time_still_is_one(gaussian_task: TrainingData) -> None:
    result = train(MlpBragg(8, 1), gaussian_task, settings(seconds=1.0), clock=ticking(0.9))
    assert result.steps == 1
    assert len(result.history) == 1


def test_of_a_training_that_is_given_a_time_a_later_round_counts_if_it_errs_hardly_more(
    gaussian_task: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = itertools.chain([0.5, 0.010, 0.0108, 0.0112], itertools.repeat(0.02))
    monkeypatch.setattr(QuantileCriterion, "evaluate", lambda *_: {"error": next(errors)})
    timed = train(MlpBragg(8, 1), gaussian_task, settings(seconds=10.0), clock=ticking(0.01))
    assert len(timed.history) > 5
    assert timed.metrics["error"] == 0.0108
    errors = itertools.chain([0.5, 0.010, 0.0108], itertools.repeat(0.02))
    assert train(MlpBragg(8, 1), gaussian_task, settings(epochs=5)).metrics["error"] == 0.010


def test_a_start_that_takes_the_whole_time_still_leaves_a_step(
    gaussian_task: TrainingData,
) -> None:
    torch.manual_seed(0)
    continued = settings(seconds=1.0, continued=True)
    # The weights that it comes with are scored first, which here takes longer than it has.
    result = train(MlpBragg(8, 1), gaussian_task, continued, clock=ticking(1.5))
    assert result.steps == 1
    assert len(result.history) == 2


@pytest.mark.parametrize(("step_s", "scoring_s"), [(5.0, 0.0), (0.01, 3.0), (5.0, 3.0)])
def test_on_a_gpu_what_a_first_step_and_scoring_load_is_not_the_networks_time(
    gaussian_task: TrainingData, monkeypatch: pytest.MonkeyPatch, step_s: float, scoring_s: float
) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    now = 0.0
    on_gpu = SimpleNamespace(device=SimpleNamespace(type="cuda"))
    batch = (gaussian_task.train_x[:32], gaussian_task.train_y[:32])
    rounds = _TimedRounds([batch], 0.1, 1.0, now, lambda: now, on_gpu)  # type: ignore[arg-type]
    rates = []
    for number, steps in enumerate(rounds):
        for _, _, rate in steps:
            rates.append(rate)
            now += step_s if len(rates) == 1 else 0.01
        now += 0.0 if number else scoring_s
        rounds.scored(0.0 if number else scoring_s)
    assert len(rates) == pytest.approx(101, abs=3)
    assert rates[-1] < 0.01 * max(rates)


def test_training_on_never_loses_what_there_was(gaussian_task: TrainingData) -> None:
    torch.manual_seed(0)
    first = train(MlpBragg(16, 1), gaussian_task, settings(epochs=10))
    ruinous = settings(epochs=2, learning_rate=10.0, continued=True)
    second = train(first.model, gaussian_task, ruinous)
    assert second.metrics == pytest.approx(first.metrics)


@pytest.mark.parametrize(
    "change", [{"epochs": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"seconds": 0.0}]
)
def test_settings_that_train_nothing_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(change))):
        settings(**change)


def test_an_unknown_device_is_refused_by_name(gaussian_task: TrainingData) -> None:
    from edgexnas.host.training.settings import training_device

    with pytest.raises(ConfigurationError, match="gpu0"):
        training_device("gpu0")


def test_the_pinball_losss_gradient_is_that_of_its_formula() -> None:
    levels = torch.tensor([0.1, 0.5, 0.8], dtype=torch.float64)
    predicted = torch.randn(9, 2, 3, dtype=torch.float64, requires_grad=True)
    target = torch.randn(9, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda p: quantile_loss(p, target, levels), predicted)
