"""The package has no import circle, and a frame passes few files; scripts in tools/ show both."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
MOST_FILES = {"serve": 30, "stream": 18, "process": 14}

LoadModule = Callable[[Path], ModuleType]
WritePackage = Callable[[dict[str, str]], Path]


@pytest.fixture(scope="module")
def structure(load_module: LoadModule) -> ModuleType:
    return load_module(ROOT / "tools" / "structure.py")


@pytest.fixture(scope="module")
def line_counts(load_module: LoadModule) -> ModuleType:
    return load_module(ROOT / "tools" / "count_lines.py")


@pytest.fixture
def write_package(tmp_path: Path) -> WritePackage:
    """Write the files of a package "p"; folders are packages."""

    def write(files: dict[str, str]) -> Path:
        for name, text in files.items():
            path = tmp_path / "p" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))
            for folder in path.relative_to(tmp_path).parents[:-1]:
                (tmp_path / folder / "__init__.py").touch()
        return tmp_path / "p"

    return write


def test_the_package_has_no_import_circle(structure: ModuleType) -> None:
    _, running, _ = structure.all_circles(ROOT / "edgexnas")
    assert running.modules == []
    assert running.siblings == []


@pytest.mark.parametrize("way", MOST_FILES)
def test_a_frame_passes_few_files(structure: ModuleType, way: str) -> None:
    files = structure.frame_path(way)
    assert len(files) <= MOST_FILES[way]
    assert all((ROOT / file).is_file() for file in files)
    passed = ["compiled_loops", "onnx"] + ["ledger", "hdf5"] * (way == "serve")
    assert [word for word in passed if not any(word in file for file in files)] == []
    # What only makes the frames, or opens and closes, is not on the way.
    assert not any(file.startswith(("edgexnas/simulate/", "edgexnas/bundle/")) for file in files)


def test_an_import_inside_a_function_closes_a_circle(
    structure: ModuleType, write_package: WritePackage
) -> None:
    package = write_package(
        {"a.py": "import p.b", "b.py": "def f():\n    if f:\n        from p import a"}
    )
    imports, running, _ = structure.all_circles(package)
    assert running.modules == [("p.a", "p.b")]
    assert structure.describe(("p.a", "p.b"), imports, None) == [
        "p.a -> p.b -> p.a",
        "    p.a:1 imports p.b",
        "    p.b:3 imports p.a, in a function",
    ]


def test_an_import_for_typing_closes_a_circle_apart(
    structure: ModuleType, write_package: WritePackage
) -> None:
    package = write_package(
        {
            "a.py": "from . import b",
            "b.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .a import A",
        }
    )
    _, running, for_typing = structure.all_circles(package)
    assert not any(running)
    assert for_typing.modules == [("p.a", "p.b")]


def test_a_name_that_a_package_gives_on_first_use_leads_to_its_module(
    structure: ModuleType, write_package: WritePackage
) -> None:
    lazy = """
        from typing import TYPE_CHECKING
        if TYPE_CHECKING:
            from p.room.a import A
        def __getattr__(name): ...
    """
    package = write_package(
        {"room/__init__.py": lazy, "room/a.py": "import p.b", "b.py": "from p.room import A"}
    )
    _, running, for_typing = structure.all_circles(package)
    assert running.modules == [("p.b", "p.room.a")]
    assert not any(for_typing)


def test_a_package_may_import_its_modules_and_they_one_another(
    structure: ModuleType, write_package: WritePackage
) -> None:
    files = {"room/__init__.py": "from p.room.a import A", "room/a.py": "import p.room.b"}
    _, running, _ = structure.all_circles(write_package({**files, "room/b.py": ""}))
    assert not any(running)
    _, running, _ = structure.all_circles(write_package({"room/b.py": "from p.room import A"}))
    assert ("p.room", "p.room.a", "p.room.b") in running.modules


def test_rooms_make_a_circle_where_their_modules_make_none(
    structure: ModuleType, write_package: WritePackage
) -> None:
    package = write_package(
        {
            "wing/one/a.py": "import p.wing.two.b",
            "wing/two/b.py": "",
            "wing/two/c.py": "import p.wing.one.d",
            "wing/one/d.py": "",
        }
    )
    _, running, _ = structure.all_circles(package)
    assert running.modules == []
    assert running.siblings == [("p.wing.one", "p.wing.two")]


def test_circles_that_share_a_module_are_one_knot(structure: ModuleType) -> None:
    assert structure.count_knots([("a", "b"), ("c", "d"), ("b", "e"), ("d", "c", "f")]) == 2


def test_a_line_is_code_docstring_comment_or_blank(line_counts: ModuleType) -> None:
    source = '"""Module.\n\nMore.\n"""\n\n# Why.\nA = """\n\n"""  # after code\n"""About A."""\n'
    assert line_counts.count_lines(source) == {"docstring": 5, "blank": 1, "comment": 1, "code": 3}
