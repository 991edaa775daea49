"""Results belong to a series and a bundle: what is stored is told, and nothing else is skipped."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from edgexnas import testing
from edgexnas.bundle import generate_keys, open_bundle
from edgexnas.device import PeakPredictor
from edgexnas.device.serving.service import Service, StoredAlreadyError
from edgexnas.device.sinks.callback_sink import CallbackSink
from edgexnas.device.sinks.hdf5_sink import Hdf5Sink
from edgexnas.device.sinks.results_file import read_results
from edgexnas.device.sources import open_event_source
from edgexnas.device.sources.events import SeriesStart

VERSION_1 = Path(__file__).parents[1] / "sinks" / "files" / "peaks_v1_000001.h5"

Run = Callable[..., Mapping[str, int]]


@pytest.fixture
def run(peak_predictor: PeakPredictor, tmp_path: Path) -> Run:
    """`run(source, folders=("results",), predictor=None)` serves to the end; gives the counts."""

    def serve(source: Any, folders: Any = ("results",), predictor: Any = None) -> Any:
        opened = open_event_source(str(source)) if isinstance(source, (str, Path)) else source
        sinks = [Hdf5Sink(tmp_path / folder) for folder in folders]
        return Service(predictor or peak_predictor, opened, sinks).run().counts

    return serve


@pytest.fixture
def scan(tmp_path: Path, small_frames: list[Any]) -> Callable[..., Path]:
    """`scan(path, first=0, count=4)` writes frames to a file below the folder of the test."""

    def write(path: str, first: int = 0, count: int = 4, dataset: str = "entry/data/data") -> Path:
        place = tmp_path / path
        place.parent.mkdir(exist_ok=True)
        with h5py.File(place, "a" if dataset != "entry/data/data" else "w") as file:
            file[dataset] = np.stack([small_frames[(first + n) % 8] for n in range(count)])
        return place

    return write


def stored(folder: Path) -> list[tuple[str, int]]:
    return [(frame.series_identity, frame.number) for frame in read_results(folder)]


def test_what_was_stored_is_refused_and_told_with_file_folder_and_bundle(
    run: Run, scan: Any, tmp_path: Path, peak_predictor: PeakPredictor
) -> None:
    path = scan("scan.h5")
    assert run(path)["done"] == 4
    with pytest.raises(StoredAlreadyError) as caught:
        run(path)
    for part in (str(path), str(tmp_path / "results"), peak_predictor.bundle_digest[:12]):
        assert part in str(caught.value)
    assert len(stored(tmp_path / "results")) == 4


@pytest.mark.parametrize("alias", ["relative", "link", "linked folder", "moved results"])
def test_a_series_is_the_same_whatever_leads_to_it(
    alias: str, run: Run, scan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = scan("a/scan.h5")
    run(path)
    monkeypatch.chdir(tmp_path)
    source, folder = path, "results"
    if alias == "relative":
        source = Path("a/scan.h5")
    elif alias == "link":
        source = tmp_path / "other.h5"
        source.symlink_to(path)
    elif alias == "linked folder":
        (tmp_path / "b").symlink_to(tmp_path / "a")
        source = tmp_path / "b" / "scan.h5"
    else:
        folder = "moved"
        (tmp_path / "results").rename(tmp_path / "moved")
    with pytest.raises(StoredAlreadyError):
        run(source, [folder])


@pytest.mark.parametrize("change", ["folder", "replaced", "rewritten", "grown", "dataset"])
def test_other_frames_of_the_same_name_are_processed(
    change: str, run: Run, scan: Any, tmp_path: Path
) -> None:
    path = scan("a/scan.h5")
    run(path)
    source: Any = path
    if change == "folder":
        source = scan("b/scan.h5", first=4)
    elif change == "replaced":
        os.replace(scan("a/new.h5", first=4), path)
    elif change == "rewritten":
        scan("a/scan.h5", first=4)
    elif change == "grown":
        scan("a/scan.h5", count=6)
    else:
        scan("a/scan.h5", first=4, dataset="entry/other")
        run(f"file://{path}?dataset=entry/data/data")
        source = f"file://{path}?dataset=entry/other"
    counts = run(source)
    assert counts["done"] == counts["received"] >= 4
    kept = Counter(stored(tmp_path / "results"))
    assert set(kept.values()) == {1}


def test_an_image_replaced_by_one_of_its_size_and_time_makes_another_series_of_its_folder(
    run: Run, tmp_path: Path, small_frames: list[Any]
) -> None:
    import fabio

    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        image = fabio.edfimage.EdfImage(data=small_frames[number])
        image.write(str(folder / f"im_{number}.edf"))
    assert run(folder)["done"] == 3
    old = os.stat(folder / "im_1.edf")
    fabio.edfimage.EdfImage(data=small_frames[5]).write(str(tmp_path / "new.edf"))
    os.utime(tmp_path / "new.edf", ns=(old.st_atime_ns, old.st_mtime_ns))
    os.replace(tmp_path / "new.edf", folder / "im_1.edf")
    assert run(folder)["done"] == 3


def test_a_file_that_a_virtual_dataset_maps_belongs_to_its_series(
    run: Run, scan: Any, tmp_path: Path, small_frames: list[Any]
) -> None:
    part = scan("part.h5")
    with h5py.File(tmp_path / "master.h5", "w") as file:
        layout = h5py.VirtualLayout((4, *small_frames[0].shape), "u2")
        layout[:] = h5py.VirtualSource("part.h5", "entry/data/data", layout.shape)
        file.create_virtual_dataset("entry/data/data", layout)
    assert run(tmp_path / "master.h5")["done"] == 4
    assert part == scan("part.h5", first=4)
    assert run(tmp_path / "master.h5")["done"] == 4


def test_a_followed_file_that_was_written_anew_is_another_series(run: Run, scan: Any) -> None:
    path = scan("scan.h5")
    url = f"file://{path}?follow=1&idle_s=0.2"
    assert run(url)["done"] == 4
    with pytest.raises(StoredAlreadyError):
        run(url)
    assert scan("scan.h5", first=4) == path
    assert run(url)["done"] == 4


@pytest.fixture
def other_predictor(tmp_path: Path) -> Iterator[PeakPredictor]:
    """The same content as of `bundle`, signed with another key."""
    generate_keys(tmp_path / "keys")
    path = testing.write_centroid_bundle(
        tmp_path / "other.edgex", signing_key=tmp_path / "keys" / "edgexnas.key.pem"
    )
    with PeakPredictor(open_bundle(path, trust=tmp_path / "keys")) as opened:
        yield opened


def test_another_bundle_file_processes_what_one_has_stored(
    run: Run, scan: Any, tmp_path: Path, peak_predictor: Any, other_predictor: Any
) -> None:
    path = scan("scan.h5")
    run(path)
    assert run(path, predictor=other_predictor)["done"] == 4
    made_by = Counter(frame.bundle_digest for frame in read_results(tmp_path / "results"))
    assert made_by == {peak_predictor.bundle_digest: 4, other_predictor.bundle_digest: 4}


def test_a_second_sink_gets_what_the_first_has_stored_and_the_first_keeps_one_of_each(
    run: Run, scan: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = scan("scan.h5")
    run(path)
    caplog.set_level("INFO")
    assert run(path, ["results", "more"])["done"] == 4
    assert stored(tmp_path / "results") == stored(tmp_path / "more")
    assert f"4 frames of scan.h5 were stored in {tmp_path / 'results'} by earlier" in caplog.text


def test_results_of_version_1_are_told_and_hide_no_frame(
    run: Run,
    tmp_path: Path,
    small_frames: list[Any],
    told_source: Any,
    frame_of: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "results").mkdir()
    shutil.copy(VERSION_1, tmp_path / "results" / "results_000001.h5")
    frames = [frame_of(number, small_frames[number]) for number in range(5)]
    assert run(told_source([SeriesStart("a"), *frames]))["done"] == 5
    assert "5 frames of a series named a are stored without what identifies it" in caplog.text


def test_each_turn_of_a_repeated_file_and_each_simulated_series_is_one_of_its_own(
    run: Run, scan: Any, tmp_path: Path
) -> None:
    assert run(f"file://{scan('scan.h5')}?repeat=2")["done"] == 8
    sim = "sim://hedm?shape=96x128&peaks=5&frames=2"
    assert run(f"{sim}&series=2")["done"] == 4
    assert run(f"{sim}&seed=1")["done"] == 2
    with pytest.raises(StoredAlreadyError):
        run(f"{sim}&rate=100")


def test_two_detectors_whose_series_have_one_name_are_two_series(
    run: Run, told_source: Any, frame_of: Any, small_frames: list[Any], tmp_path: Path
) -> None:
    frames = [frame_of(number, small_frames[number]) for number in range(2)]
    told = [SeriesStart("a", identity="x"), *frames, SeriesStart("a", identity="y"), *frames]
    assert run(told_source(told))["done"] == 4
    assert Counter(stored(tmp_path / "results")) == {(i, n): 1 for i in "xy" for n in range(2)}


def test_a_sink_that_was_down_at_the_beginning_of_a_series_stores_its_identity(
    peak_predictor: Any, tmp_path: Path, told_source: Any, frame_of: Any, small_frames: list[Any]
) -> None:
    class Failing(Hdf5Sink):
        failures = 1

        def begin(self, series: Any) -> None:
            if self.failures:
                self.failures -= 1
                raise OSError("not now")
            super().begin(series)

    frames = [frame_of(number, small_frames[number]) for number in range(3)]
    source = told_source([SeriesStart("a", identity="x"), *frames])
    Service(peak_predictor, source, [Failing(tmp_path)], sink_retry_s=0.0).run()
    assert {identity for identity, _ in stored(tmp_path)} == {"x"}


HOLDER = """
import sys
from edgexnas.device.sinks.hdf5_sink import Hdf5Sink
from edgexnas.device.sinks.results import ServiceIdentity
sink = Hdf5Sink(sys.argv[1])
sink.open(ServiceIdentity("bragg", "m", 1, "onnxruntime", "int8", "told://", "0"))
print("open", flush=True)
sys.stdin.readline()
"""


def test_a_second_service_on_a_folder_is_refused_until_the_first_has_ended(
    run: Run, scan: Any, tmp_path: Path
) -> None:
    folder, path = tmp_path / "results", scan("scan.h5")
    (tmp_path / "link").symlink_to(folder)
    program = [sys.executable, "-c", HOLDER, str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(program, text=True, **pipes) as first:  # type: ignore[call-overload]
        assert first.stdout.readline() == "open\n"
        for name in ("results", "link"):
            with pytest.raises(Exception, match=f"is written to by process {first.pid} on "):
                run(path, [name])
        with pytest.raises(Exception, match=f"process {first.pid}"):
            Hdf5Sink(folder, name="other").check()
        first.kill()
    # What the killed one left locks nothing.
    assert (folder / ".edgexnas.lock").exists()
    assert run(path)["done"] == 4
    assert not (folder / ".edgexnas.lock").exists()


def test_two_sinks_of_a_process_share_a_folder_under_two_names_alone(tmp_path: Path) -> None:
    from edgexnas.device.sinks.results import ServiceIdentity

    identity = ServiceIdentity("bragg", "m", 1, "onnxruntime", "int8", "told://", "0")
    first, second, third = (Hdf5Sink(tmp_path, name=name) for name in ("a", "b", "a"))
    first.open(identity)
    second.open(identity)
    with pytest.raises(Exception, match=f"this process \\({os.getpid()}\\)"):
        third.open(identity)
    first.close()
    third.open(identity)
    third.close()
    second.close()


def test_a_source_without_identity_is_known_by_its_name_and_that_is_said(
    run: Run,
    told_source: Any,
    frame_of: Any,
    small_frames: list[Any],
    peak_predictor: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def frames(count: int) -> Any:
        return told_source([frame_of(number, small_frames[number]) for number in range(count)])

    assert run(frames(2))["done"] == 2
    assert run(frames(4))["done"] == 2
    assert "2 frames of a series named a were stored by earlier runs and are left" in caplog.text
    # A sink that remembers nothing wants them all.
    Service(peak_predictor, frames(4), [CallbackSink(print, policy="block")]).run()
