"""One step of a training: forward, backward and Adam, by the fastest way that gives the same.

A network of known layers is recorded in its first step and replayed from then on: on the CPU as a
list of kernel calls, see `edgexnas.host.training.recorded_step`, on a GPU as a CUDA graph. Layers
that are not torch's or this package's may do in Python what no record shows, so they are run as
they are, and so is whatever a record cannot hold.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from edgexnas.host.training.recorded_step import LARGEST_BYTES, Recording, UnrecordableError

if TYPE_CHECKING:
    from edgexnas.host.training.criteria import Criterion

__all__ = ["TrainingStep", "make_step"]

logger = logging.getLogger(__name__)

KNOWN = ("torch.nn.", "edgexnas.host.")

BatchNorm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

LARGEST_NORMALISED_BYTES = 1 << 23
"""Of a recorded step with normalised convolutions. Larger ones are faster as modules, whose layout
suits them: 0.035 s against 0.066 s for a U-Net of 64×64 pixels, and as fast at 20 MB."""

Batch = tuple[Tensor, Tensor, float]
"""Inputs, targets and the learning rate of one step."""

ALIGNED = 64
"""Parameters in one vector begin at multiples of so many elements, 256 bytes, as tensors of their
own do: kernels of cuDNN and cuBLAS may read several at once."""


class TrainingStep(Protocol):
    """One way to change a network's weights, step by step."""

    def run(self, batches: Iterable[Batch]) -> None:
        """Take a step for each batch; all batches of a training have one shape."""


def make_step(model: nn.Module, criterion: Criterion) -> TrainingStep:
    """Choose how a network is trained."""
    recorded = known_layers(model) and not normalises_on_gpu(model)
    return (RecordedStep if recorded else ModuleStep)(model, criterion)


def known_layers(model: nn.Module) -> bool:
    """Whether every layer is one of torch's or this package's."""
    return all(type(layer).__module__.startswith(KNOWN) for layer in model.modules())


def normalises(model: nn.Module) -> bool:
    """Whether a layer normalises batches."""
    return any(isinstance(layer, BatchNorm) for layer in model.modules())


def normalises_on_gpu(model: nn.Module) -> bool:
    """Whether a layer normalises batches on another device than the CPU.

    Recorded on an H100, such networks have stopped with a misaligned address, and one of 48 filters
    has ended its process without a word, also with parameters aligned.
    """
    return normalises(model) and any(p.device.type != "cpu" for p in model.parameters())


class ModuleStep:
    """The plain step: modules, autograd, torch's fused Adam."""

    def __init__(self, model: nn.Module, criterion: Criterion) -> None:
        # Convolutions run up to a third faster in this layout; other layers do not mind.
        # The stubs do not know this keyword.
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._model, self._criterion = model, criterion
        self._optimiser = torch.optim.Adam(model.parameters(), fused=True)

    def run(self, batches: Iterable[Batch]) -> None:
        """Take a step for each batch."""
        for x, y, rate in batches:
            self._optimiser.param_groups[0]["lr"] = rate
            self._optimiser.zero_grad(set_to_none=True)
            self._criterion.loss(self._model(x), y).backward()  # type: ignore[no-untyped-call]
            self._optimiser.step()


class RecordedStep:
    """Records its first step and replays it; a network that cannot be recorded runs as it is.

    Attributes
    ----------
    plain
        The step that runs instead if there is no record.
    """

    def __init__(self, model: nn.Module, criterion: Criterion) -> None:
        self._model, self._criterion = model, criterion
        self._record: _Record | None = None
        self.plain: ModuleStep | None = None

    @property
    def captured(self) -> bool:
        """Whether a CUDA graph does the steps."""
        return self._record is not None and self._record.captured

    def run(self, batches: Iterable[Batch]) -> None:
        """Take a step for each batch."""
        batches = iter(batches)
        if self._record is None and self.plain is None:
            first = next(batches)
            try:
                self._record = _Record(self._model, self._criterion, *first)
            except UnrecordableError as error:
                logger.info("training step not recorded, running it as modules: %s", error)
                self.plain = ModuleStep(self._model, self._criterion)
                self.plain.run([first])
        if self._record is not None:
            # Parameters require gradients, and calls with out= raise on those outside of it.
            with torch.inference_mode():
                for x, y, rate in batches:
                    self._record.run(x, y, rate)
        elif self.plain is not None:
            self.plain.run(batches)


class _Record:
    """A step in its own memory: inputs, targets, weights, gradients, Adam's moments.

    Making one takes the first step.
    """

    def __init__(
        self, model: nn.Module, criterion: Criterion, x: Tensor, y: Tensor, rate: float
    ) -> None:
        parameters = [p for p in model.parameters() if p.requires_grad]
        weights = flatten(parameters)
        self._x, self._y = self._own = [x.clone(), y.clone()]
        largest = LARGEST_NORMALISED_BYTES if normalises(model) else LARGEST_BYTES
        self._recording = Recording(largest)
        with self._recording:
            loss = criterion.loss(model(self._x), self._y)
            gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
        self._adam = FlatAdam(weights)
        # Gradients land in one vector, which Adam reads: no copy between the two.
        self._recording.compile(gradients, self._adam.parts(gradients))
        # Recording has computed the first step's gradients, so only Adam is missing.
        self._adam.step(rate)
        self.captured = False
        self._work: Callable[[float], None] = self._replay
        if weights.device.type == "cuda":
            self._work = self._capture

    def run(self, x: Tensor, y: Tensor, rate: float) -> None:
        """Take a step."""
        torch._foreach_copy_(self._own, [x, y])
        self._work(rate)

    def _replay(self, rate: float | Tensor) -> None:
        self._recording.replay()
        self._adam.step(rate)

    def _capture(self, rate: float) -> None:
        """Take the second step on a stream of its own, and capture a CUDA graph for the others."""
        device = self._x.device
        # A number in the graph would be frozen; a tensor is read anew in every replay.
        on_device = torch.full((), rate, device=device)
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        graph = torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream(device))
        try:
            with torch.cuda.stream(stream):
                # A step for real: libraries allocate in their first run, which a capture forbids.
                self._replay(on_device)
                # Other threads may use the GPU meanwhile, such as other trainings.
                graph.capture_begin(capture_error_mode="thread_local")
                try:
                    self._replay(on_device)
                finally:
                    graph.capture_end()
        except RuntimeError as error:
            # A full GPU ends the evaluation with its own reason; other failures only cost speed.
            if isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            logger.info("CUDA graph capture failed, replaying kernel by kernel: %s", error)
            self._work = self._replay
            return
        finally:
            torch.cuda.current_stream(device).wait_stream(stream)

        def launch(rate: float) -> None:
            on_device.fill_(rate)
            graph.replay()

        self._work = launch
        self.captured = True


class FlatAdam:
    """Adam over all parameters at once, which lie in one vector.

    The kernel is the one of ``torch.optim.Adam(fused=True)``, called without its bookkeeping.

    Attributes
    ----------
    gradient
        To be filled before each step.
    """

    def __init__(self, weights: Tensor) -> None:
        self.gradient = torch.zeros_like(weights)
        self._steps = weights.new_zeros(())
        first, second = torch.zeros_like(weights), torch.zeros_like(weights)
        self._lists: tuple[list[Tensor], ...] = (
            [weights],
            [self.gradient],
            [first],
            [second],
            [],
            [self._steps],
        )

    def parts(self, like: Sequence[Tensor]) -> list[Tensor]:
        """View the gradient in the shapes of the parameters."""
        return parts_of(self.gradient, like)

    def step(self, rate: float | Tensor) -> None:
        """Move the weights against the gradient."""
        self._steps += 1
        torch._fused_adam_(
            *self._lists, lr=rate, beta1=0.9, beta2=0.999, weight_decay=0.0, eps=1e-8,
            amsgrad=False, maximize=False,
        )  # fmt: skip


def flatten(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Move parameters into one vector, which they are views of from then on."""
    vector = parameters[0].detach().new_zeros(sum(map(_room, parameters)))
    for parameter, part in zip(parameters, parts_of(vector, parameters), strict=True):
        part.copy_(parameter.detach())
        # Modules keep their parameters; only the memory behind them moves.
        parameter.data = part
    return vector


def parts_of(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """View a vector in the shapes of parameters, with unused elements between them."""
    parts = torch.split(vector, [_room(t) for t in like])
    return [part[: t.numel()].view(t.shape) for part, t in zip(parts, like, strict=True)]


def _room(tensor: Tensor) -> int:
    return -(-tensor.numel() // ALIGNED) * ALIGNED
