"""Time a bundle by the paper's protocol: 375 runs of 10 inferences.

    python device/bench_latency.py bragg.edgex keys/

`edgexnas bench` measures more; this is the part to copy into a script of your own.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from edgexnas.bundle import open_bundle
from edgexnas.device import Predictor
from edgexnas.device.benchmark import Load, measure_latency

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("bundle", type=Path)
parser.add_argument("trust", type=Path, help="folder of *.pub.pem files")
parser.add_argument("--precision", default="int8")
parser.add_argument("--batch", type=int, default=32)
parser.add_argument(
    "--spread", type=float, default=10.0, help="seconds that the runs last at least"
)
options = parser.parse_args()

bundle = open_bundle(options.bundle, trust=options.trust)
inputs = bundle.reference["input"][: options.batch].copy()
with Predictor(bundle, precision=options.precision, batch=options.batch) as predictor:
    load = Load(bundle.manifest.model_id, lambda: predictor.engine.run(inputs), len(inputs))
    (result,) = measure_latency([load], spread_s=options.spread)
print(
    f"{result.name}, batch {result.items}: {result.mean_ms:.4f} ± {result.half_width_ms:.4f} ms, "
    f"p50 {result.p50_ms:.4f} ± {result.p50_half_width_ms:.4f} ms, p90 {result.p90_ms:.4f}, "
    f"p99 {result.p99_ms:.4f} ms, {result.items_per_s:,.0f} items/s"
)
