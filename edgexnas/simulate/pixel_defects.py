"""Pixels that tell nothing: dead, hot, or in the gaps between modules."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgexnas.simulate.hedm_settings import HedmSettings


@dataclass(frozen=True, slots=True)
class PixelDefects:
    """The unusable pixels of a detector.

    Attributes
    ----------
    mask
        (H, W) bool, True where a pixel is unusable.
    dark, hot
        (k,) flat indices of the pixels that read 0, and of those that read saturation.
    """

    mask: npt.NDArray[np.bool_]
    dark: npt.NDArray[np.intp]
    hot: npt.NDArray[np.intp]

    @classmethod
    def draw(cls, settings: HedmSettings, rng: np.random.Generator) -> PixelDefects:
        """Scatter dead and hot pixels at random and lay out the gaps."""
        shape = settings.shape
        size = shape[0] * shape[1]
        dead = rng.choice(size, rng.binomial(size, settings.dead_pixel_fraction), replace=False)
        hot = rng.choice(size, rng.binomial(size, settings.hot_pixel_fraction), replace=False)
        gaps = _gaps(settings)
        # There is no pixel in a gap that could be hot.
        hot = hot[~gaps.reshape(-1)[hot]]
        mask = gaps.copy()
        mask.reshape(-1)[dead] = True
        # Without the hot ones, which are written after the dark ones and so win.
        dark = np.flatnonzero(mask)
        mask.reshape(-1)[hot] = True
        return cls(mask, dark, hot)

    def apply(self, counts: npt.NDArray[np.int32], saturation: int) -> None:
        """Write what these pixels read into (H, W) counts."""
        counts.reshape(-1)[self.dark] = 0
        counts.reshape(-1)[self.hot] = saturation


def _gaps(settings: HedmSettings) -> npt.NDArray[np.bool_]:
    if settings.module_shape is None or settings.gap_px == 0:
        return np.zeros(settings.shape, np.bool_)
    row, col = (
        np.arange(size) % (module + settings.gap_px) >= module
        for size, module in zip(settings.shape, settings.module_shape, strict=True)
    )
    between: npt.NDArray[np.bool_] = row[:, None] | col[None, :]
    return between
