from __future__ import annotations

import http.client
import io
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgexnas.device.monitoring.page import page_data
from edgexnas.device.monitoring.sensors import SensorReading
from edgexnas.device.monitoring.status import LastError, LastResult, LatencySummary, ServiceStatus
from edgexnas.device.monitoring.summary import clock_time
from edgexnas.device.monitoring.watch import HistoryPoint, Observation, ServiceWatch
from edgexnas.device.monitoring.web_view import WebView
from edgexnas.errors import ConfigurationError
from edgexnas.ptycho import ObjectImage, Refinement

LIMIT_S = 120


@pytest.fixture
def view(watch: ServiceWatch) -> Iterator[WebView]:
    view = WebView(watch, port=0)
    view.start()
    yield view
    view.close()


def _ask(
    view: WebView, path: str, method: str = "GET", **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    port = int(view.url.rstrip("/").rpartition(":")[2])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_S)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer, answer.read()
    finally:
        connection.close()


def test_health_is_200_while_frames_move(view: WebView) -> None:
    answer, body = _ask(view, "/healthz")
    assert (answer.status, body) == (200, b"running for 90 s\n")


def test_health_is_503_with_the_reason_when_it_fails(
    source: Any, view: WebView, health_of: Callable[..., Any]
) -> None:
    source.change(health=health_of("failing"))
    answer, body = _ask(view, "/healthz")
    assert (answer.status, body) == (503, b"failing: sink hdf5 has stored nothing for 90 s\n")


def test_an_error_is_shown_with_its_time_until_it_is_gone(source: Any, view: WebView) -> None:
    source.change(last_error=LastError("the disk is full", 1.7e9, gone=False))
    banner = f'<p id="error" role="alert">{clock_time(1.7e9)}  the disk is full</p>'
    assert banner in _ask(view, "/")[1].decode()
    source.change(last_error=LastError("the disk is full", 1.7e9, gone=True))
    page = _ask(view, "/")[1].decode()
    assert '<p id="error" role="alert" hidden></p>' in page
    assert f"{clock_time(1.7e9)} (gone): the disk is full" in page


def test_metrics_are_served_in_the_format_that_prometheus_reads(view: WebView) -> None:
    answer, body = _ask(view, "/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert b'edgexnas_frames_total{state="done"} 950.0' in body


def test_status_json_holds_numbers_for_programs(view: WebView) -> None:
    status = json.loads(_ask(view, "/status.json")[1])["status"]
    assert status["counts"]["done"] == 950
    assert status["latency_ms"]["p99"] == 21.0
    assert status["queues"]["sink"] == {"length": 60, "capacity": 64}
    assert status["temperatures_c"] == {}


def test_what_source_and_sinks_count_is_on_the_page_and_in_status_json(view: WebView) -> None:
    data = json.loads(_ask(view, "/status.json")[1])
    assert data["status"]["source_counts"]["malformed"] == 2
    sink = data["status"]["sinks"]["hdf5 results/results"]
    assert 950 in sink.values()
    assert 3 in sink.values()
    shown = re.sub(r"<[^>]+>", " ", _ask(view, "/")[1].decode())
    assert re.search(r"hdf5\W+results\W+results\s+950\s+3\s+0\s", shown)
    assert re.search(r"Connection\s+connected\s", shown)
    assert re.search(r"Malformed\s+2\s", shown)


def test_a_number_that_json_cannot_say_is_null(source: Any, view: WebView) -> None:
    source.change(latency_ms=LatencySummary(float("nan"), 1, 2, float("inf"), 3))
    status = json.loads(_ask(view, "/status.json")[1])["status"]
    assert status["latency_ms"] == {"p50": None, "p95": 1, "p99": 2, "max": None, "count": 3}


def test_the_page_has_every_number_without_javascript(view: WebView) -> None:
    text = re.sub(r"<script.*?</script>", "", _ask(view, "/")[1].decode(), flags=re.DOTALL)
    shown = re.sub(r"<[^>]+>", " ", text)
    for expected in (
        "mlpBragg-12k",
        "onnxruntime, float32",
        "200.5 frames/s",
        "950",
        "21.0",
        "scan_7",
        "60",
        "1 d 02:03:04",
        "2 peaks marked with rings",
    ):
        assert expected in shown


class _Outline(HTMLParser):
    """What a screen reader finds."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_can_be_read_aloud(view: WebView) -> None:
    outline = _Outline()
    outline.feed(_ask(view, "/")[1].decode())
    tags = [tag for tag, _ in outline.tags]
    ids = {attributes.get("id") for _, attributes in outline.tags}
    assert dict(outline.tags)["html"]["lang"] == "en"
    assert tags.count("h1") == 1
    assert all(attributes["alt"] for tag, attributes in outline.tags if tag == "img")
    assert all("scope" in attributes for tag, attributes in outline.tags if tag == "th")
    sections = [attributes for tag, attributes in outline.tags if tag == "section"]
    assert sections
    assert all(attributes["aria-labelledby"] in ids for attributes in sections)


def test_the_page_asks_nobody_else_for_anything(view: WebView) -> None:
    text = b"".join(_ask(view, path)[1] for path in ("/", "/page.css", "/page.js")).decode()
    addresses = re.findall(r"""(?:src=|href=|url\(|fetch\(|import )["']?([^"')\s]+)""", text)
    assert "/page.css" in addresses
    assert all(re.match(r"/[a-z]|data:|\{|\$", address) for address in addresses), addresses


def test_names_from_outside_are_text_and_never_markup(source: Any, view: WebView) -> None:
    evil = '<script>alert("1")</script>'
    source.change(
        model_id=evil,
        series=evil,
        source=evil,
        last_error=LastError(evil, 0, gone=False),
        last_result=LastResult(evil, 1, np.zeros((8, 8), np.uint16), None),
        stage_ms={evil: LatencySummary(1, 1, 1, 1, 1)},
    )
    body = _ask(view, "/")[1].decode()
    assert "<script>alert" not in body
    assert "&lt;script&gt;alert" in body


def test_the_frame_is_a_picture(view: WebView) -> None:
    answer, body = _ask(view, "/frame.png")
    assert answer.headers["Content-Type"] == "image/png"
    with Image.open(io.BytesIO(body)) as image:
        assert image.size == (512, 384)


def test_a_frame_has_its_age_and_the_meaning_of_its_colours(source: Any, view: WebView) -> None:
    source.change(last_result=replace(source.now.last_result, arrival_s=time.monotonic() - 1000))
    _ask(view, "/frame.png")
    page = _ask(view, "/")[1].decode()
    assert re.search(
        r"<figcaption>Frame 41 of .*; 1[01]\d\d s old; counts \d.* logarithmic scale", page
    )
    assert '<span class="bar inferno"' in page


def test_a_chart_is_broken_where_nothing_was_done() -> None:
    points = [HistoryPoint(t, 5, done, 2, 4) for t, done in enumerate([5, 5, 0, 5, 5])]
    observation = Observation(ServiceStatus(), tuple(points), SensorReading())
    lines = page_data(observation)["page"]["charts"]["latency-chart"]["lines"]
    assert [path.count("M") for _, path in lines] == [2, 2]


def test_the_same_frame_is_drawn_once(source: Any, view: WebView) -> None:
    first = _ask(view, "/frame.png")[1]
    result = source.now.last_result
    assert result is not None
    result.pixels[:] = 0
    assert _ask(view, "/frame.png")[1] == first


def test_a_growing_object_is_shown_as_amplitude_and_phase(source: Any, view: WebView) -> None:
    image = ObjectImage(np.ones((70, 90), np.complex64), np.ones((70, 90), np.float32), 0)
    source.change(last_result=LastResult("star", 12, None, None, image))
    assert b"Amplitude of the object up to frame 12 of series star" in _ask(view, "/")[1]
    for name in ("amplitude", "phase"):
        body = _ask(view, f"/object/{name}.png")[1]
        with Image.open(io.BytesIO(body)) as picture:
            assert picture.size == (450, 350)
    assert _ask(view, "/frame.png")[0].status == 404


def test_a_refined_object_is_shown_beside_the_networks_with_its_residuals(
    source: Any, view: WebView
) -> None:
    image = ObjectImage(np.ones((70, 90), np.complex64), np.ones((70, 90), np.float32), 0)
    assert _ask(view, "/object/refinement.png")[0].status == 404
    refinement = Refinement(image, np.array([0.02, 0.013, 0.0123]), np.array([0.1, 0.9, 1.7]), 35)
    source.change(last_result=LastResult("star", 12, None, None, image, refinement=refinement))
    page = _ask(view, "/")[1].decode()
    assert "refined by 2 sweeps in 1.7 s" in page
    assert "fell from 2.00% to 1.23% of the light" in page
    with Image.open(io.BytesIO(_ask(view, "/object/refinement.png")[1])) as picture:
        # Three panels and two gaps of four columns, enlarged to about 512 pixels.
        assert picture.size == (278, 70)


def test_without_a_result_there_is_no_picture_and_the_page_says_so(
    source: Any, view: WebView
) -> None:
    source.now = ServiceStatus()
    assert _ask(view, "/frame.png")[0].status == 404
    assert b"No result so far." in _ask(view, "/")[1]


@pytest.mark.parametrize("path", ["/", "/status.json", "/metrics", "/frame.png", "/nothing"])
def test_every_answer_forbids_caching_framing_and_foreign_content(view: WebView, path: str) -> None:
    headers = _ask(view, path)[0].headers
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_only_reading_is_allowed(view: WebView, method: str) -> None:
    answer, _ = _ask(view, "/", method)
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")


def test_a_head_request_gets_the_headers_alone(view: WebView) -> None:
    answer, body = _ask(view, "/", "HEAD")
    assert (answer.status, body) == (200, b"")
    assert int(answer.headers["Content-Length"]) > 1000


@pytest.mark.parametrize("host", ["evil.example", "evil.example:9108", "localhost.evil.example"])
def test_a_foreign_name_that_points_here_is_refused(view: WebView, host: str) -> None:
    assert _ask(view, "/status.json", Host=host)[0].status == 403


@pytest.mark.parametrize("host", ["localhost", "localhost:8080", "127.0.0.1:1", "[::1]:9108"])
def test_this_machine_s_own_names_are_served_at_any_port_as_through_a_tunnel(
    view: WebView, host: str
) -> None:
    assert _ask(view, "/status.json", Host=host)[0].status == 200


@pytest.mark.parametrize("path", ["/../../etc/passwd", "/static/page.css", "//frame.png/", "/%2e"])
def test_a_path_that_is_not_listed_does_not_exist(view: WebView, path: str) -> None:
    assert _ask(view, path)[0].status == 404


def test_what_is_no_http_is_answered_under_the_same_headers(view: WebView) -> None:
    port = int(view.url.rstrip("/").rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as connection:
        connection.sendall(b"BREW /pot HTCPCP/1.0\r\n\r\n")
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.0 400 ")
    assert b"Content-Security-Policy" in answer


def test_a_port_that_is_taken_is_refused_in_one_sentence(watch: ServiceWatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError) as refusal:
            WebView(watch, port=port).start()
    assert str(refusal.value) == (
        f"the monitoring page cannot be served on port {port} of 127.0.0.1 "
        "(Address already in use): free it, choose another port, or 0 for no page"
    )


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "beamline.example"])
def test_an_address_that_others_can_reach_is_refused(watch: ServiceWatch, host: str) -> None:
    with pytest.raises(ConfigurationError, match="and an ssh tunnel or a proxy"):
        WebView(watch, port=0, host=host)


def test_closing_ends_the_threads_and_frees_the_port(
    watch: ServiceWatch,
    free_port: Callable[[], int],
    until: Callable[[Callable[[], bool]], None],
    begun_threads: Callable[[], set[threading.Thread]],
) -> None:
    port = free_port()
    view = WebView(watch, port=port)
    view.start()
    _ask(view, "/")
    view.close()
    view.close()
    # A thread outlives its connection for an instant.
    until(lambda: not begun_threads())
    again = WebView(watch, port=port)
    again.start()
    again.close()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give clients hours for their requests, so that who waits for one is seen to hang."""
    monkeypatch.setattr("edgexnas.device.monitoring.web_view._REQUEST_S", 9999.0)
    monkeypatch.setattr("edgexnas.device.monitoring.web_view._Handler.timeout", 9999.0)


@pytest.mark.usefixtures("patient")
def test_a_crowd_of_silent_clients_does_not_grow_the_number_of_threads(
    view: WebView,
    until: Callable[[Callable[[], bool]], None],
    begun_threads: Callable[[], set[threading.Thread]],
) -> None:
    port = int(view.url.rstrip("/").rpartition(":")[2])
    crowd = [socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) for _ in range(40)]
    try:
        # The oldest are closed for the newest.
        assert crowd[0].recv(1) == b""
        # A thread outlives its connection for an instant.
        until(lambda: len(begun_threads()) <= 16)
    finally:
        for client in crowd:
            client.close()


@contextmanager
def _slow_clients(view: WebView, count: int) -> Iterator[list[socket.socket]]:
    """Clients that keep their connection with a byte now and then, and never end their request."""
    port = int(view.url.rstrip("/").rpartition(":")[2])
    clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
    done = threading.Event()

    def trickle() -> None:
        while not done.wait(0.1):
            for client in clients:
                with suppress(OSError):
                    client.send(b"G")

    thread = threading.Thread(target=trickle)
    thread.start()
    try:
        yield clients
    finally:
        done.set()
        thread.join()
        for client in clients:
            client.close()


@pytest.mark.usefixtures("patient")
def test_slow_clients_do_not_keep_others_from_the_page(view: WebView) -> None:
    with _slow_clients(view, 16):
        for path in ("/", "/healthz", "/metrics"):
            assert _ask(view, path)[0].status == 200


@pytest.mark.usefixtures("patient")
def test_slow_clients_do_not_hold_up_the_end(watch: ServiceWatch) -> None:
    view = WebView(watch, port=0)
    view.start()
    with _slow_clients(view, 16):
        closing = threading.Thread(target=view.close, daemon=True)
        closing.start()
        closing.join(LIMIT_S)
        assert not closing.is_alive()


def test_a_request_has_a_deadline_however_slowly_it_comes(
    view: WebView, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgexnas.device.monitoring.web_view._REQUEST_S", 0.3)
    with _slow_clients(view, 1) as (client,):
        client.settimeout(LIMIT_S)
        # The connection ends, though its bytes never stop for longer than a read may take; it is
        # reset if some were on their way.
        with suppress(ConnectionResetError):
            assert client.recv(1) == b""
