from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgexnas.errors import ConfigurationError
from edgexnas.toml_files import line_of, read_toml


def test_a_file_gives_its_text_and_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('# µ\nx = "é"\n', encoding="utf-8")
    text, document = read_toml(tmp_path / "a.toml")
    assert document == {"x": "é"}
    assert line_of(text, ("x",)) == 2


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"x = \ny = 1", r"is not TOML: .*line 1"),
        (b"\xff\xfe", "is no text in UTF-8"),
        (b"x = " + b"[" * 100_000, "nested too deeply|is not TOML"),
    ],
)
def test_what_is_no_toml_is_a_sentence(tmp_path: Path, content: bytes, named: str) -> None:
    (tmp_path / "a.toml").write_bytes(content)
    with pytest.raises(ConfigurationError, match=named):
        read_toml(tmp_path / "a.toml")


def test_what_is_no_file_is_a_sentence(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(ConfigurationError, match=r"cannot be read \(it is no regular file\)"):
            read_toml(path)
    with pytest.raises(ConfigurationError, match=r"cannot be read \(No such file"):
        read_toml(tmp_path / "nothing.toml")


@given(st.lists(st.sampled_from(["a", "b", "c", "d"]), unique=True), st.integers(0, 3))
def test_each_key_stands_in_the_line_that_sets_it(names: list[str], blank: int) -> None:
    text = "".join("\n" * blank + f"{name} = [\n  1,\n]\n" for name in names)
    for index, name in enumerate(names):
        assert line_of(text, (name,)) == index * (3 + blank) + blank + 1
