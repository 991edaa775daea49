"""Another name, until the next release, of `edgexnas.host.networks.bragg_models`."""

from edgexnas.host.networks.bragg_models import *  # noqa: F403
