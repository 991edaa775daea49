"""Results over EPICS PV Access: peaks as an NTTable, the object as an NTNDArray.

``PREFIXPeaks`` is updated with every frame, ``PREFIXSpots`` with merged spots, and
``PREFIXObject:Phase`` and ``PREFIXObject:Amplitude`` with every image of the object; docs/forms.md
lists their fields.

PV Access keeps the newest update for a slow client: what must not be lost goes to HDF5.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgexnas.device.optional_libraries import pvaccess_module
from edgexnas.device.pva_records import PvaRecords, require_search_port
from edgexnas.device.sinks.protocol import Sink, SinkPolicy
from edgexnas.device.sinks.results import (
    FrameResult,
    ObjectSnapshot,
    SeriesSpots,
    ServiceIdentity,
)
from edgexnas.device.sinks.results_layout import PEAK_COLUMNS, peak_columns
from edgexnas.spots import SPOT_COLUMNS

__all__ = ["PvaSink"]

VERSION = 2
"""Version of the tables; those of version 1 have no field ``version``."""

# An update is of one frame, which its field uniqueId names.
COLUMNS = [name for name in PEAK_COLUMNS if name != "frame"]


class PvaSink(Sink):
    """Serves results as PVs; see this module's text for their form.

    Parameters
    ----------
    prefix
        What the names of PVs begin with, such as "EDGEX:".
    name, policy
        As of `Sink`.
    spots
        Whether to serve ``PREFIXSpots``, for `write_spots`.
    """

    _identity: ServiceIdentity

    def __init__(
        self,
        prefix: str,
        *,
        name: str | None = None,
        policy: SinkPolicy = "drop-oldest",
        spots: bool = False,
    ) -> None:
        self.name = name or f"pva {prefix}"
        self.policy: SinkPolicy = policy
        self.prefix = prefix
        self._spots = spots
        self._records: PvaRecords | None = None
        self._sent = 0

    def check(self) -> None:
        """Find out whether PVs can be served.

        Raises
        ------
        ConfigurationError
            If no client could find them.
        MissingDependencyError
            If pvapy is not installed.
        """
        pvaccess_module(self.name)
        require_search_port(self.name)

    def open(self, identity: ServiceIdentity) -> None:
        """Serve the PVs.

        Raises
        ------
        ConfigurationError
            If the process serves such PVs already, or EPICS rejects them.
        MissingDependencyError
            If pvapy is not installed.
        """
        records = PvaRecords(self.name)
        try:
            if identity.task == "bragg":
                records.add(f"{self.prefix}Peaks", _peak_table())
                if self._spots:
                    records.add(f"{self.prefix}Spots", _spot_table())
            else:
                for part in ("Phase", "Amplitude"):
                    records.add(f"{self.prefix}Object:{part}", _image())
        except BaseException:
            records.close()
            raise
        self._records, self._identity = records, identity

    def write(self, results: Sequence[FrameResult]) -> None:
        """Post the peaks of each frame; patches of an object are not posted one by one."""
        if self._identity.task == "bragg":
            for result in results:
                self._post("Peaks", self._peaks(result, result.made_by or self._identity))

    def write_spots(self, spots: SeriesSpots) -> None:
        """Post merged spots; only with the option `spots`."""
        # Fields of a structured array are strided, and an update takes contiguous arrays.
        table = spots.spots.table
        columns = {name: np.ascontiguousarray(table[name]) for name in SPOT_COLUMNS}
        self._post("Spots", {"value": columns, "series": spots.series})

    def show(self, snapshot: ObjectSnapshot) -> None:
        """Post the object."""
        image = snapshot.best
        for part, values in (("Phase", image.phase_rad), ("Amplitude", image.amplitude)):
            self._post(f"Object:{part}", _image(np.ascontiguousarray(values), snapshot.number))

    def close(self) -> None:
        """Withdraw the PVs; closing again does nothing."""
        records, self._records = self._records, None
        if records is not None:
            records.close()

    def _post(self, name: str, value: Any) -> None:
        assert self._records is not None
        self._records.update(f"{self.prefix}{name}", value)

    def _peaks(self, result: FrameResult, made_by: ServiceIdentity) -> Mapping[str, Any]:
        columns = peak_columns([result])
        seconds = time.time() if result.timestamp_s is None else result.timestamp_s
        self._sent += 1
        return {
            "value": {name: np.ascontiguousarray(columns[name]) for name in COLUMNS},
            "uniqueId": result.number,
            "detectorId": -1 if result.detector_id is None else result.detector_id,
            "series": result.series,
            "sent": self._sent,
            "state": result.state,
            "flags": result.flags,
            "error": result.error or "",
            "bundleDigest": made_by.bundle_digest,
            "timeStamp": {
                "secondsPastEpoch": int(seconds),
                "nanoseconds": int(seconds % 1 * 1e9),
            },
        }


def _peak_table() -> Any:
    import pvaccess as pva

    fields = {"uniqueId": pva.LONG, "detectorId": pva.LONG, "sent": pva.LONG, "flags": pva.INT}
    fields |= dict.fromkeys(("state", "error", "bundleDigest"), pva.STRING)
    return _table("Bragg peaks of one frame", COLUMNS, PEAK_COLUMNS, fields, {"uniqueId": -1})


def _spot_table() -> Any:
    return _table("Bragg peaks merged over frames", list(SPOT_COLUMNS), SPOT_COLUMNS, {}, {})


def _table(
    title: str,
    names: list[str],
    columns: Mapping[str, tuple[str, str]],
    fields: Mapping[str, Any],
    values: Mapping[str, Any],
) -> Any:
    import pvaccess as pva

    types = {
        "u1": pva.UBYTE,
        "<u2": pva.USHORT,
        "<i4": pva.INT,
        "<i8": pva.LONG,
        "<f4": pva.FLOAT,
        "<f8": pva.DOUBLE,
    }
    structure = {
        "labels": [pva.STRING],
        "value": {name: [types[columns[name][0]]] for name in names},
        "descriptor": pva.STRING,
        "alarm": {"severity": pva.INT, "status": pva.INT, "message": pva.STRING},
        "timeStamp": {
            "secondsPastEpoch": pva.LONG,
            "nanoseconds": pva.INT,
            "userTag": pva.INT,
        },
        "version": pva.INT,
        "series": pva.STRING,
        **fields,
    }
    first = {"labels": names, "descriptor": title, "version": VERSION, **values}
    return pva.PvObject(structure, first, "epics:nt/NTTable:1.0")


def _image(values: Any = None, number: int = -1) -> Any:
    import pvaccess as pva

    image = pva.NtNdArray()
    # A client that connects before the first object gets a valid image all the same.
    pixels = np.zeros((1, 1), np.float32) if values is None else values
    image["value"] = {"floatValue": pixels.ravel()}
    # NTNDArray counts the fastest axis first.
    image["dimension"] = [
        {"size": size, "offset": 0, "fullSize": size, "binning": 1, "reverse": False}
        for size in reversed(pixels.shape)
    ]
    image["uniqueId"] = number
    image["compressedSize"] = image["uncompressedSize"] = pixels.nbytes
    image["timeStamp"] = image["dataTimeStamp"] = pva.PvTimeStamp(time.time())
    return image
