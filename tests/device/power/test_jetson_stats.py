"""jetson-stats: read from its real service, which runs on simulated files in a namespace."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from edgexnas.device.power.jetson_stats import read_jetson_stats
from edgexnas.errors import MissingDependencyError

ROOT = Path(__file__).resolve().parents[3]

# The service takes fixed places: everything is a throw-away copy of the file system.
NAMESPACE = """
set -e
mount -t tmpfs tmpfs "$PLACE"; cd "$PLACE"; mkdir up work root
mount -t overlay overlay -o lowerdir=/,upperdir=$PLACE/up,workdir=$PLACE/work root
mount -t proc proc root/proc; mount --rbind /dev root/dev
mount --bind "$SITE" "root$SITE"; mount --bind "$REPOSITORY" "root$REPOSITORY"
mkdir -p root/run; mount -t tmpfs tmpfs root/run
grep -q '^jtop:' root/etc/group || echo 'jtop:x:990:' >> root/etc/group
cd root
mkdir -p sys/devices/system/cpu sys/devices/virtual/dmi/id sys/class/hwmon
echo Jetson > sys/devices/virtual/dmi/id/product_name
mkdir -p sys/class/thermal/thermal_zone0 sys/class/thermal/thermal_zone1
echo cpu-thermal > sys/class/thermal/thermal_zone0/type
echo 48500 > sys/class/thermal/thermal_zone0/temp
echo gpu-thermal > sys/class/thermal/thermal_zone1/type
echo -256000 > sys/class/thermal/thermal_zone1/temp
for folder in bus/i2c/devices class/hwmon class/devfreq class/power_supply kernel/debug/clk; do
  mkdir -p fake_sys/$folder
done
cp /proc/stat fake_sys/stat
for core in sys/devices/system/cpu/cpu0 sys/devices/system/cpu/cpu1; do
  place=$core/cpufreq; mkdir -p $place
  echo 1190400 > $place/scaling_cur_freq; echo 729600 > $place/scaling_min_freq
  echo 2201600 > $place/scaling_max_freq; echo schedutil > $place/scaling_governor
  for kind in cur min max; do cp $place/scaling_${kind}_freq $place/cpuinfo_${kind}_freq; done
done
mkdir -p fake_sys/devices/system/cpu; cp -r sys/devices/system/cpu/cpu? fake_sys/devices/system/cpu
chroot . "$PYTHON" -c 'from edgexnas.device.power.jetson_stats import read_jetson_stats as r
try: r()
except OSError as error: print(error)'
JTOP_TESTING=1 JTOP_SERVICE=1 chroot . "$PYTHON" -m jtop --force > log.txt 2>&1 &
until [ -S run/jtop.sock ]; do kill -0 $! || { cat log.txt >&2; exit 1; }; sleep 0.1; done
# The library gives up after 1.5 s without news, which a busy machine may take.
for attempt in $(seq 20); do
  chroot . "$PYTHON" -c 'from edgexnas.device.power.jetson_stats import read_jetson_stats as r
print(*(f"{name}: {value}" for name, value in r().pairs()), sep="\\n")' && exit
done
exit 1
"""


def test_clocks_and_temperatures_come_from_the_real_service(tmp_path: Path) -> None:
    if importlib.util.find_spec("jtop") is None:
        pytest.skip("jetson-stats is not installed: pip install jetson-stats")
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("a mount namespace needs root and unshare of Debian's util-linux")
    unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation=private"]
    probe = f"mount -t tmpfs t {tmp_path} && cd {tmp_path} && mkdir u w m && mount -t overlay o -o "
    probe += "lowerdir=/,upperdir=u,workdir=w m && mount -t proc p m/proc"
    if subprocess.run([*unshare, "sh", "-c", probe], capture_output=True).returncode:
        pytest.skip("this container may not mount an overlay in a namespace")
    environment = {
        "PATH": os.environ["PATH"], "PLACE": str(tmp_path), "PYTHON": sys.executable,
        "SITE": sysconfig.get_path("purelib"), "REPOSITORY": str(ROOT), "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    done = subprocess.run(
        [*unshare, "bash", "-c", NAMESPACE], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("jetson-stats gives no state (The jtop.service is not active);")
    assert lines[0].endswith("start its service by systemctl start jtop")
    assert lines[1:4] == [
        "mode: unknown",
        "jetson_clocks: unknown",
        "clocks: cpu0 1190 MHz, cpu1 1190 MHz",
    ]
    assert "temperatures: cpu 48.5 °C" in lines


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jtop", None)
    with pytest.raises(MissingDependencyError, match=r"edgexnas\[monitor\]"):
        read_jetson_stats()
