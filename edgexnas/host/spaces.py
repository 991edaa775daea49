"""Another name, until 0.3.0, of `edgexnas.host.networks.spaces`."""

from edgexnas.host.networks.spaces import *  # noqa: F403
