"""Which rotation angle each frame of a series has."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgexnas.errors import ConfigurationError, InputError

if TYPE_CHECKING:
    from edgexnas.merging.settings import MergeSettings

__all__ = ["Rotation"]


class Rotation:
    """Rotation angles of frames: equal steps, or a table.

    Parameters
    ----------
    start_deg, step_deg
        Angle at the start of frame 0, and how far each frame turns.
    table_deg
        (n, 2) angles at the start and the end of each frame, in degrees, instead; frames beyond it
        have none.

    Raises
    ------
    InputError
        If the table has another shape, holds what is not finite, or a frame does not turn.
    """

    def __init__(
        self,
        start_deg: float = 0.0,
        step_deg: float = 1.0,
        *,
        table_deg: npt.ArrayLike | None = None,
    ) -> None:
        self.start_deg, self.step_deg = float(start_deg), float(step_deg)
        self._table = None if table_deg is None else np.asarray(table_deg, np.float64)
        table = self._table
        if table is None:
            return
        if table.ndim != 2 or table.shape[1] != 2 or not len(table):
            raise InputError(f"the table of angles has shape {table.shape}; give (n, 2)")
        if not np.isfinite(table).all():
            raise InputError("the table of angles holds what is not finite; give degrees")
        still = np.flatnonzero(table[:, 0] == table[:, 1])
        if len(still):
            raise InputError(
                f"frame {still[0]} starts and ends at {table[still[0], 0]} degrees; give the "
                "angles between which it turns"
            )

    @classmethod
    def of(cls, settings: MergeSettings, table_deg: npt.ArrayLike | None = None) -> Rotation:
        """Choose the rotation that the settings say, or else a series' own.

        Raises
        ------
        ConfigurationError
            If neither says one.
        """
        if settings.omega_start_deg is not None and settings.omega_step_deg is not None:
            return cls(settings.omega_start_deg, settings.omega_step_deg)
        if table_deg is None:
            raise ConfigurationError(
                "the rotation angles of the frames are not known, and merging needs them; specify "
                "omega_start_deg and omega_step_deg"
            )
        return cls(table_deg=table_deg)

    @property
    def has_equal_steps(self) -> bool:
        """Whether frames turn in equal steps, and their numbers tell their angles."""
        return self._table is None

    def of_frame(self, number: int) -> tuple[float, float]:
        """Return the angles at the start and the end of a frame, in degrees.

        Raises
        ------
        InputError
            If a table has none for it.
        """
        if self._table is None:
            # By a product, not a sum: no error grows over a million frames.
            return (
                self.start_deg + number * self.step_deg,
                self.start_deg + (number + 1) * self.step_deg,
            )
        if not 0 <= number < len(self._table):
            raise InputError(
                f"frame {number} has no rotation angle: the table has {len(self._table)}; specify "
                "omega_start_deg and omega_step_deg"
            )
        start, end = self._table[number].tolist()
        return start, end
