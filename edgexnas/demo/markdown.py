"""The demo's results as a page that can be kept: table, detection, command and hardware."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgexnas.device.power.device_state import device_name
from edgexnas.whole_files import write_whole

if TYPE_CHECKING:
    from edgexnas.bundle import AccuracyRow
    from edgexnas.demo.run import DemoResult

__all__ = ["COLUMNS", "cells", "detection_lines", "hardware", "write_markdown"]

COLUMNS = ("", "precision", "parameters", "peaks", "mean", "p50", "p75", "p95", "intervals hold")
AGAINST = {
    "fit": "pseudo-Voigt fit",
    "truth": "simulated truth",
    "reference": "float32 reference",
}


def write_markdown(result: DemoResult, path: Path, *, command: str) -> Path:
    """Write the page.

    Parameters
    ----------
    command
        What was typed.
    """
    lines = [
        f"# Distance to the {AGAINST[result.rows[0].against]} on held-out frames",
        "",
        f"`{command}` on {hardware()}. Distances in px; predictions come from frames through the "
        "signed bundle, without labels.",
        "",
        *_table(COLUMNS, [cells(row) for row in result.rows]),
        "",
        *(f"* {name}: {text}" for name, text in detection_lines(result)),
        f"* INT8: {result.int8_loss:+.1%} of mean distance against float32",
        f"* bundle: {result.bundle_bytes / 1024:.0f} KiB, signed, three precisions",
        "",
        f"![peaks of one frame]({result.picture.name})",
        "",
    ]
    write_whole(path, "\n".join(lines).encode())
    return path


def cells(row: AccuracyRow) -> tuple[str, ...]:
    """Format one row of the table, in the order of `COLUMNS`."""
    distances = (row.mean_px, row.p50_px, row.p75_px, row.p95_px)
    return (
        row.name,
        row.precision or "",
        f"{row.parameters:,}" if row.parameters else "",
        str(row.n),
        *(f"{value:.4f}" if value is not None else "" for value in distances),
        ", ".join(f"{held.share:.3f} ({held.low:.3f} to {held.high:.3f})" for held in row.coverage),
    )


def detection_lines(result: DemoResult) -> list[tuple[str, str]]:
    """Format recall and precision of peak finding, where there is a list to compare with."""
    found = result.detection
    if found is None:
        return []
    listed = result.settings.spots is not None
    kind = "listed spots 3 px wide or more" if listed else "visible simulated spots"
    return [
        (
            "recall",
            f"{found.recall:.3f} of {found.wanted} {kind}; "
            f"{found.recall_listed:.3f} of all {found.listed}",
        ),
        ("precision", f"{found.precision:.3f} of {found.found} found peaks"),
    ]


def hardware() -> str:
    """Name the processor and the number of its cores that this process may use."""
    return f"{len(os.sched_getaffinity(0))} cores of {device_name(Path('/'))}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    ruled = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return ["| " + " | ".join(row) + " |" for row in ruled]
