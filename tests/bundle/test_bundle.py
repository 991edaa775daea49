"""A bundle is accepted whole, unaltered and from a trusted signer, or not at all."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import zipfile
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

import edgexnas.bundle
from edgexnas.bundle import (
    AmplitudeGate,
    Bundle,
    Gate,
    GatePolicy,
    Manifest,
    TrustStore,
    describe,
    generate_keys,
    open_bundle,
    read_manifest,
    verify_bundle,
    write_bundle,
)
from edgexnas.bundle import bundle_file as bundle_file_module
from edgexnas.bundle.archive import decode_archive, encode_archive
from edgexnas.bundle.bundle_file import content_digest_of
from edgexnas.bundle.manifest import encode_manifest
from edgexnas.bundle.reference import decode_reference, encode_reference
from edgexnas.errors import BundleError, ConfigurationError, SignatureError, TrustError
from edgexnas.guarded_files import read_once

Verify = Callable[[bytes], Bundle]
SignAnew = Callable[[Mapping[str, bytes]], bytes]

NAMES = ["manifest.json", "model.onnx", "model.fp16.onnx", "model.int8.onnx", "reference.npz"]


def test_what_was_written_is_opened(
    bundle_path: Path, keys: tuple[Path, Path], tiny: ModuleType
) -> None:
    bundle = open_bundle(bundle_path, trust=keys[1])
    assert bundle.manifest == tiny.tiny_manifest()
    assert dict(bundle.models) == tiny.tiny_models()
    np.testing.assert_array_equal(bundle.reference["output"], tiny.tiny_reference()["output"])
    assert bundle.digest == hashlib.sha256(bundle_path.read_bytes()).hexdigest()
    assert bundle.path == bundle_path


def test_a_bundle_of_schema_1_still_opens(bundles: Path, tmp_path: Path) -> None:
    # As a copy, because a checkout under another umask gives files that a group can write to.
    key = shutil.copyfile(bundles / "v1.pub.pem", tmp_path / "v1.pub.pem")
    key.chmod(0o644)
    bundle = open_bundle(bundles / "v1.edgex", trust=key)
    assert bundle.manifest.schema_version == 1
    assert set(bundle.models) == {"float32", "float16", "int8"}
    assert bundle.reference["input"].shape == (8, 1, 11, 11)


def test_equal_content_gives_equal_members(
    tiny: ModuleType, keys: tuple[Path, Path], tmp_path: Path, members: Mapping[str, bytes]
) -> None:
    path = write_bundle(
        tmp_path / "again.edgex",
        manifest=tiny.tiny_manifest(),
        models=dict(reversed(tiny.tiny_models().items())),
        reference=tiny.tiny_reference(),
        signing_key=keys[0],
    )
    with zipfile.ZipFile(path) as archive:
        again = {name: archive.read(name) for name in archive.namelist()}
    assert list(again) == list(members)
    # An ECDSA signature holds a random number.
    assert {k: v for k, v in again.items() if k != "model.sig"} == {
        k: v for k, v in members.items() if k != "model.sig"
    }


def test_reference_arrays_are_read_by_numpy_and_cannot_be_changed(
    members: Mapping[str, bytes], bundle_bytes: bytes, verify: Verify
) -> None:
    with np.load(io.BytesIO(members["reference.npz"]), allow_pickle=False) as arrays:
        assert {name: arrays[name].dtype for name in arrays} == {"input": "f4", "output": "f4"}
    with pytest.raises(ValueError, match="read-only"):
        verify(bundle_bytes).reference["output"][0] = 0


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_bundle_is_refused(
    fraction: float, bundle_bytes: bytes, verify: Verify
) -> None:
    with pytest.raises(BundleError):
        verify(bundle_bytes[: int(len(bundle_bytes) * fraction)])


@given(position=st.integers(0), value=st.integers(1, 255))
def test_no_byte_of_the_file_can_be_changed(
    position: int, value: int, bundle_bytes: bytes, verify: Verify
) -> None:
    raw = bytearray(bundle_bytes)
    raw[position % len(raw)] ^= value
    with pytest.raises(BundleError):
        verify(bytes(raw))


@pytest.mark.parametrize("name", [*NAMES, "model.sig"])
@given(position=st.integers(0), value=st.integers(1, 255))
def test_no_byte_of_a_member_can_be_changed_by_who_packs_it_anew(
    name: str, position: int, value: int, bundle_bytes: bytes, verify: Verify
) -> None:
    members = decode_archive(bundle_bytes, limits=bundle_file_module.MEMBER_LIMITS, what="")
    content = bytearray(members[name])
    content[position % len(content)] ^= value
    with pytest.raises((SignatureError, TrustError)):
        verify(encode_archive({**members, name: bytes(content)}))


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_bundle_that_was_zipped_anew_is_refused(
    compression: int, members: Mapping[str, bytes], verify: Verify
) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(BundleError, match=r"zipped anew|compressed"):
        verify(file.getvalue())


def test_an_unsigned_bundle_is_refused(members: dict[str, bytes], verify: Verify) -> None:
    del members["model.sig"]
    with pytest.raises(SignatureError, match="is not signed"):
        verify(encode_archive(members))


@pytest.mark.parametrize("name", NAMES)
def test_a_removed_member_is_refused(name: str, members: dict[str, bytes], verify: Verify) -> None:
    del members[name]
    with pytest.raises(SignatureError, match=f"as to '{name}'"):
        verify(encode_archive(members))


def test_an_added_member_that_was_not_signed_is_refused(
    members: dict[str, bytes], verify: Verify, sign_anew: SignAnew
) -> None:
    fewer = {name: members[name] for name in members if name != "model.int8.onnx"}
    raw = sign_anew(fewer)
    signed = decode_archive(raw, limits=bundle_file_module.MEMBER_LIMITS, what="")
    with pytest.raises(SignatureError, match=r"as to 'model\.int8\.onnx'"):
        verify(encode_archive({**members, "model.sig": signed["model.sig"]}))


@pytest.mark.parametrize("name", ["evil.so", "model.plan", ".git/hook", "../x", "/x", "model.sig2"])
def test_a_member_of_another_name_is_refused(
    name: str, members: dict[str, bytes], verify: Verify
) -> None:
    with pytest.raises(BundleError, match="holds member"):
        verify(encode_archive({**members, name: b"x"}))


def test_two_signatures_cannot_be_swapped_between_bundles(
    members: dict[str, bytes], manifest: Manifest, verify: Verify, sign_anew: SignAnew
) -> None:
    other = encode_manifest(manifest.model_copy(update={"sequence": 9}))
    raw = sign_anew({**members, "manifest.json": other})
    signed = decode_archive(raw, limits=bundle_file_module.MEMBER_LIMITS, what="")
    with pytest.raises(SignatureError, match=r"a manifest.json other than the one"):
        verify(encode_archive({**members, "model.sig": signed["model.sig"]}))


def test_a_bundle_signed_by_a_stranger_is_refused(bundle_path: Path, tmp_path: Path) -> None:
    _, public = generate_keys(tmp_path / "others")
    with pytest.raises(TrustError, match=r"good.edgex: signed by key .* not among the 1 trusted"):
        open_bundle(bundle_path, trust=public)


def test_a_newer_schema_is_refused_by_name(
    members: dict[str, bytes], verify: Verify, sign_anew: SignAnew
) -> None:
    newer = members["manifest.json"].replace(b'"schema_version": 2', b'"schema_version": 3')
    with pytest.raises(BundleError, match=r"schema 3 .* install edgexnas"):
        verify(sign_anew({**members, "manifest.json": newer}))


def test_an_expired_bundle_is_refused(bundle_path: Path, trust: TrustStore) -> None:
    with pytest.raises(BundleError, match=r"expired at 2100-01-01.* set the clock"):
        open_bundle(bundle_path, trust=trust, now=datetime(2100, 1, 1, tzinfo=timezone.utc))


def test_a_clock_before_the_bundle_was_made_is_to_be_set(
    bundle_path: Path, trust: TrustStore
) -> None:
    with pytest.raises(BundleError, match=r"made at 2026-01-02.* clock says 1970.*: set the clock"):
        open_bundle(bundle_path, trust=trust, now=datetime(1970, 1, 1, tzinfo=timezone.utc))


def test_a_clock_of_the_signer_that_is_a_little_ahead_is_tolerated(
    bundle_path: Path, trust: TrustStore, manifest: Manifest
) -> None:
    now = manifest.created - timedelta(minutes=9)
    open_bundle(bundle_path, trust=trust, now=now)


def test_a_bundle_that_never_expires_opens_by_any_clock_with_a_warning(
    members: dict[str, bytes],
    manifest: Manifest,
    trust: TrustStore,
    sign_anew: SignAnew,
    caplog: pytest.LogCaptureFixture,
) -> None:
    forever = encode_manifest(manifest.model_copy(update={"expires": None}))
    raw = sign_anew({**members, "manifest.json": forever})
    verify_bundle(raw, trust=trust, now=datetime(1970, 1, 1, tzinfo=timezone.utc))
    assert "set the clock" in caplog.text


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_a_gate_wider_than_the_device_accepts_is_rejected_with_both_numbers(
    precision: str,
    members: dict[str, bytes],
    manifest: Manifest,
    trust: TrustStore,
    sign_anew: SignAnew,
) -> None:
    gate = manifest.gate.model_copy(update={precision: 0.39})
    wide = encode_manifest(manifest.model_copy(update={"gate": gate}))
    raw = sign_anew({**members, "manifest.json": wide})
    numbers = rf"lets its {precision} engine deviate by 0.39 px, where this device accepts 0.385 px"
    with pytest.raises(BundleError, match=f"{numbers}.* raise maximum_gate_px"):
        verify_bundle(raw, trust=trust)
    verify_bundle(raw, trust=trust, gates=GatePolicy(maximum_gate_px=0.4))


def test_phase_and_amplitude_have_limits_of_their_own() -> None:
    amplitude = AmplitudeGate(float32=0.6, float16=0.1, int8=0.1)
    gate = Gate(unit="rad", float32=0.1, float16=0.1, int8=0.41)
    with pytest.raises(BundleError, match=r"int8 engine deviate by 0.41 rad"):
        GatePolicy().check(gate, what="bundle")
    gate = gate.model_copy(update={"int8": 0.4, "amplitude": amplitude})
    with pytest.raises(BundleError, match=r"0.6 of the mean amplitude, where .* accepts 0.5"):
        GatePolicy().check(gate, what="bundle")


@pytest.mark.parametrize("limit", [0, -1, float("nan")])
def test_a_limit_of_gates_is_a_number_above_0(limit: float) -> None:
    with pytest.raises(ConfigurationError, match="maximum_gate_px is"):
        GatePolicy(maximum_gate_px=limit)


def test_equal_content_has_one_digest_however_often_it_is_signed(
    members: dict[str, bytes], bundle_path: Path, verify: Verify, sign_anew: SignAnew
) -> None:
    first, second = verify(bundle_path.read_bytes()), verify(sign_anew(members))
    assert first.digest != second.digest
    assert first.content_digest == second.content_digest == content_digest_of(bundle_path)


def test_a_precision_without_its_model_is_refused(
    members: dict[str, bytes], verify: Verify, sign_anew: SignAnew
) -> None:
    del members["model.int8.onnx"]
    with pytest.raises(BundleError, match="where its manifest says float32, float16, int8"):
        verify(sign_anew(members))


@pytest.mark.parametrize("name", ["manifest.json", "reference.npz"])
def test_a_signed_bundle_that_lacks_a_part_is_refused(
    name: str, members: dict[str, bytes], verify: Verify, sign_anew: SignAnew
) -> None:
    del members[name]
    with pytest.raises(BundleError, match=f"lacks {name}"):
        verify(sign_anew(members))


def test_data_outside_a_signed_model_is_refused(
    tiny: ModuleType, members: dict[str, bytes], verify: Verify, sign_anew: SignAnew
) -> None:
    model = tiny.float32_model()
    model.graph.initializer[0].ClearField("raw_data")
    model.graph.initializer[0].data_location = 1
    members["model.onnx"] = model.SerializeToString()
    with pytest.raises(BundleError, match=r"model.onnx of bundle keeps tensor .* another file"):
        verify(sign_anew(members))


def test_a_model_is_not_parsed_before_its_signature_holds(
    members: dict[str, bytes], verify: Verify, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("parse_manifest", "check_onnx", "decode_reference"):
        monkeypatch.setattr(bundle_file_module, name, lambda *_, **__: pytest.fail("was parsed"))
    with pytest.raises(SignatureError):
        verify(encode_archive({**members, "model.onnx": b"altered"}))


@pytest.mark.parametrize(
    "change",
    [
        lambda r: {**r, "output": r["output"][:7]},
        lambda r: {**r, "output": r["output"][:, :, :2]},
        lambda r: {**r, "output": r["output"] * np.nan},
        lambda r: {**r, "input": r["input"].astype("f8")},
        lambda r: {**r, "input": np.float32(1)},
        lambda r: {**r, "extra": r["input"]},
        lambda r: {"input": r["input"]},
        lambda r: {name: array[:0] for name, array in r.items()},
    ],
)
def test_reference_arrays_that_do_not_fit_the_model_are_refused(
    change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]],
    tiny: ModuleType,
    manifest: Manifest,
) -> None:
    with pytest.raises(BundleError, match="reference array"):
        encode_reference(change(tiny.tiny_reference()), manifest)


def test_a_reference_made_by_numpy_is_refused(tiny: ModuleType, manifest: Manifest) -> None:
    file = io.BytesIO()
    np.savez(file, **tiny.tiny_reference())
    with pytest.raises(BundleError):
        decode_reference(file.getvalue(), manifest)


def test_a_pickled_reference_is_refused_unread(
    members: dict[str, bytes], manifest: Manifest
) -> None:
    file = io.BytesIO()
    np.save(file, np.array([print], object), allow_pickle=True)
    raw = encode_archive({"input.npy": file.getvalue(), "output.npy": b""})
    with pytest.raises(BundleError, match="not a float32 array"):
        decode_reference(raw, manifest)


def test_a_reference_array_whose_header_says_something_else_is_refused(
    members: dict[str, bytes], manifest: Manifest
) -> None:
    for old, new in ((b"'<f4'", b"'>f4'"), (b"False", b"True "), (b"(8, 2, 3)", b"(8, 3, 2)")):
        raw = members["reference.npz"]
        inner = decode_archive(raw, limits={"input.npy": 10**6, "output.npy": 10**6}, what="")
        spoilt = {**inner, "output.npy": inner["output.npy"].replace(old, new)}
        with pytest.raises(BundleError, match=r"output in reference.npz is not a float32 array"):
            decode_reference(encode_archive(spoilt), manifest)


@given(position=st.integers(0), value=st.integers(1, 255), length=st.integers(0, 400))
def test_a_spoilt_reference_array_is_accepted_or_refused_as_a_bundle_error(
    position: int, value: int, length: int, bundle_bytes: bytes, verify: Verify
) -> None:
    bundle = verify(bundle_bytes)
    arrays = decode_archive(
        encode_reference(bundle.reference, bundle.manifest),
        limits={"input.npy": 10**6, "output.npy": 10**6},
        what="",
    )
    content = bytearray(arrays["output.npy"][: 320 - length])
    if content:
        content[position % len(content)] ^= value
    try:
        decode_reference(encode_archive({**arrays, "output.npy": bytes(content)}), bundle.manifest)
    except BundleError as error:
        assert "output" in str(error)  # noqa: PT017


def test_a_missing_file_is_refused(trust: TrustStore, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be read: No such file"):
        open_bundle(tmp_path / "none.edgex", trust=trust)


def test_a_folder_or_a_pipe_is_refused(trust: TrustStore, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(BundleError, match="no regular file"):
            open_bundle(path, trust=trust)


def test_a_file_too_large_for_a_bundle_is_refused_unread(trust: TrustStore, tmp_path: Path) -> None:
    path = tmp_path / "large.edgex"
    with path.open("wb") as file:
        file.truncate(bundle_file_module.MOST_BUNDLE_BYTES + 1)
    with pytest.raises(BundleError, match="is larger than"):
        open_bundle(path, trust=trust)


def test_a_file_that_holds_more_than_it_says_is_not_read() -> None:
    # The kernel's files claim to be empty.
    assert read_once(Path("/proc/self/status"), most_bytes=10) is None


def test_nothing_is_written_that_a_device_would_refuse(
    tiny: ModuleType, manifest: Manifest, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    models = {**tiny.tiny_models(), "int8": tiny.tiny_models()["float32"]}
    with pytest.raises(BundleError, match="quantises nothing"):
        write_bundle(
            tmp_path / "bad.edgex",
            manifest=manifest,
            models=models,
            reference=tiny.tiny_reference(),
            signing_key=keys[0],
        )
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_cannot_be_written_into_a_missing_folder(
    tiny: ModuleType, manifest: Manifest, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match="cannot be written"):
        write_bundle(
            tmp_path / "missing" / "x.edgex",
            manifest=manifest,
            models=tiny.tiny_models(),
            reference=tiny.tiny_reference(),
            signing_key=keys[0],
        )


def test_models_other_than_the_manifest_says_are_not_written(
    tiny: ModuleType, manifest: Manifest, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match="models are given for bfloat16"):
        write_bundle(
            tmp_path / "bad.edgex",
            manifest=manifest,
            models={"bfloat16": b""},  # type: ignore[dict-item]
            reference=tiny.tiny_reference(),
            signing_key=keys[0],
        )


def test_a_key_on_another_curve_does_not_sign(
    tiny: ModuleType, manifest: Manifest, tmp_path: Path
) -> None:
    with pytest.raises(TrustError, match="not on the curve P-256"):
        write_bundle(
            tmp_path / "bad.edgex",
            manifest=manifest,
            models=tiny.tiny_models(),
            reference=tiny.tiny_reference(),
            signing_key=ec.generate_private_key(ec.SECP384R1()),
        )


def test_a_bundle_may_hold_fewer_precisions(
    tiny: ModuleType, manifest: Manifest, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    path = write_bundle(
        tmp_path / "float.edgex",
        manifest=manifest.model_copy(update={"precisions": ("float32",), "quantisation": None}),
        models={"float32": tiny.tiny_models()["float32"]},
        reference=tiny.tiny_reference(),
        signing_key=keys[0],
    )
    assert set(open_bundle(path, trust=keys[1]).models) == {"float32"}


def test_a_stranger_cannot_speak_to_the_terminal(members: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "hostile.edgex"
    for old, new in (("linear", "\\u001b[2J"), ("linear", "\\u202e"), ("layers", "\\u001b[2J")):
        hostile = members["manifest.json"].replace(old.encode(), new.encode())
        path.write_bytes(encode_archive({**members, "manifest.json": hostile}))
        try:
            said = "".join(value for _, value in describe(read_manifest(path)))
        except BundleError as error:
            said = str(error)
        assert said.isprintable()


def test_a_manifest_can_be_looked_at_without_a_key(bundle_path: Path, manifest: Manifest) -> None:
    assert read_manifest(bundle_path) == manifest


def test_verifying_is_a_function_of_bytes(bundle_bytes: bytes, trust: TrustStore) -> None:
    assert verify_bundle(bundle_bytes, trust=trust).path is None


def test_the_public_names_are_sorted_and_there() -> None:
    names = edgexnas.bundle.__all__
    # Constants, then classes, then functions, each in alphabetical order.
    assert names == sorted(names, key=lambda name: (not name.isupper(), name))
    assert all(hasattr(edgexnas.bundle, name) for name in names)
