"""Labelled peaks: what a search trains on, how they are split, and their file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from edgexnas.bragg import PATCH_SIZE, FloatArray, IntArray, scale_patches
from edgexnas.errors import ConfigurationError, InputError
from edgexnas.host.data.dataset import require_finite
from edgexnas.host.data.dataset_file import DatasetFile
from edgexnas.host.data.splitting import Split, split_frames, split_of
from edgexnas.host.data.stored_dataset import Columns, StoredDataset
from edgexnas.peak_finding import FinderReport, FinderSettings

__all__ = ["PeakDataset", "Split"]

_PATCH = (PATCH_SIZE, PATCH_SIZE)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PeakDataset(StoredDataset):
    """Detected peaks of a series with their labels, ordered by frame, then (row, col).

    Attributes
    ----------
    counts
        (n, 11, 11) float32, patches as detection cuts them: counts above background, not scaled.
    offsets_px
        (n, 2) float32, the label: (row, col) offset of the fitted position from the patch's
        centre pixel, in pixels.
    maxima
        (n, 2) int32, (row, col) of the brightest pixel in the frame.
    frame
        (n,) int32, number of the frame in the series.
    flags
        (n,) uint8, a combination of `PeakFlag`.
    r2
        (n,) float32, coefficient of determination of the fit.
    good
        (n,) bool, True where the label may be trained and scored on.
    truth_px
        (n, 2) float64, true (row, col) in the frame where the series was simulated, NaN where no
        true peak matches; None for measured series.
    omega_deg
        (frames, 2) float64, rotation angle at start and end of each frame in degrees, or None.
    frames
        Number of frames of the series.
    shape
        (H, W) of the frames.
    source
        Where the series came from.
    finder
        Settings with which the peaks were detected.
    finder_report
        By which limits these and the frames let them be found; None where it is not known, or
        differs between series that were joined.
    """

    task: ClassVar[str] = "bragg"
    FILE: ClassVar[DatasetFile] = DatasetFile("edgexnas peaks", 1, "label the frames again")
    COLUMNS: ClassVar[Columns] = {
        "counts": (_PATCH, np.float32),
        "offsets_px": ((2,), np.float32),
        "maxima": ((2,), np.int32),
        "frame": ((), np.int32),
        "flags": ((), np.uint8),
        "r2": ((), np.float32),
        "good": ((), np.bool_),
        "truth_px": ((2,), np.float64),
    }
    OPTIONAL: ClassVar[tuple[str, ...]] = ("truth_px", "omega_deg")

    counts: FloatArray
    offsets_px: FloatArray
    maxima: IntArray
    frame: IntArray
    flags: npt.NDArray[np.uint8]
    r2: FloatArray
    good: npt.NDArray[np.bool_]
    truth_px: npt.NDArray[np.float64] | None = None
    omega_deg: npt.NDArray[np.float64] | None = None
    frames: int
    shape: tuple[int, int]
    source: str
    finder: FinderSettings = field(default_factory=FinderSettings)
    finder_report: FinderReport | None = None

    def __post_init__(self) -> None:
        """Reject columns that do not fit each other.

        Raises
        ------
        InputError
            If a column has another shape or dtype, counts or the position of a good peak are not
            finite, or a frame number lies outside the series.
        """
        self._check_columns()
        require_finite(self.source, counts=self.counts)
        # Of the others nobody asks: their fits failed, or no true peak matches.
        require_finite(f"the good peaks of {self.source}", positions=self.targets_px[self.good])
        if len(self.frame) and not 0 <= self.frame.min() <= self.frame.max() < self.frames:
            raise InputError(
                f"peaks lie on frames {self.frame.min()} to {self.frame.max()}, but the series "
                f"has {self.frames}; specify numbers from 0 to {self.frames - 1}"
            )
        if self.omega_deg is not None and self.omega_deg.shape != (self.frames, 2):
            raise InputError(
                f"omega_deg has shape {self.omega_deg.shape}; specify ({self.frames}, 2)"
            )

    @property
    def against(self) -> Literal["fit", "truth"]:
        """What positions are scored against: the truth where it is known, otherwise the fit."""
        return "fit" if self.truth_px is None else "truth"

    @property
    def targets_px(self) -> FloatArray:
        """(n, 2) float32, the offset to score against; NaN where no true peak matches."""
        if self.truth_px is None:
            return self.offsets_px
        offsets: FloatArray = (self.truth_px - self.maxima).astype(np.float32)
        return offsets

    def inputs(self) -> FloatArray:
        """(n, 1, 11, 11) float32, patches scaled to [0, 1] as the device scales them."""
        return scale_patches(self.counts)[:, None]

    def network_targets(self) -> FloatArray:
        """`targets_px`: what a network should give for `inputs()`."""
        return self.targets_px

    def split(
        self,
        *,
        blocks: int = 24,
        guard: int = 2,
        fractions: tuple[float, float, float] = (0.1, 0.15, 0.15),
    ) -> Split:
        """Split the good peaks by contiguous blocks of frames; see `splitting.split_frames`.

        Parameters
        ----------
        blocks
            Number of blocks, fewer if the series is short.
        guard
            Frames dropped between blocks of different parts: more than a reflection lasts.
        fractions
            Shares of the blocks for calibration, validation and test; training gets the rest.

        Raises
        ------
        ConfigurationError
            If the options do not fit the series, or a part has fewer than 16 good peaks.
        """
        part = split_frames(
            self.frames, blocks=blocks, guard=guard, fractions=fractions, closed=self._closed(guard)
        )[self.frame]
        return split_of(
            # Blocks follow from the frames alone, so which peaks are good moves no border.
            part,
            good=self.good,
            what=f"{self.source} has {int(self.good.sum())} good peaks on {self.frames} frames",
            remedy="label more frames",
        )

    def _closed(self, guard: int) -> bool:
        """Whether the last frames lie next to the first: a full turn."""
        if self.omega_deg is None or self.frames < 2:
            return False
        step = float(np.median(np.abs(np.diff(self.omega_deg[:, 0]))))
        gap = float(self.omega_deg[-1, 1] - self.omega_deg[0, 0])
        # Signed, because a stage may turn either way.
        turns = round(gap / 360)
        return turns != 0 and abs(gap - 360 * turns) <= (guard + 0.5) * step

    @classmethod
    def concatenate(cls, datasets: Sequence[PeakDataset]) -> PeakDataset:
        """Join datasets of the same detector and settings; frames are numbered on.

        Truth and rotation angles are kept where every dataset has them.

        Raises
        ------
        ConfigurationError
            If there is none, or shapes of frames or finder settings differ.
        """
        if not datasets or any(
            (item.shape, item.finder) != (datasets[0].shape, datasets[0].finder)
            for item in datasets
        ):
            raise ConfigurationError(
                f"{len(datasets)} datasets differ in frame shape or finder settings; "
                "specify at least one, labelled alike"
            )
        # Frames of the second series follow those of the first, and so on.
        starts = np.cumsum([0, *(item.frames for item in datasets)])
        # Without angles: they have a row for each frame of their own series.
        renumbered = [
            replace(item, frame=(item.frame + start).astype(np.int32), frames=int(starts[-1]),
                    omega_deg=None)
            for item, start in zip(datasets, starts[:-1], strict=True)
        ]  # fmt: skip
        joined: dict[str, Any] = {}
        for name in (*cls.COLUMNS, "omega_deg"):
            parts = [getattr(i, name) for i in (datasets if name == "omega_deg" else renumbered)]
            joined[name] = None if any(p is None for p in parts) else np.concatenate(parts)
        reports = {item.finder_report for item in datasets}
        joined["finder_report"] = reports.pop() if len(reports) == 1 else None
        source = "; ".join(dict.fromkeys(item.source for item in datasets))
        return replace(renumbered[0], **joined, source=source)

    def merge(self, other: PeakDataset, *, source: str) -> PeakDataset:
        """Add peaks of the same series, in the order of frames, then (row, col).

        Raises
        ------
        ConfigurationError
            If the frames differ in number or shape, or only one of both knows the truth.
        """
        alike = (self.frames, self.shape, self.against) == (
            other.frames,
            other.shape,
            other.against,
        )
        if not alike:
            raise ConfigurationError(
                f"{other.source} has {other.frames} frames of {other.shape} scored against the "
                f"{other.against}, {self.source} {self.frames} of {self.shape} against the "
                f"{self.against}; specify peaks of the same series"
            )
        joined: dict[str, Any] = {
            name: np.concatenate([getattr(self, name), getattr(other, name)])
            for name in self.COLUMNS
            if getattr(self, name) is not None
        }
        place = joined["maxima"]
        # The order that detection gives, in which readers and splits expect peaks.
        order = np.lexsort((place[:, 1], place[:, 0], joined["frame"]))
        return replace(self, **{n: column[order] for n, column in joined.items()}, source=source)

    def _description(self) -> dict[str, Any]:
        finder = asdict(self.finder)
        # Left out where it says nothing: datasets from before there was one keep their digest.
        if finder["ridge_fraction"] == 1:
            del finder["ridge_fraction"]
        described = {"frames": self.frames, "shape": list(self.shape), "finder": finder}
        # For the same reason.
        if self.finder_report is not None:
            described["finder_report"] = self.finder_report.as_json()
        return described

    @classmethod
    def _described(cls, description: Mapping[str, Any]) -> dict[str, Any]:
        rows, cols = description["shape"]
        report = description.get("finder_report")
        return {
            "frames": int(description["frames"]),
            "shape": (int(rows), int(cols)),
            "finder": FinderSettings(**{"ridge_fraction": 1.0, **description["finder"]}),
            "finder_report": None if report is None else FinderReport.from_json(report),
        }
