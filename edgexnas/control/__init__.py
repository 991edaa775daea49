"""A running service as a device of bluesky plans.

::

    from bluesky import RunEngine
    from bluesky.plans import scan
    from ophyd_async.core import init_devices
    from edgexnas.control import ServiceDevice

    RE = RunEngine()
    with init_devices():
        peaks = ServiceDevice("http://127.0.0.1:9108", frames_per_point=1)
    RE(scan([detector, peaks], motor, 0, 1, 11))

It speaks to the service over HTTP alone and loads nothing of the device, so that it runs where
bluesky runs. The extra «bluesky» installs what it needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgexnas.lazy_names import lazy_names

if TYPE_CHECKING:
    from edgexnas.control.service_device import ServiceDevice as ServiceDevice
    from edgexnas.control.snapshot import ServiceSnapshot as ServiceSnapshot
    from edgexnas.control.snapshot import read_snapshot as read_snapshot

__getattr__, __dir__, __all__ = lazy_names(__name__)
