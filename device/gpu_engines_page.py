"""Lay out what `bench_gpu_engines.py` measured as a page.

python device/gpu_engines_page.py gpu-engines.json > docs/results/gpu-engines.md
"""

from __future__ import annotations

import argparse
import json
from math import hypot
from pathlib import Path
from typing import Any

COLUMNS = (
    ("fused", "float16"), ("fused", "int8"), ("tensorrt", "float16"), ("tensorrt", "int8"),
    ("torch", "float16"),
)  # fmt: skip

Row = dict[str, Any]


def page(found: dict[str, Any]) -> str:
    """Write the page: what ran where, latencies, energies, and what failed."""
    hardware = found["hardware"]
    for row in found["rows"]:
        # Rows of another run have an empty graph of their own.
        row.setdefault("empty graph µs", found["empty graph µs"]["p50"])
    measured = sorted({row["empty graph µs"] for row in found["rows"] if "failed" not in row})
    floors = " or ".join(f"{floor:.1f} µs" for floor in measured)
    floors += " in the run of its row" if len(measured) > 1 else ""
    rows = {(row["network"], row["engine"], row["precision"]): row for row in found["rows"]}
    networks = list(dict.fromkeys(row["network"] for row in found["rows"]))
    columns = [column for column in COLUMNS if any(row_of(rows, name, column) for name in networks)]
    lines = [
        "# Engines on a GPU",
        "",
        f"`python device/bench_gpu_engines.py` on one {hardware['GPU']} "
        f"({hardware['capability']}, CUDA {hardware['CUDA']}): {found['library']}, "
        f"torch {found.get('torch', 'not run')}. Batch {found['batch']}, one CUDA graph on device "
        f"memory, {found['repeats']} means of {found['runs']} launches by the GPU's clock: p50 / "
        f"p99 in µs, and p50 as a multiple of an empty graph, {floors}. Weights "
        "are random; every engine timed holds its bundle's gate.",
        "",
        "| network | "
        + " | ".join(f"{engine} {precision}" for engine, precision in columns)
        + " |",
        "|---|" + "---|" * len(columns),
    ]
    for name in networks:
        cells = [cell(row_of(rows, name, column)) for column in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += gains(rows, networks)
    lines += starts(found["rows"])
    lines += many(found["rows"])
    lines += energies(found.get("energy", []))
    lines += failures(found["rows"])
    return "\n".join(lines) + "\n"


def gains(rows: dict[tuple[str, str, str], Row], networks: list[str]) -> list[str]:
    """Say how many times faster the fused engine is than TensorRT."""
    lines = []
    for name in networks:
        cells = []
        for precision in ("float16", "int8"):
            pair = [row_of(rows, name, (engine, precision)) for engine in ("tensorrt", "fused")]
            times = [row["device µs"]["p50"] for row in pair if row and "failed" not in row]
            cells.append(f"{times[0] / times[1]:.1f}×" if len(times) == 2 else "–")
        if set(cells) != {"–"}:
            lines.append(f"| {name} | {' | '.join(cells)} |")
    head = ["", "| fused against TensorRT | float16 | int8 |", "|---|---|---|"]
    return [*head, *lines] if lines else []


def starts(rows: list[Row]) -> list[str]:
    """Say how long engines took to open whose plan or kernel was in the cache."""
    taken: dict[str, list[float]] = {}
    for row in rows:
        if "failed" not in row and "is from the cache" in row.get("reason", ""):
            taken.setdefault(row["engine"], []).append(row["open s"])
    said = [f"{name} {min(times):.2f} to {max(times):.2f} s" for name, times in taken.items()]
    return ["", f"Opened from the cache: {', '.join(said)}."] if said else []


def many(rows: list[Row]) -> list[str]:
    """Lay out what engines that take any count need for many patches at once."""
    timed = [row for row in rows if row.get("many µs")]
    if not timed:
        return []
    counts = list(timed[0]["many µs"])
    lines = [
        "",
        "Patches in one launch, p50 in µs:",
        "",
        f"| network | engine | {' | '.join(f'{int(count):,}' for count in counts)} |",
        "|---|---|" + "---|" * len(counts),
    ]
    for row in timed:
        cells = " | ".join(f"{row['many µs'][count]['p50']:.0f}" for count in counts)
        lines.append(f"| {row['network']} | {row['engine']} {row['precision']} | {cells} |")
        strays = sum(row["many µs"][count]["strays"] for count in counts)
        if strays:
            lines[-1] += f" **{strays} differ**"
    return lines


def row_of(rows: dict[tuple[str, str, str], Row], name: str, column: tuple[str, str]) -> Row | None:
    return rows.get((name, *column))


def cell(row: Row | None) -> str:
    if row is None:
        return "–"
    if "failed" in row:
        return "no"
    time = row["device µs"]
    return f"{time['p50']:.1f} / {time['p99']:.1f} ({time['p50'] / row['empty graph µs']:.1f}×)"


def energies(rows: list[Row]) -> list[str]:
    if not rows:
        return []
    lines = [
        "",
        "Energy of a batch by NVML, in mJ, with 95 % intervals:",
        "",
        "| network | engine | total | above idle | W |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        total = f"{row['total mJ']:.3f} ± {row['total half width mJ']:.3f}"
        above = f"{row['above idle mJ']:.3f} ± {row['above idle half width mJ']:.3f}"
        lines.append(
            f"| {row['network']} | {row['engine']} {row['precision']} | {total} | {above} "
            f"| {row['power W']:.0f} |"
        )
    lines += energy_ratios(rows)
    faults = dict.fromkeys(fault for row in rows for fault in row["faults"])
    return lines + [f"\n**Fault: {fault}**" for fault in faults]


def energy_ratios(rows: list[Row]) -> list[str]:
    """Compare networks with the first on each engine, and the fused engine with TensorRT."""
    found = {(row["network"], row["engine"], row["precision"]): row for row in rows}
    lines = []
    for (name, engine, precision), row in found.items():
        baseline = found.get((rows[0]["network"], engine, precision))
        if baseline is not None and baseline is not row:
            share = energy_ratio(row, baseline)
            lines.append(f"| {name}, {engine} {precision} | {baseline['network']} | {share} |")
        other = found.get((name, "tensorrt", precision))
        if engine == "fused" and other is not None:
            share = energy_ratio(row, other)
            lines.append(f"| {name}, {engine} {precision} | tensorrt | {share} |")
    return ["", "| energy of | against | ratio |", "|---|---|---|", *lines] if lines else []


def energy_ratio(row: Row, other: Row) -> str:
    """Give the ratio of two total energies, its interval from both."""
    ratio = row["total mJ"] / other["total mJ"]
    width = ratio * hypot(*(r["total half width mJ"] / r["total mJ"] for r in (row, other)))
    return f"{ratio:.2f} ± {width:.2f}"


def failures(rows: list[Row]) -> list[str]:
    """List what could not be timed; one line for each reason."""
    said: dict[str, list[str]] = {}
    for row in rows:
        if "failed" in row:
            name = f"{row['network']} {row['engine']} {row['precision']}"
            said.setdefault(" ".join(row["failed"].split())[:200], []).append(name)
    if not said:
        return []
    return ["", *(f"- {', '.join(names)}: {reason}" for reason, names in said.items())]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("measured", type=Path, help="JSON file of bench_gpu_engines.py")
    options = parser.parse_args()
    print(page(json.loads(options.measured.read_text(encoding="utf-8"))), end="")


if __name__ == "__main__":
    main()
