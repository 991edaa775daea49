"""What becomes of series that wait to be finished when a service stops."""

from __future__ import annotations

import threading

from edgexnas.device.rate_limited_log import RateLimitedLog
from edgexnas.device.serving.after_series import AfterSeries


class Said(RateLimitedLog):
    """Keeps every sentence."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def add(self, reason: str, message: str) -> None:
        self.sentences.append(message)


def test_an_abort_says_which_objects_are_not_refined() -> None:
    said, begun = Said(), threading.Event()

    def work(stop: threading.Event) -> None:
        begun.set()
        stop.wait(120)

    after = AfterSeries(lambda snapshot: None, said)
    after.add("first", work)
    assert begun.wait(120)
    after.add("second", work)
    after.abort()
    assert after.join(120)
    assert [s.split(":")[0] for s in said.sentences] == [
        f"the object of {name} is not refined" for name in ("first", "second")
    ]
