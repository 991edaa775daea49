"""Install, verify and predict on an emulated aarch64, and compare with this machine.

    python device/emulate_aarch64.py runs/demo/bragg.edgex runs/demo/frames.h5 runs/demo/keys \
        --root build/aarch64 --python310 python3.10 --output docs/results

Needs Debian's packages mmdebstrap and qemu-user-static, a Python 3.10 of this machine for its
standard library, and `python -m build`; neither root nor a container. The interpreter is the one
that aarch64 wheels of cx_Freeze carry, linked as wheels for manylinux expect it. What the extra
`device` takes from JetPack's CUDA, pycuda and cuda-bindings, is left out.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PathDistribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from edgexnas.bundle import read_manifest
from edgexnas.whole_files import write_whole

HERE = Path(__file__).resolve().parents[1]
QEMU = "qemu-aarch64-static"
# The last with the interpreter of 3.10.13; later ones carry none of 3.10.
INTERPRETER = "cx_Freeze==6.15.16"
FROM_JETPACK = {"pycuda", "cuda-bindings"}
LISTED = (
    "edgexnas", "numpy", "pydantic", "onnx", "onnxruntime", "cryptography", "h5py", "hdf5plugin",
    "numba",
)  # fmt: skip
STARTUP = '''"""Run what the command line says, as `python` does: -c CODE, -m MODULE."""
import os, runpy, sys

def init():
    home = os.path.dirname(sys.executable)
    sys.frozen, sys.prefix, sys.exec_prefix, sys.base_prefix = False, home, home, home
    sys.path[:] = [os.path.join(home, "lib", part) for part in ("", "lib-dynload", "site")]

def run():
    kind, what, *rest = sys.argv[1:]
    sys.argv = [what if kind == "-m" else kind, *rest]
    if kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
'''

Figures = dict[str, Any]


@contextmanager
def timed(figures: Figures, step: str) -> Iterator[None]:
    """Note the seconds of a step: on the clock, and of the processor in its programs."""
    print(f"{step} ...", file=sys.stderr, flush=True)
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    yield
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    figures["steps"].append(
        {"step": step, "wall_s": round(time.monotonic() - began, 1), "cpu_s": round(cpu_s, 1)}
    )


def run(*command: str | Path) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def make_root(root: Path) -> None:
    """Unpack the libraries of Debian for arm64 that wheels need; nothing in it is started."""
    packages = "--include=libc6,libstdc++6,zlib1g"
    run("mmdebstrap", "--variant=extract", "--architectures=arm64", packages, "bookworm", root)


def make_python(root: Path, python310: str) -> Path:
    """Put the interpreter and the standard library of Python 3.10 together; give its place."""
    home = root / "opt/python"
    library, folder = home / "lib", root / "opt/wheels"
    download: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        folder,
    ]
    platform = ["--platform", "manylinux2014_aarch64", "--python-version", "310"]
    run(*download, "--only-binary=:all:", *platform, INTERPRETER)
    with zipfile.ZipFile(next(folder.glob("cx_Freeze-*.whl"))) as wheel:
        wheel.extractall(folder / "cx_Freeze")
    bases = folder / "cx_Freeze/cx_Freeze/bases"
    code = "import sysconfig; print(sysconfig.get_path('stdlib'), sysconfig.get_platform())"
    standard, machine = run(python310, "-c", code).split()
    passed = shutil.ignore_patterns("lib-dynload", "site-packages", "test", "config-*", "*.pyc")
    shutil.copytree(standard, library, ignore=passed)
    shutil.copytree(bases / "lib-dynload", library / "lib-dynload")
    # Modules look for their libraries beside their folder, the interpreter in its lib.
    shutil.copytree(bases / "lib", library / "lib")
    shutil.copytree(bases / "lib", library, dirs_exist_ok=True)
    (values,) = library.glob("_sysconfigdata_*.py")
    here, there = machine.removeprefix("linux-"), "aarch64"
    values.with_name(values.name.replace(here, there)).write_text(
        values.read_text().replace(here, there)
    )
    (library / "__startup__.py").write_text(STARTUP)
    with zipfile.ZipFile(next((library / "ensurepip/_bundled").glob("pip-*.whl"))) as pip:
        pip.extractall(library / "site")
    (base,) = bases.glob("console-cpython-310-*")
    shutil.copy(base, home / "python")
    (home / "python").chmod(0o755)
    return home / "python"


def requirements(wheel: Path) -> list[str]:
    """List what the extra `device` needs on Python 3.10, without what JetPack brings."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = {Path(name).parts[0] for name in archive.namelist() if ".dist-info/" in name}
        found = PathDistribution(zipfile.Path(archive, f"{name}/")).requires or []
    there = {"platform_machine": "aarch64", "python_version": "3.10", "extra": "device"}
    needed = map(Requirement, found)
    return [
        f"{one.name}{one.specifier}"
        for one in needed
        if one.name not in FROM_JETPACK and (one.marker is None or one.marker.evaluate(there))
    ]


def differences(here: Path, there: Path) -> Figures:
    """Compare two tables of peaks.

    Raises
    ------
    SystemExit
        If they do not list the same peaks with the same flags.
    """
    with here.open() as first, there.open() as second:
        ours, theirs = list(csv.DictReader(first)), list(csv.DictReader(second))
    if [(p["frame"], p["flags"]) for p in ours] != [(p["frame"], p["flags"]) for p in theirs]:
        raise SystemExit(f"{here} and {there} do not list the same peaks")
    found: Figures = {"peaks": len(ours), "frames": len({p["frame"] for p in ours})}
    for column in ("row_px", "col_px", "row_interval_px", "col_interval_px", "counts"):
        found[f"largest_{column}"] = round(
            max(
                abs(float(a[column]) - float(b[column])) for a, b in zip(ours, theirs, strict=True)
            ),
            6,
        )
    return found


def measure(options: argparse.Namespace) -> Figures:
    root = options.root.resolve()
    figures: Figures = {
        "steps": [],
        "hardware": hardware(),
        "qemu": run(QEMU, "--version").split()[2],
    }
    with timed(figures, "libraries of Debian 12 for arm64"):
        make_root(root)
    with timed(figures, "interpreter and standard library"):
        python = make_python(root, options.python310)
    wheels = root / "opt/built"
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", wheels, HERE)
    (wheel,) = wheels.glob("edgexnas-*.whl")
    emulated: list[str | Path] = [QEMU, "-L", root, python]
    with timed(figures, "install the wheel and its extra `device`"):
        site: list[str | Path] = [
            "--target",
            python.parent / "lib/site",
            "-c",
            HERE / "constraints.txt",
        ]
        pip: list[str | Path] = ["-m", "pip", "install", "--quiet", "--only-binary=:all:", *site]
        run(*emulated, *pip, wheel, *requirements(wheel))
    code = (
        "import platform; from importlib.metadata import version; "
        "print(platform.machine(), platform.python_version(), "
        f"*(version(name) for name in {LISTED!r}))"
    )
    machine, interpreter, *versions = run(*emulated, "-c", code).split()
    figures |= {"machine": machine, "python": interpreter}
    figures["versions"] = dict(zip(LISTED, versions, strict=True))
    trusted = ["--trust", options.keys]
    with timed(figures, "`edgexnas verify`"):
        run(*emulated, "-m", "edgexnas.cli", "verify", options.bundle, *trusted)
    tables = {}
    places: dict[str, list[str | Path]] = {"emulated": emulated, "here": [sys.executable]}
    for place, command in places.items():
        tables[place] = root / f"{place}.csv"
        cache = ["--cache", root / f"{place}-cache", "--engine", "onnxruntime"]
        with timed(figures, f"`edgexnas predict`, {place}"):
            predict: list[str | Path] = [
                "-m",
                "edgexnas.cli",
                "predict",
                options.bundle,
                options.frames,
            ]
            run(*command, *predict, *trusted, *cache, "--output", tables[place])
    figures["compared"] = differences(tables["here"], tables["emulated"])
    figures["gate_px"] = read_manifest(options.bundle).gate.int8
    return figures


def hardware() -> str:
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return f"{os.cpu_count()} cores of {names[0] if names else os.uname().machine}"


def page(figures: Figures) -> str:
    """Write the page."""
    compared = figures["compared"]
    apart = max(compared["largest_row_px"], compared["largest_col_px"])
    said = f"at most {apart:.4f} px apart" if apart else "equal in all four digits of the table"
    rows = [f"| {one['step']} | {one['wall_s']} | {one['cpu_s']} |" for one in figures["steps"]]
    versions = ", ".join(f"{name} {version}" for name, version in figures["versions"].items())
    return "\n".join(
        [
            "# The device package on an emulated aarch64",
            "",
            "`python device/emulate_aarch64.py runs/quick/bragg.edgex runs/quick/frames.h5 "
            f"runs/quick/keys`: {figures['machine']}, Python {figures['python']}, by QEMU "
            f"{figures['qemu']} on {figures['hardware']}, which did other work too.",
            "",
            f"{compared['peaks']:,} peaks of {compared['frames']} frames, found by onnxruntime in "
            f"INT8 there and here: the same peaks and flags, positions {said} (the gate is "
            f"{figures['gate_px']:.4f} px).",
            "",
            "| step | seconds | of a core |",
            "|---|---:|---:|",
            *rows,
            "",
            f"Installed from wheels alone: {versions}. pycuda and cuda-bindings, which need "
            "CUDA, were left out. An emulator says that it works, not how fast.",
            "",
        ]
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("frames", type=Path)
    parser.add_argument("keys", type=Path, help="folder of trusted keys")
    parser.add_argument("--root", type=Path, required=True, help="new folder for the other machine")
    parser.add_argument("--python310", default="python3.10", help="a Python 3.10 of this machine")
    parser.add_argument("--output", type=Path, required=True, help="folder of the page")
    options = parser.parse_args()
    for program in ("mmdebstrap", QEMU):
        if shutil.which(program) is None:
            parser.error(f"{program} is missing: apt install mmdebstrap qemu-user-static")
    if options.root.exists():
        parser.error(f"{options.root} exists: name a new folder")
    figures = measure(options)
    options.output.mkdir(parents=True, exist_ok=True)
    write_whole(options.output / "aarch64.json", (json.dumps(figures, indent=1) + "\n").encode())
    write_whole(options.output / "aarch64.md", page(figures).encode())


if __name__ == "__main__":
    main()
