"""The pages and pictures of `ptycho_accuracy.py`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from ptycho_accuracy import (
    BASELINE,
    DRAWN,
    LOWER_ERROR,
    SMALLER,
    Case,
    Trained,
    best,
    drawn_ridge,
    exported,
    iterative_rows,
)

from edgexnas.bundle import AccuracyRow
from edgexnas.demo.markdown import hardware
from edgexnas.device import PtychoPredictor
from edgexnas.host.reporting.figures import save_figure
from edgexnas.ptycho import ObjectCanvas, ObjectImage, align_phase

CLASSICAL = ("mean predictor", "ridge regression")
PRECISIONS = ("float32", "int8")
SPACES = ("cnnPtycho", "mlpPtycho")


def write_page(case: Case, networks: Sequence[Trained], options: argparse.Namespace) -> None:
    """Export the baseline and the best network of each space that was trained; write the page.

    What was exported before is in its table too.
    """
    trained = {network.space for network in networks}
    wanted = {BASELINE, *(best(networks, space).name for space in SPACES if space in trained)}
    wanted |= {path.stem for path in options.runs.glob("accuracy/*.json")}
    chosen = sorted((n for n in networks if n.name in wanted), key=lambda n: n.parameters)
    bundles = [exported(network, case, options.runs) for network in chosen]
    rows = [row for row in bundles[0][1] if row.name in CLASSICAL]
    rows.append(drawn_ridge(case, options.runs))
    rows += iterative_rows(case)
    rows += [row for _, table in bundles for row in table if row.precision in PRECISIONS]
    page = options.output / f"ptycho-{options.case}.md"
    picture = page.with_suffix(".png")
    text = [*heading(case, networks, options), *table_of(rows), "", *answers(rows)]
    if options.case == "star":
        shown = min(chosen, key=lambda n: n.validation_rad)
        bundle = bundles[chosen.index(shown)][0]
        draw_star(picture, case, bundle, shown.name, options)
        text += ["", f"![the star by iterations and by the network]({picture.name})"]
    else:
        text += ["", *claims(networks), "", f"![error against size]({picture.name})"]
        draw_front(picture, networks)
    if options.case == "star":
        text += ["", *claims(networks)]
    text += ["", *candidates(networks)]
    page.write_text("\n".join(text) + "\n")
    print(page.read_text())


def heading(case: Case, networks: Sequence[Trained], options: argparse.Namespace) -> list[str]:
    """Say what was done, by which command, on what."""
    split = case.split
    data = {
        "star": "The real Siemens star (Velociprobe, 516 patterns), labels by rPIE.",
        "simulated": "Three simulated scans.",
    }[options.case]
    command = f"python host/ptycho_accuracy.py {options.case}"
    if options.case == "star":
        command += f" --scan {options.scan.name}"
    command += f" --device {options.device} --networks ... --steps ... --batch ... --rate ..."
    command += " --seconds ..."
    machine = hardware()
    if options.device.startswith("cuda"):
        machine = f"{torch.cuda.get_device_name()}, {machine}"
    return [
        f"# Ptychography on held-out regions: {options.case}",
        "",
        f"`{command}`, on {machine}.",
        "",
        f"{data} {len(split.train)} patterns train, {len(split.validation)} validate, "
        f"{len(split.test)} in the right quarter test; patches that share a pixel with a test "
        "patch are left out. Errors over all pixels of all test patches, phase after each patch's "
        "constant.",
        "",
    ]


def table_of(rows: Sequence[AccuracyRow]) -> list[str]:
    lines = [
        "| | precision | parameters | phase MAE rad | amplitude MAE |",
        "|---|---|---:|---:|---:|",
    ]
    for row in rows:
        size = f"{row.parameters:,}" if row.parameters else ""
        lines.append(
            f"| {row.name} | {row.precision or ''} | {size} | {row.phase_mae_rad:.4f} | "
            f"{row.amplitude_mae:.4f} |"
        )
    return lines


def answers(rows: Sequence[AccuracyRow]) -> list[str]:
    """Say how the networks stand to the ridge."""
    ridge = min(r.phase_mae_rad or np.inf for r in rows if r.name.startswith("ridge regression"))
    gains = {
        f"{row.name} {row.precision}": 1 - row.phase_mae_rad / ridge
        for row in rows if row.precision is not None and row.phase_mae_rad is not None
    }  # fmt: skip
    least, most = min(gains, key=gains.__getitem__), max(gains, key=gains.__getitem__)
    beaten = sum(gain > 0 for gain in gains.values())
    return [
        f"{beaten} of these {len(gains)} beat the better ridge. Lowest phase error: {most}, "
        f"{1 - gains[most]:.2f} times the ridge's; highest: {least}, {1 - gains[least]:.2f} times."
    ]


def claims(networks: Sequence[Trained]) -> list[str]:
    """Answer the paper's two claims; networks are chosen on the validation part."""
    baseline = next((n for n in networks if n.name == BASELINE), None)
    if baseline is None:
        return [f"The paper's claims are **not answered**: {BASELINE} was not trained here."]
    lines = [
        f"The paper's claims, against {BASELINE}, networks chosen by validation:",
        "",
    ]
    for space in SPACES:
        own = [n for n in networks if n.space == space]
        fitting = [n for n in own if n.parameters <= baseline.parameters]
        small = [n for n in own if n.parameters <= (1 - SMALLER) * baseline.parameters]
        for claim, among in (
            (f"{LOWER_ERROR:.2%} lower error at no more parameters", fitting),
            (f"{SMALLER:.2%} fewer parameters at no higher error", small),
        ):
            if not among:
                lines.append(f"* **{space}, {claim}: no**, none was that small.")
                continue
            found = min(among, key=lambda n: n.validation_rad)
            gain = 1 - found.test_rad / baseline.test_rad
            reached = gain >= (LOWER_ERROR if among is fitting else 0)
            lines.append(
                f"* **{space}, {claim}: {'yes' if reached else 'no'}**: {found.name} has "
                f"after {found.steps:,} steps {abs(gain):.1%} "
                f"{'lower' if gain > 0 else 'higher'} error with "
                f"{1 - found.parameters / baseline.parameters:.1%} fewer parameters."
            )
    return lines


def candidates(networks: Sequence[Trained]) -> list[str]:
    """List all networks that were trained."""
    lines = [
        "All networks, float32; +measured trained on the scan's own patterns alone:",
        "",
        "| network | parameters | steps × batch | rate | "
        "pre-trained, validation | fine-tuned | test |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {n.name} | {n.parameters:,} | {n.steps:,} × {n.batch} | {n.rate:g} | "
        f"{n.pretrained_rad:.4f} | {n.validation_rad:.4f} | {n.test_rad:.4f} |"
        for n in sorted(networks, key=lambda n: n.parameters)
    ]
    return lines


def draw_front(path: Path, networks: Sequence[Trained]) -> None:
    """Draw test error against size, each space's front, and the baseline."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for space, colour, marker in zip(DRAWN, ("#0072B2", "#D55E00"), "os", strict=True):
        own = sorted((n for n in networks if n.space == space), key=lambda n: n.parameters)
        axes.scatter([n.parameters for n in own], [n.test_rad for n in own], s=14, color=colour,
                     marker=marker, alpha=0.35)  # fmt: skip
        front: list[Trained] = []
        for network in own:
            if not front or network.test_rad < front[-1].test_rad:
                front.append(network)
        axes.plot([n.parameters for n in front], [n.test_rad for n in front], color=colour,
                  marker=marker, markersize=5, label=space)  # fmt: skip
    for baseline in (n for n in networks if n.name == BASELINE):
        axes.plot(baseline.parameters, baseline.test_rad, linestyle="", marker="*", markersize=12,
                  color="black", markerfacecolor="white", label=BASELINE)  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("trainable parameters")
    axes.set_ylabel("phase MAE on the test part, rad")
    axes.grid(visible=True, color="#dddddd", linewidth=0.6)
    axes.legend(frameon=False)
    save_figure(figure, path)


def stitched(case: Case, bundle: Path, keys: Path) -> ObjectImage:
    """Stitch the whole scan through the INT8 bundle, as a device does."""
    with PtychoPredictor(bundle, trust=keys) as predictor:
        stream = predictor.stream(case.scans[0])
        for _ in stream:
            pass
        return stream.image()


def draw_star(path: Path, case: Case, bundle: Path, name: str, options: argparse.Namespace) -> None:
    """Draw the star by iterations, by the network, and their difference."""
    image = stitched(case, bundle, options.runs / "keys")
    reference = label_image(case, image)
    covered = image.coverage > 0.05 * image.coverage.max()
    ours = np.where(covered, align_phase(image.values, np.where(covered, reference, 0)), 0)
    difference = np.angle(ours * reference.conj())
    left = case.scans[0].positions_px[case.split.test, 1].min() - image.origin_px[1]
    figure = Figure(figsize=(13, 8.2), layout="constrained")
    phase = {"cmap": "gray", "vmin": -1.0, "vmax": 0.6}
    panels = [
        ("rPIE on the whole scan: phase, rad", np.angle(reference), phase),
        (f"{name} INT8, stitched: phase, rad", np.angle(ours), phase),
        ("difference, rad", difference, {"cmap": "RdBu", "vmin": -0.6, "vmax": 0.6}),
        ("amplitude", np.abs(reference), {"cmap": "gray", "vmin": 0.6, "vmax": 0.9}),
        ("amplitude", np.abs(ours), {"cmap": "gray", "vmin": 0.6, "vmax": 0.9}),
    ]
    places = figure.subplots(2, 3).ravel()
    for axes, (title, values, style) in zip(places, panels, strict=False):
        shown = np.where(covered, values, np.nan)
        drawn = axes.imshow(shown, interpolation="nearest", **style)
        axes.axvline(left, color="#D55E00", linewidth=1)
        axes.set_title(title, fontsize=10)
        axes.set_axis_off()
        figure.colorbar(drawn, ax=axes, shrink=0.8)
    places[5].set_axis_off()
    places[5].text(
        0, 0.5, "Right of the orange line lie the patches\nof the held-out quarter. No network\n"
        "has seen a pattern from there.", fontsize=11,
    )  # fmt: skip
    save_figure(figure, path)


def label_image(case: Case, image: ObjectImage) -> np.ndarray:
    """Stitch the labels at the scan's own positions, on the canvas of an image."""
    canvas = ObjectCanvas(image.values.shape, origin_px=image.origin_px)
    targets = case.dataset.targets
    canvas.add(
        (targets[:, 0] * np.exp(1j * targets[:, 1])).astype(np.complex64),
        case.scans[0].positions_px,
    )
    return canvas.image().values
