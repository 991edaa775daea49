"""Every known way to tamper with what a device opens, or with who may write it, is rejected.

One row each: a name, what is done to a sound device, the error, and a part of its message.
"""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from edgexnas.bundle import (
    SCHEMA_VERSION,
    Manifest,
    load_signing_key,
    open_bundle,
    write_trust_list,
)
from edgexnas.bundle.archive import decode_archive, encode_archive
from edgexnas.bundle.bundle_file import MEMBER_LIMITS, MOST_BUNDLE_BYTES, content_digest_of
from edgexnas.bundle.keys import MOST_PEM_BYTES, generate_keys, key_id, public_pem
from edgexnas.bundle.manifest import encode_manifest
from edgexnas.bundle.rollback import RollbackState
from edgexnas.bundle.signature import sign_members
from edgexnas.bundle.trust_list import TrustList, sign_list
from edgexnas.errors import (
    BundleError,
    ConfigurationError,
    EdgexnasError,
    SignatureError,
    TrustError,
)

ROOT = ec.generate_private_key(ec.SECP256R1())
STRANGER = ec.generate_private_key(ec.SECP256R1())


@dataclass
class Device:
    """A device that opens its bundle, until a row does something to it."""

    bundle: Path
    trust: Path
    state: Path
    signer: ec.EllipticCurvePrivateKey
    manifest: Manifest
    tiny: ModuleType
    monkeypatch: pytest.MonkeyPatch
    now: datetime | None = None
    key: Path = field(init=False)

    def __post_init__(self) -> None:
        self.key = self.trust / "signer.pub.pem"

    def open(self) -> None:
        open_bundle(self.bundle, trust=self.trust, state=self.state, now=self.now)

    @property
    def raw(self) -> bytes:
        return self.bundle.read_bytes()

    @property
    def members(self) -> dict[str, bytes]:
        return decode_archive(self.raw, limits=MEMBER_LIMITS, what="bundle")

    def pack(self, members: dict[str, bytes]) -> None:
        """Pack members as they are, with the signature that they had."""
        self.bundle.write_bytes(encode_archive(members))

    def sign(self, key: ec.EllipticCurvePrivateKey | None = None, **changes: bytes | None) -> None:
        """Sign anew with other members, or without some."""
        content = {**self.members, **{_member(name): raw for name, raw in changes.items()}}
        kept = {n: raw for n, raw in content.items() if raw is not None and n != "model.sig"}
        kept["model.sig"] = sign_members(kept, key or self.signer, name="tiny")
        self.pack(kept)

    def describe(self, **changes: Any) -> None:
        """Sign anew with another manifest."""
        self.sign(manifest=encode_manifest(self.manifest.model_copy(update=changes)))

    def edit(self, old: bytes, new: bytes) -> None:
        """Sign anew with a manifest of other bytes."""
        assert old in self.members["manifest.json"]
        self.sign(manifest=self.members["manifest.json"].replace(old, new))

    def list(self, *, key: ec.EllipticCurvePrivateKey = ROOT, **changes: Any) -> None:
        """Put a signed list in the place of the plain folder."""
        self.key.unlink(missing_ok=True)
        now = datetime.now(timezone.utc)
        content = TrustList(
            **{
                "version": 2,
                "created": now - timedelta(hours=1),
                "expires": now + timedelta(days=99),
                "keys": {"beam": public_pem(self.signer.public_key()).decode()},
                **changes,
            }
        )
        for name, raw in (
            ("root.pem", public_pem(ROOT.public_key())),
            ("trust.json", sign_list(content, key)),
        ):
            (self.trust / name).write_bytes(raw)
            (self.trust / name).chmod(0o644)

    def give_away(self, path: Path) -> None:
        """Let a file belong to somebody else; only root can do that in earnest."""
        if os.geteuid() == 0:
            os.chown(path, 12345, -1, follow_symlinks=False)
        else:
            other = os.geteuid() + 1
            self.monkeypatch.setattr(os, "geteuid", lambda: other)


def _member(name: str) -> str:
    return {
        "manifest": "manifest.json", "float32": "model.onnx", "int8": "model.int8.onnx",
        "reference": "reference.npz",
    }[name]  # fmt: skip


@pytest.fixture
def device(
    bundle_path: Path,
    keys: tuple[Path, Path],
    tmp_path: Path,
    manifest: Manifest,
    tiny: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> Device:
    trust, state = tmp_path / "trust", tmp_path / "state"
    trust.mkdir(mode=0o755)
    state.mkdir(mode=0o700)
    signer = load_signing_key(keys[0])
    made = Device(bundle_path, trust, state, signer, manifest, tiny, monkeypatch)
    made.key.write_bytes(keys[1].read_bytes())
    made.key.chmod(0o644)
    made.open()
    return made


# What is done to the bytes of the file


def flipped(name: str) -> Callable[[Device], None]:
    def flip(d: Device) -> None:
        raw = bytearray(d.raw)
        raw[raw.index(d.members[name]) + 30] ^= 1
        d.bundle.write_bytes(raw)

    return flip


def altered(name: str) -> Callable[[Device], None]:
    """Change a member and pack it anew, as somebody would who knows the format."""

    def alter(d: Device) -> None:
        content = d.members
        content[name] = content[name][:-2] + b" \n"
        d.pack(content)

    return alter


def removed(name: str) -> Callable[[Device], None]:
    return lambda d: d.pack({n: raw for n, raw in d.members.items() if n != name})


def added(name: str) -> Callable[[Device], None]:
    return lambda d: d.pack({**d.members, name: b"x"})


def written(change: Callable[[bytes], bytes]) -> Callable[[Device], None]:
    def write(d: Device) -> None:
        d.bundle.write_bytes(change(d.raw))

    return write


def field_set(magic: bytes, offset: int, form: str, value: int) -> Callable[[Device], None]:
    def change(raw: bytes) -> bytes:
        result = bytearray(raw)
        struct.pack_into(form, result, raw.rindex(magic) + offset, value)
        return bytes(result)

    return written(change)


def zipped(compression: int) -> Callable[[Device], None]:
    def rezip(d: Device) -> None:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", compression) as archive:
            for name, content in d.members.items():
                archive.writestr(name, content)
        d.bundle.write_bytes(file.getvalue())

    return rezip


def repeat_member(d: Device) -> None:
    # The name of the last entry of the directory becomes that of the first; both are as long.
    raw = encode_archive({**d.members, "manifest.jsom": b"{}"})
    head, tail = raw[: raw.rindex(CENTRAL)], raw[raw.rindex(CENTRAL) :]
    d.bundle.write_bytes(head + tail.replace(b"manifest.jsom", b"manifest.json"))


def swap_models(d: Device) -> None:
    content = d.members
    content["model.onnx"], content["model.fp16.onnx"] = (
        content["model.fp16.onnx"], content["model.onnx"],
    )  # fmt: skip
    d.pack(content)


def take_signature_of_another(d: Device) -> None:
    own = d.members
    d.describe(sequence=99)
    d.pack({**own, "model.sig": d.members["model.sig"]})


def sign_as_if_trusted(d: Device) -> None:
    d.sign(key=STRANGER)
    own, other = key_id(STRANGER.public_key()), key_id(d.signer.public_key())
    content = d.members
    content["model.sig"] = content["model.sig"].replace(own.encode(), other.encode())
    d.pack(content)


CENTRAL, END = b"PK\x01\x02", b"PK\x05\x06"

BYTES = [
    ("a cut tail", written(lambda r: r[:-1]), BundleError, "truncated"),
    ("half a file", written(lambda r: r[: len(r) // 2]), BundleError, "truncated"),
    ("an empty file", written(lambda r: b""), BundleError, "does not start as a bundle"),
    ("bytes before", written(lambda r: b"#!" + r), BundleError, "does not start"),
    ("bytes after", written(lambda r: r + b"\0"), BundleError, "bytes were added"),
    ("a zip comment", field_set(END, 20, "<H", 1), BundleError, "contradicts the file"),
    ("zip64", field_set(END, 16, "<L", 0xFFFFFFFF), BundleError, "zip64"),
    ("a wrong count", field_set(END, 10, "<H", 3), BundleError, "contradicts"),
    ("a lost directory", field_set(CENTRAL, 0, "<L", 0), BundleError, "central directory"),
    ("an encrypted flag", field_set(CENTRAL, 8, "<H", 1), BundleError, "is encrypted"),
    ("a data descriptor", field_set(CENTRAL, 8, "<H", 8), BundleError, "data descriptor"),
    ("a compression method", field_set(CENTRAL, 10, "<H", 8), BundleError, "is compressed"),
    ("another date", field_set(CENTRAL, 14, "<H", 99), BundleError, "laid out"),
    ("a wrong checksum", field_set(CENTRAL, 16, "<L", 1), BundleError, "damaged in member"),
    ("a size that lies", field_set(CENTRAL, 24, "<L", 5), BundleError, "claims 5 bytes"),
    ("a link", field_set(CENTRAL, 38, "<L", 0o120777 << 16), BundleError, "is a link"),
    ("a program's mode", field_set(CENTRAL, 38, "<L", 0o100755 << 16), BundleError, "laid out"),
    ("another offset", field_set(CENTRAL, 42, "<L", 0), BundleError, "damaged|laid out"),
    ("zipped anew", zipped(zipfile.ZIP_STORED), BundleError, "zipped anew"),
    ("compressed anew", zipped(zipfile.ZIP_DEFLATED), BundleError, "is compressed"),
    ("a member twice", repeat_member, BundleError, "occurs twice"),
    ("another order", lambda d: d.pack(dict(reversed(d.members.items()))), BundleError, "laid out"),
    ("a program added", added("evil.so"), BundleError, "does not belong there"),
    ("a plan added", added("model.plan"), BundleError, "does not belong there"),
    ("a way out", added("../evil"), BundleError, "reaches out"),
    ("an absolute name", added("/etc/passwd"), BundleError, "absolute name"),
    ("a flipped manifest", flipped("manifest.json"), BundleError, "damaged in member"),
    ("a flipped model", flipped("model.onnx"), BundleError, "damaged in member"),
    ("a flipped reference", flipped("reference.npz"), BundleError, "damaged in member"),
    ("a flipped signature", flipped("model.sig"), BundleError, "damaged in member"),
    ("an altered manifest", altered("manifest.json"), SignatureError, "other than the one"),
    ("an altered model", altered("model.onnx"), SignatureError, "other than the one"),
    ("an altered INT8 model", altered("model.int8.onnx"), SignatureError, "other than the one"),
    ("an altered reference", altered("reference.npz"), SignatureError, "other than the one"),
    ("an altered signature", altered("model.sig"), SignatureError, "not a model signature"),
    ("no signature", removed("model.sig"), SignatureError, "is not signed"),
    ("no manifest", removed("manifest.json"), SignatureError, "as to 'manifest.json'"),
    ("no model", removed("model.int8.onnx"), SignatureError, "as to 'model.int8.onnx'"),
    ("no reference", removed("reference.npz"), SignatureError, "as to 'reference.npz'"),
    ("models that change places", swap_models, SignatureError, "other than the one"),
    ("another's signature", take_signature_of_another, SignatureError, "other than the one"),
    ("a stranger's signature", lambda d: d.sign(key=STRANGER), TrustError, "not among"),
    ("a stranger's under our name", sign_as_if_trusted, SignatureError, "not made by the key"),
]


# What a trusted signer got wrong, or wants too much of


def model_elsewhere(d: Device) -> None:
    model = d.tiny.float32_model()
    model.graph.initializer[0].ClearField("raw_data")
    model.graph.initializer[0].data_location = 1
    d.sign(float32=model.SerializeToString())


def foreign_operator(d: Device) -> None:
    model = d.tiny.float32_model()
    model.graph.node[0].domain = "evil"
    d.sign(float32=model.SerializeToString())


def pickled_reference(d: Device) -> None:
    file = io.BytesIO()
    np.savez(file, input=np.array([print], object), output=np.zeros(1))
    d.sign(reference=file.getvalue())


def no_int8(d: Device) -> None:
    d.sign(int8=d.members["model.onnx"])


def at(year: int) -> Callable[[Device], None]:
    def set_clock(d: Device) -> None:
        d.now = datetime(year, 1, 1, tzinfo=timezone.utc)

    return set_clock


def wide(precision: str) -> Callable[[Device], None]:
    return lambda d: d.describe(gate=d.manifest.gate.model_copy(update={precision: 0.5}))


def seq(raw: bytes) -> bytes:
    return b'"sequence": ' + raw


SCHEMA = b'"schema_version": %d'

SIGNED = [
    ("a newer schema", lambda d: d.edit(SCHEMA % SCHEMA_VERSION, SCHEMA % 99), "schema 99"),
    ("an unknown field", lambda d: d.edit(b"{", b'{"more": 1,'), "more|strict JSON"),
    ("a field twice", lambda d: d.edit(seq(b"3"), seq(b'3, "sequence": 4')), "occurs twice"),
    ("a number that is none", lambda d: d.edit(seq(b"3"), seq(b"NaN")), "strict JSON"),
    ("a negative sequence", lambda d: d.edit(seq(b"3"), seq(b"-3")), "at sequence"),
    ("true for a number", lambda d: d.edit(seq(b"3"), seq(b"true")), "at sequence"),
    ("a manifest that is a list", lambda d: d.sign(manifest=b"[]"), "JSON list"),
    ("a manifest of bytes", lambda d: d.sign(manifest=b"\xff\xfe"), "strict JSON"),
    ("a manifest nested deeply", lambda d: d.sign(manifest=b'{"a":' * 9999), "strict JSON"),
    ("control characters", lambda d: d.edit(b"linear", b"\\u001b[2J"), "at architecture"),
    ("a turned writing direction", lambda d: d.edit(b"linear", b"\\u202e"), "at architecture"),
    ("a clock after its expiry", at(2100), "expired at 2100"),
    ("a clock before it was made", at(1970), "set the clock"),
    ("a wide float32 gate", wide("float32"), "accepts 0.385 px"),
    ("a wide float16 gate", wide("float16"), "accepts 0.385 px"),
    ("a wide INT8 gate", wide("int8"), "accepts 0.385 px"),
    ("no manifest, signed", lambda d: d.sign(manifest=None), "lacks manifest.json"),
    ("no INT8 model, signed", lambda d: d.sign(int8=None), "its manifest says"),
    ("no reference, signed", lambda d: d.sign(reference=None), "lacks reference.npz"),
    ("a model that is none", lambda d: d.sign(float32=b"\x08\x07"), "model.onnx"),
    ("weights in another file", model_elsewhere, "another file"),
    ("an operator of others", foreign_operator, "evil"),
    ("an INT8 model in float", no_int8, "quantises nothing"),
    ("a pickled reference", pickled_reference, "reference.npz"),
]


# Files and folders


def at_path(make: Callable[[Path], object]) -> Callable[[Device], None]:
    def replace(d: Device) -> None:
        d.bundle.unlink()
        make(d.bundle)

    return replace


def nul(d: Device) -> None:
    d.bundle = Path("a\0b")


def large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(MOST_BUNDLE_BYTES + 1)


def linked(name: str) -> Callable[[Device], None]:
    """Move something out of its folder and leave a link."""

    def link(d: Device) -> None:
        path = d.trust / name if name else d.trust
        outside = d.bundle.with_name("outside")
        path.rename(outside)
        path.symlink_to(outside)

    return link


def mode(name: str, bits: int) -> Callable[[Device], None]:
    return lambda d: (d.trust / name).chmod(bits)


def owner(name: str) -> Callable[[Device], None]:
    return lambda d: d.give_away(d.trust / name)


def key_of(content: Callable[[Device], bytes]) -> Callable[[Device], None]:
    return lambda d: void(d.key.write_bytes(content(d)))


def void(_: object) -> None:
    """Drop a result."""


def no_folder(d: Device) -> None:
    d.trust = d.trust / "none"


def key_pipe(d: Device) -> None:
    os.mkfifo(d.trust / "more.pub.pem", 0o644)


def only_private(d: Device) -> None:
    d.key.unlink()
    generate_keys(d.trust)
    (d.trust / "edgexnas.pub.pem").unlink()


def private_pem(d: Device) -> bytes:
    return d.signer.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def edwards_pem(d: Device) -> bytes:
    return (
        ed25519.Ed25519PrivateKey.generate()
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def curve_pem(d: Device) -> bytes:
    return public_pem(ec.generate_private_key(ec.SECP384R1()).public_key())


KEY = "signer.pub.pem"

FILES = [
    ("no bundle", at_path(lambda p: None), BundleError, "No such file"),
    ("a folder for a bundle", at_path(Path.mkdir), BundleError, "no regular file"),
    ("a pipe for a bundle", at_path(os.mkfifo), BundleError, "no regular file"),
    ("a file far too large", at_path(large), BundleError, "larger than"),
    ("a NUL in the path", nul, BundleError, "holds a NUL"),
    ("no trust folder", no_folder, TrustError, "No such file"),
    ("an empty trust folder", lambda d: d.key.unlink(), TrustError, "holds no"),
    ("a folder everybody writes", mode("", 0o777), TrustError, "by others .mode 0777"),
    ("a folder with a sticky bit", mode("", 0o1777), TrustError, "by others .mode 1777"),
    ("a folder its group writes", mode("", 0o775), TrustError, "by others .mode 0775"),
    ("a folder of another user", owner(""), TrustError, "belongs to user"),
    ("a link to a folder", linked(""), TrustError, "no folder of its own"),
    ("a key everybody writes", mode(KEY, 0o666), TrustError, "by others .mode 0666"),
    ("a key its group writes", mode(KEY, 0o664), TrustError, "by others .mode 0664"),
    ("a key of another user", owner(KEY), TrustError, "belongs to user"),
    ("a link to a key outside", linked(KEY), TrustError, "symbolic link"),
    ("a pipe among the keys", key_pipe, TrustError, "no regular file"),
    ("a private key alone", only_private, TrustError, "holds no"),
    ("a private key as public", key_of(private_pem), TrustError, "is a private key"),
    ("a key on another curve", key_of(curve_pem), TrustError, "not on the curve"),
    ("a key of another kind", key_of(edwards_pem), TrustError, "not on the curve"),
    ("a key of nonsense", key_of(lambda d: b"nonsense"), TrustError, "no public key"),
    ("two keys in a file", key_of(lambda d: d.key.read_bytes() * 2), TrustError, "several keys"),
    ("a key far too large", key_of(lambda d: b"-" * (MOST_PEM_BYTES + 1)), TrustError, "no public"),
]


# The trust list


def listed(then: Callable[[Device], object] = void, **changes: Any) -> Callable[[Device], None]:
    def put(d: Device) -> None:
        d.list(**changes)
        then(d)

    return put


def revoked_key(d: Device) -> None:
    d.list(keys={}, revoked_keys=(key_id(d.signer.public_key()),))


def revoked_bundle(d: Device) -> None:
    d.list(revoked_bundles=(content_digest_of(d.bundle),))


def older_list(d: Device) -> None:
    d.list(version=5)
    d.open()
    d.list(version=4)


def replaced_root(d: Device) -> None:
    d.list()
    write_trust_list(d.trust, root_key=ROOT, next_root=STRANGER.public_key())
    write_trust_list(d.trust, root_key=STRANGER)
    d.open()
    d.list(version=99)


def damaged_list(d: Device) -> None:
    content = json.loads((d.trust / "trust.json").read_bytes())
    content["lists"][0]["payload"] = content["lists"][0]["payload"][:-4] + "fQ=="
    (d.trust / "trust.json").write_text(json.dumps(content, indent=1) + "\n")


def drop(name: str) -> Callable[[Device], None]:
    return lambda d: (d.trust / name).unlink()


def another_root(d: Device) -> None:
    (d.trust / "root.pem").write_bytes(public_pem(STRANGER.public_key()))


DAY = timedelta(days=1)
NOW = datetime.now(timezone.utc)

LISTS = [
    ("a revoked key", revoked_key, "revokes"),
    ("a revoked bundle", revoked_bundle, "revoked by version 2"),
    ("a list without the signer", listed(keys={}), "not among the 0 trusted"),
    ("an expired list", listed(created=NOW - 9 * DAY, expires=NOW - DAY), "trust.json expired"),
    ("a list of tomorrow", listed(created=NOW + DAY), "set the clock"),
    ("an older list", older_list, "version 5 was accepted before"),
    ("a list of a replaced root", replaced_root, "has replaced"),
    ("a list of a stranger", listed(key=STRANGER), "not signed by root key"),
    ("a list after the root changed", listed(another_root), "not signed by root key"),
    ("a damaged list", listed(damaged_list), "not a trust list|not signed by"),
    ("a list that is gone", listed(drop("trust.json")), "trust.json cannot be used"),
    ("a root that is gone", listed(drop("root.pem")), "root.pem cannot be used"),
    ("a list everybody writes", listed(mode("trust.json", 0o666)), "by others"),
    ("a root everybody writes", listed(mode("root.pem", 0o666)), "by others"),
    ("a list of another user", listed(owner("trust.json")), "belongs to user"),
    ("a root of another user", listed(owner("root.pem")), "belongs to user"),
    ("a link to a list", listed(linked("trust.json")), "symbolic link"),
    ("a link to a root", listed(linked("root.pem")), "symbolic link"),
]


# What the device remembers


def remembering(then: Callable[[Device, Path], object]) -> Callable[[Device], None]:
    def remember(d: Device) -> None:
        RollbackState(d.state).remember_bundle(d.manifest)
        then(d, d.state / "accepted-bundles.json")

    return remember


def older_bundle(d: Device) -> None:
    newer = d.manifest.model_copy(update={"sequence": 4})
    RollbackState(d.state).remember_bundle(newer)


def file_for_state(d: Device) -> None:
    d.state = d.bundle


def link_state(d: Device, file: Path) -> None:
    outside = d.bundle.with_name("outside")
    file.rename(outside)
    file.symlink_to(outside)


def pipe_state(d: Device, file: Path) -> None:
    file.unlink()
    os.mkfifo(file, 0o600)


STATES = [
    ("an older bundle", older_bundle, BundleError, "sequence 4 was accepted before"),
    ("a state that is a file", file_for_state, ConfigurationError, "cannot be used"),
    ("a state everybody writes", lambda d: d.state.chmod(0o777), ConfigurationError, "by others"),
    ("a state of another", lambda d: d.give_away(d.state), EdgexnasError, "belongs to"),
    ("a damaged memory", remembering(lambda d, f: f.write_text("{")), ConfigurationError, "damage"),
    ("a memory all write", remembering(lambda d, f: f.chmod(0o666)), ConfigurationError, "others"),
    ("a memory of another", remembering(lambda d, f: d.give_away(f)), EdgexnasError, "belongs to"),
    ("a link to a memory", remembering(link_state), ConfigurationError, "symbolic link"),
    ("a pipe for a memory", remembering(pipe_state), ConfigurationError, "no regular file"),
]

KINDS = [
    *BYTES,
    *((name, act, BundleError, said) for name, act, said in SIGNED),
    *FILES,
    *((name, act, TrustError, said) for name, act, said in LISTS),
    *STATES,
]


@pytest.mark.parametrize(
    ("act", "error", "said"), [kind[1:] for kind in KINDS], ids=[kind[0] for kind in KINDS]
)
def test_it_is_rejected(
    act: Callable[[Device], None], error: type[EdgexnasError], said: str, device: Device
) -> None:
    act(device)
    with pytest.raises(error, match=said) as caught:
        device.open()
    assert str(caught.value).isprintable()


def test_every_kind_has_a_name_of_its_own() -> None:
    assert len({name for name, *_ in KINDS}) == len(KINDS) >= 60


@pytest.mark.parametrize(
    ("bits", "said"), [(0o602, "can be written by others"), (0o620, "can be written by others")]
)
def test_a_signing_key_that_others_write_is_rejected(tmp_path: Path, bits: int, said: str) -> None:
    private, _ = generate_keys(tmp_path)
    private.chmod(bits)
    with pytest.raises(ConfigurationError, match=said):
        load_signing_key(private)
