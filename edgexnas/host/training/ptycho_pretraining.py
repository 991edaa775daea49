"""Train a network on patterns that are drawn anew for every step, before its scan's own patterns.

The patterns come from `edgexnas.host.data.synthetic_patterns`. Weights are averaged over the last
steps (Polyak, Juditsky, SIAM J. Control Optim. 30, 838 (1992), exponentially), which on fresh data
takes the place of early stopping. Convolutions are normalised meanwhile; see
`edgexnas.host.training.normalisation`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from edgexnas.errors import ConfigurationError
from edgexnas.host.data.synthetic_patterns import PatternSource
from edgexnas.host.training.epochs import FITTING_PATTERNS
from edgexnas.host.training.loop import DivergedError
from edgexnas.host.training.normalisation import normalised
from edgexnas.host.training.ptycho_criterion import PatchCriterion

__all__ = ["PretrainingSettings", "pretrain"]

WARM = 0.02
"""Share of a training in which the rate rises."""

CHECK_EVERY = 100
"""Steps after which the loss is looked at: looking makes a GPU wait."""


@dataclass(frozen=True, kw_only=True)
class PretrainingSettings:
    """How to train on synthetic patterns.

    Attributes
    ----------
    steps
        Optimiser steps, each on fresh patterns.
    batch_size
        Patterns a step.
    learning_rate
        Peak rate of AdamW, reached after 2 % of the steps; it falls to 0 along a cosine.
    weight_decay
        Of AdamW.
    averaging
        Share of the averaged weights that a step keeps; 0 takes the last weights.
    time_limit_s
        Wall-clock bound. Where it comes before the last step, the rate has fallen to 0 by then.
    half
        Compute in bfloat16 where the device is a GPU; weights stay float32.
    """

    steps: int = 8000
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    averaging: float = 0.998
    time_limit_s: float | None = None
    half: bool = True

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "learning_rate", "time_limit_s"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigurationError(f"{name} is {value}; specify more than 0")
        if not 0 <= self.averaging < 1:
            raise ConfigurationError(f"averaging is {self.averaging}; specify 0 or more, below 1")


def pretrain(
    model: nn.Module,
    source: PatternSource,
    settings: PretrainingSettings | None = None,
    *,
    on_steps: Callable[[int, float, float], None] | None = None,
) -> nn.Module:
    """Train a network on synthetic patterns.

    Parameters
    ----------
    model
        From (n, 1, 64, 64) to (n, 2, 64, 64); trained in place.
    on_steps
        Called every 100 steps with the number of steps done, their mean loss and the seconds
        since the start.

    Returns
    -------
    The model with averaged weights, on the CPU, in evaluation mode.

    Raises
    ------
    DivergedError
        If the loss becomes NaN or infinite.
    """
    settings = settings or PretrainingSettings()
    device = source.device
    model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    PatchCriterion().prepare(model, *source.draw_many(FITTING_PATTERNS))
    with normalised(model) as settle:
        _descend(model, source, settings, on_steps)
        settle(lambda: model(source.draw(settings.batch_size)[0]))
    model.cpu().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return model.eval()


def _descend(
    model: nn.Module,
    source: PatternSource,
    settings: PretrainingSettings,
    on_steps: Callable[[int, float, float], None] | None,
) -> None:
    """Train, and leave the averaged weights in the model."""
    criterion, device = PatchCriterion(), source.device
    averaged = [parameter.detach().clone() for parameter in model.parameters()]
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=0.0, weight_decay=settings.weight_decay, fused=True
    )
    half = settings.half and device.type == "cuda"
    started, total = time.monotonic(), torch.zeros((), device=device)
    for step in range(settings.steps):
        # With a time limit the schedule follows whichever runs out first, and so reaches 0.
        done = (step + 0.5) / settings.steps
        if settings.time_limit_s is not None:
            done = max(done, (time.monotonic() - started) / settings.time_limit_s)
        last = step + 1 == settings.steps or done >= 1
        optimiser.param_groups[0]["lr"] = settings.learning_rate * _share(done)
        x, y = source.draw(settings.batch_size)
        optimiser.zero_grad(set_to_none=True)
        # bfloat16 has the exponent of float32, so the loss needs no scaling.
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            output = model(x)
        loss = criterion.loss(output.float(), y)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        with torch.no_grad():
            # A short memory at first, or the average would keep the first weights.
            keep = min(settings.averaging, step / (step + 10))
            torch._foreach_lerp_(averaged, list(model.parameters()), 1 - keep)
            total += loss.detach()
        # Reading the loss waits for the GPU, so it is read seldom.
        if (step + 1) % CHECK_EVERY == 0 or last:
            mean = float(total) / (step % CHECK_EVERY + 1)
            if not math.isfinite(mean):
                raise DivergedError(
                    f"training diverged before step {step + 1} at learning rate "
                    f"{settings.learning_rate:g}; lower the learning rate"
                )
            total.zero_()
            if on_steps is not None:
                on_steps(step + 1, mean, time.monotonic() - started)
        if last:
            break
    with torch.no_grad():
        for parameter, average in zip(model.parameters(), averaged, strict=True):
            parameter.copy_(average)


def _share(done: float) -> float:
    """Share of the peak rate after a share of the training."""
    if done < WARM:
        return done / WARM
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (done - WARM) / (1 - WARM))))
