r"""Ptychography by the command line: the tables of docs/results/ptycho-refined.md.

    edgexnas label siemens-star-small.npz.bz2 --output star.h5
    edgexnas optimize ptycho --data star.h5 --output runs/star ...
    edgexnas export runs/star --signing-key keys/beamline.key.pem --output star.edgex
    python host/ptycho_refined.py cut --scan siemens-star-small.npz.bz2 --small star20.npz
    edgexnas label star20.npz --output star20.h5
    edgexnas optimize ptycho --data star20.h5 --output runs/star20 ...
    edgexnas export runs/star20 --signing-key keys/beamline.key.pem --output star20.edgex
    python host/ptycho_refined.py report --scan siemens-star-small.npz.bz2 --labels star.h5 \\
        --bundle star.edgex --small-bundle star20.edgex --trust keys

The right quarter of the scan tests: neither its patterns nor its labels serve the probe, the
training or a choice. The object is refined from the patterns of that quarter alone.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from ptycho_accuracy import in_gauge_of

from edgexnas.device import PtychoPredictor
from edgexnas.host import PtychoDataset
from edgexnas.host.data.ptycho_labels import cut_patches
from edgexnas.host.data.scan_parts import part_of_scan
from edgexnas.ptycho import ObjectImage, PatternStore, Refiner, align_phase, patch_errors
from edgexnas.scans import Scan, open_scan

mpl.use("Agg")

SMALL = 20
SWEEPS = (0, 1, 2, 5, 10, 20)
SHOWN = 10
"""Sweeps of the pictures."""


def main() -> None:
    options = parsed()
    scan = open_scan(options.scan)
    if options.stage == "cut":
        cut(scan, options.small)
        return
    labels = PtychoDataset.load(options.labels)
    result: dict[str, Any] = {"hardware": hardware(options), "command": options.command}
    result["star"], images = star(scan, labels, options)
    result["small"] = [small(scan, labels, path, options.trust) for path in options.small_bundle]
    options.output.mkdir(parents=True, exist_ok=True)
    place = options.output / "ptycho-refined.json"
    place.write_text(json.dumps(result, indent=1) + "\n")
    draw(images, options.output / "ptycho-refined.png")
    (options.output / "ptycho-refined.md").write_text(page(result))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=("cut", "report"))
    parser.add_argument("--scan", type=Path, required=True, help="the measured star, .npz.bz2")
    parser.add_argument("--labels", type=Path, help="of the whole star, from edgexnas label")
    parser.add_argument("--bundle", type=Path, help="from edgexnas export")
    parser.add_argument("--small", type=Path, help="scan of 20 patterns")
    parser.add_argument("--small-bundle", type=Path, nargs="*", default=[], help="one or more")
    parser.add_argument("--trust", type=Path)
    parser.add_argument("--hardware", default="", help="what else to say of the machine")
    parser.add_argument("--command", default="", help="how the search was started")
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    return parser.parse_args()


def hardware(options: argparse.Namespace) -> str:
    found = subprocess.run(["lscpu"], capture_output=True, text=True, check=True).stdout
    name = next((r.split(":")[1].strip() for r in found.splitlines() if "Model name" in r), "")
    return f"{name or platform.processor()}; {options.hardware}".rstrip("; ")


def middle(scan: Scan) -> np.ndarray:
    """Numbers of the patterns nearest to the middle of the scan."""
    positions = scan.positions_px
    distance = np.linalg.norm(positions - np.median(positions, axis=0), axis=1)
    return np.sort(np.argsort(distance, kind="stable")[:SMALL])


def cut(scan: Scan, place: Path) -> None:
    """Write a scan of few patterns, as tike keeps them."""
    part = part_of_scan(scan, middle(scan))
    assert part.probe is not None
    patterns = np.fft.ifftshift(part.patterns, axes=(1, 2))
    np.savez_compressed(
        place, data=patterns[None], scan=part.window_corners_px[None], probe=part.probe
    )


def star(
    scan: Scan, labels: PtychoDataset, options: argparse.Namespace
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Score network and refinement on the held-out quarter."""
    test = labels.split().test
    part = part_of_scan(scan, test)
    with PtychoPredictor(options.bundle, trust=options.trust, threads=1) as predictor:
        stream = predictor.stream(part)
        patches = np.concatenate([np.stack([p.amplitude, p.phase_rad], 1) for p in stream])
        network, manifest, probe = stream.image(), predictor.manifest, predictor._probe
    assert probe is not None
    flat = ObjectImage(
        np.full_like(network.values, np.median(np.abs(network.values[network.coverage > 0]))),
        network.coverage, 0, network.origin_px,
    )  # fmt: skip
    aimed = labels.targets[test]
    rows: dict[str, Any] = {}
    images: dict[str, np.ndarray] = {}
    for name, start in (("network", network), ("flat", flat)):
        kept = {0: start}
        refinement = Refiner(probe).refine(
            start, stored(part), max(SWEEPS), progress=kept.__setitem__
        )
        assert refinement is not None
        rows[name] = [
            {
                "sweeps": sweeps,
                "phase_rad": round(error(kept[sweeps], part, aimed), 4),
                "residual": round(float(refinement.residuals[sweeps]), 5),
                "s": round(float(refinement.seconds[sweeps]), 2),
            }
            for sweeps in SWEEPS
        ]
        images[name] = kept[0].values
        images[f"{name}, {SHOWN} sweeps"] = kept[SHOWN].values
    # The labels' own object, seen through the same window.
    images["labels"] = label_image(labels, part, test, network)
    images["covered"] = network.coverage > 0
    accuracy = [
        {"name": row.name, "precision": row.precision, "phase_rad": round(row.phase_mae_rad, 4)}
        for row in manifest.accuracy
        if row.phase_mae_rad is not None
    ]
    return {
        "patterns": len(test),
        "network": manifest.model_id,
        "configuration": dict(manifest.provenance.configuration),
        "parameters": manifest.parameters,
        "precision": "int8",
        "patches_phase_rad": round(patch_errors(patches, aimed).phase_rad, 4),
        "accuracy": accuracy,
        "rows": rows,
    }, images


def label_image(
    labels: PtychoDataset, part: Scan, test: np.ndarray, like: ObjectImage
) -> np.ndarray:
    """Stitch the labels of the test patches on the pixels of an image."""
    from edgexnas.ptycho import ObjectCanvas

    canvas = ObjectCanvas(like.values.shape, origin_px=like.origin_px)
    # The canvas wants a pixel more than a patch; labels are shown, not scored, here.
    values = labels.targets[test, 0] * np.exp(1j * labels.targets[test, 1])
    canvas.add(values.astype(np.complex64), np.floor(part.positions_px))
    return canvas.image().values


def stored(scan: Scan) -> PatternStore:
    rows, cols = scan.patterns.shape[1:]
    store = PatternStore((rows, cols), mask=scan.mask)
    for number, pattern in enumerate(scan.patterns):
        store.add(number, pattern)
        store.place(number, scan.positions_px[number])
    return store


def error(image: ObjectImage, part: Scan, aimed: np.ndarray) -> float:
    """Mean phase error of patches cut out of an object, each after its constant."""
    patches = cut_patches(image.values, part.positions_px - image.origin_px)
    found = np.stack([np.abs(patches), np.angle(patches)], axis=1).astype(np.float32)
    return patch_errors(found, aimed).phase_rad


def small(scan: Scan, labels: PtychoDataset, bundle: Path, trust: Path) -> dict[str, Any]:
    """Score the bundle of 20 patterns on all the others, which nothing has seen."""
    rest = np.setdiff1d(np.arange(len(scan)), middle(scan))
    part, aimed = part_of_scan(scan, rest), labels.targets[rest]
    with PtychoPredictor(bundle, trust=trust, threads=1) as predictor:
        stream = predictor.stream(part, refine=SHOWN)
        patches = np.concatenate([np.stack([p.amplitude, p.phase_rad], 1) for p in stream])
        manifest = predictor.manifest
    flat = np.stack([np.ones_like(aimed[:, 0]), np.zeros_like(aimed[:, 1])], axis=1)
    assert stream.refinement is not None
    image = stream.refinement.image
    refined = cut_patches(image.values, part.positions_px - image.origin_px)
    fitted = in_gauge_of(patches[:, 0] * np.exp(1j * patches[:, 1]), aimed)
    return {
        "patterns": len(rest),
        "label_residual": manifest.provenance.label_residual,
        "configuration": dict(manifest.provenance.configuration),
        "parameters": manifest.parameters,
        "flat_phase_rad": round(patch_errors(flat, aimed).phase_rad, 4),
        "network_phase_rad": round(patch_errors(patches, aimed).phase_rad, 4),
        "network_phase_rad_without_tilt": round(patch_errors(fitted, aimed).phase_rad, 4),
        "refined_phase_rad_without_tilt": round(
            patch_errors(in_gauge_of(refined, aimed), aimed).phase_rad, 4
        ),
        "sweeps": SHOWN,
        "accuracy": [
            {"name": r.name, "precision": r.precision, "n": r.n,
             "phase_rad": round(r.phase_mae_rad, 4)}
            for r in manifest.accuracy if r.phase_mae_rad is not None
        ],
    }  # fmt: skip


def draw(images: dict[str, np.ndarray], place: Path) -> None:
    """Draw the phase of the held-out quarter: labels, network, refined, flat start, difference."""
    import matplotlib.pyplot as plt

    covered = images["covered"]
    reference = images["labels"]
    shown = {
        "labels (rPIE, whole scan)": reference,
        "network, INT8": images["network"],
        f"refined, {SHOWN} sweeps": images[f"network, {SHOWN} sweeps"],
        f"flat start, {SHOWN} sweeps": images[f"flat, {SHOWN} sweeps"],
    }
    figure, axes = plt.subplots(1, 5, figsize=(15, 5.6), layout="constrained")
    for axis, (title, values) in zip(axes, shown.items(), strict=False):
        phase = np.where(covered, np.angle(align_phase(values * covered, reference)), np.nan)
        shade = axis.imshow(phase, cmap="gray", vmin=-0.9, vmax=0.5)
        axis.set_title(title)
    figure.colorbar(shade, ax=axes[:4], label="phase in rad", shrink=0.6, location="bottom")
    refined, network = images[f"network, {SHOWN} sweeps"], images["network"]
    turned = align_phase(refined * covered, network * covered)
    change = np.where(covered, np.angle(turned * network.conj()), np.nan)
    shade = axes[4].imshow(change, cmap="RdBu", vmin=-0.4, vmax=0.4)
    axes[4].set_title("refined - network")
    figure.colorbar(shade, ax=axes[4], label="rad", shrink=0.6, location="bottom")
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.savefig(place, dpi=80)


def page(result: dict[str, Any]) -> str:
    """Write the page."""
    case = result["star"]
    int8 = next(r for r in case["accuracy"] if r["precision"] == "int8")
    lines = [
        "# Ptychography by the command line: the star",
        "",
        f"`python host/ptycho_refined.py` on an {result['hardware']}; {result['command']}.",
        "",
        f"Held-out quarter, {case['patterns']} patterns, phase error in rad: INT8 network of "
        f"{case['parameters']:,} parameters **{int8['phase_rad']:.4f}** a patch; its stitched "
        "object, refined with the training part's probe on one core:",
        "",
        "| sweeps | from the network | from flat | residual | s |",
        "|---:|---:|---:|---:|---:|",
    ]
    for ours, flat in zip(case["rows"]["network"], case["rows"]["flat"], strict=True):
        lines.append(
            f"| {ours['sweeps']} | {ours['phase_rad']:.4f} | {flat['phase_rad']:.4f} | "
            f"{ours['residual']:.2%} | {ours['s']:.1f} |"
        )
    if result["small"]:
        lines += [
            "",
            f"Bundles of {SMALL} patterns from the middle, on the other "
            f"{result['small'][0]['patterns']}:",
            "",
            f"| residual of labels | network | refined, {SHOWN} sweeps | flat |",
            "|---:|---:|---:|---:|",
        ]
        lines += [
            f"| {few['label_residual']:.2%} | {few['network_phase_rad']:.3f} | "
            f"{few['refined_phase_rad_without_tilt']:.3f} | {few['flat_phase_rad']:.3f} |"
            for few in result["small"]
        ]
    return "\n".join([*lines, "", "![the held-out quarter](ptycho-refined.png)", ""])


if __name__ == "__main__":
    main()
