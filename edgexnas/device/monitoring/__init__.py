"""What the streaming service shows of itself: metrics, web page, status PVs and terminal.

Each view reads `ServiceStatus` snapshots, never the service's insides, and writes nothing back.
"""

from __future__ import annotations

from edgexnas.device.monitoring.views import open_views

__all__ = ["open_views"]
