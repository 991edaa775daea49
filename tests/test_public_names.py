"""What others build on stays: names, commands, options and keys, as `public_names.json` pins them.

After a change that is meant: ``python tests/test_public_names.py`` writes the file anew and says
what changed. Everything is found from outside, so that modules inside may move.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import io
import json
import pkgutil
import re
import runpy
import subprocess
import sys
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from edgexnas.cli import main
from edgexnas.errors import ConfigurationError
from edgexnas.host import PeakDataset, load_configuration, optimize

ROOT = Path(__file__).resolve().parents[1]
PINNED_FILE = Path(__file__).with_name("public_names.json")
UPDATE = "run `python tests/test_public_names.py` if that is meant, and commit what it writes"

Names = dict[str, list[str]]
"""Sorted names by what holds them: a module, a command, a table."""

EXPORTING = (
    "edgexnas",
    "edgexnas.bragg",
    "edgexnas.bundle",
    "edgexnas.device",
    "edgexnas.errors",
    "edgexnas.frames",
    "edgexnas.host",
    "edgexnas.merging",
    "edgexnas.ptycho",
    "edgexnas.simulate",
    "edgexnas.spots",
    "edgexnas.testing",
)

GUIDES = [ROOT / "README.md", ROOT / "host/README.md", ROOT / "device/README.md"]
GUIDES += sorted((ROOT / "docs/tutorials").glob("*.md")) + sorted(
    (ROOT / "docs/how-to").glob("*.md")
)
GUIDES += sorted((ROOT / "host").glob("*.toml")) + sorted((ROOT / "samples").glob("*.toml"))
SAMPLES = sorted((ROOT / "samples").glob("*.py"))
SCRIPTS = sorted((ROOT / "host").glob("*.py")) + sorted((ROOT / "device").glob("*.py"))
PAGES = sorted((ROOT / "docs").rglob("*.md"))

UNKNOWN = "no_such_name"


@functools.cache
def pinned() -> dict[str, Names]:
    content: dict[str, Names] = json.loads(PINNED_FILE.read_text())
    return content


# What modules export, and what guides and samples import


def exports() -> Names:
    return {module: sorted(import_module(module).__all__) for module in EXPORTING}


@functools.cache
def documented_imports() -> frozenset[tuple[str, str]]:
    """(module, name) of all that guides and samples import or name."""
    found: set[tuple[str, str]] = set()
    for sample in SAMPLES:
        found |= imported(sample.read_text())
    for guide in GUIDES:
        text = guide.read_text()
        for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            found |= imported(block)
        prose = re.sub(r"^```python\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        for dotted in re.findall(r"(?<![\w./-])(?<!-m )edgexnas(?:\.\w+)+", prose):
            if not (guide.parent / dotted).exists():
                found.add(split_last(dotted))
    return frozenset(found)


def imported(code: str) -> set[tuple[str, str]]:
    found: set[tuple[str, str]] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and is_ours(node.module or ""):
            found |= {(node.module or "", alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            dotted = [alias.name for alias in node.names if "." in alias.name]
            found |= {split_last(name) for name in dotted if is_ours(name)}
    return found


def is_ours(module: str) -> bool:
    return module.split(".")[0] == "edgexnas"


def split_last(dotted: str) -> tuple[str, str]:
    module, _, name = dotted.rpartition(".")
    return module, name


def can_be_imported(module: str, name: str) -> bool:
    with warnings.catch_warnings():
        # What has moved may say so.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            pkgutil.resolve_name(f"{module}.{name}")
        except (ImportError, AttributeError):
            return False
    return True


def imports() -> Names:
    """What guides and samples import, and what they did when it was pinned and still works."""
    earlier = {(module, name) for module, names in pinned()["imports"].items() for name in names}
    kept = {pair for pair in earlier if can_be_imported(*pair)}
    by_module = defaultdict(list)
    for module, name in sorted(documented_imports() | kept):
        by_module[module].append(name)
    return dict(by_module)


# Programs: python -m, commands and options


class _ParserFoundError(BaseException):
    """Carries the parser out of a program that was about to parse its arguments."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


@functools.cache
def parser_of(module: str) -> argparse.ArgumentParser:
    """The parser that ``python -m module`` parses its arguments with."""

    def stop(parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        raise _ParserFoundError(parser)

    with patch("argparse.ArgumentParser.parse_args", stop), warnings.catch_warnings():
        # runpy warns of a module that was imported before, and an alias of its new name.
        warnings.simplefilter("ignore", RuntimeWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            runpy.run_module(module, run_name="__main__")
        except _ParserFoundError as found:
            return found.parser
    raise AssertionError(f"python -m {module} parses no arguments")


def commands_of(parser: argparse.ArgumentParser, name: str) -> Iterator[tuple[str, list[str]]]:
    """Each command with its options and, in angle brackets, its positional arguments."""
    words: list[str] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command, inner in action.choices.items():
                yield from commands_of(inner, f"{name} {command}")
        elif action.option_strings:
            words += action.option_strings
        else:
            words.append(f"<{action.metavar or action.dest}>")
    yield name, sorted(words)


def help_texts(parser: argparse.ArgumentParser) -> Iterator[str]:
    yield parser.format_help()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from help_texts(inner)


@functools.cache
def documented_programs() -> frozenset[str]:
    """Modules that guides, pages, samples, scripts and help texts run with ``python -m``."""
    places = [*GUIDES, *PAGES, *SAMPLES, *SCRIPTS]
    texts = [*(place.read_text() for place in places), *help_texts(parser_of("edgexnas.cli"))]
    named = {
        module.rstrip(".")
        for text in texts
        for module in re.findall(r"""python3?["',\s]+-m["',\s]+(edgexnas[\w.]*)""", text)
    }
    # A package with a __main__ invites to be run.
    package = ROOT / "edgexnas"
    runnable = {".".join(p.parent.relative_to(ROOT).parts) for p in package.rglob("__main__.py")}
    return frozenset(named | runnable)


def programs() -> Names:
    kept = {module for module in pinned()["programs"]["python -m"] if answers_help(module)}
    return {"python -m": sorted(documented_programs() | kept)}


@functools.cache
def answers_help(module: str) -> bool:
    command = [sys.executable, "-m", module, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode == 0 and "usage:" in done.stdout


def commands() -> Names:
    found = dict(commands_of(parser_of("edgexnas.cli"), "edgexnas"))
    for module in programs()["python -m"]:
        if module != "edgexnas.cli":
            found |= commands_of(parser_of(module), f"python -m {module}")
    return found


# Keys of TOML files, as the messages about an unknown one list them


def offered(message: str) -> list[str]:
    """Names in "...; specify one of a, b, c" or "give key = one of ['a', 'b']"."""
    parts = re.findall(r"; (?:give|specify) (?:\w+ = )?(?:one of )?(.*)", message)
    return sorted(re.findall(r"[\w-]+", parts[-1].replace(" or ", " ")))


def serve_keys() -> Names:
    def ask(text: str, fault: str) -> list[str]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "serve.toml")
            path.write_text(text)
            with contextlib.redirect_stderr(io.StringIO()) as said:
                assert main(["serve", str(path), "--check"]) == 2
        lines = [line for line in said.getvalue().splitlines() if fault in line]
        return offered(lines[0]) if lines else []

    unknown = f"{UNKNOWN} is unknown; specify"
    found = {"top level": ask(f"{UNKNOWN} = 1", unknown)}
    for key in found["top level"]:
        if names := ask(f"{key} = {{ {UNKNOWN} = 1 }}", unknown):
            found[f"[{key}]"] = names
        for kind in ask(f'{key} = [{{ kind = "{UNKNOWN}" }}]', "unknown kind"):
            names = ask(f'{key} = [{{ kind = "{kind}", {UNKNOWN} = 1 }}]', unknown)
            found[f'[[{key}]] kind = "{kind}"'] = names
    return found


def search_keys() -> Names:
    def ask(call: Callable[[], object]) -> list[str]:
        with pytest.raises(ConfigurationError, match=f"{UNKNOWN}.*; specify") as refusal:
            call()
        return offered(str(refusal.value))

    with tempfile.TemporaryDirectory() as folder:
        path, output = Path(folder, "search.toml"), Path(folder, "run")
        path.write_text(f"{UNKNOWN} = 1")
        found = {"top level": ask(lambda: load_configuration(path))}
        for space in ask(lambda: load_configuration(space_file(folder, f'like = "{UNKNOWN}"'))):
            narrowed = space_file(folder, f'like = "{space}"\n{UNKNOWN} = 1')
            names = ask(functools.partial(load_configuration, narrowed))
            found[f'[spaces.*] like = "{space}"'] = sorted(["like", *names])
        for task in ("bragg", "ptycho"):
            found[f'[constraints], objectives of task = "{task}"'] = ask(
                functools.partial(
                    optimize, task, data="none", output=output, constraints={UNKNOWN: 1}
                )
            )
        on_peaks = functools.partial(optimize, "bragg", data=blank_peaks(), output=output)
        for search in ask(lambda: on_peaks(search=UNKNOWN)):
            found[f'[search_options] of search = "{search}"'] = ask(
                functools.partial(on_peaks, search=search, search_options={UNKNOWN: 1})
            )
    return found


def space_file(folder: str, table: str) -> Path:
    path = Path(folder, "spaces.toml")
    path.write_text(f"[spaces.narrowed]\n{table}\n")
    return path


def blank_peaks() -> PeakDataset:
    """As few peaks as a search takes: it looks at its strategy's options last of all."""
    frames, each = 240, 2
    count = frames * each
    return PeakDataset(
        counts=np.ones((count, 11, 11), np.float32),
        offsets_px=np.zeros((count, 2), np.float32),
        maxima=np.full((count, 2), 32, np.int32),
        frame=np.repeat(np.arange(frames, dtype=np.int32), each),
        flags=np.zeros(count, np.uint8),
        r2=np.ones(count, np.float32),
        good=np.ones(count, np.bool_),
        frames=frames,
        shape=(64, 64),
        source="blank",
    )


SECTIONS: dict[str, Callable[[], Names]] = {
    "exports": exports,
    "imports": imports,
    "programs": programs,
    "commands": commands,
    "serve_keys": serve_keys,
    "search_keys": search_keys,
}


@functools.cache
def found(section: str) -> Names:
    return SECTIONS[section]()


def entries(names: Names) -> set[str]:
    """One entry for each holder, which may hold nothing, and for each name in it."""
    return set(names) | {f"{holder}: {name}" for holder, held in names.items() for name in held}


def listed(lines: Iterable[str]) -> str:
    return "".join(f"\n  {line}" for line in sorted(lines))


@pytest.mark.parametrize("section", SECTIONS)
def test_nothing_public_vanishes(section: str) -> None:
    vanished = entries(pinned()[section]) - entries(found(section))
    assert not vanished, f"{section}: no longer there; {UPDATE}:{listed(vanished)}"


@pytest.mark.parametrize("section", SECTIONS)
def test_whatever_becomes_public_is_pinned(section: str) -> None:
    new = entries(found(section)) - entries(pinned()[section])
    assert not new, f"{section}: new; {UPDATE}:{listed(new)}"


@pytest.mark.parametrize("module", EXPORTING)
def test_every_exported_name_can_be_got(module: str) -> None:
    exporting = import_module(module)
    missing = [name for name in exporting.__all__ if not hasattr(exporting, name)]
    assert not missing, f"{module}: in __all__, and not there:{listed(missing)}"


def test_whatever_guides_and_samples_import_can_be_imported() -> None:
    missing = [".".join(pair) for pair in documented_imports() if not can_be_imported(*pair)]
    assert not missing, f"documented, and not there:{listed(missing)}"


def test_every_documented_program_answers_help() -> None:
    silent = [module for module in documented_programs() if not answers_help(module)]
    assert not silent, f"documented, and no help with status 0 from python -m:{listed(silent)}"


def update() -> None:
    """Write what is public now, and say what changed."""
    if not PINNED_FILE.exists():
        PINNED_FILE.write_text(json.dumps({"imports": {}, "programs": {"python -m": []}}))
    for section in SECTIONS:
        before, now = entries(pinned().get(section, {})), entries(found(section))
        for change, lines in (("vanished", before - now), ("new", now - before)):
            if lines:
                print(f"{section}: {change}:{listed(lines)}")  # noqa: T201
    content = {section: found(section) for section in SECTIONS}
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False)
    PINNED_FILE.write_text(f"{text}\n")


if __name__ == "__main__":
    update()
