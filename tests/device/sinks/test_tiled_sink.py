"""Results in the catalogue of a real Tiled server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import h5py
import httpx
import numpy as np
import pytest

from edgexnas import testing
from edgexnas.bragg import Peaks
from edgexnas.bundle import Bundle, open_bundle
from edgexnas.cli import main
from edgexnas.device import PeakPredictor
from edgexnas.device.serving.service import Service, StoredAlreadyError
from edgexnas.device.sinks import tiled_sink
from edgexnas.device.sinks.results import (
    FrameResult,
    ObjectSnapshot,
    SeriesBegun,
    SeriesEnded,
    SeriesKey,
    ServiceIdentity,
)
from edgexnas.device.sinks.tiled_sink import TiledSink
from edgexnas.device.sources import open_event_source
from edgexnas.device.sources.events import SeriesStart, SourceEvent, SourceFrame
from edgexnas.errors import ConfigurationError
from edgexnas.ptycho import ObjectImage

pytest.importorskip("tiled.server", reason="tiled[server] is installed for tests")
pytest.importorskip("onnxruntime", reason="onnxruntime is the extra «device»")

from tiled.client import context as tiled_context
from tiled.client import from_uri
from tiled.client.utils import ClientError
from tiled.structures.data_source import DataSource
from tiled.structures.table import TableStructure

KEY = "keyofthistest"
TIMEOUTS = ("connect", "read", "write", "pool")

PATIENT = f"""
import sys
from edgexnas.cli import main
from edgexnas.device.sinks import tiled_sink
from tiled.client import context
tiled_sink.ANSWER_S = 120.0
context.DEFAULT_TIMEOUT_PARAMS = dict.fromkeys({TIMEOUTS}, 120.0)
sys.exit(main(["serve", sys.argv[1]]))
"""
IDENTITY = ServiceIdentity("bragg", "m", 1, "onnxruntime", "int8", "told://", "0", "a" * 64)
_paths = count()


@pytest.fixture(scope="module", autouse=True)
def _patient() -> Iterator[None]:
    """Wait for a server that a busy machine holds up."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiled_sink, "ANSWER_S", 120.0)
        patch.setattr(tiled_context, "DEFAULT_TIMEOUT_PARAMS", dict.fromkeys(TIMEOUTS, 120.0))
        yield


@contextmanager
def tiled_server(folder: Path, port: int, tables: str) -> Iterator[str]:
    """URL of a Tiled server with an empty catalogue and such a file of tables."""
    (folder / "files").mkdir()
    writable = (folder / "files", f"{tables}:///{folder / tables}")
    command = [sys.executable, "-m", "tiled", "serve", "catalog", "catalog.db", "--init",
               *(f"--write={place}" for place in writable), f"--port={port}"]  # fmt: skip
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(
            command,
            env={**os.environ, "TILED_SINGLE_USER_API_KEY": KEY},
            stdout=log,
            stderr=log,
            cwd=folder,
        ) as process,
    ):
        try:
            url = f"http://127.0.0.1:{port}"
            until_s = time.monotonic() + 240
            while True:
                try:
                    urllib.request.urlopen(f"{url}/api/v1/", timeout=5).close()
                    break
                except OSError:
                    said = (folder / "log").read_text()
                    assert process.poll() is None, said
                    assert time.monotonic() < until_s, said
                    time.sleep(0.2)
            yield url
        finally:
            # It keeps nothing, and how it ends is not what is tested.
            process.kill()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]) -> Iterator[str]:
    """URL of a Tiled server with an empty catalogue."""
    # Not of DuckDB: a server that still writes for a service that was killed would end or hang
    # when the next one reads.
    with tiled_server(tmp_path_factory.mktemp("tiled"), free_port(), "sqlite") as url:
        yield url


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("key") / "tiled.key"
    path.write_text(f"{KEY}\n")
    return path


@pytest.fixture
def path() -> str:
    """A container that no other test has."""
    return f"edgexnas/{next(_paths)}"


@pytest.fixture
def make(server: str, key_file: Path, path: str) -> Iterator[Callable[..., TiledSink]]:
    """`make(**options)` is a sink of this test's container; closed at the end."""
    made = []

    def sink(**options: Any) -> TiledSink:
        made.append(TiledSink(server, path=path, api_key_file=key_file, **options))
        return made[-1]

    yield sink
    for opened in made:
        opened.close()


@pytest.fixture
def catalogue(server: str, path: str) -> Iterator[Callable[[], Any]]:
    """`catalogue()` gives this test's container as a client of its own sees it."""
    clients = []

    def look() -> Any:
        clients.append(from_uri(server, api_key=KEY))
        found = clients[-1]
        for part in path.split("/"):
            found = found[part]
        return found

    yield look
    for client in clients:
        client.context.close()


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 frames of three peaks."""
    path = tmp_path_factory.mktemp("frames") / "scan.h5"
    with h5py.File(path, "w") as file:
        frames = [testing.spot_frame(seed=seed) for seed in range(8)]
        file["entry/data/data"] = np.stack([frames[n % 8] for n in range(40)])
    return path


def result(number: int, peaks: int = 2, **fields: Any) -> FrameResult:
    positions = np.arange(2 * peaks, dtype=np.float32).reshape(-1, 2) + number
    found = Peaks(
        positions_px=positions,
        intervals_px=positions / 10,
        quantiles_px=np.zeros((peaks, 2, 3), np.float32),
        maxima=np.zeros((peaks, 2), np.int32),
        intensities=np.full(peaks, 100 + number, np.float32),
        flags=np.arange(peaks, dtype=np.uint8),
        frame_number=number,
        overflow=1,
    )
    return FrameResult("scan/1", number, time.monotonic_ns(), 1.5, found, **fields)


class ShortSeries:
    """An event source of the first frames of one series."""

    url = "short://"
    live = False

    def __init__(self, frames: int) -> None:
        self._frames = frames

    def events(self) -> Iterator[SourceEvent]:
        yield SeriesStart("scan", identity="scan-7")
        for number in range(self._frames):
            yield SourceFrame("scan", number, testing.spot_frame(seed=number), 1)

    def close(self) -> None:
        return

    def status(self) -> dict[str, int | str]:
        return {}


def stored_numbers(container: Any) -> list[int]:
    return sorted(container["frames"].read(["number"])["number"])


def test_peaks_grow_as_a_table_with_types_and_units(
    make: Callable[..., TiledSink], catalogue: Callable[[], Any]
) -> None:
    sink = make()
    sink.open(IDENTITY)
    sink.begin(SeriesBegun("scan/1", {}, "file-7"))
    sink.write([result(0), result(1, peaks=0), replace(result(2), peaks=None, error="broken")])
    (key,) = list(catalogue())
    assert key == "000001_scan_1"
    assert len(catalogue()[key]["peaks"].read()) == 2
    sink.write([result(3, detector_id=77)])
    container = catalogue()[key]
    peaks, frames = container["peaks"].read(), container["frames"].read()
    assert list(peaks["frame"]) == [0, 0, 3, 3]
    assert list(peaks["row_px"]) == [0, 2, 3, 5]
    assert list(peaks["intensity"]) == [100, 100, 103, 103]
    assert (peaks["row_px"].dtype, peaks["flags"].dtype) == (np.float32, np.uint8)
    assert container["peaks"].metadata["units"]["row_interval_px"] == "px"
    assert list(frames["count"]) == [2, 0, 0, 2]
    assert list(frames["status"]) == [0, 0, 1, 0]
    assert list(frames["detector_id"]) == [-1, -1, -1, 77]
    assert frames["overflow"].sum() == 3
    sink.end(SeriesEnded("scan/1", {"done": 3, "failed": 1}))
    about = catalogue()[key].metadata
    assert (about["series"], about["identity"]) == ("scan/1", "file-7")
    assert about["made_by"]["bundle_digest"] == "a" * 64
    assert about["counts"] == {"done": 3, "failed": 1}


def test_a_write_that_was_cut_off_has_peaks_beyond_the_newest_frames_and_is_no_frame(
    make: Callable[..., TiledSink],
    catalogue: Callable[[], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sink = make()
    sink.open(IDENTITY)
    sink.write([result(0)])
    whole = sink._append

    def cut(name: str, columns: Any) -> None:
        if name == "frames":
            raise OSError("the network is gone")
        whole(name, columns)

    with monkeypatch.context() as patch:
        patch.setattr(sink, "_append", cut)
        with pytest.raises(OSError, match="network"):
            sink.write([result(1)])
    # As the service does after a failure.
    sink.close()
    sink.open(IDENTITY)
    assert [list(ranges) for ranges in sink.committed().values()] == [[(0, 1)]]
    sink.write([result(2)])
    first, second = catalogue().values()
    newest = first["frames"].read()["write"].max()
    peaks = first["peaks"].read()
    assert set(peaks["frame"]) == {0, 1}
    assert set(peaks["frame"][peaks["write"] <= newest]) == {0}
    assert stored_numbers(second) == [2]


def test_frames_that_are_stored_are_not_repeated_and_others_are(
    make: Callable[..., TiledSink], catalogue: Callable[[], Any]
) -> None:
    first = make()
    first.open(IDENTITY)
    first.begin(SeriesBegun("scan/1", {}, "file-7"))
    dropped = replace(result(2), peaks=None, not_processed="dropped")
    first.write([result(0), result(1), dropped, result(5)])
    first.close()
    again = make(name="again")
    again.open(IDENTITY)
    key = SeriesKey.of("scan/1", "file-7", "a" * 64)
    assert {k: list(ranges) for k, ranges in again.committed().items()} == {key: [(0, 2), (5, 6)]}
    # Under another name it is the same series, because its identity says so.
    again.begin(SeriesBegun("moved", {}, "file-7"))
    again.write([replace(result(n), series="moved") for n in range(6)])
    assert stored_numbers(list(catalogue().values())[-1]) == [2, 3, 4]
    # By another bundle, and in another series of that name, every frame is new.
    again.write([replace(result(0), series="moved", made_by=replace(IDENTITY, bundle_digest="b"))])
    again.begin(SeriesBegun("scan/1", {}, "file-8"))
    again.write([result(0)])
    assert [stored_numbers(container) for container in catalogue().values()] == [
        [0, 1, 2, 5],
        [2, 3, 4],
        [0],
        [0],
    ]


def test_the_object_is_an_array_of_which_the_newest_is_kept(
    make: Callable[..., TiledSink], catalogue: Callable[[], Any]
) -> None:
    sink = make()
    sink.open(replace(IDENTITY, task="ptycho"))
    rng = np.random.default_rng(0)
    for number, rows, final in ((3, 5, False), (9, 8, False), (9, 8, True)):
        values = (rng.normal(size=(rows, 6)) + 1j * rng.normal(size=(rows, 6))).astype(np.complex64)
        image = ObjectImage(values, np.ones((rows, 6), np.float32), 0, (5, -6))
        sink.show(ObjectSnapshot("scan/1", number, image, final))
    (container,) = catalogue().values()
    assert sorted(container) == ["frames", "object_00000009"]
    shown = container["object_00000009"]
    assert shown.metadata["final"] is True
    assert shown.metadata["origin_px"] == [5, -6]
    np.testing.assert_array_equal(shown.read()[0], image.amplitude)
    np.testing.assert_array_equal(shown.read()[1], image.phase_rad)
    np.testing.assert_array_equal(shown.read()[2], image.coverage)


def test_a_service_that_starts_again_goes_on_behind_what_the_catalogue_has(
    make: Callable[..., TiledSink],
    catalogue: Callable[[], Any],
    bundle: Bundle,
    make_bundle: Callable[..., Path],
    keys: Path,
) -> None:
    def serve(frames: int, bundle: Bundle, name: str) -> dict[str, int]:
        with PeakPredictor(bundle) as predictor:
            service = Service(predictor, ShortSeries(frames), [make(name=name)])
            return dict(service.run().counts)

    counts = serve(12, bundle, "first")
    assert (counts["done"], counts["duplicate"]) == (12, 0)
    counts = serve(40, bundle, "second")
    assert (counts["done"], counts["duplicate"]) == (28, 12)
    with pytest.raises(StoredAlreadyError, match="all 40 frames"):
        serve(40, bundle, "third")
    numbers = [n for part in catalogue().values() for n in stored_numbers(part)]
    assert numbers == list(range(40))
    peaks = sum(len(part["peaks"].read()) for part in catalogue().values())
    assert peaks == 3 * 40
    # What another bundle has stored says nothing of what this one has.
    newer = open_bundle(make_bundle(model_id="newer", sequence=9), trust=keys)
    assert serve(40, newer, "fourth")["done"] == 40


def test_a_service_that_was_killed_leaves_whole_frames_and_goes_on(
    catalogue: Callable[[], Any],
    server: str,
    free_port: Callable[[], int],
    key_file: Path,
    path: str,
    bundle_path: Path,
    keys: Path,
    scan: Path,
    tmp_path: Path,
) -> None:
    pytest.importorskip("prometheus_client", reason="the page is the extra «monitor»")
    port = free_port()

    def serve(options: str) -> list[str]:
        settings = tmp_path / "serve.toml"
        settings.write_text(
            f'source = "file://{scan}{options}"\n'
            f'[predictor]\nbundle = "{bundle_path}"\ntrust = "{keys}"\nprecision = "float32"\n'
            "[background]\nframes = 1\n"
            f'[[sinks]]\nkind = "tiled"\nurl = "{server}"\npath = "{path}"\n'
            f'api_key_file = "{key_file}"\ngather_ms = 0\n'
            f"[monitoring]\nport = {port}\n"
        )
        return [sys.executable, "-c", PATIENT, str(settings)]

    def done() -> int:
        # The catalogue would be read while it is written, which a server may refuse.
        with suppress(OSError):
            address = f"http://127.0.0.1:{port}/status.json"
            with urllib.request.urlopen(address, timeout=5) as answer:
                return int(json.load(answer)["status"]["counts"]["done"])
        return 0

    def stored() -> list[int]:
        return sorted(n for part in catalogue().values() for n in stored_numbers(part))

    # So slow that a service under load is far from the end when frames are done.
    with subprocess.Popen(serve("?rate=1")) as process:
        try:
            until_s = time.monotonic() + 200
            while (before := done()) < 4:
                assert process.poll() is None
                assert time.monotonic() < until_s
                time.sleep(0.1)
        finally:
            process.kill()
    assert before <= len(stored()) < 40
    subprocess.run(serve(""), check=True, timeout=200)
    assert stored() == list(range(40))
    for part in catalogue().values():
        frames, peaks = part["frames"].read(), part["peaks"].read()
        whole = peaks[peaks["write"] <= frames["write"].max()]
        assert len(whole) == frames["count"].sum()


def test_a_table_that_the_server_has_half_made_does_not_keep_the_sink_from_opening(
    make: Callable[..., TiledSink], catalogue: Callable[[], Any]
) -> None:
    first = make()
    first.open(IDENTITY)
    first.write([result(0)])
    first.close()
    about = next(iter(catalogue().values())).metadata
    broken = catalogue().create_container("000002_scan_1", metadata=dict(about))
    # The server enters a table first, and makes it then.
    with pytest.raises(ClientError, match="415"):
        broken.new(
            "table",
            [DataSource("table", TableStructure("", 1, []), mimetype="none/such")],
            key="frames",
        )
    assert list(broken) == ["frames"]
    again = make()
    again.open(IDENTITY)
    assert [list(ranges) for ranges in again.committed().values()] == [[(0, 1)]]
    again.write([result(1)])
    assert stored_numbers(catalogue()["000003_scan_1"]) == [1]


def test_a_server_whose_tables_are_in_duckdb_is_warned_of_once(
    free_port: Callable[[], int], key_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with tiled_server(tmp_path, free_port(), "duckdb") as url:
        sink = TiledSink(url, api_key_file=key_file)
        sink.open(IDENTITY)
        for series in ("a", "b"):
            sink.write([replace(result(0), series=series)])
        sink.close()
    warnings = [r.getMessage() for r in caplog.records if r.name == "edgexnas.device.serving"]
    assert len(warnings) == 1
    assert "ends or hangs when one is read while it is written" in warnings[0]


def test_frames_that_a_server_does_not_take_fail_and_are_counted(
    make: Callable[..., TiledSink],
    bundle: Bundle,
    scan: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sink = make()

    def refuse(name: str, columns: Any) -> None:
        raise OSError("no space left on the server")

    monkeypatch.setattr(sink, "_append", refuse)
    with PeakPredictor(bundle) as predictor:
        service = Service(predictor, open_event_source(str(scan)), [sink])
        with pytest.raises(Exception, match="none of 40 frames was stored"):
            service.run()
        assert service.status().counts["failed"] == 40


class TestRefusals:
    def test_a_key_in_the_url_is_rejected_and_not_repeated(self) -> None:
        with pytest.raises(ConfigurationError, match="has a key in it") as caught:
            TiledSink("http://127.0.0.1:8000?api_key=secret")
        assert "secret" not in str(caught.value)

    def test_a_wrong_key_is_told_at_once(self, server: str, tmp_path: Path) -> None:
        wrong = tmp_path / "wrong"
        wrong.write_text("not-this-one")
        with pytest.raises(ConfigurationError, match="check that the server runs, its URL"):
            TiledSink(server, api_key_file=wrong).check()

    def test_a_server_that_is_away_is_told_at_once(
        self, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Tiled's own client would try for 45 s.
        monkeypatch.setattr(tiled_context.Context, "from_any_uri", None)
        with pytest.raises(ConnectionError, match=r"does not answer \(ConnectError.*; start the"):
            TiledSink(f"http://127.0.0.1:{free_port()}").check()

    @pytest.mark.parametrize("status", [500, 503])
    def test_a_server_that_is_not_ready_is_told_as_one_that_is_away(
        self, monkeypatch: pytest.MonkeyPatch, status: int
    ) -> None:
        request = httpx.Request("GET", "http://127.0.0.1:8000")
        monkeypatch.setattr(httpx, "get", lambda *_, **__: httpx.Response(status, request=request))
        with pytest.raises(ConnectionError, match=f"does not answer .*{status}"):
            TiledSink("http://127.0.0.1:8000").check()

    def test_a_service_whose_server_is_away_ends_so_that_it_is_started_again(
        self, free_port: Callable[[], int], bundle_path: Path, keys: Path, tmp_path: Path
    ) -> None:
        configuration = tmp_path / "service.toml"
        configuration.write_text(
            'source = "sim://hedm?shape=64x64&frames=1"\n'
            f'[predictor]\nbundle = "{bundle_path}"\ntrust = "{keys}"\nprecision = "float32"\n'
            f'[[sinks]]\nkind = "tiled"\nurl = "http://127.0.0.1:{free_port()}"\n'
            "[monitoring]\nport = 0\n"
        )
        # 2 would be a wrong configuration, after which systemd leaves it ended.
        assert main(["serve", str(configuration)]) == 1

    def test_a_key_file_that_is_missing_is_named(self, tmp_path: Path) -> None:
        sink = TiledSink("http://127.0.0.1:8000", api_key_file=tmp_path / "none")
        with pytest.raises(ConfigurationError, match=r"cannot be read from .*none"):
            sink.check()

    def test_checking_leaves_nothing_behind(
        self, make: Callable[..., TiledSink], catalogue: Callable[[], Any]
    ) -> None:
        make().check()
        with pytest.raises(KeyError):
            catalogue()
