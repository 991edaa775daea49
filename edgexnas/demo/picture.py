"""The picture at the end of the demo: predicted peaks drawn on a frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgexnas.bragg import PeakFlag, Peaks

__all__ = ["draw_peaks"]

WINDOW_PX = 384
INSET_PX = 11


def draw_peaks(path: Path, frame: npt.NDArray[np.generic], peaks: Peaks, *, title: str) -> None:
    """Draw the busiest part of a frame with its peaks, and four peaks close up.

    Parameters
    ----------
    frame
        (H, W) counts.
    peaks
        Peaks of this frame.
    """
    import matplotlib as mpl
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    row, col = _busiest_corner(peaks.positions_px, frame.shape)
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(13, 6.2), layout="constrained")
        main, *insets = figure.subplot_mosaic(
            [["all", "all", "a", "b"], ["all", "all", "c", "d"]], width_ratios=[1.4, 1.4, 1, 1]
        ).values()
        shown = np.asarray(frame, float) + 1
        norm = LogNorm(vmin=max(1.0, float(np.median(shown))), vmax=float(shown.max()))
        image = main.imshow(shown, norm=norm, cmap="gray_r", interpolation="nearest")
        clear = (peaks.flags & ~np.uint8(PeakFlag.OVERLAP)) == 0
        for chosen, colour, label in ((clear, "tab:red", "peak"), (~clear, "tab:blue", "flagged")):
            at = peaks.positions_px[chosen]
            if not len(at):
                continue
            main.scatter(
                at[:, 1], at[:, 0], s=60, facecolors="none", edgecolors=colour, label=label
            )
        height, width = frame.shape
        main.set_xlim(col - 0.5, min(col + WINDOW_PX, width) - 0.5)
        main.set_ylim(min(row + WINDOW_PX, height) - 0.5, row - 0.5)
        main.set(xlabel="column / px", ylabel="row / px", title=title)
        main.legend(loc="upper right")
        figure.colorbar(image, ax=main, label="counts + 1", shrink=0.7)
        for axes, index in zip(insets, _best(peaks, row, col), strict=False):
            _draw_one(axes, frame, peaks, index)
        for axes in insets[len(_best(peaks, row, col)) :]:
            axes.set_axis_off()
        figure.savefig(path, dpi=130)


def _draw_one(axes: object, frame: npt.NDArray[np.generic], peaks: Peaks, index: int) -> None:
    """One peak close up, with the ellipse of its interval."""
    from matplotlib.patches import Ellipse

    row, col = peaks.positions_px[index]
    axes.imshow(frame, cmap="viridis", interpolation="nearest", vmin=0)  # type: ignore[attr-defined]
    axes.images[0].set_clim(0, float(peaks.intensities[index]))  # type: ignore[attr-defined]
    axes.plot(col, row, "r+", markersize=9)  # type: ignore[attr-defined]
    height, width = peaks.intervals_px[index]
    axes.add_patch(Ellipse((col, row), width, height, fill=False, color="red"))  # type: ignore[attr-defined]
    half = INSET_PX / 2
    axes.set(  # type: ignore[attr-defined]
        xlim=(round(col) - half, round(col) + half),
        ylim=(round(row) + half, round(row) - half),
        title=f"({row:.2f}, {col:.2f})",
    )


def _busiest_corner(
    positions_px: npt.NDArray[np.float32], shape: tuple[int, ...]
) -> tuple[int, int]:
    """First pixel of the window that holds the most peaks, on a grid of half windows."""
    best, corner = -1, (0, 0)
    for row in range(0, max(1, shape[0] - WINDOW_PX // 2), WINDOW_PX // 2):
        for col in range(0, max(1, shape[1] - WINDOW_PX // 2), WINDOW_PX // 2):
            inside = _inside(positions_px, row, col).sum()
            if inside > best:
                best, corner = int(inside), (row, col)
    return corner


def _inside(positions_px: npt.NDArray[np.float32], row: int, col: int) -> npt.NDArray[np.bool_]:
    relative = positions_px - np.array([row, col])
    inside: npt.NDArray[np.bool_] = ((relative >= 0) & (relative < WINDOW_PX)).all(axis=1)
    return inside


def _best(peaks: Peaks, row: int, col: int) -> list[int]:
    """Up to four peaks of the window without a flag, brightest first."""
    usable = _inside(peaks.positions_px, row, col) & (peaks.flags == 0)
    indices = np.flatnonzero(usable)
    return [int(i) for i in indices[np.argsort(-peaks.intensities[indices])][:4]]
