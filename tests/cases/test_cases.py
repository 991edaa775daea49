"""Situations from public reports, one test each; a title names what is right."""

from __future__ import annotations

import copy
import importlib.util
import pickle
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import fabio
import h5py
import numpy as np
import pytest

from edgexnas.cli import main
from edgexnas.device import PeakPredictor
from edgexnas.device.power import open_power_meter
from edgexnas.device.power.rapl import RaplMeter
from edgexnas.device.sources import open_event_source
from edgexnas.errors import ConfigurationError, EdgexnasError, InputError, SourceError
from edgexnas.frames import open_frames
from edgexnas.ptycho import patch_errors
from edgexnas.scans import open_scan

_spec = importlib.util.spec_from_file_location("made", Path(__file__).with_name("conftest.py"))
made = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(made)
frame, stack, write_frames = made.frame, made.stack, made.write_frames

Count = Callable[[Any], dict[int, int]]

FOUR_EACH = {0: 4, 1: 4, 2: 4}


def writer(program: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a program that says «up» when its file is there."""
    head = textwrap.dedent(f"""
        import importlib.util, os, sys, time, h5py
        spec = importlib.util.spec_from_file_location("made", {str(Path(made.__file__))!r})
        made = importlib.util.module_from_spec(spec); spec.loader.exec_module(made)
        stack = made.stack
    """)
    command = [sys.executable, "-c", head + textwrap.dedent(program), *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


def ended(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def followed(path: Path, frames: int) -> Any:
    """Follow a file, however slowly it is written, until so many frames were read."""
    source = open_event_source(f"file://{path}?follow=1&idle_s=9999")

    def close() -> None:
        while source.status()["frames"] < frames:
            time.sleep(0.01)
        source.close()

    threading.Thread(target=close, daemon=True).start()
    return source


def virtual(path: Path, place: str, parts: list[tuple[str, str]], frames: int) -> None:
    """Write a virtual dataset of `frames` frames, of which each part gives three."""
    layout = h5py.VirtualLayout((frames, 256, 256), np.uint16)
    for number, (source, name) in enumerate(parts):
        layout[3 * number : 3 * number + 3] = h5py.VirtualSource(source, name, (3, 256, 256))
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset(place, layout)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """On a shared machine more threads of torch cost many times what they save."""
    import torch

    torch.set_num_threads(1)


def test_another_file_of_the_same_name_is_processed_or_refused(
    tmp_path: Path, bundle_path: Path, keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, spots in (("a", made.SPOTS), ("b", ((60.0, 60.0, 900.0),))):
        (tmp_path / name).mkdir()
        source = write_frames(tmp_path / name / "scan.h5", stack(4, spots=spots))
        (tmp_path / "serve.toml").write_text(
            f'source = "{source}"\n[predictor]\nbundle = "{bundle_path}"\ntrust = "{keys}"\n'
            'precision = "float32"\n[[sinks]]\nkind = "hdf5"\nfolder = "results"\n'
        )
        status = main(["serve", str(tmp_path / "serve.toml")])
        log = capsys.readouterr().err
        assert "4 of 4 frames done" in log or status not in (0, 4)


def test_a_frame_of_a_dataset_of_final_size_is_taken_when_it_is_written(
    tmp_path: Path, peaks_of: Count
) -> None:
    path = tmp_path / "o.h5"
    process = writer(
        """
        file = h5py.File(sys.argv[1], "w", libver="latest")
        data = file.create_dataset("entry/data/data", (6, 256, 256), "u2", chunks=(1, 256, 256))
        file.swmr_mode = True
        for number, one in enumerate(stack(6)):
            data[number] = one
            data.flush()
            print("up", flush=True)
            time.sleep(0.3)
        """,
        path,
    )
    assert peaks_of(followed(path, 6)) == dict.fromkeys(range(6), 4)
    ended(process)


@pytest.mark.parametrize("fill", [65535, 65534])
def test_frames_of_a_filler_value_do_not_hide_the_peaks_of_the_others(
    fill: int, tmp_path: Path, peaks_of: Count, caplog: pytest.LogCaptureFixture
) -> None:
    filler = np.full((3, 256, 256), fill, np.uint16)
    path = write_frames(tmp_path / "sls.h5", np.concatenate([stack(3), filler]))
    assert peaks_of(path) == FOUR_EACH
    assert "3 of 6 frames" in caplog.text
    assert f"(3-5): frame 5 of {path} is missing: each of its pixels holds" in caplog.text


def test_a_peak_cut_off_at_the_stated_saturation_is_flagged(
    tmp_path: Path, bundle_path: Path, keys: Path
) -> None:
    from edgexnas.bragg import PeakFlag

    clipped = np.minimum(stack(3, spots=((40.3, 50.2, 9000.0),)), 1500)
    place = "entry__instrument__detector__saturation_value"
    sources: list[Any] = [
        write_frames(tmp_path / "nx.h5", clipped.astype(np.uint32), **{place: 1500})
    ]
    sources.append(f"file://{sources[0]}")
    (tmp_path / "cbf").mkdir()
    said = "# Detector: PILATUS 2M\r\n# Count_cutoff 1500 counts\r\n"
    header = {"_array_data.header_convention": "PILATUS_1.2", "_array_data.header_contents": said}
    for number, image in enumerate(clipped):
        written = fabio.cbfimage.CbfImage(data=image.astype(np.int32), header=header)
        written.write(str(tmp_path / "cbf" / f"im_{number}.cbf"))
    sources += [tmp_path / "cbf", stream_v2(clipped, saturation_value=1500)]
    for source in sources:
        options: Any = {"engine": "onnxruntime", "precision": "float32"}
        with PeakPredictor(bundle_path, trust=keys, **options) as predictor:
            first = next(iter(predictor.stream(source)))
        assert (first.flags & PeakFlag.SATURATED).all(), source


def stream_v2(frames: np.ndarray, **said: Any) -> str:
    """Send a Stream V2 series from another thread; give the URL to take it from."""
    zmq = pytest.importorskip("zmq")
    from edgexnas.device.sources.simplon.cbor import SELF_DESCRIBED, Tagged, dump_cbor

    socket = zmq.Context.instance().socket(zmq.PUSH)
    socket.setsockopt(zmq.LINGER, 120_000)
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    series = {"series_id": 1, "series_unique_id": "01A"}

    def message(**fields: Any) -> None:
        socket.send(SELF_DESCRIBED + dump_cbor({**fields, **series}))

    def send() -> None:
        sides = {"image_size_x": frames.shape[2], "image_size_y": frames.shape[1]}
        began = {"channels": ["threshold_1"], "image_dtype": "uint16", **sides, **said}
        message(type="start", number_of_images=len(frames), pixel_mask={}, **began)
        times = {"start_time": [0, 100], "stop_time": [1, 100], "real_time": [1, 100]}
        date = Tagged(0, datetime.now(timezone.utc).isoformat())
        for number, image in enumerate(frames):
            pixels = Tagged(40, [list(image.shape), Tagged(69, image.tobytes())])
            message(
                type="image",
                image_id=number,
                series_date=date,
                data={"threshold_1": pixels},
                **times,
            )
        message(type="end")
        socket.close()

    threading.Thread(target=send, daemon=True).start()
    return f"simplon://127.0.0.1:{port}?exclusive=1"


@pytest.mark.parametrize("kind", ["one", "per frame", "another detector group"])
def test_a_pixel_mask_is_used_wherever_the_file_has_it(
    kind: str, tmp_path: Path, peaks_of: Count
) -> None:
    mask = np.zeros((256, 256), np.uint32)
    mask[85:97, 150:170] = 1
    detector = "ELE_D0" if kind == "another detector group" else "detector"
    place = f"entry__instrument__{detector}__pixel_mask"
    values = np.repeat(mask[None], 3, axis=0) if kind == "per frame" else mask
    path = write_frames(tmp_path / "a.h5", stack(3), **{place: values})
    for source in (path, f"file://{path}"):
        assert peaks_of(source) == dict.fromkeys(range(3), 3)
    assert peaks_of(f"file://{path}?file_mask=0") == FOUR_EACH


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (h5py.ExternalLink("gone_meta.h5", "mask"), r"gone_meta\.h5, which is missing; copy"),
        (
            np.zeros((256, 255), np.uint32),
            r"has shape \(256, 255\), and the frames have \(256, 256",
        ),
        (np.ones((256, 256), np.uint32), "masks every pixel"),
    ],
    ids=["link to a missing file", "another shape", "all pixels"],
)
def test_a_pixel_mask_that_cannot_be_used_is_refused_by_name(
    mask: Any, message: str, tmp_path: Path
) -> None:
    place = "entry__instrument__detector__pixel_mask"
    path = write_frames(tmp_path / "a.h5", stack(3), **{place: mask})
    with pytest.raises(SourceError, match=message):
        open_frames(path)


@pytest.mark.parametrize("kind", ["unmapped", "no dataset", "nested", "aborted"])
def test_frames_that_are_not_in_the_file_are_named_and_not_dark(
    kind: str, tmp_path: Path, peaks_of: Count, caplog: pytest.LogCaptureFixture
) -> None:
    frames, path, place = stack(6), tmp_path / "a.h5", "entry/data/data"
    with h5py.File(tmp_path / "one.h5", "w") as file:
        file["data"] = frames[:3]
    first = [("one.h5", "data")]
    if kind == "unmapped":
        virtual(path, place, first, 6)
    elif kind == "no dataset":
        virtual(path, place, [*first, ("one.h5", "other")], 6)
    elif kind == "nested":
        virtual(tmp_path / "inner.h5", "data", [("gone.h5", "data")], 3)
        virtual(path, place, [*first, ("inner.h5", "data")], 6)
    else:
        with h5py.File(path, "w") as file:
            data = file.create_dataset(place, (6, 256, 256), np.uint16, chunks=(1, 256, 256))
            data[:3] = frames[:3]
    assert open_frames(path).missing.tolist() == [3, 4, 5]
    for source, said in ((path, "missing and left out (3-5)"), (f"file://{path}", "numbers 3-5")):
        caplog.clear()
        assert peaks_of(source) == FOUR_EACH
        assert said in caplog.text


@pytest.mark.parametrize("kind", ["here", "linked to", "symbolic link"])
def test_parts_of_a_virtual_dataset_are_found_from_where_it_lies(
    kind: str, tmp_path: Path, peaks_of: Count, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "home").mkdir()
    with h5py.File(tmp_path / "sub" / "s.h5", "w") as file:
        file["data"] = stack(3)
    virtual(tmp_path / "sub" / "v.h5", "entry/data/data", [("s.h5", "data")], 3)
    path = tmp_path / "sub" / "v.h5"
    if kind == "linked to":
        path = tmp_path / "top.h5"
        with h5py.File(path, "w") as file:
            file["entry/data/data"] = h5py.ExternalLink("sub/v.h5", "entry/data/data")
    elif kind == "symbolic link":
        path = tmp_path / "home" / "v.h5"
        path.symlink_to(tmp_path / "sub" / "v.h5")
    monkeypatch.chdir(tmp_path)
    for place in (path, path.relative_to(tmp_path)):
        assert peaks_of(place) == FOUR_EACH


def test_a_region_of_interest_that_moves_begins_another_series() -> None:
    from edgexnas.device.sources.pva.ntndarray import FrameUpdate

    kinds = []
    for offset in (0, 1024):
        size = {"size": 256, "offset": offset, "fullSize": 2048, "binning": 1, "reverse": False}
        update = FrameUpdate.of(ntndarray(frame(), [size, size]))
        kinds.append(update.kind())
    assert kinds[0] != kinds[1]


def ntndarray(pixels: np.ndarray, dimension: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "value": [{"ushortValue": pixels.ravel()}],
        "codec": {"name": "", "parameters": None},
        "uniqueId": 1,
        "dataTimeStamp": {"secondsPastEpoch": 1, "nanoseconds": 0},
        "dimension": dimension,
        "uncompressedSize": pixels.nbytes,
        "attribute": [{"name": "ColorMode", "value": [{"value": 0}]}],
    }


@pytest.mark.parametrize("early", [True, False], ids=["all links at the start", "one by one"])
def test_the_files_of_an_eiger_are_followed_as_they_come(
    early: bool, tmp_path: Path, peaks_of: Count
) -> None:
    process = writer(
        """
        folder, early = sys.argv[1], sys.argv[2] == "True"
        frames = stack(8)
        def block(number):
            with h5py.File(f"{folder}/m_data_{number:06d}.h5", "w") as file:
                file["entry/data/data"] = frames[2 * number - 2 : 2 * number]
        def master(blocks):
            with h5py.File(f"{folder}/draft", "w") as file:
                for number in range(1, blocks + 1):
                    link = h5py.ExternalLink(f"m_data_{number:06d}.h5", "entry/data/data")
                    file[f"entry/data/data_{number:06d}"] = link
            os.replace(f"{folder}/draft", f"{folder}/m_master.h5")
        block(1)
        master(4 if early else 1)
        print("up", flush=True)
        for number in (2, 3, 4):
            time.sleep(0.7)
            block(number)
            early or master(number)
        """,
        tmp_path,
        early,
    )
    assert peaks_of(followed(tmp_path / "m_master.h5", 8)) == dict.fromkeys(range(8), 4)
    ended(process)


def test_a_name_with_a_superscript_digit_is_ordered_like_any_other(tmp_path: Path) -> None:
    for number in range(2):
        fabio.edfimage.EdfImage(data=frame(number)).write(str(tmp_path / f"10²{number}.edf"))
    np.testing.assert_array_equal(open_frames(tmp_path)[1], frame(1))


@pytest.mark.parametrize(
    ("mode", "message"),
    [("", "is locked by another program that writes it"), ("swmr", r"\?follow=1, or run h5clear")],
)
def test_a_file_that_is_being_written_is_not_called_damaged(
    mode: str, message: str, tmp_path: Path
) -> None:
    process = writer(
        """
        file = h5py.File(sys.argv[1], "w", libver="latest")
        shape = (None, 256, 256)
        file.create_dataset("entry/data/data", data=stack(3), chunks=True, maxshape=shape)
        if sys.argv[2]:
            file.swmr_mode = True
        file.flush()
        print("up", flush=True)
        time.sleep(9999)
        """,
        tmp_path / "a.h5",
        mode,
    )
    try:
        with pytest.raises(SourceError, match=message) as refused:
            open_frames(tmp_path / "a.h5")
        assert "damaged" not in str(refused.value)
    finally:
        ended(process)


def test_a_frame_cache_in_an_hdf5_file_is_read_like_the_other_one(
    tmp_path: Path, peaks_of: Count
) -> None:
    indices, data, ids = [], [], []
    for image in stack(6):
        row, col = np.nonzero(image > 15)
        ids += [sum(map(len, data)), sum(map(len, data)) + len(row)]
        indices.append(np.stack([row, col], axis=1))
        data.append(image[row, col])
    with h5py.File(tmp_path / "cache.fch5", "w") as file:
        file.attrs["HEXRD_FRAMECACHE_VERSION"] = 1
        file["shape"], file["nframes"], file["dtype"] = [256, 256], 6, "uint16"
        file["indices"] = np.concatenate(indices).astype(np.uint16)
        file["data"], file["frame_ids"] = np.concatenate(data)[:, None], np.array(ids)
        file.create_group("metadata")
    assert peaks_of(tmp_path / "cache.fch5") == dict.fromkeys(range(6), 4)


def test_one_of_several_thresholds_can_be_chosen(tmp_path: Path, peaks_of: Count) -> None:
    frames = np.stack([stack(3), np.zeros((3, 256, 256), np.uint16)], axis=1)
    path = write_frames(tmp_path / "t.h5", frames)
    with pytest.raises(SourceError, match=r"several thresholds; .*file://.*\?channel=0"):
        open_frames(path)
    assert peaks_of(f"file://{path}?channel=0") == FOUR_EACH
    assert peaks_of(f"file://{path}?channel=1") == {}


def test_pixels_that_are_nan_on_every_frame_are_masked(tmp_path: Path, peaks_of: Count) -> None:
    frames = stack(3).astype(np.float32)
    frames[:, 100:117] = np.nan
    path = write_frames(tmp_path / "n.h5", frames)
    for source in (path, f"file://{path}"):
        assert peaks_of(source) == FOUR_EACH


def test_the_axes_of_a_detector_decide_which_way_positions_run(tmp_path: Path) -> None:
    scan = made.small_scan()
    vectors = np.array([[0, made.PIXEL_M, 0], [made.PIXEL_M, 0, 0]])
    place = "entry_1/instrument_1/detector_1/basis_vectors"
    made.write_cxi(tmp_path / "default.cxi", scan)
    made.write_cxi(
        tmp_path / "stated.cxi", scan, sign=-1, change=lambda file: file.update({place: vectors})
    )
    default, stated = (open_scan(tmp_path / f"{name}.cxi") for name in ("default", "stated"))
    np.testing.assert_allclose(stated.positions_px, default.positions_px, atol=1e-6)
    expected = scan.positions_px - scan.positions_px[0]
    np.testing.assert_allclose(default.positions_px - default.positions_px[0], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("place", "value", "units"),
    [
        ("detector_1/distance", made.DISTANCE_M * 1e3, "mm"),
        ("detector_1/x_pixel_size", 55.0, "um"),
        ("source_1/energy", 8800.0, "eV"),
        ("source_1/energy", 8.8, "keV"),
    ],
)
def test_the_units_of_a_cxi_file_are_used_or_refused(
    place: str, value: float, units: str, tmp_path: Path
) -> None:
    scan, place = made.small_scan(), f"entry_1/instrument_1/{place}"

    def change(file: Any, units: str | None) -> None:
        del file[place]
        file[place] = value
        if units is not None:
            file[place].attrs["units"] = units

    said = made.write_cxi(tmp_path / "said.cxi", scan, change=lambda file: change(file, units))
    spread = np.ptp(open_scan(said).positions_px, axis=0)
    np.testing.assert_allclose(spread, np.ptp(scan.positions_px, axis=0), rtol=1e-6)
    for name in (None, "furlong"):
        wrong = made.write_cxi(tmp_path / "w.cxi", scan, change=lambda f, n=name: change(f, n))
        with pytest.raises(
            SourceError, match=rf"{place}.* in ('furlong'|\w+, as it names no unit)"
        ):
            open_scan(wrong)


@pytest.mark.parametrize(
    ("visible", "watts"), [("0", 60.0), ("1", 500.0), ("GPU-bbbb", 500.0), ("GPU-bb", 500.0)]
)
def test_the_power_of_the_gpu_that_runs_is_measured(
    visible: str, watts: float, two_boards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    meter = open_power_meter("nvml")
    assert meter.read().module_w == watts
    meter.close()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-cccc")
    with pytest.raises(SourceError, match="MIG-cccc is a slice of a GPU"):
        open_power_meter("nvml")


@pytest.fixture
def two_boards(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML with board 0, GPU-aaaa, idle at 60 W, and board 1, GPU-bbbb, working at 500 W."""
    import types

    boards, watts = ["GPU-aaaa", "GPU-bbbb"], [60.0, 500.0]

    class NVMLError(Exception):
        pass

    def by_uuid(uuid: str | bytes) -> int:
        name = uuid.decode() if isinstance(uuid, bytes) else uuid
        if name not in boards:
            raise NVMLError("Not Found")
        return boards.index(name)

    library = types.ModuleType("pynvml")
    members: dict[str, Any] = {
        "NVMLError": NVMLError,
        "NVMLError_NotSupported": type("NVMLError_NotSupported", (NVMLError,), {}),
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetHandleByUUID": by_uuid,
        "nvmlDeviceGetUUID": lambda handle: boards[handle],
        "nvmlDeviceGetName": lambda handle: "Board",
        "nvmlDeviceGetPowerUsage": lambda handle: int(watts[handle] * 1000),
        "nvmlDeviceGetTotalEnergyConsumption": lambda handle: int(watts[handle] * 1e6),
    }
    for name, member in members.items():
        setattr(library, name, member)
    monkeypatch.setitem(sys.modules, "pynvml", library)


@pytest.mark.parametrize("values", [(0.1, "none"), (1, 0.5, 2)], ids=["word", "int and float"])
def test_a_choice_of_mixed_values_is_searched_like_any_other(
    values: tuple[Any, ...], tmp_path: Path, peak_dataset: Any
) -> None:
    result = search(tmp_path, peak_dataset, values, max_evals=20)
    assert len(result.trials) == 20


def test_labels_of_a_scan_at_wrong_positions_are_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan = made.small_scan(70)
    swapped = write_scan(tmp_path / "s.h5", scan.patterns, scan.positions_px[:, ::-1])
    options = ["--iterations", "12", "--modes", "2", "--output", str(tmp_path / "o.h5")]
    main(["label", str(swapped), *options])
    said = "".join(capsys.readouterr())
    assert "residual" in said


def test_positions_in_metres_are_refused_on_the_host_too(tmp_path: Path) -> None:
    scan = made.small_scan(70)
    path = write_scan(tmp_path / "s.h5", scan.patterns, scan.positions_px * 1e-8)
    with pytest.raises(SourceError, match="looks like metres"):
        open_scan(path)


def write_scan(path: Path, patterns: np.ndarray, positions: np.ndarray) -> Path:
    return write_frames(path, patterns, entry__data__positions_px=positions)


def test_patterns_without_light_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from edgexnas.host import label_scan

    scan = made.small_scan(60)
    truth = label_scan(scan, method="truth")
    dark = scan.patterns.copy()
    dark[::5] = 0
    errors = []
    for patterns in (scan.patterns, dark):
        found = label_scan(replace(scan, patterns=patterns), method="rpie", iterations=6, modes=1)
        lit = np.flatnonzero(patterns.any(axis=(1, 2)))
        assert len(found) == len(lit)
        errors.append(patch_errors(found.targets, truth.targets[lit]).phase_rad)
    assert errors[1] < 1.5 * errors[0]
    count = len(scan)
    assert f"{-(-count // 5)} of {count} patterns of {scan.source} hold no light" in caplog.text
    with pytest.raises(SourceError, match=f"none of the {count} patterns .* holds any light"):
        open_scan(write_scan(tmp_path / "none.h5", dark * 0, scan.positions_px))


def test_a_predictor_in_a_forked_or_spawned_process_says_that_it_is_elsewhere(
    bundle_path: Path, keys: Path, predictor: PeakPredictor
) -> None:
    for attempt in (pickle.dumps, copy.deepcopy):
        with pytest.raises(EdgexnasError, match="open one there"):
            attempt(predictor)
    program = f"""
        import gc, multiprocessing, sys
        from edgexnas.device import PeakPredictor
        from edgexnas.errors import EngineError
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        p = PeakPredictor({str(bundle_path)!r}, trust={str(keys)!r}, engine="onnxruntime",
                          precision="float32", threads=4)
        import numpy as np
        one = np.ones((64, 64), np.uint16)
        p.process(one)
        def work():
            try:
                p.process(one)
            except EngineError as error:
                sys.exit(7 if "another process" in str(error) else 1)
        def close():
            global p
            p.close()
            del p
            gc.collect()
        for target, wanted in ((work, (0, 7)), (close, (0,))):
            child = multiprocessing.get_context("fork").Process(target=target)
            child.start(); child.join(100)
            if child.is_alive():
                child.kill(); child.join(); sys.exit("it hangs")
            if child.exitcode not in wanted:
                sys.exit(f"it ends with {{child.exitcode}}")
    """
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", ["threshold", "attention"])
def test_a_network_that_cannot_be_exported_is_refused_before_the_search(
    kind: str, tmp_path: Path, peak_dataset: Any
) -> None:
    from torch import nn, relu

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.out, self.qkv = (
                nn.Linear(121, 16),
                nn.Linear(16, 6),
                nn.Linear(11, 33),
            )

        def forward(self, x: Any) -> Any:
            flat = x.flatten(1)
            if kind == "threshold":
                flat = flat * (flat > 0.1).float()
            else:
                q, k, v = self.qkv(x[:, 0]).chunk(3, -1)
                flat = flat + nn.functional.scaled_dot_product_attention(q, k, v).flatten(1)
            return self.out(relu(self.hidden(flat))).unflatten(1, (2, 3))

    message = {
        "threshold": r"cannot be exported .* in float16 .*float16.*cast with x\.to",
        "attention": r"cannot be exported .*\(operation scaled_dot_product_attention has no",
    }[kind]
    with pytest.raises(ConfigurationError, match=message) as refused:
        search(tmp_path, peak_dataset, build=lambda _: Own(), max_evals=1)
    assert len(str(refused.value).splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def peak_dataset() -> Any:
    from edgexnas.host import label_frames
    from edgexnas.simulate import HedmSettings, simulate_hedm

    return label_frames(simulate_hedm(HedmSettings(frames=48, shape=(512, 512), grains=60)))


def search(
    folder: Path,
    data: Any,
    *choices: Any,
    build: Any = None,
    max_evals: int,
    search: str = "random",
) -> Any:
    from torch import nn

    from edgexnas.host import Choice, Integer, optimize
    from edgexnas.host.networks.search_space import SearchSpace

    def network(values: Any) -> nn.Module:
        layers = nn.Flatten(), nn.Linear(121, values["units"]), nn.ReLU()
        return nn.Sequential(*layers, nn.Linear(values["units"], 6), nn.Unflatten(1, (2, 3)))

    fixed = {"epochs": 1, "batch_size": 64, "learning_rate": 0.01}
    parameters = [Choice(name, (value,)) for name, value in fixed.items()]
    space = SearchSpace("own", "bragg", (Integer("units", 2, 9), *parameters), build or network)
    options = {"search": search, "max_evals": max_evals, "output": folder / "run"}
    quiet = {"evaluator": "serial", "progress": False}
    return optimize("bragg", data=data, space=space, **options, **quiet)


@pytest.mark.parametrize(
    ("before_uj", "after_uj", "watts"),
    [(262_133_328_850, 10_000_000, 20.0), (120_000_000_000, 5_000_000, None)],
    ids=["start-over at the range", "from 0 after a suspend"],
)
def test_an_energy_counter_that_was_reset_gives_no_reading(
    before_uj: int, after_uj: int, watts: float | None, tmp_path: Path
) -> None:
    folder = tmp_path / "sys" / "class" / "powercap" / "intel-rapl:0"
    folder.mkdir(parents=True)
    (folder / "name").write_text("package-0\n")
    (folder / "max_energy_range_uj").write_text("262143328850\n")
    (folder / "energy_uj").write_text(f"{before_uj}\n")
    clock = [0.0]
    meter = RaplMeter(tmp_path, now=lambda: clock[0])
    clock[0] = 1.0
    (folder / "energy_uj").write_text(f"{after_uj}\n")
    if watts is not None:
        assert meter.read().module_w == pytest.approx(watts, abs=0.01)
        return
    with pytest.raises(SourceError, match="package-0 was reset"):
        meter.read()
    clock[0] = 2.0
    (folder / "energy_uj").write_text(f"{after_uj + 30_000_000}\n")
    assert meter.read().module_w == pytest.approx(30)


def test_small_surprises_are_none(
    tmp_path: Path, bundle_path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgexnas.host import Real

    options: dict[str, Any] = {"engine": "onnxruntime", "precision": "float32"}
    # A companion file of macOS beside a key is no key.
    trust = tmp_path / "trust"
    trust.mkdir()
    (key,) = keys.glob("*.pub.pem")
    (trust / key.name).write_bytes(key.read_bytes())
    (trust / f"._{key.name}").write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        ")
    PeakPredictor(bundle_path, trust=trust, **options).close()
    # A frame that was refused decides nothing.
    with PeakPredictor(bundle_path, trust=keys, **options, batch=np.int64(4)) as predictor:
        with pytest.raises(InputError):
            predictor.process(np.full((64, 64), np.nan, np.float32))
        predictor.process(frame())
    with pytest.raises(EdgexnasError):
        PeakPredictor(bundle_path, trust=keys, **options, batch=10**9)
    with pytest.raises(ConfigurationError):
        Real("a", 1.0, float("inf"))
    # A folder that cannot be made is no reason to refuse.
    monkeypatch.setenv("EDGEXNAS_CACHE", "/proc/nowhere")
    PeakPredictor(bundle_path, trust=keys, engine="onnxruntime", precision="auto").close()
