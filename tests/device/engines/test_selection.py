"""precision="auto": both models are measured, the faster that passes is kept and remembered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgexnas.bundle import Gate, open_bundle
from edgexnas.device import EngineCache, OnnxEngine, Predictor
from edgexnas.device.engines import selection
from edgexnas.errors import ConfigurationError, EngineAccuracyError, EngineError

Opens = Callable[..., Any]


@pytest.fixture(autouse=True)
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time by which runs are measured: each look at it takes 0.1 ms."""
    moment = [0.0]

    def look() -> float:
        moment[0] += 1e-4
        return moment[0]

    monkeypatch.setattr(selection, "time", SimpleNamespace(perf_counter=look))
    monkeypatch.setattr(selection, "ROUND_SECONDS", 0.002)
    return moment


@pytest.fixture
def opened(bundle_path: Path, keys: Path, tmp_path: Path) -> Opens:
    """Open a predictor with precision="auto" on onnxruntime."""

    def open_one(path: Path = bundle_path, **options: Any) -> Any:
        chosen: dict[str, Any] = {"engine": "onnxruntime", "precision": "auto"} | options
        return Predictor(path, trust=keys, cache=tmp_path / "cache", **chosen)

    return open_one


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch, now: list[float]) -> Callable[[str], None]:
    """Make runs of one precision slow."""

    def hold(precision: str) -> None:
        run = OnnxEngine.run

        def slowly(self: OnnxEngine, inputs: Any) -> Any:
            if self.precision == precision:
                now[0] += 0.003
            return run(self, inputs)

        monkeypatch.setattr(OnnxEngine, "run", slowly)

    return hold


@pytest.mark.parametrize(("slow_one", "best"), [("int8", "float16"), ("float16", "int8")])
def test_the_faster_is_kept(
    opened: Opens, slow: Callable[[str], None], slow_one: str, best: str
) -> None:
    slow(slow_one)
    with opened() as predictor:
        assert predictor.engine.precision == best
        trials = {trial.precision: trial for trial in predictor.precision_trials}
        assert set(trials) == {"float16", "int8"}
        assert trials[best].median_ms < trials[slow_one].median_ms
        assert all(trial.runs >= 5 and trial.refusal is None for trial in trials.values())
        assert f"{best} was chosen on this device: float16 takes" in predictor.engine.reason
        assert predictor.proof.measured_px <= predictor.proof.allowed_px


def test_the_next_start_remembers_and_opens_one_model_alone(
    opened: Opens, slow: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow("int8")
    with opened() as first:
        trials = first.precision_trials
    monkeypatch.setattr(selection, "_measured_choice", None)
    with opened() as second:
        assert second.engine.precision == "float16"
        assert second.precision_trials == trials
        assert second.engine.reason.endswith("measured earlier")


def test_a_cache_that_moves_to_another_board_is_measured_again_there(
    opened: Opens, monkeypatch: pytest.MonkeyPatch
) -> None:
    for board, known in (("board A", False), ("board B", False), ("board A", True)):
        monkeypatch.setattr(selection, "device_name", lambda _, board=board: board)
        with opened() as predictor:
            assert predictor.engine.reason.endswith("measured earlier") == known


def test_another_batch_is_measured_on_its_own(opened: Opens, slow: Callable[[str], None]) -> None:
    slow("int8")
    opened(batch=32).close()
    with opened(batch=8) as predictor:
        assert "measured earlier" not in predictor.engine.reason


def test_one_outside_the_gate_is_not_kept_however_fast(
    opened: Opens, slow: Callable[[str], None], make_bundle: Callable[..., Path]
) -> None:
    slow("float16")
    strict = make_bundle(gate=Gate(unit="px", float32=1e-3, float16=0.02, int8=1e-6))
    with opened(strict) as predictor:
        assert predictor.engine.precision == "float16"
        refused = predictor.precision_trials[1]
        assert refused.median_ms is None
        assert "deviates" in str(refused.refusal)
        assert "int8 is rejected" in predictor.engine.reason


def test_none_within_the_gate_is_an_error_that_names_both(
    opened: Opens, make_bundle: Callable[..., Path]
) -> None:
    strict = make_bundle(gate=Gate(unit="px", float32=1e-3, float16=1e-9, int8=1e-9))
    with pytest.raises(
        EngineAccuracyError, match=r"found none that works: the float16 .*; the int8"
    ):
        opened(strict)


def test_a_choice_that_fails_today_is_measured_again(
    opened: Opens,
    slow: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    slow("int8")
    opened().close()
    run = OnnxEngine.run

    def broken(self: OnnxEngine, inputs: Any) -> Any:
        if self.precision == "float16":
            raise EngineError("out of order")
        return run(self, inputs)

    monkeypatch.setattr(OnnxEngine, "run", broken)
    with opened() as predictor:
        assert predictor.engine.precision == "int8"
    assert "chosen earlier fails (out of order): all are measured again" in caplog.text


@pytest.mark.parametrize(
    "described", [{}, {"best": "int8"}, {"best": "int8", "trials": [{"precision": "int8"}]}]
)
def test_a_choice_that_another_version_wrote_is_measured_again(
    opened: Opens, monkeypatch: pytest.MonkeyPatch, described: dict[str, Any]
) -> None:
    opened().close()
    load = EngineCache.load

    def other(self: EngineCache, kind: str, key: Any) -> Any:
        entry = load(self, kind, key)
        return None if entry is None else (described, b"")

    with monkeypatch.context() as patch:
        patch.setattr(EngineCache, "load", other)
        with opened() as predictor:
            assert len(predictor.precision_trials) == 2
            assert "measured earlier" not in predictor.engine.reason
    with opened() as predictor:
        assert "measured earlier" in predictor.engine.reason


def test_a_bundle_without_both_is_measured_all_the_same(
    opened: Opens, make_bundle: Callable[..., Path], keys: Path
) -> None:
    for precisions, expected in ((("float32", "int8"), "int8"), (("float32",), "float32")):
        path = make_bundle(precisions)
        assert set(open_bundle(path, trust=keys).models) == set(precisions)
        with opened(path) as predictor:
            assert predictor.engine.precision == expected


def test_tensorrt_builds_both_once_and_remembers(
    opened: Opens, fake_tensorrt: Callable[..., Any], fake_cuda: Any, monkeypatch: Any
) -> None:
    library = fake_tensorrt()
    with opened(engine="tensorrt") as first:
        kept = first.engine.precision
        assert first.engine.name == "tensorrt"
    assert len(library.builds) == 2
    assert fake_cuda.used_bytes() == 0
    monkeypatch.setattr(selection, "_measured_choice", None)
    with opened(engine="tensorrt") as second:
        assert second.engine.precision == kept
    assert len(library.builds) == 2


def test_without_a_cache_it_is_measured_at_each_start(bundle_path: Path, keys: Path) -> None:
    for _ in range(2):
        with Predictor(
            bundle_path, trust=keys, engine="onnxruntime", precision="auto", cache=False
        ) as predictor:
            assert "measured earlier" not in predictor.engine.reason


def test_predictions_are_those_of_the_chosen_model(
    opened: Opens, bundle_path: Path, keys: Path, gaussian_patches: Callable[..., Any]
) -> None:
    patches = gaussian_patches(10)
    with opened() as auto:
        chosen = auto.engine.precision
        got = auto.predict(patches).positions_px
    with Predictor(bundle_path, trust=keys, precision=chosen) as plain:
        np.testing.assert_array_equal(got, plain.predict(patches).positions_px)


def test_a_precision_that_is_none_is_still_refused(opened: Opens) -> None:
    with pytest.raises(ConfigurationError, match="unknown precision 'fast'"):
        opened(precision="fast")
