"""Stream a ptychography scan and keep the object that its patches are stitched to.

Run: python samples/03_stream_ptycho.py BUNDLE KEYS SCAN OBJECT

BUNDLE is a signed model, KEYS the folder of the public keys you trust, SCAN an HDF5, CXI or .npz
file of patterns with positions, OBJECT an .npz or .h5 file to write, with pictures beside it. Live
patterns work alike: give `stream` an iterable of (pattern, position) pairs, with None for a
position that comes later as a `PositionReading`. A bundle that holds its probe can refine the
object after the last pattern: `predictor.stream(scan, refine=10)`, then `stream.refinement`.
"""

import sys

from edgexnas import EdgexnasError
from edgexnas.device import PtychoPredictor


def main(bundle: str, keys: str, scan: str, output: str) -> None:
    with PtychoPredictor(bundle, trust=keys) as predictor:
        proof = predictor.proof
        print(f"# {predictor.manifest.model_id} on {predictor.engine.name}, ", end="")
        print(f"{proof.measured_rad:.4f} rad from its reference ({proof.allowed_rad} rad allowed)")
        stream = predictor.stream(scan)
        print("# frames rows_px cols_px covered")
        for patches in stream:
            # A snapshot of what is stitched so far; the stream goes on beside it.
            image = stream.image()
            (rows, cols), covered = image.values.shape, (image.coverage > 0).mean()
            print(f"{patches.frame_numbers[-1] + 1} {rows} {cols} {covered:.3f}")
    paths = ", ".join(str(path) for path in stream.save(output))
    print(f"# {paths}: {stream.counts}")


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(f"usage: python {sys.argv[0]} BUNDLE KEYS SCAN OBJECT")
    try:
        main(*sys.argv[1:])
    except EdgexnasError as error:
        sys.exit(f"error: {error}")
