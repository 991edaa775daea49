"""Choose the engine and its precision on the device, by measuring both.

Run: python samples/04_choose_engine.py BUNDLE KEYS CACHE

BUNDLE is a signed model, KEYS the folder of the public keys you trust, CACHE a folder for plans and
measurements, which is made for you alone. Run it twice: the second start builds and measures
nothing.
"""

import logging
import sys
import time

from edgexnas import EdgexnasError
from edgexnas.device import Predictor


def main(bundle: str, keys: str, cache: str) -> None:
    # What falls back, and what a cache does not give, is said in the log.
    logging.basicConfig(format="# %(message)s", level=logging.INFO)
    started = time.perf_counter()
    # TensorRT where it can run, else onnxruntime; float16 or INT8, whichever is faster here and
    # stays within the gate.
    with Predictor(bundle, trust=keys, engine="auto", precision="auto", cache=cache) as predictor:
        print(f"open after {time.perf_counter() - started:.2f} s")
        for trial in predictor.precision_trials:
            if trial.refusal:
                print(f"{trial.precision}: {trial.refusal}")
            else:
                print(f"{trial.precision}: {trial.median_ms:.3f} ms a batch, {trial.runs} runs")
        for name, value in predictor.engine.describe().items():
            print(f"{name}: {value}")
        print(f"deviates from the reference: {predictor.proof}")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(f"usage: python {sys.argv[0]} BUNDLE KEYS CACHE")
    try:
        main(*sys.argv[1:])
    except EdgexnasError as error:
        sys.exit(f"error: {error}")
