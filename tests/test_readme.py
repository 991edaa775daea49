from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def environment() -> dict[str, str]:
    """Commands of this interpreter first, as in an activated virtual environment."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def test_the_code_blocks_run_as_printed_in_their_order(tmp_path: Path) -> None:
    blocks = re.findall(r"^```(python|bash)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert [language for language, _ in blocks] == ["bash", "python", "bash", "python"]
    for language, code in blocks:
        command = [sys.executable, "-c", code] if language == "python" else ["bash", "-ec", code]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment(), capture_output=True, text=True
        )
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
    assert (tmp_path / "bragg.edgex").exists()


NAMING = ["Makefile", "README.md", "device/README.md", "host/README.md"]
NAMING += [f"docs/results/{page.name}" for page in (ROOT / "docs/results").glob("*.md")]


@pytest.mark.parametrize("document", NAMING)
def test_every_program_that_a_document_names_exists(document: str) -> None:
    text = (ROOT / document).read_text()
    named = set(
        re.findall(r"(?<![\w/])(?:device|host|samples)/\w+\.(?:py|sh|toml|service)\b", text)
    )
    assert {name for name in named if not (ROOT / name).exists()} == set()
