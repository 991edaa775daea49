"""The archive has one encoding of any content, and every other one is refused."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgexnas.bundle.archive import decode_archive, encode_archive
from edgexnas.errors import BundleError

CONTENT = {"first.txt": b"one", "second.txt": b"two, a little longer", "third.txt": b""}
LIMITS = {"first.txt": 10, "second.txt": 100, "third.txt": 10}


def decode(raw: bytes, limits: Mapping[str, int] = LIMITS) -> dict[str, bytes]:
    return decode_archive(raw, limits=limits, what="archive")


def zipped(entries: list[tuple[zipfile.ZipInfo | str, bytes]], compression: int = 0) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for entry, content in entries:
            archive.writestr(entry, content)
    return file.getvalue()


def patched(raw: bytes, magic: bytes, offset: int, form: str, value: int) -> bytes:
    """Overwrite a field of the first record that starts with `magic`."""
    result = bytearray(raw)
    struct.pack_into(form, result, raw.index(magic) + offset, value)
    return bytes(result)


def test_what_is_encoded_is_decoded() -> None:
    assert decode(encode_archive(CONTENT)) == CONTENT


def test_equal_content_gives_equal_bytes() -> None:
    assert encode_archive(CONTENT) == encode_archive(dict(CONTENT))


def test_other_programs_can_unzip_it() -> None:
    with zipfile.ZipFile(io.BytesIO(encode_archive(CONTENT))) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == CONTENT


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_that_was_zipped_anew_is_refused(compression: int) -> None:
    with pytest.raises(BundleError, match=r"zipped anew|compressed"):
        decode(zipped(list(CONTENT.items()), compression))


@pytest.mark.parametrize("length", [0, 1, 21, 22, 40, -1, -22, -23])
def test_a_truncated_archive_is_refused(length: int) -> None:
    with pytest.raises(BundleError, match=r"truncated|another kind"):
        decode(encode_archive(CONTENT)[:length])


@pytest.mark.parametrize("junk", [b"\0", b"#!/bin/sh\n", b"PK\x03\x04"])
def test_bytes_in_front_are_refused(junk: bytes) -> None:
    with pytest.raises(BundleError):
        decode(junk + encode_archive(CONTENT))


@pytest.mark.parametrize("junk", [b"\0", b"PK\x05\x06", b"x" * 70_000])
def test_bytes_at_the_end_are_refused(junk: bytes) -> None:
    with pytest.raises(BundleError, match="added to its end"):
        decode(encode_archive(CONTENT) + junk)


def test_bytes_between_members_are_refused() -> None:
    raw = encode_archive(CONTENT)
    end = raw.rindex(b"PK\x05\x06")
    (directory,) = struct.unpack_from("<L", raw, end + 16)
    moved = patched(raw, b"PK\x05\x06", 16, "<L", directory + 4)
    with pytest.raises(BundleError, match="laid out"):
        decode(moved[:directory] + b"junk" + moved[directory:])


def test_two_archives_in_one_file_are_refused() -> None:
    with pytest.raises(BundleError, match="contradicts"):
        decode(encode_archive(CONTENT) * 2)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../first.txt", "out of the archive"),
        ("a/../../first.txt", "out of the archive"),
        ("..\\first.txt", "out of the archive"),
        ("/first.txt", "absolute"),
        ("\\\\host\\first.txt", "absolute"),
        ("C:first.txt", "absolute"),
        ("folder/first.txt", "does not belong"),
        ("First.txt", "does not belong"),
        ("first.txt\0", "does not belong"),
        ("folder/", "does not belong"),
        ("", "does not belong"),
    ],
)
def test_a_name_outside_the_list_is_refused(name: str, reason: str) -> None:
    with pytest.raises(BundleError, match=reason):
        decode(encode_archive({name: b"one"}))


def test_a_repeated_member_is_refused() -> None:
    other = encode_archive({"first.txt": b"one", "other.txt": b"two"})
    with pytest.raises(BundleError, match="occurs twice"):
        decode(other.replace(b"other.txt", b"first.txt"))


def test_members_in_another_order_are_refused() -> None:
    with pytest.raises(BundleError, match="laid out"):
        decode(encode_archive(dict(reversed(CONTENT.items()))))


@pytest.mark.parametrize("mode", [0o120777, 0o040755, 0o060644, 0o010644, 0o140644])
def test_a_link_folder_device_pipe_or_socket_is_refused(mode: int) -> None:
    raw = patched(encode_archive(CONTENT), b"PK\x01\x02", 38, "<L", mode << 16)
    with pytest.raises(BundleError, match="special file"):
        decode(raw)


def test_a_link_made_by_zipfile_is_refused() -> None:
    link = zipfile.ZipInfo("first.txt")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    with pytest.raises(BundleError, match="link"):
        decode(zipped([(link, b"/etc/passwd")]))


@pytest.mark.parametrize(
    ("offset", "form", "value", "reason"),
    [
        (8, "<H", 0x1, "encrypted"),
        (8, "<H", 0x8, "data descriptor"),
        (8, "<H", 0x800, "laid out"),
        (10, "<H", 8, "compressed"),
        (16, "<L", 0, "damaged"),
        (20, "<L", 2, "stored ones"),
        (24, "<L", 0xFFFFFFFF, "stored ones"),
        (28, "<H", 60_000, "malformed"),
        (30, "<H", 60_000, "malformed"),
        (42, "<L", 1, "damaged"),
        (42, "<L", 0xFFFFFFFF, "damaged"),
    ],
)
def test_a_directory_entry_that_lies_is_refused(
    offset: int, form: str, value: int, reason: str
) -> None:
    with pytest.raises(BundleError, match=reason):
        decode(patched(encode_archive(CONTENT), b"PK\x01\x02", offset, form, value))


@pytest.mark.parametrize(
    ("offset", "value"), [(6, 0x8), (8, 8), (10, 1), (14, 0), (18, 9), (26, 3)]
)
def test_a_local_header_that_differs_from_the_directory_is_refused(offset: int, value: int) -> None:
    with pytest.raises(BundleError):
        decode(patched(encode_archive(CONTENT), b"PK\x03\x04", offset, "<H", value))


@pytest.mark.parametrize(
    ("offset", "form", "value", "reason"),
    [
        (10, "<H", 0xFFFF, "zip64"),
        (16, "<L", 0xFFFFFFFF, "zip64"),
        (12, "<L", 0xFFFFFFFF, "zip64"),
        (4, "<H", 1, "contradicts"),
        (10, "<H", 2, "contradicts"),
        (16, "<L", 0, "contradicts"),
        (20, "<H", 1, "contradicts"),
    ],
)
def test_an_end_record_that_lies_is_refused(
    offset: int, form: str, value: int, reason: str
) -> None:
    with pytest.raises(BundleError, match=reason):
        decode(patched(encode_archive(CONTENT), b"PK\x05\x06", offset, form, value))


def test_comments_and_extra_fields_are_refused() -> None:
    entry = zipfile.ZipInfo("first.txt")
    entry.comment = b"hello"
    with pytest.raises(BundleError, match="comment"):
        decode(zipped([(entry, b"one")]))


def test_an_oversized_member_is_refused() -> None:
    with pytest.raises(BundleError, match="11 bytes where 10 are allowed"):
        decode(encode_archive({"first.txt": b"x" * 11}))


def test_more_entries_than_a_bundle_can_have_are_refused_unseen() -> None:
    with pytest.raises(BundleError, match="holds 100 members"):
        decode(encode_archive({str(number): b"" for number in range(100)}))


@given(position=st.integers(0), bit=st.integers(0, 7))
def test_no_bit_can_be_changed(position: int, bit: int) -> None:
    raw = bytearray(encode_archive(CONTENT))
    raw[position % len(raw)] ^= 1 << bit
    with pytest.raises(BundleError):
        decode(bytes(raw))


@given(raw=st.binary(max_size=300))
def test_any_bytes_are_refused_as_a_bundle_error(raw: bytes) -> None:
    with pytest.raises(BundleError):
        decode(b"PK\x03\x04" + raw)


@given(raw=st.binary(max_size=200), count=st.integers(0, 4))
def test_any_central_directory_is_refused_as_a_bundle_error(raw: bytes, count: int) -> None:
    start = b"PK\x03\x04"
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, len(raw), len(start), 0)
    with pytest.raises(BundleError):
        decode(start + raw + end)
