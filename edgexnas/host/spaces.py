"""Another name, until the next release, of `edgexnas.host.networks.spaces`."""

from edgexnas.host.networks.spaces import (
    INPUT_SHAPES,
    SPACES,
    TRAINING,
    Choice,
    Configuration,
    Hyperparameter,
    Integer,
    ModelSize,
    Real,
    SearchSpace,
    import_space,
    resolve_space,
)

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
