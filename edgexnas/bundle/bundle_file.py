"""The bundle file: archive, signature, set of names and contents, checked in this order.

`verify_bundle` is a pure function of bytes; `open_bundle` reads them once, so that what was
checked is what is used.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric import ec

from edgexnas.bundle.archive import decode_archive, encode_archive
from edgexnas.bundle.gate_policy import ANY_GATE, GatePolicy
from edgexnas.bundle.keys import key_id, load_signing_key
from edgexnas.bundle.manifest import (
    MODEL_MEMBERS,
    Manifest,
    Precision,
    encode_manifest,
    parse_manifest,
)
from edgexnas.bundle.onnx_graph import MOST_MODEL_BYTES, check_onnx
from edgexnas.bundle.probe import MOST_PROBE_BYTES, decode_probe, encode_probe
from edgexnas.bundle.reference import MOST_REFERENCE_BYTES, decode_reference, encode_reference
from edgexnas.bundle.rollback import RollbackState, StateOption, open_state
from edgexnas.bundle.shipped import is_shipped, located, release_trust
from edgexnas.bundle.signature import (
    SIGNATURE_MEMBER,
    content_digest,
    sign_members,
    verify_signature,
)
from edgexnas.bundle.trust import TrustStore
from edgexnas.bundle.validity import check_validity
from edgexnas.errors import BundleError, ConfigurationError, SignatureError, TrustError
from edgexnas.guarded_files import read_once
from edgexnas.printing import printable
from edgexnas.whole_files import write_whole

__all__ = [
    "Bundle",
    "content_digest_of",
    "open_bundle",
    "read_manifest",
    "verify_bundle",
    "write_bundle",
]

MANIFEST_MEMBER = "manifest.json"
REFERENCE_MEMBER = "reference.npz"
PROBE_MEMBER = "probe.npz"

MEMBER_LIMITS = {
    MANIFEST_MEMBER: 256 * 1024,
    **dict.fromkeys(MODEL_MEMBERS.values(), MOST_MODEL_BYTES),
    REFERENCE_MEMBER: MOST_REFERENCE_BYTES,
    PROBE_MEMBER: MOST_PROBE_BYTES,
    SIGNATURE_MEMBER: 64 * 1024,
}
"""Largest size in bytes of each member, in the order in which they stand in the file."""

MOST_BUNDLE_BYTES = sum(MEMBER_LIMITS.values()) + 4096


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle.

    Attributes
    ----------
    manifest
        What the signer says about the model.
    models
        ONNX file of each precision in `manifest.precisions`, with all its data inside.
    reference
        Read-only float32 arrays: "input", real network inputs, and "output", what the float32
        model gave for them, with the shapes and units of the manifest's tensors.
    digest
        SHA-256 of the whole file, hexadecimal: names this bundle in caches and reports.
    content_digest
        Digest of the signed members: names the content, however often it is signed; by it a trust
        list revokes.
    key_id
        Id of the key that signed it.
    path
        Where it was read from; None if it came as bytes.
    state
        What remembers the newest bundle; None without protection against older ones.
    probe
        (modes, H, W) complex64, read-only: what `manifest.probe` describes; None without one.
    """

    manifest: Manifest
    models: Mapping[Precision, bytes]
    reference: Mapping[str, npt.NDArray[np.float32]]
    digest: str
    content_digest: str
    key_id: str
    path: Path | None = None
    state: RollbackState | None = None
    probe: npt.NDArray[np.complex64] | None = None

    def remember(self) -> None:
        """Accept no older bundle of this model from now on, if there is a state.

        Call it once the engine is proven: a bundle that does not run here must not bar the way
        back to the one that does.

        Raises
        ------
        BundleError
            If a newer one was accepted meanwhile.
        ConfigurationError
            If the state cannot be written.
        """
        if self.state is not None:
            self.state.remember_bundle(self.manifest)


def write_bundle(
    path: Path | str,
    *,
    manifest: Manifest,
    models: Mapping[Precision, bytes],
    reference: Mapping[str, npt.NDArray[np.generic]],
    signing_key: Path | str | ec.EllipticCurvePrivateKey,
    probe: npt.NDArray[np.complexfloating] | None = None,
) -> Path:
    """Sign a model and write it as one file; equal content differs in its signature alone.

    The result is verified as `open_bundle` does before the file appears, so nothing is written
    that a device would reject.

    Parameters
    ----------
    path
        File to write or replace, by custom `*.edgex`; its folder exists.
    manifest
        Description of the model.
    models
        ONNX file of each precision in `manifest.precisions`.
    reference
        float32 arrays: "input" (k, ...) of real network inputs and "output" (k, ...) of the
        float32 model, with the shapes of the manifest's tensors.
    signing_key
        Private key on P-256, or its PEM file.
    probe
        (modes, H, W) or (H, W) complex: what `manifest.probe` describes, which `describe_probe`
        makes.

    Returns
    -------
    The path.

    Raises
    ------
    BundleError
        If a device would reject the bundle.
    ConfigurationError
        If the signing key cannot be used, or the file cannot be written.
    """
    path = Path(path)
    if not isinstance(signing_key, ec.EllipticCurvePrivateKey):
        signing_key = load_signing_key(signing_key)
    if set(models) != set(manifest.precisions):
        raise BundleError(
            f"models are given for {', '.join(models)}, where the manifest says "
            f"{', '.join(manifest.precisions)}"
        )
    members = {
        MANIFEST_MEMBER: encode_manifest(manifest),
        **{MODEL_MEMBERS[name]: models[name] for name in MODEL_MEMBERS if name in models},
        REFERENCE_MEMBER: encode_reference(reference, manifest),
    }
    if probe is not None:
        members[PROBE_MEMBER] = encode_probe(probe)
    # Last, because it covers all others, and a reader needs it whole before it believes them.
    members[SIGNATURE_MEMBER] = sign_members(members, signing_key, name=manifest.model_id)
    raw = encode_archive(members)
    public = signing_key.public_key()
    own = TrustStore(MappingProxyType({key_id(public): public}), "the signing key")
    # How wide a gate may be is the device's to say.
    verify_bundle(raw, trust=own, now=manifest.created, gates=ANY_GATE)
    try:
        write_whole(path, raw)
    except OSError as error:
        raise ConfigurationError(f"bundle {path} cannot be written: {error.strerror}") from error
    return path


def open_bundle(
    path: Path | str,
    *,
    trust: Path | str | TrustStore | None = None,
    state: StateOption = None,
    gates: GatePolicy | None = None,
    now: datetime | None = None,
) -> Bundle:
    """Read a bundle and verify everything about it.

    Parameters
    ----------
    path
        File to read, once; or "universal", the bundle for any detector that comes with the package.
    trust
        Keys to accept: a store, a folder as `TrustStore.load` reads it, or one public key. Needed
        with a file; "universal" is trusted by the release key beside it, unless `trust` revokes it.
    state
        Folder that remembers the highest `sequence` of each model, below which a bundle is
        rejected; None for the usual one if there is one (`$EDGEXNAS_STATE`, the service's, or
        `~/.local/state/edgexnas`), False for none. `Bundle.remember` raises what it remembers.
    gates
        Widest accuracy gates that this device accepts; None for `GatePolicy()`.
    now
        Time against which the expiry is held, with time zone; None is the clock's.

    Raises
    ------
    BundleError
        If the file cannot be read, is malformed, incomplete, inconsistent, expired, made after
        `now`, older than one accepted before, or its gate is too wide.
    SignatureError
        If the signature does not cover what the bundle holds.
    TrustError
        If the signer is not trusted, signer or bundle are revoked, or the trust store cannot be
        used.
    ConfigurationError
        If `state` cannot be used, or `trust` is missing with a file.
    """
    # Before the file is read: without trusted keys there is nothing to verify with.
    if trust is not None and not isinstance(trust, TrustStore):
        trust = TrustStore.load(trust, state=state, now=now)
    if is_shipped(path):
        return _open_shipped(str(path), trust, gates, now)
    if trust is None:
        raise ConfigurationError(
            f"trust is missing for {printable(str(path))}; give the folder of trusted public keys"
        )
    path = Path(path)
    bundle = verify_bundle(_read(path), trust=trust, path=path, gates=gates, now=now)
    # After everything else: what does not verify has no sequence.
    memory = open_state(state)
    if memory is not None:
        memory.check_bundle(bundle.manifest)
    # Checked and not yet remembered: that is for when its engine has passed the gate.
    return replace(bundle, state=memory)


def _open_shipped(
    name: str, listed: TrustStore | None, gates: GatePolicy | None, now: datetime | None
) -> Bundle:
    """Open a bundle of the package; it is as new as that is, so that no state remembers it."""
    path = located(name)
    trust = release_trust(name, listed)
    bundle = verify_bundle(_read(path), trust=trust, path=path, gates=gates, now=now)
    if bundle.manifest.model_id != name:
        raise TrustError(
            f"{_name(path)} is {bundle.manifest.model_id}, and the release key is trusted for "
            f"{name} alone: install edgexnas again"
        )
    return bundle


def verify_bundle(
    raw: bytes,
    *,
    trust: TrustStore,
    path: Path | None = None,
    gates: GatePolicy | None = None,
    now: datetime | None = None,
) -> Bundle:
    """Verify a bundle that is in memory: a function of these arguments and the time alone.

    The order is: layout of the archive; signature; equality of signed and present members;
    manifest, expiry, gate, ONNX files, and reference arrays. Nothing of a model is parsed before
    its signature holds.

    Parameters
    ----------
    raw
        The whole file.
    trust
        Keys to accept.
    path
        Where the bytes are from, for messages and `Bundle.path`.
    gates, now
        As in `open_bundle`.

    Raises
    ------
    BundleError, SignatureError, TrustError
        As in `open_bundle`.
    """
    what = "bundle" if path is None else _name(path)
    # Sizes and layout first: nothing is hashed or parsed that could not belong to a bundle.
    members = decode_archive(raw, limits=MEMBER_LIMITS, what=what)
    signer, content = _verify_members(members, trust, what)
    manifest = _manifest_of(members, what)
    check_validity(manifest.created, manifest.expires, now=now, what=what)
    (gates or GatePolicy()).check(manifest.gate, what=what)
    # A signer who leaves a model out, or slips one in, disagrees with his own manifest.
    models = {name: members[file] for name, file in MODEL_MEMBERS.items() if file in members}
    if set(models) != set(manifest.precisions):
        raise BundleError(
            f"{what} holds models for {', '.join(models) or 'no precision'}, where its manifest "
            f"says {', '.join(manifest.precisions)}: export it again"
        )
    for name, model in models.items():
        file = f"{MODEL_MEMBERS[name]} of {what}"
        check_onnx(model, precision=name, manifest=manifest, what=file)
    reference = _member(members, REFERENCE_MEMBER, what)
    arrays = decode_reference(reference, manifest, what=f"{REFERENCE_MEMBER} of {what}")
    probe = _probe_of(members, manifest, what)
    # Of the file as it came; the content's digest is the same for another signature of it.
    digest = hashlib.sha256(raw).hexdigest()
    return Bundle(
        manifest,
        # Views that cannot be written to: what was verified is what runs.
        MappingProxyType(models),
        MappingProxyType(arrays),
        digest,
        content,
        signer,
        path,
        probe=probe,
    )


def read_manifest(path: Path | str) -> Manifest:
    """Read a bundle's manifest WITHOUT verifying who made it: to look at, not to act upon.

    Raises
    ------
    BundleError
        If the file cannot be read, or archive or manifest are malformed.
    """
    members = _unverified(path)
    return _manifest_of(members, _name(path))


def content_digest_of(path: Path | str) -> str:
    """Return the `Bundle.content_digest` of a bundle WITHOUT verifying it: to revoke it by.

    Raises
    ------
    BundleError
        If the file cannot be read or is not a bundle.
    """
    members = _unverified(path)
    return content_digest(
        {
            name: hashlib.sha256(members[name]).hexdigest()
            for name in sorted(members)
            if name != SIGNATURE_MEMBER
        }
    )


def _name(path: Path | str) -> str:
    return f"bundle {printable(str(path))}"


def _unverified(path: Path | str) -> dict[str, bytes]:
    return decode_archive(_read(located(path)), limits=MEMBER_LIMITS, what=_name(path))


def _read(path: Path) -> bytes:
    try:
        raw = read_once(path, most_bytes=MOST_BUNDLE_BYTES)
    except OSError as error:
        raise BundleError(f"{_name(path)} cannot be read: {error.strerror}") from error
    if raw is None:
        raise BundleError(
            f"{_name(path)} is larger than {MOST_BUNDLE_BYTES} bytes, so it is not a bundle"
        )
    return raw


def _member(members: Mapping[str, bytes], name: str, what: str) -> bytes:
    if name not in members:
        raise BundleError(f"{what} lacks {name}: use the file that was exported")
    return members[name]


def _manifest_of(members: Mapping[str, bytes], what: str) -> Manifest:
    raw = _member(members, MANIFEST_MEMBER, what)
    return parse_manifest(raw, what=f"{MANIFEST_MEMBER} of {what}")


def _probe_of(
    members: Mapping[str, bytes], manifest: Manifest, what: str
) -> npt.NDArray[np.complex64] | None:
    # Signed or not, what only one of the two speaks of was not meant so.
    record, raw = manifest.probe, members.get(PROBE_MEMBER)
    if record is None and raw is None:
        return None
    if record is None or raw is None:
        where = "manifest.json" if record is None else PROBE_MEMBER
        raise BundleError(f"{what} has a probe that {where} lacks: export it again")
    return decode_probe(raw, record, what=f"{PROBE_MEMBER} of {what}")


def _verify_members(members: Mapping[str, bytes], trust: TrustStore, what: str) -> tuple[str, str]:
    """Check the signature, and that it covers these members and no others.

    Returns
    -------
    Id of the key that signed, and digest of the content.
    """
    if SIGNATURE_MEMBER not in members:
        raise SignatureError(f"{what} is not signed: it lacks {SIGNATURE_MEMBER}")
    try:
        signer, digests = verify_signature(members[SIGNATURE_MEMBER], trust=trust)
        # Sorted, so that naming the members in another order does not escape a revocation.
        trust.check_content(content := content_digest(dict(sorted(digests.items()))))
    except BundleError as error:
        raise type(error)(f"{what}: {error}") from None
    # Equality both ways: a member that nobody signed is as bad as one that is missing.
    present = set(members) - {SIGNATURE_MEMBER}
    if present != set(digests):
        wrong = ", ".join(sorted(repr(name[:80]) for name in present ^ set(digests)))
        raise SignatureError(f"{what} does not hold the members that were signed, as to {wrong}")
    for name in present:
        if not hmac.compare_digest(hashlib.sha256(members[name]).hexdigest(), digests[name]):
            raise SignatureError(f"{what} holds a {name} other than the one that was signed")
    return signer, content
