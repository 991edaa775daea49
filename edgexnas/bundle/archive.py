"""The archive: a zip file with exactly one way to write any content, and so one way to read it.

A zip file names its members twice, may hold bytes that nobody names, and readers differ in what
they believe. Here members are stored without compression, in a fixed order, with fixed
attributes; a reader parses the central directory, and then encodes what it found and compares.
So every byte of an accepted file is accounted for. Both directions are pure functions of bytes.

Format: PKWARE APPNOTE 6.3.10, sections 4.3.7 (local header), 4.3.12 (central directory) and
4.3.16 (end record).
"""

from __future__ import annotations

import stat
import struct
import zlib
from collections.abc import Mapping
from typing import NamedTuple

from edgexnas.errors import BundleError

__all__ = ["decode_archive", "encode_archive"]

LOCAL = struct.Struct("<4s5H3L2H")
CENTRAL = struct.Struct("<4s6H3L5H2L")
END = struct.Struct("<4s4H2LH")
LOCAL_MAGIC, CENTRAL_MAGIC, END_MAGIC = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"

# Seven members are the most that a bundle has.
MOST_ENTRIES = 64
"""Entries that are looked at; more are rejected unseen."""

VERSION_NEEDED = 10
"""Version 1.0: stored members and nothing else."""
MADE_BY_UNIX = (3 << 8) | 20
ATTRIBUTES = (stat.S_IFREG | 0o644) << 16
EPOCH_DATE = (1 << 5) | 1
"""1 January 1980, the earliest date of a zip file, so that equal content gives equal bytes."""

ENCRYPTED, DATA_DESCRIPTOR = 0x1, 0x8
ZIP64_MARK = 0xFFFFFFFF


class _Entry(NamedTuple):
    """One entry of the central directory."""

    name: str
    flags: int
    method: int
    crc: int
    stored_size: int
    size: int
    extra: int
    comment: int
    mode: int
    offset: int


def encode_archive(members: Mapping[str, bytes]) -> bytes:
    """Write members as a zip file, in the order given.

    Parameters
    ----------
    members
        Content by name; names are ASCII, sizes below 4 GiB.
    """
    body, directory, offset = [], [], 0
    for name, content in members.items():
        raw, size = name.encode("ascii"), len(content)
        # 0: flags, method (stored), and time, in both headers.
        common = (0, 0, 0, EPOCH_DATE, zlib.crc32(content), size, size, len(raw))
        body += [LOCAL.pack(LOCAL_MAGIC, VERSION_NEEDED, *common, 0), raw, content]
        directory += [
            CENTRAL.pack(
                CENTRAL_MAGIC, MADE_BY_UNIX, VERSION_NEEDED, *common, 0, 0, 0, 0, ATTRIBUTES, offset
            ),
            raw,
        ]
        offset += LOCAL.size + len(raw) + size
    length = sum(len(part) for part in directory)
    end = END.pack(END_MAGIC, 0, 0, len(members), len(members), length, offset, 0)
    return b"".join([*body, *directory, end])


def decode_archive(raw: bytes, *, limits: Mapping[str, int], what: str) -> dict[str, bytes]:
    """Read a zip file that `encode_archive` wrote, and no other.

    Parameters
    ----------
    raw
        The whole file.
    limits
        Largest size in bytes of each member that may occur, in the order in which they stand.
    what
        What is read, for messages.

    Returns
    -------
    Content by name. Whether all expected members are there is the caller's question.

    Raises
    ------
    BundleError
        If a byte of the file is other than the one `encode_archive` writes for this content.
    """
    entries = _read_directory(raw, what)
    members: dict[str, bytes] = {}
    for entry in entries:
        fault = _name_fault(entry.name, limits, members) or _entry_fault(entry, limits[entry.name])
        if fault:
            raise BundleError(f"{what} holds member {entry.name[:80]!r}, which {fault}")
        # Where the writer puts it; a local header of another length shows in the comparison below.
        start = entry.offset + LOCAL.size + len(entry.name)
        members[entry.name] = raw[start : start + entry.size]
        # Against accidents: who alters a file on purpose alters the sum too, and fails the
        # signature.
        if zlib.crc32(members[entry.name]) != entry.crc:
            raise BundleError(f"{what} is damaged in member {entry.name}: copy the file again")
    # What the checks above let pass, times, attributes and gaps among it, differs here.
    expected = encode_archive({name: members[name] for name in limits if name in members})
    if expected != raw:
        raise BundleError(
            f"{what} is not laid out as edgexnas writes it (was it zipped anew?): "
            "use the file that was exported"
        )
    return members


def _read_directory(raw: bytes, what: str) -> list[_Entry]:
    """Parse the central directory of a file that must end with it."""
    if not raw.startswith(LOCAL_MAGIC):
        raise BundleError(
            f"{what} does not start as a bundle: another kind of file, or bytes added"
        )
    # No search for the end record: where a comment may follow it, readers find different ones.
    end = raw[-END.size :]
    if len(end) < END.size or not end.startswith(END_MAGIC):
        raise BundleError(f"{what} is truncated, or bytes were added to its end: copy it again")
    _, disk, first_disk, here, count, length, offset, comment = END.unpack(end)
    if ZIP64_MARK in (length, offset) or 0xFFFF in (here, count):
        raise BundleError(f"{what} uses zip64, which bundles do not: use the file as exported")
    # The directory must end where the end record begins, so that no byte between them is unseen.
    if disk or first_disk or here != count or comment or offset + length + END.size != len(raw):
        raise BundleError(f"{what} has an end record that contradicts the file: copy it again")
    if count > MOST_ENTRIES:
        raise BundleError(f"{what} holds {count} members, far more than a bundle has")
    # Each step stays inside the directory, so a length that lies ends the walk.
    entries, position = [], offset
    for _ in range(count):
        entry = _read_entry(raw, position, limit=offset + length)
        if entry is None:
            raise BundleError(f"{what} has a malformed central directory: copy it again")
        entries.append(entry)
        position += CENTRAL.size + len(entry.name) + entry.extra + entry.comment
    return entries


def _read_entry(raw: bytes, position: int, *, limit: int) -> _Entry | None:
    """Parse one entry of the central directory; None where there is none."""
    after = position + CENTRAL.size
    if after > limit:
        return None
    (magic, _, _, flags, method, _, _, crc, stored, size, name_length, extra, comment, _, _,
     attributes, offset) = CENTRAL.unpack_from(raw, position)  # fmt: skip
    if magic != CENTRAL_MAGIC or after + name_length + extra + comment > limit:
        return None
    # Latin-1 keeps one character a byte, so that lengths stay true for any name.
    name = raw[after : after + name_length].decode("latin-1")
    mode = attributes >> 16
    return _Entry(name, flags, method, crc, stored, size, extra, comment, mode, offset)


def _name_fault(name: str, limits: Mapping[str, int], seen: Mapping[str, bytes]) -> str | None:
    if name.startswith(("/", "\\")) or name[1:2] == ":":
        return "has an absolute name"
    if ".." in name.replace("\\", "/").split("/"):
        return "reaches out of the archive"
    if name in seen:
        return "occurs twice"
    if name not in limits:
        return f"does not belong there: it may hold {', '.join(limits)}"
    return None


def _entry_fault(entry: _Entry, limit: int) -> str | None:
    # The rest could be left to the comparison; these say what somebody did to the file.
    if entry.flags & ENCRYPTED:
        return "is encrypted"
    if entry.flags & DATA_DESCRIPTOR:
        return "leaves its size to a data descriptor"
    if entry.method:
        return f"is compressed (method {entry.method}); members must be stored"
    if stat.S_IFMT(entry.mode) not in (0, stat.S_IFREG):
        return "is a link or another special file"
    if entry.extra or entry.comment:
        return "carries extra fields or a comment"
    if entry.size != entry.stored_size:
        return f"claims {entry.size} bytes and {entry.stored_size} stored ones"
    if entry.size > limit:
        return f"is too large: {entry.size} bytes where {limit} are allowed"
    return None
