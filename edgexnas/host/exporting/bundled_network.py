"""A bundle's network with its trained weights, to train on."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from edgexnas.bundle import Bundle, Precision
from edgexnas.errors import ConfigurationError
from edgexnas.host.networks.spaces import SPACES, TRAINING

__all__ = ["bundled_network"]

SAME: dict[Precision, float] = {"float32": 1e-3, "float16": 0.05}
"""Largest deviation from the bundle's reference outputs, in their unit, by whose weights are taken:
float16 has rounded them."""


def bundled_network(bundle: Bundle) -> nn.Module:
    """Build the network of a verified bundle, in evaluation mode on the CPU.

    Its weights are those of the float32 model, or of the float16 model where there is no other. It
    is proven on the bundle's reference vectors, so that what is trained on is what the bundle
    holds.

    Raises
    ------
    ConfigurationError
        If the bundle does not say how its network is built, holds it in INT8 alone or rewritten, or
        holds another one.
    """
    manifest = bundle.manifest
    space, said = SPACES.get(manifest.architecture), manifest.provenance.configuration
    if space is None:
        raise ConfigurationError(
            f"bundle {manifest.model_id} holds a {manifest.architecture}, which is none of "
            f"{', '.join(SPACES)}; train on one whose network is"
        )
    trained_by = {parameter.name for parameter in TRAINING}
    built_by = [p.name for p in space.hyperparameters if p.name not in trained_by]
    unsaid = [name for name in built_by if name not in said]
    if unsaid:
        raise ConfigurationError(
            f"bundle {manifest.model_id} holds a {manifest.architecture} and does not say its "
            f"{', '.join(unsaid)}; train on one that `edgexnas export` or `adapt` wrote"
        )
    precision = next((name for name in SAME if name in bundle.models), None)
    if precision is None:
        raise ConfigurationError(
            f"bundle {manifest.model_id} holds its network in {', '.join(bundle.models)} alone; "
            "train on one with float32 or float16"
        )
    try:
        model = space.build({**space.smallest, **{name: said[name] for name in built_by}}).eval()
    except ConfigurationError as error:
        raise _unlike(bundle, f"it cannot be built: {error}") from error
    graph = onnx.load_from_string(bundle.models[precision]).graph
    # A float16 model is exported within another module.
    stored = {
        tensor.name.removeprefix("model."): numpy_helper.to_array(tensor)
        for tensor in graph.initializer
    }
    missing = [name for name in model.state_dict() if name not in stored]
    if missing:
        raise _unlike(
            bundle, f"its {precision} model has no weights {missing[0]}, as after a rewrite"
        )
    try:
        weights = {name: torch.from_numpy(stored[name].copy()) for name in model.state_dict()}
        model.load_state_dict(weights)
        with torch.inference_mode():
            given = model(torch.from_numpy(np.array(bundle.reference["input"]))).numpy()
    except RuntimeError as error:
        raise _unlike(bundle, str(error)) from error
    apart = float(np.abs(given - bundle.reference["output"]).max())
    if not apart <= SAME[precision]:
        raise _unlike(bundle, f"it deviates by {apart:.2g} from the reference outputs")
    return model


def _unlike(bundle: Bundle, reason: str) -> ConfigurationError:
    manifest = bundle.manifest
    return ConfigurationError(
        f"bundle {manifest.model_id} does not hold the {manifest.architecture} that its manifest "
        f"describes ({reason}); train on one that this release exported without a rewrite"
    )
