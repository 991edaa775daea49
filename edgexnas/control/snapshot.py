"""The counts of a running service, read over HTTP."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import dataclass

from edgexnas.errors import ConfigurationError, ControlError

__all__ = ["ServiceSnapshot", "read_snapshot"]

ANSWER_S = 5.0
"""How long a service has to answer: it takes milliseconds, a tunnel to it some more."""


@dataclass(frozen=True, slots=True)
class ServiceSnapshot:
    """What a plan needs to know of a service at one moment.

    Attributes
    ----------
    state, healthy, sentence
        As on the service's page.
    model_id, engine, precision, source
        What makes the results.
    series
        The newest series; empty before the first.
    began_at_s
        When the service started, in Unix seconds; all counts are since then.
    uptime_s
        Since then, on its own clock.
    done, failed, dropped, lost, pending
        Frames of all series by ledger state.
    summed_frames, peaks, intensity_counts
        Sums over these frames, which are the committed ones.
    """

    state: str
    healthy: bool
    sentence: str
    model_id: str
    engine: str
    precision: str
    source: str
    series: str
    began_at_s: float
    uptime_s: float
    done: int
    failed: int
    dropped: int
    lost: int
    pending: int
    summed_frames: int
    peaks: int
    intensity_counts: float

    @property
    def missing(self) -> int:
        """Frames that have ended without a stored result: failed, dropped or lost."""
        return self.failed + self.dropped + self.lost


def read_snapshot(url: str) -> ServiceSnapshot:
    """Ask a service.

    Parameters
    ----------
    url
        Of its page, such as "http://127.0.0.1:9108".

    Raises
    ------
    ControlError
        If it does not answer, or what answers is no service of this version.
    ConfigurationError
        If the URL is none of HTTP.
    """
    if not url.startswith(("http://", "https://")):
        raise ConfigurationError(
            f"{url} is no address of a service; specify that of its page, such as "
            "http://127.0.0.1:9108"
        )
    address = f"{url.rstrip('/')}/status.json"
    try:
        with urllib.request.urlopen(address, timeout=ANSWER_S) as answer:
            status = json.load(answer)["status"]
        engine, counts, sums = status["engine"] or {}, status["counts"], status["sums"]
        return ServiceSnapshot(
            state=status["state"],
            healthy=status["healthy"],
            sentence=status["reason"],
            model_id=status["model_id"],
            engine=engine.get("name", ""),
            precision=engine.get("precision", ""),
            source=status["source"],
            series=status["series"] or "",
            began_at_s=status["began_at_s"],
            uptime_s=status["uptime_s"],
            done=counts["done"],
            failed=counts["failed"],
            dropped=counts["dropped"],
            lost=counts["lost"],
            pending=counts["pending"] + counts["spilled"],
            summed_frames=sums["frames"],
            peaks=sums["peaks"],
            intensity_counts=sums["intensity_counts"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ControlError(
            f"what answers at {address} is no edgexnas service of this version "
            f"({type(error).__name__}: {error}); check the port, and update the service"
        ) from error
    except OSError as error:
        # `urlopen` wraps what the socket said in a reason.
        why = getattr(error, "reason", None) or error
        raise ControlError(
            f"no service answers at {address} ({why}); start it with [monitoring] port, or open "
            "a tunnel to it"
        ) from error
