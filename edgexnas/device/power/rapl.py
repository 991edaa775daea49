"""Power of CPU packages, from the kernel's powercap files (RAPL), on Intel and AMD."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgexnas.device.power.meter import PowerReading
from edgexnas.errors import SourceError

__all__ = ["RaplMeter"]

MOST_W = 1_000.0
"""No package draws more; a counter that rose faster was set back, and not over its range."""

SHORTEST_S = 1e-3
"""The processor updates its counters about every millisecond; less apart they say nothing."""


@dataclass
class _Domain:
    """A counter in µJ that starts over at its range."""

    name: str
    path: Path
    range_uj: int
    last_uj: int = 0
    total_uj: int = 0

    def advance(self, seconds: float) -> int | None:
        """Energy in µJ since the last reading, across one start-over; None after a reset."""
        value = _whole(self.path / "energy_uj")
        gained = value - self.last_uj
        # The counter starts over within minutes at full power.
        if gained < 0:
            # The range is the largest value, so that one more makes a round.
            gained += self.range_uj + 1
            if gained > MOST_W * 1e6 * seconds:
                self.last_uj = value
                return None
        self.last_uj = value
        self.total_uj += gained
        return gained


class RaplMeter:
    """Packages of a CPU with their memory, by the energy counters of the processor. A `PowerMeter`.

    `module_w` is the sum over packages and, where it is counted apart, their memory; cores are
    inside their package and the platform contains everything, so neither is added. Power is
    the mean since the last reading, 0 before there is one; `energy_j` loses nothing between
    readings as long as they are closer than the counters' range, minutes at least.

    Parameters
    ----------
    root
        Folder that holds ``sys``.
    now
        Clock, in seconds; CLOCK_MONOTONIC unless a test replaces it.

    Raises
    ------
    SourceError
        If there are no counters, or this user may not read them.
    """

    source = "rapl"

    def __init__(
        self, root: str | Path = "/", *, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._now = now
        folder = Path(root) / "sys" / "class" / "powercap"
        self._domains = [_domain(path) for path in sorted(folder.glob("intel-rapl:*"))]
        # "psys" contains all and "core" is contained: both would be counted twice.
        self._totals = [d for d in self._domains if d.name.startswith(("package", "dram"))]
        if not self._totals:
            raise SourceError(
                f"{folder} has no CPU energy counters (RAPL); virtual machines usually hide them"
            )
        for domain in self._domains:
            domain.last_uj = _whole(domain.path / "energy_uj")
        self._read_s = now()
        self._rails = dict.fromkeys((d.name for d in self._domains), 0.0)

    @property
    def description(self) -> str:
        """Domains in one line."""
        return f"CPU energy counters (RAPL): {' + '.join(d.name for d in self._totals)}"

    def read(self) -> PowerReading:
        """Read the mean power since the last reading; see `PowerMeter.read`.

        Raises
        ------
        SourceError
            If a counter cannot be read, or was reset since the last reading.
        """
        now = self._now()
        seconds = now - self._read_s
        # Else the last reading stands: dividing by microseconds would give any power.
        if seconds >= SHORTEST_S:
            self._read_s = now
            gained = {d.name: d.advance(seconds) for d in self._domains}
            for name, value in gained.items():
                if value is None:
                    raise SourceError(
                        f"the energy counter {name} was reset, as by a suspend, and what was used "
                        "since the last reading is lost; measure again without one in between"
                    )
                self._rails[name] = value / 1e6 / seconds
        return PowerReading(
            time_s=now,
            rails_w=dict(self._rails),
            module_w=sum(self._rails[d.name] for d in self._totals),
            source=self.source,
            energy_j=sum(d.total_uj for d in self._totals) / 1e6,
        )

    def close(self) -> None:
        """Do nothing: no file stays open between readings."""


def _domain(path: Path) -> _Domain:
    try:
        name = (path / "name").read_text().strip()
        # A part of a package is numbered A:B after package A.
        parts = path.name.split(":")[1:]
        named = f"{name}-{parts[0]}" if len(parts) > 1 else name
        return _Domain(named, path, _whole(path / "max_energy_range_uj"))
    except OSError as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{path} cannot be read ({error.strerror})") from error


def _whole(path: Path) -> int:
    try:
        return int(path.read_text())
    # Root only since 2020, because power tells what other users compute (CVE-2020-8694).
    except PermissionError as error:
        raise SourceError(
            f"{path} may be read by root only; run as root or change its permissions"
        ) from error
    except (OSError, ValueError) as error:
        raise SourceError(f"{path} cannot be read ({error}); reload the rapl driver") from error
