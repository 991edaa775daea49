r"""Refine a scan's object on this GPU and on one core of its host: compare both, and time sweeps.

    edgexnas predict star20.edgex siemens-star-small.npz.bz2 --trust keys --output star.npz
    python device/bench_refine.py --scan siemens-star-small.npz.bz2 --object star.npz \\
        --probe star20.h5 --simulated 500 --output docs/results

`--object` is what `edgexnas predict` has saved, `--probe` what `edgexnas label --probe` takes, such
as the labels that the bundle was made from. Exit status 0 only if both agree: the objects within
`--tolerance` of the mean amplitude on covered pixels, after each of the sweeps in the table.
Needs numpy, pycuda and a CUDA compiler; `--sanitize` needs compute-sanitizer.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from compute_sanitizer import sanitize

from edgexnas.device.cuda import CudaSession
from edgexnas.device.power.device_state import device_name
from edgexnas.device.ptycho.gpu_refining import GpuRefiner, steps_of
from edgexnas.errors import EdgexnasError
from edgexnas.ptycho import ObjectImage, PatternStore, Refinement, Refiner
from edgexnas.ptycho.sweeps import HostSweeps
from edgexnas.scans import Scan, open_probe, open_scan
from edgexnas.simulate import PtychographySettings, simulate_scan
from edgexnas.whole_files import write_whole

SWEEPS = (1, 3, 10)
ROUNDS = 5

SANITIZER = ("--target-processes", "all", "--report-api-errors", "no")


@dataclass(frozen=True)
class Case:
    """A scan, the object to begin with, and the probe."""

    name: str
    start: ObjectImage
    store: PatternStore
    probe: np.ndarray


def stored(scan: Scan, count: int | None = None) -> PatternStore:
    rows, cols = scan.patterns.shape[1:]
    store = PatternStore((rows, cols), mask=scan.mask)
    for number, pattern in enumerate(scan.patterns[:count]):
        store.add(number, pattern if scan.mask is None else np.where(scan.mask, 0, pattern))
        store.place(number, scan.positions_px[number])
    return store


def measured(options: argparse.Namespace) -> Case:
    """Open the real scan, with the network's object."""
    scan = open_scan(options.scan)
    with np.load(options.object) as kept:
        values = kept["network"] if "network" in kept else kept["object"]
        start = ObjectImage(values, kept["coverage"], 0, tuple(kept["origin_px"].tolist()))
    rows, cols = scan.patterns.shape[1:]
    probe = open_probe(options.probe, (rows, cols))
    return Case(options.scan.name, start, stored(scan, options.patterns), probe)


def simulated(side: int) -> Case:
    """Make a wide scan whose object is known but for a tenth of its amplitude and phase."""
    scan = simulate_scan(PtychographySettings(scan_shape_px=(side, side), step_px=10), seed=3)
    assert scan.truth is not None
    assert scan.probe is not None
    rough = np.random.default_rng(1).normal(0, 0.1, (*scan.truth.shape, 2))
    values = (scan.truth * np.exp(rough.view(np.complex128)[..., 0])).astype(np.complex64)
    start = ObjectImage(values, np.ones(values.shape, np.float32), 0)
    return Case("simulated", start, stored(scan), scan.probe)


def refined(
    case: Case, begin: Any, sweeps: int
) -> tuple[Refinement, dict[int, np.ndarray], list[float]]:
    """Refine; give the objects after the sweeps of the table too, and the time of each sweep."""
    kept: dict[int, np.ndarray] = {}

    def progress(number: int, image: ObjectImage) -> None:
        if number in SWEEPS:
            kept[number] = image.values

    refiner = Refiner(case.probe)
    with_objects = refiner.refine(case.start, case.store, sweeps, progress=progress, begin=begin)
    assert with_objects is not None
    return with_objects, kept, with_objects.seconds.tolist()


def compared(case: Case, session: CudaSession, options: argparse.Namespace) -> dict[str, Any]:
    """Refine a case on both, and say how far apart the objects are and how long each took."""
    sweeps = max(n for n in SWEEPS if n <= options.sweeps)
    began = time.perf_counter()
    owner = GpuRefiner(session, case.probe.shape[1:], len(case.probe))
    compiled = time.perf_counter() - began
    ours, found, _ = refined(case, owner.begin, sweeps)
    theirs, wanted, cpu_s = refined(case, HostSweeps, sweeps)
    rounds = [
        run.seconds
        for _ in range(ROUNDS if options.patterns is None else 1)
        if (run := Refiner(case.probe).refine(case.start, case.store, sweeps, begin=owner.begin))
    ]
    gpu_s = np.median(np.array(rounds), axis=0)
    covered = case.start.coverage > 0
    rows = []
    for number in (0, *SWEEPS):
        if number > sweeps:
            continue
        row = {
            "sweeps": number,
            "residual": float(theirs.residuals[number]),
            "GPU residual": float(ours.residuals[number]),
            "CPU s": cpu_s[number],
            "GPU s": float(gpu_s[number]),
        }
        if number:
            size = np.abs(wanted[number][covered]).mean()
            apart = np.abs(found[number] - wanted[number])[covered] / size
            turned = np.angle(found[number] * wanted[number].conj())[covered]
            row |= {
                "apart, largest": float(apart.max()),
                "apart, rms": float(np.sqrt(np.square(apart).mean())),
                "phase apart, largest rad": float(np.abs(turned).max()),
            }
        rows.append(row)
        print(case.name, row, flush=True)
    steps = steps_of(*_order(case), np.random.default_rng(0).permutation(ours.patterns))[1]
    owner.close()
    good = all(row.get("apart, largest", 0) <= options.tolerance for row in rows)
    print(f"{'ok  ' if good else 'FAIL'} {case.name}", flush=True)
    return {
        "scan": case.name,
        "patterns": ours.patterns,
        "side": int(case.probe.shape[1]),
        "modes": len(case.probe),
        "steps of a sweep": len(steps) - 1,
        "kernels ready s": compiled,
        "first start s": float(ours.seconds[0]),
        "agrees": good,
        "rows": rows,
    }


def sweep_ms(rows: list[dict[str, Any]], where: str) -> float:
    """Mean of all sweeps but the first."""
    first, last = rows[1], rows[-1]
    took = (last[where] - first[where]) / max(1, last["sweeps"] - first["sweeps"])
    return float(took * 1e3)


def _order(case: Case) -> tuple[np.ndarray, int]:
    from edgexnas.ptycho.sweeps import LaidScan

    roots, positions = case.store.placed()
    scan = LaidScan(case.start, roots, positions, case.store.masked)
    return scan.places, case.probe.shape[1]


def page(found: dict[str, Any]) -> str:
    """Write the page."""
    lines = [
        "# Refinement on a GPU",
        "",
        f"`python device/bench_refine.py` on {found['GPU']}, {found['capability']}, CUDA "
        f"{found['driver']}; beside it one core of its host, {found['CPU']}. Times are since the "
        f"start; on the GPU the median of {found['rounds']}. {found['about']}".rstrip(),
    ]
    for case in found["cases"]:
        lines += [
            "",
            f"{case['scan']}: {case['patterns']} patterns of {case['side']}×{case['side']}, "
            f"{case['modes']} modes, {case['steps of a sweep']} steps a sweep; a sweep takes "
            f"{sweep_ms(case['rows'], 'GPU s'):.1f} ms, on the CPU "
            f"{sweep_ms(case['rows'], 'CPU s'):,.0f}.",
            "",
            "| sweeps | residual | CPU, s | GPU, s | ratio | apart, largest / rms |",
            "|---:|---:|---:|---:|---:|---:|",
        ]
        for row in case["rows"]:
            apart = (
                f"{row['apart, largest']:.1e} / {row['apart, rms']:.1e}" if row["sweeps"] else ""
            )
            lines.append(
                f"| {row['sweeps']} | {row['residual']:.3%} | {row['CPU s']:.2f} | "
                f"{row['GPU s']:.4f} | {row['CPU s'] / row['GPU s']:.0f}× | {apart} |"
            )
    lines += [
        "",
        " ".join(
            ["Apart: of the mean amplitude, on covered pixels."]
            + [f"{said}." for said in found["checks"]]
        ),
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scan", type=Path, help="as edgexnas predict takes it")
    parser.add_argument("--object", type=Path, help=".npz that edgexnas predict saved")
    parser.add_argument("--probe", type=Path, help="as edgexnas label --probe takes it")
    parser.add_argument("--simulated", type=int, help="a simulated scan so many pixels wide too")
    parser.add_argument("--patterns", type=int, help="only the first so many of the scan")
    parser.add_argument("--sweeps", type=int, default=max(SWEEPS))
    parser.add_argument("--tolerance", type=float, default=1e-5)
    parser.add_argument("--sanitize", nargs="*", default=[], metavar="TOOL")
    parser.add_argument("--about", default="", help="what else to say on the page")
    parser.add_argument("--output", type=Path, help="folder for gpu-refine.json and .md")
    options = parser.parse_args()
    given = [options.scan, options.object, options.probe]
    if any(given) and not all(given):
        parser.error("--scan, --object and --probe go together")
    cases = ([measured(options)] if all(given) else []) + (
        [simulated(options.simulated)] if options.simulated else []
    )
    if not cases:
        parser.error("give --scan, --object and --probe, or --simulated, or both")
    try:
        with CudaSession() as session:
            print(f"{session.name}, {session.capability}, CUDA {session.driver}", flush=True)
            found: dict[str, Any] = {
                "GPU": session.name, "capability": session.capability, "driver": session.driver,
                "CPU": device_name(Path("/")), "rounds": ROUNDS, "about": options.about,
                "cases": [compared(case, session, options) for case in cases], "checks": [],
            }  # fmt: skip
    except EdgexnasError as error:
        print(error, file=sys.stderr)
        return 1
    keep(found, options.output)
    names = ("scan", "object", "probe")
    arguments = [f"--{n}={getattr(options, n)}" for n in names] if all(given) else ["--simulated=9"]
    few = [*arguments, "--patterns", "6", "--sweeps", "1"]
    verdicts = [sanitize(tool, __file__, few, *SANITIZER) for tool in options.sanitize]
    found["checks"] = [said for _, said in verdicts]
    keep(found, options.output)
    good = all(case["agrees"] for case in found["cases"]) and all(fine for fine, _ in verdicts)
    print("everything agrees" if good else "SOMETHING DIFFERS")
    return 0 if good else 1


def keep(found: dict[str, Any], folder: Path | None) -> None:
    """Write what was measured if a folder is given."""
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "gpu-refine.json", (json.dumps(found, indent=1) + "\n").encode())
    write_whole(folder / "gpu-refine.md", page(found).encode())


if __name__ == "__main__":
    sys.exit(main())
