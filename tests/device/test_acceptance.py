"""A predictor and a service accept what their device allows, and remember what ran."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from edgexnas.bundle import Gate, GatePolicy
from edgexnas.device import Predictor
from edgexnas.device.serving.opening import open_service
from edgexnas.errors import (
    BundleError,
    ConfigurationError,
    EngineAccuracyError,
)

MakeBundle = Callable[..., Path]
ENGINE = {"engine": "onnxruntime", "precision": "float32"}


def remembered(state: Path) -> dict[str, int]:
    file = state / "accepted-bundles.json"
    bundles: dict[str, int] = json.loads(file.read_text())["bundles"] if file.exists() else {}
    return bundles


def test_an_older_bundle_is_rejected_after_a_newer_one_ran(
    make_bundle: MakeBundle, keys: Path, tmp_path: Path
) -> None:
    for sequence in (5, 6):
        Predictor(make_bundle(sequence=sequence), trust=keys, state=tmp_path, **ENGINE).close()
    with pytest.raises(BundleError, match="sequence 6 was accepted before"):
        Predictor(make_bundle(sequence=5), trust=keys, state=tmp_path, **ENGINE)
    Predictor(make_bundle(sequence=5), trust=keys, state=False, **ENGINE).close()


def test_a_bundle_whose_engine_fails_does_not_bar_the_way_back(
    make_bundle: MakeBundle, keys: Path, tmp_path: Path
) -> None:
    gate = Gate(unit="px", float32=1e-12, float16=1e-12, int8=1e-12)
    with pytest.raises(EngineAccuracyError):
        Predictor(
            make_bundle(sequence=9, gate=gate),
            trust=keys, state=tmp_path, engine="onnxruntime", precision="int8",
        )  # fmt: skip
    assert remembered(tmp_path) == {}


def test_a_gate_wider_than_the_device_accepts_is_rejected(
    make_bundle: MakeBundle, keys: Path
) -> None:
    with pytest.raises(BundleError, match=r"accepts 0\.001 px"):
        Predictor(make_bundle(), trust=keys, gates=GatePolicy(maximum_gate_px=0.001), **ENGINE)


@pytest.fixture
def serve(make_bundle: MakeBundle, keys: Path, tmp_path: Path) -> Callable[..., None]:
    """Open a service whose table [predictor] has further lines."""

    def run(*lines: str, sequence: int = 1) -> None:
        path = tmp_path / "serve.toml"
        table = [f'bundle = "{make_bundle(sequence=sequence)}"', f'trust = "{keys}"', *lines]
        monitoring = ["[monitoring]", "port = 0"]
        text = ['source = "sim://hedm"', "[predictor]", *table, 'engine = "onnxruntime"']
        path.write_text("\n".join([*text, *monitoring]))
        open_service(path).close()

    return run


def test_a_service_remembers_in_the_folder_that_it_is_told(
    serve: Callable[..., None], tmp_path: Path
) -> None:
    serve('state = "memory"', sequence=2)
    assert list(remembered(tmp_path / "memory").values()) == [2]
    with pytest.raises(ConfigurationError, match="sequence 2 was accepted before"):
        serve('state = "memory"', sequence=1)


def test_a_service_remembers_in_the_folder_that_systemd_gives_it(
    serve: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "systemd"))
    serve("state = false")
    assert not (tmp_path / "systemd").exists()
    serve()
    assert len(remembered(tmp_path / "systemd")) == 1


def test_a_service_says_how_wide_a_gate_may_be(serve: Callable[..., None]) -> None:
    with pytest.raises(ConfigurationError, match=r"serve\.toml:\d+: .*accepts 0.001 px"):
        serve("maximum_gate_px = 0.001")
