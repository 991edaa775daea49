"""Measure the universal bundle: against the truth of simulated peaks, and the fits of real ones.

    python host/universal_accuracy.py --data DATA --output docs/results/universal.md

DATA holds the real frames that docs/results/universal.md names. Writes the page and its JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from edgexnas.bragg import CENTRE, centroid
from edgexnas.device import PeakPredictor
from edgexnas.device.power.device_state import device_name
from edgexnas.frames import LazyFrames, open_frames
from edgexnas.host import PeakDataset, label_frames
from edgexnas.host.data.varied_peaks import draw_varied_peaks, varied_dataset
from edgexnas.simulate import HedmSettings, simulate_hedm

BENCH_SEED = 7_000_021
"""No frame of training, calibration or test comes from it."""

DECADES = ((3, 10), (10, 100), (100, 1000), (1000, 1e5))
EIGER_FRAMES = 4000
RAYLEIGH = float(np.sqrt(np.pi / 4))
"""Mean distance divided by the root of the sum of both variances, for a round normal error."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of real frames; none leaves them out")
    parser.add_argument("--bundle", default="universal")
    parser.add_argument("--trust", type=Path)
    parser.add_argument("--precision", nargs="+", default=["int8", "float32"])
    parser.add_argument("--frames", type=int, default=800, help="simulated ones")
    parser.add_argument("--output", type=Path, default=Path("docs/results/universal.md"))
    parser.add_argument(
        "--adapted", type=Path, nargs="+", default=[], help="JSON that host/adapt_real.py wrote"
    )
    parser.add_argument("--page", action="store_true", help="write the page of the JSON anew")
    options = parser.parse_args()
    figures: dict[str, Any]
    if options.page:
        figures = json.loads(options.output.with_suffix(".json").read_text())
        write(options, figures)
        return
    figures = {"cpu": device_name(Path("/"))}
    sets = dict(simulated_sets())
    varied, decades = varied_set(options.frames)
    for precision in options.precision:
        with PeakPredictor(
            options.bundle, trust=options.trust, precision=precision, state=None, batch=512
        ) as predictor:
            figures["model"] = describe(predictor)
            one: dict[str, Any] = {"decades": {}, "simulated": {}, "real": {}}
            for name, chosen, bounds in decades:
                one["decades"][name] = against_truth(predictor, varied, chosen, bounds)
            for name, dataset in sets.items():
                one["simulated"][name] = against_truth(predictor, dataset, good(dataset))
            if options.data is not None:
                for name, dataset in real_sets(options.data).items():
                    one["real"][name] = against_fits(predictor, dataset)
            figures[precision] = one
    write(options, figures)


def write(options: argparse.Namespace, figures: dict[str, Any]) -> None:
    """Write the page and its JSON, with the adaptations that are given."""
    if options.adapted:
        figures["adapted"] = [json.loads(path.read_text()) for path in options.adapted]
    options.output.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")
    options.output.write_text(page(figures, options.precision))


def describe(predictor: PeakPredictor) -> dict[str, Any]:
    manifest = predictor.manifest
    return {"architecture": manifest.architecture, "parameters": manifest.parameters,
            "sequence": manifest.sequence}  # fmt: skip


def good(dataset: PeakDataset) -> npt.NDArray[np.intp]:
    return np.flatnonzero(dataset.good)


def varied_set(frames: int) -> tuple[PeakDataset, list[tuple[str, Any, Any]]]:
    """Draw frames of any detector; give peaks and, for each decade, which ones and their bounds."""
    peaks = draw_varied_peaks(frames, seed=BENCH_SEED)
    dataset = varied_dataset(peaks, frames)
    bounds = np.hypot(*peaks.bounds_px.T) * RAYLEIGH
    decades = []
    for low, high in DECADES:
        chosen = np.flatnonzero(dataset.good & (peaks.snr >= low) & (peaks.snr < high))
        decades.append((f"{low:g} to {high:g}", chosen, bounds[chosen]))
    return dataset, decades


def simulated_sets() -> list[tuple[str, PeakDataset]]:
    """Label two rotations of the package's other simulator, which no training saw."""
    presets = {
        "rotation, dense": HedmSettings(frames=12, grains=60),
        "rotation, like ruby": HedmSettings.ruby_dexela(frames=24, grains=40),
    }
    return [(n, label_frames(simulate_hedm(preset, seed=21))) for n, preset in presets.items()]


_REAL: dict[str, PeakDataset] = {}


def real_sets(data: Path) -> dict[str, PeakDataset]:
    """Label real frames once."""
    if not _REAL:
        with open_frames(data / "hexrd_ruby_dexela" / "ruby_ff1_framecache.npz") as series:
            _REAL["ruby, Dexela"] = label_frames(series)
        sparse = data / "imaged11_silicon_eiger" / "silicon_fullscan_strong_sparse.h5"
        _REAL["silicon, Eiger"] = label_frames(SparseFrames(sparse, EIGER_FRAMES))
        for name, file in (
            ("lysozyme, Frelon", "F2K_Seb_Lyso0675.edf.bz2"),
            ("GE a-Si", "GE_aSI_detector_image_1529.bz2"),
        ):
            with open_frames(data / "raw_bragg_frames" / file) as series:
                _REAL[name] = label_frames(series)
    return _REAL


class SparseFrames(LazyFrames):
    """Some of the frames of a sparse scan, chosen at random from those that are not empty."""

    def __init__(self, path: Path, count: int) -> None:
        with h5py.File(path) as file:
            group = file["1.1"]
            self._columns = [group[n][()] for n in ("row", "col", "intensity")]
            self._ends = np.concatenate([[0], np.cumsum(group["nnz"][()].astype(np.int64))])
        there = np.flatnonzero(np.diff(self._ends) > 4)
        self._numbers = np.sort(np.random.default_rng(0).choice(there, count, replace=False))
        super().__init__(
            count=count, shape=(2162, 2068), dtype=np.dtype(np.uint16), source=path.name
        )

    def _frame(self, index: int) -> npt.NDArray[Any]:
        number = self._numbers[index]
        part = slice(self._ends[number], self._ends[number + 1])
        row, col, counts = (column[part] for column in self._columns)
        frame = np.zeros(self.shape, np.uint16)
        frame[row, col] = counts
        return frame


def placed(predictor: PeakPredictor, dataset: PeakDataset, chosen: Any) -> tuple[Any, Any]:
    """Offsets and interval ends that the bundle gives for chosen peaks."""
    found = predictor.predict(dataset.counts[chosen])
    return found.positions_px - CENTRE, found.quantiles_px - CENTRE


def against_truth(
    predictor: PeakPredictor, dataset: PeakDataset, chosen: Any, bounds: Any = None
) -> dict[str, Any]:
    ours, quantiles = placed(predictor, dataset, chosen)
    truth = dataset.targets_px[chosen]
    inside = (truth >= quantiles[:, :, 0]) & (truth <= quantiles[:, :, -1])
    row = {
        "peaks": len(chosen),
        "network": spread(ours - truth),
        "fit": spread(dataset.offsets_px[chosen] - truth),
        "centroid": spread(centroid(dataset.counts[chosen]) - CENTRE - truth),
        "coverage": float(inside.mean()),
    }
    if bounds is not None:
        row["bound"] = {"mean": float(bounds.mean()), "p50": float(np.median(bounds))}
    return row


def against_fits(predictor: PeakPredictor, dataset: PeakDataset) -> dict[str, Any]:
    chosen = good(dataset)
    ours, _ = placed(predictor, dataset, chosen)
    fits = dataset.offsets_px[chosen]
    return {
        "peaks": len(chosen),
        "network": spread(ours - fits),
        "centroid": spread(centroid(dataset.counts[chosen]) - CENTRE - fits),
    }


def spread(error: npt.NDArray[Any]) -> dict[str, float]:
    distance = np.linalg.norm(error, axis=1)
    p50, p75, p95 = np.percentile(distance, [50, 75, 95])
    return {"mean": float(distance.mean()), "p50": float(p50), "p75": float(p75),
            "p95": float(p95)}  # fmt: skip


def both(row: dict[str, float]) -> str:
    return f"{row['mean']:.4f} ({row['p50']:.4f})"


def page(figures: dict[str, Any], precisions: list[str]) -> str:
    first, model = figures[precisions[0]], figures["model"]
    lines = [
        "# The universal bundle",
        "",
        f"`python host/universal_accuracy.py --data DATA` on one core of {figures['cpu']}. "
        f"{model['architecture']}, {model['parameters']:,} parameters, {' and '.join(precisions)}; "
        "trained on simulated frames alone. Distances in px. The bound is Cramér and Rao's, of "
        "lone peaks without suppression. The rotations come from another simulator.",
        "",
        "## Simulated frames of any detector, against the truth: mean (median)",
        "",
        "| signal-to-noise | peaks | " + " | ".join(precisions) + " | fit | bound | centroid |",
        "|---|---:|" + "---:|" * (len(precisions) + 3),
    ]
    for name, row in first["decades"].items():
        ours = " | ".join(both(figures[p]["decades"][name]["network"]) for p in precisions)
        lines.append(
            f"| {name} | {row['peaks']:,} | {ours} | {both(row['fit'])} | "
            f"{both(row['bound'])} | {row['centroid']['mean']:.3f} |"
        )
    for name, row in first["simulated"].items():
        ours = " | ".join(both(figures[p]["simulated"][name]["network"]) for p in precisions)
        lines.append(
            f"| {name} | {row['peaks']:,} | {ours} | {both(row['fit'])} |  | "
            f"{row['centroid']['mean']:.3f} |"
        )
    if first["real"]:
        lines += [
            "",
            f"## Real frames, against their fits ({precisions[0]}; p50/75/95)",
            "",
            "Never trained or tuned on; looked at with a draft and with this network alone. GE is "
            "one frame of arcs, whose fits are poor.",
            "",
            "| frames | peaks | network | centroid |",
            "|---|---:|---:|---:|",
        ]
        for name, row in first["real"].items():
            three = [
                "/".join(f"{row[who][p]:.3f}" for p in ("p50", "p75", "p95"))
                for who in ("network", "centroid")
            ]
            lines.append(f"| {name} | {row['peaks']:,} | {three[0]} | {three[1]} |")
    if figures.get("adapted"):
        first = figures["adapted"][0]
        lines += [
            "",
            "## Adapted to frames without labels (INT8, against their fits)",
            "",
            f"`python host/adapt_real.py DATA SET --budget {first['budget']}`, {first['cores']} "
            f"cores of {first['cpu']}. Scored on frames that had no say in what was kept.",
            "",
            "| frames | fits | took, s | network | mean | p50 | p75 | p95 |",
            "|---|---:|---:|---|---:|---:|---:|---:|",
        ]
        for adapted in figures["adapted"]:
            kept = "trained on" if adapted["trained_on"] else "as it was, new intervals"
            for network, when in (("universal", "before"), (kept, "after")):
                cells = " | ".join(f"{value:.4f}" for value in adapted[when].values())
                lines.append(
                    f"| {adapted['frames']} | {adapted['peaks']:,} | {adapted['seconds']:.0f} | "
                    f"{network} | {cells} |"
                )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
