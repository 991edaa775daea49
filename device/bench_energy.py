"""Measure the energy of one inference of a bundle: idle, load, idle.

    python device/bench_energy.py bragg.edgex keys/

`edgexnas bench` measures more; this is the part to copy into a script of your own.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from edgexnas.bundle import open_bundle
from edgexnas.device import Predictor
from edgexnas.device.benchmark import EnergyProtocol, Load, measure_energy
from edgexnas.device.power import open_power_meter

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("bundle", type=Path)
parser.add_argument("trust", type=Path, help="folder of *.pub.pem files")
parser.add_argument("--precision", default="int8")
parser.add_argument("--batch", type=int, default=32)
parser.add_argument("--seconds", type=float, default=60.0, help="of each window")
parser.add_argument("--blocks", type=int, default=3, help="load windows")
parser.add_argument("--root", type=Path, default=Path("/"), help="folder that holds sys")
options = parser.parse_args()

bundle = open_bundle(options.bundle, trust=options.trust)
inputs = bundle.reference["input"][: options.batch].copy()
meter = open_power_meter(root=options.root)
protocol = EnergyProtocol.of_windows(options.seconds, blocks=options.blocks)
with Predictor(bundle, precision=options.precision, batch=options.batch) as predictor:
    load = Load(bundle.manifest.model_id, lambda: predictor.engine.run(inputs), len(inputs))
    report = measure_energy([load], meter, protocol, progress=print)
(result,) = report.results
print(
    f"{result.name}, batch {result.items}, {report.meter}: "
    f"{result.total_mj:.3f} ± {result.total_half_width_mj:.3f} mJ an inference, "
    f"{result.marginal_mj:.3f} ± {result.marginal_half_width_mj:.3f} mJ above idle, "
    f"{result.power_w:.2f} W against {result.idle_w:.2f} W idle"
)
if report.faults:
    raise SystemExit(report.faults[0])
