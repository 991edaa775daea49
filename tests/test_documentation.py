"""The pages say what is so: their blocks run as printed, links lead somewhere, results are short.

In tutorials and how-to pages, blocks of `bash` and `python` run in the order of the page in one
empty folder. A block of `toml` or `python` whose first line is `# NAME` is written to that file.
Blocks of `console` need what a test has not; their commands are parsed. The files that how-to
pages begin with are those of `START`.
"""

from __future__ import annotations

import html
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from edgexnas.bundle import generate_keys
from edgexnas.cli import build_parser, main
from edgexnas.host.networks.spaces import resolve_space
from edgexnas.host.search.plan import check_exportable
from edgexnas.simulate import PtychographySettings, save_scan, simulate_scan
from edgexnas.testing import write_centroid_bundle, write_visible_bundle

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
# Grains need ImageD11: `test_tutorials.py`.
TUTORIALS = sorted(p for p in (DOCS / "tutorials").glob("*.md") if p.stem != "grains")
HOW_TO = sorted((DOCS / "how-to").glob("*.md"))
OWN_SPACE = DOCS / "how-to/own-space.md"
STUDIES = sorted(page for page in (DOCS / "results").glob("*.md") if page.stem != "index")
PAGES = sorted(DOCS.rglob("*.md")) + [ROOT / name for name in ("README.md", "CONTRIBUTING.md")]
GENERATED = {
    "api.md", "commands.md", "serve-keys.md", "search-keys.md", "metrics.md", "errors.md"
}  # fmt: skip
MOST_WORDS = 150

Block = tuple[str, str]


def blocks_of(page: Path) -> list[Block]:
    found: list[Block] = re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(), re.M | re.S)
    return found


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def run_page(page: Path, folder: Path) -> None:
    """Run the blocks of a page in a folder, in their order."""
    for language, code in blocks_of(page):
        named = re.match(r"# (\w+\.(?:toml|py))\n", code)
        if language in ("toml", "python") and named:
            (folder / named[1]).write_text(code)
            continue
        if language not in ("bash", "python"):
            continue
        command = [sys.executable, "-c", code] if language == "python" else ["bash", "-ec", code]
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "EDGEXNAS_CACHE": str(folder / "cache")}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what how-to pages begin with: bundles, keys, frames and a scan."""
    folder = tmp_path_factory.mktemp("start")
    private, _ = generate_keys(folder / "keys", private=folder / "signing")
    write_centroid_bundle(folder / "bragg.edgex", signing_key=private)
    frames = str(folder / "frames.h5")
    size = ["--frames", "12", "--shape", "384", "384"]
    assert main(["simulate", "--output", frames, *size]) == 0
    scan = simulate_scan(PtychographySettings(scan_shape_px=(40, 40), step_px=10), seed=1)
    save_scan(scan, folder / "scan.h5")
    write_visible_bundle(folder / "ptycho.edgex", signing_key=private, probe=scan.probe)
    return folder


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", TUTORIALS, ids=name_of)
def test_a_tutorial_runs_as_printed_in_an_empty_folder(page: Path, tmp_path: Path) -> None:
    run_page(page, tmp_path)


# A search and an export in processes of their own: `test_the_space_of_the_how_to_can_be_searched`
# says the same of its space, and `test_samples.py` searches one.
RUN = [pytest.param(p, marks=pytest.mark.long) if p == OWN_SPACE else p for p in HOW_TO]


@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_a_how_to_runs_as_printed(page: Path, start: Path, tmp_path: Path) -> None:
    for path in start.iterdir():
        copy = shutil.copytree if path.is_dir() else shutil.copyfile
        copy(path, tmp_path / path.name)
    run_page(page, tmp_path)


def test_the_space_of_the_how_to_can_be_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = (code for _, code in blocks_of(OWN_SPACE) if code.startswith("# my_spaces.py\n"))
    (tmp_path / "my_spaces.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    (commands,) = (code for language, code in blocks_of(OWN_SPACE) if language == "bash")
    lines = [shlex.split(line) for line in commands.splitlines()]
    asked = [build_parser().parse_args(line[line.index("edgexnas") + 1 :]) for line in lines]
    assert [options.command for options in asked] == [
        "simulate", "label", "optimize", "keys", "export"
    ]  # fmt: skip
    spaces = [resolve_space(name, task="bragg") for name in asked[2].space]
    check_exportable(spaces)
    assert [space.name for space in spaces] == ["pooled"]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_that_need_a_machine_are_commands_of_the_program(page: Path) -> None:
    consoles = [code for language, code in blocks_of(page) if language == "console"]
    for line in "".join(consoles).replace("\\\n", " ").splitlines():
        words = [w.replace("$SLURM_ARRAY_TASK_ID", "1") for w in shlex.split(line, comments=True)]
        if words[:1] and Path(words[0]).name == "edgexnas":
            if words[1:2] in (["label"], ["predict"], ["optimize"], ["bench"], ["verify"]):
                build_parser().parse_args(words[1:])
        elif words[:1] == ["python"] and words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file(), line


@pytest.mark.parametrize("page", [*TUTORIALS, *HOW_TO], ids=name_of)
def test_every_block_says_what_it_is(page: Path) -> None:
    fences = re.findall(r"^```(\w*)", page.read_text(), re.M)[::2]
    assert set(fences) <= {"bash", "python", "toml", "console"}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_of_a_page_leads_to_a_file_and_a_heading(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        place, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link) or (page.parent.name == "reference" and place in GENERATED):
            continue
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), f"{name_of(page)}: {link}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.M)
            anchors = {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}
            assert anchor in anchors, f"{name_of(page)}: {link}"


def test_every_page_is_reached_from_an_index() -> None:
    indexes = [*DOCS.rglob("index.md")]
    linked = {
        (index.parent / link.partition("#")[0]).resolve()
        for index in indexes
        for link in re.findall(r"\]\(([^)\s]+)\)", index.read_text())
    }
    missing = [name_of(page) for page in DOCS.rglob("*.md") if page not in linked]
    assert missing == ["docs/index.md"]


def words_of(page: Path) -> int:
    """Words of the prose: without tables, code, pictures, and targets of links."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    lines = [line for line in text.splitlines() if not line.startswith(("|", "!["))]
    text = re.sub(r"`[^`]*`|(?<=\])\([^)]*\)", "", "\n".join(lines))
    return len(re.findall(r"[^\W\d_][\w'’-]*", text))


@pytest.mark.parametrize("page", STUDIES, ids=name_of)
def test_a_study_is_a_table_with_few_words(page: Path) -> None:
    assert words_of(page) <= MOST_WORDS
    assert "|---" in page.read_text().replace(" ", "")


def test_the_readme_is_read_in_two_minutes() -> None:
    assert (ROOT / "README.md").stat().st_size <= 6_000


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the site's pages, built without a warning."""
    pytest.importorskip("sphinx", reason="the extra docs is not installed")
    folder = tmp_path_factory.mktemp("site") / "site"
    command = [sys.executable, ROOT / "tools/build_site.py", "--output", folder]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "html"


def content_of(page: Path) -> str:
    """The HTML of a page's own text, without navigation."""
    text = page.read_text()
    return text[text.index("<article") : text.index("</article>")]


def near_pages(site: Path) -> set[Path]:
    """Pages at most two clicks from the front page, by links of their text."""
    found, newest = {site / "index.html"}, {site / "index.html"}
    for _ in range(2):
        links = {
            (page.parent / link.partition("#")[0]).resolve()
            for page in newest
            for link in re.findall(r'href="([^":?]+)"', content_of(page))
        }
        newest = {link for link in links if link.suffix == ".html" and link.is_file()} - found
        found |= newest
    return found


def test_the_site_builds_without_a_warning(site: Path) -> None:
    for page in ("index", "reference/commands", "reference/edgexnas.device", "results/index"):
        assert (site / f"{page}.html").is_file()


def test_ninety_of_a_hundred_questions_are_answered_within_two_clicks(site: Path) -> None:
    tables = tomllib.loads((ROOT / "tests/lookups.toml").read_text())
    questions = {q: answer for table in tables.values() for q, answer in table.items()}
    assert len(questions) == 100
    texts = [
        " ".join(html.unescape(re.sub(r"<[^>]+>", "", content_of(page))).split()).lower()
        for page in near_pages(site)
    ]
    missing = [
        question
        for question, answers in questions.items()
        if not any(a.lower() in text for a in answers.split("|") for text in texts)
    ]
    assert len(missing) <= 10, missing
