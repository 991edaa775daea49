"""The search spaces: the four of the paper's Table 1, with every range as printed, and two more.

The table gives ranges only. Sizes, epochs and learning rate are drawn log-uniformly: measured
with random search, that doubles the hypervolume over uniform priors. Three ranges need a reading,
because taken literally most points could not be built:

* **cnnBragg** asks for up to 128 convolutions on 11×11 pixels. All are padded; see
  `edgexnas.host.networks.bragg_models.CnnBragg`.
* **cnnPtycho** asks for up to 128 up-sample layers between 8×8 and 64×64 pixels. They are the
  convolutions of a decoder whose three doublings are fixed; see
  `edgexnas.host.networks.ptycho_models.CnnPtycho`.
* **mlpPtycho** has one trunk of hidden layers and a linear head for each of amplitude and phase.

**mlpBraggSymmetric** is not in the table. It has the ranges of mlpBragg, and networks that are
given the symmetry of a patch and its centroid, see `edgexnas.host.networks.symmetric_mlp`: of equal
size they err less, for more kernels and twice the arithmetic. **mlpBraggSmooth** has SiLU in the
place of ReLU and errs less still. It has ranges of its own: no table sets them, and larger batches
and lower rates than the table's suit it. **mlpBraggMirrored** averages over the eight images of a
patch: of equal size it errs half as much, for four times the arithmetic. A search for Bragg peaks
that names no space takes it beside the two of the table; ``"paper"`` names those of the table
alone.

**ptychoUnet** is not in the table either: networks of few multiplications, see
`edgexnas.host.networks.ptycho_unet`, with a width for each stage, and ranges of training that end
in more than the mean patch. A search for ptychography that names no space takes it alone.
"""

from __future__ import annotations

import functools
import importlib
import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from edgexnas.errors import ConfigurationError
from edgexnas.host.networks.hyperparameters import (
    Choice,
    Configuration,
    Hyperparameter,
    Integer,
    Real,
)
from edgexnas.host.networks.search_space import INPUT_SHAPES, TRAINING, ModelSize, SearchSpace

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "INPUT_SHAPES",
    "SPACES",
    "TRAINING",
    "Choice",
    "Configuration",
    "Hyperparameter",
    "Integer",
    "ModelSize",
    "Real",
    "SearchSpace",
    "import_space",
    "resolve_space",
]

QUANTILES = 3
"""Levels of the default head: 0.05, 0.5, 0.95."""

STAGE_PIXELS = {"bragg": (121, 25, 4), "encoder": (4096, 1024, 256), "decoder": (64, 256, 1024)}
"""Pixels that a convolution of each stage computes."""

Builder = Callable[[Configuration], "nn.Module"]


def _builder(path: str, *names: str) -> Builder:
    """Name a function of this package, such as ``"bragg_models:MlpBragg"``, and its arguments."""
    module, _, function = path.partition(":")
    return functools.partial(_call, f"edgexnas.host.networks.{module}", function, names)


def _call(module: str, builder: str, names: tuple[str, ...], values: Configuration) -> nn.Module:
    # torch takes seconds to import, so it waits until something is built.
    build: Callable[..., nn.Module] = getattr(importlib.import_module(module), builder)
    return build(**{name: values[name] for name in names})


def _integers(values: Configuration, *names: str) -> Iterator[int]:
    return (int(values[name]) for name in names)


def _size_of_mlp_bragg(values: Configuration) -> ModelSize:
    units, layers = _integers(values, "units", "layers")
    weights = 121 * units + (layers - 1) * units**2 + units * 2 * QUANTILES
    return ModelSize(weights + layers * units + 2 * QUANTILES, weights)


def _size_of_mlp_bragg_symmetric(values: Configuration) -> ModelSize:
    units, layers = _integers(values, "units", "layers")
    weights = 121 * units + (layers - 1) * units**2 + units * QUANTILES
    # Used for row and column, beside the three sums of the centroid's 25 pixels.
    return ModelSize(weights + layers * units + QUANTILES, 2 * weights + 3 * 25)


def _size_of_mlp_bragg_mirrored(values: Configuration) -> ModelSize:
    size = _size_of_mlp_bragg_symmetric(values)
    # The same weights for four times as many images.
    return ModelSize(size.parameters, 4 * size.macs - 9 * 25)


def _size_of_mlp_ptycho(values: Configuration) -> ModelSize:
    units, layers = _integers(values, "units", "layers")
    weights = 4096 * units + (layers - 1) * units**2 + units * 2 * 4096
    return ModelSize(weights + layers * units + 2 * 4096, weights)


def _size_of_cnn_bragg(values: Configuration) -> ModelSize:
    filters, layers = _integers(values, "filters", "layers")
    stack = _size_of_stack(1, filters, layers, STAGE_PIXELS["bragg"])
    widths = (filters * 4, 64, 32, 16, 8, 2 * QUANTILES)
    weights = sum(a * b for a, b in itertools.pairwise(widths))
    return ModelSize(stack.parameters + weights + sum(widths[1:]), stack.macs + weights)


def _size_of_cnn_ptycho(values: Configuration) -> ModelSize:
    filters, *layers = _integers(
        values, "filters", "encoder_layers", "decoder1_layers", "decoder2_layers"
    )
    parts = [_size_of_stack(1, filters, layers[0], STAGE_PIXELS["encoder"])]
    for count in layers[1:]:
        parts.append(_size_of_stack(filters, filters, count, STAGE_PIXELS["decoder"]))
        parts.append(ModelSize(9 * filters + 1, 9 * filters * 4096))
    return ModelSize(sum(p.parameters for p in parts), sum(p.macs for p in parts))


def _size_of_stack(channels: int, filters: int, layers: int, pixels: tuple[int, ...]) -> ModelSize:
    """Count padded 3×3 convolutions dealt to stages; a ReZero residual has one gain more."""
    from edgexnas.host.networks.bragg_models import RESIDUAL_FROM

    others = layers - 1 if channels != filters else layers
    first = layers - others
    parameters = first * (9 * channels + 1) * filters + others * (9 * filters + 1) * filters
    if layers >= RESIDUAL_FROM:
        parameters += others
    macs = 0
    for stage, area in enumerate(pixels):
        # The first stages get what does not divide by three, as in `convolution_stages`.
        macs += area * 9 * filters**2 * (layers // 3 + (stage < layers % 3))
    # The first layer was counted with `filters` input channels and may have fewer.
    macs -= first * pixels[0] * 9 * filters * (filters - channels)
    return ModelSize(parameters, macs)


_UNITS = Integer("units", 1, 1000, "log-uniform")
_HIDDEN = Integer("layers", 1, 10, "log-uniform")
_FILTERS = Integer("filters", 1, 256, "log-uniform")
_DEPTHS = tuple(
    Integer(name, 1, 128, "log-uniform")
    for name in ("encoder_layers", "decoder1_layers", "decoder2_layers")
)

_UNET: tuple[Hyperparameter, ...] = (
    Integer("width1", 16, 64, "log-uniform"),
    Integer("width2", 16, 128, "log-uniform"),
    Integer("width3", 32, 256, "log-uniform"),
    Integer("blocks", 1, 2),
    # A stride of 1 costs four times as much as 2, and is for a space of one's own.
    Choice("stride", (2, 4)),
    Choice("skips", (True, False)),
    Choice("separable", (False, True)),
)
_UNET_TRAINING: tuple[Hyperparameter, ...] = (
    Integer("epochs", 16, 160, "log-uniform"),
    Choice("batch_size", (32, 64)),
    # Normalised convolutions train at these and diverge beyond; lower ones are slow.
    Real("learning_rate", 1e-3, 8e-3, "log-uniform"),
)

SPACES: dict[str, SearchSpace] = {
    space.name: space
    for space in (
        SearchSpace(
            "mlpBragg",
            "bragg",
            (_UNITS, _HIDDEN),
            _builder("bragg_models:MlpBragg", "units", "layers"),
            _size_of_mlp_bragg,
        ),
        SearchSpace(
            "cnnBragg",
            "bragg",
            (_FILTERS, Integer("layers", 1, 128, "log-uniform")),
            _builder("bragg_models:CnnBragg", "filters", "layers"),
            _size_of_cnn_bragg,
        ),
        SearchSpace(
            "mlpBraggSymmetric",
            "bragg",
            (_UNITS, _HIDDEN),
            _builder("symmetric_mlp:mlp_bragg_symmetric", "units", "layers"),
            _size_of_mlp_bragg_symmetric,
        ),
        SearchSpace(
            "mlpBraggSmooth",
            "bragg",
            (
                Integer("units", 2, 512, "log-uniform"),
                Integer("layers", 1, 8, "log-uniform"),
                Choice("batch_size", (16, 32, 64, 128, 256)),
                Real("learning_rate", 3e-4, 1e-1, "log-uniform"),
            ),
            _builder("symmetric_mlp:mlp_bragg_smooth", "units", "layers"),
            _size_of_mlp_bragg_symmetric,
        ),
        SearchSpace(
            "mlpBraggMirrored",
            "bragg",
            (
                Integer("units", 2, 256, "log-uniform"),
                Integer("layers", 1, 6, "log-uniform"),
                Choice("batch_size", (16, 32, 64, 128)),
                Real("learning_rate", 3e-4, 6e-2, "log-uniform"),
            ),
            _builder("symmetric_mlp:mlp_bragg_mirrored", "units", "layers"),
            _size_of_mlp_bragg_mirrored,
        ),
        SearchSpace(
            "mlpPtycho",
            "ptycho",
            (_UNITS, _HIDDEN),
            _builder("ptycho_models:MlpPtycho", "units", "layers"),
            _size_of_mlp_ptycho,
        ),
        SearchSpace(
            "cnnPtycho",
            "ptycho",
            (_FILTERS, *_DEPTHS),
            _builder("ptycho_models:CnnPtycho", "filters", *(depth.name for depth in _DEPTHS)),
            _size_of_cnn_ptycho,
        ),
        SearchSpace(
            "ptychoUnet",
            "ptycho",
            (*_UNET, *_UNET_TRAINING),
            _builder("ptycho_unet:PtychoUnet", *(parameter.name for parameter in _UNET)),
        ),
    )
}
"""The spaces of Table 1, those of symmetric networks, and ptychoUnet, by name."""


def resolve_space(space: str | SearchSpace, *, task: str) -> SearchSpace:
    """Find a space by its name, by ``"module:ATTRIBUTE"``, or take the object itself.

    Raises
    ------
    ConfigurationError
        If there is no such space or it is for another task.
    """
    if isinstance(space, str) and ":" in space:
        space = import_space(space)
    if isinstance(space, str):
        if space not in SPACES:
            names = [name for name, known in SPACES.items() if known.task == task]
            raise ConfigurationError(
                f"space {space!r} is unknown; specify one of {names}, 'module:ATTRIBUTE' "
                "or a SearchSpace"
            )
        space = SPACES[space]
    if not isinstance(space, SearchSpace):
        raise ConfigurationError(
            f"space {space!r} is a {type(space).__name__}; specify a name or a SearchSpace"
        )
    if space.task != task:
        raise ConfigurationError(
            f"space {space.name} is for {space.task}, not {task}; specify a space for {task}"
        )
    return space


def import_space(path: str) -> SearchSpace:
    """Import the space that ``"module:ATTRIBUTE"`` names.

    Raises
    ------
    ConfigurationError
        If the module cannot be imported or the attribute is not a `SearchSpace`.
    """
    module, _, attribute = path.partition(":")
    try:
        space = getattr(importlib.import_module(module), attribute)
    # Whatever the module raises while it is imported, or import_module of no name at all.
    except Exception as error:
        raise ConfigurationError(
            f"space {path!r} cannot be imported ({type(error).__name__}: {error}); specify "
            "'module:ATTRIBUTE' of a module on the Python path (PYTHONPATH)"
        ) from error
    if not isinstance(space, SearchSpace):
        raise ConfigurationError(f"space {path!r} is a {type(space).__name__}; name a SearchSpace")
    return space
