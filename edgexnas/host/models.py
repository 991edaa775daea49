"""Another name, until 0.3.0, of `edgexnas.host.networks.bragg_models`."""

from edgexnas.host.networks.bragg_models import *  # noqa: F403
