"""The picture at the end of the demo: predicted peaks drawn on a frame."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgexnas.bragg import PATCH_SIZE, PeakFlag, Peaks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

__all__ = ["draw_peaks"]

WINDOW_PX = 384
CROWDED = 60
"""With more peaks than this, the busiest window of the frame is shown instead of all of it."""

Frame = npt.NDArray[np.generic]
Box = tuple[int, int, int, int]


def draw_peaks(path: Path, frame: Frame, peaks: Peaks, *, title: str) -> None:
    """Draw a frame, or the busiest part of a crowded one, with its peaks, and four close up.

    Parameters
    ----------
    frame
        (H, W) counts.
    peaks
        Peaks of this frame.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    box = _box(peaks.positions_px, frame.shape)
    near = _close_ups(peaks, box)
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(12.5, 6.3), layout="constrained")
        main, *insets = figure.subplot_mosaic(
            [["all", "all", "a", "b"], ["all", "all", "c", "d"]], width_ratios=[1.3, 1.3, 1, 1]
        ).values()
        image = _draw_frame(main, frame, peaks, box)
        main.set_title(title)
        figure.colorbar(image, ax=main, label="counts + 1", shrink=0.8)
        for letter, axes, index in zip("abcd", insets, near, strict=False):
            _draw_close_up(axes, frame, peaks, index, letter)
            row, col = peaks.positions_px[index]
            below = (6, -12) if row - box[0] < (box[2] - box[0]) / 20 else (6, 6)
            main.annotate(letter, (col, row), below, textcoords="offset points", weight="bold")
        for axes in insets[len(near) :]:
            axes.set_axis_off()
        figure.savefig(path, dpi=130)


def _draw_frame(axes: Axes, frame: Frame, peaks: Peaks, box: Box) -> AxesImage:
    """Draw counts on a logarithmic scale with a circle for each peak."""
    from matplotlib.colors import LogNorm

    top, left, bottom, right = box
    shown = np.asarray(frame[top:bottom, left:right], float) + 1
    norm = LogNorm(vmin=max(1.0, float(np.median(shown))), vmax=float(shown.max()) + 1)
    # Half a pixel out, because a pixel's centre is its index.
    extent = (left - 0.5, right - 0.5, bottom - 0.5, top - 0.5)
    image = axes.imshow(shown, norm=norm, cmap="gray_r", interpolation="nearest", extent=extent)
    inside = _inside(peaks.positions_px, box)
    # An overlap alone leaves the position good enough to show as an ordinary peak.
    flagged = (peaks.flags & ~np.uint8(PeakFlag.OVERLAP)) != 0
    for chosen, colour, label in ((~flagged, "tab:red", "peak"), (flagged, "tab:blue", "flagged")):
        at = peaks.positions_px[chosen & inside]
        if len(at):
            axes.scatter(at[:, 1], at[:, 0], 60, facecolors="none", edgecolors=colour, label=label)
    axes.set(xlabel="column / px", ylabel="row / px")
    # Beside the frame: inside it would cover peaks.
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return image


def _draw_close_up(axes: Axes, frame: Frame, peaks: Peaks, index: int, letter: str) -> None:
    """Draw one peak with its position and the ellipse of its interval."""
    from matplotlib.patches import Ellipse
    from matplotlib.ticker import MultipleLocator

    row, col = peaks.positions_px[index]
    top = float(peaks.intensities[index]) + float(np.median(np.asarray(frame)))
    axes.imshow(frame, cmap="viridis", interpolation="nearest", vmin=0, vmax=top)
    axes.plot(col, row, "r+", markersize=9)
    height, width = peaks.intervals_px[index]
    axes.add_patch(Ellipse((col, row), width, height, fill=False, color="red"))
    half = PATCH_SIZE / 2
    axes.set_xlim(round(col) - half, round(col) + half)
    axes.set_ylim(round(row) + half, round(row) - half)
    axes.xaxis.set_major_locator(MultipleLocator(2))
    axes.yaxis.set_major_locator(MultipleLocator(2))
    axes.set_title(f"{letter}: ({row:.2f}, {col:.2f}) px")


def _box(positions_px: npt.NDArray[np.float32], shape: tuple[int, ...]) -> Box:
    """(top, left, bottom, right): all of the frame, or the window that holds the most peaks."""
    height, width = shape
    if len(positions_px) <= CROWDED:
        return 0, 0, height, width
    step = WINDOW_PX // 2
    boxes: list[Box] = [
        (row, col, min(row + WINDOW_PX, height), min(col + WINDOW_PX, width))
        for row in range(0, max(1, height - step), step)
        for col in range(0, max(1, width - step), step)
    ]
    return max(boxes, key=lambda box: int(_inside(positions_px, box).sum()))


def _inside(positions_px: npt.NDArray[np.float32], box: Box) -> npt.NDArray[np.bool_]:
    top, left, bottom, right = box
    rows, cols = positions_px.T
    inside: npt.NDArray[np.bool_] = (
        (rows >= top) & (rows < bottom) & (cols >= left) & (cols < right)
    )
    return inside


def _close_ups(peaks: Peaks, box: Box) -> list[int]:
    """Up to four peaks in view: those without a flag first, then the brightest."""
    seen = np.flatnonzero(_inside(peaks.positions_px, box))
    order = np.lexsort((-peaks.intensities[seen], peaks.flags[seen] != 0))
    return [int(index) for index in seen[order][:4]]
