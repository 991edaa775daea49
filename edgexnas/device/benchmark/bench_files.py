"""A bench report as JSON, CSV and Markdown."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from edgexnas.device.benchmark.bench import BenchReport, BundleBench

__all__ = ["SCHEMA", "as_plain", "to_csv", "to_json"]

SCHEMA = "edgexnas-bench/1"
"""Name and version of the JSON form; fields are added to a version, never changed."""

COLUMNS = (
    "name", "digest", "parameters", "engine", "precision", "batch", "latency_ms",
    "latency_half_width_ms", "p50_ms", "p50_half_width_ms", "p90_ms", "p99_ms",
    "items_per_s", "build_ms", "open_ms", "cold_start_ms", "power_w", "idle_w", "total_mj",
    "total_half_width_mj", "total_systematic_mj", "marginal_mj", "marginal_half_width_mj",
    "marginal_systematic_mj", "total_mj_per_item", "marginal_mj_per_item",
)  # fmt: skip


def to_json(report: BenchReport) -> str:
    """Write everything, with the power readings of the energy measurement."""
    # No NaN: strict parsers, as in browsers, reject the whole file for one.
    return json.dumps({"schema": SCHEMA, **as_plain(report)}, indent=1, allow_nan=False) + "\n"


def to_csv(report: BenchReport) -> str:
    """Write one row a bundle; what was not measured is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for bench in report.bundles:
        values = row_of(bench)
        writer.writerow([_short(values.get(column)) for column in COLUMNS])
    return text.getvalue()


def row_of(bench: BundleBench) -> dict[str, Any]:
    """Flatten what was measured of one bundle to the columns of the CSV file."""
    latency = bench.latency
    named = {
        "engine": bench.engine.get("engine"),
        "precision": bench.engine.get("precision"),
        "batch": latency.items,
        "latency_ms": latency.mean_ms,
        "latency_half_width_ms": latency.half_width_ms,
        "cold_start_ms": bench.cold_start.total_ms if bench.cold_start else None,
    }
    # The other columns go by the names of their attributes.
    row: dict[str, Any] = {}
    for part in (bench.energy, latency, bench):
        row |= {column: getattr(part, column) for column in COLUMNS if hasattr(part, column)}
    return row | named


def as_plain(value: Any) -> Any:
    """Turn dataclasses, arrays, paths and dates into what JSON knows; infinities become null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: as_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): as_plain(item) for key, item in value.items()}
    if isinstance(value, str | bool | int) or value is None:
        return value
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return as_plain(value.tolist())
    if isinstance(value, Sequence | Iterator):
        return [as_plain(item) for item in value]
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _short(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
