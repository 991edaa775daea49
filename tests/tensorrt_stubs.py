"""Put TensorRT's type stubs where mypy finds them: `python tests/tensorrt_stubs.py`.

tensorrt-stubs cannot be an ordinary dependency: it asks for TensorRT itself, it lays down packages
that Python takes for TensorRT, and its 10.13 has signatures that are no Python. So its wheel is
fetched alone, repaired, and installed as stub packages (PEP 561), which only type checkers see.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

STUBS = "tensorrt-stubs==10.13.0.35.1"
MEMBERS = {
    "tensorrt/__init__.pyi": "tensorrt-stubs/__init__.pyi",
    "tensorrt_bindings/__init__.pyi": "tensorrt_bindings-stubs/__init__.pyi",
    "tensorrt_bindings/tensorrt.pyi": "tensorrt_bindings-stubs/tensorrt.pyi",
}


def main() -> None:
    site = Path(sysconfig.get_path("purelib"))
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
        subprocess.run([*pip, "--no-deps", "--dest", folder, STUBS], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for member, place in MEMBERS.items():
                target = site / place
                target.parent.mkdir(exist_ok=True)
                target.write_text(repaired(archive.read(member).decode()))


def repaired(stub: str) -> str:
    """Make Python of a stub: a parameter named `in`, a default before none, a library beside."""
    stub = re.sub(r"([(,] )in: ", r"\1in_: ", stub)
    stub = stub.replace(
        "channel_axis: int) -> IScaleLayer", "channel_axis: int = ...) -> IScaleLayer"
    )
    stub = stub.replace("import tensorrt_libs as tensorrt_libs\n", "")
    ast.parse(stub)
    return stub


if __name__ == "__main__":
    main()
