"""Time a grid of cnnBragg networks on a GPU, for searches that run where there is none.

    python host/gpu_latencies.py --output gpu-latencies.json
    python host/measured_latency.py peaks.h5 --latencies gpu-latencies.json

Every network is a float16 CUDA graph in torch with copies in and out. All are captured first, from
coarse steps of filters to fine ones for as long as --seconds allow, and then timed in turns, so
that whatever else the machine does falls on all of them alike.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from torch_graphs import TorchGraph

from edgexnas.device.benchmark import Load, measure_latency
from edgexnas.host.networks.bragg_models import CnnBragg
from edgexnas.whole_files import write_whole

FILTERS = (8, 16, 24, 2, 12, 20, 4, 6, 10, 14, 18, 22)
LAYERS = range(1, 11)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60.0, help="for capturing")
    parser.add_argument("--spread", type=float, default=4.0, help="seconds of timing")
    options = parser.parse_args()
    torch.backends.cudnn.benchmark = True
    began = time.monotonic()
    graphs: dict[str, TorchGraph] = {}
    for filters in FILTERS:
        if time.monotonic() - began > options.seconds:
            break
        for layers in LAYERS:
            model = CnnBragg(filters, layers)
            graphs[f"{filters}×{layers}"] = TorchGraph(model, (options.batch, 1, 11, 11), "NHWC")
        print(f"{filters} filters after {time.monotonic() - began:.1f} s", flush=True)
    loads = [Load(name, graph.replay, options.batch) for name, graph in graphs.items()]
    results = measure_latency(loads, runs=60, calls=10, spread_s=options.spread)
    content = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "batch": options.batch,
        "median_ms": {r.name: (r.p50_ms, r.p50_half_width_ms) for r in results},
    }
    write_whole(options.output, json.dumps(content, indent=1, ensure_ascii=False).encode())
    for result in results:
        print(f"{result.name}: {result.p50_ms:.4f} ± {result.p50_half_width_ms:.4f} ms")


if __name__ == "__main__":
    main()
