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

# The version of headers that is known here; docs/forms.md says what they hold.
NEWEST = 2


def decode(parts: list[bytes]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header and arrays of a message."""
    _, header, *contents = parts
    told = json.loads(header)
    if told["version"] > NEWEST:
        raise ValueError(
            f"a message has version {told['version']} and {NEWEST} is known; take this sample from "
            "a newer edgexnas"
        )
    arrays = {
        array["name"]: np.frombuffer(content, array["dtype"]).reshape(array["shape"])
        for array, content in zip(told["arrays"], contents, strict=True)
    }
    return told, arrays


def messages(address: str) -> Iterator[tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """Header and arrays of each message that comes."""
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.subscribe(b"edgexnas")
        socket.connect(address)
        while True:
            yield decode(socket.recv_multipart())


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
        elif header["kind"] == "peaks" and "positions" in arrays:
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
        sys.exit(f"error: {sys.argv[1]}: {error}; specify the address of the service's ZMQ sink")
    except ValueError as error:
        sys.exit(f"error: {error}")
