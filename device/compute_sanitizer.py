"""Run a script of this folder under compute-sanitizer."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence


def sanitize(tool: str, script: str, arguments: Sequence[str], *options: str) -> tuple[bool, str]:
    """Run a script under a tool of compute-sanitizer, print and give its verdict."""
    path = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    command = [path, *options, "--tool", tool, "--error-exitcode", "9", sys.executable, script]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    verdicts = [line.strip("= ") for line in done.stdout.splitlines() if "SUMMARY" in line]
    said = f"compute-sanitizer {tool}: {' '.join(verdicts) or 'no verdict'}"
    print(f"{said} (exit status {done.returncode})", flush=True)
    if done.returncode:
        print(done.stdout[-3000:], done.stderr[-1500:])
    return done.returncode == 0, said
