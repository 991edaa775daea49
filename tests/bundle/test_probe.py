"""The probe that a bundle may carry, from the file that is written to the one that is opened."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edgexnas.bundle import Manifest, Probe, describe_probe, open_bundle, write_bundle
from edgexnas.bundle.manifest import encode_manifest
from edgexnas.bundle.probe import decode_probe, encode_probe
from edgexnas.errors import BundleError

RNG = np.random.default_rng(3)
PROBE = (RNG.normal(size=(8, 9)) + 1j * RNG.normal(size=(8, 9))).astype(np.complex64)
RECORD = describe_probe(PROBE, pixel_m=(1e-8, 2e-8))

PIXEL_M = (1e-8, 2e-8)


def identity_model() -> bytes:
    """Both channels of the object are the pattern."""
    graph = helper.make_graph(
        [helper.make_node("Concat", ["patterns", "patterns"], ["object"], axis=1)],
        "tiny",
        [helper.make_tensor_value_info("patterns", TensorProto.FLOAT, ["n", 1, 64, 64])],
        [helper.make_tensor_value_info("object", TensorProto.FLOAT, ["n", 2, 64, 64])],
    )
    opset = helper.make_opsetid("", 18)
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[opset], ir_version=9)
    return model.SerializeToString()


@pytest.fixture
def parts(manifest: Manifest, keys: tuple[Path, Path]) -> dict[str, Any]:
    """What `write_bundle` takes for a ptychography model with a probe."""
    tensor = {"dtype": "float32", "unit": "1", "axes": ["pattern", "channel", "row", "col"]}
    unknown = ("detection", "interval_calibration", "quantisation", "quantisation_recipe")
    fields = manifest.model_dump() | {
        **dict.fromkeys(unknown),
        "task": "ptycho",
        "preprocessing": {"kind": "ptycho", "intensity_scale": 200.0},
        "precisions": ("float32",),
        "quantile_levels": (),
        "gate": {"unit": "rad", "float32": 0.01, "float16": 0.01, "int8": 0.1},
        "inputs": [tensor | {"name": "patterns", "shape": ("n", 1, 64, 64)}],
        "outputs": [tensor | {"name": "object", "shape": ("n", 2, 64, 64)}],
        "probe": RECORD.model_dump(),
    }
    patterns = RNG.random((2, 1, 64, 64), np.float32)
    return {
        "manifest": Manifest.model_validate(fields),
        "models": {"float32": identity_model()},
        "reference": {"input": patterns, "output": np.concatenate([patterns, patterns], axis=1)},
        "signing_key": keys[0],
        "probe": PROBE,
    }


def test_a_probe_is_opened_as_it_was_written(
    parts: dict[str, Any], keys: tuple[Path, Path], tmp_path: Path
) -> None:
    path = write_bundle(tmp_path / "p.edgex", **parts)
    bundle = open_bundle(path, trust=keys[1])
    assert bundle.probe is not None
    np.testing.assert_array_equal(bundle.probe, PROBE[None])
    assert bundle.probe.dtype == np.complex64
    assert not bundle.probe.flags.writeable
    assert bundle.manifest.probe == Probe(shape=(8, 9), pixel_m=PIXEL_M, digest=RECORD.digest)


@pytest.mark.parametrize("lacking", ["manifest.json", "probe.npz"])
def test_a_probe_stands_in_the_manifest_and_in_the_file_or_in_neither(
    parts: dict[str, Any], tmp_path: Path, lacking: str
) -> None:
    if lacking == "probe.npz":
        parts["probe"] = None
    else:
        parts["manifest"] = parts["manifest"].model_copy(update={"probe": None})
    with pytest.raises(BundleError, match=f"has a probe that {lacking} lacks"):
        write_bundle(tmp_path / "p.edgex", **parts)
    assert not list(tmp_path.iterdir())


def test_another_probe_than_the_manifests_is_refused(parts: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not the one that the manifest describes"):
        write_bundle(tmp_path / "p.edgex", **{**parts, "probe": 2 * PROBE})


def test_a_probe_of_another_shape_than_the_manifests_is_refused() -> None:
    with pytest.raises(BundleError, match=r"is not finite float32 \(2, \(1, 9, 8\)\)"):
        decode_probe(encode_probe(PROBE), RECORD.model_copy(update={"shape": (9, 8)}))


def test_a_probe_of_several_modes_and_a_turned_detector_travels_whole(
    parts: dict[str, Any], keys: tuple[Path, Path], tmp_path: Path
) -> None:
    modes = np.stack([PROBE, 2 * PROBE, PROBE.conj()])
    record = describe_probe(modes, orientation="rotate-clockwise")
    parts["manifest"] = parts["manifest"].model_copy(update={"probe": record})
    path = write_bundle(tmp_path / "p.edgex", **{**parts, "probe": modes})
    bundle = open_bundle(path, trust=keys[1])
    assert bundle.probe is not None
    np.testing.assert_array_equal(bundle.probe, modes)
    found = bundle.manifest.probe
    assert found is not None
    assert (found.modes, found.orientation, found.pixel_m) == (3, "rotate-clockwise", None)


def test_a_manifest_whose_probe_0_2_0_can_read_holds_only_what_that_knows(
    parts: dict[str, Any],
) -> None:
    written = json.loads(encode_manifest(parts["manifest"]))["probe"]
    assert set(written) == {"shape", "pixel_m", "digest"}
    turned = RECORD.model_copy(update={"orientation": "transpose"})
    written = json.loads(encode_manifest(parts["manifest"].model_copy(update={"probe": turned})))
    assert written["probe"]["orientation"] == "transpose"


def test_a_probe_larger_than_a_bundle_may_hold_is_not_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("edgexnas.bundle.probe.MOST_PROBE_BYTES", 4600)
    encode_probe(PROBE[:6])
    with pytest.raises(BundleError, match="keep fewer modes"):
        encode_probe(PROBE)


@pytest.mark.parametrize("probe", [PROBE.real, PROBE[0], PROBE * np.nan])
def test_what_is_no_probe_is_not_written(probe: Any) -> None:
    with pytest.raises(BundleError, match="specify finite complex values"):
        encode_probe(probe)


@given(raw=st.binary(max_size=200))
def test_any_other_bytes_are_refused(raw: bytes) -> None:
    record = RECORD.model_copy(update={"digest": hashlib.sha256(raw).hexdigest()})
    with pytest.raises(BundleError):
        decode_probe(raw, record)
