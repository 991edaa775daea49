"""Find the peaks of five kinds of simulated detectors and of real frames, with default settings.

    python device/bench_detectors.py --data DATA --before CHECKOUT --page docs/results/detectors.md

Peaks are found in a process of its own, so that another checkout of the package can find those of
the same frames. What is written besides the page is the same in JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

NEAR_PX = 2.0
SATURATED = 1
SHAPE, FRAMES, SPOTS, SEEDS = (1024, 1024), 5, 400, (1,)
REAL_FRAMES = 4
SPARSE = "imaged11_silicon_eiger/silicon_fullscan_strong_sparse.h5"
REAL = {
    "ruby, Dexela": "hexrd_ruby_dexela/ruby_ff1_framecache.npz",
    "silicon, Eiger 4M": SPARSE,
    "GE aSi": "raw_bragg_frames/GE_aSI_detector_image_1529.bz2",
    "lysozyme, Frelon": "raw_bragg_frames/F2K_Seb_Lyso0675.edf.bz2",
    "ceria powder, Pilatus 2M": "nexus_detector_files/ceria_Pilatus2M_powder.hdf5",
}


def find(path: Path) -> None:
    """Print the peaks of the frames in a file; only what older checkouts know is called."""
    from edgexnas.peak_finding import PeakFinder, estimate_background

    with np.load(path) as held:
        frames, mask = held["frames"], held["mask"]
    background = estimate_background(frames, mask=mask)
    finder = PeakFinder(shape=mask.shape, background=background, mask=mask)
    found = [finder.find(frame) for frame in frames]
    peaks = [(peaks.maxima.tolist(), peaks.flags.tolist()) for peaks in found]
    used = str(finder.used(frames.dtype)) if hasattr(finder, "used") else ""
    print(json.dumps({"peaks": peaks, "used": used}))


def found_by(checkout: Path, frames: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
    """Find peaks with the package of a checkout."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "frames.npz")
        np.savez(path, frames=frames, mask=mask)
        command = [sys.executable, __file__, "--find", str(path)]
        environment = {**os.environ, "PYTHONPATH": str(checkout)}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def score(made: Any, answer: dict[str, Any]) -> np.ndarray:
    """Count true spots, those found, peaks, those at a spot, saturated spots, and those flagged."""
    counts = np.zeros(6, np.int64)
    for (maxima, flags), seen, other, full in zip(
        answer["peaks"], made.positions_px, made.other_px, made.saturated, strict=True
    ):
        places = np.array(maxima, float).reshape(-1, 2)
        spots = np.concatenate([seen, other])
        near = np.linalg.norm(places[:, None] - spots, axis=2) <= NEAR_PX
        over = near[:, : len(seen)] & (np.array(flags, int) & SATURATED > 0)[:, None]
        counts += [
            len(seen), near[:, : len(seen)].any(axis=0).sum(), len(places), near.any(axis=1).sum(),
            full.sum(), over.any(axis=0)[full].sum(),
        ]  # fmt: skip
    return counts


def real_frames(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a few frames spread over a series, (k, H, W), and the mask; gaps are negative."""
    from edgexnas.frames import open_frames

    if path.name == Path(SPARSE).name:
        return sparse_frames(path)
    with open_frames(path) as series:
        chosen = np.linspace(0, len(series) - 1, min(REAL_FRAMES, len(series))).astype(int)
        frames = np.stack([np.asarray(series[int(number)]) for number in chosen])
        mask = np.zeros(series.shape, np.bool_) if series.mask is None else series.mask
    return frames, mask | (frames < 0).all(axis=0)


def sparse_frames(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Fill the frames with most pixels."""
    import h5py

    with h5py.File(path) as held:
        group = held["1.1"]
        lit = group["nnz"][()]
        frame, row, col, value = (group[key][()] for key in ("frame", "row", "col", "intensity"))
    frames = np.zeros((REAL_FRAMES, 2162, 2068), np.uint16)
    for filled, number in zip(frames, np.argsort(lit)[-REAL_FRAMES:], strict=True):
        here = frame == number
        filled[row[here], col[here]] = value[here]
    return frames, np.zeros(frames.shape[1:], np.bool_)


def share(part: int, whole: int) -> str:
    return f"{part / whole:.3f}" if whole else "–"


def simulated_row(name: str, kind: Any, checkouts: list[Path]) -> tuple[str, dict[str, Any]]:
    from edgexnas.simulate.detectors import simulate_detector

    totals = [np.zeros(6, np.int64) for _ in checkouts]
    for seed in SEEDS:
        made = simulate_detector(kind, shape=SHAPE, frames=FRAMES, spots=SPOTS, seed=seed)
        for total, checkout in zip(totals, checkouts, strict=True):
            total += score(made, found_by(checkout, made.frames, made.mask))
    cells = [name, f"{totals[0][0]:,}"]
    for first, second in ((1, 0), (3, 2), (5, 4)):
        cells += [share(int(total[first]), int(total[second])) for total in totals]
    names = ("spots", "found", "peaks", "true_peaks", "saturated", "flagged")
    record = {
        version: dict(zip(names, total.tolist(), strict=True))
        for version, total in zip(("before", "after")[-len(totals) :], totals, strict=True)
    }
    return "| " + " | ".join(cells) + " |", record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--find", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help="folder that holds the real measurements")
    parser.add_argument("--before", type=Path, help="another checkout to compare with")
    parser.add_argument("--page", type=Path, help="Markdown file; only printed if not given")
    options = parser.parse_args()
    if options.find is not None:
        find(options.find)
        return
    from edgexnas.demo.markdown import hardware
    from edgexnas.simulate.detectors import DETECTOR_KINDS

    here = Path(__file__).resolve().parent.parent
    checkouts = ([options.before] if options.before else []) + [here]
    heads = [f"{what}{when}" for what in ("recall", "precision", "saturated spots flagged")
             for when in ((" before", " now") if options.before else ("",))]  # fmt: skip
    lines = [
        "# Peaks on detectors of several kinds",
        "",
        "`python device/bench_detectors.py --data DATA --before CHECKOUT --page "
        f"docs/results/detectors.md` on {hardware()}. Default settings throughout; "
        f"{len(SEEDS) * FRAMES} simulated frames of {SHAPE[0]}×{SHAPE[1]} each "
        "(`edgexnas.simulate.detectors`). Spots count whose expected peak has a signal-to-noise "
        "ratio of 7 or more, counting noise included, with at least three pixels 3 standard "
        f"deviations high. A spot is found if a peak's brightest pixel lies within {NEAR_PX:g} px; "
        "a peak is right if any spot does, weak ones included.",
        "",
        "| detector | spots | " + " | ".join(heads) + " |",
        "|---|---|" + "---|" * len(heads),
    ]
    record: dict[str, Any] = {"simulated": {}, "real": {}}
    for name, kind in DETECTOR_KINDS.items():
        line, record["simulated"][name] = simulated_row(name, kind, checkouts)
        print(line, flush=True)
        lines.append(line)
    if options.data is not None:
        lines += [
            "",
            "Peaks on real frames; the powder frame has no spots, and its gaps are masked.",
            "",
            f"| frames | number | {'before | ' if options.before else ''}now | limits now |",
            "|---|---|" + "---|" * (len(checkouts) + 1),
        ]
        for name, path in REAL.items():
            frames, mask = real_frames(options.data / path)
            answers = [found_by(checkout, frames, mask) for checkout in checkouts]
            numbers = [sum(len(maxima) for maxima, _ in answer["peaks"]) for answer in answers]
            record["real"][name] = {"peaks": numbers, "used": answers[-1]["used"]}
            counts = " | ".join(f"{number:,}" for number in numbers)
            lines.append(f"| {name} | {len(frames)} | {counts} | {answers[-1]['used']} |")
            print(lines[-1], flush=True)
    text = "\n".join(lines) + "\n"
    if options.page is not None:
        options.page.write_text(text)
        options.page.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
