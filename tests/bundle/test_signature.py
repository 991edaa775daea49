"""A signature is accepted in one form, from a trusted key, over exactly these members."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from edgexnas.bundle import TrustStore
from edgexnas.bundle.keys import key_id
from edgexnas.bundle.signature import sign_members, verify_signature
from edgexnas.errors import BundleError, SignatureError, TrustError

MEMBERS = {"b.txt": b"two", "a.txt": b"one"}
Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def signed(signing_key: ec.EllipticCurvePrivateKey) -> bytes:
    return sign_members(MEMBERS, signing_key, name="model")


def statement_of(signed: bytes) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(
        base64.b64decode(json.loads(signed)["dsseEnvelope"]["payload"])
    )
    return fields


def sign_statement(payload: bytes, signed: bytes, key: ec.EllipticCurvePrivateKey) -> bytes:
    """Put another payload, authentically signed, into a signature file."""
    kind = b"application/vnd.in-toto+json"
    encoded = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
    signature = key.sign(encoded, ec.ECDSA(hashes.SHA256()))
    content = json.loads(signed)
    content["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    content["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(signature).decode()
    return json.dumps(content, separators=(",", ":")).encode()


def test_the_members_digests_are_verified(
    signed: bytes, trust: TrustStore, signing_key: ec.EllipticCurvePrivateKey
) -> None:
    signer, digests = verify_signature(signed, trust=trust)
    assert signer == key_id(signing_key.public_key())
    assert digests == {name: hashlib.sha256(data).hexdigest() for name, data in MEMBERS.items()}


def test_resources_are_named_in_order_of_name(signed: bytes) -> None:
    resources = statement_of(signed)["predicate"]["resources"]
    assert [item["name"] for item in resources] == ["a.txt", "b.txt"]


def test_a_stranger_is_refused(trust: TrustStore) -> None:
    stranger = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(TrustError, match="is not among the 1 trusted"):
        verify_signature(sign_members(MEMBERS, stranger, name="model"), trust=trust)


def test_a_stranger_who_names_a_trusted_key_is_refused(
    trust: TrustStore, signing_key: ec.EllipticCurvePrivateKey
) -> None:
    stranger = ec.generate_private_key(ec.SECP256R1())
    raw = sign_members(MEMBERS, stranger, name="model")
    own, other = key_id(stranger.public_key()), key_id(signing_key.public_key())
    with pytest.raises(SignatureError, match="not made by the key it names"):
        verify_signature(raw.replace(own.encode(), other.encode()), trust=trust)


def test_a_store_that_files_a_key_under_a_wrong_id_is_refused(
    trust: TrustStore, signing_key: ec.EllipticCurvePrivateKey
) -> None:
    stranger = ec.generate_private_key(ec.SECP256R1())
    wrong = {key_id(stranger.public_key()): signing_key.public_key()}
    store = TrustStore(MappingProxyType(wrong), "store")
    with pytest.raises(TrustError, match="key ID mismatch"):
        verify_signature(sign_members(MEMBERS, stranger, name="model"), trust=store)


def test_a_store_made_with_a_key_on_another_curve_is_refused() -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    store = TrustStore({key_id(key.public_key()): key.public_key()}, "store")
    with pytest.raises(TrustError, match="not on the curve P-256"):
        verify_signature(sign_members(MEMBERS, key, name="model"), trust=store)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.update(mediaType="application/vnd.dev.sigstore.bundle.v0.2+json"),
        lambda c: c.update(extra=1),
        lambda c: c.pop("mediaType"),
        lambda c: c["verificationMaterial"].update(tlogEntries=[{}]),
        lambda c: c["verificationMaterial"].update(certificate={}),
        lambda c: c["verificationMaterial"].pop("publicKey"),
        lambda c: c["verificationMaterial"]["publicKey"].pop("hint"),
        lambda c: c["verificationMaterial"]["publicKey"].update(hint=None),
        lambda c: c["verificationMaterial"]["publicKey"].update(hint=["a"]),
        lambda c: c["dsseEnvelope"].update(payloadType="text/plain"),
        lambda c: c["dsseEnvelope"].update(payload=1),
        lambda c: c["dsseEnvelope"]["signatures"].append(c["dsseEnvelope"]["signatures"][0]),
        lambda c: c["dsseEnvelope"]["signatures"].clear(),
        lambda c: c["dsseEnvelope"]["signatures"][0].update(keyid="me"),
        lambda c: c["dsseEnvelope"]["signatures"][0].update(sig=" " + c["mediaType"]),
        lambda c: c["dsseEnvelope"].update(signatures={"0": {}}),
        lambda c: c.update(dsseEnvelope=[]),
    ],
)
def test_an_envelope_of_another_form_is_refused(
    change: Change, signed: bytes, trust: TrustStore
) -> None:
    content = json.loads(signed)
    change(content)
    with pytest.raises(SignatureError, match="not a model signature"):
        verify_signature(json.dumps(content, separators=(",", ":")).encode(), trust=trust)


def test_other_spacing_of_the_same_json_is_refused(signed: bytes, trust: TrustStore) -> None:
    with pytest.raises(SignatureError, match="not a model signature"):
        verify_signature(json.dumps(json.loads(signed)).encode(), trust=trust)


def test_a_repeated_key_is_refused(signed: bytes, trust: TrustStore) -> None:
    doubled = signed.replace(b'"keyid":""', b'"keyid":"","keyid":""')
    with pytest.raises(SignatureError, match="not a model signature"):
        verify_signature(doubled, trust=trust)


def test_another_encoding_of_the_same_base64_is_refused(
    trust: TrustStore, signing_key: ec.EllipticCurvePrivateKey
) -> None:
    names = ("a", "ab", "abc")
    raws = [sign_members(MEMBERS, signing_key, name=name) for name in names]
    payloads = [json.loads(raw)["dsseEnvelope"]["payload"] for raw in raws]
    raw, payload = next(pair for pair in zip(raws, payloads, strict=True) if pair[1][-1] == "=")
    # The last character before the padding carries bits that decoders ignore.
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    bare = payload.rstrip("=")
    twin = bare[:-1] + alphabet[alphabet.index(bare[-1]) ^ 1] + payload[len(bare) :]
    assert base64.b64decode(twin) == base64.b64decode(payload)
    with pytest.raises(SignatureError, match="not a model signature"):
        verify_signature(raw.replace(payload.encode(), twin.encode()), trust=trust)


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.update(_type="https://in-toto.io/Statement/v0.1"),
        lambda s: s.update(predicateType="https://model_signing/Digests/v0.1"),
        lambda s: s.update(extra=1),
        lambda s: s.update(subject=[]),
        lambda s: s.update(subject=s["subject"] * 2),
        lambda s: s["subject"][0]["digest"].update(sha512="00"),
        lambda s: s["predicate"]["serialization"].update(method="shards"),
        lambda s: s["predicate"]["serialization"].update(hash_type="blake3"),
        lambda s: s["predicate"]["serialization"].update(allow_symlinks=True),
        lambda s: s["predicate"]["serialization"].update(ignore_paths=["model.int8.onnx"]),
        lambda s: s["predicate"]["serialization"].update(shard_size=1),
        lambda s: s["predicate"]["serialization"].pop("method"),
        lambda s: s["predicate"]["resources"][0].update(algorithm="sha512"),
        lambda s: s["predicate"]["resources"][0].update(digest="AB" * 32),
        lambda s: s["predicate"].pop("resources"),
    ],
)
def test_a_statement_of_another_kind_is_refused(
    change: Change, signed: bytes, trust: TrustStore, signing_key: ec.EllipticCurvePrivateKey
) -> None:
    statement = statement_of(signed)
    change(statement)
    raw = sign_statement(json.dumps(statement).encode(), signed, signing_key)
    with pytest.raises(SignatureError, match="something other than a model's files"):
        verify_signature(raw, trust=trust)


def test_a_statement_that_names_a_member_twice_is_refused(
    signed: bytes, trust: TrustStore, signing_key: ec.EllipticCurvePrivateKey
) -> None:
    statement = statement_of(signed)
    statement["predicate"]["resources"] *= 2
    raw = sign_statement(json.dumps(statement).encode(), signed, signing_key)
    with pytest.raises(SignatureError, match="names a member twice"):
        verify_signature(raw, trust=trust)


def test_a_subject_other_than_the_members_digest_is_refused(
    signed: bytes, trust: TrustStore, signing_key: ec.EllipticCurvePrivateKey
) -> None:
    statement = statement_of(signed)
    statement["subject"][0]["digest"]["sha256"] = "0" * 64
    raw = sign_statement(json.dumps(statement).encode(), signed, signing_key)
    with pytest.raises(SignatureError, match="contradicts itself"):
        verify_signature(raw, trust=trust)


def test_other_fields_of_the_predicate_are_ignored_as_the_specification_asks(
    signed: bytes, trust: TrustStore, signing_key: ec.EllipticCurvePrivateKey
) -> None:
    statement = statement_of(signed)
    statement["predicate"]["modelCard"] = {"licence": "Apache-2.0"}
    raw = sign_statement(json.dumps(statement).encode(), signed, signing_key)
    assert verify_signature(raw, trust=trust) == verify_signature(signed, trust=trust)


def test_a_payload_that_is_no_json_object_is_refused(
    signed: bytes, trust: TrustStore, signing_key: ec.EllipticCurvePrivateKey
) -> None:
    for payload in (b"", b"[]", b'{"_type": 1, "_type": 2}', b"\xff"):
        with pytest.raises(SignatureError):
            verify_signature(sign_statement(payload, signed, signing_key), trust=trust)


@given(position=st.integers(0), value=st.integers(1, 255))
def test_no_byte_can_be_changed(
    signed: bytes, trust: TrustStore, position: int, value: int
) -> None:
    raw = bytearray(signed)
    raw[position % len(raw)] ^= value
    with pytest.raises((SignatureError, TrustError)):
        verify_signature(bytes(raw), trust=trust)


@given(raw=st.binary(max_size=200))
def test_any_bytes_are_refused_as_a_bundle_error(raw: bytes, trust: TrustStore) -> None:
    with pytest.raises(BundleError):
        verify_signature(raw, trust=trust)
