"""How often intervals hold on other detectors, and which peaks are found unfamiliar.

    python host/interval_coverage.py DATA --runs runs/coverage --page docs/results

DATA holds the sets of real frames by their names (`hexrd_ruby_dexela`, ...). Trains one network on
simulated frames and one on each real set, exports each, and lets its bundle predict every set. A
set of real frames has the pseudo-Voigt fit for its truth.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from ruby_detector import SHAPE as RUBY_SHAPE

from edgexnas.bundle import generate_keys
from edgexnas.demo.markdown import hardware
from edgexnas.device.bragg.predictor import PeakPredictor
from edgexnas.familiarity import reason_name
from edgexnas.frames import LazyFrames, open_frames
from edgexnas.host.data.peak_dataset import PeakDataset
from edgexnas.host.data.peak_labels import label_frames
from edgexnas.host.data.synthetic_peaks import with_synthetic_peaks
from edgexnas.host.exporting.bundle_export import export_bundle
from edgexnas.host.exporting.conformal import conformal_factor, interval_scores, wilson
from edgexnas.host.exporting.peak_trust import has_position
from edgexnas.host.networks.symmetric_mlp import mlp_bragg_smooth
from edgexnas.host.training.loop import train
from edgexnas.host.training.settings import TrainingData, TrainingSettings
from edgexnas.simulate import HedmSettings, simulate_hedm

SIMULATED = HedmSettings(shape=(768, 768), frames=240, grains=60)
FEW = {"shape": (768, 768), "frames": 60, "grains": 60}
KINDS: dict[str, dict[str, Any]] = {
    "wide": {"fwhm_quantiles_px": (3.6, 6.0)},
    "narrow": {"fwhm_quantiles_px": (0.5, 0.9)},
    "long": {"elongation_quantiles": (2.5, 5.0)},
    "thresholded": {"sparse_threshold": 80.0},
    "gain": {"counts_per_photon": 30.0},
    "faint": {"peak_quantiles": (8.0, 40.0), "background_counts": 0.5, "readout_noise": 0.0},
}
"""Simulated kinds of which the network on simulated frames sees nothing."""
MOST = 3000
FEWEST = 200
LEVEL = 0.9
BASE: dict[str, str] = {
    "ruby": "hexrd_ruby_dexela/ruby_ff1_framecache.npz",
    "silicon": "imaged11_silicon_eiger/silicon_fullscan_strong_sparse.h5",
    "frelon": "raw_bragg_frames/F2K_Seb_Lyso0675.edf.bz2",
}
SILICON_SHAPE, SILICON_FRAMES = (2162, 2068), 3000


class SparseFrames(LazyFrames):
    """Frames of a sparse file of ImageD11 that are not empty, spread over the scan."""

    def __init__(self, path: Path) -> None:
        with h5py.File(path) as file:
            group = file["1.1"]
            sizes = group["nnz"][()]
            self._pixels = [group[name][()] for name in ("row", "col", "intensity")]
        self._starts = np.concatenate([[0], np.cumsum(sizes)])
        lit = np.flatnonzero(sizes)
        self._numbers = lit[np.linspace(0, len(lit) - 1, SILICON_FRAMES).astype(int)]
        super().__init__(
            count=SILICON_FRAMES, shape=SILICON_SHAPE, dtype=np.dtype(np.uint16),
            source=path.name, omega_deg=None, mask=None, truth=None,
        )  # fmt: skip

    def _frame(self, index: int) -> Any:
        start, end = self._starts[self._numbers[index] :][:2]
        row, col, counts = (column[start:end] for column in self._pixels)
        frame = np.zeros(self.shape, self.dtype)
        frame[row, col] = counts
        return frame


def labelled(folder: Path, name: str, make: Callable[[], PeakDataset]) -> PeakDataset:
    """Label a set, once."""
    path = folder / f"{name}.h5"
    if not path.exists():
        make().save(path)
    return PeakDataset.load(path)


def simulated(**changes: Any) -> PeakDataset:
    return label_frames(simulate_hedm(HedmSettings(**{**asdict(SIMULATED), **changes}), seed=11))


def real(path: Path) -> PeakDataset:
    if "silicon" in path.name:
        return label_frames(SparseFrames(path))
    with open_frames(path) as series:
        assert "ruby" not in path.name or series.shape == RUBY_SHAPE
        return label_frames(series)


def sets(data: Path, folder: Path) -> Iterator[tuple[str, PeakDataset]]:
    yield "simulated", labelled(folder, "simulated", simulated)
    for name, path in BASE.items():
        yield name, labelled(folder, name, partial(real, data / path))
    for name, changes in KINDS.items():
        yield name, labelled(folder, name, partial(simulated, **FEW, **changes))


def bundle(folder: Path, name: str, dataset: PeakDataset, seconds: float) -> Path:
    """Train mlpBraggSmooth for a while, and export it."""
    path = folder / f"{name}.edgex"
    if path.exists():
        return path
    if name == "ruby":
        dataset = with_synthetic_peaks(dataset, 30_000)
    split = dataset.split()
    torch.manual_seed(0)
    settings = TrainingSettings(learning_rate=3e-3, seconds=seconds, device="cpu")
    model = train(
        mlp_bragg_smooth(23, 3), TrainingData.from_dataset(dataset, split, "cpu"), settings
    )
    export_bundle(
        path, model=model.model, dataset=dataset, split=split, architecture=f"{name} 23×3",
        signing_key=folder / "keys" / "coverage.key.pem", maximum_loss=1.0,
    )  # fmt: skip
    return path


@dataclass(frozen=True)
class Row:
    """What a bundle says of the peaks of a set."""

    trained_on: str
    set: str
    peaks: int
    """That carry no flag and have a position to score against."""
    against: str
    before: float
    """Coverage of the network's own intervals, neither calibrated nor widened."""
    coverage: float
    labelled: float
    """The same of peaks whose fit is good enough to learn from."""
    low: float
    high: float
    width_px: float
    """Median full width."""
    width_here_px: float
    """The same of intervals that are calibrated on this set."""
    unfamiliar: float
    """Share of peaks without a flag."""
    unfamiliar_of_all: float
    """The same of all peaks on these frames."""
    wrong: int
    """Peaks whose error exceeds twice the half width of the calibrated, unwidened interval."""
    wrong_unfamiliar: float | None
    quantities: dict[str, float]
    """Shares of the peaks by what makes them unfamiliar."""


def scored(predictor: PeakPredictor, trained_on: str, name: str, dataset: PeakDataset) -> Row:
    found = found_on(dataset, own=trained_on == name)
    counts, targets, frame = dataset.counts[found], dataset.targets_px[found], dataset.frame[found]
    inputs, flags = dataset.inputs()[found][:, 0], dataset.flags[found]
    checks = predictor.checks
    assert checks is not None
    plain = predictor._lanes.offsets(inputs)
    heights = np.ascontiguousarray(counts[:, counts.shape[1] // 2, counts.shape[2] // 2])
    ends, why = plain.copy(), np.zeros(len(found), np.uint8)
    # Judged frame by frame, as a device does.
    for number in np.unique(frame):
        here = np.flatnonzero(frame == number)
        offsets = plain[here]
        why[here] = checks.judge(inputs[here], heights[here], offsets, flags[here]).reasons
        ends[here] = offsets
    unwidened = type(checks)(
        predictor.manifest.interval_calibration, None,
        levels=predictor.manifest.quantile_levels, precision=predictor.engine.precision,
    )  # fmt: skip
    calibrated = plain.copy()
    unwidened.judge(inputs, heights, calibrated, flags.copy())
    middle = checks.middle
    half = (calibrated[:, :, -1] - calibrated[:, :, 0]) / 2
    held = (ends[:, :, 0] <= targets) & (targets <= ends[:, :, -1])
    before = (plain[:, :, 0] <= targets) & (targets <= plain[:, :, -1])
    good = dataset.good[found]
    used = has_position(dataset)[found] & (flags == 0)
    wrong = used & (np.abs(plain[:, :, middle] - targets) > 2 * half).any(axis=1)
    factor = conformal_factor(interval_scores(plain[used], targets[used], middle), LEVEL)
    low, high = wilson(float(held[used].mean()), int(used.sum()))
    width, own = (ends[:, :, -1] - ends[:, :, 0]), (plain[:, :, -1] - plain[:, :, 0]) * factor
    codes, numbers = np.unique(why[why > 0], return_counts=True)
    return Row(
        trained_on=trained_on,
        set=name,
        peaks=int(used.sum()),
        against=dataset.against,
        before=float(before[used].mean()),
        coverage=float(held[used].mean()),
        labelled=float(held[good].mean()),
        low=low,
        high=high,
        width_px=float(np.median(width[used])),
        width_here_px=float(np.median(own[used])),
        unfamiliar=float((why > 0)[flags == 0].mean()),
        unfamiliar_of_all=float((why > 0).mean()),
        wrong=int(wrong.sum()),
        wrong_unfamiliar=float((why > 0)[wrong].mean()) if wrong.any() else None,
        quantities={
            reason_name(int(code)): float(number / len(why))
            for code, number in zip(codes, numbers, strict=True)
        },
    )


def found_on(dataset: PeakDataset, *, own: bool) -> np.ndarray[Any, Any]:
    """Give what a device finds: on the frames of the test part, or on the first ones."""
    if not own:
        return np.arange(len(dataset.counts))[:MOST]
    split = dataset.split()
    assert split.rest is not None
    return np.sort(np.concatenate([split.test, split.rest.test]))


def page(record: dict[str, Any]) -> str:
    rows = [Row(**row) for row in record["rows"]]
    lines = [
        "# Coverage of intervals",
        "",
        f"`{record['command']}`, on {record['hardware']}. mlpBraggSmooth 23×3, "
        f"{record['seconds']:g} s of training, INT8. Intervals are to hold 90 % of coordinates; "
        "*own width* is that of intervals calibrated on the set itself. *Wrong*: peaks whose error "
        "exceeds twice the half width of the unwidened interval. Real sets are scored against the "
        "pseudo-Voigt fit, simulated ones against the truth; a bundle's own set by its test part, "
        "of which nothing was learned. Peaks without a flag count; *labelled* are those with a fit "
        "good enough to learn from, of real sets all that are scored.",
        "",
        "| trained on | set | peaks | coverage before | coverage (95 % interval) | labelled | "
        "width / own width | unfamiliar | wrong | of these unfamiliar | most by |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        most = max(row.quantities.items(), key=lambda item: item[1], default=("", 0.0))[0]
        found = "" if row.wrong_unfamiliar is None else f"{row.wrong_unfamiliar:.3f}"
        own = "**" if row.trained_on == row.set else ""
        lines.append(
            f"| {row.trained_on} | {own}{row.set}{own} | {row.peaks:,} | {row.before:.3f} | "
            f"{own}{row.coverage:.3f}{own} ({row.low:.3f}–{row.high:.3f}) | "
            f"{row.labelled:.3f} | {row.width_px / row.width_here_px:.2f} | "
            f"{row.unfamiliar:.3f} | {row.wrong:,} | {found} | {most} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder of the sets of real frames")
    parser.add_argument("--runs", type=Path, required=True, help="labels and bundles are kept here")
    parser.add_argument("--seconds", type=float, default=60, help="of each training")
    parser.add_argument("--note", default="", help="on the hardware, for the page")
    parser.add_argument("--page", type=Path, help="folder for coverage.json and coverage.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.runs.mkdir(parents=True, exist_ok=True)
    if not (options.runs / "keys").exists():
        generate_keys(options.runs / "keys", name="coverage")
    every = {
        name: dataset for name, dataset in sets(options.data, options.runs)
        if dataset.good.sum() >= FEWEST
    }  # fmt: skip
    rows = []
    for trained_on in ("simulated", "ruby", "silicon"):
        path = bundle(options.runs, trained_on, every[trained_on], options.seconds)
        with PeakPredictor(path, trust=options.runs / "keys", batch=512) as predictor:
            for name, dataset in every.items():
                if trained_on == "simulated" or name not in KINDS:
                    rows.append(scored(predictor, trained_on, name, dataset))
                    print(json.dumps(asdict(rows[-1])), flush=True)
    record = {
        "command": f"python host/interval_coverage.py DATA --runs runs/coverage --seconds "
        f"{options.seconds:g} --page docs/results",
        "hardware": f"{hardware()}{options.note and '; ' + options.note}",
        "seconds": options.seconds,
        "rows": [asdict(row) for row in rows],
    }
    print(page(record))
    if options.page is not None:
        (options.page / "coverage.json").write_text(json.dumps(record, indent=1) + "\n")
        (options.page / "coverage.md").write_text(page(record))


if __name__ == "__main__":
    main()
