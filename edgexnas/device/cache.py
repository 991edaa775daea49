"""What a device has built and measured, kept for its next start and checked before it is used.

A TensorRT plan is executable code, so nothing is taken from the cache that this user of this device
did not write: the folder and its files belong to the user and open to nobody else, and each entry
carries an HMAC under a key of the device. That stops other users and damage; it stops neither root
nor the user.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from edgexnas.errors import EngineError
from edgexnas.guarded_files import Guard, check_folder, read_once
from edgexnas.whole_files import write_whole

__all__ = ["CacheOption", "EngineCache", "default_cache_folder", "open_cache"]

KEY_FILE = "device.key"
KEY_BYTES = 32
MAGIC = b"edgexnas engine cache 1\n"
MOST_ENTRY_BYTES = 1 << 30
MOST_CACHE_BYTES = 2 << 30
"""The entries that were not used for longest go when the cache outgrows this."""

Key = Mapping[str, object]

_log = logging.getLogger(__name__)


def default_cache_folder() -> Path:
    """Return `$EDGEXNAS_CACHE`, or `edgexnas` in the user's cache folder.

    Raises
    ------
    EngineError
        If the user has no home folder.
    """
    named = os.environ.get("EDGEXNAS_CACHE")
    if named:
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(cache) if cache else Path.home() / ".cache") / "edgexnas"
    except RuntimeError as error:
        raise EngineError(
            f"no folder for the engine cache ({error}); set EDGEXNAS_CACHE, or specify cache="
        ) from error


_OWN_NAME = re.compile(rf"\.?({re.escape(KEY_FILE)}|[a-z]+-[0-9a-f]{{40}})(\.[0-9a-f]+)?$")
"""Names of the key, of entries, and of their drafts."""

CacheOption = str | os.PathLike[str] | Literal[False] | None
"""A folder, None for the usual one, False for none."""


def open_cache(cache: CacheOption) -> EngineCache | None:
    """Open the cache that a `Predictor`'s option names; None without one.

    Where the usual folder cannot be made, as for a user without a home, that is logged and there
    is no cache: it saves time and decides nothing.

    Raises
    ------
    EngineError
        If a folder that was asked for cannot be made, or others can write to the folder.
    """
    if cache is False:
        return None
    if cache is not None:
        return EngineCache(Path(cache))
    try:
        folder = default_cache_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, EngineError) as error:
        _log.warning(
            "there is no engine cache (%s), so each start builds and measures again; set "
            "EDGEXNAS_CACHE to a folder that can be made",
            error,
        )
        return None
    return EngineCache(folder)


class EngineCache:
    """A folder of entries, each a JSON description and bytes under a key.

    Whatever is wrong with an entry, it is skipped, logged, and written anew: only a folder
    that others can write to is rejected.

    Parameters
    ----------
    folder
        Made with mode 0700 if it is not there; one that is there gets it too, unless it holds other
        things than a cache.

    Raises
    ------
    EngineError
        If the folder is no folder of this user's, or others can write to it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            complaint = check_folder(folder, Guard())
        except OSError as error:
            raise EngineError(
                f"engine cache {folder} cannot be made ({error.strerror}); specify one that "
                "this user may write to"
            ) from error
        if complaint is not None:
            raise EngineError(
                f"engine cache {folder} {complaint}; specify another, or empty it and run "
                f"chmod 700 {folder}"
            )
        mode = stat.S_IMODE(folder.lstat().st_mode)
        # A folder with other things in it is somebody's, and stays readable for whom it was;
        # what is kept there is this user's alone in any case.
        if mode & 0o077 and all(_OWN_NAME.match(path.name) for path in folder.iterdir()):
            folder.chmod(0o700)
        self._secret = self._device_key()

    def load(self, kind: str, key: Key) -> tuple[dict[str, Any], bytes] | None:
        """Read the entry of a key; None if there is none, or none that can be trusted.

        Parameters
        ----------
        kind
            What the entry is, in a word that its file name starts with.
        key
            Everything that the entry depends on: values that JSON knows.

        Returns
        -------
        Its description and its bytes.
        """
        path = self._path(kind, key)
        raw = self._read(path)
        if raw is None:
            return None
        entry = self._opened(raw)
        if entry is None or entry[0] != _canonical(key):
            self._leave_out(path, "it is damaged or was not written by this device")
            return None
        try:
            os.utime(path)
        except OSError:
            # The time of use decides only what goes first when the cache is full.
            _log.debug("the time of %s cannot be set", path)
        return entry[1], entry[2]

    def store(self, kind: str, key: Key, description: Mapping[str, Any], content: bytes) -> bool:
        """Write an entry whole; a cache that is full or read-only is logged and no failure.

        Returns
        -------
        Whether it was written.
        """
        path = self._path(kind, key)
        head = json.dumps({"key": _canonical(key), "description": dict(description)}).encode()
        body = MAGIC + len(head).to_bytes(8, "big") + head + content
        try:
            write_whole(path, body + self._mac(body), mode=0o600)
            self._shrink(path)
        except OSError as error:
            _log.warning(
                "engine cache %s cannot keep %s (%s): the next start builds or measures it again",
                self.folder,
                path.name,
                error.strerror,
            )
            return False
        return True

    def discard(self, kind: str, key: Key) -> None:
        """Remove the entry of a key, if there is one."""
        self._remove(self._path(kind, key))

    def others(self, kind: str, key: Key, *, same: tuple[str, ...]) -> list[dict[str, Any]]:
        """Return the keys of other entries of this kind that agree in some fields."""
        found = []
        for path in sorted(self.folder.glob(f"{kind}-*")):
            raw = self._read(path)
            entry = None if raw is None else self._opened(raw)
            if entry is None:
                continue
            other = json.loads(entry[0])
            if entry[0] != _canonical(key) and all(other.get(n) == key.get(n) for n in same):
                found.append(other)
        return found

    def _path(self, kind: str, key: Key) -> Path:
        return self.folder / f"{kind}-{hashlib.sha256(_canonical(key).encode()).hexdigest()[:40]}"

    def _mac(self, body: bytes) -> bytes:
        return hmac.digest(self._secret, body, "sha256")

    def _opened(self, raw: bytes) -> tuple[str, dict[str, Any], bytes] | None:
        """Split an entry into key, description and content, once its HMAC fits."""
        body, mac = raw[:-32], raw[-32:]
        if not body.startswith(MAGIC) or not hmac.compare_digest(self._mac(body), mac):
            return None
        start = len(MAGIC) + 8
        end = start + int.from_bytes(body[len(MAGIC) : start], "big")
        head = json.loads(body[start:end])
        return head["key"], head["description"], body[end:]

    def _read(self, path: Path) -> bytes | None:
        """Read a file once, if it is a plain file of this user's alone."""
        try:
            raw = read_once(path, most_bytes=MOST_ENTRY_BYTES, guard=Guard(secret=True))
        except FileNotFoundError:
            return None
        except OSError as error:
            self._leave_out(path, f"{error.strerror}")
            return None
        if raw is None:
            self._leave_out(path, f"it has more than {MOST_ENTRY_BYTES} bytes")
        return raw

    def _leave_out(self, path: Path, why: str) -> None:
        _log.warning("engine cache: %s is not used, because %s; it is made again", path, why)
        self._remove(path)

    def _remove(self, path: Path) -> None:
        try:
            os.unlink(path)
        except FileNotFoundError:
            return
        except OSError as error:
            _log.warning("engine cache: %s cannot be removed (%s)", path, error.strerror)

    def _device_key(self) -> bytes:
        path = self.folder / KEY_FILE
        raw = self._read(path)
        try:
            kept = base64.b64decode(raw or b"", validate=True)
        except binascii.Error:
            kept = b""
        if len(kept) == KEY_BYTES:
            return kept
        if raw is not None:
            self._leave_out(path, "it holds no key, so nothing here can be checked")
        fresh = secrets.token_bytes(KEY_BYTES)
        try:
            write_whole(path, base64.b64encode(fresh), mode=0o600)
        except OSError as error:
            _log.warning(
                "engine cache %s cannot keep its key (%s): nothing is cached",
                self.folder,
                error.strerror,
            )
        return fresh

    def _shrink(self, newest: Path) -> None:
        """Remove what was not used for longest until the rest fits."""
        # Names with a dot in front are drafts that another process is writing.
        names = [name for name in os.listdir(self.folder) if not name.startswith((".", KEY_FILE))]
        entries = [self.folder / name for name in names]
        aged = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in entries)
        whole = sum(size for _, size, _ in aged)
        for _, size, path in aged:
            if whole <= MOST_CACHE_BYTES:
                return
            if path != newest:
                self._remove(path)
                whole -= size


def _canonical(key: Key) -> str:
    return json.dumps(key, sort_keys=True, separators=(",", ":"))
