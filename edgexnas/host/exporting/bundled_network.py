"""A bundle's network with its trained weights, to train on."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from edgexnas.bundle import Bundle
from edgexnas.errors import ConfigurationError
from edgexnas.host.networks.spaces import SPACES

__all__ = ["bundled_network"]

SAME = 1e-3
"""Largest deviation from the bundle's reference outputs, in their unit."""


def bundled_network(bundle: Bundle) -> nn.Module:
    """Build the network of a verified bundle, in evaluation mode on the CPU.

    It is proven on the bundle's reference vectors, so that what is trained on is what the bundle
    holds.

    Raises
    ------
    ConfigurationError
        If the bundle does not say how its network is built, or holds another one.
    """
    manifest = bundle.manifest
    space, said = SPACES.get(manifest.architecture), manifest.provenance.configuration
    if space is None:
        raise ConfigurationError(
            f"bundle {manifest.model_id} holds a {manifest.architecture}, which is none of "
            f"{', '.join(SPACES)}; train on one whose network is"
        )
    known = {name: said[name] for name in space.smallest if name in said}
    try:
        model = space.build({**space.smallest, **known}).eval()
        graph = onnx.load_from_string(bundle.models["float32"]).graph
        stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        weights = {name: torch.from_numpy(stored[name].copy()) for name in model.state_dict()}
        model.load_state_dict(weights)
        with torch.inference_mode():
            given = model(torch.from_numpy(np.array(bundle.reference["input"]))).numpy()
        apart = float(np.abs(given - bundle.reference["output"]).max())
    except (KeyError, RuntimeError) as error:
        raise _unlike(bundle, f"{type(error).__name__}: {error}") from error
    if not apart <= SAME:
        raise _unlike(bundle, f"it deviates by {apart:.2g} from the reference outputs")
    return model


def _unlike(bundle: Bundle, reason: str) -> ConfigurationError:
    manifest = bundle.manifest
    return ConfigurationError(
        f"bundle {manifest.model_id} does not hold the {manifest.architecture} that its manifest "
        f"describes ({reason}); train on one that this release exported"
    )
