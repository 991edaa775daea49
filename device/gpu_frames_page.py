"""Lay out what `check_gpu.py` has measured as docs/results/gpu-frames.md."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgexnas.device.kernels.compilation import kernel_resources, nvcc_path, pixel_definitions

WHERE = {
    "slot": "frame written to `next_frame()`",
    "ring": "frame in `frame_buffers`",
    "copied": "frame in other memory, copied",
    "decoded there": "bitshuffle/LZ4 decoded where the GPU reads, threads: {threads}",
    "decoded, copied": "bitshuffle/LZ4 decoded elsewhere and copied, threads: {threads}",
}


def frames_page(found: dict[str, Any], checks: list[str]) -> str:
    """Give the page's text; `checks` are sentences about what was compared."""
    limit = found["limit frames/s"]
    lines = [
        "# Frames on a GPU",
        "",
        f"`python device/check_gpu.py --bundles bundles --time {found['options']}` on "
        f"{found['GPU']}, {found['capability']}, CUDA {found['CUDA driver']}.",
        "",
        f"Frames of 2048×2048 uint16, {found['frame bytes'] / 1e6:.1f} MB, from host memory to "
        "positions in host memory. Pinned memory is copied at "
        f"{found['copy bytes/s'] / 1e9:.1f} GB/s, which allows {limit:,.0f} frames/s. Frames/s "
        "with two frames in flight, latency with one.",
        "",
        "| peaks | pipeline | frames/s | of the limit | latency p50 / p99, ms |",
        "|---|---|---|---|---|",
        *(_frame_row(row, limit) for row in _in_order(found["frames"])),
        "",
        "## Stages, µs, and device memory",
        "",
        "Each stage as a CUDA graph of its own.",
        "",
        "| peaks | network | copy | find, cut, scale | network | decode | edgexnas MiB | all MiB |",
        "|---|---|---|---|---|---|---|---|",
        *(_stage_row(row) for row in _in_order(found["frames"]) if "stages us" in row),
        "",
        *_quiet_lines(found.get("quiet", [])),
        *_copy_lines(found["host copies"]),
        *(["## Checks", "", *(f"* {said}" for said in checks)] if checks else []),
        *_resource_lines(),
    ]
    return "\n".join(lines) + "\n"


def _quiet_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Lay out rows of the same kernels where less else ran; each has the limit of its run."""
    if not rows:
        return []
    return [
        "Other work ran on the host and on its second GPU meanwhile. The same kernels with less "
        "beside them, the better place of the frame:",
        "",
        "| peaks | pipeline | frames/s | of the limit |",
        "|---|---|---|---|",
        *(
            f"| {row['peaks']:,} | {row['network']}, {row['engine']} {row['precision']} "
            f"| {row['frames/s']:,.0f} | {row['frames/s'] / row['limit frames/s']:.0%} |"
            for row in rows
        ),
        "",
    ]


def _copy_lines(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    return [
        "## From ordinary to pinned memory",
        "",
        "| threads | GB/s | ms a frame, p50 / p99 |",
        "|---|---|---|",
        *(f"| {row['threads']} | {row['GB/s']:.1f} | {_latency(row)} |" for row in rows),
        "",
    ]


def _in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort by the number of peaks, edgexnas first."""
    return sorted(rows, key=lambda row: (row["peaks"], "pipeline" in row))


def _latency(row: dict[str, Any]) -> str:
    return f"{row['p50 ms']:.3f} / {row['p99 ms']:.3f}"


def _frame_row(row: dict[str, Any], limit: float) -> str:
    name = (
        row.get("pipeline")
        or f"{row['network']}, {row['engine']} {row['precision']}, "
        f"{WHERE[row['frame']].format_map(row)}"
    )
    rate = row["frames/s"]
    return f"| {row['peaks']:,} | {name} | {rate:,.0f} | {rate / limit:.0%} | {_latency(row)} |"


def _stage_row(row: dict[str, Any]) -> str:
    times = " | ".join(f"{value:.0f}" for value in row["stages us"].values())
    return (
        f"| {row['peaks']:,} | {row['network']}, {row['engine']} {row['precision']} "
        f"| {times} "
        f"| {row['own MiB']:.0f} | {row['all MiB']:.0f} |"
    )


def _resource_lines() -> list[str]:
    """Tell what the kernels take on an Orin and on Hopper GPUs, where nvcc is installed."""
    if nvcc_path() is None:
        return []
    lines = ["", "## What the kernels take", ""]
    lines += [
        "| kernel | GPU | registers | shared bytes | spilled bytes |",
        "|---|---|---|---|---|",
    ]
    for source in ("peaks.cu", "patterns.cu", "object.cu"):
        for capability in ("SM87", "SM90"):
            lines += [
                f"| {kernel.name} | {capability} | {kernel.registers} | "
                f"{kernel.shared_bytes} | {kernel.spilled_bytes} |"
                for kernel in kernel_resources(source, capability, pixel_definitions(np.uint16))
            ]
    return lines
