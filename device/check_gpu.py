"""Check the CUDA kernels against the CPU on this machine's GPU, and time frames and scans.

    python device/check_gpu.py                              # kernels against the CPU
    python device/check_gpu.py --frames crops.npz           # also on real frames of this file
    python device/gpu_bundles.py --output bundles
    python device/check_gpu.py --bundles bundles --sanitize memcheck racecheck --time \
        --output docs/results
    python device/bench_gpu_engines.py --bundles bundles --cache cache --one-size \
        --output gpu-engines.json
    python device/check_gpu.py --bundles bundles --plans cache --time-scans --output docs/results

With `--bundles` the fused engine is compared with onnxruntime, and frames are timed with every
engine that runs here; scans run on plans of TensorRT that `bench_gpu_engines.py` has built.
Exit status 0 only if everything agrees.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from compute_sanitizer import sanitize
from gpu_comparisons import (
    cases,
    compare_fused,
    compare_patterns,
    compare_peaks,
    compare_pipeline,
    compare_stitching,
)
from gpu_scans import SCANNED, compare_scan, plan_of, scans_page, time_scan

from edgexnas.device.cuda import CudaSession
from edgexnas.errors import EngineError
from edgexnas.whole_files import write_whole


def compare(session: CudaSession, options: argparse.Namespace) -> tuple[bool, str]:
    """Compare every kernel with the CPU; give the verdict in a sentence."""
    outcomes = [
        compare_peaks(session, name, frame, finder)
        for name, frame, finder in cases(options.frames, options.small)
    ]
    outcomes += [compare_patterns(session), compare_stitching(session)]
    if options.bundles is not None:
        outcomes += compare_fused(session, options.bundles)
        if not options.small:
            outcomes.append(compare_pipeline(session, options.bundles, 300))
    if options.plans is not None:
        with plan_of(session, options.bundles, options.plans, SCANNED[0]) as engine:
            outcomes.append(compare_scan(engine))
    said = f"{len(outcomes)} comparisons with the CPU, {outcomes.count(False)} differ"
    print(said, flush=True)
    return all(outcomes), said


def small_run(options: argparse.Namespace) -> list[str]:
    """Arguments of a comparison on small frames, for a sanitizer."""
    given = {name: getattr(options, name) for name in ("frames", "bundles")}
    return ["--small", *(f"--{name}={value}" for name, value in given.items() if value is not None)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=Path, help=".npz of real frames")
    parser.add_argument("--small", action="store_true", help="small frames only, no network")
    parser.add_argument("--sanitize", nargs="*", default=[], metavar="TOOL")
    parser.add_argument("--bundles", type=Path, help="folder that gpu_bundles.py wrote")
    parser.add_argument("--time", action="store_true", help="time frames, with --bundles")
    parser.add_argument("--engines", nargs="+", default=["fused", "tensorrt"], help="which to time")
    parser.add_argument("--quick", action="store_true", help="time pinned frames only")
    parser.add_argument("--time-scans", action="store_true", help="time scans, with --plans")
    parser.add_argument("--plans", type=Path, help="cache folder of bench_gpu_engines.py")
    parser.add_argument("--output", type=Path, help="folder for the pages, with --time")
    options = parser.parse_args()
    if options.time and options.bundles is None:
        parser.error("--time needs --bundles")
    if options.time_scans and options.plans is None:
        parser.error("--time-scans needs --plans")
    try:
        with CudaSession() as session:
            print(f"{session.name}, {session.capability}, CUDA {session.driver}", flush=True)
            verdicts = [compare(session, options)]
            # Before the sanitizers, which take long: what is measured is kept first.
            found = timings(session, options) if options.time else None
            verdicts += [sanitize(tool, __file__, small_run(options)) for tool in options.sanitize]
            if found is not None and options.output is not None:
                from gpu_frames_page import frames_page

                page = frames_page(found, [said for _, said in verdicts])
                write_whole(options.output / "gpu-frames.md", page.encode())
            if options.time_scans:
                rows = []
                for name in SCANNED:
                    with plan_of(session, options.bundles, options.plans, name) as engine:
                        rows.append(time_scan(session, name, engine))
                page = scans_page(session, rows, [said for _, said in verdicts])
                if options.output is not None:
                    options.output.mkdir(parents=True, exist_ok=True)
                    write_whole(options.output / "gpu-scans.md", page.encode())
                    kept = json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
                    write_whole(options.output / "gpu-scans.json", kept.encode())
    except EngineError as error:
        print(error, file=sys.stderr)
        return 1
    good = all(fine for fine, _ in verdicts)
    print("everything agrees" if good else "SOMETHING DIFFERS")
    return 0 if good else 1


def timings(session: CudaSession, options: argparse.Namespace) -> dict[str, Any]:
    """Time everything, and write what was measured if a folder is given."""
    from gpu_timings import measure

    folder = options.output

    def keep(found: dict[str, Any]) -> None:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps(found, indent=1, ensure_ascii=False)
            write_whole(folder / "gpu-frames.json", (text + "\n").encode())

    return measure(
        session, keep, options.bundles, engines=options.engines, decoding=not options.quick,
        plans=options.plans,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
