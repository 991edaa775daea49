"""The time in which a signed file is valid, held against a clock that may be wrong."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta, timezone

from edgexnas.errors import BundleError

__all__ = ["CLOCK_TOLERANCE", "check_validity"]

CLOCK_TOLERANCE = timedelta(minutes=10)
"""How far the signer's clock may be ahead of this one."""

_log = logging.getLogger(__name__)


def check_validity(
    created: datetime,
    expires: datetime | None,
    *,
    now: datetime | None,
    what: str,
    error: type[BundleError] = BundleError,
) -> None:
    """Check that the time lies between `created` and `expires`.

    A device without a battery starts with a clock years back, by which what has expired would be
    valid. Without an expiry such a clock does no harm here and is only logged.

    Parameters
    ----------
    now
        Time with time zone; None is the clock's.
    error
        What is raised.

    Raises
    ------
    BundleError
        Naming the times.
    """
    now = now or datetime.now(timezone.utc)
    if now < created - CLOCK_TOLERANCE:
        message = (
            f"{what} was made at {created.isoformat()} and the clock says {now.isoformat()}: "
            "set the clock"
        )
        # Only with an expiry is the clock relied on; without one a slow clock changes nothing.
        if expires is not None:
            raise error(message)
        _log.warning("%s", message)
    if expires is not None and now >= expires:
        raise error(
            f"{what} expired at {expires.isoformat()}: get a newer one, or set the clock if it is "
            f"not {now.isoformat()}"
        )
