"""A detector to try a service with: python -m edgexnas.device.publishing pva|simplon ...

It sends simulated frames at a rate, over EPICS PV Access as areaDetector does, or over ZMQ as a
DECTRIS detector does. Frames are made and compressed before the first is sent. It prints "ready"
when it can be connected to, and at the end what it sent, as JSON.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from edgexnas.device.publishing.frames import prepare
from edgexnas.errors import EdgexnasError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    options = _parser().parse_args(arguments)
    try:
        options.send(options)
    except EdgexnasError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _send_pva(options: argparse.Namespace) -> None:
    # Imported late: each needs a library of its own.
    from edgexnas.device.publishing.pva import send_pva

    send_pva(options, prepare(options, options.codec))


def _send_simplon(options: argparse.Namespace) -> None:
    from edgexnas.device.publishing.simplon import send_simplon

    codec = options.codec if options.codec == "none" else f"{options.codec}-hdf5"
    send_simplon(options, prepare(options, codec))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m edgexnas.device.publishing", description=__doc__.split("\n")[0]
    )
    kinds = parser.add_subparsers(required=True, metavar="pva|simplon")
    pva = kinds.add_parser("pva", help="NTNDArray over EPICS PV Access")
    pva.add_argument("channel", nargs="?", default="EDGEX:SIM:Image", help="name of the PV")
    pva.add_argument("--positions", metavar="CHANNEL", help="send scan positions on another PV")
    pva.add_argument("--codec", choices=["none", "lz4", "bslz4", "blosc"], default="none")
    pva.add_argument("--linger", type=float, default=1.0, help="seconds to stay after the end")
    pva.set_defaults(send=_send_pva)
    simplon = kinds.add_parser("simplon", help="DECTRIS Stream V2 over ZMQ PUSH")
    simplon.add_argument("address", nargs="?", default="tcp://127.0.0.1:31001")
    simplon.add_argument("--codec", choices=["none", "lz4", "bslz4"], default="bslz4")
    simplon.add_argument("--queue", type=int, default=100, help="messages that may wait")
    simplon.add_argument("--linger", type=float, default=5.0, help="seconds to wait for a receiver")
    simplon.set_defaults(send=_send_simplon)
    for kind in (pva, simplon):
        kind.add_argument("--experiment", choices=["hedm", "ptycho"], default="hedm")
        kind.add_argument("--shape", help="rows x columns, such as 1024x1024")
        kind.add_argument("--dtype", choices=["uint8", "uint16", "uint32", "int32", "float32"])
        kind.add_argument("--rate", type=float, help="frames a second; as fast as it goes if unset")
        kind.add_argument("--frames", type=int, help="frames of a series; endless if unset")
        kind.add_argument("--series", type=int, default=1, help="number of series")
        kind.add_argument("--pause", type=float, default=0.0, help="seconds between series")
        kind.add_argument("--peaks", type=int, help="about how many peaks a frame has")
        kind.add_argument("--seed", type=int, default=0)
        kind.add_argument("--gap", type=int, default=0, metavar="N", help="leave out every N-th")
        kind.add_argument("--duplicate", type=int, default=0, metavar="N", help="send it twice")
        kind.add_argument("--reorder", type=int, default=0, metavar="N", help="send it late")
        kind.add_argument("--garble", type=int, default=0, metavar="N", help="damage every N-th")
        kind.add_argument("--bad-time", type=int, default=0, metavar="N", help="impossible time")
        kind.add_argument("--delay", type=float, default=0.0, help="seconds to wait after «ready»")
        kind.add_argument("--hold", action="store_true", help="wait for a line on standard input")
    return parser


if __name__ == "__main__":
    sys.exit(main())
