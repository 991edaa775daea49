"""Power of the device: Jetson rails, desktop GPUs through NVML, CPUs through RAPL.

`open_power_meter` opens the meter of this machine, `PowerSampler` reads it in the background, and
the `PowerTrace` that it leaves integrates energy between two moments.
"""

from edgexnas.device.power.jetson_rails import JetsonRailMeter
from edgexnas.device.power.meter import PowerMeter, PowerReading
from edgexnas.device.power.opening import METERS, open_power_meter
from edgexnas.device.power.sampler import Clock, PowerSampler
from edgexnas.device.power.trace import PowerTrace

__all__ = [
    "METERS",
    "Clock",
    "JetsonRailMeter",
    "PowerMeter",
    "PowerReading",
    "PowerSampler",
    "PowerTrace",
    "open_power_meter",
]
