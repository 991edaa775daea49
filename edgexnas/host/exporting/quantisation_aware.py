"""Fine-tuning with INT8 rounding in the forward pass, so that weights learn to live with it.

Used where post-training quantisation loses more than allowed. Inputs of each weighted layer are
rounded on a fixed symmetric grid, weights on a per-channel one, as onnxruntime will later do; the
gradient passes straight through (Bengio et al. 2013). The result is an ordinary float network.

A grid must reach as far as the largest activation, and a few that lie far out make its steps coarse
for all: of a network for Bragg peaks one in a thousand goes beyond a fifth of the largest. So the
grid reaches as far as nearly all of them, and a penalty on the others draws them in meanwhile.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from edgexnas.host.networks.bragg_models import LEVELS
from edgexnas.host.training.criteria import CRITERIA
from edgexnas.host.training.loop import TrainingResult, train
from edgexnas.host.training.settings import TrainingData, TrainingSettings

__all__ = [
    "activation_scales",
    "fine_tune_for_int8",
    "rounded_error",
    "rounding",
    "scored_for_int8",
]

LARGEST = 127
"""Symmetric INT8 leaves −128 out."""

REACHED, FURTHEST = 0.999, 1 / 16
"""Share of a layer's inputs that its grid reaches in fine-tuning, and the least that it reaches of
the largest one."""

PULL = 5.0
"""Weight of the penalty on what a grid does not reach, as a share of the network's error. On ruby a
third of it left an INT8 error a tenth to a fifth larger."""

ROUNDED_RATE = 0.25
"""Learning rate of a search's steps with rounding, as a share of that of the steps before."""


def round_to_grid(x: Tensor, scale: Tensor) -> Tensor:
    """Round to multiples of `scale` within ±127, with the identity as gradient."""
    rounded = (x / scale).round().clamp(-LARGEST, LARGEST) * scale
    return x + (rounded - x).detach()


class _DrawnIn(torch.autograd.Function):
    """Rounds to multiples of `scale`, beyond ±127 as well, with a gradient that leads back there.

    It is that of the identity and of ½ `pull` · (excess / reach)², summed over a batch's items and
    divided by their number.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float, pull: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.reach, ctx.pull = LARGEST * scale, pull
        return (x / scale).round() * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        excess = x - x.clamp(-ctx.reach, ctx.reach)
        strength = ctx.pull / (len(x) * ctx.reach**2)
        return torch.add(gradients[0], excess, alpha=strength), None, None


class _RoundedWeight(nn.Module):
    """Rounds a weight per output channel, on a grid that follows its largest value."""

    def forward(self, weight: Tensor) -> Tensor:
        largest = weight.detach().flatten(1).abs().amax(dim=1).clamp(min=1e-12)
        shape = (-1, *[1] * (weight.ndim - 1))
        return round_to_grid(weight, (largest / LARGEST).reshape(shape))


def fine_tune_for_int8(
    model: nn.Module,
    data: TrainingData,
    calibration: Tensor,
    settings: TrainingSettings,
    *,
    float_first: bool = False,
) -> TrainingResult:
    """Train on with INT8 rounding in every weighted layer but the last of each head.

    Parameters
    ----------
    model
        A trained float network; left as it is.
    calibration
        Inputs, such as (n, 1, 11, 11), that with as many of the training data fix the grids of the
        activations.
    settings
        Of the fine-tuning; a tenth of the original learning rate is a good start.
    float_first
        Leave the layers that read the input without rounding, as `Recipe.float_first` will.

    Returns
    -------
    A float network whose weights suit INT8. Its metrics are those with rounding.
    """
    model = copy.deepcopy(model).to(data.device).eval()
    sources = _layer_sources(model, calibration[:1].to(data.device))
    behind = _layers_behind(sources)
    left = {layer for layer, before in sources.items() if float_first and not before}
    # Conv2d and Linear.
    layers: list[Any] = [
        layer for layer, count in behind.items() if count > 0 and layer not in left
    ]
    # Training data too: what is drawn in are its activations, by how far most of them reach.
    items = torch.cat([calibration.to(data.device), data.train_x[: len(calibration)]])
    scales = activation_scales(model, layers, items)
    nearly = activation_scales(model, layers, items, REACHED)
    for index, layer in enumerate(layers):
        # The network's input is what it is.
        if sources[layer]:
            scales[index] = torch.maximum(nearly[index], FURTHEST * scales[index])
    criterion = CRITERIA[data.task](settings.levels, data.device)
    error = criterion.evaluate(model, data.validation_x, data.validation_y)["error"]
    # Weights that learn to rely on a clamp fail without it, in float.
    with rounding(layers, scales, pull=PULL * float(error)):
        result = train(model, data, settings)
        rounded = [layer.weight.detach().clone() for layer in layers]
    # Where a weight lies between two steps of its grid no gradient has told; what was trained are
    # the steps, which the quantiser finds again, and layers left in float after all need.
    for layer, weight in zip(layers, rounded, strict=True):
        layer.weight.data.copy_(weight)
    return result


def rounded_error(model: nn.Module, data: TrainingData, calibration: Tensor) -> float:
    """Score a network on the validation part with INT8 rounding, before any export.

    The least over what an export tries first: the layers that read the input rounded or not, and
    grids that reach as far as the activations or as 99.9 % of them. Last layers stay in float. No
    equalisation and no fine-tuning, so an export does as well or better.

    Parameters
    ----------
    model
        A trained float network, left as it is.
    calibration
        Inputs that fix the grids of the activations.
    """
    model = copy.deepcopy(model).to(data.device).eval()
    calibration = calibration.to(data.device)
    criterion = CRITERIA[data.task](LEVELS, data.device)
    sources = _layer_sources(model, calibration[:1])
    behind = _layers_behind(sources)
    errors = []
    for float_first, share in itertools.product((False, True), (1.0, 0.999)):
        layers = [
            layer
            for layer, count in behind.items()
            if count > 0 and (sources[layer] or not float_first)
        ]
        # A network of two layers has none left where both its ends are in float.
        if layers:
            with rounding(layers, activation_scales(model, layers, calibration, share)):
                scores = criterion.evaluate(model, data.validation_x, data.validation_y)
            errors.append(float(scores["error"]))
    return min(errors, default=math.inf)


def scored_for_int8(
    result: TrainingResult,
    data: TrainingData,
    calibration: Tensor,
    settings: TrainingSettings,
    seconds: float,
) -> tuple[TrainingResult, float]:
    """Train on with rounding for a time, where that helps, and score with rounding.

    Parameters
    ----------
    result
        Of the training before.
    settings
        Of the training before; this one takes a quarter of its learning rate.
    seconds
        0 scores alone.

    Returns
    -------
    The result with the smaller error with rounding, with scores without it, and that error.
    """
    before = rounded_error(result.model, data, calibration)
    # A network of one layer has none that is rounded.
    if not seconds or not math.isfinite(before):
        return result, before
    rounded = replace(
        settings,
        seconds=seconds,
        learning_rate=ROUNDED_RATE * settings.learning_rate,
        normalise=False,
        continued=True,
    )
    tuned = fine_tune_for_int8(result.model, data, calibration, rounded)
    after = rounded_error(tuned.model, data, calibration)
    if after >= before:
        return result, before
    # What it was trained by are scores with rounding.
    criterion = CRITERIA[data.task](settings.levels, data.device)
    model = tuned.model.to(data.device)
    metrics = criterion.evaluate(model, data.validation_x, data.validation_y)
    steps, epochs = result.steps + tuned.steps, result.epochs + tuned.epochs
    return replace(result, model=model.cpu(), metrics=metrics, steps=steps, epochs=epochs), after


def _layer_sources(model: nn.Module, example: Tensor) -> dict[nn.Module, set[nn.Module]]:
    """Find the layers that each one's input was computed from, in the order in which they run."""
    layers: list[nn.Module] = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    sources: dict[nn.Module, set[nn.Module]] = {}
    of_weight = {id(layer.weight): layer for layer in layers}

    def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        sources[layer] = {of_weight[i] for i in _leaves(inputs[0]) if i in of_weight}

    handles = [layer.register_forward_pre_hook(hook) for layer in layers]
    try:
        model(example)
    finally:
        for handle in handles:
            handle.remove()
    return sources


def _layers_behind(sources: dict[nn.Module, set[nn.Module]]) -> dict[nn.Module, int]:
    """Count the layers between each one and its furthest output, as for the exported graph.

    0 is the last layer of a head; a network with two heads has two of them.
    """
    counts = dict.fromkeys(sources, 0)
    # In the order of the run, so each is counted before what feeds it.
    for layer in reversed(sources):
        for source in sources[layer]:
            counts[source] = max(counts[source], counts[layer] + 1)
    return counts


def _leaves(tensor: Tensor) -> set[int]:
    """Ids of the parameters that a tensor was computed from."""
    waiting, seen, leaves = [tensor.grad_fn], set(), set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        # AccumulateGrad, where a parameter enters the graph.
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
        # Backwards through the graph that the forward pass left.
        waiting += [after for after, _ in node.next_functions]
    return leaves


def activation_scales(
    model: nn.Module, layers: Sequence[nn.Module], calibration: Tensor, share: float = 1.0
) -> list[Tensor]:
    """Grid step of each layer's input: its largest value over the calibration data / 127.

    With a `share` below 1 the value that this share of them does not exceed.
    """
    largest = [calibration.new_tensor(1e-12) for _ in layers]

    def watch(index: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            values = inputs[0].detach().abs().flatten()
            place = max(1, round(share * len(values)))
            largest[index] = torch.maximum(largest[index], values.kthvalue(place).values)

        return hook

    handles = [m.register_forward_pre_hook(watch(i)) for i, m in enumerate(layers)]
    try:
        with torch.no_grad():
            model(calibration)
    finally:
        for handle in handles:
            handle.remove()
    return [value / LARGEST for value in largest]


@contextmanager
def rounding(
    layers: Sequence[nn.Module], scales: list[Tensor], *, pull: float | None = None
) -> Iterator[None]:
    """Round the layers' inputs and weights while the block runs, then restore plain layers.

    Inputs beyond 127 steps are clamped, as a device does. With a `pull` they are not, but drawn in:
    it is the weight of a penalty on the square of what is beyond, as a share of the 127 steps.
    """

    def rounded(scale: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
        # A number, because a recorded step cannot take one out of a tensor.
        step = float(scale)

        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            if pull is None:
                return (round_to_grid(inputs[0], scale.to(inputs[0].device)),)
            drawn_in: Tensor = _DrawnIn.apply(inputs[0], step, pull)  # type: ignore[no-untyped-call]
            return (drawn_in,)

        return hook

    handles = []
    for layer, scale in zip(layers, scales, strict=True):
        handles.append(layer.register_forward_pre_hook(rounded(scale)))
        parametrize.register_parametrization(layer, "weight", _RoundedWeight())
    try:
        yield
    finally:
        for layer, handle in zip(layers, handles, strict=True):
            handle.remove()
            # Back to the float weights under the rounding: the quantiser rounds them anew.
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
