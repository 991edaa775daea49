"""Another name, until the next release, of `edgexnas.host.networks.bragg_models`."""

from edgexnas.host.networks.bragg_models import (
    BRAGGNN_DENSE,
    LEVELS,
    BraggNN,
    CnnBragg,
    MlpBragg,
    QuantileHead,
    cnn_bragg,
    count_macs,
    count_parameters,
    mlp_bragg,
)

__all__ = [
    "BRAGGNN_DENSE",
    "LEVELS",
    "BraggNN",
    "CnnBragg",
    "MlpBragg",
    "QuantileHead",
    "cnn_bragg",
    "count_macs",
    "count_parameters",
    "mlp_bragg",
]
