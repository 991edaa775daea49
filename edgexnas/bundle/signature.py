"""The signature: OpenSSF Model Signing v1.0 over the members of a bundle.

A sigstore bundle v0.3 (JSON) carries a DSSE envelope, whose payload is an in-toto Statement v1
that names every member with its SHA-256. The envelope is signed by ECDSA on P-256 with SHA-256.
The public command `model_signing verify key` accepts it over the unpacked members.

Of an ECDSA signature (r, s) anybody can make the equally valid (r, -s), so two files may carry the
same signed members; a file's digest names the file, not the signer's intent.

References
----------
* Model signing: https://github.com/ossf/model-signing-spec
* DSSE and its pre-authentication encoding: https://github.com/secure-systems-lab/dsse
* In-toto Statement: https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import BaseModel, ConfigDict, FailFast, Field, StringConstraints, ValidationError

from edgexnas.bundle.keys import key_id
from edgexnas.bundle.strict_json import explain, parse_json
from edgexnas.bundle.trust import TrustStore
from edgexnas.errors import BundleError, SignatureError

__all__ = ["SIGNATURE_MEMBER", "sign_members", "verify_signature"]

SIGNATURE_MEMBER = "model.sig"
"""The member that holds the signature over all others."""

MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"

# `model_signing sign` ignores git's files unless told otherwise. No bundle can hold them, so
# that naming them hides nothing.
IgnoredPath = Literal["model.sig", ".git", ".gitattributes", ".github", ".gitignore"]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class _Envelope(NamedTuple):
    """What varies in a signature file; everything else in it is constant."""

    hint: str
    payload: bytes
    signature: bytes


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Digest(_Strict):
    sha256: Sha256


class _Subject(_Strict):
    name: str
    digest: _Digest


class _Serialization(_Strict):
    method: Literal["files"]
    hash_type: Literal["sha256"]
    allow_symlinks: Literal[False]
    ignore_paths: tuple[IgnoredPath, ...] = ()


class _Resource(_Strict):
    name: str
    algorithm: Literal["sha256"]
    digest: Sha256


class _Predicate(BaseModel):
    # The specification tells verifiers of v1.0 to ignore other fields of the predicate.
    model_config = ConfigDict(extra="ignore", frozen=True)

    serialization: _Serialization
    resources: Annotated[tuple[_Resource, ...], FailFast()]


class _Statement(_Strict):
    """The signed payload, as far as this verifier accepts it."""

    type_: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: tuple[_Subject]
    predicate_type: Literal["https://model_signing/signature/v1.0"] = Field(alias="predicateType")
    predicate: _Predicate


def sign_members(
    members: Mapping[str, bytes], key: ec.EllipticCurvePrivateKey, *, name: str
) -> bytes:
    """Sign the members of a bundle.

    Parameters
    ----------
    members
        Content by name, without the signature itself.
    key
        Private key on P-256.
    name
        Name of the signed model; it is recorded and has no meaning to the verifier.

    Returns
    -------
    Content of `model.sig`.
    """
    digests = {item: hashlib.sha256(members[item]).hexdigest() for item in sorted(members)}
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": _root_digest(digests)}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": [SIGNATURE_MEMBER],
            },
            "resources": [
                {"name": item, "algorithm": "sha256", "digest": digest}
                for item, digest in digests.items()
            ],
        },
    }
    payload = json.dumps(statement, separators=(",", ":")).encode()
    signature = key.sign(_pre_authentication(payload), ec.ECDSA(hashes.SHA256()))
    return _encode_envelope(_Envelope(key_id(key.public_key()), payload, signature))


def verify_signature(raw: bytes, *, trust: TrustStore) -> tuple[str, dict[str, str]]:
    """Verify a signature, without looking at what it signs.

    Parameters
    ----------
    raw
        Content of `model.sig`.
    trust
        The keys of which one must have signed.

    Returns
    -------
    The id of the key that signed, and the SHA-256 (hexadecimal) of each signed member by name.

    Raises
    ------
    TrustError
        If the key is not trusted.
    SignatureError
        If the signature is malformed, of another kind, or does not fit its payload.
    """
    envelope = _decode_envelope(raw)
    # One encoding of each signature: no byte of the file is free to change.
    if envelope is None or _encode_envelope(envelope) != raw:
        raise SignatureError(
            f"{SIGNATURE_MEMBER} is no model signature v1.0 in the form that edgexnas and "
            "model_signing write: export or sign again"
        )
    key = trust.key(envelope.hint)
    try:
        key.verify(
            envelope.signature, _pre_authentication(envelope.payload), ec.ECDSA(hashes.SHA256())
        )
    except InvalidSignature:
        raise SignatureError(
            f"{SIGNATURE_MEMBER} was not made by the key it names, {envelope.hint[:16]}…: "
            "it was altered, do not use the bundle"
        ) from None
    return envelope.hint, _read_statement(envelope.payload)


def _encode_envelope(envelope: _Envelope) -> bytes:
    """Write the sigstore bundle, byte for byte as model_signing 1.1 does."""
    content = {
        "mediaType": MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": envelope.hint}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(envelope.payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(envelope.signature).decode(), "keyid": ""}],
        },
    }
    return json.dumps(content, separators=(",", ":")).encode()


def _decode_envelope(raw: bytes) -> _Envelope | None:
    """Pick out what varies in a sigstore bundle; None where that is not there.

    What should be constant is not looked at: the caller encodes the result and compares.
    """
    try:
        content: Any = parse_json(raw, what=SIGNATURE_MEMBER)
        hint = content["verificationMaterial"]["publicKey"]["hint"]
        payload = content["dsseEnvelope"]["payload"]
        signature = content["dsseEnvelope"]["signatures"][0]["sig"]
        if not re.fullmatch("[0-9a-f]{64}", hint):
            return None
        return _Envelope(hint, base64.b64decode(payload), base64.b64decode(signature))
    except (BundleError, LookupError, TypeError, ValueError):
        return None


def _pre_authentication(payload: bytes) -> bytes:
    """Join payload and its type without ambiguity (DSSE's PAE): this is what gets signed."""
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def _root_digest(digests: Mapping[str, str]) -> str:
    """Digest of the whole model: SHA-256 over the members' raw digests in the order given."""
    return hashlib.sha256(b"".join(bytes.fromhex(item) for item in digests.values())).hexdigest()


def _read_statement(payload: bytes) -> dict[str, str]:
    """Give the digest of each member that an authentic statement names."""
    try:
        fields = parse_json(payload, what=f"the statement in {SIGNATURE_MEMBER}")
        statement = _Statement.model_validate_json(json.dumps(fields), strict=True)
    except ValidationError as error:
        raise SignatureError(
            f"{SIGNATURE_MEMBER} signs something other than a model's files "
            f"({explain(error)}): sign with `model_signing sign key` or export again"
        ) from None
    except BundleError as error:
        raise SignatureError(str(error)) from None
    digests = {item.name: item.digest for item in statement.predicate.resources}
    if len(digests) != len(statement.predicate.resources):
        raise SignatureError(f"{SIGNATURE_MEMBER} names a member twice: export or sign again")
    if _root_digest(digests) != statement.subject[0].digest.sha256:
        raise SignatureError(
            f"{SIGNATURE_MEMBER} contradicts itself, its members do not hash to its subject: "
            "export or sign again"
        )
    return digests
