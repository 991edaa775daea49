"""Another name, until the next release, of `edgexnas.host.networks.spaces`."""

from edgexnas.host.networks.spaces import *  # noqa: F403
