"""Protection against what is old: the newest bundle of each model and list that was accepted."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeInt

from edgexnas.bundle.manifest import Manifest
from edgexnas.bundle.record import Digest, Record
from edgexnas.bundle.strict_json import parse_record
from edgexnas.errors import BundleError, ConfigurationError, TrustError
from edgexnas.guarded_files import Guard, check_folder, read_once
from edgexnas.whole_files import write_whole

__all__ = ["RollbackState", "StateOption", "default_state_folder", "open_state"]

STATE_FILE = "accepted-bundles.json"
MOST_STATE_BYTES = 1024 * 1024

StateOption = str | os.PathLike[str] | Literal[False] | None
"""A folder, which is made; None for `default_state_folder`; False for no protection."""


class _ListMark(Record):
    version: NonNegativeInt
    root: Digest
    """Id of the root key that signed it."""


class _Accepted(Record):
    bundles: dict[str, NonNegativeInt] = Field(default_factory=dict)
    """Highest sequence by model_id."""
    lists: dict[Digest, _ListMark] = Field(default_factory=dict)
    """Newest trust list by the id of the root key that the trust folder holds."""


def default_state_folder() -> Path | None:
    """Name the folder that remembers what was accepted, or None if there is none.

    That is `$EDGEXNAS_STATE`, the folder that systemd gives a service (`StateDirectory=`), or
    `edgexnas` in the user's state folder if somebody made it.
    """
    if named := os.environ.get("EDGEXNAS_STATE"):
        return Path(named)
    # Several folders are separated by colons; the first is the service's own.
    if given := os.environ.get("STATE_DIRECTORY"):
        return Path(given.split(":")[0])
    try:
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    except RuntimeError:
        return None
    folder = Path(state, "edgexnas")
    return folder if folder.exists() else None


def open_state(option: StateOption) -> RollbackState | None:
    """Open the state that an option names; None for no protection.

    Raises
    ------
    ConfigurationError
        If the folder cannot be used.
    """
    if option is False:
        return None
    folder = default_state_folder() if option is None else Path(option)
    return None if folder is None else RollbackState(folder)


class RollbackState:
    """A folder that remembers the newest of each model's bundles, and the newest trust list.

    Whoever can write to the folder can forget; so can a device that is installed anew.

    Parameters
    ----------
    folder
        Made with mode 0700 if it is not there.

    Raises
    ------
    ConfigurationError
        If it cannot be made, belongs to somebody else, or others can write to it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / STATE_FILE
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # systemd's DynamicUser makes the folder a link.
            fault = check_folder(folder, Guard(root=True, links=True))
        except (OSError, ValueError) as error:
            raise self._unusable(error) from error
        if fault is not None:
            raise ConfigurationError(
                f"rollback state {folder} {fault}: name a folder of your own, mode 700"
            )

    def check_bundle(self, manifest: Manifest) -> None:
        """Reject a bundle that is older than one of the same model that was accepted.

        Raises
        ------
        BundleError
            If its sequence is lower.
        ConfigurationError
            If the state cannot be read: without memory, nothing is accepted.
        """
        known = self._read().bundles.get(manifest.model_id, -1)
        # The same one again is no way back: devices open their bundle at each start.
        if manifest.sequence < known:
            raise BundleError(
                f"model {manifest.model_id} has sequence {manifest.sequence}, but sequence {known} "
                f"was accepted before: to go back, lower its entry in {self._file}"
            )

    def remember_bundle(self, manifest: Manifest) -> None:
        """Accept nothing older from now on; errors as of `check_bundle`."""
        with self._locked():
            # Another process may have accepted a newer one since it was checked.
            self.check_bundle(manifest)
            self._write(self._read(), "bundles", manifest.model_id, manifest.sequence)

    def accept_list(self, version: int, roots: Sequence[str], *, what: str) -> None:
        """Reject a trust list older than one that was accepted, else remember it.

        Parameters
        ----------
        version
            Version of a verified list.
        roots
            Ids of root keys: the one that the trust folder holds, those that replaced it one after
            the other, and last the signer of the list.
        what
            Name of the list, for messages.

        Raises
        ------
        TrustError
            If the version is lower, or a root that was replaced goes on signing.
        ConfigurationError
            If the state cannot be used.
        """
        mark = _ListMark(version=version, root=roots[-1])
        with self._locked():
            accepted = self._read()
            known = accepted.lists.get(roots[0])
            # A stolen root key can sign any version, but no chain through its successor.
            if known is not None and known.root not in roots:
                raise TrustError(
                    f"{what} is signed by root key {roots[-1][:16]}…, which key "
                    f"{known.root[:16]}… has replaced: use a list of that key"
                )
            if known is not None and version < known.version:
                raise TrustError(
                    f"{what} has version {version}, but version {known.version} was accepted "
                    "before: put the newest list there"
                )
            self._write(accepted, "lists", roots[0], mark)

    def _read(self) -> _Accepted:
        try:
            raw = read_once(self._file, most_bytes=MOST_STATE_BYTES, guard=Guard(root=True))
        # A device that is new has accepted nothing.
        except FileNotFoundError:
            return _Accepted()
        except OSError as error:
            raise self._unusable(error) from error
        try:
            return parse_record(raw or b"", _Accepted, what=f"{self._file}", remedy="restore it")
        except BundleError as error:
            raise ConfigurationError(f"rollback state is damaged: {error}") from None

    def _write(self, accepted: _Accepted, table: str, name: str, value: int | _ListMark) -> None:
        entries = getattr(accepted, table)
        # A start that changes nothing needs no disk that can be written.
        if entries.get(name) == value:
            return
        changed = accepted.model_copy(update={table: {**entries, name: value}})
        write_whole(self._file, f"{changed.model_dump_json(indent=2)}\n".encode(), mode=0o644)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Let one process at a time read and replace the state, or an update would be lost."""
        try:
            # A file of its own: the state itself is replaced by rename, and a lock on it with it.
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            lock = os.open(f"{self._file}.lock", flags, 0o600)
            try:
                # Released by the kernel if the process dies, which a lock file's mere presence is
                # not.
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
            finally:
                os.close(lock)
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError | ValueError) -> ConfigurationError:
        reason = getattr(error, "strerror", None) or error
        return ConfigurationError(
            f"rollback state {self.folder} cannot be used ({reason}): name a folder of your own"
        )
