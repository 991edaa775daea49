"""What a manifest may say, and how it is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from edgexnas.bundle import (
    SCHEMA_VERSION,
    Manifest,
    PtychoPreprocessing,
    Tensor,
    describe,
    read_manifest,
)
from edgexnas.bundle.manifest import (
    OPTIONAL_FIELDS,
    SCHEMA_PATH,
    encode_manifest,
    manifest_schema,
    parse_manifest,
    write_schema,
)
from edgexnas.errors import BundleError


def changed(manifest: Manifest, **fields: Any) -> bytes:
    return json.dumps(json.loads(encode_manifest(manifest)) | fields).encode()


def tensor(**fields: Any) -> dict[str, Any]:
    whole = {
        "name": "t",
        "shape": ["n", 2, 3],
        "dtype": "float32",
        "unit": "px",
        "axes": list("abc"),
    }
    return whole | fields


def calibration(**fields: Any) -> dict[str, Any]:
    """One group, of all peaks."""
    whole = {"level": 0.9, "snr_edges": [], "width_edges_px": [], "factors": [[1]]}
    return {**whole, "counts": [[5]], **fields}


def quantity(**fields: Any) -> dict[str, Any]:
    whole = {"name": "q", "unit": "1", "levels": [0.1, 0.9], "quantiles": [1, 2], "n": 3}
    return whole | fields


def familiarity(**fields: Any) -> dict[str, Any]:
    """A score of one quantity."""
    whole = {"quantities": ["q"], "centre": [0], "scale": [1], "score": [0, 1, 1], "limit": 2}
    return {"n": 1, "quantities": [quantity()], "familiarity": [{**whole, **fields}]}


def ptychography(manifest: Manifest) -> Manifest:
    axes = ("pattern", "channel", "row", "col")
    fields = manifest.model_dump() | {
        "task": "ptycho",
        "detection": None,
        "interval_calibration": None,
        "preprocessing": PtychoPreprocessing(intensity_scale=200.0),
        "quantile_levels": (),
        "gate": {"unit": "rad", "float32": 0.01, "float16": 0.01, "int8": 0.1},
        "inputs": [Tensor(name="patterns", shape=("n", 1, 64, 64), unit="1", axes=axes)],
        "outputs": [Tensor(name="object", shape=("n", 2, 64, 64), unit="(1, rad)", axes=axes)],
    }
    return Manifest.model_validate(fields)


def test_a_manifest_is_read_as_it_was_written(manifest: Manifest) -> None:
    assert parse_manifest(encode_manifest(manifest)) == manifest


@pytest.mark.parametrize("limits", [(3.0, None), (None, 3.0), (3.0, 3.0), (0.0, None)])
def test_limits_of_any_value_are_kept(
    manifest: Manifest, limits: tuple[float | None, float | None]
) -> None:
    low, high = limits
    data = {"n": 1, "quantities": [quantity(low=low, high=high)]}
    given = parse_manifest(changed(manifest, training_data=data))
    assert parse_manifest(encode_manifest(given)) == given
    assert given.training_data is not None
    assert (given.training_data.quantities[0].low, given.training_data.quantities[0].high) == limits


def test_writing_is_canonical(manifest: Manifest) -> None:
    raw = encode_manifest(manifest)
    assert encode_manifest(parse_manifest(raw)) == raw
    text = raw.decode()
    assert text == json.dumps(json.loads(text), sort_keys=True, indent=2, ensure_ascii=False) + "\n"


def test_the_committed_schema_is_that_of_the_models(tmp_path: Path) -> None:
    assert SCHEMA_PATH.read_bytes() == manifest_schema(), (
        "the manifest's models changed; run: "
        "python -c 'from edgexnas.bundle.manifest import write_schema; write_schema()'"
    )
    assert write_schema(tmp_path / "schema.json").read_bytes() == SCHEMA_PATH.read_bytes()


def test_every_field_of_the_schema_is_described() -> None:
    schema = json.loads(manifest_schema())
    records = [schema, *schema["$defs"].values()]
    silent = [
        f"{record['title']}.{name}"
        for record in records
        if record["title"] != "FinderSettings"
        for name, field in record["properties"].items()
        if not field.get("description")
    ]
    assert silent == []


def test_a_newer_schema_is_refused_with_the_release_that_reads_it(manifest: Manifest) -> None:
    raw = changed(manifest, schema_version=SCHEMA_VERSION + 1, requires_edgexnas="7.2", novel=1)
    with pytest.raises(BundleError, match=r"schema 3 .* install edgexnas 7\.2 or newer"):
        parse_manifest(raw)


def test_a_newer_schema_without_a_release_is_refused(manifest: Manifest) -> None:
    raw = changed(manifest, schema_version=10**30, requires_edgexnas=["\x1b[2J"])
    with pytest.raises(BundleError, match="install edgexnas of a newer release"):
        parse_manifest(raw)


def test_a_manifest_of_schema_1_is_read_and_written_as_it_was(manifest: Manifest) -> None:
    fields = json.loads(changed(manifest, schema_version=1, requires_edgexnas="0.1.0"))
    old = {name: value for name, value in fields.items() if name not in OPTIONAL_FIELDS}
    del old["provenance"]["label_residual"]
    parsed = parse_manifest(json.dumps(old).encode())
    assert parsed.model_card is None
    assert json.loads(encode_manifest(parsed)) == old


def test_committed_bundles_of_every_schema_are_read(bundles: Path) -> None:
    for version in range(1, SCHEMA_VERSION + 1):
        read = read_manifest(bundles / f"v{version}.edgex")
        assert (read.schema_version, read.model_id) == (version, "tiny-bragg")
        assert (read.model_card is None) == (version == 1)


def test_schema_1_has_none_of_the_later_fields(manifest: Manifest) -> None:
    with pytest.raises(BundleError, match="schema 1 has no detection, interval_calibration"):
        parse_manifest(changed(manifest, schema_version=1))


@pytest.mark.parametrize("version", [0, -1, "1", None, True, 1.5])
def test_a_schema_that_never_existed_is_refused(manifest: Manifest, version: object) -> None:
    with pytest.raises(BundleError, match="schema_version"):
        parse_manifest(changed(manifest, schema_version=version))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b'{"task": "bragg", "task": "ptycho"}',
        b'{"provenance": {"seed": 1, "seed": 2}}',
        b'{"sequence": NaN}',
        b'{"sequence": -Infinity}',
        b'\xef\xbb\xbf{"task": "bragg"}',
        b'{"task": "\xff"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"sequence": ' + b"9" * 10_000 + b"}",
    ],
)
def test_json_that_is_not_strict_is_refused(raw: bytes) -> None:
    with pytest.raises(BundleError):
        parse_manifest(raw)


@given(raw=st.binary(max_size=100) | st.text(max_size=100).map(str.encode))
def test_any_bytes_are_refused_as_a_bundle_error(raw: bytes) -> None:
    with pytest.raises(BundleError):
        parse_manifest(raw)


@given(data=st.data())
def test_a_field_of_any_json_value_is_accepted_or_refused_as_a_bundle_error(
    manifest: Manifest, data: st.DataObject
) -> None:
    fields = json.loads(encode_manifest(manifest))
    scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
    value = data.draw(st.recursive(scalars, lambda v: st.lists(v) | st.dictionaries(st.text(), v)))
    fields[data.draw(st.sampled_from(sorted(fields)))] = value
    try:
        parsed = parse_manifest(json.dumps(fields).encode())
    except BundleError:
        return
    assert parse_manifest(encode_manifest(parsed)) == parsed


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"unknown": 1}, "unknown"),
        ({"task": "tomography"}, "task"),
        ({"sequence": -1}, "sequence"),
        ({"sequence": "3"}, "sequence"),
        ({"sequence": 2**53}, "sequence"),
        ({"model_id": "../x"}, "model_id"),
        ({"model_id": "x\n"}, "model_id"),
        ({"architecture": "\x1b[2J"}, "architecture"),
        ({"architecture": "\ud800"}, ""),
        ({"created": "2026-01-02T03:04:05"}, "created"),
        ({"precisions": []}, "precisions"),
        ({"precisions": ["int4"]}, "precisions"),
        ({"quantile_levels": [0.0, 0.5, 0.9]}, "quantile_levels"),
        ({"gate": {"unit": "px", "float32": 0, "float16": 1, "int8": 1}}, "gate.float32"),
        ({"preprocessing": {"kind": "other"}}, "preprocessing"),
        ({"preprocessing": {"kind": "bragg", "patch_size": 13}}, "preprocessing.bragg.patch_size"),
        ({"preprocessing": {"kind": "bragg", "finder": {"snr": -1}}}, "finder"),
        ({"preprocessing": {"kind": "bragg", "finder": {"unknown": 1}}}, "finder"),
        ({"accuracy": [{}] * 1001}, "accuracy"),
        ({"inputs": []}, "inputs"),
        ({"model_card": {"intended_use": "x\n"}}, "model_card"),
        ({"detection": {"saturation": 0}}, "detection.saturation"),
        ({"detection": {"adaptable": ["gain"]}}, "detection.adaptable"),
        ({"quantisation_recipe": {"placement": "none"}}, "quantisation_recipe.placement"),
        ({"interval_calibration": calibration(level=1)}, "interval_calibration.level"),
        ({"interval_calibration": calibration(factors=[[0.0]])}, "interval_calibration.factors"),
        # What float32 cannot hold, in which devices compute.
        (
            {"interval_calibration": calibration(factors=[[1e39]])},
            r"interval_calibration.factors.0.0: .*1e\+39 would be infinite",
        ),
        (
            {"interval_calibration": calibration(snr_edges=[1e-50], factors=[[1], [1]])},
            "interval_calibration.snr_edges.0: .*1e-50 would be 0",
        ),
        (
            {"training_data": {"n": 1, "quantities": [quantity(high=-1e40)]}},
            "training_data.quantities.0.high: .*would be infinite",
        ),
        ({"training_data": familiarity(scale=[1e-39])}, "scale.0: .*1e-39 cannot divide"),
        # Its reciprocal is finite, and that of what float32 makes of it is not.
        ({"training_data": familiarity(scale=[2.9387361e-39])}, "scale.0: .*cannot divide"),
        ({"training_data": familiarity(score=[-3e38, 1, 1], limit=3e38)}, "limit 3e.38 less"),
        (
            {"training_data": {"n": 1, "quantities": [], "frame_least": 2**31}},
            "training_data.frame_least",
        ),
        ({"inputs": [tensor(shape=[2, 3, 4])]}, "inputs.0"),
        ({"inputs": [tensor(shape=["n", "n", 4])]}, "inputs.0"),
        ({"inputs": [tensor(shape=["n", 0, 4])]}, "inputs.0"),
        ({"inputs": [tensor(axes=["a"])]}, "inputs.0"),
        ({"inputs": [tensor(dtype="float64")]}, "inputs.0"),
    ],
)
def test_a_wrong_field_is_refused_by_its_place(
    manifest: Manifest, fields: dict[str, Any], place: str
) -> None:
    with pytest.raises(BundleError, match=f"wrong at .*{place}"):
        parse_manifest(changed(manifest, **fields))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"quantile_levels": [0.5, 0.5, 0.9]}, "do not increase"),
        ({"quantile_levels": [0.9, 0.5, 0.1]}, "do not increase"),
        ({"quantile_levels": []}, "do not increase"),
        ({"quantile_levels": [0.1, 0.9]}, "with 2 quantiles"),
        ({"precisions": ["int8", "int8"]}, "repeat"),
        ({"precisions": ["float32"]}, "int8 is not in precisions"),
        ({"expires": "2020-01-01T00:00:00Z"}, "before it is created"),
        ({"task": "ptycho"}, "preprocessing is for bragg"),
        ({"probe": {"shape": [2, 2], "pixel_m": [1e-8, 1e-8], "digest": "0" * 64}}, "no probe"),
        ({"interval_calibration": calibration(snr_edges=[3, 2])}, "do not increase"),
        ({"interval_calibration": calibration(counts=[[1, 2]])}, "the edges make 1 of 1"),
        ({"training_data": {"n": 1, "quantities": [quantity(), quantity()]}}, "repeat"),
        ({"training_data": {"n": 1, "quantities": [quantity(levels=[0.5])]}}, "1 levels, 2 quan"),
        ({"training_data": {"n": 1, "quantities": [quantity(quantiles=[2, 1])]}}, "decrease"),
        ({"gate": {"unit": "rad", "float32": 1, "float16": 1, "int8": 1}}, "in px, not rad"),
        ({"outputs": [tensor(shape=["n", 2, 4])]}, "with 3 quantiles"),
        ({"outputs": [tensor(name="patches")]}, "names repeat"),
        ({"outputs": [tensor(), tensor(name="u")]}, "with 3 quantiles"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(
    manifest: Manifest, fields: dict[str, Any], reason: str
) -> None:
    with pytest.raises(BundleError, match=reason):
        parse_manifest(changed(manifest, **fields))


def test_a_ptychography_model_has_its_own_preprocessing_and_no_quantiles(
    manifest: Manifest,
) -> None:
    raw = encode_manifest(ptychography(manifest))
    assert parse_manifest(raw).task == "ptycho"
    with pytest.raises(BundleError, match="no quantile_levels"):
        parse_manifest(changed(ptychography(manifest), quantile_levels=[0.5]))


def test_a_ptychography_model_maps_patterns_to_amplitude_and_phase(manifest: Manifest) -> None:
    narrow = tensor(name="object", shape=["n", 1, 64, 64], axes=list("abcd"))
    with pytest.raises(BundleError, match=r"a ptycho model maps .* to \('n', 2, 64, 64\)"):
        parse_manifest(changed(ptychography(manifest), outputs=[narrow]))


def test_a_gate_for_the_amplitude_belongs_to_ptychography(manifest: Manifest) -> None:
    limits = {"float32": 0.001, "float16": 0.01, "int8": 0.02}
    gate = {"unit": "rad", "float32": 0.01, "float16": 0.01, "int8": 0.1, "amplitude": limits}
    allowed = parse_manifest(changed(ptychography(manifest), gate=gate))
    assert allowed.gate.amplitude is not None
    assert dict(describe(allowed))["amplitude gate"].endswith("int8 0.02 of the mean")
    with pytest.raises(BundleError, match="bragg model has no amplitude"):
        parse_manifest(changed(manifest, gate=gate | {"unit": "px"}))


def test_a_manifest_cannot_be_changed(manifest: Manifest) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        manifest.sequence = 9  # type: ignore[misc]


def test_a_description_names_what_a_person_asks_for(manifest: Manifest) -> None:
    said = dict(describe(manifest))
    assert said["model"] == "tiny-bragg, sequence 3"
    assert said["outputs"] == "offsets_px float32 (patch n, row or col 2, quantile 3) in px"
    assert said["accuracy gate"] == "float32 0.001, float16 0.01, int8 0.05 px"
    assert said["search"] == "cbo, trial 7, seed 0"
    assert said["intervals"] == "90%, by 6 groups of signal-to-noise and width, factors 0.9 to 1.5"
    assert said["latency"] == "int8, batch 32: 0.12 ms by trt 10.3 on Orin"
    assert said["training data"] == "2000 items, distributions of width"
    assert said["licence"] == "MIT"


def test_a_description_needs_no_optional_field(manifest: Manifest) -> None:
    nothing = dict.fromkeys((*OPTIONAL_FIELDS, "quantisation", "expires"))
    bare = json.loads(changed(manifest, accuracy=[], **nothing))
    bare["provenance"] |= {"search": None, "trial": None, "configuration": {}, "versions": {}}
    said = dict(describe(parse_manifest(json.dumps(bare).encode())))
    assert said["expires"] == "never"
    assert said["search"] == "none, seed 0"
    assert "quantisation" not in said
