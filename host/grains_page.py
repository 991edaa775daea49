"""The page and the picture of `host/grains.py`'s figures.

python host/grains_page.py simulated.json ruby.json --output docs/results/grains.md
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

LISTS = {"network": "our network", "fits": "pseudo-Voigt fits", "centroids": "centroids"}
COLOURS = {"network": "#1b6ca8", "fits": "#d97b29", "centroids": "#8a8a8a"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("simulated", type=Path)
    parser.add_argument("ruby", type=Path)
    parser.add_argument("--output", type=Path, default=Path("docs/results/grains.md"))
    options = parser.parse_args()
    simulated, ruby = (json.loads(path.read_text()) for path in (options.simulated, options.ruby))
    kept = {"simulated": simulated, "ruby": ruby}
    options.output.with_suffix(".json").write_text(json.dumps(kept, indent=1) + "\n")
    options.output.write_text(page(simulated, ruby))
    draw(simulated, options.output.with_suffix(".png"))


def page(simulated: dict[str, Any], ruby: dict[str, Any]) -> str:
    lines = [
        "# Grains",
        "",
        f"`python host/grains.py simulated`, `ruby`, `python host/grains_page.py`, on one core of "
        f"{simulated['cpu']}. ImageD11 2.1.3 indexed and refined the same peaks with three "
        "positions of each.",
        "",
        "## 200 simulated grains, 900 frames of 0.1°, against the truth",
        "",
        "| | grains | false | spots a grain | orientation, ° | strain, 10⁻⁶ | place, µm | "
        "residual row, col, px | omega, ° |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for key, name in LISTS.items():
        one = simulated["lists"][key]
        left = one["residual"]
        lines.append(
            f"| {name} | {one['grains_found']} | {one['false']} | {one['spots_per_grain']:.0f} | "
            f"{one['misorientation_deg']['mean']:.5f} | {one['strain']['mean'] * 1e6:.1f} | "
            f"{one['position_um']['mean']:.2f} | {left['row_px']:.3f}, {left['col_px']:.3f} | "
            f"{left['omega_deg']:.4f} |"
        )
    ours, centroids = simulated["lists"]["network"], simulated["lists"]["centroids"]
    ratios = [
        ours[name]["mean"] / centroids[name]["mean"]
        for name in ("misorientation_deg", "strain", "position_um")
    ]
    lines += [
        "",
        "Means over grains. Against centroids: "
        + ", ".join(f"{ratio:.2f}" for ratio in ratios)
        + " of the error.",
        "",
        "![errors of each grain](grains.png)",
        "",
        "## Three ruby spheres, against hexrd's grains",
        "",
        "| | grains | spots | orientation, ° | after one common turn, ° | residual row, col, px | "
        "omega, ° |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for key, name in LISTS.items():
        one = ruby["lists"][key]
        left = one["residual"]
        lines.append(
            f"| {name} | {one['grains_found']} | {', '.join(map(str, one['spots']))} | "
            f"{listed(one['misorientation_deg'])} | {listed(one['misorientation_left_deg'])} | "
            f"{left['row_px']:.2f}, {left['col_px']:.2f} | {left['omega_deg']:.3f} |"
        )
    first = ruby["correction_steps"][0]
    lines += [
        "",
        f"hexrd's plane leaves {first['row_px']:.2f} and {first['col_px']:.2f} px: four sensors "
        "with gaps, and a turn of 1,441 frames. One correction, found from the fits, serves all "
        "lists. What is left still hides the differences of the lists, which are ten times "
        "smaller.",
        "",
        "## CPU seconds from frames in memory to grains",
        "",
        "| | find | locate | merge | index | refine | total |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for sample, figures in (("simulated", simulated), ("ruby", ruby)):
        for key in ("network", "fits"):
            one = figures["lists"][key]
            steps = [figures["find_cpu_s"]] + [
                one[f"{step}_cpu_s"] for step in ("locate", "merge", "index", "refine")
            ]
            told = " | ".join(f"{step:.1f}" for step in (*steps, sum(steps)))
            lines.append(f"| {sample}, {LISTS[key]} | {told} |")
    return "\n".join(lines) + "\n"


def listed(values: list[float]) -> str:
    return ", ".join(f"{value:.3f}" for value in values)


def draw(simulated: dict[str, Any], path: Path) -> None:
    """Draw how many grains are better than each error."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
    shown = (
        ("misorientation_deg", "orientation, 10⁻³ °", 1e3),
        ("strain", "strain, 10⁻⁶", 1e6),
        ("position_um", "place, µm", 1.0),
    )
    for panel, (name, label, scale) in zip(panels, shown, strict=True):
        for key, title in LISTS.items():
            values = np.sort(simulated["lists"][key]["each"][name]) * scale
            share = np.arange(1, len(values) + 1) / len(values)
            panel.step(values, share, where="post", color=COLOURS[key], label=title)
        panel.set(xlabel=f"error of {label}", xlim=(0, None), ylim=(0, 1))
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("share of grains")
    panels[2].legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
