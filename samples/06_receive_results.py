"""Print what `edgexnas serve` sends over ZMQ, and say what did not come.

Run: python samples/06_receive_results.py ADDRESS [FRAMES]

ADDRESS is that of the service's ZMQ sink, such as tcp://127.0.0.1:5557; with FRAMES it ends after
so many. Start the service with `edgexnas serve samples/06_serve.toml`.
"""

import json
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import zmq


def messages(address: str) -> Iterator[tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """Header and arrays of each message; see edgexnas/device/sinks/zmq_sink.py."""
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.subscribe(b"edgexnas")
        socket.connect(address)
        while True:
            _, header, *parts = socket.recv_multipart()
            told = json.loads(header)
            arrays = {
                array["name"]: np.frombuffer(part, array["dtype"]).reshape(array["shape"])
                for array, part in zip(told["arrays"], parts, strict=True)
            }
            yield told, arrays


def main(address: str, frames: int | None = None) -> None:
    expected, seen = None, 0
    for header, arrays in messages(address):
        # ZMQ drops messages for a slow subscriber; the count of those sent shows it.
        if expected is not None and header["sent"] != expected:
            print(f"# {header['sent'] - expected} messages did not come")
        expected = header["sent"] + 1
        if header["kind"] == "end":
            print(f"# {header['series']} has ended: {header['counts']}")
        elif header.get("error"):
            print(f"{header['series']} {header['number']}: {header['error']}")
        elif header["kind"] == "peaks":
            brightest = arrays["intensities"].argmax() if len(arrays["intensities"]) else None
            where = "" if brightest is None else f", brightest at {arrays['positions'][brightest]}"
            print(
                f"{header['series']} {header['number']}: {len(arrays['positions'])} peaks{where}, "
                f"{header['latency_ms']:.1f} ms after arrival"
            )
        seen += header["kind"] == "peaks"
        if frames is not None and seen >= frames:
            return


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3) or not all(count.isdecimal() for count in sys.argv[2:]):
        sys.exit(f"usage: python {sys.argv[0]} ADDRESS [FRAMES]")
    try:
        main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) == 3 else None)
    except zmq.ZMQError as error:
        sys.exit(f"error: {sys.argv[1]}: {error}; give the address of the service's ZMQ sink")
