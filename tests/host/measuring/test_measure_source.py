"""Latency and energy of candidates: measured here, over a real ssh server, or estimated."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgexnas import __version__
from edgexnas.bundle import generate_keys
from edgexnas.errors import ConfigurationError, EdgexnasError, MeasurementError, SourceError
from edgexnas.host.data.peak_dataset import PeakDataset
from edgexnas.host.measuring import bench_transports, measure_source
from edgexnas.host.measuring.bench_transports import SshBench
from edgexnas.host.measuring.candidate_bundle import CandidateBundle, make_candidate_bundle
from edgexnas.host.measuring.measure_source import BenchMeasure, open_measure
from edgexnas.host.networks.bragg_models import MlpBragg
from edgexnas.host.networks.spaces import SPACES
from edgexnas.host.reporting.report import write_report
from edgexnas.host.search.configuration import load_configuration
from edgexnas.host.search.optimization import SearchResult, optimize

ROOT = Path(__file__).resolve().parents[3]
Device = Any
"""The device of conftest.py."""

FAST = "runs=3&calls=2&spread=0.01"
SPACE = SPACES["mlpBragg"].narrow(units=(4, 16), layers=(1, 2))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CandidateBundle]:
    """A key, and a bundle of a small network signed by it: exporting one takes seconds."""
    folder = tmp_path_factory.mktemp("beam")
    key, _ = generate_keys(folder, name="beam")
    return folder, make_candidate_bundle(MlpBragg(4, 1), "bragg", "float32", key)


@pytest.fixture
def ready(made: tuple[Path, CandidateBundle], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Take that bundle for whatever network is measured; the folder is its trust."""
    folder, candidate = made
    monkeypatch.setattr(measure_source, "make_candidate_bundle", lambda *_: candidate)
    return folder


def local(cache: Path | None = None, **options: Any) -> BenchMeasure:
    measure = open_measure(
        f"local?{FAST}", **{"task": "bragg", "wanted": ("latency",), "cache": cache} | options
    )
    assert isinstance(measure, BenchMeasure)
    return measure


def test_this_machine_measures_an_architecture_once_whatever_its_weights(tmp_path: Path) -> None:
    measure = local(tmp_path)
    first, again = measure(MlpBragg(8, 1)), measure(MlpBragg(8, 1))
    assert 0 < first["latency"] < 1e3
    assert again == first
    assert measure.measurements == 1
    resumed = local(tmp_path)
    assert resumed(MlpBragg(8, 1)) == first
    assert resumed.measurements == 0
    (kept,) = tmp_path.glob("*.json")
    assert json.loads(kept.read_text())["report"]["before"]["versions"]["onnxruntime"]


def test_results_kept_for_other_options_are_not_taken(ready: Path, tmp_path: Path) -> None:
    first = open_measure(
        f"local?{FAST}&trust={ready}", task="bragg", wanted=("latency",), cache=tmp_path,
        signing_key=ready / "beam.key.pem",
    )  # fmt: skip
    first(MlpBragg(8, 1))
    other = open_measure(
        f"local?{FAST}&trust={ready}&batch=8", task="bragg", wanted=("latency",), cache=tmp_path,
        signing_key=ready / "beam.key.pem",
    )  # fmt: skip
    other(MlpBragg(8, 1))
    assert other.measurements == 1  # type: ignore[attr-defined]


def test_energy_on_a_machine_without_a_meter_fails_with_its_reason(ready: Path) -> None:
    measure = open_measure(
        f"local?{FAST}&trust={ready}", task="bragg", wanted=("energy",),
        signing_key=ready / "beam.key.pem",
    )  # fmt: skip
    if any(Path("/sys/class/powercap").glob("intel-rapl:*")) or shutil.which("nvidia-smi"):
        pytest.skip("this machine has a power meter")
    with pytest.raises(MeasurementError, match=r"failed on this machine: .*no power meter"):
        measure(MlpBragg(4, 1))


@pytest.mark.parametrize(
    ("source", "changes", "sentence"),
    [
        ("abacus", {}, "measure is 'abacus'; specify 'local', 'ssh://HOST', 'model'"),
        ("local?speed=2", {}, "sets 'speed', which is unknown"),
        ("local?runs=many", {}, "sets runs to no number"),
        ("local?runs=0", {}, "sets runs to 0; specify more than 0"),
        ("local?precision=int4", {}, "sets precision to 'int4'"),
        ("local", {"workers": 2}, "trainings would disturb the measurement"),
        ("ssh://orin", {}, "needs signing_key="),
        ("ssh://", {"signing_key": "key.pem"}, "names no host"),
    ],
)
def test_sources_that_cannot_be_are_refused_in_one_sentence(
    source: str, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigurationError, match=sentence) as refused:
        open_measure(source, **{"task": "bragg", "wanted": ("latency",)} | changes)
    assert "\n" not in str(refused.value)


# Over ssh


def test_a_device_measures_over_a_real_ssh_server(device: Device, ready: Path) -> None:
    measure = device.open(precision="float32", trust=ready)
    assert 0 < measure(MlpBragg(8, 1))["latency"] < 1e3
    assert measure.transport.name == "ssh://orin"


def test_a_bundle_that_the_device_does_not_trust_is_said_so(device: Device, tmp_path: Path) -> None:
    generate_keys(tmp_path, name="stranger")
    measure = device.open(precision="float32", trust=tmp_path)
    with pytest.raises(MeasurementError, match=r"on ssh://orin: .*by key .* not among the 1"):
        measure(MlpBragg(4, 1))


def test_another_version_is_refused_before_anything_is_measured(device: Device) -> None:
    device.install("echo edgexnas 9.9.9")
    with pytest.raises(
        ConfigurationError, match=rf"has edgexnas 9\.9\.9 and this host {__version__}"
    ):
        device.open()


def test_a_device_without_edgexnas_is_said_so(device: Device) -> None:
    with pytest.raises(ConfigurationError, match="has no command /absent/edgexnas; install"):
        device.open(edgexnas="/absent/edgexnas")


def test_an_unknown_host_key_is_not_accepted(device: Device) -> None:
    known = device.known_hosts.read_text()
    device.known_hosts.write_text("")
    try:
        with pytest.raises(SourceError, match="its host key is unknown or has changed"):
            device.open()
    finally:
        device.known_hosts.write_text(known)


def test_a_key_that_the_device_does_not_accept_is_said_so(device: Device) -> None:
    accepted = (device.folder / "authorized").read_text()
    (device.folder / "authorized").write_text("")
    try:
        with pytest.raises(SourceError, match="it accepts none of your keys"):
            device.open()
    finally:
        (device.folder / "authorized").write_text(accepted)


def test_a_device_that_cannot_be_reached_is_tried_three_times(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[Any] = []
    run = bench_transports._run

    def counted(*arguments: Any) -> Any:
        attempts.append(arguments)
        return run(*arguments)

    monkeypatch.setattr(bench_transports, "_run", counted)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        transport = SshBench("127.0.0.1", port=closed.getsockname()[1])
        with pytest.raises(SourceError, match="cannot be reached after 3 attempts"):
            transport.check()
    assert len(attempts) == 3


def test_a_connection_that_fails_once_is_tried_again(device: Device, tmp_path: Path) -> None:
    wrapper, marker = tmp_path / "bin" / "ssh", tmp_path / "failed"
    lines = wrapper.read_text().splitlines()
    fail = f"[ -e {marker} ] || {{ touch {marker}; echo lost connection >&2; exit 255; }}"
    wrapper.write_text("\n".join([lines[0], fail, lines[1], ""]))
    device.open()
    assert marker.exists()


def test_a_device_that_does_not_answer_in_time_is_given_up(device: Device) -> None:
    device.install("exec sleep 30")
    with pytest.raises(SourceError, match=r"did not answer within 0\.5 s"):
        device.open(timeout=0.5)


@pytest.mark.parametrize(
    ("answer", "error", "sentence"),
    [
        ("echo hello", MeasurementError, "answers edgexnas bench by 'hello', which is no report"),
        ("cat $(dirname $0)/newer.json", ConfigurationError, "form 'edgexnas-bench/9'"),
        ("echo 'edgexnas bench: void' >&2; exit 1", MeasurementError, "failed on ssh://orin: void"),
    ],
)
def test_an_answer_that_is_no_report_is_refused(
    device: Device, ready: Path, answer: str, error: type[EdgexnasError], sentence: str
) -> None:
    (device.folder / "newer.json").write_text('{"schema": "edgexnas-bench/9"}')
    version = f'[ "$1" = --version ] && {{ echo edgexnas {__version__}; exit 0; }}'
    device.install(f"{version}\ncat >/dev/null\n{answer}")
    measure = device.open(precision="float32")
    with pytest.raises(error, match=sentence):
        measure(MlpBragg(4, 1))


# In a search


@pytest.fixture
def search(tiny_peaks: PeakDataset, tmp_path: Path) -> Callable[..., SearchResult]:
    def call(**changes: Any) -> SearchResult:
        fixed: dict[str, Any] = {
            "data": tiny_peaks, "output": tmp_path / "run", "space": SPACE, "search": "random",
            "evaluator": "serial", "max_evals": 2, "epochs": 1, "device": "cpu",
        }  # fmt: skip
        return optimize("bragg", **fixed | changes)

    return call


def test_an_estimate_says_so_in_labels_table_and_report(
    search: Callable[..., SearchResult], tmp_path: Path
) -> None:
    search(objectives=("error", "latency", "energy"), measure="model")
    result = SearchResult.load(tmp_path / "run", spaces=[SPACE])
    assert [o.label for o in result.objectives[1:]] == [
        "latency (ms, estimate for Jetson AGX Orin)",
        "energy (mJ, estimate for Jetson AGX Orin)",
    ]
    assert set(result.table()["measure"]) == {"model (estimate for Jetson AGX Orin)"}
    assert all(c.objectives["latency"] > 0.16 for c in result.candidates)
    page = write_report(tmp_path / "run").read_text()
    assert "latency (ms, estimate for Jetson AGX Orin)" in page


def test_a_run_remembers_its_source_and_is_not_resumed_with_another(
    search: Callable[..., SearchResult], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"objectives": ("error", "latency")}
    search(measure="model", **options)
    assert load_configuration(tmp_path / "run" / "run.toml")["measure"] == "model"
    assert search(measure="model", resume=True, **options).kept == 2
    with pytest.raises(EdgexnasError, match="measure"):
        search(measure="model?batch=8", resume=True, **options)


def test_a_search_takes_latency_from_a_device(
    search: Callable[..., SearchResult], device: Device, ready: Path, tmp_path: Path
) -> None:
    result = search(
        objectives=("error", "latency"), measure=device.url(precision="float32", trust=ready),
        signing_key=device.signing_key,
    )  # fmt: skip
    assert all(0 < c.objectives["latency"] < 1e3 for c in result.candidates)
    # Both candidates are the same bundle here, which is sent once.
    assert len(list((tmp_path / "run" / "measurements").glob("*.json"))) == 1
