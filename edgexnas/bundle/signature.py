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

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import ConfigDict, FailFast, Field

from edgexnas.bundle.dsse import Envelope, sign
from edgexnas.bundle.keys import key_id
from edgexnas.bundle.record import Digest, Record
from edgexnas.bundle.strict_json import parse_json, parse_record
from edgexnas.bundle.trust import TrustStore
from edgexnas.errors import BundleError, SignatureError

__all__ = ["SIGNATURE_MEMBER", "content_digest", "sign_members", "verify_signature"]

SIGNATURE_MEMBER = "model.sig"
"""The member that holds the signature over all others."""

MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"

# `model_signing sign` ignores git's files unless told otherwise. No bundle can hold them, so
# that naming them hides nothing.
IgnoredPath = Literal["model.sig", ".git", ".gitattributes", ".github", ".gitignore"]


class _Digests(Record):
    sha256: Digest


class _Subject(Record):
    name: str
    digest: _Digests


class _Serialization(Record):
    method: Literal["files"]
    hash_type: Literal["sha256"]
    allow_symlinks: Literal[False]
    ignore_paths: tuple[IgnoredPath, ...] = ()


class _Resource(Record):
    name: str
    algorithm: Literal["sha256"]
    digest: Digest


class _Predicate(Record):
    # The specification tells verifiers of v1.0 to ignore other fields of the predicate.
    model_config = ConfigDict(extra="ignore")

    serialization: _Serialization
    resources: Annotated[tuple[_Resource, ...], FailFast()]


class _Statement(Record):
    """The signed payload, as far as this verifier accepts it."""

    type_: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    # Exactly one: a statement about several models would name files of all of them.
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
    # Sorted by name, because the subject's digest is over them in this order.
    digests = {item: hashlib.sha256(members[item]).hexdigest() for item in sorted(members)}
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": content_digest(digests)}}],
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
    envelope = sign(payload, kind=PAYLOAD_TYPE, key=key)
    return _encode(key_id(key.public_key()), envelope)


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
    # The hint only chooses among trusted keys; it proves nothing by itself.
    hint, envelope = _decode(raw)
    if not envelope.fits(trust.key(hint)):
        raise SignatureError(
            f"{SIGNATURE_MEMBER} was not made by the key it names, {hint[:16]}…: "
            "it was altered, do not use the bundle"
        )
    return hint, _read_statement(envelope.payload)


def content_digest(digests: Mapping[str, str]) -> str:
    """Digest of the signed members, whoever signed them: SHA-256 over their raw digests in order.

    Parameters
    ----------
    digests
        SHA-256 (hexadecimal) of each member, in order of name.
    """
    return hashlib.sha256(b"".join(bytes.fromhex(item) for item in digests.values())).hexdigest()


def _encode(hint: str, envelope: Envelope) -> bytes:
    """Write the sigstore bundle, byte for byte as model_signing 1.1 does."""
    content = {
        "mediaType": MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": hint}, "tlogEntries": []},
        "dsseEnvelope": envelope.fields(),
    }
    return json.dumps(content, separators=(",", ":")).encode()


def _decode(raw: bytes) -> tuple[str, Envelope]:
    """Take the key's id and the envelope out of a sigstore bundle.

    There is one encoding of each signature: what was picked out must encode to the same bytes.
    """
    try:
        content: Any = parse_json(raw, what=SIGNATURE_MEMBER)
        hint = content["verificationMaterial"]["publicKey"]["hint"]
        # Type and key id are constant in this format; what differs does not encode to `raw`.
        envelope = Envelope.of(content["dsseEnvelope"])._replace(kind=PAYLOAD_TYPE, key_id="")
        # No second encoding is accepted: an unsigned field could carry anything unseen.
        if re.fullmatch("[0-9a-f]{64}", hint) and _encode(hint, envelope) == raw:
            return hint, envelope
    except (BundleError, LookupError, TypeError, ValueError):
        pass
    raise SignatureError(
        f"{SIGNATURE_MEMBER} is not a model signature v1.0 in the form that edgexnas and "
        "model_signing write: export or sign again"
    )


def _read_statement(payload: bytes) -> dict[str, str]:
    """Return the digest of each member that an authentic statement names."""
    try:
        statement = parse_record(payload, _Statement, what="its statement")
    except BundleError as error:
        raise SignatureError(
            f"{SIGNATURE_MEMBER} signs something other than a model's files ({error}): sign with "
            "`model_signing sign key` or export again"
        ) from None
    # The last of two equal names would win silently.
    digests = {item.name: item.digest for item in statement.predicate.resources}
    if len(digests) != len(statement.predicate.resources):
        raise SignatureError(f"{SIGNATURE_MEMBER} names a member twice: export or sign again")
    if content_digest(digests) != statement.subject[0].digest.sha256:
        raise SignatureError(
            f"{SIGNATURE_MEMBER} contradicts itself, its members do not hash to its subject: "
            "export or sign again"
        )
    return digests
