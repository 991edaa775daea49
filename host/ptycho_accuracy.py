"""Networks for ptychography beside what they may not lose to: the tables of docs/results.

    python host/ptycho_accuracy.py star --scan siemens-star-small.npz.bz2 --device cuda
    python host/ptycho_accuracy.py simulated --draw 40 --device cuda

Stages can be run one by one, and what is in the run folder is not made again: `prepare` labels the
scans and finds the beam, `train` trains the named networks and those drawn at random from the
spaces, `export` makes bundles of the named networks, `report` of the best ones, and writes page
and picture. Several processes that train may share a GPU, each with its `--share`.

The right quarter of each scan tests; see `edgexnas.host.data.scan_regions`. Its patterns and labels
serve neither training, nor the beam and object that patterns are drawn from, nor any choice: those
are made on the validation part.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import nn

from edgexnas.bundle import AccuracyRow, generate_keys, open_bundle
from edgexnas.host import (
    Configuration,
    PtychoDataset,
    Reconstruction,
    Split,
    TrainingData,
    TrainingSettings,
    count_parameters,
    export_bundle,
    label_scan,
    reconstruct,
    train,
)
from edgexnas.host.data.ptycho_labels import cut_patches
from edgexnas.host.data.scan_parts import part_of_scan
from edgexnas.host.data.synthetic_patterns import (
    Drawing,
    ObjectVariety,
    PatternSource,
    drawn_dataset,
    with_probe,
)
from edgexnas.host.exporting.ptycho_baselines import ridge_prediction
from edgexnas.host.exporting.scoring import patch_row
from edgexnas.host.networks.ptycho_models import PtychoNN
from edgexnas.host.networks.spaces import SPACES
from edgexnas.host.training.ptycho_criterion import PatchCriterion
from edgexnas.host.training.ptycho_pretraining import PretrainingSettings, pretrain
from edgexnas.scans import Scan, open_scan
from edgexnas.simulate import PtychographySettings, simulate_scan

OBJECTS = 256
OBJECTS_SEED = 1000
"""None of a simulated scan's."""
RIDGE_PATTERNS = 4000
"""Drawn for a ridge regression: it solves for all of them at once."""
BASELINE = "PtychoNN"
LARGEST = 1_247_074
"""Parameters of PtychoNN: no drawn network is larger."""
LOWER_ERROR, SMALLER = 0.1677, 0.1282
"""The paper's two claims against PtychoNN."""

ROWS = TypeAdapter(tuple[AccuracyRow, ...])

MEASURED = "+measured"
"""Ends the name of a network that is to train on the scan's own patterns alone."""
MEASURED_ONLY = TrainingSettings(
    epochs=300, batch_size=32, learning_rate=1e-3, augment=False, normalise=True
)
FINE_TUNING = TrainingSettings(epochs=40, batch_size=32, learning_rate=1e-4, augment=False)
INT8_TUNING = TrainingSettings(epochs=8, batch_size=32, learning_rate=5e-5, augment=False)

# Table 1's ranges, as far as networks of PtychoNN's size go.
DRAWN = {
    "mlpPtycho": SPACES["mlpPtycho"].narrow(units=(8, 100), layers=(1, 5)),
    "cnnPtycho": SPACES["cnnPtycho"].narrow(
        filters=(8, 96), encoder_layers=(3, 12), decoder1_layers=(3, 12), decoder2_layers=(3, 12)
    ),
}
SIMULATED = tuple(
    PtychographySettings(object_kind=kind, scan=scan, jitter_px=1.0)  # type: ignore[arg-type]
    for kind, scan in (("siemens-star", "raster"), ("circuit", "spiral"), ("cells", "random"))
)


@dataclass(frozen=True)
class Case:
    """Data that the networks of one page share, and where fresh patterns come from."""

    scans: tuple[Scan, ...]
    dataset: PtychoDataset
    split: Split
    drawing: Drawing
    objects: np.ndarray
    iterative: dict[str, np.ndarray]
    """Patches (len(split.test), 2, 64, 64) of further reconstructions, for their rows."""

    def source(self, seed: int, device: str = "cpu") -> PatternSource:
        """Draw patterns as a search does, by a seed."""
        return self.drawing.source(objects=self.objects, seed=seed, device=device)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What is known of a trained network; its weights lie beside this record."""

    name: str
    parameters: int
    pretrained_rad: float
    validation_rad: float
    test_rad: float
    test_amplitude: float
    steps: int
    batch: int
    rate: float
    seconds: float

    @property
    def space(self) -> str:
        """PtychoNN or the name of a space."""
        return self.name.partition("-")[0]


def main() -> None:
    options = parsed()
    options.runs.mkdir(parents=True, exist_ok=True)
    if not (options.runs / "keys").exists():
        generate_keys(options.runs / "keys")
    torch.set_num_threads(options.threads)
    case = star_case(options) if options.case == "star" else simulated_case(options)
    if "train" in options.stages:
        wanted = [*options.networks, *drawn_names(options.draw)]
        part, parts = map(int, options.share.split("/"))
        for name in wanted[part - 1 :: parts]:
            network = train_network(name, case, options)
            if "export" in options.stages and name in options.networks:
                exported(network, case, options.runs)
    elif "export" in options.stages:
        known = {network.name: network for network in trained(options.runs)}
        for name in options.networks:
            exported(known[name], case, options.runs)
    if "report" in options.stages:
        from ptycho_pages import write_page

        write_page(case, trained(options.runs), options)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", choices=("star", "simulated"))
    parser.add_argument("stages", nargs="*", default=["prepare", "train", "report"])
    parser.add_argument("--scan", type=Path, help="the measured star, .npz.bz2")
    parser.add_argument("--networks", nargs="*", default=[BASELINE], metavar="SPACE-SIZE-SIZE")
    parser.add_argument("--draw", type=int, default=0, help="networks drawn from each space")
    parser.add_argument("--share", default="1/1", help="k/n trains the k-th of n shares")
    parser.add_argument("--steps", type=int, default=10000, help="of pre-training")
    parser.add_argument("--batch", type=int, default=32, help="patterns a step")
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--seconds", type=float, help="pre-training takes no longer")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches")
    parser.add_argument("--fine-tune", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs/ptycho"))
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    return parser.parse_args()


def star_case(options: argparse.Namespace) -> Case:
    """Label the real star, and find beam and object of its training part alone."""
    scan = open_scan(options.scan)
    labels, again = (options.runs / name for name in ("labels.h5", "again.npz"))
    if not labels.exists():
        dataset = label_scan(scan, device=options.device)
        with_probe(dataset, scan, device=options.device).save(labels)
    dataset = PtychoDataset.load(labels)
    split = dataset.split()
    drawing = Drawing.of(dataset, split.train)
    assert drawing is not None
    if "report" in options.stages and not again.exists():
        half = np.arange(0, len(scan), 2)
        found = {
            "rPIE, another seed": reconstruct(scan, seed=1, device=options.device),
            "rPIE, every second pattern": reconstruct(
                part_of_scan(scan, half), device=options.device
            ),
        }
        kept: dict[str, Any] = {
            name: test_patches(again, scan, split.test, dataset) for name, again in found.items()
        }
        np.savez(again, **kept)
    objects = kept_objects(options.runs, drawing)
    return Case((scan,), dataset, split, drawing, objects, kept_patches(again))


def kept_objects(runs: Path, drawing: Drawing) -> np.ndarray:
    """Draw objects, or read those that were drawn."""
    place = runs / "objects.npy"
    if not place.exists():
        np.save(place, drawing.objects(OBJECTS, seed=OBJECTS_SEED))
    objects: np.ndarray = np.load(place)
    return objects


def kept_patches(path: Path) -> dict[str, np.ndarray]:
    """Read the patches of further reconstructions; only the stage `report` makes them."""
    if not path.exists():
        return {}
    with np.load(path) as found:
        return dict(found)


def test_patches(
    found: Reconstruction, scan: Scan, test: np.ndarray, dataset: PtychoDataset
) -> np.ndarray:
    """Cut test patches out of a reconstruction whose object has an origin of its own."""
    origin = found.positions_px[0] - scan.positions_px[0]
    patches = cut_patches(found.object, scan.positions_px[test] + origin)
    return in_gauge_of(patches, dataset.targets[test])


def simulated_case(options: argparse.Namespace) -> Case:
    """Label three simulated scans by their objects; fresh patterns show other objects."""
    scans = tuple(simulate_scan(settings, seed=k) for k, settings in enumerate(SIMULATED))
    first = label_scan(scans[0])
    others = [label_scan(scan, intensity_scale=first.intensity_scale) for scan in scans[1:]]
    dataset = PtychoDataset.concatenate([first, *others])
    split = dataset.split()
    file = options.runs / "again.npz"
    if "report" in options.stages and not file.exists():
        patches, start = [], 0
        for scan in scans:
            found = reconstruct(replace(scan, truth=None), device=options.device)
            here = split.test[(split.test >= start) & (split.test < start + len(scan))]
            own = cut_patches(found.object, found.positions_px[here - start])
            patches.append(in_gauge_of(own, dataset.targets[here]))
            start += len(scan)
        np.savez(file, rPIE=np.concatenate(patches))
    settings = SIMULATED[0]
    variety = ObjectVariety(
        phase_shift_rad=(settings.phase_shift_rad,) * 2,
        transmission=(settings.transmission,) * 2,
        amplitude=(1.0, 1.0), zoom=(1.0, 1.0), drift_rad=0.0, roughness=0.0,
        kinds=("siemens-star", "circuit", "cells"),
    )  # fmt: skip
    assert scans[0].probe is not None
    drawing = Drawing(
        probe=scans[0].probe, intensity_scale=dataset.intensity_scale, variety=variety
    )
    objects = kept_objects(options.runs, drawing)
    return Case(scans, dataset, split, drawing, objects, kept_patches(file))


def in_gauge_of(patches: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Take from complex patches what a reconstruction leaves open: tilt and scale of the object."""
    aimed = targets[:, 0] * np.exp(1j * targets[:, 1])
    product = aimed * patches.conj()
    axis = np.arange(patches.shape[1])
    down = np.angle((product[:, 1:] * product[:, :-1].conj()).sum())
    across = np.angle((product[:, :, 1:] * product[:, :, :-1].conj()).sum())
    turned = patches * np.exp(1j * (down * axis[:, None] + across * axis))
    turned *= targets[:, 0].mean() / np.abs(turned).mean()
    return np.stack([np.abs(turned), np.angle(turned)], axis=1).astype(np.float32)


def drawn_names(count: int) -> list[str]:
    """Draw networks of PtychoNN's size at most; a longer list begins with the shorter one."""
    names = []
    for space in DRAWN.values():
        rng = random.Random(f"{space.name}/0")
        mine: list[str] = []
        while len(mine) < count:
            drawn = space.sample(rng)
            if space.size(drawn).parameters <= LARGEST:
                sizes = [str(drawn[name]) for name in architecture(space.name)]
                mine.append("-".join([space.name, *sizes]))
        names += mine
    return list(dict.fromkeys(names))


def architecture(space: str) -> list[str]:
    """Names of the hyperparameters that make a network of a space."""
    trained = ("epochs", "batch_size", "learning_rate")
    return [p.name for p in SPACES[space].hyperparameters if p.name not in trained]


def build(name: str) -> nn.Module:
    """Build PtychoNN, or a network of a space by its sizes, such as mlpPtycho-UNITS-LAYERS.

    "+measured" behind a name changes its training, not the network.
    """
    kind, *sizes = name.removesuffix(MEASURED).split("-")
    if kind == BASELINE:
        return PtychoNN()
    smallest = SPACES[kind].smallest
    # Switches are written as 0 and 1.
    values: Configuration = {
        key: type(smallest[key])(int(size))
        for key, size in zip(architecture(kind), sizes, strict=True)
    }
    return SPACES[kind].build(smallest | values)


def records_of(runs: Path, seed: int) -> Path:
    """Folder of the networks trained with a seed; those of the first lie in the run's own."""
    return runs / f"seed-{seed}" if seed else runs


def train_network(name: str, case: Case, options: argparse.Namespace) -> Trained:
    """Pre-train and fine-tune a network; keep its weights and its scores."""
    record = records_of(options.runs, options.seed) / f"{name}.json"
    if record.exists():
        return Trained(**json.loads(record.read_text()))
    record.parent.mkdir(exist_ok=True)
    started = time.monotonic()
    torch.manual_seed(options.seed)
    model = build(name)
    data = TrainingData.from_dataset(case.dataset, case.split, options.device)
    source = case.source(options.seed, options.device).mixed(data.train_x, data.train_y)
    settings = PretrainingSettings(
        steps=options.steps,
        batch_size=options.batch,
        learning_rate=options.rate,
        time_limit_s=options.seconds,
    )
    steps = 0

    def show(step: int, loss: float, seconds: float) -> None:
        nonlocal steps
        steps = step
        if step % 1000 == 0:
            print(f"{name} step {step} loss {loss:.4f} {seconds:.0f} s", flush=True)

    tuning = MEASURED_ONLY
    if not name.endswith(MEASURED):
        pretrain(model, source, settings, on_steps=show)
        tuning = FINE_TUNING
    model.to(data.device)
    before = PatchCriterion().evaluate(model, data.validation_x, data.validation_y)["error"]
    weights = {key: value.cpu().clone() for key, value in model.state_dict().items()}
    after = before
    if options.fine_tune:
        after = train(model, data, replace(tuning, device=options.device)).metrics["error"]
    if after > before:
        model.load_state_dict(weights)
    test = case.split.test
    scores = PatchCriterion().evaluate(
        model,
        torch.from_numpy(case.dataset.inputs()[test]).to(data.device),
        torch.from_numpy(case.dataset.targets[test]).to(data.device),
    )
    model.cpu()
    result = Trained(
        name=name,
        parameters=count_parameters(model),
        pretrained_rad=before,
        validation_rad=min(before, after),
        test_rad=scores["error"],
        test_amplitude=scores["amplitude_error"],
        steps=steps,
        batch=options.batch,
        rate=options.rate,
        seconds=time.monotonic() - started,
    )
    torch.save(model.state_dict(), record.with_suffix(".pt"))
    record.write_text(json.dumps(asdict(result)))
    print(json.dumps(asdict(result)), flush=True)
    return result


def trained(runs: Path) -> list[Trained]:
    """Read the records of all trained networks."""
    return [Trained(**json.loads(path.read_text())) for path in sorted(runs.glob("*.json"))]


def best(networks: Sequence[Trained], space: str) -> Trained:
    """Choose the network of a space with the lowest error on the validation part."""
    own = [n for n in networks if n.space == space and not n.name.endswith(MEASURED)]
    return min(own, key=lambda n: n.validation_rad)


def exported(network: Trained, case: Case, runs: Path) -> tuple[Path, tuple[AccuracyRow, ...]]:
    """Quantise, sign and write a network's bundle; return it with its accuracy table.

    The table is kept by itself too, and counts where the bundle was left on another machine.
    """
    path, keys = runs / f"{network.name}.edgex", runs / "keys"
    table = runs / "accuracy" / f"{network.name}.json"
    if table.exists():
        return path, ROWS.validate_json(table.read_bytes())
    if not path.exists():
        model = build(network.name)
        model.load_state_dict(torch.load(runs / f"{network.name}.pt", weights_only=True))
        export_bundle(
            path,
            model=model.eval(),
            dataset=case.dataset,
            split=case.split,
            architecture=network.name,
            signing_key=next(keys.glob("*.key.pem")),
            fine_tune=INT8_TUNING,
        )
    rows = open_bundle(path, trust=keys).manifest.accuracy
    table.parent.mkdir(exist_ok=True)
    table.write_bytes(ROWS.dump_json(rows))
    return path, rows


def drawn_ridge(case: Case, runs: Path) -> AccuracyRow:
    """Score a ridge regression that has drawn patterns too, as the networks do."""
    kept = runs / "accuracy" / "ridge regression.json"
    if kept.exists():
        return ROWS.validate_json(kept.read_bytes())[0]
    dataset = case.dataset
    drawn = drawn_dataset(dataset, case.source(seed=1), RIDGE_PATTERNS, source_name="seed 1")
    train = np.concatenate([case.split.train, len(dataset) + np.arange(RIDGE_PATTERNS)])
    joined = PtychoDataset.concatenate([dataset, drawn])
    patches = ridge_prediction(joined, replace(case.split, train=train))
    row = patch_row(
        f"ridge regression, {RIDGE_PATTERNS:,} drawn patterns too",
        patches,
        dataset.targets[case.split.test],
        against=dataset.against,
    )
    kept.parent.mkdir(exist_ok=True)
    kept.write_bytes(ROWS.dump_json((row,)))
    return row


def iterative_rows(case: Case) -> list[AccuracyRow]:
    """Score the further reconstructions on the test part."""
    targets = case.dataset.targets[case.split.test]
    return [
        patch_row(name, patches, targets, against=case.dataset.against)
        for name, patches in case.iterative.items()
    ]


if __name__ == "__main__":
    main()
