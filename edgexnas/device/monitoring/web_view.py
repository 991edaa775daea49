"""The HTTP server of the service: web page, pictures, metrics, health and status.

It answers GET and HEAD, on this machine only, and nothing that it is sent changes anything.
"""

from __future__ import annotations

import importlib.resources
import ipaddress
import json
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET6, SHUT_RDWR, socket
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from edgexnas.device.monitoring.metrics import CONTENT_TYPE, ServiceMetrics
from edgexnas.device.monitoring.page import page_data, render_page
from edgexnas.device.monitoring.status import LastResult
from edgexnas.device.monitoring.watch import ServiceWatch
from edgexnas.device.pictures.pictures import (
    Picture,
    amplitude_picture,
    frame_picture,
    phase_picture,
    refinement_picture,
)
from edgexnas.errors import ConfigurationError
from edgexnas.ptycho import ObjectImage

__all__ = ["WebView"]

_logger = logging.getLogger(__name__)

_MAX_CONNECTIONS = 16
_REQUEST_S = 5.0
"""A connection that is older is closed, however slowly it goes on."""

_CLOSING_S = 1.0
"""How long answers under way may take once the service closes."""

_PICTURE_AGE_S = 0.5
"""A frame in between is not drawn for the page: the detector's frames come first."""

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class _Answer(NamedTuple):
    status: HTTPStatus
    content_type: str
    body: bytes


class WebView:
    """Serves the page of a service.

    Parameters
    ----------
    watch
        Whose observations are shown.
    port
        TCP port; 0 lets the system choose one, see `url`.
    host
        Loopback address to listen on.

    Raises
    ------
    ConfigurationError
        When `host` is no address of this machine alone.
    """

    def __init__(self, watch: ServiceWatch, *, port: int, host: str = "127.0.0.1") -> None:
        if not _is_loopback(host):
            raise ConfigurationError(
                f"the monitoring page has no passwords and cannot be opened on {host!r}: "
                "use 127.0.0.1, and an ssh tunnel or a proxy to reach it from elsewhere"
            )
        self._watch = watch
        self._host = "127.0.0.1" if host == "localhost" else host
        self._port = port
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Address of the page; empty while it is not served."""
        if self._server is None:
            return ""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._server.server_port}/"

    def start(self) -> None:
        """Open the port and serve.

        Raises
        ------
        ConfigurationError
            When the port cannot be opened, such as one that another program has.
        """
        if self._server is not None:
            return
        try:
            self._server = _Server((self._host, self._port), _Pages(self._watch))
        except OSError as error:
            raise ConfigurationError(
                f"the monitoring page cannot be served on port {self._port} of {self._host} "
                f"({error.strerror or error}): free it, choose another port, or 0 for no page"
            ) from error
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.05},
            name="edgexnas-page",
            daemon=True,
        )
        self._thread.start()
        _logger.info("page, metrics and health at %s", self.url)

    def close(self) -> None:
        """Stop serving and free the port; answers under way have a second to finish."""
        server, self._server = self._server, None
        if server is None:
            return
        server.shutdown()
        server.server_close()
        if self._thread is not None:
            self._thread.join()


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Pages:
    """What is found under each path."""

    def __init__(self, watch: ServiceWatch) -> None:
        self._watch = watch
        self._metrics = ServiceMetrics(watch)
        folder = importlib.resources.files(__package__) / "static"
        self._css = (folder / "page.css").read_bytes()
        self._js = (folder / "page.js").read_bytes()
        self._drawing = threading.Lock()
        self._drawn: dict[str, _Drawn] = {}
        self._paths: dict[str, Callable[[], _Answer]] = {
            "/": self._page,
            "/page.css": lambda: _ok("text/css; charset=utf-8", self._css),
            "/page.js": lambda: _ok("text/javascript; charset=utf-8", self._js),
            "/status.json": self._status,
            "/metrics": lambda: _ok(CONTENT_TYPE, self._metrics.text()),
            "/healthz": self._health,
            "/frame.png": lambda: self._picture("/frame.png", _frame),
            "/object/amplitude.png": lambda: self._picture("/object/amplitude.png", _amplitude),
            "/object/phase.png": lambda: self._picture("/object/phase.png", _phase),
            "/object/refinement.png": lambda: self._picture("/object/refinement.png", _refinement),
        }

    def answer(self, path: str) -> _Answer:
        """Answer a GET request."""
        page = self._paths.get(path)
        if page is None:
            known = " ".join(self._paths)
            return _plain(HTTPStatus.NOT_FOUND, f"there is nothing here; there is: {known}")
        return page()

    def _page(self) -> _Answer:
        page = render_page(self._watch.observe(), self._scales())
        return _ok("text/html; charset=utf-8", page.encode())

    def _status(self) -> _Answer:
        data = page_data(self._watch.observe(), self._scales())
        # JSON knows no NaN: a browser would refuse the whole answer.
        text = json.dumps(_finite(data), allow_nan=False, ensure_ascii=False)
        return _ok("application/json; charset=utf-8", text.encode())

    def _health(self) -> _Answer:
        health = self._watch.observe().status.health
        status = HTTPStatus.OK if health.healthy else HTTPStatus.SERVICE_UNAVAILABLE
        return _plain(status, health.sentence)

    def _scales(self) -> dict[str, str]:
        return {path: drawn.picture.caption for path, drawn in self._drawn.copy().items()}

    def _picture(self, path: str, draw: Callable[[LastResult], Picture | None]) -> _Answer:
        # One at a time: several open pages must not draw the same frame at once.
        with self._drawing:
            result = self._watch.observe().status.last_result
            if result is None:
                return _plain(HTTPStatus.NOT_FOUND, "there is no result so far")
            frame = (result.series, result.number, result.refinement is not None)
            drawn = self._drawn.get(path)
            now = time.monotonic()
            if drawn is None or (drawn.frame != frame and now - drawn.at_s >= _PICTURE_AGE_S):
                picture = draw(result)
                if picture is None:
                    return _plain(HTTPStatus.NOT_FOUND, "the newest result has no such picture")
                drawn = self._drawn[path] = _Drawn(now, frame, picture)
        return _ok("image/png", drawn.picture.png)


class _Drawn(NamedTuple):
    at_s: float
    frame: tuple[str, int, bool]
    picture: Picture


def _frame(result: LastResult) -> Picture | None:
    return None if result.pixels is None else frame_picture(result.pixels, result.positions_px)


def _amplitude(result: LastResult) -> Picture | None:
    image = _best(result)
    return None if image is None else amplitude_picture(image)


def _phase(result: LastResult) -> Picture | None:
    image = _best(result)
    return None if image is None else phase_picture(image)


def _refinement(result: LastResult) -> Picture | None:
    if result.object_image is None or result.refinement is None:
        return None
    return refinement_picture(result.object_image, result.refinement.image)


def _best(result: LastResult) -> ObjectImage | None:
    return result.object_image if result.refinement is None else result.refinement.image


def _finite(value: Any) -> Any:
    """Replace what JSON cannot say by null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value


def _ok(content_type: str, body: bytes) -> _Answer:
    return _Answer(HTTPStatus.OK, content_type, body)


def _plain(status: HTTPStatus, text: str) -> _Answer:
    return _Answer(status, "text/plain; charset=utf-8", f"{text}\n".encode())


class _Server(ThreadingHTTPServer):
    # Closing must not wait for clients: they decide how long their threads last.
    daemon_threads = True
    block_on_close = False
    request_queue_size = 4 * _MAX_CONNECTIONS
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], pages: _Pages) -> None:
        if ":" in address[0]:
            self.address_family = AF_INET6
        self.pages = pages
        self._connections: dict[Any, float] = {}
        self._lock = threading.Lock()
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread of its own; of too many the oldest is closed.

        An answer takes milliseconds, so that the oldest connection is that of a slow client.
        """
        with self._lock:
            if len(self._connections) >= _MAX_CONNECTIONS:
                self._cut(next(iter(self._connections)))
            self._connections[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection that was answered."""
        with self._lock:
            self._connections.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Close connections that take too long; called between requests."""
        self._cut_before(time.monotonic() - _REQUEST_S)

    def server_close(self) -> None:
        """Close the port, and after a moment what is still connected."""
        super().server_close()
        end_s = time.monotonic() + _CLOSING_S
        while self._connections and time.monotonic() < end_s:
            time.sleep(0.01)
        self._cut_before(time.monotonic())

    def _cut_before(self, time_s: float) -> None:
        with self._lock:
            for request in [at for at, began_s in self._connections.items() if began_s <= time_s]:
                self._cut(request)

    def _cut(self, request: Any) -> None:
        # Its thread wakes up from reading or writing, ends, and closes the socket.
        del self._connections[request]
        with suppress(OSError):
            request.shutdown(SHUT_RDWR)

    def handle_error(self, request: socket | tuple[bytes, socket], client_address: Any) -> None:
        """Log a connection that broke, without a traceback on the terminal."""
        _logger.debug("a request from %s broke", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _REQUEST_S
    server_version = "edgexnas"
    sys_version = ""

    def do_GET(self) -> None:
        self._send(self._answer(), with_body=True)

    def do_HEAD(self) -> None:
        self._send(self._answer(), with_body=False)

    def _refuse(self) -> None:
        self._send(
            _plain(HTTPStatus.METHOD_NOT_ALLOWED, "this server only answers GET and HEAD"),
            with_body=True,
        )

    do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_TRACE = do_CONNECT = _refuse  # noqa: N815

    def _answer(self) -> _Answer:
        # A foreign page that points its own name at 127.0.0.1 sends that name here.
        name = self.headers.get("Host", "").strip().lower()
        host = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
        if not _is_loopback(host):
            return _plain(
                HTTPStatus.FORBIDDEN, "ask for this machine by the name localhost or 127.0.0.1"
            )
        try:
            return self.server.pages.answer(urlsplit(self.path).path)
        except Exception:
            _logger.exception("the monitoring page could not answer %s", self.path[:100])
            return _plain(HTTPStatus.INTERNAL_SERVER_ERROR, "see the service's log")

    def _send(self, answer: _Answer, *, with_body: bool) -> None:
        self.send_response(answer.status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        if answer.status is HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        self.end_headers()
        if with_body:
            self.wfile.write(answer.body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what is no HTTP request, under the same headers as everything else."""
        self.close_connection = True
        self.request_version = self.protocol_version
        self._send(_plain(HTTPStatus(code), message or HTTPStatus(code).phrase), with_body=True)

    def log_message(self, format: str, *args: Any) -> None:
        """Log requests for whoever debugs the page only: it asks each second."""
        _logger.debug("%s: " + format, self.address_string(), *args)
