"""Results as ZMQ messages; docs/forms.md lists what is in them.

A message has these parts:

1. the topic: ``edgexnas.`` and the kind of message, as in ``edgexnas.peaks``; subscribe to
   ``edgexnas`` for all;
2. a header, JSON in UTF-8, whose ``arrays`` is a list of ``{"name", "dtype", "shape", "unit"}``;
3. one part for each of ``arrays``: its bytes, C-contiguous, little-endian.

ZMQ may lose messages when a peer is slow or away: what must not be lost goes to HDF5.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgexnas.device.optional_libraries import zmq_module
from edgexnas.device.sinks.protocol import Sink, SinkPolicy
from edgexnas.device.sinks.results import (
    FrameResult,
    ObjectSnapshot,
    SeriesBegun,
    SeriesEnded,
    SeriesSpots,
    ServiceIdentity,
)
from edgexnas.errors import ConfigurationError
from edgexnas.spots import SPOT_COLUMNS

__all__ = ["ZmqSink"]

Arrays = Mapping[str, tuple[npt.NDArray[Any], str]]

PEER_S = 1.0
"""How long "push" waits for a peer: one that is away must not hold up the thread that would see the
service end."""

VERSION = 2
"""Version of headers; those of version 1 lack the fields that docs/forms.md marks as of 2."""


class ZmqSink(Sink):
    """Sends results over ZMQ; see this module's text for the form of messages.

    Parameters
    ----------
    address
        Where to bind, such as "tcp://127.0.0.1:5557" or "ipc:///run/edgexnas/peaks"; with
        `connect` where to connect to.
    mode
        "pub": every subscriber gets everything, and what it does not take is lost.
        "push": each message goes to one of the peers; with none, or slow ones, this sink waits.
    connect
        Whether to connect instead of binding.
    high_water
        Messages that wait for a peer.
    name, policy
        As of `Sink`.

    Attributes
    ----------
    address
        Where it is bound, with the port that was found for ``tcp://127.0.0.1:*``.
    connects
        Whether it connects there instead.
    """

    _identity: ServiceIdentity

    def __init__(
        self,
        address: str,
        *,
        mode: Literal["pub", "push"] = "pub",
        connect: bool = False,
        high_water: int = 1000,
        name: str | None = None,
        policy: SinkPolicy = "drop-oldest",
    ) -> None:
        self.name = name or f"zmq {address}"
        self.policy: SinkPolicy = policy
        self.address = address
        self._mode = mode
        self.connects = connect
        self._high_water = high_water
        self._context: Any = None
        self._socket: Any = None
        self._sent = 0
        self._newest = -1

    def check(self) -> None:
        """Bind, and release at once.

        Raises
        ------
        ConfigurationError
            If the address is wrong or taken.
        MissingDependencyError
            If pyzmq is not installed.
        """
        # Opening replaces a "*" by the port of this try, which another process may have later.
        given = self.address
        try:
            self._open()
        finally:
            self.close()
            self.address = given

    def open(self, identity: ServiceIdentity) -> None:
        """Bind or connect.

        Raises
        ------
        ConfigurationError
            If the address is wrong or taken.
        MissingDependencyError
            If pyzmq is not installed.
        """
        self._identity = identity
        self._open()

    def write(self, results: Sequence[FrameResult]) -> None:
        """Send a message for each.

        Raises
        ------
        OSError
            If no peer takes it for a second ("push").
        """
        for result in results:
            # Before sending, so that the watermark counts this frame.
            self._newest = result.number
            kind = _kind(result, self._identity)
            extra = {
                "detector_id": result.detector_id,
                "timestamp_s": result.timestamp_s,
                "latency_ms": (time.monotonic_ns() - result.arrival_ns) / 1e6,
                "state": result.state,
                "flags": result.flags,
                "error": result.error,
                "bundle_digest": (result.made_by or self._identity).bundle_digest,
            }
            self._send(kind, result.series, result.number, extra, _arrays(result))

    def write_spots(self, spots: SeriesSpots) -> None:
        """Send merged spots."""
        table = spots.spots.table
        arrays = {name: (table[name], unit or "1") for name, (_, unit) in SPOT_COLUMNS.items()}
        self._send("spots", spots.series, self._newest, {}, arrays)

    def begin(self, series: SeriesBegun) -> None:
        """Send "begin"."""
        self._newest = -1
        extra = {
            "metadata": _plain(series.metadata),
            "identity": series.identity,
            "made_by": asdict(self._identity),
        }
        self._send("begin", series.series, -1, extra, {})

    def end(self, series: SeriesEnded) -> None:
        """Send "end"."""
        extra = {"counts": dict(series.counts)}
        self._send("end", series.series, self._newest, extra, {})

    def show(self, snapshot: ObjectSnapshot) -> None:
        """Send the object."""
        image, refinement = snapshot.best, snapshot.refinement
        arrays = {
            "amplitude": (image.amplitude, "1"),
            "phase": (image.phase_rad, "rad"),
            "coverage": (image.coverage, "1"),
        }
        extra = {
            "final": snapshot.final,
            "origin": list(image.origin_px),
            "residuals": None if refinement is None else refinement.residuals.tolist(),
        }
        self._send("object", snapshot.series, snapshot.number, extra, arrays)

    def close(self) -> None:
        """Close the socket; messages that wait have half a second to leave."""
        if self._socket is not None:
            self._socket.close(linger=500)
            # Waits for as long as `linger`, no longer.
            self._context.term()
            self._socket = self._context = None

    def _open(self) -> None:
        zmq = zmq_module(self.name)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUB if self._mode == "pub" else zmq.PUSH)
        self._socket.sndhwm = self._high_water
        self._socket.sndtimeo = round(PEER_S * 1000)
        try:
            if self.connects:
                self._socket.connect(self.address)
            else:
                self._socket.bind(self.address)
                # With the port that was found for "*".
                self.address = self._socket.last_endpoint.decode()
        except zmq.ZMQError as error:
            self.close()
            raise ConfigurationError(
                f"ZMQ cannot {'connect to' if self.connects else 'bind'} {self.address} "
                f"({error.strerror}); specify a free address such as tcp://127.0.0.1:5557"
            ) from error

    def _send(
        self, kind: str, series: str, number: int, extra: Mapping[str, Any], arrays: Arrays
    ) -> None:
        import zmq

        little = {
            name: (array.astype(array.dtype.newbyteorder("<"), copy=False), unit)
            for name, (array, unit) in arrays.items()
        }
        header = {
            "version": VERSION,
            "kind": kind,
            "series": series,
            "number": number,
            # By this counter a receiver sees what ZMQ has dropped on the way.
            "sent": self._sent,
            "watermark": self._newest,
            **extra,
            "arrays": [
                {"name": name, "dtype": array.dtype.str, "shape": array.shape, "unit": unit}
                for name, (array, unit) in little.items()
            ],
        }
        parts = [f"edgexnas.{kind}".encode(), json.dumps(header).encode()]
        parts += [array.tobytes() for array, _ in little.values()]
        try:
            self._socket.send_multipart(parts)
        # Only "push" comes here: a PUB socket drops what a subscriber does not take.
        except zmq.Again as error:
            raise OSError(f"no peer took a message at {self.address} for {PEER_S:g} s") from error
        self._sent += 1


def _kind(result: FrameResult, identity: ServiceIdentity) -> str:
    """Name the message of a frame, also of one that failed and has no arrays."""
    return "peaks" if identity.task == "bragg" and result.amplitude is None else "patch"


def _arrays(result: FrameResult) -> Arrays:
    peaks = result.peaks
    if peaks is not None:
        return {
            "positions": (peaks.positions_px, "px"),
            "intervals": (peaks.intervals_px, "px"),
            "intensities": (peaks.intensities, "counts"),
            "flags": (peaks.flags, "1"),
        }
    if result.amplitude is not None and result.phase_rad is not None:
        return {
            "amplitude": (result.amplitude, "1"),
            "phase": (result.phase_rad, "rad"),
            "position": (np.array(result.position_px or (np.nan, np.nan), np.float64), "px"),
        }
    return {}


def _plain(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Keep what JSON can say of a series' metadata; the rest, NaN and infinity too, is text."""

    def plain(value: Any) -> Any:
        if isinstance(value, float):
            # Python's json would write NaN, which no other parser reads.
            return value if math.isfinite(value) else str(value)
        return value if isinstance(value, (str, int, type(None))) else str(value)

    return {str(name): plain(value) for name, value in metadata.items()}
