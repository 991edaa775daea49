"""Bundles that come with the package and are opened by their name, without a trust folder.

Each is signed by the release key, whose public half lies beside it. That key is trusted for such a
name only: no file that a user names is accepted because it signed it. Whoever can replace these
files can replace the program that reads them, so nothing else about the files is checked.
"""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

from edgexnas.bundle.keys import key_id, parse_public_key
from edgexnas.bundle.trust import TrustStore
from edgexnas.errors import BundleError

__all__ = ["SHIPPED", "is_shipped", "located", "release_trust", "within"]

SHIPPED = ("universal",)
"""Names of the bundles, which are also their `model_id`."""

_FOLDER = Path(__file__).parent


def is_shipped(bundle: Path | str) -> bool:
    """Tell whether a bundle is meant that comes with the package: by a name alone, never a path."""
    return isinstance(bundle, str) and bundle in SHIPPED


def located(bundle: Path | str) -> Path:
    """Give the file of a bundle: that of the package if its name is meant, else the path itself."""
    return _FOLDER / f"{bundle}.edgex" if is_shipped(bundle) else Path(bundle)


def within(folder: Path, bundle: str) -> Path | str:
    """Give a bundle as `open_bundle` takes it: a name of the package, or a path from a folder."""
    return bundle if is_shipped(bundle) else folder / bundle


def release_trust(name: str, listed: TrustStore | None = None) -> TrustStore:
    """Give the trust store for a bundle of the package.

    Parameters
    ----------
    name
        One of `SHIPPED`.
    listed
        What the device trusts otherwise; what its list revokes stays revoked.

    Raises
    ------
    BundleError
        If the package lacks the key.
    """
    path = _FOLDER / f"{name}.pub.pem"
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise BundleError(
            f"the release key {path} cannot be read ({error.strerror}): install edgexnas again"
        ) from error
    key = parse_public_key(raw, what=f"release key {path}")
    keys = MappingProxyType({key_id(key): key})
    if listed is None or listed.trust_list is None:
        return TrustStore(keys, f"the release key of {name}")
    # What a list revokes is said to stand where the list is.
    return TrustStore(keys, listed.source, listed.trust_list)
