"""Measure what one inference costs, and compare two bundles, from your own program.

    python samples/07_measure_energy.py baseline.edgex rival.edgex keys/

Needs a power meter: a Jetson's rails, an NVIDIA GPU (pip install 'edgexnas[nvml]'), or CPU energy
counters that may be read.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from edgexnas.bundle import open_bundle
from edgexnas.device.benchmark import BenchSettings, EnergyProtocol, run_bench
from edgexnas.device.power import PowerSampler, open_power_meter
from edgexnas.errors import EdgexnasError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundles", type=Path, nargs="+", help="the baseline first")
    parser.add_argument("trust", type=Path, help="folder of *.pub.pem files")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each window")
    parser.add_argument("--blocks", type=int, default=3, help="load windows of a bundle")
    parser.add_argument("--root", type=Path, default=Path("/"), help="folder that holds sys")
    options = parser.parse_args()

    # Power of anything: sample while it runs, then integrate between two moments.
    meter = open_power_meter(root=options.root)
    print(meter.description)
    with PowerSampler(meter, period_s=0.05) as sampler:
        began = sampler.clock.now()
        total = sum(number * number for number in range(3_000_000))
        ended = sampler.clock.now()
        time.sleep(0.3)  # a reading after the end, to interpolate
    print(f"a sum of squares ({total}) took {sampler.trace().energy_j(began, ended):.2f} J")
    meter.close()

    # Bundles side by side: the same as `edgexnas bench`.
    windows = EnergyProtocol.of_windows(options.seconds, blocks=options.blocks)
    settings = BenchSettings(
        spread_s=min(10.0, options.seconds), sweep=(), cold_start=False,
        energy="on", protocol=windows, root=options.root,
    )  # fmt: skip
    bundles = [open_bundle(path, trust=options.trust) for path in options.bundles]
    report = run_bench(bundles, settings)
    for bench in report.bundles:
        energy = bench.energy
        if energy is not None:
            print(
                f"{bench.name}: {bench.latency.p50_ms:.4f} ms, {energy.total_mj:.3f} ± "
                f"{energy.total_half_width_mj:.3f} mJ an inference of {energy.items}"
            )
    report.check()


if __name__ == "__main__":
    try:
        main()
    except EdgexnasError as error:
        sys.exit(f"error: {error}")
