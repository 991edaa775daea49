"""One step of a training: forward, backward and Adam, by the fastest way that gives the same.

A network of known layers is recorded in its first step and replayed from then on: on the CPU as a
list of kernel calls, see `edgexnas.host.recorded_step`, on a GPU as a CUDA graph. Layers that are
not torch's or this package's may do in Python what no record shows, so they are run as they are,
and so is whatever a record cannot hold.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgexnas.host.recorded_step import Recording, UnrecordableError

if TYPE_CHECKING:
    from edgexnas.host.training_criteria import Criterion

__all__ = ["TrainingStep", "make_step"]

logger = logging.getLogger(__name__)

TrainingStep = Callable[[Tensor, Tensor, float], None]
"""Takes inputs, targets and the learning rate, and changes the network's weights."""

KNOWN = ("torch.nn.", "edgexnas.host.")


def make_step(model: nn.Module, criterion: Criterion, device: torch.device) -> TrainingStep:
    """Choose how a network is trained on the device that it is on."""
    if device.type == "cpu" and known_layers(model):
        return RecordedStep(model, criterion)
    return ModuleStep(model, criterion)


def known_layers(model: nn.Module) -> bool:
    """Whether every layer is one of torch's or this package's."""
    return all(type(layer).__module__.startswith(KNOWN) for layer in model.modules())


class ModuleStep:
    """The plain step: modules, autograd, torch's fused Adam."""

    def __init__(self, model: nn.Module, criterion: Criterion) -> None:
        # Convolutions run up to a third faster in this layout; other layers do not mind.
        # The stubs do not know this keyword.
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._model, self._criterion = model, criterion
        self._optimiser = torch.optim.Adam(model.parameters(), fused=True)

    def __call__(self, x: Tensor, y: Tensor, rate: float) -> None:
        self._optimiser.param_groups[0]["lr"] = rate
        self._optimiser.zero_grad(set_to_none=True)
        self._criterion.loss(self._model(x), y).backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()


class RecordedStep:
    """The recorded step on the CPU; becomes the plain one if it cannot be recorded."""

    def __init__(self, model: nn.Module, criterion: Criterion) -> None:
        self._model, self._criterion = model, criterion
        self._run: TrainingStep = self._record
        self._adam: FlatAdam | None = None

    @property
    def recorded(self) -> bool:
        """Whether steps are replayed."""
        return self._adam is not None

    def gradient(self) -> Tensor:
        """Return the gradient of the last replayed step, over all parameters."""
        assert self._adam is not None
        return self._adam.gradient

    def __call__(self, x: Tensor, y: Tensor, rate: float) -> None:
        self._run(x, y, rate)

    def _record(self, x: Tensor, y: Tensor, rate: float) -> None:
        parameters = [p for p in self._model.parameters() if p.requires_grad]
        weights = flatten(parameters)
        inputs, targets = x.clone(), y.clone()
        recording = Recording()
        try:
            with recording:
                loss = self._criterion.loss(self._model(inputs), targets)
                gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
        except UnrecordableError as error:
            logger.info("trains without a record: %s", error)
            self._run = ModuleStep(self._model, self._criterion)
            self._run(x, y, rate)
            return
        recording.compile(gradients)
        adam = self._adam = FlatAdam(weights, gradients)
        adam.step(rate)

        def replay(x: Tensor, y: Tensor, rate: float) -> None:
            with torch.inference_mode():
                inputs.copy_(x)
                targets.copy_(y)
                recording.replay()
                adam.step(rate)

        self._run = replay


class FlatAdam:
    """Adam over all parameters at once, which lie in one vector.

    The kernel is the one of ``torch.optim.Adam(fused=True)``, called without its bookkeeping.
    """

    def __init__(self, weights: Tensor, gradients: Sequence[Tensor]) -> None:
        self._gradients = list(gradients)
        self._weights = weights
        self.gradient = torch.empty_like(weights)
        sizes = [g.numel() for g in gradients]
        parts = torch.split(self.gradient, sizes)
        self._parts = [part.view_as(g) for part, g in zip(parts, gradients, strict=True)]
        self._first, self._second = torch.zeros_like(weights), torch.zeros_like(weights)
        self._steps = torch.zeros(())

    def step(self, rate: float) -> None:
        """Move the weights against the gradients."""
        torch._foreach_copy_(self._parts, self._gradients)
        self._steps += 1
        torch._fused_adam_(
            [self._weights], [self.gradient], [self._first], [self._second], [], [self._steps],
            lr=rate, beta1=0.9, beta2=0.999, weight_decay=0.0, eps=1e-8, amsgrad=False,
            maximize=False,
        )  # fmt: skip


def flatten(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Move parameters into one vector, which they are views of from then on."""
    vector = torch.cat([p.detach().reshape(-1) for p in parameters])
    parts = torch.split(vector, [p.numel() for p in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.data = part.view(parameter.shape)
    return vector
