"""A sequence of GPU work that was recorded once and is launched as one, through cuda-bindings."""

from __future__ import annotations

import gc
import threading
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from edgexnas.errors import EngineError, MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edgexnas.device.cuda.context import CudaContext

__all__ = ["CudaCallError", "CudaGraph", "capture_graph", "checked", "import_bindings"]

_recording = threading.Lock()


class CudaGraph:
    """Recorded work with the addresses and sizes it had. Made by `CudaSession.capture`."""

    def __init__(self, session: CudaContext, bindings: Any, executable: Any) -> None:
        self._session = session
        self._bindings = bindings
        self._executable = executable
        # Made once, because launching happens for every frame.
        self._stream = bindings.CUstream(session.compute.handle)

    def launch(self, stream: Any | None = None) -> None:
        """Put the recorded work into a stream, `compute` by default.

        Raises
        ------
        EngineError
            If the graph is closed or the GPU fails.
        """
        if self._executable is None:
            raise EngineError("this CUDA graph is closed; capture another")
        target = self._stream if stream is None else self._bindings.CUstream(stream.handle)
        with self._session.current():
            checked(self._bindings, self._bindings.cuGraphLaunch(self._executable, target))

    def close(self) -> None:
        """Free the graph; closing again does nothing. The GPU must be done with it."""
        if self._executable is not None:
            executable, self._executable = self._executable, None
            self._session.forget(self)
            with self._session.releasing():
                self._bindings.cuGraphExecDestroy(executable)


def capture_graph(session: CudaContext, work: Callable[[Any], None]) -> CudaGraph:
    """Record what `work(session.compute)` enqueues; see `CudaSession.capture`."""
    bindings = import_bindings("a CUDA graph")
    stream = bindings.CUstream(session.compute.handle)
    # Thread-local: what other threads do meanwhile, such as taking memory, does not disturb it.
    mode = bindings.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    with session.current(), _without_collection():
        checked(bindings, bindings.cuStreamBeginCapture(stream, mode))
        try:
            work(session.compute)
        except BaseException:
            # The stream leaves capture mode, whatever went wrong in it.
            outcome, half = bindings.cuStreamEndCapture(stream)
            if int(outcome) == 0:
                bindings.cuGraphDestroy(half)
            raise
        graph = checked(bindings, bindings.cuStreamEndCapture(stream))
        # The executable keeps a copy, so that the recording can go at once.
        try:
            executable = checked(bindings, bindings.cuGraphInstantiate(graph, 0))
        finally:
            bindings.cuGraphDestroy(graph)
    # pycuda (2026.1) has neither graphs nor capture; both libraries work on the same streams.
    return CudaGraph(session, bindings, executable)


@contextmanager
def _without_collection() -> Iterator[None]:
    """Keep the garbage collector from freeing pinned memory in the thread that records.

    The driver forbids that to this thread meanwhile, and takes the recording back.
    """
    # One at a time, so that none switches the collector on while another records.
    with _recording:
        enabled = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if enabled:
                gc.enable()


def import_bindings(what: str) -> Any:
    """Return cuda-bindings' driver module, for what pycuda has not.

    Raises
    ------
    MissingDependencyError
        If cuda-bindings is not installed; it says what needs it.
    """
    try:
        return import_module("cuda.bindings.driver")
    except ImportError as error:
        raise MissingDependencyError(
            f"{what} needs cuda-bindings, which is not installed: run device/setup.sh on a "
            "Jetson, or pip install cuda-bindings elsewhere"
        ) from error


def checked(bindings: Any, returned: tuple[Any, ...]) -> Any:
    """Return the result of a driver call, which returns its outcome first."""
    # cuda-bindings returns errors and never raises them: an unchecked call fails unseen.
    outcome, *results = returned
    if int(outcome) != 0:
        raise CudaCallError(bindings, outcome)
    return results[0] if results else None


class CudaCallError(Exception):
    """A driver call failed; `CudaSession.current` makes an `EngineError` of it."""

    def __init__(self, bindings: Any, outcome: Any) -> None:
        _, text = bindings.cuGetErrorString(outcome)
        said = text.decode() if isinstance(text, bytes) else str(text)
        super().__init__(f"{getattr(outcome, 'name', outcome)}: {said}")
