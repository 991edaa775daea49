"""SECURITY.md says what is so: its commands run as printed, and its names and numbers exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from edgexnas.bundle import GatePolicy, TrustStore
from edgexnas.bundle.rollback import STATE_FILE
from edgexnas.bundle.trust import SOON
from edgexnas.bundle.validity import CLOCK_TOLERANCE
from edgexnas.cli import main

PAGE = (Path(__file__).parents[1] / "SECURITY.md").read_text()


def test_the_commands_run_as_printed_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```console\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    commands = "".join(blocks).splitlines()
    assert len(commands) == 10
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "edgexnas"
        assert main(arguments) == 0, command
    store = TrustStore.load("trust", state=False)
    assert store.trust_list is not None
    assert list(store.trust_list.keys) == ["second"]
    assert len(store.trust_list.revoked_keys) == 1


def test_the_numbers_are_those_of_the_program() -> None:
    policy = GatePolicy()
    assert f"{policy.maximum_gate_px} px, {policy.maximum_gate_rad} rad" in PAGE
    assert f"more than {CLOCK_TOLERANCE.seconds // 60} minutes" in PAGE
    assert f"the last {SOON.days} days" in PAGE
    assert f"`{STATE_FILE}`" in PAGE


def test_it_fits_on_two_pages() -> None:
    assert len(PAGE.split()) < 1200
