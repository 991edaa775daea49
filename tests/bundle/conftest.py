"""A small bundle, its parts, and the two ways to damage it: as a stranger and as its signer."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from edgexnas.bundle import (
    Bundle,
    Manifest,
    TrustStore,
    generate_keys,
    load_signing_key,
    verify_bundle,
    write_bundle,
)
from edgexnas.bundle.archive import decode_archive, encode_archive
from edgexnas.bundle.bundle_file import MEMBER_LIMITS
from edgexnas.bundle.signature import sign_members

BUNDLES = Path(__file__).parents[1] / "bundles"

Members = Mapping[str, bytes]


@pytest.fixture(scope="session")
def bundles() -> Path:
    """The folder of committed bundles, one a schema version."""
    return BUNDLES


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The module that builds the small model and its manifest."""
    spec = importlib.util.spec_from_file_location("tiny_bundle", BUNDLES / "tiny_bundle.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def manifest(tiny: ModuleType) -> Manifest:
    made: Manifest = tiny.tiny_manifest()
    return made


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The signer's private and public key."""
    return generate_keys(tmp_path_factory.mktemp("keys"), name="signer")


@pytest.fixture(scope="session")
def signing_key(keys: tuple[Path, Path]) -> ec.EllipticCurvePrivateKey:
    return load_signing_key(keys[0])


@pytest.fixture(scope="session")
def trust(keys: tuple[Path, Path]) -> TrustStore:
    """A device's store that trusts the signer alone."""
    return TrustStore.load(keys[1])


@pytest.fixture(scope="session")
def bundle_bytes(
    tiny: ModuleType, keys: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> bytes:
    """A good bundle."""
    path = write_bundle(
        tmp_path_factory.mktemp("bundle") / "good.edgex",
        manifest=tiny.tiny_manifest(),
        models=tiny.tiny_models(),
        reference=tiny.tiny_reference(),
        signing_key=keys[0],
    )
    return path.read_bytes()


@pytest.fixture
def bundle_path(bundle_bytes: bytes, tmp_path: Path) -> Path:
    """A good bundle in a file of its own."""
    path = tmp_path / "good.edgex"
    path.write_bytes(bundle_bytes)
    return path


@pytest.fixture
def members(bundle_bytes: bytes) -> dict[str, bytes]:
    """The members of a good bundle, in order."""
    return decode_archive(bundle_bytes, limits=MEMBER_LIMITS, what="bundle")


@pytest.fixture(scope="session")
def verify(trust: TrustStore) -> Callable[[bytes], Bundle]:
    """What a device does with the bytes of a bundle."""
    return lambda raw: verify_bundle(raw, trust=trust)


@pytest.fixture(scope="session")
def sign_anew(signing_key: ec.EllipticCurvePrivateKey) -> Callable[[Members], bytes]:
    """Pack members with a fresh signature of the trusted key: a signer who errs."""

    def pack(members: Members) -> bytes:
        content = {name: members[name] for name in members if name != "model.sig"}
        content["model.sig"] = sign_members(content, signing_key, name="tiny")
        return encode_archive({name: content[name] for name in MEMBER_LIMITS if name in content})

    return pack
