"""Results in a Tiled catalogue: peaks as a table that grows, the object as an array.

::

    PATH/000001_SERIES          container: one series by one bundle, from one opening of the sink
        frames                  table: one row for each frame that is stored, written after its data
        peaks                   table: one row for each peak
        object_00000042         (3, H, W) float32: amplitude, phase in rad, coverage; frame 42

The container's metadata say what made the results (`ServiceIdentity`), the series and what
identifies it, and the unit of each column, so that a catalogue is searched by them. Rows of `peaks`
whose `write` is beyond the newest of `frames` remain of a write that was cut off. An object without
``number`` in its metadata was cut off too; older ones are deleted once a newer one is whole.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgexnas.device.optional_libraries import tiled_client_module
from edgexnas.device.sinks.number_ranges import NumberRanges
from edgexnas.device.sinks.protocol import Sink, SinkPolicy
from edgexnas.device.sinks.results import (
    FRAME_STATES,
    FrameResult,
    ObjectSnapshot,
    SeriesBegun,
    SeriesEnded,
    SeriesKey,
    ServiceIdentity,
    stored_text,
)
from edgexnas.device.sinks.results_layout import PEAK_COLUMNS, peak_columns
from edgexnas.errors import ConfigurationError

__all__ = ["FORMAT", "FRAME_COLUMNS", "VERSION", "TiledSink"]

FORMAT = "edgexnas results"
VERSION = 1
"""Version of this layout, in the metadata of each container."""

FRAME_COLUMNS = {
    "number": ("<i8", ""),
    "write": ("<i8", ""),
    "count": ("<i4", ""),
    "overflow": ("<i4", ""),
    "status": ("u1", ""),
    "flags": ("<u2", ""),
    "detector_id": ("<i8", ""),
    "timestamp_s": ("<f8", "s"),
    "row_px": ("<f8", "px"),
    "col_px": ("<f8", "px"),
}
"""Columns of frames with their type and unit; as of `results_layout.COMMIT`, and `write` counts the
writes of a container."""

PEAK_TABLE = PEAK_COLUMNS | {"write": ("<i8", "")}

ANSWER_S = 5.0
"""How long a server has to answer at all."""

_ARROW_FILE = "application/vnd.apache.arrow.file"

_log = logging.getLogger("edgexnas.device.serving")


class TiledSink(Sink):
    """Writes results to a Tiled server; see this module's text for the layout.

    Frames count as stored once the server has their rows of `frames`, which follow those of their
    peaks. After a restart no frame is repeated that the catalogue has of the same series by the
    same bundle. Each opening begins new containers, so that what a crash cut off stays apart.

    A server that is away or slow holds up a service whose sink has the policy "block"; with
    "drop-oldest" it does not, and what it misses is dropped for it.

    Parameters
    ----------
    url
        Of the server, such as "http://127.0.0.1:8000", without a key.
    path
        Container within the catalogue, created if missing; services need different ones.
    api_key_file
        Text file with the key; None for the environment variable TILED_API_KEY.
    name, policy
        As of `Sink`.
    gather_ms
        Results are gathered for this long, because each write takes the server tens of
        milliseconds.

    Raises
    ------
    ConfigurationError
        If the URL has a key in it, or the path is none.
    """

    _identity: ServiceIdentity

    def __init__(
        self,
        url: str,
        *,
        path: str = "edgexnas",
        api_key_file: Path | None = None,
        name: str | None = None,
        policy: SinkPolicy = "block",
        gather_ms: float = 200.0,
    ) -> None:
        if "api_key=" in url:
            # It would stand in logs, on the page and in metrics.
            raise ConfigurationError(
                "the URL of the Tiled server has a key in it; leave it out and specify "
                "api_key_file, or set TILED_API_KEY"
            )
        self._parts = [part for part in path.split("/") if part]
        if not self._parts:
            raise ConfigurationError(f"{path!r} names no container; specify one, such as edgexnas")
        self.name = name or f"tiled {url.rstrip('/')}/{'/'.join(self._parts)}"
        self.policy: SinkPolicy = policy
        self.gather_s = gather_ms / 1e3
        self._url = url
        self._key_file = api_key_file
        self._root: Any = None
        self._stored: dict[SeriesKey, NumberRanges] = {}
        self._begun: SeriesBegun | None = None
        # Of the container that is written: whose it is, its client, its tables, its writes so far.
        self._of: tuple[str, ServiceIdentity] | None = None
        self._container: Any = None
        self._tables: dict[str, Any] = {}
        self._number = self._write = 0
        self._object_key: str | None = None
        self._warned = False

    def check(self) -> None:
        """Connect, and leave nothing behind.

        Raises
        ------
        ConfigurationError
            If the URL is wrong, or the server does not accept the key.
        OSError
            If the server does not answer now.
        MissingDependencyError
            If tiled is not installed.
        """
        with self._refused():
            client = self._connect()
            try:
                # A catalogue that cannot be listed cannot be resumed.
                len(client)
            finally:
                client.context.close()

    def committed(self) -> dict[SeriesKey, NumberRanges]:
        """Return which frames are stored in the catalogue, by series and bundle."""
        return self._stored

    def open(self, identity: ServiceIdentity) -> None:
        """Connect, and read what is stored.

        Raises
        ------
        ConfigurationError
            If the URL is wrong, or the server does not accept the key.
        OSError
            If the server does not answer now.
        MissingDependencyError
            If tiled is not installed.
        """
        self._identity = identity
        with self._refused():
            self._root = self._connect()
            try:
                for part in self._parts:
                    root = self._root
                    self._root = root[part] if part in root else root.create_container(part)
                self._stored = _committed(self._root)
                self._number = max(map(_number, self._root), default=0)
            except BaseException:
                self.close()
                raise

    def begin(self, series: SeriesBegun) -> None:
        """Remember what identifies the series; its container is created with its first frame."""
        self._begun = series

    def write(self, results: Sequence[FrameResult]) -> None:
        """Store results of one series.

        Raises
        ------
        OSError, Exception
            If the server has not stored them.
        """
        fresh = [result for result in results if not self._is_stored(result)]
        # A bundle may be replaced between two of them, and each has a container of its own.
        while fresh:
            made_by = fresh[0].made_by or self._identity
            part = [r for r in fresh if (r.made_by or self._identity) == made_by]
            self._write_part(part, made_by)
            fresh = [r for r in fresh if (r.made_by or self._identity) != made_by]

    def show(self, snapshot: ObjectSnapshot) -> None:
        """Store the object, and delete the one before."""
        if self._of is None or self._of[0] != snapshot.series:
            self._begin_container(snapshot.series, self._identity)
        key = f"object_{snapshot.number:08d}"
        image = snapshot.image
        values = np.stack([image.amplitude, image.phase_rad, image.coverage]).astype(np.float32)
        if key == self._object_key:
            # The last of a series may be of the frame that was shown last.
            self._container.delete_contents(key, external_only=False)
        array = self._container.write_array(values, key=key, dims=["part", "row", "col"])
        array.update_metadata(
            {
                "number": snapshot.number,
                "final": snapshot.final,
                "origin_px": [int(place) for place in image.origin_px],
                "part": ["amplitude", "phase_rad", "coverage"],
            }
        )
        if self._object_key not in (None, key):
            self._container.delete_contents(self._object_key, external_only=False)
        self._object_key = key

    def end(self, series: SeriesEnded) -> None:
        """Enter the counts of the series in its metadata."""
        if self._of is not None and self._of[0] == series.series:
            self._container.update_metadata({"counts": dict(series.counts)})
            self._of = self._container = None

    def close(self) -> None:
        """Disconnect; closing again does nothing."""
        root, self._root = self._root, None
        self._of = self._container = None
        if root is not None:
            root.context.close()

    def _connect(self) -> Any:
        client = tiled_client_module(self.name)
        key = None
        if self._key_file is not None:
            try:
                key = self._key_file.read_text("utf-8").strip()
            except OSError as error:
                raise ConfigurationError(
                    f"the key of {self.name} cannot be read from {self._key_file} "
                    f"({error.strerror}); specify a text file that this user may read"
                ) from error
        import httpx

        # The client would try for 45 s, which holds up whoever checks a configuration.
        httpx.get(self._url, timeout=ANSWER_S).raise_for_status()
        context, parts = client.Context.from_any_uri(self._url, api_key=key)
        try:
            return client.from_context(context, node_path_parts=parts)
        except BaseException:
            context.close()
            raise

    @contextmanager
    def _refused(self) -> Iterator[None]:
        """Say in one sentence why the server cannot be used."""
        tiled_client_module(self.name)
        import httpx

        try:
            yield
        except ConfigurationError:
            raise
        # tiled raises plain ones where a server answers what it does not expect.
        except (httpx.HTTPError, httpx.InvalidURL, RuntimeError, ValueError, KeyError) as error:
            why = (str(error).splitlines() or [""])[0]
            away = (httpx.NetworkError, httpx.TimeoutException, httpx.RemoteProtocolError)
            status = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else 0
            if isinstance(error, away) or status >= 500:
                # No ConfigurationError: after one a service manager does not start us again.
                raise ConnectionError(
                    f"{self.name} does not answer ({type(error).__name__}: {why}); start the "
                    "server, or check its URL"
                ) from error
            raise ConfigurationError(
                f"{self.name} cannot be used ({type(error).__name__}: {why}); check that the "
                "server runs, its URL, and the key"
            ) from error

    def _is_stored(self, result: FrameResult) -> bool:
        made_by = result.made_by or self._identity
        numbers = self._stored.get(self._series_key(result.series, made_by))
        return numbers is not None and result.number in numbers

    def _series_key(self, series: str, made_by: ServiceIdentity) -> SeriesKey:
        return SeriesKey.of(series, self._identity_of(series), made_by.bundle_digest)

    def _identity_of(self, series: str) -> str:
        begun = self._begun
        return begun.identity if begun is not None and begun.series == series else ""

    def _write_part(self, results: Sequence[FrameResult], made_by: ServiceIdentity) -> None:
        if self._of != (results[0].series, made_by):
            self._begin_container(results[0].series, made_by)
        self._write += 1
        peaks = peak_columns(results)
        if len(peaks["frame"]):
            peaks["write"] = np.full(len(peaks["frame"]), self._write)
            self._append("peaks", peaks)
        # Only now: a frame that has a row here has all of its peaks in the catalogue.
        self._append("frames", _frame_columns(results, self._write))

    def _begin_container(self, series: str, made_by: ServiceIdentity) -> None:
        name = re.sub(r"[^\w.-]+", "_", series)[-100:]
        self._number += 1
        identity = self._identity_of(series)
        self._container = self._root.create_container(
            f"{self._number:06d}_{name}",
            metadata={
                "format": FORMAT,
                "version": VERSION,
                "series": stored_text(series),
                "identity": stored_text(identity),
                "made_by": asdict(made_by),
                "status_meanings": list(FRAME_STATES),
            },
        )
        tables = {"frames": FRAME_COLUMNS}
        if made_by.task == "bragg":
            tables["peaks"] = PEAK_TABLE
        self._tables = {name: self._new_table(name, columns) for name, columns in tables.items()}
        self._write, self._object_key = 0, None
        self._of = series, made_by

    def _new_table(self, name: str, columns: Mapping[str, tuple[str, str]]) -> Any:
        import pyarrow

        schema = pyarrow.schema(
            [(column, pyarrow.from_numpy_dtype(type_)) for column, (type_, _) in columns.items()]
        )
        units = {column: unit for column, (_, unit) in columns.items() if unit}
        table = self._container.create_appendable_table(schema, key=name, metadata={"units": units})
        self._warn_of_duckdb(table)
        return table

    def _warn_of_duckdb(self, table: Any) -> None:
        """Say that the server will not bear who reads a table that is written."""
        # Tiled gives all requests the same connection, whose driver bears one thread at a time.
        sources = table.item["attributes"].get("data_sources") or ()
        places = [asset["data_uri"] for source in sources for asset in source["assets"]]
        if not self._warned and any(place.startswith("duckdb:") for place in places):
            self._warned = True
            _log.warning(
                "the server of %s keeps its tables in DuckDB, and ends or hangs when one is read "
                "while it is written; serve the catalogue with PostgreSQL storage",
                self.name,
            )

    def _append(self, name: str, columns: Mapping[str, npt.NDArray[Any]]) -> None:
        import pyarrow
        from tiled.client.utils import handle_error

        types = PEAK_TABLE if name == "peaks" else FRAME_COLUMNS
        table = pyarrow.table(
            {
                column: np.ascontiguousarray(columns[column], type_)
                for column, (type_, _) in types.items()
            }
        )
        buffer = pyarrow.BufferOutputStream()
        with pyarrow.ipc.new_file(buffer, table.schema) as writer:
            writer.write_table(table)
        client = self._tables[name]
        # Not by `append_partition`, which repeats a request whose answer was lost: rows would
        # come twice. Here such a write fails, and a new container begins.
        handle_error(
            client.context.http_client.patch(
                client.item["links"]["partition"].format(index=0),
                content=buffer.getvalue().to_pybytes(),
                headers={"Content-Type": _ARROW_FILE},
            )
        )


def _frame_columns(results: Sequence[FrameResult], write: int) -> dict[str, npt.NDArray[Any]]:
    def column(value: Callable[[FrameResult], Any]) -> npt.NDArray[Any]:
        return np.array([value(result) for result in results])

    nowhere = (np.nan, np.nan)
    return {
        "number": column(lambda r: r.number),
        "write": np.full(len(results), write),
        "count": column(lambda r: 0 if r.peaks is None else len(r.peaks)),
        "overflow": column(lambda r: 0 if r.peaks is None else r.peaks.overflow),
        "status": column(lambda r: FRAME_STATES.index(r.state)),
        "flags": column(lambda r: r.flags),
        "detector_id": column(lambda r: -1 if r.detector_id is None else r.detector_id),
        "timestamp_s": column(lambda r: np.nan if r.timestamp_s is None else r.timestamp_s),
        "row_px": column(lambda r: (r.position_px or nowhere)[0]),
        "col_px": column(lambda r: (r.position_px or nowhere)[1]),
    }


def _committed(root: Any) -> dict[SeriesKey, NumberRanges]:
    """Read which frames have ended with a result, or failed, by series and bundle."""
    found: dict[SeriesKey, NumberRanges] = {}
    for container in root.values():
        about = container.metadata
        # Others may have put something beside our containers, or a newer version.
        if (
            about.get("format") != FORMAT
            or about.get("version") != VERSION
            or "made_by" not in about
        ):
            continue
        try:
            frames = container["frames"]
        # A table is missing, or has no structure, if the server failed while it made it.
        except (KeyError, AttributeError):
            continue
        rows = frames.read(["number", "status"])
        # What was not processed may come again, and is processed then.
        ended = rows["status"].to_numpy() <= FRAME_STATES.index("failed")
        numbers = np.unique(rows["number"].to_numpy()[ended])
        if not len(numbers):
            continue
        series = SeriesKey.of(about["series"], about["identity"], about["made_by"]["bundle_digest"])
        kept = found.setdefault(series, NumberRanges())
        for part in np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1):
            kept.add_range(int(part[0]), int(part[-1]) + 1)
    return found


def _number(key: str) -> int:
    number = key.partition("_")[0]
    return int(number) if number.isdecimal() else 0
