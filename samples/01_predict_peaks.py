"""Print the Bragg peaks of a series of detector frames.

Run: python samples/01_predict_peaks.py BUNDLE KEYS FRAMES

BUNDLE is a signed model, KEYS the folder of the public keys you trust, FRAMES an HDF5 or NeXus
file, a hexrd frame cache, a .npy array, or an image that fabio reads.
"""

import sys

from edgexnas import EdgexnasError
from edgexnas.device import PeakPredictor


def main(bundle: str, keys: str, frames: str) -> None:
    # Opening verifies the signature and proves the engine on the bundle's reference vectors.
    with PeakPredictor(bundle, trust=keys) as predictor:
        proof = predictor.proof
        print(f"# {predictor.manifest.model_id} on {predictor.engine.name}, ", end="")
        print(f"{proof.measured_px:.4f} px from its reference ({proof.allowed_px} px allowed)")
        print("# frame row_px col_px row_interval_px col_interval_px counts flags")
        for peaks in predictor.stream(frames):
            for position, interval, counts, flags in zip(
                peaks.positions_px, peaks.intervals_px, peaks.intensities, peaks.flags, strict=True
            ):
                (row, col), (height, width) = position, interval
                print(f"{peaks.frame_number} {row:.3f} {col:.3f} {height:.3f} {width:.3f}", end=" ")
                print(f"{counts:.0f} {flags}")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(f"usage: python {sys.argv[0]} BUNDLE KEYS FRAMES")
    try:
        main(*sys.argv[1:])
    except EdgexnasError as error:
        sys.exit(f"error: {error}")
