"""Print the Bragg peaks of frames as they come from a detector, and what was missed.

Run: python samples/05_stream_detector.py BUNDLE KEYS URL

BUNDLE is a signed model, KEYS the folder of the public keys you trust, URL one of

    pva://CHANNEL?idle_s=5          areaDetector over EPICS PV Access (pip install 'edgexnas[pva]')
    simplon://HOST:31001?exclusive=1    DECTRIS Stream V2 over ZMQ (pip install 'edgexnas[zmq]')
    file:///data/scan.h5?rate=200&follow=1    a file, also while it is being written
    sim://hedm?shape=1024x1024&rate=100&frames=500    no detector at all

It ends with the series. To try the first two without a detector, run beside it
`python -m edgexnas.device.publishing pva CHANNEL --rate 100 --frames 500 --delay 5` or
`python -m edgexnas.device.publishing simplon tcp://127.0.0.1:31001 --rate 100 --frames 500`.
"""

import sys
import time

from edgexnas import EdgexnasError
from edgexnas.device import PeakPredictor
from edgexnas.device.sources import open_event_source


def main(bundle: str, keys: str, url: str) -> None:
    # Opened first, so that a wrong URL is refused before the engine is built.
    source = open_event_source(url)
    with PeakPredictor(bundle, trust=keys) as predictor:
        print(f"# {predictor.manifest.model_id} on {predictor.engine.name}, frames from {url}")
        print("# frame peaks brightest_row_px brightest_col_px")
        frames, began = 0, time.monotonic()
        for peaks in predictor.stream(source):
            if not frames:
                began = time.monotonic()
            frames += 1
            brightest = peaks.intensities.argmax() if len(peaks) else None
            place = [] if brightest is None else peaks.positions_px[brightest].round(3).tolist()
            # Numbers are the detector's: one that is missing was lost on the way.
            print(peaks.frame_number, len(peaks), *place, flush=True)
    seconds = max(time.monotonic() - began, 1e-9)
    print(f"# {frames} frames, {frames / seconds:.1f} a second; the source counts", end=" ")
    print(", ".join(f"{name} {value}" for name, value in source.status().items()))


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(f"usage: python {sys.argv[0]} BUNDLE KEYS URL")
    try:
        main(*sys.argv[1:])
    except EdgexnasError as error:
        sys.exit(f"error: {error}")
