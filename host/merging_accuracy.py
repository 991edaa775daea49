"""How merging does: spots found whole, uncertainties, speed and memory.

    python host/merging_accuracy.py --bundle network.edgex --trust keys \
        --shoeboxes dials_rotation_shoeboxes --output docs/results/merging.md

The bundle is one that `host/grains.py simulated` trains. Writes the page and its JSON.
"""

from __future__ import annotations

import argparse
import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgexnas.bragg import Peaks
from edgexnas.device import PeakPredictor
from edgexnas.device.power.device_state import device_name
from edgexnas.frames import Truth
from edgexnas.host import match_peaks
from edgexnas.merging import MergeSettings, Rotation, SpotMerger
from edgexnas.simulate import HedmSettings, simulate_hedm
from edgexnas.spots import SpotFlag, Spots

MATCH_PX = 1.5
NORMAL = 1.645
"""90 % of a normal distribution lie within this many standard deviations."""

SIMULATED = {
    "as calibrated: 0.1°, curves 0.05 to 0.3°": HedmSettings(
        frames=200, grains=100, omega_step_deg=0.1, mosaic_quantiles_deg=(0.05, 0.3)
    ),
    "default: 0.25°, curves 0.02 to 0.2°": HedmSettings(frames=144, grains=100),
    "narrow: 0.25°, curves 0.005 to 0.05°": HedmSettings(
        frames=144, grains=100, mosaic_quantiles_deg=(0.005, 0.05)
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--trust", type=Path, required=True)
    parser.add_argument("--shoeboxes", type=Path, required=True, help="folder of the DIALS data")
    parser.add_argument("--output", type=Path, default=Path("docs/results/merging.md"))
    options = parser.parse_args()
    figures: dict[str, Any] = {"cpu": device_name(Path("/")), "simulated": {}}
    for name, settings in SIMULATED.items():
        series = simulate_hedm(settings, seed=21)
        with PeakPredictor(options.bundle, trust=options.trust, mask=series.mask) as predictor:
            frames = list(predictor.stream(series))
        figures["simulated"][name] = of_simulated(frames, series.truth, series.omega_deg)
    boxes = np.load(options.shoeboxes / "derived_shoeboxes.npz")
    with PeakPredictor(options.bundle, trust=options.trust, minimum_counts=0) as predictor:
        frames = list(predictor.stream(box_frames(boxes)))
    figures["shoeboxes"] = of_shoeboxes(frames, boxes)
    figures["speed"] = [speed(frames=1440, peaks=700), speed(frames=100_000, peaks=10)]
    options.output.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")
    options.output.write_text(page(figures))


def merged(frames: list[Peaks], rotation: Rotation, **options: float) -> Spots:
    merger = SpotMerger(rotation, MergeSettings(**options))  # type: ignore[arg-type]
    return Spots.joined([*(merger.add(peaks) for peaks in frames), merger.finish()])


def of_simulated(
    frames: list[Peaks], truth: Truth, omega_deg: npt.NDArray[np.float64] | None
) -> dict[str, Any]:
    """Compare with the reflections of which a peak was found on one frame or more."""
    rotation = Rotation(table_deg=omega_deg)
    spots = merged(frames, rotation)
    on: dict[int, list[int]] = {}
    row_of: dict[int, int] = {}
    for peaks in frames:
        first = int(np.searchsorted(truth.frame, peaks.frame_number))
        here = truth.of_frame(peaks.frame_number)
        for _, known in match_peaks(peaks.maxima, here.positions_px, 2.0):
            reflection = int(here.reflection[known])
            on.setdefault(reflection, []).append(peaks.frame_number)
            row_of[reflection] = first + int(known)
    whole: list[tuple[int, int]] = []
    ends = index_by_frames(spots)
    for reflection, numbers in on.items():
        place = truth.positions_px[row_of[reflection]]
        near = [
            spot
            for spot in ends.get((min(numbers), max(numbers)), [])
            if np.abs(spots.positions_px[spot] - place).max() < MATCH_PX
        ]
        if near:
            whole.append((near[0], row_of[reflection]))
    chosen = np.array(whole)
    spot, known = chosen.T
    # What lies beyond a wedge's ends is not on the frames.
    inside = (spots.flags[spot] & (SpotFlag.CUT | SpotFlag.SPLIT)) == 0
    spot, known = spot[inside], known[inside]
    row, col = np.abs(spots.positions_px[spot] - truth.positions_px[known]).T
    omega = np.abs((spots.omega_deg[spot] - truth.omega_deg[known] + 180) % 360 - 180)
    row_sigma, col_sigma = spots.sigmas_px[spot].T
    step = float(np.diff(rotation.of_frame(0))[0])
    return {
        "reflections": len(on),
        "whole": len(whole) / len(on),
        "coverage_row": covered(row, row_sigma),
        "coverage_col": covered(col, col_sigma),
        "coverage_omega": covered(omega, spots.omega_sigmas_deg[spot]),
        "mean_px": float(np.hypot(row, col).mean()),
        "mean_omega_frames": float(omega.mean() / step),
        "frames_per_spot": float(spots.peaks.mean()),
    }


def index_by_frames(spots: Spots) -> dict[tuple[int, int], list[int]]:
    found: dict[tuple[int, int], list[int]] = {}
    for spot, (first, last) in enumerate(spots.frames.tolist()):
        found.setdefault((first, last), []).append(spot)
    return found


def covered(error: Any, sigma: Any) -> float:
    return float((error < NORMAL * sigma).mean())


def box_frames(boxes: Any) -> npt.NDArray[np.uint16]:
    """Put the counts of all shoeboxes on nine frames."""
    frames = np.zeros((9, 2527, 2463), np.uint16)
    for (x0, x1, y0, y1, z0, z1), offset in zip(boxes["bbox"], boxes["offset"][:-1], strict=True):
        shape = (z1 - z0, y1 - y0, x1 - x0)
        counts = boxes["counts"][offset : offset + np.prod(shape)].reshape(shape)
        part = frames[z0:z1, y0:y1, x0:x1]
        part[counts > 0] = counts[counts > 0]
    return frames


def of_shoeboxes(frames: list[Peaks], boxes: Any) -> dict[str, Any]:
    """Compare with the spots of DIALS of which a peak was found on each frame of a run."""
    spots = merged(frames, Rotation(0.0, 1.0), tolerance_px=3.0)
    # DIALS counts from the edge of the first pixel.
    place = boxes["xyzobs_px"][:, [1, 0]] - 0.5
    box = boxes["bbox"]
    counted = whole = exact = 0
    distances = []
    for index in range(len(place)):
        x0, x1, y0, y1, z0, z1 = box[index]
        numbers = []
        for peaks in frames[z0:z1]:
            row, col = peaks.maxima.T
            inside = (row >= y0) & (row < y1) & (col >= x0) & (col < x1)
            numbers += [peaks.frame_number] * int(inside.sum())
        if not numbers or sorted(numbers) != list(range(min(numbers), max(numbers) + 1)):
            continue
        counted += 1
        apart = np.linalg.norm(spots.positions_px - place[index], axis=1)
        held = (
            (apart < 3.0)
            & (spots.frames[:, 0] <= min(numbers))
            & (spots.frames[:, 1] >= max(numbers))
        )
        if held.any():
            whole += 1
            best = int(np.flatnonzero(held)[np.argmin(apart[held])])
            exact += spots.frames[best].tolist() == [min(numbers), max(numbers)]
            distances.append(float(apart[best]))
    return {
        "spots": len(place),
        "counted": counted,
        "whole": whole / counted,
        "same_frames": exact / counted,
        "median_px": float(np.median(distances)),
    }


def speed(*, frames: int, peaks: int) -> dict[str, Any]:
    """Merge random peaks, half of which go on to the next frame; measure CPU time and memory."""
    rng = np.random.default_rng(0)
    merger = SpotMerger(Rotation())
    intervals = np.full((peaks, 2), 0.2, np.float32)
    flags = np.zeros(peaks, np.uint8)
    last = rng.uniform(0, 3000, (peaks, 2)).astype(np.float32)
    seconds, spots = 0.0, 0
    high = []
    tracemalloc.start() if frames < 10_000 else None
    for number in range(frames):
        here = rng.uniform(0, 3000, (peaks, 2)).astype(np.float32)
        here[: peaks // 2] = last[peaks // 2 : peaks // 2 * 2]
        counts = rng.uniform(50, 5000, peaks).astype(np.float32)
        last = here
        began = time.process_time()
        spots += len(merger.add_arrays(number, here, intervals, counts, flags))
        seconds += time.process_time() - began
        if tracemalloc.is_tracing() and number in (100, frames - 1):
            high.append(tracemalloc.get_traced_memory()[0] / 2**20)
    tracemalloc.stop()
    return {
        "frames": frames,
        "peaks": frames * peaks,
        "spots": spots,
        "cpu_s": seconds,
        "memory_mib": high,
    }


def page(figures: dict[str, Any]) -> str:
    lines = [
        "# Merging",
        "",
        f"`python host/merging_accuracy.py`, on one core of {figures['cpu']}. Coverage: share of "
        "errors within 1.645 stated standard deviations, 0.90 if all were normal.",
        "",
        "| simulated | reflections | frames a spot | whole | coverage row, col | omega | "
        "error, px | of omega, frames |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, one in figures["simulated"].items():
        lines.append(
            f"| {name} | {one['reflections']:,} | {one['frames_per_spot']:.1f} | "
            f"{one['whole']:.1%} | {one['coverage_row']:.2f}, {one['coverage_col']:.2f} | "
            f"{one['coverage_omega']:.2f} | {one['mean_px']:.3f} | "
            f"{one['mean_omega_frames']:.3f} |"
        )
    boxes = figures["shoeboxes"]
    lines += [
        "",
        f"Real shoeboxes of DIALS, tolerance 3 px: of {boxes['spots']} spots {boxes['counted']} "
        f"have a peak found on each frame of a run; {boxes['whole']:.1%} of these are in one "
        f"spot, {boxes['same_frames']:.1%} on just those frames, {boxes['median_px']:.2f} px from "
        "DIALS' centroid in the median. Others join boxes that DIALS cuts in two, or stray: the "
        "median peak has 38 photons.",
        "",
        "| peaks | on frames | CPU s |",
        "|---:|---:|---:|",
    ]
    lines += [
        f"| {one['peaks']:,} | {one['frames']:,} | {one['cpu_s']:.1f} |" for one in figures["speed"]
    ]
    early, late = figures["speed"][0]["memory_mib"]
    lines += ["", f"Memory after 101 frames and after all: {early:.2f} and {late:.2f} MiB."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
