#!/usr/bin/env bash
# Installs edgexnas on a Jetson beside the TensorRT that JetPack brings.
#
#     bash device/setup.sh [FOLDER]                   the virtual environment, ~/edgexnas by default
#     sudo bash device/setup.sh --service [FOLDER]    in /opt/edgexnas, with the systemd unit and its user
set -euo pipefail

service=
if [ "${1:-}" = --service ]; then
    service=yes
    shift
    if [ "$(id -u)" != 0 ]; then
        echo "setup.sh: --service makes a user and a systemd unit; run it with sudo" >&2
        exit 1
    fi
fi
folder=${1:-${service:+/opt/edgexnas}}
folder=${folder:-$HOME/edgexnas}
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10) and "edgexnas needs Python 3.10 or newer: JetPack 6 or 7")'
if [ -e "$folder" ] && [ ! -x "$folder/bin/python" ]; then
    echo "setup.sh: $folder exists and is no virtual environment; name another folder" >&2
    exit 1
fi
if [ "$(uname -m)" = aarch64 ] && ! command -v nvcc >/dev/null; then
    # pycuda is built from source here and needs the compiler of JetPack's CUDA.
    export PATH=/usr/local/cuda/bin:$PATH
fi

# TensorRT comes from apt and not from pip, so the environment must see the system's packages.
"$python" -m venv --system-site-packages "$folder"
# cuda-bindings must be of the machine's CUDA: 12 on JetPack 6, 13 on JetPack 7.
bindings=()
if [ "$(uname -m)" = aarch64 ] && command -v nvcc >/dev/null; then
    bindings=("cuda-bindings==$(nvcc --version | sed -n 's/.*release \([0-9]*\).*/\1/p').*")
fi
"$folder/bin/python" -m pip install --quiet -c "$root/constraints.txt" "$root[edge]" "${bindings[@]}"

"$folder/bin/python" - <<'PY'
import importlib.util

import edgexnas
from edgexnas.device import Predictor

tensorrt = importlib.util.find_spec("tensorrt")
if tensorrt is None:
    found = "TensorRT was not found; models will run on the CPU"
else:
    found = f"TensorRT {importlib.import_module('tensorrt').__version__}"
print(f"edgexnas {edgexnas.__version__}, {Predictor.__name__} ready; {found}")
PY
if [ -z "$service" ]; then
    echo "Next: $folder/bin/edgexnas verify BUNDLE --trust KEYS"
    exit
fi

units=${UNITS:-/etc/systemd/system}
settings=${SETTINGS:-/etc/edgexnas}
if ! id edgexnas >/dev/null 2>&1; then
    useradd --system --user-group --home-dir /var/lib/edgexnas --shell /usr/sbin/nologin edgexnas
fi
for group in video render; do
    # Where there is a GPU, these may open it.
    if getent group "$group" >/dev/null; then usermod --append --groups "$group" edgexnas; fi
done
install -d -m 0755 "$settings" "$units"
sed "s|/opt/edgexnas|$folder|" "$root/device/edgexnas.service" >"$units/edgexnas.service"
# time-sync.target is reached at once unless something waits for the clock to be right.
systemctl enable systemd-time-wait-sync.service ||
    echo "setup.sh: nothing here waits for the clock; see that it is right before the service starts" >&2
systemctl daemon-reload
echo "Next: write $settings/serve.toml, then: systemctl enable --now edgexnas"
