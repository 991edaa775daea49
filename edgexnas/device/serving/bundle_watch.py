"""Watch the file of a service's bundle, and let a new one take over."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from edgexnas.errors import EdgexnasError

if TYPE_CHECKING:
    from edgexnas.device.bragg.predictor import PeakPredictor
    from edgexnas.device.ptycho.predictor import PtychoPredictor
    from edgexnas.device.serving.service import Service

__all__ = ["BundleWatch"]

_log = logging.getLogger("edgexnas.device.serving")


class BundleWatch:
    """Opens the bundle again when its file has changed, beside the one that runs.

    A bundle that is not signed, fails on this engine, or is no newer is logged and left out; the
    service goes on with the one it has. A file is to be replaced by renaming: one that is half
    written is looked at again once it has changed again.

    Parameters
    ----------
    path
        The bundle.
    service
        Told of the new predictor.
    open_predictor
        Verifies the bundle, opens its engine and checks it.
    period_s
        How often the file is looked at; 0 for only when `look` is called.
    """

    def __init__(
        self,
        path: Path,
        service: Service,
        open_predictor: Callable[[], PeakPredictor | PtychoPredictor],
        *,
        period_s: float,
    ) -> None:
        self._path = path
        self._service = service
        self._open_predictor = open_predictor
        self._period_s = period_s or None
        self._seen = self._state()
        self._asked = False
        self._wake = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="bundle", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def look(self) -> None:
        """Look at the bundle now, changed or not; from any thread or signal handler."""
        self._asked = True
        self._wake.set()

    def close(self) -> None:
        """Stop watching; closing again does nothing."""
        self._closed = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            self._wake.wait(self._period_s)
            self._wake.clear()
            if self._closed:
                return
            asked = self._asked
            self._asked = False
            state = self._state()
            if state is not None and (asked or state != self._seen):
                self._seen = state
                self._take_over()

    def _state(self) -> tuple[int, int, int] | None:
        """Tell one content of the file from another; None while there is no file."""
        try:
            state = os.stat(self._path)
        except OSError:
            return None
        return state.st_ino, state.st_size, state.st_mtime_ns

    def _take_over(self) -> None:
        running = self._service.identity.bundle_digest
        try:
            predictor = self._open_predictor()
        except EdgexnasError as error:
            self._service.note(f"the new {self._path} is not taken: {error}")
            return
        try:
            if predictor.bundle_digest == running:
                _log.info("%s is the bundle that runs", self._path)
                predictor.close()
                return
            self._service.replace_predictor(predictor)
        except EdgexnasError as error:
            predictor.close()
            self._service.note(f"the new {self._path} is not taken: {error}")
