"""Build the documentation site: `python tools/build_site.py`, or `make docs`.

Pages are Markdown that reads on its own. They are staged in build/site/source with links to files
outside docs/ turned into pages, and beside what is generated: API, commands, keys, metrics, errors.
Then Sphinx runs, and a warning is an error.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import itertools
import json
import os
import posixpath
import re
import shutil
import sys
import typing
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

MODULES = (
    "edgexnas.device",
    "edgexnas.device.serving",
    "edgexnas.device.sources",
    "edgexnas.device.power",
    "edgexnas.device.benchmark",
    "edgexnas.host",
    "edgexnas.bragg",
    "edgexnas.ptycho",
    "edgexnas.frames",
    "edgexnas.bundle",
    "edgexnas.simulate",
    "edgexnas.testing",
)
"""What has a page of its own in the API."""

ADOPTED = {
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
    "CHANGELOG.md": "project/changelog.md",
    "README.md": "project/readme.md",
    "device/README.md": "project/device.md",
    "host/README.md": "project/host.md",
}
"""Markdown outside docs/ that is a page of the site."""

LANGUAGES = {".py": "python", ".toml": "toml", ".sh": "bash", ".json": "json", ".cu": "cuda"}

CONF = '''
project = "edgexnas"
author = "the authors of edgexnas"
release = {version!r}
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
html_theme = "furo"
html_title = "edgexnas " + release
html_theme_options = {{"navigation_with_keys": True}}
html_show_copyright = False
# Quotes in commands and keys stay as they are typed.
smartquotes = False
html_show_sourcelink = False
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
default_role = "name"
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
# Source files are shown as they are: not all that is valid there is so for a highlighter. Names of
# fields, which Sphinx would link, are those of several classes.
suppress_warnings = ["misc.highlighting_failure", "ref.python"]


def setup(app):
    """In docstrings `Name` and `a.name` link to where they are described; `name` is an argument."""
    from docutils import nodes
    from sphinx.domains.python import PyXRefRole

    linked = PyXRefRole()

    def name_role(name, rawtext, text, lineno, inliner, options=None, content=()):
        if text[0].isupper() or "." in text:
            return linked("py:obj", rawtext, text, lineno, inliner, {{}}, [])
        return [nodes.literal(rawtext, text)], []

    app.add_role("name", name_role)
    app.add_role("py:name", name_role)
'''

LINK = re.compile(r"(?<=\]\()([^)\s]+)(?=\))")


def page_of(target: Path) -> str | None:
    """Where a file of the repository is on the site, without suffix handling; None if nowhere."""
    place = target.relative_to(ROOT).as_posix()
    if place in ADOPTED:
        return ADOPTED[place]
    if place.startswith("docs/"):
        return place.removeprefix("docs/")
    return f"files/{place}.md" if target.is_file() else None


def staged(text: str, source: Path, page: str, wanted: set[Path]) -> str:
    """Rewrite the links of a page; `wanted` gains the files that need one."""

    def rewritten(match: re.Match[str]) -> str:
        link = match.group(1)
        place, _, anchor = link.partition("#")
        if not place or re.match(r"[a-z]+:", place):
            return link
        target = Path(os.path.normpath(source.parent / place))
        if not target.exists():
            # A page that is generated, which has no file here; Sphinx warns if there is none.
            return link
        found = page_of(target)
        if found is None:
            return link
        if found.startswith("files/"):
            wanted.add(target)
        here = posixpath.dirname(page) or "."
        return posixpath.relpath(found, here) + (f"#{anchor}" if anchor else "")

    return LINK.sub(rewritten, text)


def tree_of(text: str) -> str:
    """Make a hidden tree of the pages that an index links, in their order."""
    bullets = "\n".join(line for line in text.splitlines() if line.startswith(("- ", "| [")))
    pages: list[str] = []
    for link in LINK.findall(bullets):
        place = link.partition("#")[0]
        if place.endswith(".md") and place not in pages:
            pages.append(place)
    listed = "\n".join(place.removesuffix(".md") for place in pages)
    return f"\n```{{toctree}}\n:hidden:\n\n{listed}\n```\n"


def api_pages() -> Iterator[tuple[str, str]]:
    """One page a module, with each of its public names."""
    lines = ["# API", "", "Positions are (row, col) in pixels unless a name says otherwise.", ""]
    described: dict[int, str] = {}
    for module in MODULES:
        loaded = import_module(module)
        names = sorted(loaded.__all__, key=str.lower)
        summary = (inspect.getdoc(loaded) or "").split("\n")[0]
        lines.append(f"- [{module}]({module}.md): {summary}")
        # Without the underlines of sections, which would be headings of the page twice.
        told = re.sub(
            r"^(\w+)\n-{3,}$", r"**\1**\n", inspect.getdoc(loaded) or "", flags=re.MULTILINE
        )
        blocks = [f"# {module}\n", f"```{{eval-rst}}\n.. py:module:: {module}\n\n{told}\n```\n"]
        for name in names:
            named = getattr(loaded, name)
            kind = _directive(named)
            if kind == "data":
                blocks.append(f"## {name}\n\n{_data(module, name)}")
                continue
            if id(named) in described:
                blocks.append(
                    f"## {name}\n\n[{described[id(named)]}.{name}]({described[id(named)]}.md)\n"
                )
                continue
            described[id(named)] = module
            members = "\n   :members:" if kind in ("class", "exception") else ""
            block = f".. auto{kind}:: {module}.{name}{members}"
            blocks.append(f"## {name}\n\n```{{eval-rst}}\n{block}\n```\n")
        yield f"reference/{module}.md", "\n".join(blocks)
        lines.append("  " + ", ".join(f"`{name}`" for name in names))
    text = "\n".join(lines)
    yield "reference/api.md", text + tree_of(text)
    errors = import_module("edgexnas.errors")
    blocks = ["# Errors\n", "```{eval-rst}\n.. automodule:: edgexnas.errors\n```\n"]
    for name in sorted(errors.__all__):
        blocks.append(f"```{{eval-rst}}\n.. autoexception:: edgexnas.errors.{name}\n```\n")
    yield "reference/errors.md", "\n".join(blocks)


def _data(module: str, name: str) -> str:
    """Describe a constant or a type by the text that stands below it in the source."""
    tree = ast.parse(Path(import_module(module).__file__ or "").read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    origins = [n.module for n in imports for a in n.names if (a.asname or a.name) == name]
    origin = str(origins[0]) if origins else module
    body = ast.parse(Path(import_module(origin).__file__ or "").read_text()).body
    text = ""
    for node, after in itertools.pairwise([*body, ast.Pass()]):
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        if name in [t.id for t in targets if isinstance(t, ast.Name)] and isinstance(
            after, ast.Expr
        ):
            text = inspect.cleandoc(str(ast.literal_eval(after.value)))
    body_text = "\n".join(f"   {line}" for line in text.splitlines())
    return f"```{{eval-rst}}\n.. py:data:: {module}.{name}\n\n{body_text}\n```\n"


def _directive(named: Any) -> str:
    if inspect.isclass(named):
        return "exception" if issubclass(named, BaseException) else "class"
    return "function" if callable(named) and inspect.isroutine(named) else "data"


def command_page() -> str:
    """All commands, as `--help` prints them."""
    os.environ["COLUMNS"] = "88"
    from edgexnas.cli import build_parser

    def sections(parser: argparse.ArgumentParser, level: int) -> Iterator[str]:
        yield f"{'#' * level} {parser.prog}\n\n```text\n{parser.format_help().rstrip()}\n```\n"
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for inner in action.choices.values():
                    yield from sections(inner, min(level + 1, 4))

    text = "\n".join(sections(build_parser(), 2))
    # The defaults of some options are this machine's.
    return "# Commands\n\n" + text.replace(str(Path.home()), "~")


def serve_page() -> str:
    """Tables and keys of a service's TOML file, with default and meaning."""
    from edgexnas.device.serving import configuration

    lines = ["# TOML keys of a service\n", "```toml"]
    example = (inspect.getdoc(configuration) or "").partition("::\n")[2]
    lines += [line.removeprefix("    ") for line in example.strip("\n").split("\n")]
    lines += [
        "```\n",
        "Paths are relative to the file. `edgexnas serve FILE --check` validates it.\n",
    ]
    top = configuration.ServeConfiguration
    tables: list[tuple[str, Any]] = [("Top level", top)]
    for name, field in top.model_fields.items():
        if inspect.isclass(field.annotation) and hasattr(field.annotation, "model_fields"):
            tables.append((f"[{name}]", field.annotation))
    for sink in typing.get_args(configuration.SinkSettings):
        kind = typing.get_args(sink.model_fields["kind"].annotation)[0]
        tables.append((f'[[sinks]] kind = "{kind}"', sink))
    for heading, table in tables:
        meanings: dict[str, str] = {}
        for ancestor in reversed(table.__mro__):
            meanings |= dict(_attributes(inspect.getdoc(ancestor) or ""))
        lines += [f"## {heading}\n", "| key | default | meaning |", "|---|---|---|"]
        for name, field in table.model_fields.items():
            key = str(field.validation_alias or name)
            required = field.is_required()
            factory = field.default_factory is not None
            default = "required" if required else "" if factory else _written(field.default)
            lines.append(f"| `{key}` | {default} | {meanings.get(name, '')} |")
        lines.append("")
    lines.append("What has no meaning here is as of `Predictor` and the sinks: [API](api.md).")
    return "\n".join(lines)


def _written(value: Any) -> str:
    return f"`{json.dumps(value)}`" if isinstance(value, (str, int, float)) else ""


def _attributes(docstring: str) -> Iterator[tuple[str, str]]:
    """Name and meaning of each entry of the numpydoc section Attributes."""
    section = re.split(r"^Attributes\n-+\n", docstring, flags=re.MULTILINE)[1:]
    if not section:
        return
    body = re.split(r"^\w+\n-+$", section[0], flags=re.MULTILINE)[0]
    for entry in re.split(r"\n(?=\w)", body):
        names, _, meaning = entry.partition("\n")
        told = " ".join(meaning.split()).replace("|", "\\|").replace("``", "`")
        for name in names.split(","):
            yield name.strip(), told


def search_page() -> str:
    """Keys of a search's TOML file, as the program names them."""
    pinned = json.loads((ROOT / "tests/public_names.json").read_text())["search_keys"]
    lines = [
        "# TOML keys of a search\n",
        "Every option of [optimize](edgexnas.host.md), whose arguments say what they mean, is a "
        "key; those of the command line win. An example with comments is "
        "[host/bragg.toml](../files/host/bragg.toml.md).\n",
        "| table | keys |",
        "|---|---|",
    ]
    for table, keys in pinned.items():
        lines.append(f"| `{table}` | {', '.join(f'`{key}`' for key in keys)} |")
    return "\n".join(lines)


def metrics_page() -> str:
    """Names of metrics and PVs, read off a service that has not started."""
    from edgexnas.device.monitoring import metrics, status_pvs
    from edgexnas.device.monitoring.sensors import SensorReading
    from edgexnas.device.monitoring.status import ServiceStatus
    from edgexnas.device.monitoring.watch import Observation

    reading = SensorReading()
    nothing = Observation(ServiceStatus(), (), reading)
    lines = ["# Metrics and PVs\n", "## Prometheus, `/metrics`\n"]
    lines += ["Those of power, temperature and watermark are there once they are known: "]
    lines += ["`edgexnas_rail_power_watts`, `edgexnas_module_power_watts`, "]
    lines += ["`edgexnas_temperature_celsius`, `edgexnas_series_watermark`.\n"]
    lines += ["| name | type | meaning |", "|---|---|---|"]
    for part in (metrics._service, metrics._frames, metrics._source_and_sinks, metrics._flow):
        for family in part(nothing):
            suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
            lines.append(f"| `{family.name}{suffix}` | {family.type} | {family.documentation} |")
    lines += ["\n## Status PVs\n", "Names follow the prefix of `[monitoring] status_pv`.\n"]
    lines += ["| name | type | unit | meaning |", "|---|---|---|---|"]
    for name, pv in status_pvs.pv_values(nothing).items():
        kind = type(pv.value).__name__
        lines.append(f"| `{name}` | {kind} | {pv.units} | {pv.description} |")
    return "\n".join(lines) + "\n"


def file_page(path: Path) -> str:
    """Show a file of the repository."""
    place = path.relative_to(ROOT).as_posix()
    text = path.read_text()
    language = LANGUAGES.get(path.suffix, "text")
    return f"---\norphan: true\n---\n\n# {place}\n\n~~~~{language}\n{text.rstrip()}\n~~~~\n"


def stage(source: Path) -> None:
    """Write the whole source of the site."""
    from edgexnas import __version__

    wanted: set[Path] = {ROOT / "host/bragg.toml"}
    pages: dict[str, str] = {}
    originals = {ROOT / place: page for place, page in ADOPTED.items()}
    for path in sorted((ROOT / "docs").rglob("*.md")):
        originals[path] = path.relative_to(ROOT / "docs").as_posix()
    for path, page in originals.items():
        text = staged(path.read_text(), path, page, wanted)
        if path.name == "index.md":
            text += tree_of(text)
        if page in ("project/readme.md", "project/device.md", "project/host.md"):
            text = f"---\norphan: true\n---\n\n{text}"
        pages[page] = text
    pages |= dict(api_pages())
    pages["reference/commands.md"] = command_page()
    pages["reference/serve-keys.md"] = serve_page()
    pages["reference/search-keys.md"] = search_page()
    pages["reference/metrics.md"] = metrics_page()
    pages |= {f"files/{p.relative_to(ROOT)}.md": file_page(p) for p in sorted(wanted)}
    for page, text in pages.items():
        target = source / page
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    for picture in (ROOT / "docs").rglob("*.png"):
        target = source / picture.relative_to(ROOT / "docs")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(picture, target)
    (source / "conf.py").write_text(CONF.format(version=__version__))


def main() -> int:
    """Stage and build; the status is that of Sphinx."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=ROOT / "build/site", help="folder")
    options = parser.parse_args()
    source = options.output / "source"
    # Anew, because Sphinx would compare pages with those of an earlier build.
    shutil.rmtree(options.output, ignore_errors=True)
    stage(source)
    from sphinx.cmd.build import build_main

    pages = str(options.output / "html")
    return int(build_main(["-b", "html", "-W", "--keep-going", "-q", str(source), pages]))


if __name__ == "__main__":
    sys.exit(main())
