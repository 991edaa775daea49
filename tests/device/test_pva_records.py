from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

import pvaccess
import pytest

from edgexnas.device.pva_records import PvaRecords, require_search_port
from edgexnas.device.sinks.pva_sink import PvaSink
from edgexnas.errors import ConfigurationError

pytestmark = pytest.mark.usefixtures("epics_network")


def _get(name: str) -> Any:
    end_s = time.monotonic() + 180
    while True:
        # EPICS searches again only half a minute after a handshake that took longer than 5 s, and
        # for a new channel at once.
        channel = pvaccess.Channel(name)
        channel.setTimeout(20)
        try:
            return channel.get()["value"]
        except pvaccess.PvaException:
            if time.monotonic() > end_s:
                raise


def _integer(value: int) -> Any:
    return pvaccess.PvObject({"value": pvaccess.INT}, {"value": value})


def test_two_users_share_one_server_and_each_withdraws_its_own(
    capfd: pytest.CaptureFixture[str],
) -> None:
    status, results = PvaRecords("status"), PvaRecords("results")
    status.add("EDGEX:a", _integer(1))
    results.add("EDGEX:b", _integer(2))
    assert (_get("EDGEX:a"), _get("EDGEX:b")) == (1, 2)
    status.close()
    results.update("EDGEX:b", {"value": 3})
    assert _get("EDGEX:b") == 3
    results.close()
    results.close()
    assert "More than one channel" not in "".join(capfd.readouterr())


def test_a_name_is_served_once() -> None:
    first, second = PvaRecords("status"), PvaRecords("results")
    try:
        first.add("EDGEX:a", _integer(1))
        with pytest.raises(ConfigurationError, match="serves a PV EDGEX:a already"):
            second.add("EDGEX:a", _integer(1))
    finally:
        second.close()
        first.close()


def test_records_can_be_served_again_after_all_were_withdrawn() -> None:
    for value in (1, 2):
        records = PvaRecords("status")
        records.add("EDGEX:again", _integer(value))
        assert _get("EDGEX:again") == value
        records.close()


@pytest.mark.parametrize(
    "serve", [PvaRecords, lambda prefix: PvaSink(prefix).check()], ids=["records", "sink"]
)
@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_a_port_of_searches_that_another_program_holds_is_refused(
    serve: Callable[[str], object], address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind((address, 0))
        port = str(other.getsockname()[1])
        monkeypatch.setenv("EPICS_PVAS_BROADCAST_PORT", port)
        with pytest.raises(ConfigurationError, match=rf"UDP port {port} of 127.0.0.1 cannot be sh"):
            serve("EDGEX:")


def test_a_port_of_searches_that_another_epics_program_shares_is_no_obstacle(
    epics_network: dict[str, str],
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", int(epics_network["EPICS_PVAS_BROADCAST_PORT"])))
        require_search_port("status PVs")


@pytest.mark.parametrize("port", ["99999", "0", "-1", "5O76"])
def test_a_port_of_searches_that_is_none_is_refused_by_its_variable(
    port: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EPICS_PVAS_BROADCAST_PORT", port)
    with pytest.raises(ConfigurationError, match=f"EPICS_PVAS_BROADCAST_PORT is '{port}'"):
        require_search_port("status PVs")


@pytest.mark.parametrize("address", ["198.51.100.77", "::1", "127.0.0.1 127.0.0.2"])
def test_what_is_no_address_of_this_machine_is_refused_by_its_variable(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EPICS_PVAS_INTF_ADDR_LIST", address)
    with pytest.raises(ConfigurationError, match=f"INTF_ADDR_LIST is '{address}'"):
        require_search_port("status PVs")


@pytest.mark.parametrize("address", ["localhost", "127.0.0.1:5075"])
def test_an_address_by_name_or_with_a_port_is_taken(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EPICS_PVAS_INTF_ADDR_LIST", address)
    require_search_port("status PVs")


def test_a_server_that_epics_does_not_open_is_refused_in_a_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A group that machines share is an address to bind to, and none of an interface.
    monkeypatch.setenv("EPICS_PVAS_INTF_ADDR_LIST", "224.0.0.128")
    with pytest.raises(ConfigurationError, match=r"network interface\(s\) available.*INTF") as told:
        PvaRecords("status PVs")
    assert "\n" not in str(told.value)
