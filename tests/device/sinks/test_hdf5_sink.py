from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from edgexnas.bragg import Peaks
from edgexnas.device.ptycho.object_file import save_object
from edgexnas.device.sinks.hdf5_sink import Hdf5Sink
from edgexnas.device.sinks.results import (
    FrameResult,
    ObjectSnapshot,
    SeriesKey,
    ServiceIdentity,
)
from edgexnas.device.sinks.results_file import committed_frames, read_results
from edgexnas.errors import ConfigurationError, SourceError
from edgexnas.ptycho import ObjectImage

IDENTITY = ServiceIdentity("bragg", "m", 1, "onnxruntime", "int8", "told://", "0")

WRITER = """
import sys
import numpy as np
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_hdf5_sink import IDENTITY, key_of, result
from edgexnas.device.sinks.hdf5_sink import Hdf5Sink

{before}
sink = Hdf5Sink(sys.argv[1], **{options})
sink.open(IDENTITY)
first = max((stop for _, stop in sink.committed().get(key_of("a"), [])), default=0)
print("open", first, flush=True)
for number in range(first, 1_000_000, 3):
    try:
        sink.write([result(number + step) for step in range(3)])
    except OSError as error:
        print("refused", number, error, flush=True)
        break
    print("stored", number + 2, flush=True)
"""


def peaks_of(number: int, count: int) -> Peaks:
    """Peaks at row and column `number`."""
    positions = np.full((count, 2), number, np.float32)
    return Peaks(
        positions_px=positions,
        intervals_px=positions / 2,
        quantiles_px=np.zeros((count, 2, 3), np.float32),
        maxima=np.zeros((count, 2), np.int32),
        intensities=np.arange(count, dtype=np.float32),
        flags=np.zeros(count, np.uint8),
        frame_number=number,
        overflow=0,
    )


def result(number: int, *, series: str = "a", **fields: Any) -> FrameResult:
    """A result whose peaks tell its number: `number % 4` of them, at row `number`."""
    return replace(FrameResult(series, number, 0, 1.5, peaks_of(number, number % 4)), **fields)


def key_of(series: str) -> SeriesKey:
    return SeriesKey.of(series, "", IDENTITY.bundle_digest)


def check_frame(frame: Any) -> None:
    """A stored frame is whole: what `result` made of its number."""
    assert frame.positions_px.shape == (frame.number % 4, 2)
    assert (frame.positions_px == frame.number).all()
    assert (frame.intensities == np.arange(frame.number % 4)).all()


def run_writer(folder: Path, *, before: str = "", options: str = "{}") -> subprocess.Popen[str]:
    program = WRITER.format(before=before, options=options)
    return subprocess.Popen(
        [sys.executable, "-c", program, str(folder), str(Path(__file__).parent)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def sink(tmp_path: Path) -> Any:
    made = Hdf5Sink(tmp_path)
    made.open(IDENTITY)
    yield made
    made.close()


class TestStoring:
    def test_what_is_written_is_read_back(self, sink: Hdf5Sink, tmp_path: Path) -> None:
        sink.write([result(0), result(1), result(2)])
        sink.write([result(7, series="b")])
        sink.write([result(3, error="it was dark", peaks=None)])
        sink.close()
        frames = list(read_results(tmp_path))
        assert [(f.series, f.number, f.failed) for f in frames] == [
            ("a", 0, False),
            ("a", 1, False),
            ("a", 2, False),
            ("b", 7, False),
            ("a", 3, True),
        ]
        for frame in frames[:4]:
            check_frame(frame)
            assert frame.timestamp_s == 1.5
        assert len(frames[4].positions_px) == 0

    def test_a_frame_that_is_stored_is_not_stored_again(
        self, sink: Hdf5Sink, tmp_path: Path
    ) -> None:
        sink.write([result(0), result(1)])
        sink.close()
        again = Hdf5Sink(tmp_path)
        assert list(again.committed()[key_of("a")]) == [(0, 2)]
        again.open(IDENTITY)
        again.write([result(1), result(2)])
        again.close()
        assert [f.number for f in read_results(tmp_path)] == [0, 1, 2]
        assert sorted(p.name for p in tmp_path.iterdir()) == [
            "results_000001.h5",
            "results_000002.h5",
        ]

    def test_another_process_reads_committed_frames_while_they_are_written(
        self, sink: Hdf5Sink, tmp_path: Path
    ) -> None:
        sink.write([result(0), result(1)])
        program = (
            "import sys; from pathlib import Path;"
            "from edgexnas.device.sinks.results_file import read_results;"
            "print(*[f.number for f in read_results(Path(sys.argv[1]))])"
        )
        command = [sys.executable, "-c", program, str(tmp_path)]
        read = subprocess.run(command, capture_output=True, text=True, check=True)
        assert read.stdout.split() == ["0", "1"]

    def test_a_new_file_is_begun_when_one_is_large(self, tmp_path: Path) -> None:
        sink = Hdf5Sink(tmp_path, segment_mib=0.001)
        sink.open(IDENTITY)
        for number in range(60):
            sink.write([result(number)])
        sink.close()
        assert len(list(tmp_path.glob("*.h5"))) > 2
        assert [f.number for f in read_results(tmp_path)] == list(range(60))

    def test_committed_numbers_are_intervals(self, sink: Hdf5Sink, tmp_path: Path) -> None:
        sink.write([result(n) for n in (0, 1, 2, 5, 6, 9)])
        sink.close()
        assert list(committed_frames(tmp_path / "results_000001.h5")[key_of("a")]) == [
            (0, 3),
            (5, 7),
            (9, 10),
        ]

    def test_a_folder_without_results_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match="holds no results_"):
            list(read_results(tmp_path))

    def test_patches_and_positions_are_kept_where_asked(self, tmp_path: Path) -> None:
        sink = Hdf5Sink(tmp_path, patches=True)
        sink.open(replace(IDENTITY, task="ptycho"))
        patch = np.random.default_rng(0).random((64, 64), np.float32)
        sink.write(
            [
                FrameResult("s", 0, 0, amplitude=patch, phase_rad=-patch, position_px=(1.5, 2.5)),
                FrameResult("s", 1, 0, error="saturated"),
                FrameResult("s", 2, 0, amplitude=2 * patch, phase_rad=patch, position_px=(3, 4)),
            ]
        )
        sink.close()
        first, failed, last = read_results(tmp_path)
        np.testing.assert_array_equal(first.phase_rad, -patch)
        np.testing.assert_array_equal(last.amplitude, 2 * patch)
        assert first.position_px == (1.5, 2.5)
        assert failed.failed
        assert failed.amplitude is None

    def test_the_object_appears_in_a_file_of_its_own(self, tmp_path: Path) -> None:
        sink = Hdf5Sink(tmp_path)
        sink.open(replace(IDENTITY, task="ptycho"))
        values = np.exp(1j * np.arange(12).reshape(3, 4) / 9).astype(np.complex64)
        image = ObjectImage(values, np.ones((3, 4), np.float32), 0, (5, 6))
        sink.show(ObjectSnapshot("pva:x@3/1", 9, image, final=True))
        sink.close()
        with h5py.File(tmp_path / "object_pva_x_3_1_000001.h5") as file:
            data = file["entry/object"]
            turned = values * np.exp(-1j * np.angle(values.sum()))
            np.testing.assert_allclose(data["phase"][:], np.angle(turned), atol=1e-6)
            np.testing.assert_allclose(data["amplitude"][:], 1, atol=1e-6)
            assert list(data["row_px"]) == [5, 6, 7]
            assert file["entry/title"].asstr()[()] == "pva:x@3/1 up to frame 9"


class TestNexus:
    def test_a_nexus_tool_finds_the_plot(self, sink: Hdf5Sink, tmp_path: Path) -> None:
        nexusformat = pytest.importorskip("nexusformat.nexus", reason="needs nexusformat")
        sink.write([result(n) for n in range(8)])
        sink.close()
        root = nexusformat.nxload(tmp_path / "results_000001.h5")
        plot = root.get_default()
        assert plot.nxclass == "NXdata"
        assert plot.nxsignal.nxname == "intensity"
        assert [axis.nxname for axis in plot.nxaxes] == ["col_px", "row_px"]
        assert len(plot.nxsignal) == 12
        assert str(root["entry/process/program"]) == "edgexnas"

    def test_an_object_looks_the_same_whether_a_service_or_a_command_wrote_it(
        self, tmp_path: Path
    ) -> None:
        nexusformat = pytest.importorskip("nexusformat.nexus", reason="needs nexusformat")
        image = ObjectImage(np.full((3, 4), 2j, np.complex64), np.ones((3, 4), np.float32), 0)
        sink = Hdf5Sink(tmp_path)
        sink.open(replace(IDENTITY, task="ptycho"))
        sink.show(ObjectSnapshot("s", 9, image, final=True))
        sink.close()
        save_object(image, tmp_path / "saved.h5")
        trees = []
        for name in ("object_s_000001.h5", "saved.h5"):
            root = nexusformat.nxload(tmp_path / name)
            plot = root.get_default()
            assert plot.nxsignal.nxname == "phase"
            assert [axis.nxname for axis in plot.nxaxes] == ["row_px", "col_px"]
            trees.append(plot.tree)
        assert trees[0] == trees[1]


class TestCrash:
    def test_kill_9_loses_and_repeats_nothing_that_was_stored(self, tmp_path: Path) -> None:
        said: list[int] = []
        for _ in range(2):
            writer = run_writer(tmp_path)
            assert writer.stdout is not None
            assert writer.stdout.readline().startswith("open")
            for _ in range(40):
                said.append(int(writer.stdout.readline().split()[1]))
            time.sleep(0.02)
            os.kill(writer.pid, signal.SIGKILL)
            said += [int(line.split()[1]) for line in writer.stdout if line.endswith("\n")]
            writer.wait()
            assert writer.stderr is not None
            writer.stdout.close()
            writer.stderr.close()
        frames = list(read_results(tmp_path))
        numbers = [frame.number for frame in frames]
        assert numbers == list(range(len(numbers)))
        assert len(numbers) >= max(said) + 1
        for frame in frames:
            check_frame(frame)

    def test_a_crash_before_the_first_commit_leaves_no_file_that_cannot_be_read(
        self, tmp_path: Path
    ) -> None:
        (tmp_path / ".results_000001.h5.part").write_bytes(b"cut off")
        sink = Hdf5Sink(tmp_path)
        sink.open(IDENTITY)
        sink.write([result(0)])
        sink.close()
        assert [path.name for path in tmp_path.iterdir()] == ["results_000001.h5"]

    def test_a_damaged_file_is_said_and_passed_over(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "results_000004.h5").write_bytes(b"damaged")
        sink = Hdf5Sink(tmp_path)
        sink.open(IDENTITY)
        sink.close()
        assert "its frames may be repeated" in caplog.text
        assert sink.path == tmp_path / "results_000005.h5"


class TestFullDisk:
    def test_a_disk_that_is_nearly_full_is_refused_before_anything_is_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sink = Hdf5Sink(tmp_path)
        sink.open(IDENTITY)
        sink.write([result(0)])
        usage: Callable[..., Any] = lambda place: type("Usage", (), {"free": 2**20})  # noqa: E731
        monkeypatch.setattr("shutil.disk_usage", usage)
        with pytest.raises(OSError, match="has 1 MiB free and 64 MiB must stay free"):
            sink.write([result(1)])
        monkeypatch.undo()
        sink.write([result(1), result(2)])
        sink.close()
        assert [f.number for f in read_results(tmp_path)] == [0, 1, 2]

    def test_a_write_that_is_cut_off_leaves_whole_frames_alone(self, tmp_path: Path) -> None:
        """The kernel lets no file grow beyond a limit; 32 kB are set aside at a time."""
        limit = """
import resource
import edgexnas.device.sinks.hdf5_sink as module
module.AHEAD_BYTES, module.CHUNKS_BYTES = 2**15, 100_000
resource.setrlimit(resource.RLIMIT_FSIZE, (250_000, 250_000))
"""
        writer = run_writer(tmp_path, before=limit)
        out, errors = writer.communicate(timeout=240)
        assert writer.returncode == 0, errors
        lines = out.splitlines()
        assert lines[-1].startswith("refused")
        stored = int(lines[-2].split()[1])
        frames = list(read_results(tmp_path))
        assert [frame.number for frame in frames][: stored + 1] == list(range(stored + 1))
        for frame in frames:
            check_frame(frame)

    def test_a_disk_that_really_is_full_leaves_whole_frames_alone(self, tmp_path: Path) -> None:
        """A file system of 12 MiB, mounted in a name space that ends with the writer."""
        space = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
        mount = f"mount -t tmpfs -o size=12m none {tmp_path}"
        if shutil.which("unshare") is None or subprocess.run([*space, mount]).returncode:
            pytest.skip("a file system cannot be mounted in a name space of this user")
        before = """
import edgexnas.device.sinks.hdf5_sink as module
from test_hdf5_sink import peaks_of
module.AHEAD_BYTES = 2**18
small = result
result = lambda number: small(number, peaks=peaks_of(number, 5000))
"""
        program = WRITER.format(before=before, options="{'least_free_mib': 0}")
        script = tmp_path.with_suffix(".py")
        script.write_text(program)
        saved = tmp_path.with_suffix(".saved")
        saved.mkdir()
        run = f"{sys.executable} {script} {tmp_path} {Path(__file__).parent}"
        command = [*space, f"{mount} && {run}; code=$?; cp {tmp_path}/*.h5 {saved}; exit $code"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert lines[-1].startswith("refused")
        assert "No space left on device" in lines[-1]
        stored = int(lines[-2].split()[1])
        frames = list(read_results(saved))
        assert [frame.number for frame in frames] == list(range(stored + 1))
        for frame in frames:
            assert (frame.positions_px == frame.number).all()
            assert len(frame.positions_px) == 5000

    def test_a_file_system_that_cannot_set_space_aside_is_written_to_all_the_same(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*arguments: int) -> None:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")

        monkeypatch.setattr("os.posix_fallocate", refuse)
        sink = Hdf5Sink(tmp_path)
        sink.open(IDENTITY)
        sink.write([result(0), result(1)])
        sink.close()
        assert [f.number for f in read_results(tmp_path)] == [0, 1]

    def test_a_folder_that_is_not_ours_is_refused_by_a_check(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(ConfigurationError, match="is not a folder or not yours"):
            Hdf5Sink(tmp_path / "file" / "below").check()
        Hdf5Sink(tmp_path / "new" / "folder").check()
        assert not (tmp_path / "new").exists()
