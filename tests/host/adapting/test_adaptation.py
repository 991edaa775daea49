"""A bundle for a detector from its frames alone."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgexnas.bundle import Bundle, Precision, generate_keys, open_bundle
from edgexnas.cli import main
from edgexnas.errors import ConfigurationError
from edgexnas.frames import ArrayFrames
from edgexnas.host import adapt
from edgexnas.host.adapting import adaptation
from edgexnas.host.adapting.keys import key_pair
from edgexnas.host.data import timed_labels
from edgexnas.host.data.peak_dataset import PeakDataset
from edgexnas.host.data.splitting import Split
from edgexnas.host.data.timed_labels import _spread_runs
from edgexnas.host.exporting.bundled_network import bundled_network
from edgexnas.simulate import HedmSettings, save_series, simulate_hedm


def test_the_network_of_a_bundle_computes_what_the_bundle_does() -> None:
    bundle = open_bundle("universal")
    model = bundled_network(bundle)
    with torch.inference_mode():
        given = model(torch.from_numpy(np.array(bundle.reference["input"])))
    assert np.abs(given.numpy() - bundle.reference["output"]).max() < 1e-3


def only(*precisions: Precision, **configuration: object) -> Bundle:
    """Give the universal bundle with some of its models, or described otherwise."""
    bundle = open_bundle("universal")
    models = {name: bundle.models[name] for name in precisions or bundle.models}
    provenance = bundle.manifest.provenance
    said = {**provenance.configuration, **configuration}
    said = {name: value for name, value in said.items() if value is not None}
    changed = provenance.model_copy(update={"configuration": said})
    manifest = bundle.manifest.model_copy(update={"provenance": changed})
    return replace(bundle, models=models, manifest=manifest)


@pytest.mark.parametrize("precisions", [("float32",), ("float16",), ("float16", "int8")])
def test_a_network_is_taken_from_what_a_bundle_holds(precisions: tuple[Precision, ...]) -> None:
    bundle, model = only(*precisions), bundled_network(only(*precisions))
    with torch.inference_mode():
        given = model(torch.from_numpy(np.array(bundle.reference["input"])))
    assert np.abs(given.numpy() - bundle.reference["output"]).max() < 0.05


@pytest.mark.parametrize(
    ("bundle", "named"),
    [
        (only("int8"), "holds its network in int8 alone; train on one with float32 or float16"),
        (only(units=None), "does not say its units; train on one that"),
        (only(units=119), "does not hold the mlpBraggSmooth that its manifest describes"),
        (only(layers=7), "has no weights network.hidden.6.weight, as after a rewrite"),
        (only(units=10**6), "it cannot be built"),
    ],
)
def test_a_network_that_cannot_be_trained_on_says_why(bundle: Bundle, named: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(named)):
        bundled_network(bundle)


@pytest.mark.parametrize(
    ("precisions", "scored"), [(("float32",), "float32"), (("float32", "float16"), "float16")]
)
def test_a_bundle_without_int8_is_scored_in_what_it_has(
    tiny_peaks: PeakDataset, precisions: tuple[Precision, ...], scored: str
) -> None:
    row = adaptation._row_before(only(*precisions), tiny_peaks, np.arange(20))
    assert row.precision == scored
    assert row.mean_px is not None


def test_runs_are_spread_over_a_long_series() -> None:
    numbers, apart = _spread_runs(10_000, 240)
    assert (len(numbers), numbers[0], numbers[-1]) == (240, 0, 9_999)
    assert apart > 300


def test_frames_without_peaks_are_named(tmp_path: Path) -> None:
    empty = ArrayFrames(np.random.default_rng(0).poisson(3, (4, 256, 128)).astype(np.uint16))
    with pytest.raises(ConfigurationError, match=r"has 0 good peaks in 6 strips.*specify more"):
        adapt("universal", empty, output=tmp_path / "mine.edgex", budget=60)
    assert not list(tmp_path.iterdir())


def test_frames_too_few_and_small_to_hold_some_back_are_named(tmp_path: Path) -> None:
    frames = ArrayFrames(np.random.default_rng(0).poisson(3, (4, 128, 128)).astype(np.uint16))
    with pytest.raises(ConfigurationError, match=r"4 frames of \(128, 128\), too few to hold"):
        adapt("universal", frames, output=tmp_path / "mine.edgex", budget=60)


def test_a_folder_that_is_not_there_is_named_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="does not exist; create it"):
        adapt("universal", tmp_path / "frames.h5", output=tmp_path / "no" / "mine.edgex")


@pytest.mark.parametrize(
    ("output", "options", "named"),
    [
        ("", {}, "is a folder; name a file in it"),
        ("my detector.edgex", {}, "'my detector.edgex' is no plain name for a key pair"),
        ("known.edgex", {}, "known.pub.pem is there, and known.key.pem is not"),
        ("mine.edgex", {"model_id": "my detector"}, "model_id 'my detector' is not a valid name"),
    ],
)
def test_what_would_fail_at_the_end_is_named_before_any_work(
    tmp_path: Path, output: str, options: dict[str, Any], named: str
) -> None:
    (tmp_path / "known.pub.pem").touch()
    with pytest.raises(ConfigurationError, match=re.escape(named)):
        adapt("universal", tmp_path / "no.h5", output=tmp_path / output, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["known.pub.pem"]


def test_a_key_pair_stays_if_what_it_was_made_for_does(tmp_path: Path) -> None:
    said: list[str] = []
    private = tmp_path / "mine.key.pem"
    with pytest.raises(KeyboardInterrupt), key_pair(private, said.append):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    assert not said
    with key_pair(private, said.append):
        assert private.exists()
    with pytest.raises(KeyboardInterrupt), key_pair(private, said.append):
        raise KeyboardInterrupt
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.key.pem", "mine.pub.pem"]
    assert len(said) == 1


def test_the_signing_key_is_no_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    private, _ = generate_keys(tmp_path, name="beam")
    before = private.read_bytes()
    command = ["adapt", "universal", "frames.h5", "--output", str(private)]
    assert main([*command, "--signing-key", str(private)]) == 2
    assert "would be lost" in capsys.readouterr().err
    assert private.read_bytes() == before


def test_a_budget_too_short_is_rejected_on_the_shell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["adapt", "universal", "frames.h5", "--output", str(tmp_path / "mine.edgex")]
    for budget in ("3s", "30s"):
        assert main([*command, "--budget", budget]) == 2
        said = f"budget is '{budget}', {budget[:-1]} s; specify at least 60 s, because quantising"
        assert said in capsys.readouterr().err


@pytest.mark.long
def test_the_shell_adapts_and_the_bundle_opens_with_the_key_beside_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    splits: list[Split] = []
    judged: list[Any] = []

    def split_labels(*given: Any) -> Split:
        splits.append(timed_labels.split_labels(*given))
        return splits[-1]

    def error(model: bytes, labels: PeakDataset, part: Any, middle: int) -> float:
        judged.append(part)
        return original(model, labels, part, middle)

    original = adaptation._error
    monkeypatch.setattr(adaptation, "split_labels", split_labels)
    monkeypatch.setattr(adaptation, "_error", error)
    settings: dict[str, Any] = {"shape": (512, 512), "frames": 72, "grains": 60}
    series = simulate_hedm(HedmSettings(**settings), seed=5)
    save_series(series, tmp_path / "frames.h5")
    mine = tmp_path / "mine.edgex"
    command = ["adapt", "universal", str(tmp_path / "frames.h5"), "--output", str(mine)]
    assert main([*command, "--budget", "60s"]) == 0
    assert "before" in capsys.readouterr().out
    # The network is chosen without the part that its accuracy is told of.
    assert judged
    assert not np.isin(np.concatenate(judged), splits[0].test).any()
    bundle = open_bundle(mine, trust=tmp_path / "mine.pub.pem")
    assert bundle.manifest.model_id == "mine"
    before, after = (
        next(r for r in bundle.manifest.accuracy if r.precision == "int8" and r.name == name)
        for name in ("universal before adapting", bundle.manifest.architecture)
    )
    assert after.mean_px is not None
    assert before.mean_px is not None
    assert after.mean_px <= 1.02 * before.mean_px


@pytest.mark.long
def test_one_that_was_stopped_goes_on_with_what_had_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"shape": (512, 512), "frames": 72, "grains": 60}
    save_series(simulate_hedm(HedmSettings(**settings), seed=5), tmp_path / "frames.h5")
    command = ["adapt", "universal", str(tmp_path / "frames.h5"), "--budget", "70s"]
    command += ["--output", str(tmp_path / "mine.edgex")]

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(adaptation, "train", stopped)
        assert main(command) == 130
    said = capsys.readouterr().err
    assert "mine.adapting keeps what has ended; continue with: edgexnas adapt universal" in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["frames.h5", "mine.adapting"]
    assert main(command) == 2
    assert "--resume" in capsys.readouterr().err
    monkeypatch.setattr(adaptation, "label_in_time", stopped)
    monkeypatch.setattr(adaptation, "draw_like", stopped)
    assert main([*command, "--resume"]) == 0
    assert "going on with what had ended" in capsys.readouterr().err
    assert not (tmp_path / "mine.adapting").exists()
    assert open_bundle(tmp_path / "mine.edgex", trust=tmp_path / "mine.pub.pem")


def test_a_signing_key_that_is_given_is_read_before_any_work(tmp_path: Path) -> None:
    _, public = generate_keys(tmp_path, name="beam")
    frames = ArrayFrames(np.zeros((2, 128, 128), np.uint16))
    with pytest.raises(ConfigurationError):
        adapt("universal", frames, output=tmp_path / "mine.edgex", signing_key=public)
