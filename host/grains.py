"""From frames to grains by three lists of spots: a network's, fits' and centroids'.

    python host/grains.py simulated --readers READERS_PYTHON --folder runs/grains
    python host/grains.py ruby --data hexrd_ruby_dexela --readers READERS_PYTHON --folder runs/ruby

The same peaks are merged with each of three positions, and ImageD11 (`host/imaged11_grains.py`, in
an environment of its own) indexes and refines the grains. The folder keeps what is made; the last
line printed names the JSON of the figures, of which `host/grains_page.py` makes tables.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from ruby_detector import Correction, RubyDetector

from edgexnas.bragg import CENTRE, centroid
from edgexnas.bundle import generate_keys
from edgexnas.device import PeakPredictor
from edgexnas.device.power.device_state import device_name
from edgexnas.forms.columnfile import write_columnfile
from edgexnas.frames import FrameSeries, open_frames
from edgexnas.host import (
    PeakDataset,
    TrainingData,
    TrainingSettings,
    export_bundle,
    fit_pseudo_voigt,
    label_frames,
    train,
    with_synthetic_peaks,
)
from edgexnas.host.networks.symmetric_mlp import mlp_bragg_symmetric
from edgexnas.merging import Rotation, SpotMerger
from edgexnas.simulate import HedmSettings, simulate_hedm
from edgexnas.simulate.crystal import HC_KEV_ANGSTROM, MATERIALS
from edgexnas.spots import Spots

Float = npt.NDArray[Any]

SAMPLE: dict[str, Any] = {"grains": 200, "omega_step_deg": 0.1, "mosaic_quantiles_deg": (0.05, 0.3)}
"""Simulated: thin frames and rocking curves over several of them, as for measuring strain."""

RUBY_CELL = [4.7592, 4.7592, 12.9920, 90, 90, 120, "R"]
FULL_TURN_FRAMES = 1441
"""The recorded 1,440 frames lack one of the turn: else angles drift by a frame against grains."""

LISTS = ("network", "fits", "centroids")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sample", choices=("simulated", "ruby"))
    parser.add_argument("--readers", required=True, help="Python of an environment with ImageD11")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="folder of the ruby data")
    parser.add_argument("--frames", type=int, default=900, help="simulated frames")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    run = simulated if options.sample == "simulated" else ruby
    figures = {"cpu": device_name(Path("/")), **run(options)}
    path = options.folder / f"{options.sample}.json"
    path.write_text(json.dumps(figures, indent=1))
    print(path)


def simulated(options: argparse.Namespace) -> dict[str, Any]:
    folder = options.folder
    training = labelled(
        folder / "train.h5", lambda: simulate_hedm(HedmSettings(frames=250, **SAMPLE), seed=11)
    )
    # The truth is known, so that no fit need vouch for a label, and faint peaks are learnt too.
    assert training.truth_px is not None
    known = np.isfinite(training.truth_px).all(axis=1) & (training.flags & ~np.uint8(4) == 0)
    training = replace(training, good=known)
    predictor = network(folder, lambda: training)
    settings = HedmSettings(frames=options.frames, **SAMPLE)
    series = simulate_hedm(settings, seed=0)
    found = labelled(folder / f"frames{options.frames}.h5", lambda: series)
    geometry = simulated_geometry(settings)
    crystal = np.linalg.inv(MATERIALS[settings.material].reciprocal()).T
    # ImageD11's axes: x along the beam, z up.
    truth = np.einsum("gij,jk->gki", series.grains.rotations, crystal)[:, :, [2, 0, 1]]
    places = series.grains.positions_mm[:, [2, 0, 1]] * 1e3
    rotation = Rotation(table_deg=found.omega_deg)
    figures: dict[str, Any] = {
        "sample": "simulated",
        "settings": str(settings),
        "find_cpu_s": finding_seconds(series, folder),
        "lists": {},
    }
    for name, positions, intervals, seconds in lists(found, predictor):
        spots, merge_s = merged(found, positions, intervals, rotation)
        told = imaged11(options.readers, spots, geometry, folder / name)
        told |= {"locate_cpu_s": seconds, "merge_cpu_s": merge_s, "merged_spots": len(spots)}
        figures["lists"][name] = told | compared(told.pop("grains"), truth, places)
    return figures


def compared(found: Any, truth: Float, places: Float) -> dict[str, Any]:
    """Compare refined grains with known ones, each found grain with the nearest orientation."""
    angles, strains, distances, spots, taken = [], [], [], [], set()
    residuals: dict[str, list[float]] = {"row_px": [], "col_px": [], "omega_deg": []}
    for one in found:
        ubi = np.array(one["ubi"])
        best = min(range(len(truth)), key=lambda k: misorientation(ubi, truth[k])[0])
        angle, strain = misorientation(ubi, truth[best])
        if angle > 0.25 or best in taken:
            continue
        taken.add(best)
        angles.append(angle)
        strains.append(strain)
        distances.append(np.array(one["translation_um"]) - places[best])
        spots.append(one["spots"])
        for name, values in residuals.items():
            values.extend(one[name])
    strain_rms = np.sqrt(np.mean(np.square(strains), axis=(1, 2))) if strains else np.empty(0)
    return {
        "grains_known": len(truth),
        "grains_found": len(taken),
        "false": len(found) - len(taken),
        "spots_per_grain": float(np.mean(spots)),
        "misorientation_deg": quantiles(angles),
        "strain": quantiles(strain_rms),
        "position_um": quantiles(np.linalg.norm(distances, axis=1)),
        "residual": {name: robust(values) for name, values in residuals.items()},
        "each": {
            "misorientation_deg": [float(f"{angle:.3g}") for angle in angles],
            "strain": [float(f"{strain:.3g}") for strain in strain_rms],
            "position_um": np.linalg.norm(distances, axis=1).round(2).tolist(),
        },
    }


def quantiles(values: Any) -> dict[str, float]:
    p50, p95 = np.percentile(values, [50, 95])
    return {"mean": float(np.mean(values)), "p50": float(p50), "p95": float(p95)}


def robust(values: Any) -> float:
    """Give the standard deviation of the middle, 1.4826 times the median from the median."""
    return float(1.4826 * np.median(np.abs(values - np.median(values))))


SYMMETRY = [
    np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]) @ flip
    for a in np.arange(6) * np.pi / 3
    for flip in (np.eye(3), np.diag([1.0, -1.0, -1.0]))
]
"""Rotations of the hexagonal lattice; positions of spots do not tell its two trigonal settings."""


def misorientation(ubi: Float, reference: Float) -> tuple[float, Float]:
    """Smallest angle in degrees between two lattices, and the strain that is left.

    Rows of both are the edges of the cell, in the axes of the sample.
    """
    best: tuple[float, Float] = (360.0, np.zeros((3, 3)))
    # The crystal axes of the reference: x along a, z along c.
    axes = np.stack([reference[0], np.cross(reference[2], reference[0]), reference[2]])
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    for turn in SYMMETRY:
        turned = reference @ axes.T @ turn.T @ axes
        gradient = np.linalg.solve(turned, ubi).T
        left, stretch, right = np.linalg.svd(gradient)
        angle = np.rad2deg(np.arccos(np.clip((np.trace(left @ right) - 1) / 2, -1, 1)))
        if angle < best[0]:
            best = float(angle), left @ np.diag(np.log(stretch)) @ left.T
    return best


def ruby(options: argparse.Namespace) -> dict[str, Any]:
    folder, data = options.folder, options.data
    imitation = HedmSettings.ruby_dexela(
        shape=(1024, 1024), beam_centre_px=(512.0, -600.0), frames=360, grains=250
    )
    training = labelled(folder / "train.h5", lambda: simulate_hedm(imitation, seed=5))
    predictor = network(folder, lambda: with_synthetic_peaks(training, 60_000, seed=0), epochs=60)
    found = labelled(folder / "ruby.h5", lambda: open_frames(data / "ruby_ff1_framecache.npz"))
    detector = RubyDetector.read(data / "instrument_dexelas_id3a_20200130.yml")
    rotation = Rotation(0.0, 360 / FULL_TURN_FRAMES)
    geometry = detector.geometry() | {
        "cell": RUBY_CELL, "index_ds": 0.75, "index_steps": [[60, 0.03], [40, 0.05]],
        "index_angle_deg": 0.3, "index_ds_tol": 0.005, "most_grains": 10,
        "index_multiplicity": 13, "refine_tolerances": [0.05, 0.03, 0.02], "refine_steps": 200,
        "omega_float": False, "omega_slop_deg": 0.125, "least_spots": 40,
    }  # fmt: skip
    located = {name: (place, width, s) for name, place, width, s in lists(found, predictor)}
    merged_lists = {
        name: merged(found, place, width, rotation) for name, (place, width, _) in located.items()
    }
    # By the fits alone: one correction for all three lists.
    correction = Correction.none()
    steps = []
    for _ in range(4):
        told = imaged11(
            options.readers, correction.applied(merged_lists["fits"][0]), geometry, folder / "step"
        )
        steps.append(residuals_of(told["grains"]))
        correction = correction.refined(merged_lists["fits"][0], told["grains"])
    reference = detector.reference(data / "hexrd_fit_grains.out", RUBY_CELL)
    with open_frames(data / "ruby_ff1_framecache.npz") as series:
        find_s = finding_seconds(series, folder)
    figures: dict[str, Any] = {
        "sample": "ruby", "find_cpu_s": find_s, "correction_steps": steps, "lists": {}
    }  # fmt: skip
    for name, (spots, merge_s) in merged_lists.items():
        told = imaged11(options.readers, correction.applied(spots), geometry, folder / name)
        told |= {"locate_cpu_s": located[name][2], "merge_cpu_s": merge_s}
        grains = told.pop("grains")
        told |= against_reference(grains, reference) | {"merged_spots": len(spots)}
        figures["lists"][name] = told | {"residual": residuals_of(grains)}
    return figures


def residuals_of(grains: Any) -> dict[str, float]:
    return {
        name: robust(np.concatenate([one[name] for one in grains]))
        for name in ("row_px", "col_px", "omega_deg")
    }


def against_reference(grains: Any, reference: list[tuple[Float, Float]]) -> dict[str, Any]:
    """Compare with hexrd's grains, before and after one rotation that is common to all."""
    pairs = []
    for ubi, place in reference:
        one = min(grains, key=lambda g: misorientation(np.array(g["ubi"]), ubi)[0])
        pairs.append((one, ubi, place))
    plain = [misorientation(np.array(one["ubi"]), ubi)[0] for one, ubi, _ in pairs]
    common = common_rotation([(np.array(one["ubi"]), ubi) for one, ubi, _ in pairs])
    left = [misorientation(np.array(one["ubi"]) @ common, ubi)[0] for one, ubi, _ in pairs]
    turn = np.rad2deg(np.arccos(np.clip((np.trace(common) - 1) / 2, -1, 1)))
    return {
        "grains_found": len(grains),
        "spots": [one["spots"] for one, _, _ in pairs],
        "misorientation_deg": plain,
        "common_rotation_deg": float(turn),
        "misorientation_left_deg": left,
        "apart_um": [
            (np.array(one["translation_um"]) - place).round(1).tolist() for one, _, place in pairs
        ],
    }


def common_rotation(pairs: list[tuple[Float, Float]]) -> Float:
    """Rotation of the sample axes that brings all lattices nearest to the reference (Kabsch)."""
    total = np.zeros((3, 3))
    for ubi, reference in pairs:
        axes = np.stack([reference[0], np.cross(reference[2], reference[0]), reference[2]])
        axes /= np.linalg.norm(axes, axis=1, keepdims=True)
        turned = min(
            (reference @ axes.T @ turn.T @ axes for turn in SYMMETRY),
            key=lambda one: np.abs(one - ubi).sum(),
        )
        total += ubi.T @ turned
    left, _, right = np.linalg.svd(total)
    rotation: Float = left @ np.diag([1, 1, np.linalg.det(left @ right)]) @ right
    return rotation


def labelled(path: Path, make: Any) -> PeakDataset:
    """Detect and fit the peaks of a series, or load them from an earlier run."""
    if not path.exists():
        series: FrameSeries = make()
        label_frames(series).save(path)
    return PeakDataset.load(path)


def network(folder: Path, make: Callable[[], PeakDataset], *, epochs: int = 100) -> PeakPredictor:
    """Train and export a network, or open that of an earlier run."""
    bundle = folder / "network.edgex"
    if not bundle.exists():
        dataset = make()
        split = dataset.split()
        torch.manual_seed(0)
        settings = TrainingSettings(epochs=epochs, batch_size=128, learning_rate=2e-3)
        data = TrainingData.from_dataset(dataset, split)
        model = train(mlp_bragg_symmetric(96, 2), data, settings).model
        key = folder / "signing" / "grains.key.pem"
        if not key.exists():
            generate_keys(folder / "keys", name="grains", private=key.parent)
        export_bundle(
            bundle, model=model, dataset=dataset, split=split, signing_key=key,
            architecture="mlpBraggSymmetric",
        )  # fmt: skip
    return open_predictor(folder)


def open_predictor(folder: Path) -> PeakPredictor:
    return PeakPredictor(
        folder / "network.edgex", trust=folder / "keys", engine="onnxruntime", batch=1024
    )


def lists(
    found: PeakDataset, predictor: PeakPredictor
) -> Iterator[tuple[str, Float, Float, float]]:
    """Give name, positions and intervals of all peaks, and the CPU seconds of locating them."""
    corner = found.maxima - CENTRE
    began = time.process_time()
    with predictor:
        told = predictor.predict(found.counts)
    seconds = time.process_time() - began
    yield "network", corner + told.positions_px.astype(np.float64), told.intervals_px, seconds
    began = time.process_time()
    fit_pseudo_voigt(found.counts[:20_000], threads=1)
    seconds = (time.process_time() - began) * max(len(found.counts) / 20_000, 1)
    # Fits and centroids state no interval; all of their peaks weigh the same.
    width = np.full(corner.shape, 0.1)
    place = found.maxima + found.offsets_px.astype(np.float64)
    yield "fits", np.where(np.isfinite(place), place, found.maxima), width, seconds
    began = time.process_time()
    place = corner + centroid(found.counts).astype(np.float64)
    yield "centroids", place, width, time.process_time() - began


def finding_seconds(series: FrameSeries, folder: Path, *, frames: int = 40) -> float:
    """CPU seconds from all frames in memory to patches and positions, measured on some."""
    some = np.stack([series[k] for k in np.linspace(0, len(series) - 1, frames).astype(int)])
    with open_predictor(folder) as predictor:
        predictor.calibrate_background(some)
        # The first call loads what is compiled.
        for _ in predictor.stream(some[:2]):
            pass
        began = time.process_time()
        for _ in predictor.stream(some):
            pass
        return (time.process_time() - began) / frames * len(series)


def merged(
    found: PeakDataset, positions: Float, intervals: Float, rotation: Rotation
) -> tuple[Spots, float]:
    """Merge the peaks of all frames; return also the CPU seconds."""
    merger = SpotMerger(rotation)
    edges = np.searchsorted(found.frame, np.arange(found.frames + 1))
    counts = found.counts[:, CENTRE, CENTRE]
    began = time.process_time()
    parts = []
    for number in range(found.frames):
        rows = slice(edges[number], edges[number + 1])
        parts.append(
            merger.add_arrays(
                number, positions[rows], intervals[rows], counts[rows], found.flags[rows]
            )
        )
    return Spots.joined([*parts, merger.finish()]), time.process_time() - began


def imaged11(python: str, spots: Spots, geometry: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Index and refine with ImageD11."""
    folder.mkdir(exist_ok=True)
    write_columnfile(folder / "spots.flt", spots)
    (folder / "geometry.json").write_text(json.dumps(geometry))
    program = Path(__file__).with_name("imaged11_grains.py")
    arguments = [folder / "spots.flt", folder / "geometry.json", folder / "grains.json"]
    subprocess.run(
        [python, str(program), *map(str, arguments)],
        check=True,
        env={"PYTHONPATH": "", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
    )
    told: dict[str, Any] = json.loads((folder / "grains.json").read_text())
    return told


def simulated_geometry(settings: HedmSettings) -> dict[str, Any]:
    """Tell ImageD11 where the pixels are, and how to index."""
    height, width = settings.shape
    row, col = (v.ravel() for v in np.meshgrid([0, height / 2, height], [0, width / 2, width]))
    pixel = settings.pixel_mm * 1e3
    x, y = (col - settings.centre_px[1]) * pixel, (settings.centre_px[0] - row) * pixel
    places = np.stack([np.full(row.shape, settings.distance_mm * 1e3), x, y], axis=1)
    return {
        "pixels": np.stack([row, col], axis=1).tolist(), "places_um": places.tolist(),
        "pixel_um": pixel, "wavelength": HC_KEV_ANGSTROM / settings.energy_kev,
        "cell": RUBY_CELL, "wedge_deg": 0.0, "index_ds": 0.8,
        "index_steps": [[50, 0.05], [35, 0.08]], "index_angle_deg": 0.25, "index_ds_tol": 0.005,
        "most_grains": 400, "index_multiplicity": 13, "refine_tolerances": [0.05, 0.03, 0.02],
        "refine_steps": 100, "omega_float": False, "omega_slop_deg": 0.05, "least_spots": 60,
    }  # fmt: skip


if __name__ == "__main__":
    main()
