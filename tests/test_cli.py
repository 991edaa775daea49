from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest

from edgexnas.bundle import Precision, open_bundle
from edgexnas.cli import build_parser, main
from edgexnas.device import build_plan


def commands() -> list[str]:
    parser = build_parser()
    return sorted(next(a.choices for a in parser._actions if a.dest == "command"))


def fails(arguments: Sequence[object], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must fail with one sentence, and return the sentence."""
    assert main([str(a) for a in arguments]) in (1, 2)
    captured = capsys.readouterr()
    assert len(captured.err.strip().splitlines()) == 1
    assert "Traceback" not in captured.err
    return captured.err


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every command of the whole job has run once, by the command line."""
    folder = tmp_path_factory.mktemp("project")
    steps = [
        f"simulate --output {folder}/frames.h5 --frames 48 --shape 768 768 --grains 60",
        f"label {folder}/frames.h5 --output {folder}/peaks.h5 --synthetic 300",
        f"keys generate --output {folder}/keys --name beam",
        f"optimize bragg --data {folder}/peaks.h5 --output {folder}/run --space mlpBragg "
        "--search random --max-evals 2 --epochs 2 --evaluator serial --constraint parameters=9000",
        f"export {folder}/run --output {folder}/bragg.edgex --maximum-loss 5 --no-fine-tuning "
        f"--signing-key {folder}/keys/beam.key.pem",
    ]
    for step in steps:
        assert main(step.split()) == 0, step
    return folder


@pytest.mark.parametrize("command", commands())
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert "usage: edgexnas" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [[], ["unknown"], ["predict"], ["demo", "--epochs", "0"], ["keys", "burn"]]
)
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2


def test_label_draws_as_many_peaks_as_it_is_told_to(project: Path) -> None:
    from edgexnas.frames import open_frames
    from edgexnas.host import PeakDataset, label_frames

    with open_frames(project / "frames.h5") as series:
        measured = label_frames(series)
    labelled = PeakDataset.load(project / "peaks.h5")
    assert len(labelled) == len(measured) + 300
    assert "300 synthetic peaks" in labelled.source


def test_an_exported_bundle_verifies_and_predicts(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(project / "bragg.edgex"), "--trust", str(project / "keys")]) == 0
    assert "valid, by key" in capsys.readouterr().out
    out = project / "predicted.csv"
    predict = ["predict", project / "bragg.edgex", project / "frames.h5", "--output", out]
    assert main([str(a) for a in [*predict, "--trust", project / "keys"]]) == 0
    lines = out.read_text().splitlines()
    assert lines[0].startswith("frame,row_px,col_px")
    assert len(lines) > 100


@pytest.mark.skipif(platform.machine() != "x86_64", reason="TensorRT-RTX exists for x86-64 only")
@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_tensorrt_builds_an_orin_like_engine_from_the_exported_bundle(
    project: Path, precision: Precision
) -> None:
    bundle = open_bundle(project / "bragg.edgex", trust=project / "keys")
    plan = build_plan(bundle.models[precision], compute_capability="SM86")
    assert plan.data
    # One hidden layer in INT8; the head stays float.
    assert (len(plan.int8_layers) > 0) == (precision == "int8")


def test_inspect_says_that_nothing_was_verified(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(project / "bragg.edgex")]) == 0
    assert "not checked" in capsys.readouterr().out


def test_the_report_is_one_page(project: Path) -> None:
    assert main(["report", str(project / "run")]) == 0
    assert "<html" in (project / "run" / "report.html").read_text()


def test_a_stranger_is_not_trusted(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["keys", "generate", "--output", str(tmp_path / "other")]) == 0
    capsys.readouterr()
    bundle = project / "bragg.edgex"
    assert "trust" in fails(["verify", bundle, "--trust", tmp_path / "other"], capsys)


def test_keys_are_never_overwritten(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (project / "keys" / "beam.key.pem").read_bytes()
    fails(["keys", "generate", "--output", project / "keys", "--name", "beam"], capsys)
    assert (project / "keys" / "beam.key.pem").read_bytes() == before


def test_a_missing_file_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = fails(["label", tmp_path / "no.h5", "--output", tmp_path / "peaks.h5"], capsys)
    assert "no.h5" in message
    assert list(tmp_path.iterdir()) == []


def test_labelled_peaks_are_not_labelled_again(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["label", project / "peaks.h5", "--output", tmp_path / "again.h5"]
    message = fails(command, capsys)
    assert "peaks.h5 holds labelled peaks to train on, not frames" in message
    assert f"({project / 'frames.h5'}" in message
    assert list(tmp_path.iterdir()) == []


def test_a_demo_searches_all_spaces_that_are_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo = ["demo", "--output", tmp_path / "out"]
    assert "cubist" in fails([*demo, "--space", "cubist", "--space", "mlpBragg"], capsys)


def test_a_demo_of_missing_frames_leaves_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo = ["demo", "--output", tmp_path / "out"]
    assert "no.h5" in fails([*demo, "--data", tmp_path / "no.h5"], capsys)
    assert "spots.h5" in fails([*demo, "--spots", tmp_path / "spots.h5"], capsys)
    assert list(tmp_path.iterdir()) == []


def test_wrong_usage_ends_with_another_status_than_what_failed(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = ["label", tmp_path / "no.h5", "--output", tmp_path / "peaks.h5"]
    assert main([str(a) for a in missing]) == 1
    wrong = ["optimize", "bragg"]
    assert main(wrong) == 2
    with pytest.raises(SystemExit) as caught:
        main(["optimize", "--nonsense"])
    assert caught.value.code == 2


def test_a_folder_that_cannot_be_made_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert "/proc/nowhere" in fails(["demo", "--output", "/proc/nowhere"], capsys)


def test_a_missing_series_prints_no_header(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["predict", project / "bragg.edgex", "no.h5", "--trust", project / "keys"]
    assert main([str(a) for a in arguments]) == 1
    assert capsys.readouterr().out == ""


def test_the_frames_of_a_detector_are_predicted_by_its_url(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = "sim://hedm?shape=256x256&frames=3&peaks=20"
    arguments = ["predict", project / "bragg.edgex", url, "--trust", project / "keys"]
    assert main([str(a) for a in arguments]) == 0
    frames = [line.split(",")[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert set(frames) == {"0", "1", "2"}


def test_a_prediction_that_fails_leaves_no_table(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.h5"
    broken.write_bytes((project / "frames.h5").read_bytes()[:5000])
    arguments = ["predict", project / "bragg.edgex", broken, "--trust", project / "keys"]
    fails([*arguments, "--output", tmp_path / "out.csv"], capsys)
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--space", "cubist"], "cubist"),
        (["--space", "cubist", "--space", "mlpBragg"], "cubist"),
        (["--objectives", "beauty"], "beauty"),
        (["--objectives", "beauty", "--objectives", "error"], "beauty"),
        (["--constraint", "beauty=3"], "beauty"),
        (["--constraint", "parameters"], "NAME=BOUND"),
        (["--constraint", "parameters=1"], "parameters"),
        (["--search", "luck"], "luck"),
        (["--evaluator", "hope"], "hope"),
        (["--device", "gpu0"], "gpu0"),
    ],
)
def test_optimize_names_what_is_wrong_before_it_trains(
    project: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: list[str],
    named: str,
) -> None:
    base = ["optimize", "bragg", "--data", project / "peaks.h5", "--output", tmp_path / "run"]
    assert named in fails([*base, *change], capsys)
    assert not (tmp_path / "run").exists()


def test_optimize_without_data_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert "data is missing" in fails(["optimize", "bragg"], capsys)


def test_export_refuses_a_trial_that_was_not_trained(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = project / "keys" / "beam.key.pem"
    arguments = ["export", project / "run", "--signing-key", key, "--trial", "99"]
    assert "99" in fails([*arguments, "--output", tmp_path / "b.edgex"], capsys)


def test_a_reader_that_leaves_early_gets_no_traceback(project: Path) -> None:
    command = [sys.executable, "-m", "edgexnas.cli", "predict", "bragg.edgex", "frames.h5"]
    with subprocess.Popen(
        [*command, "--trust", "keys"], cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read().decode()
    assert "Traceback" not in errors


def test_what_a_command_reads_is_not_overwritten(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames, bundle, key = "frames.h5", "bragg.edgex", "keys/beam.key.pem"
    before = {name: (project / name).read_bytes() for name in (frames, bundle, key)}
    (tmp_path / "link.h5").symlink_to(project / frames)
    trust = ["--trust", project / "keys"]
    for command in (
        ["label", project / frames, "--output", project / frames],
        ["label", project / frames, "--output", tmp_path / "link.h5"],
        ["predict", project / bundle, project / frames, *trust, "--output", project / frames],
        ["predict", project / bundle, project / frames, *trust, "--output", project / bundle],
        ["export", project / "run", "--signing-key", project / key, "--output", project / key],
        ["bench", project / bundle, *trust, "--json", project / bundle],
    ):
        assert "is what this command reads" in fails(command, capsys)
    assert {name: (project / name).read_bytes() for name in before} == before


def test_an_output_whose_name_promises_another_form_is_refused(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "peaks.csv"
    table.write_text("frame,row_px\n")
    for command in (["label", project / "frames.h5"], ["simulate"]):
        assert "let the name end in .h5" in fails([*command, "--output", table], capsys)
    assert table.read_text() == "frame,row_px\n"


@pytest.mark.parametrize("output", ["nowhere/out", "."])
@pytest.mark.parametrize("command", ["simulate", "label", "predict", "export", "report"])
def test_an_output_that_cannot_be_is_refused_before_the_work(
    project: Path, capsys: pytest.CaptureFixture[str], command: str, output: str
) -> None:
    arguments = {
        "simulate": [],
        "label": [project / "frames.h5"],
        "predict": [project / "bragg.edgex", project / "frames.h5", "--trust", project / "keys"],
        "export": [project / "run", "--signing-key", project / "keys" / "beam.key.pem"],
        "report": [project / "run"],
    }[command]
    before = sorted(project.rglob("*"))
    told = fails([command, *arguments, "--output", project / output], capsys)
    assert "there is no folder" in told or "is a folder" in told
    assert sorted(project.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["simulate", "--scan-of", "cells", "--frames", 3], "--frames"),
        (["simulate", "--scan-of", "cells", "--grains", 3, "--like", "default"], "--grains and"),
        (["label", "frames.h5", "--iterations", 3], "--iterations would be ignored"),
        (
            ["predict", "bragg.edgex", "frames.h5", "--trust", "keys", "--object-pixel-nm", 1, 1],
            "--object-pixel-nm would be ignored",
        ),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[object],
    named: str,
) -> None:
    monkeypatch.chdir(project)
    assert named in fails([*arguments, "--output", "out.h5"], capsys)
    assert not (project / "out.h5").exists()


def test_a_seed_below_0_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("simulate --output x.h5", "demo", "optimize bragg"):
        with pytest.raises(SystemExit) as stopped:
            main([*command.split(), "--seed", "-1"])
        assert stopped.value.code == 2
        assert "-1 is less than 0" in capsys.readouterr().err


def test_brackets_in_a_path_are_shown_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "[").mkdir()
    place = tmp_path / "[" / "red].h5"
    assert main(["simulate", "--frames", "1", "--shape", "16", "16", "--output", str(place)]) == 0
    assert "[/red].h5" in "".join(capsys.readouterr().out.split())


def run_shell(command: str, project: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", f"{shlex.quote(sys.executable)} -m edgexnas.cli {command}"],
        cwd=project, env={**os.environ, **environment}, text=True, capture_output=True,
        check=False,
    )  # fmt: skip


def test_a_terminal_without_unicode_gets_escapes(project: Path) -> None:
    command = "simulate --frames 1 --shape 16 16 --output small.h5"
    ended = run_shell(command, project, PYTHONIOENCODING="ascii")
    assert ended.returncode == 0
    assert r"16\xd716" in ended.stdout


def test_a_full_disk_behind_standard_output_is_a_sentence(project: Path) -> None:
    ended = run_shell("inspect bragg.edgex >/dev/full", project)
    assert (ended.returncode, ended.stderr) == (
        1, "edgexnas inspect: No space left on device\n"
    )  # fmt: skip


def test_a_closed_standard_output_is_no_failure(project: Path) -> None:
    ended = run_shell("inspect bragg.edgex >&-", project)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_one_of_several_datasets_is_named(
    tmp_path: Path, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with h5py.File(project / "frames.h5") as file, h5py.File(tmp_path / "two.h5", "w") as two:
        two["empty"] = np.zeros((48, 768, 768), np.uint16)
        two["full"] = file["entry/data/data"][:]
    label = ["label", tmp_path / "two.h5", "--output", tmp_path / "peaks.h5"]
    assert "with dataset= or --dataset: empty, full" in fails(label, capsys)
    assert main([*map(str, label), "--dataset", "full"]) == 0
    predict = ["predict", project / "bragg.edgex", tmp_path / "two.h5", "--dataset", "full"]
    predict += ["--trust", project / "keys", "--output", tmp_path / "peaks.csv"]
    assert main([*map(str, predict)]) == 0
    assert len((tmp_path / "peaks.csv").read_text().splitlines()) > 100
