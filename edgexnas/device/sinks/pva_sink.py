"""Results over EPICS PV Access: peaks as an NTTable, the object as an NTNDArray.

``PREFIXPeaks`` is updated with every frame: columns row_px, col_px, row_interval_px,
col_interval_px (float), intensity (float) and flags (ubyte), and the fields ``uniqueId`` (number of
the frame), ``series``, ``sent`` (counts updates, so that a gap shows a lost one) and ``error``.

``PREFIXObject:Phase`` and ``PREFIXObject:Amplitude`` are updated with every image of the object.

PV Access keeps the newest update for a slow client: what must not be lost goes to HDF5.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgexnas.device.optional_libraries import pvaccess_module
from edgexnas.device.pva_records import PvaRecords
from edgexnas.device.sinks.number_ranges import NumberRanges
from edgexnas.device.sinks.protocol import SinkPolicy
from edgexnas.device.sinks.results import (
    FrameResult,
    ObjectSnapshot,
    SeriesBegun,
    SeriesEnded,
    ServiceIdentity,
)

__all__ = ["PvaSink"]

COLUMNS = ("row_px", "col_px", "row_interval_px", "col_interval_px", "intensity", "flags")


class PvaSink:
    """Serves results as PVs; see this module's text for their form.

    Parameters
    ----------
    prefix
        What the names of PVs begin with, such as "EDGEX:".
    name, policy
        As of `Sink`.
    """

    gather_s = 0.0

    def __init__(
        self, prefix: str, *, name: str | None = None, policy: SinkPolicy = "drop-oldest"
    ) -> None:
        self.name = name or f"pva {prefix}"
        self.policy: SinkPolicy = policy
        self.prefix = prefix
        self._records: PvaRecords | None = None
        self._sent = 0

    def check(self) -> None:
        """Find out whether PVs can be served.

        Raises
        ------
        MissingDependencyError
            If pvapy is not installed.
        """
        pvaccess_module(self.name)

    def committed(self) -> dict[str, NumberRanges]:
        """Give none: a PV has its newest value alone."""
        return {}

    def open(self, identity: ServiceIdentity) -> None:
        """Serve the PVs.

        Raises
        ------
        ConfigurationError
            If the process serves such PVs already, or EPICS refuses.
        MissingDependencyError
            If pvapy is not installed.
        """
        records = PvaRecords(self.name)
        try:
            if identity.task == "bragg":
                records.add(f"{self.prefix}Peaks", _table())
            else:
                for part in ("Phase", "Amplitude"):
                    records.add(f"{self.prefix}Object:{part}", _image())
        except BaseException:
            records.close()
            raise
        self._records = records

    def write(self, results: Sequence[FrameResult]) -> None:
        """Post the peaks of each frame; patches of an object are not posted one by one."""
        assert self._records is not None
        for result in results:
            if result.peaks is not None or result.error is not None:
                self._records.update(f"{self.prefix}Peaks", self._peaks(result))

    def begin(self, series: SeriesBegun) -> None:
        """Do nothing: each update names its series."""

    def end(self, series: SeriesEnded) -> None:
        """Do nothing."""

    def show(self, snapshot: ObjectSnapshot) -> None:
        """Post the object."""
        assert self._records is not None
        image = snapshot.image
        for part, values in (("Phase", image.phase_rad), ("Amplitude", image.amplitude)):
            self._records.update(
                f"{self.prefix}Object:{part}", _image(np.ascontiguousarray(values), snapshot.number)
            )

    def close(self) -> None:
        """Withdraw the PVs; closing again does nothing."""
        records, self._records = self._records, None
        if records is not None:
            records.close()

    def _peaks(self, result: FrameResult) -> Mapping[str, Any]:
        columns: dict[str, Any] = {column: [] for column in COLUMNS}
        if result.peaks is not None:
            positions, intervals = result.peaks.positions_px, result.peaks.intervals_px
            arrays = (
                positions[:, 0],
                positions[:, 1],
                intervals[:, 0],
                intervals[:, 1],
                result.peaks.intensities,
                result.peaks.flags,
            )
            columns = {
                column: np.ascontiguousarray(values)
                for column, values in zip(COLUMNS, arrays, strict=True)
            }
        self._sent += 1
        return {
            "value": columns,
            "uniqueId": result.number,
            "series": result.series,
            "sent": self._sent,
            "error": result.error or "",
            "timeStamp": _time_stamp(result.timestamp_s),
        }


def _time_stamp(seconds: float | None) -> dict[str, int]:
    seconds = time.time() if seconds is None else seconds
    whole = int(seconds)
    return {
        "secondsPastEpoch": whole,
        "nanoseconds": int((seconds - whole) * 1e9),
        "userTag": 0,
    }


def _table() -> Any:
    import pvaccess as pva

    kinds = {column: [pva.FLOAT] for column in COLUMNS} | {"flags": [pva.UBYTE]}
    structure = {
        "labels": [pva.STRING],
        "value": kinds,
        "descriptor": pva.STRING,
        "alarm": {"severity": pva.INT, "status": pva.INT, "message": pva.STRING},
        "timeStamp": {
            "secondsPastEpoch": pva.LONG,
            "nanoseconds": pva.INT,
            "userTag": pva.INT,
        },
        "uniqueId": pva.LONG,
        "series": pva.STRING,
        "sent": pva.LONG,
        "error": pva.STRING,
    }
    values = {"labels": list(COLUMNS), "descriptor": "Bragg peaks of one frame", "uniqueId": -1}
    return pva.PvObject(structure, values, "epics:nt/NTTable:1.0")


def _image(values: Any = None, number: int = -1) -> Any:
    import pvaccess as pva

    image = pva.NtNdArray()
    pixels = np.zeros((1, 1), np.float32) if values is None else values
    image["value"] = {"floatValue": pixels.ravel()}
    image["dimension"] = [
        {"size": size, "offset": 0, "fullSize": size, "binning": 1, "reverse": False}
        for size in reversed(pixels.shape)
    ]
    image["uniqueId"] = number
    image["compressedSize"] = image["uncompressedSize"] = pixels.nbytes
    stamp = _time_stamp(None)
    image["timeStamp"] = image["dataTimeStamp"] = pva.PvTimeStamp(
        stamp["secondsPastEpoch"], stamp["nanoseconds"]
    )
    return image
